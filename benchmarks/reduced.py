"""``python -m benchmarks.reduced [NAME ...]``: what fp16 and int8 save and cost, on trained in-box models.

Each model goes through the commands that a user types: ``genkit train``, then ``genkit export`` in each precision. What
was measured at export is kept in ``benchmarks/results/reduced.json`` and put into ``docs/reduced.md``, with the time
that onnxruntime takes for a batch of 64: the median of many, in turns with fp32. ``--pages`` writes the page anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.models import ROOT, genkit, written
from genkit import REDUCED, Bundle, BundledGraph, ReducedGraph, load_plugins

RESULTS = ROOT / "benchmarks" / "results" / "reduced.json"
PAGE = ROOT / "docs" / "reduced.md"

EPOCHS = {"mnist_vae": 3}
"""How long each is trained here; one epoch where nothing is said."""

ROUNDS = 100


def measured(name: str, runs: Path) -> dict[str, Any]:
    """Trains (or takes up) one model, exports it in every precision, and reads what was measured."""
    run = runs / name
    command = ["train", "--model", name, "--epochs", EPOCHS.get(name, 1), "--out", run]
    genkit(*command, *(["--resume"] if run.exists() else []))
    environment = json.loads((run / "environment.json").read_text())
    result: dict[str, Any] = {
        "command": f"genkit train --model {name} --epochs {EPOCHS.get(name, 1)}",
        "device": environment["device"],
        "graphs": [],
        "without": {},
    }
    for precision in REDUCED:
        try:
            genkit("export", run, "--precision", precision, "--out", run / precision, stderr=subprocess.PIPE)
        except subprocess.CalledProcessError as error:
            if error.returncode != 1:  # then the answer is no, and says why
                raise
            result["without"][precision] = error.stderr.splitlines()[0].removeprefix("error: not exported, ")
            continue
        bundle = Bundle.open(run / precision)
        graphs = {graph.name: graph for graph in bundle.manifest.graphs}
        result["graphs"] += [figures(bundle, graphs[graph.of], graph) for graph in bundle.manifest.reduced]
        reasons = {each.name: each.reason for each in bundle.manifest.absent if each.name.endswith(f"_{precision}")}
        result["without"] |= reasons
    return result


def figures(bundle: Bundle, graph: BundledGraph, reduced: ReducedGraph) -> dict[str, Any]:
    """What the manifest says, and times."""
    runtime = load_plugins().registry.get("runtime", "onnxruntime").load()()
    functions = [runtime.load(bundle.file(file)) for file in (graph.file, reduced.file)]
    inputs = bundle.cases(graph)[-1].inputs
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function(inputs)
            taken.append(time.perf_counter() - start)
    said = reduced.model_dump(mode="json", exclude={"ranges", "file", "data"})
    return {
        **said,
        "milliseconds": round(1e3 * median(times[1]), 3),
        "fp32_milliseconds": round(1e3 * median(times[0]), 3),
    }


def table(results: dict[str, Any]) -> str:
    """A line for each output of each graph."""
    head = ("model", "graph", "size", "output", "rms error", "budget", "PSNR", "change of the test loss", "time")
    lines = [head, ("---",) * len(head)]
    for name, result in results.items():
        for graph in result["graphs"]:
            loss = graph["loss"]
            change = f"{loss['change']:+.2g} of {loss['fp32']:.4g}" if loss else "-"
            size = f"{graph['size'] / graph['fp32_size']:.3f}"
            pace = f"{graph['milliseconds'] / graph['fp32_milliseconds']:.2f}"
            for output, accuracy in graph["outputs"].items():
                found, allowed = accuracy["measured"], accuracy["budget"]
                if found["agreement"] is not None:
                    error, limit = f"{found['agreement']:.2%} agree", f"{allowed['agreement']:.1%}"
                else:
                    error, limit = f"{found['rms']:.2g}", f"{allowed['rms']:.2g}"
                psnr = f"{found['psnr']:.1f} dB" if found["psnr"] else ""
                lines.append((f"`{name}`", f"`{graph['name']}`", size, f"`{output}`", error, limit, psnr, change, pace))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def kept() -> dict[str, Any]:
    """The figures so far, by model."""
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def main() -> None:
    """Trains, exports, measures, prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reduced", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the models; default: an MLP and a conv one")
    parser.add_argument("--runs", type=Path, default=Path("runs/reduced"), help="where the runs are kept")
    parser.add_argument("--pages", action="store_true", help="write the page anew, and train nothing")
    options = parser.parse_args()
    for name in [] if options.pages else options.names or ["mnist_vae", "mnist_conv_vae"]:
        result = measured(name, options.runs)
        RESULTS.write_text(json.dumps({**kept(), name: result}, indent=2) + "\n")
    PAGE.write_text(written(PAGE.read_text(), table(kept())))
    print(table(kept()))


if __name__ == "__main__":
    main()
