"""``python -m benchmarks.models [NAME ...]``: trains the in-box models, measures them, and keeps figures and pictures.

Each goes through the commands that a user types: ``genkit train``, ``evaluate``, ``sample`` and ``reconstruct``. The
figures are added to ``benchmarks/results/models.json``, and with the pictures to the pages in ``docs/models``. With
``--pages`` the pages are written again from the figures that are there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "models.json"
PAGES = ROOT / "docs" / "models"
PICTURES = ROOT / "docs" / "images" / "models"

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
"""What stands between them on a page is written by this program."""

OPTIONS = {
    "mnist_vae": "--epochs 20",
    "mnist_ae": "--epochs 20",
    "mnist_binary_vae": "--epochs 25",
    "mnist_conv_vae": "--epochs 5",
    "mnist_beta_tc": "--epochs 20",
    "mnist_iwae": "--epochs 20 --batch-size 20 --lr 1e-3",
    "mnist_vamp": "--epochs 6",
    "mnist_flow": "--epochs 20",
    "mnist_vqvae": "--epochs 5",
    "mnist_cvae": "--epochs 25",
    "mnist_gan": "--epochs 10",
    "mnist_aae": "--epochs 20",
    "mnist_wae": "--epochs 20",
    "mnist_hvae": "--epochs 25",
    "shapes_vae": "--epochs 12",
    "two_moons_flow": "--epochs 30",
}
"""How each is trained here. It is enough to see digits; the recipes' own defaults go on for longer."""


def genkit(*arguments: object, **options: Any) -> str:
    """The output of one command."""
    command = [sys.executable, "-m", "genkit", *map(str, arguments)]
    return str(subprocess.check_output(command, text=True, **options))


def measured(name: str, runs: Path, samples: int) -> dict[str, Any]:
    """Trains (or takes up) one model and measures it; the pictures are in place afterwards."""
    run = runs / name
    command = f"train --model {name} {OPTIONS[name]}"
    genkit(*command.split(), "--out", run, *(["--resume"] if run.exists() else []))
    result: dict[str, Any] = json.loads(genkit("evaluate", run, "--samples", samples, "--json"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    environment = json.loads((run / "environment.json").read_text())
    PICTURES.mkdir(parents=True, exist_ok=True)
    genkit("sample", run, "--out", PICTURES / f"{name}_samples.png")
    if result["reconstruction_error"]["value"] is not None:
        genkit("reconstruct", run, "-n", 16, "--out", PICTURES / f"{name}_reconstructions.png")
    return {
        "command": f"genkit {command}",
        "device": environment["device"],
        "torch": environment["versions"]["torch"],
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        **result,
    }


def kept() -> dict[str, Any]:
    """The figures so far, by model."""
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def cells(result: dict[str, Any]) -> dict[str, str]:
    """What was measured, for a reader, with the reasons where there is nothing."""
    data = result["dataset"]
    binarization = data.get("binarization", "none")
    likelihood, error, units = (result[key] for key in ("log_likelihood", "reconstruction_error", "active_units"))
    return {
        "epochs": str(result["epoch"]),
        "data": data["use"] + {"none": ""}.get(binarization, f", binarization {binarization}"),
        "log p(x), nats": f"{likelihood['value']:.2f} (K = {likelihood['samples']})"
        if likelihood["value"] is not None
        else likelihood["reason"],
        "reconstruction error": f"{error['value']:.2f}" if error["value"] is not None else error["reason"],
        "active units": f"{units['value']} of {units['of']}" if units["value"] is not None else units["reason"],
    }


def table(results: dict[str, Any]) -> str:
    """All models, a line each."""
    rows = [(f"[{name}]({name}.md)", *cells(result).values()) for name, result in sorted(results.items())]
    if not results:
        return ""
    head = ("model", *cells(next(iter(results.values()))))
    lines = [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join(lines)


def block(name: str, result: dict[str, Any]) -> str:
    """The pictures and figures of one model's page."""
    pictures = [kind for kind in ("samples", "reconstructions") if (PICTURES / f"{name}_{kind}.png").exists()]
    rows = {
        "trained by": f"`{result['command']}`",
        "on": f"{result['device']}, torch {result['torch']}: {result['seconds']:.0f} s",
        **{f"test {term}": f"{value:.4f}" for term, value in result["terms"].items()},
        **{key: value for key, value in cells(result).items() if key != "epochs"},
    }
    return "\n\n".join(
        [
            *(f"{kind.capitalize()}:\n\n![{kind}](../images/models/{name}_{kind}.png)" for kind in pictures),
            "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())]),
        ]
    )


def written(page: str, content: str) -> str:
    """The page with ``content`` as its measured part."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{content}\n{END}{rest.partition(END)[2]}"


def pages(results: dict[str, Any]) -> dict[Path, str]:
    """Every page with figures on it, as it should be."""
    wanted = {PAGES / f"{name}.md": block(name, result) for name, result in results.items()}
    wanted[PAGES / "README.md"] = table(results)
    return {path: written(path.read_text(), content) for path, content in wanted.items()}


def write_pages() -> None:
    """Puts the figures that are kept on their pages."""
    for path, content in pages(kept()).items():
        path.write_text(content)


def main() -> None:
    """Trains and measures, or prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the models; default: all of them")
    parser.add_argument("--runs", type=Path, default=Path("runs/models"), help="where the runs are kept")
    parser.add_argument("--samples", type=int, default=64, metavar="K", help="importance samples of the likelihood")
    parser.add_argument("--pages", action="store_true", help="write the pages anew, and train nothing")
    options = parser.parse_args()
    for name in [] if options.pages else options.names or OPTIONS:
        result = measured(name, options.runs, options.samples)
        RESULTS.write_text(json.dumps({**kept(), name: result}, indent=2) + "\n")
        write_pages()
    write_pages()


if __name__ == "__main__":
    main()
