"""``python -m benchmarks.correct``: exports random correct architectures, of which the parity gate may refuse none.

Each goes through the exporter as a user's graph would, and the bundle through ``verify``. What the gate refuses is an
alarm, with its reason; what torch.onnx cannot translate is counted apart, because there was no graph to judge. An
export is a file in ``--runs``, named by its seed: a campaign that was interrupted goes on, and several may share it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from genkit_onnx.exporter import OnnxExporter
from genkit_onnx.runtime import OnnxRuntime

import genkit
from benchmarks.architectures import architecture, layers
from genkit.training.device import choose_device, describe_device

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "correct.json"


def outcome(seed: int, folder: Path) -> dict[str, Any]:
    """One export and its verification."""
    graph = architecture(seed)
    row: dict[str, Any] = {"seed": seed, "outcome": "passed", "layers": layers(graph.module)}
    started = time.perf_counter()
    bundle = folder / "bundle"
    runtime = OnnxRuntime()
    try:
        report = OnnxExporter().export([graph], bundle, about={}, opset=18, runtimes=[runtime], seed=seed)
    except genkit.ExportRefused:
        checks = json.loads((folder / "bundle.rejected.json").read_text())["checks"]
        failures = [check for check in checks if not check["ok"]]
        row["outcome"] = "not translated" if failures[0]["subject"] == "translation" else "alarm"
        row["failures"] = [f"{check['subject']}: {check['detail']}" for check in failures]
        return row
    row["seconds"] = round(time.perf_counter() - started, 2)
    opened = genkit.Bundle.open(bundle)
    row["operators"] = sorted({node.op_type for node in onnx.load(opened.file("graph.onnx")).graph.node})
    row["reduction"] = opened.manifest.graphs[0].reduction
    for subject in ("graph proof", runtime.name):
        measured = [c.measured for c in report.checks if c.subject == subject and "rms" in c.measured]
        for figure in ("rms", "max"):
            row[f"{subject} {figure}"] = max((m[figure] / m[f"{figure}_limit"] for m in measured), default=0.0)
    again = OnnxExporter().verify(opened, [runtime])
    if not again.ok:
        row |= {"outcome": "alarm", "failures": [f"verify, {c.subject}: {c.detail}" for c in again.failures]}
    return row


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many passed, what did not, and how much of their limits the right graphs used at the most."""
    passed = [row for row in rows if row["outcome"] == "passed"]
    most = {}
    for figure in (f"{subject} {kind}" for subject in ("graph proof", "onnxruntime") for kind in ("rms", "max")):
        worst = max(passed, key=lambda row: row[figure])
        most[figure] = {"of_the_limit": round(worst[figure], 3), "seed": worst["seed"], "operators": worst["operators"]}
    return {
        "device": describe_device(choose_device("cpu")),
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        "exports": len(rows),
        "passed": len(passed),
        "alarms": [row for row in rows if row["outcome"] == "alarm"],
        "not_translated": [row for row in rows if row["outcome"] == "not translated"],
        "operators": sorted({operator for row in passed for operator in row["operators"]}),
        "longest_reduction": max(row["reduction"] for row in passed),
        "largest_share_of_a_limit": most,
        "median_seconds_of_an_export": round(statistics.median(row["seconds"] for row in passed), 2),
    }


def main() -> None:
    """Exports, and prints the summary of all that has been exported so far."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.correct", description=__doc__)
    parser.add_argument("--exports", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--runs", type=Path, default=Path("runs/correct"))
    parser.add_argument("--json", type=Path, metavar="FILE", default=RESULTS, help="where the summary goes")
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
            print(seed, row["outcome"], row["layers"], *row["failures"], sep="\n    ", flush=True)
    result = summary([json.loads(place.read_text()) for place in sorted(options.runs.glob("*.json"))])
    print(json.dumps(result, indent=2))
    options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
