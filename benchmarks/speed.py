"""``python -m benchmarks.speed``: writes the measured parts of docs/speed.md and of the README from the results.

It measures nothing. ``benchmarks/results/<device>.json`` comes from the programs that it shows, with ``--json``.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmarks.whole
from benchmarks import scale, train
from benchmarks.figures import RESULTS, ratios, spread

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "docs" / "speed.md", ROOT / "README.md")
_BLOCK = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- /measured -->)", re.DOTALL)
"""What stands between such marks is written by this program."""

Section = Mapping[str, Any]


def table(*rows: Sequence[str]) -> str:
    """The first row is the head."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def training(section: Section) -> Iterator[str]:
    """Every loop, the parts of some, and the curves."""
    loops = section["loops"]
    versions = "".join(f", {name} {version}" for name, version in section.get("versions", {}).items())
    known = "" if section.get("bf16", True) else " It has no bfloat16 arithmetic, and imitates it."
    yield f"On {section['images']:,} images{versions}.{known}"
    yield table(train.HEAD, *train.table(loops))
    parts = [(name, part, values) for name, row in loops.items() for part, values in row.get("parts", {}).items()]
    if parts:
        yield table(["", "part", "seconds"], *([name, part, spread(values)] for name, part, values in parts))
    curves = [name for name in train.CURVES if len(loops.get(name, {}).get("loss", [])) > 1]
    if len(curves) == len(train.CURVES):
        epochs = min(len(loops[name]["loss"]) for name in curves)
        yield "The training loss, epoch by epoch, in float32 and in bfloat16:"
        yield table(
            ["epoch", *map(str, range(1, epochs + 1))],
            *([name, *(f"{loss:.2f}" for loss in loops[name]["loss"][:epochs])] for name in curves),
        )


def whole(section: Section) -> Iterator[str]:
    """The training from its beginning to its end, and the profile of a step."""
    chosen = f"--step {section['step']} --precision {section['precision']}"
    if section["steps_per_replay"] > 1:
        chosen += f" --set training.steps_per_replay={section['steps_per_replay']}"
    yield f"`{chosen}`, on {section['images']:,} images:"
    yield "\n".join(f"- {line}" for line in benchmarks.whole.lines(section))
    rows = [[f"`{n[:60]}`", f"{calls:.2f}", f"{time:,.1f}"] for n, calls, time in section["profile"]["longest"]]
    yield table(["", "calls a step", "µs a step"], *rows)


def starting(section: Section) -> Iterator[str]:
    """The commands and the first step."""
    rows = [[f"`{name}`", spread(values)] for name, values in section["processor_seconds"].items()]
    yield table(["", "seconds of processor time"], *rows)
    steps = spread(section["first_step_seconds"])
    yield f"`genkit train`, from the imports of torch and torch._dynamo to the end of its first step: {steps} s."


def sampling(section: Section) -> Iterator[str]:
    """Samples and likelihoods against their products."""
    rows = []
    names = {
        "drawn": "10,000 samples",
        "likelihood": f"log p(x) of {section['images']:,} test images, K = {section['samples']:,}",
    }
    for key, name in names.items():
        mine, floor = section[key]["seconds"], section[key]["floor"]
        rows.append([name, spread(mine), spread(floor), spread(ratios(mine, floor))])
    yield table(["", "seconds", "the products alone", "times"], *rows)
    yield f"The first batch of 128 images, with what the compiler took: {section['first_batch_seconds']:.1f} s."


def growing(section: Section) -> Iterator[str]:
    """The tables of each part that was measured."""
    for part in (part for part in scale.PARTS if section.get(part)):
        yield from (table(*rows) for rows in scale.tables(part, section[part]))


def brief(section: Section) -> Iterator[str]:
    """What the README shows of the training."""
    loops = {name: row for name, row in section["loops"].items() if "missing" not in row}
    rows = [[cell.split(" (")[0] for cell in row[:4]] for row in train.table(loops)]
    for name, row in loops.items():
        if "all" in row.get("parts", {}) and name == train.CURVES[0]:
            with_all = {**loops, name: {**row, "seconds": row["parts"]["all"]}}
            (line,) = (line for line in train.table(with_all) if line[0] == name)
            cells = [f"{name}, with the test set, the metrics and a checkpoint on the disk", *line[1:4]]
            rows.append([cell.split(" (")[0] for cell in cells])
    yield table(train.HEAD[:4], *rows)


def exporting(results: Mapping[str, Any]) -> str:
    """Of the file that ``benchmarks.export`` keeps."""
    rows = []
    for name, row in results["commands"].items():
        times = spread(row["processor_seconds"])
        rows.append([name, times, f"{statistics.median(row['peak_megabytes']):,.0f}"])
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    heading = f"{results['device']}, {versions}:"
    return heading + "\n\n" + table(["", "seconds of processor time", "megabytes at the peak"], *rows)


SECTIONS: Mapping[str, tuple[str, Callable[[Section], Iterator[str]]]] = {
    "train": ("train", training),
    "whole": ("whole", whole),
    "startup": ("startup", starting),
    "sample": ("sample", sampling),
    "scale": ("scale", growing),
    "brief": ("train", brief),
}
"""The blocks of the pages: the section that each shows, and how."""


def kept() -> dict[str, dict[str, Any]]:
    """The results of each device, the processors first."""
    found = {}
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: (not path.stem.startswith("cpu"), path.stem)):
        sections = json.loads(path.read_text())
        known = {name for name, _ in SECTIONS.values()}
        shown = {k: v for k, v in sections.items() if k in known and isinstance(v, dict) and "machine" in v}
        if shown:
            found[path.stem] = shown
    return found


def block(name: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """One measured part, for every device that has it; the brief one for the last of the processors."""
    if name == "export":
        return exporting(json.loads((RESULTS / "export.json").read_text())) + "\n"
    section, show = SECTIONS[name]
    found = [(device, sections[section]) for device, sections in results.items() if section in sections]
    if name == "brief":
        found = [(device, figures) for device, figures in found if device.startswith("cpu")][-1:]
    parts = []
    for _, figures in found:
        parts.append(f"{figures['machine']}, torch {figures['torch']}; medians (lowest to highest).")
        parts += show(figures)
    return "\n\n".join(parts or ["Not measured yet."]) + "\n"


def written(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with its measured parts as they should be."""
    return _BLOCK.sub(lambda match: match[1] + block(match[2], results) + match[3], page)


def main() -> None:
    """Writes."""
    argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__).parse_args()
    for page in PAGES:
        page.write_text(written(page.read_text(), kept()))


if __name__ == "__main__":
    main()
