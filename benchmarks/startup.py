"""``python -m benchmarks.startup``: how long genkit takes to begin.

Seconds of processor time of a whole command, as the operating system counts it; and, of ``genkit train``, the seconds
on the clock from the moment when torch and torch._dynamo are imported to the end of the first step, with MNIST in the
cache. (The first optimiser of a process imports torch._dynamo, whoever makes it.) Each is a process of its own, after
one that is not counted and that leaves the compiled files of Python behind, as an installer does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import figures
from benchmarks.figures import measured, spread
from genkit.training.device import choose_device

COMMANDS = {
    "python alone": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import torch, torch._dynamo": ["-c", "import torch, torch._dynamo"],
    "genkit --help": ["-m", "genkit", "--help"],
    "genkit train --help": ["-m", "genkit", "train", "--help"],
    "genkit models": ["-m", "genkit", "models"],
    "genkit show mnist_vae": ["-m", "genkit", "show", "mnist_vae"],
}
FIRST_STEP = """
import os, sys, time
import torch, torch._dynamo
started = time.perf_counter()
import genkit
from genkit import cli, plugins

class Watch:
    @genkit.hookimpl
    def genkit_step_ended(self):
        sys.stderr.write(f"{time.perf_counter() - started}")
        sys.stderr.flush()
        os._exit(0)

def watched(disabled=(), load=plugins.load_plugins):
    loaded = load(disabled)
    loaded.observe("watch", Watch())
    return loaded

plugins.load_plugins = watched
sys.exit(cli.main(sys.argv[1:]) or 1)  # no step was taken
"""


def first_step(folder: Path, device: str, environment: dict[str, str]) -> float:
    """Seconds from the imports to the end of the first step."""
    words = ["train", "--model", "mnist_vae", "--epochs", "1", "--device", device, "--out", str(folder / "run")]
    command = [sys.executable, "-c", FIRST_STEP, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return float(done.stderr)


def main() -> None:
    """Measures and prints."""
    parser = figures.arguments("startup", __doc__, rounds=7)
    options = parser.parse_args()
    device = choose_device(options.device)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    processor: dict[str, list[float]] = {name: [] for name in COMMANDS}
    steps: list[float] = []
    for i in range(1 + options.rounds):
        for name, command in COMMANDS.items():
            seconds, _, _ = measured(command, env=environment)
            processor[name] += [round(seconds, 3)] if i else []
        with tempfile.TemporaryDirectory() as folder:
            seconds = first_step(Path(folder), device.type, environment)
            steps += [round(seconds, 3)] if i else []
    print(f"{figures.machine(device)}: medians of {options.rounds} runs (lowest to highest)")
    for name, values in processor.items():
        print(f"{name:30} {spread(values)} s of processor time")
    print(f"{'genkit train, first step':30} {spread(steps)} s after torch and torch._dynamo were imported")
    figures.keep("startup", {"processor_seconds": processor, "first_step_seconds": steps}, device, options.json)


if __name__ == "__main__":
    main()
