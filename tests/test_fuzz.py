"""Damaged bundles: a seeded sample of ``python -m benchmarks.fuzz``, what it brought to light, and what judges it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import genkit
import genkit.verification
from benchmarks.fuzz import campaign
from benchmarks.fuzz.__main__ import asked_by_command, read_in
from benchmarks.fuzz.campaign import SECONDS, Tally, clear, examine, harmless, reads_are_noticed, unfit
from benchmarks.fuzz.damages import DAMAGES, Damage
from benchmarks.fuzz.victims import CANARY, SOURCES, Inapplicable, Victim, export_sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The proven bundles that are damaged."""
    path = tmp_path_factory.mktemp("sources")
    export_sources(path)
    return path


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """Where bundles are damaged, cleared afterwards: some of them are deeper than pytest could remove."""
    room = tmp_path / "room"
    yield room
    clear(room)


@pytest.fixture
def victim(sources: Path, tmp_path: Path) -> Callable[[str], Victim]:
    return lambda source: Victim.take(sources, source, tmp_path, "seed")


def failures(path: Path) -> list[str]:
    return [check.detail for check in genkit.verify(path).failures]


def weights(model: onnx.ModelProto) -> TensorProto:
    found: TensorProto = max(model.graph.initializer, key=lambda tensor: len(tensor.dims))
    return found


# The sample


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_bundle_is_refused_in_a_line_or_two(kind: str, sources: Path, room: Path) -> None:
    tally, seed = Tally(), list(DAMAGES).index(kind)
    examine(sources, room, seed, tally, seconds=3 if DAMAGES[kind].rare else SECONDS)
    assert not tally.findings
    assert tally.outcomes[kind]


@pytest.mark.parametrize("seed", [30813, 31273])
def test_a_reference_that_is_made_to_look_as_if_rounding_decided_is_noticed(
    seed: int, sources: Path, room: Path
) -> None:
    tally = Tally()
    examine(sources, room, seed, tally)
    assert not tally.findings


def test_the_command_answers_in_a_line_or_two_and_by_its_exit_status(sources: Path, room: Path) -> None:
    kinds = list(DAMAGES)
    for kind in ("thousands listed", "terabytes"):
        seed = kinds.index(kind)
        assert asked_by_command(sources, room, range(seed, seed + 1)) == []


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_not_damaged_is_verified(sources: Path, source: str) -> None:
    assert genkit.verify(sources / source).ok
    assert harmless(sources / source)


# What judges it


def plant(monkeypatch: pytest.MonkeyPatch, apply: Callable[[Victim], object], *, random: bool = False) -> None:
    planted = Damage("planted", apply, SOURCES, sealed=True, rare=True, random=random)
    monkeypatch.setattr(campaign, "plan", lambda seed: planted)


def findings(sources: Path, room: Path, seconds: float = SECONDS) -> list[str]:
    tally = Tally()
    examine(sources, room, 0, tally, seconds=seconds)
    return [finding.what for finding in tally.findings]


def rephrase(victim: Victim) -> None:
    (victim.path / "README.md").write_text("Otherwise.\n")
    victim.reseal()


def test_a_damaged_bundle_that_is_verified_is_a_finding(
    sources: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, rephrase)
    assert findings(sources, room) == ["verified"]
    plant(monkeypatch, rephrase, random=True)
    assert findings(sources, room) == [], "the judge finds that no number changed"


def test_a_damage_that_does_nothing_is_none(sources: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda victim: victim.write(victim.content(), sealed=True))
    with pytest.raises(AssertionError, match="planted does nothing"):
        findings(sources, room)


@pytest.mark.parametrize(
    ("misbehave", "finding"),
    [
        (lambda path: 1 / 0, "verify raises ZeroDivisionError"),
        (lambda path: sys.exit(1), "verify raises SystemExit"),
        (lambda path: signal.pause(), "verify does not come back"),
        (lambda path: (path.parent / "outside" / "secret").read_text(), "read outside of the bundle: secret"),
    ],
)
def test_what_verify_may_not_do_is_a_finding(
    sources: Path,
    room: Path,
    monkeypatch: pytest.MonkeyPatch,
    misbehave: Callable[[Path], object],
    finding: str,
) -> None:
    def verify(path: Path, **_: Any) -> genkit.Report:
        misbehave(path)
        raise genkit.VerificationFailed("it is damaged")

    if "outside" in finding and not reads_are_noticed(room):
        pytest.skip("this file system does not keep the time of the last read")
    plant(monkeypatch, lambda victim: (victim.path / "README.md").unlink())
    monkeypatch.setattr(genkit, "verify", verify)
    monkeypatch.setattr(campaign, "_SLACK", 0.0)
    (found,) = findings(sources, room, seconds=0.5)
    assert found.startswith(finding)


@pytest.mark.parametrize(
    "text", ["", "one\n\nthree", "one\ntwo\nthree", "\x1b[1mbold", "x" * 10_000, CANARY, "Traceback (most recent"]
)
def test_a_message_for_nobody_is_a_finding(text: str) -> None:
    assert unfit(text, lines=2)
    assert not unfit("a bundle is damaged\nexport it again", lines=2)


def test_the_judge_knows_a_harmful_change(victim: Callable[[str], Victim]) -> None:
    mlp = victim("mlp")
    DAMAGES["other weights"].apply(mlp)
    assert not harmless(mlp.path)


def test_a_file_that_is_opened_elsewhere_is_seen_in_the_log() -> None:
    log = [
        '7 openat(AT_FDCWD, "a", O_RDONLY|O_CLOEXEC) = 3</room/bundle/a>',
        '7 openat(AT_FDCWD, "/usr/lib/x.so", O_RDONLY) = 3</usr/lib/x.so>',
        '7 openat(AT_FDCWD, "no", O_RDONLY) = -1 ENOENT (No such file or directory)',
        '7 openat(AT_FDCWD, "b", O_WRONLY|O_CREAT, 0666) = 3</room/outside/b>',
        '7 openat(AT_FDCWD, "/room/bundle/link", O_RDONLY) = 3</room/outside/secret>',
        '7 openat(AT_FDCWD, "/proc/self/mem", O_RDONLY) = 3</proc/7/mem>',
    ]
    assert read_in(log, ["/room/bundle"]) == (4, ["/proc/7/mem", "/room/outside/secret"])


# What it brought to light: names, sizes, and things that are not files


def test_a_manifest_without_end_is_not_read(victim: Callable[[str], Victim]) -> None:
    path = victim("mlp").path
    os.truncate(path / "manifest.json", 2**40)
    with pytest.raises(genkit.VerificationFailed, match="it has more than 8388608 bytes"):
        genkit.Bundle.open(path)


@pytest.mark.parametrize("version", [True, 1.0])
def test_the_version_of_a_manifest_is_a_whole_number(victim: Callable[[str], Victim], version: object) -> None:
    mlp = victim("mlp")
    mlp.write({**mlp.content(), "format_version": version}, sealed=True)
    with pytest.raises(genkit.VerificationFailed, match="format_version: Value error, it is no whole number"):
        genkit.verify(mlp.path)


def test_a_manifest_that_says_two_things_says_none(victim: Callable[[str], Victim]) -> None:
    path = victim("mlp").path
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"opset": 18', '"opset": 17, "opset": 18', 1))
    with pytest.raises(genkit.VerificationFailed, match="a name is repeated in an object"):
        genkit.Bundle.open(path)


def test_a_file_without_end_is_not_read(victim: Callable[[str], Victim]) -> None:
    path = victim("mlp").path
    os.truncate(path / "README.md", 2**43)
    assert failures(path) == ["README.md: larger than 2147483648 bytes"]
    os.truncate(path / "decoder.onnx", 2**43)
    assert failures(path) == [f"{name}: larger than 2147483648 bytes" for name in ("README.md", "decoder.onnx")]
    with pytest.raises(genkit.VerificationFailed, match=r"README\.md: larger than"):
        genkit.load_bundle(path, verify=False)


@pytest.mark.parametrize("name", ["README.md", "test_data/decoder/test_data_set_0/input_0.pb", "decoder.onnx"])
def test_a_pipe_is_never_opened(victim: Callable[[str], Victim], name: str) -> None:
    path = victim("labelled").path
    (path / name).unlink()
    os.mkfifo(path / name)
    assert failures(path) == [f"{name} is a pipe, a device or a socket, or behind one"]
    with pytest.raises(genkit.VerificationFailed, match="is a pipe, a device or a socket"):
        genkit.Bundle.open(path).file(name)


def test_weights_behind_a_link_are_not_read(victim: Callable[[str], Victim]) -> None:
    external = victim("external")
    data = external.path / "decoder.onnx.data"
    data.rename(external.outside / "moved")
    data.symlink_to(external.outside / "moved")
    assert failures(external.path) == ["decoder.onnx.data is a symbolic link, or behind one"], "but not another digest"


def test_folders_deeper_than_a_recursion_are_looked_through(victim: Callable[[str], Victim]) -> None:
    mlp = victim("mlp")
    DAMAGES["bury"].apply(mlp)
    try:
        assert any("not a file of this bundle" in detail for detail in failures(mlp.path))
    finally:
        subprocess.run(["rm", "-rf", mlp.path], check=True)  # deeper than pytest's own tidying goes


def test_a_hundred_problems_are_enough(victim: Callable[[str], Victim]) -> None:
    mlp = victim("mlp")
    content = mlp.content()
    content["files"] |= {f"{i}": "0" * 64 for i in range(250)}
    mlp.write(content, sealed=True)
    found = genkit.Bundle.open(mlp.path).check_files()
    assert len(found) == 101
    assert found[-1].detail == "150 more of the kind"


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2Jverified", "x" * 100_000, "\u202e"])
def test_names_in_a_manifest_cannot_disturb_a_message(victim: Callable[[str], Victim], name: str) -> None:
    mlp = victim("mlp")
    content = mlp.content()
    content["files"][name] = "0" * 64
    mlp.write(content, sealed=True)
    assert not any(unfit(detail, lines=1) for detail in failures(mlp.path))
    content["format"] = name
    mlp.write(content, sealed=True)
    with pytest.raises(genkit.UnknownName) as unknown:
        genkit.verify(mlp.path)
    content["graphs"][0]["errors"][name] = {"rms": -1.0, "max": 0.0}
    mlp.write(content, sealed=True)
    with pytest.raises(genkit.VerificationFailed) as damaged:
        genkit.verify(mlp.path)
    assert not unfit(str(unknown.value), lines=2)
    assert not unfit(str(damaged.value), lines=2)


# What it brought to light: the process that reads


def test_a_process_that_dies_with_the_answer_half_said_is_a_failed_check(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genkit.verification, "_CHILD", "import os; os.write(1, b'{\"checks'); os._exit(3)")
    genkit.verification._child.close()
    assert failures(sources / "mlp") == ["the process that reads it ended with status 3"]


def test_a_bundle_that_pretends_to_be_large_gets_no_more_memory_than_the_machine_has(
    victim: Callable[[str], Victim],
) -> None:
    path = victim("mlp").path
    os.truncate(path / "decoder.onnx", 2**42)
    code = (
        "import os, resource, genkit\n"
        "from pathlib import Path\n"
        "from genkit.verification import _limit_memory\n"
        f"_limit_memory(genkit.Bundle.open(Path({str(path)!r})))\n"
        "machine = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA)[0] < machine)\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True\n"


# What it brought to light: graphs


def test_a_data_file_does_not_take_the_place_of_the_graph(victim: Callable[[str], Victim]) -> None:
    """It was so while the graph was copied to a name that a manifest could give its data file."""
    labelled = victim("labelled")
    DAMAGES["shadow"].apply(labelled)
    assert any("decoder.onnx cannot be read" in detail for detail in failures(labelled.path))


def test_a_data_file_without_weights_is_none(victim: Callable[[str], Victim]) -> None:
    mlp = victim("mlp")
    content = mlp.content()
    content["graphs"][0]["data"] = "README.md"
    mlp.write(content, sealed=True)
    assert failures(mlp.path) == ["no weights are in README.md"]


@pytest.mark.parametrize(("key", "value"), [("location", "../outside/weights.data"), ("prepacked_0", "key|0;4;x")])
@pytest.mark.parametrize("first", [True, False])
def test_the_place_of_a_weight_can_be_read_in_one_way(
    victim: Callable[[str], Victim], key: str, value: str, first: bool
) -> None:
    external = victim("external")

    def change(model: onnx.ModelProto) -> None:
        tensor = weights(model)
        entries = list(tensor.external_data)
        more = onnx.StringStringEntryProto(key=key, value=value)
        del tensor.external_data[:]
        tensor.external_data.extend([more, *entries] if first else [*entries, more])

    external.rewrite(change)
    (found,) = failures(external.path)
    assert found.endswith("is can be read in several ways")


FAR = helper.make_tensor("far", TensorProto.FLOAT, [1], [0.0])
FAR.ClearField("float_data")
FAR.data_location = TensorProto.EXTERNAL
FAR.external_data.add(key="location", value="../outside/weights.data")


def in_an_attribute_of_another_type(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="more", type=onnx.AttributeProto.FLOAT, f=1.0).t.CopyFrom(FAR)


def in_a_sparse_attribute(model: onnx.ModelProto) -> None:
    attribute = model.graph.node[0].attribute.add(name="more", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(FAR)


def in_a_default_of_a_function(model: onnx.ModelProto) -> None:
    function = model.functions.add(name="f", domain="own")
    function.attribute_proto.add(name="more", type=onnx.AttributeProto.TENSOR).t.CopyFrom(FAR)


def in_a_training_graph(model: onnx.ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(FAR)


@pytest.mark.parametrize(
    "hide",
    [in_an_attribute_of_another_type, in_a_sparse_attribute, in_a_default_of_a_function, in_a_training_graph],
)
def test_a_constant_in_another_file_is_found_wherever_it_hides(
    victim: Callable[[str], Victim], hide: Callable[[onnx.ModelProto], object]
) -> None:
    mlp = victim("mlp")
    mlp.rewrite(hide)
    assert failures(mlp.path) == ["constants that are no initialisers are in another file"]


def test_a_golden_code_that_is_neither_right_nor_tied_is_noticed(victim: Callable[[str], Victim]) -> None:
    """Runtimes are held against the float64 codes; those who test with ONNX's tools use the float32 ones."""
    codes = victim("codes")
    file = codes.path / "test_data" / "encoder" / "test_data_set_1" / "output_0.pb"
    array = numpy_helper.to_array(TensorProto.FromString(file.read_bytes())).copy()
    array[0, 0] = 2 - array[0, 0] // 2
    file.write_bytes(numpy_helper.from_array(array, "codes").SerializeToString())
    codes.reseal()
    assert failures(codes.path) == ["codes: PyTorch's float32 gives numbers that are neither its float64's nor ties"]


def test_a_dimension_that_is_left_open_is_none(victim: Callable[[str], Victim]) -> None:
    labelled = victim("labelled")
    file = labelled.path / "test_data" / "decoder" / "test_data_set_2" / "input_1.pb"
    tensor = TensorProto.FromString(file.read_bytes())
    tensor.dims[:] = [-1]
    file.write_bytes(tensor.SerializeToString())
    labelled.reseal()
    (found,) = failures(labelled.path)
    assert found.endswith("input_1.pb: cannot be read: it has the dimensions [-1]")


def test_what_an_earlier_damage_took_away_cannot_be_damaged(victim: Callable[[str], Victim]) -> None:
    mlp = victim("mlp")
    (mlp.path / "manifest.json").unlink()
    with pytest.raises(Inapplicable):
        mlp.reseal()
