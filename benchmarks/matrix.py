"""``python -m benchmarks.matrix [MODEL ...]``: every model in every runtime that is installed.

Each goes through the commands that a user types, ``genkit train --epochs 1`` and ``genkit export``, and is then
compared as ``genkit verify --runtime all`` does. What is found is kept in ``benchmarks/results/matrix.json``, and from
there on ``docs/matrix.md``, in the tables of the command. With ``--pages`` only the page is written again. The exit
status is 1 where a runtime is wrong about a graph.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import genkit
from genkit.cli import plain_table
from genkit.matrix import COLUMNS, remarks_of, rows_of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "matrix.json"
PAGE = ROOT / "docs" / "matrix.md"

HEAD = """# Every model in every runtime

Written by `python -m benchmarks.matrix`: each model trained for one epoch, exported, and held against every runtime
that was installed, as `genkit verify BUNDLE --runtime all` does. [Runtimes](runtimes.md) says what the columns and
verdicts mean.
"""


def measured(model: str) -> genkit.Parity:
    """Trains and exports the model, and compares the runtimes."""
    command = [sys.executable, "-m", "genkit"]
    with tempfile.TemporaryDirectory() as folder:
        run, bundle = f"{folder}/run", f"{folder}/{model}"
        subprocess.run([*command, "train", "--model", model, "--epochs", "1", "--out", run], check=True)
        subprocess.run([*command, "export", run, "--out", bundle], check=True)
        return genkit.compare_runtimes(bundle)


def content_of(parity: genkit.Parity) -> dict[str, Any]:
    """What is kept of it, for JSON."""
    missing = [asdict(info) for info in parity.missing]
    return {"failures": list(parity.failures), "cells": list(map(asdict, parity.cells)), "missing": missing}


def parity_of(content: dict[str, Any]) -> genkit.Parity:
    """What was kept, so that it is shown by the code that shows a comparison to a user."""
    cells = []
    for cell in content["cells"]:
        seconds = {int(rows): each for rows, each in cell["seconds"].items()}
        by_default = cell["by_default"] and genkit.ByDefault(**cell["by_default"])
        cells.append(genkit.Cell(**{**cell, "seconds": seconds, "by_default": by_default}))
    missing = (genkit.RuntimeInfo(**info) for info in content["missing"])
    return genkit.Parity(genkit.Report(()), tuple(cells), tuple(missing))


def page(results: dict[str, Any]) -> str:
    """The tables of all models that were measured."""
    sections = [HEAD]
    for model, content in sorted(results.items()):
        parity = parity_of(content)
        lines = [plain_table(COLUMNS, rows_of(parity)), *remarks_of(parity)]
        sections.append(f"## `{model}`\n\n```text\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(sections)


def main(arguments: Iterable[str] | None = None) -> int:
    """Measures, and writes the figures after each model, the page at the end."""
    registry = genkit.load_plugins().registry
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="all that are registered, where none is named")
    parser.add_argument("--pages", action="store_true", help="measure nothing")
    options = parser.parse_args(None if arguments is None else list(arguments))
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    wrong = 0
    for model in [] if options.pages else options.models or registry.names("model"):
        results[model] = content_of(measured(model))
        wrong += len(results[model]["failures"])
        print("\n".join(results[model]["failures"]) or f"{model}: right wherever it can be held", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(results))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
