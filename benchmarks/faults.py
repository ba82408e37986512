"""``python -m benchmarks.faults``: ten trials of every fault, for the parity gate and for other people's checks.

Each trial has its own weights, its own inputs and its own place of the fault. The figures go to
``benchmarks/results/faults.json``, and from there to ``docs/gate.md``. With ``--pages`` the page is written again from
the figures that are there. The comparison needs optimum: ``pip install 'genkit-torch[bench]'``.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from benchmarks.gate.bundle_faults import BUNDLE_FAULTS
from benchmarks.gate.checkers import CHECKERS, versions
from benchmarks.gate.faults import Fault
from benchmarks.gate.graph_faults import GRAPH_FAULTS
from benchmarks.gate.module_faults import MODULE_FAULTS
from benchmarks.gate.trials import Trial
from benchmarks.models import written

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
PAGE = ROOT / "docs" / "gate.md"

GENKIT = "genkit"


class Tally:
    """How often each fault was refused by whom, and how often genkit's gate named it."""

    def __init__(self) -> None:
        self.faults: dict[str, dict[str, Any]] = {}
        self.true_graphs = dict.fromkeys((GENKIT, *CHECKERS), 0)
        self.number_of_true_graphs = 0

    def add(self, kind: str, fault: Fault[Any], refused: Mapping[str, bool], named: bool) -> None:
        """One trial of one fault."""
        new = {"kind": kind, "what": fault.what, "where": fault.where, "trials": 0, "named": 0, "refused": {}}
        entry = self.faults.setdefault(fault.name, new)
        entry["trials"] += 1
        entry["named"] += named
        entry["refused"] = {who: entry["refused"].get(who, 0) + answer for who, answer in refused.items()}


def run(number: int, folder: Path, tally: Tally) -> None:
    """One trial of everything."""
    trial = Trial(number, folder)
    checkers, alarms = {}, {}
    for name, exported in trial.exported.items():
        checkers[name] = {who: make(exported.graph, number) for who, make in CHECKERS.items()}
        file = exported.bundle.path / exported.promised.file
        alarms[name] = {who: check(file) for who, check in checkers[name].items()}
        tally.number_of_true_graphs += 1
        for who, alarm in alarms[name].items():
            tally.true_graphs[who] += alarm
    for fault in GRAPH_FAULTS:
        report, file = trial.graph(fault)
        place = trial.place(fault)
        # Who refuses the true graph as well has not seen the fault.
        others = {who: check(file) and not alarms[place][who] for who, check in checkers[place].items()}
        tally.add("graph", fault, {GENKIT: not report.ok, **others}, fault.named_by(report))
    for fault in BUNDLE_FAULTS:
        report = trial.bundle(fault)
        tally.add("bundle", fault, {GENKIT: not report.ok}, fault.named_by(report))
    for fault in MODULE_FAULTS:
        report = trial.module(fault)
        tally.add("module", fault, {GENKIT: not report.ok}, fault.named_by(report))


def campaign(trials: int) -> Iterator[dict[str, Any]]:
    """The figures after each trial, and what they were made with."""
    tally, started = Tally(), time.process_time()
    for number in range(trials):
        with tempfile.TemporaryDirectory() as folder:
            run(number, Path(folder), tally)
        seconds = round(time.process_time() - started)
        missed = [name for name, entry in tally.faults.items() if entry["named"] < entry["trials"]]
        print(f"trial {number + 1} of {trials}, {seconds} s, not always named: {missed or 'none'}", flush=True)
        yield {
            "device": f"cpu, {torch.get_num_threads()} threads",
            "python": platform.python_version(),
            "versions": versions(),
            "trials": number + 1,
            "seconds": seconds,
            "true_graphs": {"number": tally.number_of_true_graphs, "refused": tally.true_graphs},
            "faults": tally.faults,
        }


# The page


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """In Markdown; the first row is the head."""
    head, *rest = ([cell.replace("|", r"\|").replace("``", "`") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rest))


def comparison(results: Mapping[str, Any]) -> str:
    """Faults in a graph: everybody side by side."""
    faults = {name: entry for name, entry in results["faults"].items() if entry["kind"] == "graph"}
    everybody = (GENKIT, *CHECKERS)
    total = sum(entry["trials"] for entry in faults.values())
    caught = {who: sum(entry["refused"][who] for entry in faults.values()) for who in everybody}
    always = {who: sum(entry["refused"][who] == entry["trials"] for entry in faults.values()) for who in everybody}
    true = results["true_graphs"]
    return table(
        [
            ("fault", "", "by its reason", *everybody),
            *(
                (name, entry["what"], str(entry["named"]), *(str(entry["refused"][who]) for who in everybody))
                for name, entry in faults.items()
            ),
            (
                f"**all {total} mutants**",
                "",
                share(sum(entry["named"] for entry in faults.values()), total),
                *(share(caught[who], total) for who in everybody),
            ),
            (f"**of {len(faults)} faults, always caught**", "", "", *(str(always[who]) for who in everybody)),
            (f"**{true['number']} true graphs, refused**", "", "", *(str(true["refused"][who]) for who in everybody)),
        ]
    )


def share(part: int, whole: int) -> str:
    """``64 %``; a hundred only where it is all of them."""
    return f"{100 * part / whole:.4g} %" if part in (0, whole) else f"{min(99.9, 100 * part / whole):.1f} %"


def others(results: Mapping[str, Any], kind: str) -> str:
    """Faults that only the gate can be asked about."""
    return table(
        [
            ("fault", "", "refused", "by its reason"),
            *(
                (name, entry["what"], str(entry["refused"][GENKIT]), str(entry["named"]))
                for name, entry in results["faults"].items()
                if entry["kind"] == kind
            ),
        ]
    )


def page(results: Mapping[str, Any]) -> str:
    """``docs/gate.md`` with the figures."""
    made_with = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    faults = results["faults"].values()
    trials, named = sum(entry["trials"] for entry in faults), sum(entry["named"] for entry in faults)
    refused = sum(entry["refused"][GENKIT] for entry in faults)
    content = "\n\n".join(
        [
            f"{len(faults)} faults, {results['trials']} trials each: genkit's gate refused {refused} of {trials}, "
            f"{named} of them for the fault's own reason, and none of {results['true_graphs']['number']} true graphs. "
            f"{results['device']}, {results['seconds']} s; Python {results['python']}, {made_with}.",
            "### In a graph",
            comparison(results),
            "### In a bundle",
            others(results, "bundle"),
            "### In a module, its inputs, or the machinery of the export",
            others(results, "module"),
        ]
    )
    return written(PAGE.read_text(), f"\n{content}\n")


def kept() -> dict[str, Any]:
    """The figures of the last campaign."""
    return dict(json.loads(RESULTS.read_text()))


def main() -> None:
    """Runs and writes, or writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--trials", type=int, default=10, help="of every fault")
    parser.add_argument("--pages", action="store_true", help="write the page anew, and try nothing")
    options = parser.parse_args()
    if not options.pages:
        onnxruntime.set_default_logger_severity(4)
        for results in campaign(options.trials):
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    PAGE.write_text(page(kept()))


if __name__ == "__main__":
    main()
