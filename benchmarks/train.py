"""``python -m benchmarks.train``: an epoch of the textbook's loop and an epoch of genkit's, in turn, on the same work.

Both train the 784-400-(20, 20)-400-784 VAE with Adam and batches of 128 on the 60,000 images of MNIST. Each runs a
warm-up epoch first, which is not counted. genkit is measured twice: the training alone, as in ``metrics.jsonl``, and
everything between two epochs besides (the test set, the metrics and the checkpoint on the disk). The floor is the time
of the bare matrix products.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

import genkit
from benchmarks.textbook import TextbookLoop
from genkit.assemble import assemble, resolve
from genkit.random import seed_all
from genkit.training.device import choose_device, describe_device
from genkit.training.loop import Trainer


class GenkitLoop:
    """``mnist_vae`` through the trainer, resumed epoch by epoch in one run directory."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.registry = genkit.load_plugins().registry
        self.recipe = resolve(self.registry.get("model", "mnist_vae").load(), self.registry)
        self.device = device
        seed_all(0)
        self.task = assemble(self.recipe, self.registry)
        self.run = genkit.Run.create(folder, self.recipe, {})
        self.epochs = 0

    def epoch(self) -> tuple[float, float, float]:
        """One more epoch: seconds of training, seconds in all, and the mean loss."""
        self.epochs += 1
        times: list[float] = []

        def notify(hook: str, **_: object) -> None:
            if hook in ("genkit_run_started", "genkit_checkpoint_saved"):
                times.append(time.perf_counter())

        options = self.recipe.with_training(epochs=self.epochs, sample_every=0).training
        task = genkit.Task(self.task.module, self.task.turns, self.task.graphs, self.task.data, self.task.value_range)
        Trainer(task, options, self.device, notify).fit(self.run)
        row = self.run.metrics()[-1]
        return row["seconds"], times[-1] - times[-2], row["train"]["loss"]


class Floor:
    """The matrix products of an epoch's steps at their real shapes, and nothing else: no loop can take less."""

    steps = 469
    layers = ((784, 400), (400, 20), (400, 20), (20, 400), (400, 784))

    def __init__(self, device: torch.device) -> None:
        self.device = device
        pairs = []
        for i, (n, m) in enumerate(self.layers):
            x, w, g = (torch.randn(shape, device=device) for shape in ((128, n), (m, n), (128, m)))
            pairs += [(x, w.t()), (g.t(), x)]  # forward, gradient of the weight
            pairs += [(g, w)] if i else []  # gradient of the input, which the first layer does not need
        self.pairs = pairs

    def epoch(self) -> float:
        """Seconds."""
        started = time.perf_counter()
        for _ in range(self.steps):
            for a, b in self.pairs:
                torch.mm(a, b)
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - started


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--rounds", type=int, default=3, help="counted epochs of each loop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    device = choose_device(options.device)

    with tempfile.TemporaryDirectory() as folder:
        ours = GenkitLoop(Path(folder, "run"), device)  # it fetches the images, if need be
        text = TextbookLoop(genkit.cache_directory() / "data", device)
        floor = Floor(device)
        rows = [(text.epoch(), ours.epoch(), floor.epoch()) for _ in range(options.rounds + 1)][1:]

    figures = {
        "device": describe_device(device),
        "torch": torch.__version__,
        "seconds_an_epoch": {
            "textbook loop": [round(t[0], 3) for t, _, _ in rows],
            "genkit, training": [round(g[0], 3) for _, g, _ in rows],
            "genkit, all": [round(g[1], 3) for _, g, _ in rows],
            "matrix products": [round(f, 3) for _, _, f in rows],
        },
    }
    seconds = figures["seconds_an_epoch"]
    baseline = statistics.median(seconds["textbook loop"])
    print(f"{figures['device']}, torch {figures['torch']}, seconds an epoch, {options.rounds} rounds in turn")
    for name, values in seconds.items():
        middle = statistics.median(values)
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:18} {middle:7.2f} ({spread})  {baseline / middle:5.2f} times the textbook loop's speed")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
