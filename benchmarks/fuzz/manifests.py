"""Damage to the manifest: as text, and, with its digests right again, to what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from benchmarks.fuzz.damages import damage
from benchmarks.fuzz.victims import Content, Inapplicable, Victim

NUMBERS = (
    "1e400",
    "-1e400",
    "1e-400",
    "1" + "0" * 5000,
    str(2**63),
    str(-(2**63)),
    str(2**64),
    "-1",
    "NaN",
    "Infinity",
)
NAMES = (
    "../outside/secret",
    "../../../../../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "..",
    ".",
    "",
    "/",
    "..\\outside\\secret",
    "file:///etc/passwd",
    "c:secret",
    "decoder.onnx\x00.data",
    "test_data/../../outside/secret",
    "a" * 300,
    "a/" * 3000,
    "x" * 10**6,
    "\x1b[2J\n\n\nverified",
    "*/_ORT_MEM_ADDR_/*",
)

# As text


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every number, string, true, false and null."""
    if isinstance(value, dict | list):
        for key, member in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(member, (*path, key))
    else:
        yield path


def _put(content: Content, path: tuple[Any, ...], value: Any) -> Any:
    """Puts ``value`` there, and gives what was there before."""
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    before, place[path[-1]] = place[path[-1]], value
    return before


def _with_raw_leaf(victim: Victim, raw: str, *, sealed: bool = False) -> None:
    content = victim.content()
    leaves = [path for path in _leaves(content) if path[0] == "graphs" and path[2] not in ("ignores", "weights")]
    before = _put(content, victim.random.choice(leaves), "@raw@")
    with suppress(ValueError, RecursionError):
        if json.loads(raw) == before:
            raise Inapplicable
    victim.write(content, sealed=sealed, raw=("@raw@", raw))


@damage()
def huge_number(victim: Victim) -> None:
    _with_raw_leaf(victim, victim.random.choice(NUMBERS))


@damage()
def deep_nesting(victim: Victim) -> None:
    depth = victim.random.choice([50, 300, 10_000, 1_000_000])
    opened, closed = victim.random.choice([("[", "]"), ('{"a":', "}")])
    _with_raw_leaf(victim, opened * depth + "1" + closed * victim.random.choice([0, depth]))


@damage()
def lone_surrogate(victim: Victim) -> None:
    _with_raw_leaf(victim, victim.random.choice([r'"\ud800"', r'"\udfff\ud800"', '"\ud800"', r'"\u0000"']))


@damage()
def long_string(victim: Victim) -> None:
    _with_raw_leaf(victim, json.dumps("\n" * 5_000_000))


@damage()
def unfinished(victim: Victim) -> None:
    _with_raw_leaf(victim, victim.random.choice(['"', "", "//", "/*", "0x10", "'a'", "01", "1_0", "+1", "\\"]))


@damage()
def repeated_key(victim: Victim) -> None:
    """Each reader takes another of the two."""
    file = victim.path / "manifest.json"
    victim.content()
    text = file.read_text(encoding="utf-8")
    key = victim.random.choice(["format_version", "graphs", "digest", "files", "opset", "reduction", "errors"])
    value = victim.random.choice(["1", "{}", "[]", '"onnx"', "null"])
    file.write_text(text.replace(f'"{key}":', f'"{key}": {value}, "{key}":', 1), encoding="utf-8")


@damage()
def another_encoding(victim: Victim) -> None:
    file = victim.path / "manifest.json"
    victim.content()
    encoding = victim.random.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
    text = file.read_text(encoding="utf-8")
    file.write_bytes(text.encode(encoding) + victim.random.choice([b"", b"\xff"]))


@damage()
def giant_manifest(victim: Victim) -> None:
    """Short of what is read at all, and beyond; all of it sense."""
    content = victim.content()
    content["more"] = ["x" * 2**20] * victim.random.choice([7, 7, 9, 40])
    victim.write(content, sealed=False)


@damage()
def not_an_object(victim: Victim) -> None:
    text = victim.random.choice(["", "null", "[]", "{}", "1", '"manifest"', "[[]]", "[{}]" * 2, "\x00", "{}{}"])
    (victim.path / "manifest.json").write_text(text)


# What it says


def _many(victim: Victim) -> int:
    return 100_000 if victim.random.random() < 0.1 else 4000


HOSTILE: tuple[Any, ...] = (
    -1,
    2**63,
    10**30,
    10**12,
    1e300,
    -1e-300,
    [],
    {},
    [[]],
    {"a": 1},
    True,
    "batch",
    "\x00",
    *NAMES,
)


@damage(sealed=True)
def hostile_value(victim: Victim) -> None:
    _with_raw_leaf(victim, json.dumps(victim.random.choice(HOSTILE)), sealed=True)


@damage(sealed=True)
def hostile_number(victim: Victim) -> None:
    _with_raw_leaf(victim, victim.random.choice(NUMBERS), sealed=True)


@damage(sealed=True)
def null_value(victim: Victim) -> None:
    content = victim.content()
    leaves = [path for path in _leaves(content["graphs"]) if path[1] not in ("ignores", "weights")]
    if _put({"graphs": content["graphs"]}, ("graphs", *victim.random.choice(leaves)), None) is None:
        raise Inapplicable
    victim.write(content, sealed=True)


@damage(sealed=True)
def lost_field(victim: Victim) -> None:
    """What has no default, and what the graphs say as well."""
    content = victim.content()
    graph = victim.random.choice(content["graphs"])
    fields = [(graph, key) for key in ("name", "file", "opset", "inputs", "outputs", "batches", "reduction", "errors")]
    fields += [(content, "format"), (content, "graphs"), (content, "prior"), (content, "checkpoint")]
    values = [value for kind in ("inputs", "outputs") for value in graph[kind]]
    fields += [(value, key) for value in values for key in ("name", "dtype", "shape")]
    holder, key = victim.random.choice(fields)
    holder.pop(key)
    victim.write(content, sealed=True)


@damage(sealed=True)
def another_path(victim: Victim) -> None:
    content = victim.content()
    graph = victim.random.choice(content["graphs"])
    graph[victim.random.choice(["file", "data"])] = victim.random.choice([*NAMES, "manifest.json", "README.md"])
    victim.write(content, sealed=True)


@damage(sealed=True)
def listed_outside(victim: Victim) -> None:
    """A file beyond the bundle, with the digest that it has."""
    content = victim.content()
    content["files"][victim.random.choice(NAMES)] = "0" * 64
    victim.write(content, sealed=True)


@damage(sealed=True)
def thousands_listed(victim: Victim) -> None:
    content = victim.content()
    content["files"] |= {f"{i}{victim.random.choice(['', chr(10)])}": "0" * 64 for i in range(_many(victim))}
    victim.write(content, sealed=True)


@damage(sealed=True)
def not_listed(victim: Victim) -> None:
    content = victim.content()
    content["files"].pop(victim.random.choice([*content["files"]]))
    victim.write(content, sealed=True)


@damage(sealed=True)
def vast_shape(victim: Victim) -> None:
    content = victim.content()
    value = victim.random.choice([v for g in content["graphs"] for v in (*g["inputs"], *g["outputs"])])
    value["shape"] = victim.random.choice(
        [["batch", 10**12], ["batch"] + [2] * 100, [*value["shape"], 10**6, 10**6], ["batch", 2**63], [10**12, "batch"]]
    )
    victim.write(content, sealed=True)


@damage(sealed=True)
def other_batches(victim: Victim) -> None:
    content = victim.content()
    batches = victim.random.choice([[10**9], [1] * 100_000, [2**63], [64, 7, 2, 1], [1, 2, 7, 64, 64], [3], []])
    victim.random.choice(content["graphs"])["batches"] = batches
    victim.write(content, sealed=True)


@damage(sealed=True)
def other_reduction(victim: Victim) -> None:
    """A longer sum allows for larger errors."""
    content = victim.content()
    graph = victim.random.choice(content["graphs"])
    graph["reduction"] = graph["reduction"] * victim.random.choice([2, 10**6, 2**63, 10**400])
    victim.write(content, sealed=True)


@damage("mlp", "conv", "labelled", "external", "reduced", sealed=True)
def other_errors(victim: Victim) -> None:
    """Units that are too large, so that everything is small in them; or none."""
    content = victim.content()
    graph = victim.random.choice(content["graphs"])
    name = victim.random.choice([*graph["errors"]])
    kind = victim.random.choice(["rms", "max"])
    change = victim.random.choice(["large", "huge", "none", "lost", "renamed", "more"])
    if change in ("large", "huge", "none"):
        graph["errors"][name][kind] *= {"large": 1.001, "huge": 1e30, "none": 0.0}[change]
    elif change == "more":
        graph["errors"]["more"] = graph["errors"][name]
    else:
        lost = graph["errors"].pop(name)
        graph["errors"] |= {f"{name} ": lost} if change == "renamed" else {}
    victim.write(content, sealed=True)


@damage(sealed=True)
def other_names(victim: Victim) -> None:
    content = victim.content()
    graph = victim.random.choice(content["graphs"])
    value = victim.random.choice([*graph["inputs"], *graph["outputs"]])
    value["name"] = victim.random.choice(["", "y\nz", value["name"] * 2, "\x1b[1m", "n" * 100_000, "__class__"])
    victim.write(content, sealed=True)


@damage(sealed=True)
def other_dtype(victim: Victim) -> None:
    content = victim.content()
    graph = victim.random.choice(content["graphs"])
    value = victim.random.choice([*graph["inputs"], *graph["outputs"]])
    kinds = ["float64", "float16", "int32", "uint8", "bool", "object", "str", "complex128", "bfloat16", "V8", "O", ""]
    value["dtype"] = victim.random.choice(kinds)
    victim.write(content, sealed=True)


@damage(sealed=True)
def other_interface(victim: Victim) -> None:
    """Values are added, repeated, or moved to the other side."""
    content = victim.content()
    graph = victim.random.choice(content["graphs"])
    side, other = victim.random.choice([("inputs", "outputs"), ("outputs", "inputs")])
    graph[side] = victim.random.choice([graph[side] * 2, graph[side] + graph[other], graph[other], graph[side] * 5000])
    victim.write(content, sealed=True)


@damage("mlp", "codes", sealed=True)
def exchanged_graphs(victim: Victim) -> None:
    content = victim.content()
    one, other = content["graphs"]
    before = json.dumps(content)
    for key in victim.random.choice(
        [("file",), ("name",), ("inputs", "outputs"), ("errors",), ("batches", "reduction")]
    ):
        one[key], other[key] = other[key], one[key]
    if json.dumps(content) == before:
        raise Inapplicable
    victim.write(content, sealed=True)


@damage(sealed=True)
def no_graphs(victim: Victim) -> None:
    content = victim.content()
    content["graphs"] = []
    victim.write(content, sealed=True)


@damage(sealed=True)
def thousands_of_graphs(victim: Victim) -> None:
    content = victim.content()
    content["graphs"] = [{**content["graphs"][0], "name": f"g{i}"} for i in range(_many(victim) // 20)]
    victim.write(content, sealed=True)


@damage(sealed=True)
def another_format(victim: Victim) -> None:
    content = victim.content()
    content["format"] = victim.random.choice(
        ["", "onnx ", "ONNX", "torch", "../onnx", "\n\n\n", "x" * 10**6, "\x1b[1m"]
    )
    victim.write(content, sealed=True)


@damage(sealed=True)
def another_version(victim: Victim) -> None:
    content = victim.content()
    content["format_version"] = victim.random.choice([0, 2, -1, 2**63, 1.5, "1", True, None])
    victim.write(content, sealed=True)


@damage(sealed=True)
def additional_fields(victim: Victim) -> None:
    """Where there is no room for more."""
    content = victim.content()
    graph = victim.random.choice(content["graphs"])
    place = victim.random.choice([graph, graph["inputs"][0], graph["outputs"][0], content["checkpoint"]])
    place |= {f"more{chr(10)}{i}": None for i in range(victim.random.choice([1, _many(victim)]))}
    victim.write(content, sealed=True)


@damage("mlp", "conv", "labelled", sealed=True)
def shadow(victim: Victim) -> None:
    """Weights that take the place of the graph wherever the two are copied to: what is proven is not what is used."""
    content = victim.content()
    graph = victim.random.choice(content["graphs"])
    graph["data"] = victim.random.choice(["moved.onnx", "copy.onnx", "graph.onnx", "model.onnx"])
    (victim.path / graph["file"]).rename(victim.path / graph["data"])
    (victim.path / graph["file"]).write_bytes(victim.random.randbytes(100))
    victim.write(content, sealed=False)
    victim.reseal()
