"""``python -m benchmarks.correct``: exports random correct architectures, of which the parity gate may refuse none.

Each goes through the exporter as a user's graph would, and the bundle through ``verify``. What the gate refuses is an
alarm, with its reason. Two things are counted apart: what torch.onnx cannot translate, because there is no graph to
judge; and what onnxruntime alone fails while numpy's float32 computes the same graph within the same limits: there the
refusal is right, and onnxruntime's kernels are to blame.

An export is a file in ``--runs``, named by its seed: a campaign that was interrupted goes on, and several may share it.
The figures are kept in ``benchmarks/results/correct.json``, and from there on ``docs/gate-correct.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from genkit_onnx.evaluator import reference_evaluator
from genkit_onnx.exporter import OnnxExporter
from genkit_onnx.runtime import OnnxRuntime

import genkit
from benchmarks.architectures import architecture, layers
from benchmarks.models import written
from genkit.training.device import choose_device, describe_device

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "correct.json"
PAGE = ROOT / "docs" / "gate-correct.md"

FIGURES = {
    "graph proof rms": "graph in float64, rms",
    "graph proof max": "graph in float64, largest",
    "onnxruntime rms": "onnxruntime, rms",
    "onnxruntime max": "onnxruntime, largest",
}
"""What is kept of a proof, as shares of its limits: the largest over the outputs."""


class Numpy:
    """onnx's reference evaluator in float32: slow, and careful."""

    name = "numpy"
    version = np.__version__

    def load(self, path: Path) -> Callable[[genkit.Arrays], dict[str, Any]]:
        """Opens one graph."""
        evaluator = reference_evaluator(onnx.load(path))

        def run(inputs: genkit.Arrays) -> dict[str, Any]:
            with np.errstate(all="ignore"):
                return dict(zip(evaluator.output_names, evaluator.run(None, dict(inputs)), strict=True))

        return run


def exported(
    graph: genkit.Graph, bundle: Path, runtime: genkit.Runtime, seed: int
) -> tuple[genkit.Report | None, Sequence[Mapping[str, Any]]]:
    """The report of an export, and the checks that failed."""
    try:
        return OnnxExporter().export([graph], bundle, about={}, opset=18, runtimes=[runtime], seed=seed), ()
    except genkit.ExportRefused:
        checks = json.loads(bundle.with_name(f"{bundle.name}.rejected.json").read_text())["checks"]
        return None, [check for check in checks if not check["ok"]]


def outcome(seed: int, folder: Path) -> dict[str, Any]:
    """One export and its verification."""
    graph, runtime = architecture(seed), OnnxRuntime()
    row: dict[str, Any] = {"seed": seed, "outcome": "passed", "layers": layers(graph.module)}
    started = time.perf_counter()
    report, failures = exported(graph, folder / "bundle", runtime, seed)
    row["seconds"] = round(time.perf_counter() - started, 2)
    if report is None:
        row["failures"] = [f"{check['subject']}: {check['detail']}" for check in failures]
        subjects = {check["subject"] for check in failures}
        if "translation" in subjects:
            row["outcome"] = "not translated"
        elif subjects == {runtime.name} and exported(graph, folder / "again", Numpy(), seed)[0]:
            row["outcome"] = "careless runtime"
        else:
            row["outcome"] = "alarm"
        return row
    bundle = genkit.Bundle.open(folder / "bundle")
    (entry,) = bundle.manifest.graphs
    row["operators"] = sorted({node.op_type for node in onnx.load(bundle.file(entry.file)).graph.node})
    row["reduction"] = entry.reduction
    for subject in ("graph proof", runtime.name):
        measured = [c.measured for c in report.checks if c.subject == subject and "rms" in c.measured]
        for figure in ("rms", "max"):
            row[f"{subject} {figure}"] = max((m[figure] / m[f"{figure}_limit"] for m in measured), default=0.0)
    again = OnnxExporter().verify(bundle, [runtime])
    if not again.ok:
        row |= {"outcome": "alarm", "failures": [f"verify, {c.subject}: {c.detail}" for c in again.failures]}
    return row


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many passed, what did not, and how much of their limits the right graphs used."""
    passed = [row for row in rows if row["outcome"] == "passed"]
    kept = ("seed", "layers", "failures")
    apart = {
        name: [{key: row[key] for key in kept} for row in rows if row["outcome"] == name]
        for name in ("alarm", "careless runtime", "not translated")
    }
    shares = {}
    for figure in FIGURES:
        worst = max(passed, key=lambda row: row[figure])
        values = sorted(row[figure] for row in passed)
        shares[figure] = {
            "median": float(f"{statistics.median(values):.2g}"),
            "99 of 100": float(f"{values[len(values) * 99 // 100]:.2g}"),
            "largest": float(f"{values[-1]:.2g}"),
            "seed": worst["seed"],
            "layers": worst["layers"],
        }
    return {
        "device": describe_device(choose_device("cpu")),
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        "exports": len(rows),
        "passed": len(passed),
        **apart,
        "shares of a limit": shares,
        "longest reduction": max(row["reduction"] for row in passed),
        "median seconds of an export": round(statistics.median(row["seconds"] for row in passed), 2),
        "layers": dict(sorted(Counter(name for row in passed for name in row["layers"]).items())),
        "operators": dict(sorted(Counter(name for row in passed for name in row["operators"]).items())),
    }


def page(results: Mapping[str, Any]) -> str:
    """``docs/gate-correct.md`` with the figures."""
    counts = ", ".join(
        f"{len(results[name])} {what}"
        for name, what in {
            "alarm": "false alarms",
            "careless runtime": "refused because of onnxruntime's kernels",
            "not translated": "that torch.onnx could not translate",
        }.items()
    )
    made_with = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = ["| share of the limit | median | 99 of 100 | largest | with |", "| --- | --- | --- | --- | --- |"]
    for figure, what in FIGURES.items():
        share = results["shares of a limit"][figure]
        numbers = " | ".join(f"{share[key]:.2g}" for key in ("median", "99 of 100", "largest"))
        lines.append(f"| {what} | {numbers} | {', '.join(share['layers'])} (seed {share['seed']}) |")
    refused = [
        f"- seed {row['seed']}, {name}: {', '.join(row['layers'])}. {row['failures'][0]}"
        for name in ("alarm", "careless runtime", "not translated")
        for row in results[name]
    ]
    content = [
        f"{results['exports']} exports, {results['passed']} passed: {counts}. "
        f"{len(results['layers'])} kinds of layers, {len(results['operators'])} operators, "
        f"sums of up to {results['longest reduction']} terms; {results['device']}, {made_with}.",
        "\n".join(lines),
        "\n".join(refused),
    ]
    return written(PAGE.read_text(), "\n" + "\n\n".join(filter(None, content)) + "\n")


def main() -> None:
    """Exports what has not been exported yet, and sums up all that has."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.correct", description=__doc__)
    parser.add_argument("--exports", type=int, default=1000, metavar="N", help="as many; 0: only sum up")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="of the first")
    parser.add_argument("--runs", type=Path, default=Path("runs/correct"), help="where the exports are noted")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    for seed in range(options.first, options.first + options.exports):
        place = options.runs / f"{seed}.json"
        if place.exists():
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = outcome(seed, Path(folder))
        place.write_text(json.dumps(row))
        if row["outcome"] != "passed":
            print(seed, row["outcome"], ", ".join(row["layers"]), *row["failures"], sep="\n    ", flush=True)
    results = summary([json.loads(place.read_text()) for place in sorted(options.runs.glob("*.json"))])
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    PAGE.write_text(page(results))
    print(f"{results['passed']} of {results['exports']} passed, {len(results['alarm'])} false alarms")


if __name__ == "__main__":
    main()
