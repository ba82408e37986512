"""``python -m benchmarks.export``: what it costs to export `mnist_vae` with its proof, and to verify it.

Each command is a process of its own, in turn with what it is compared with: torch's own exporter without any proof, and
onnxruntime running the decoder once. Seconds are of processor time, children included, as the operating system counts
them; memory is the peak of the largest process. With ``--large`` a decoder of more than 2 GB is exported and verified
once as well, which takes minutes and 20 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from benchmarks.figures import measured
from genkit.training.device import choose_device, describe_device

RESULTS = Path(__file__).parent / "results" / "export.json"

TORCH_ALONE = """
import sys, torch
from torch import nn
torch.manual_seed(0)
encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Tanh())
for module, example in ((encoder, torch.zeros(3, 1, 28, 28)), (decoder, torch.zeros(3, 20))):
    torch.onnx.export(module, (example,), sys.argv[1], dynamic_shapes=({0: "batch"},), verbose=False)
"""
RUNTIME_ALONE = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {"z": numpy.zeros((64, 20), numpy.float32)})
"""
LARGE = """
import sys, torch
from pathlib import Path
from torch import nn
import genkit
from genkit_onnx.exporter import OnnxExporter

class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(20, 23_000), nn.Linear(23_000, 24_000)
    def forward(self, z):
        return (self.second(self.first(z).relu()).tanh(),)

torch.manual_seed(0)
z = genkit.Input((20,), torch.float32, lambda n, g: torch.randn(n, 20, generator=g))
graph = genkit.Graph("decoder", Decoder(), {"z": z}, ("x",), {"x": (-1.0, 1.0)})
OnnxExporter().export([graph], Path(sys.argv[1]), about={}, opset=18, runtimes=[])
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each command")
    parser.add_argument("--large", action="store_true", help="more than 2 GB of weights as well")
    parser.add_argument("--json", type=Path, metavar="FILE", default=RESULTS, help="where the figures go")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, bundle = folder / "run", folder / "bundle"
        subprocess.run(
            [sys.executable, "-m", "genkit", "train", "--model", "mnist_vae", "--epochs", "1", "--out", run],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        commands: dict[str, list[str | Path]] = {
            "genkit export": ["-m", "genkit", "export", run, "--out", bundle],
            "torch.onnx.export alone": ["-c", TORCH_ALONE, folder / "alone.onnx"],
            "genkit verify": ["-m", "genkit", "verify", bundle],
            "onnxruntime alone": ["-c", RUNTIME_ALONE, bundle / "decoder.onnx"],
        }
        rounds = [{name: measured(command) for name, command in commands.items()} for _ in range(options.rounds + 1)]
        figures = {name: [row[name] for row in rounds[1:]] for name in commands}
        if options.large:
            figures["genkit export, 2.2 GB"] = [measured(["-c", LARGE, folder / "large"])]
            figures["genkit verify, 2.2 GB"] = [measured(["-m", "genkit", "verify", folder / "large"])]

    result: dict[str, Any] = {
        "device": describe_device(choose_device("cpu")),
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        "commands": {
            name: {
                "processor_seconds": [round(row[0], 2) for row in rows],
                "seconds": [round(row[1], 2) for row in rows],
                "peak_megabytes": [round(row[2]) for row in rows],
            }
            for name, rows in figures.items()
        },
    }
    print(f"{result['device']}, torch {torch.__version__}, medians of {options.rounds} runs (lowest to highest)")
    for name, values in result["commands"].items():
        times, memory = values["processor_seconds"], values["peak_megabytes"]
        spread = f"({min(times):.2f} to {max(times):.2f})"
        print(f"{name:24} {statistics.median(times):7.2f} s {spread:20} {statistics.median(memory):7.0f} MB")
    options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
