"""``python -m benchmarks.whole``: the textbook's whole training, and where the time of a step goes.

``mnist_vae`` as ``genkit train`` trains it, 100 epochs in batches of 128: the seconds that were spent on training, by
``metrics.jsonl``, what a step took of them, and the losses of every fifth part. What is compiled and recorded is so in
the first epoch, whose seconds are given apart. Then two epochs of another run, of which the second is profiled: on a
GPU what its kernels take, on a processor what the operations take in the thread that calls them. A profiler slows down
what it looks at, so its epoch is not among the others.

It takes ``--device cuda --precision tf32`` for what a GPU can do. ``benchmarks.train`` has the textbook's own loop.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import genkit
from benchmarks import figures
from benchmarks.figures import spread
from benchmarks.loops import BATCH, synchronize
from genkit.assemble import assemble, resolve
from genkit.random import seeded
from genkit.training.device import choose_device
from genkit.training.loop import Trainer

PARTS = 5
"""Into which the epochs are divided for the losses."""
SHOWN = 12
"""Kinds of work, of those that take longest."""


class Training:
    """Runs of ``mnist_vae``."""

    def __init__(self, device: torch.device, images: int, options: dict[str, Any]) -> None:
        self.device, self.registry = device, genkit.load_plugins().registry
        recipe = self.registry.get("model", "mnist_vae").load().with_settings({"dataset.limit": images})
        self.recipe = recipe.with_training(batch_size=BATCH, sample_every=0, **options)
        self.steps = -(-images // BATCH)

    def fit(self, epochs: int, profiler: profile | None = None) -> list[dict[str, Any]]:
        """Trains; gives the metrics. A profiler looks at the last epoch."""
        measured = {} if profiler is None else {"evaluate_every": 0}
        recipe = resolve(self.recipe.with_training(epochs=epochs, **measured), self.registry)
        with seeded(recipe.training.seed):
            task = replace(assemble(recipe, self.registry), pictures={})

        def notify(hook: str, **arguments: Any) -> None:
            if profiler is None or hook not in ("genkit_checkpoint_saved", "genkit_epoch_ended"):
                return
            if hook == "genkit_checkpoint_saved" and arguments["epoch"] == epochs - 1:
                profiler.start()
            elif hook == "genkit_epoch_ended" and arguments["metrics"]["epoch"] == epochs:
                synchronize(self.device)
                profiler.stop()

        with tempfile.TemporaryDirectory() as folder:
            run = genkit.Run.create(Path(folder, "run"), recipe, {})
            Trainer(task, recipe.training, self.device, notify).fit(run)
            return run.metrics()

    def profiled(self) -> dict[str, Any]:
        """Microseconds a step, in all and of the kinds of work that take longest."""
        torch._inductor.config.cpp.enable_kernel_profile = True
        cuda = self.device.type == "cuda"
        profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])
        rows = self.fit(2, profiler)
        found = []
        for event in profiler.key_averages():
            time = event.self_device_time_total if cuda else event.self_cpu_time_total
            # kernels are events of the device; so are the spans that the host names there, which hold some
            work = event.device_type is torch.autograd.DeviceType.CUDA and not event.is_user_annotation
            if time and (work or not cuda):
                found.append([event.key, round(event.count / self.steps, 2), round(time / self.steps, 2)])
        found.sort(key=lambda row: -row[2])
        whole = round(rows[-1]["seconds"] / self.steps * 1e6, 1)
        return {"step": whole, "all": round(sum(row[2] for row in found), 1), "longest": found[:SHOWN]}


def main() -> None:
    """Measures and prints."""
    parser = figures.arguments("whole", __doc__, rounds=1)
    parser.add_argument("--step", default="compiled_graph", help="the strategy, as for genkit train")
    parser.add_argument("--precision", default="fp32", help="fp32, tf32 or bf16")
    parser.add_argument("--steps-per-replay", type=int, default=1, metavar="N", help="of recorded steps")
    parser.add_argument("--epochs", type=int, default=100, help="in each round")
    parser.add_argument("--images", type=int, default=60_000, metavar="N", help="the first N alone")
    options = parser.parse_args()
    device = choose_device(options.device)
    chosen = {"step": options.step, "precision": options.precision, "steps_per_replay": options.steps_per_replay}
    training = Training(device, options.images, chosen)
    rounds = [training.fit(options.epochs) for _ in range(options.rounds)]
    epochs = sorted({max(1, options.epochs * part // PARTS) for part in range(1, PARTS + 1)})
    result = {
        **chosen,
        "images": options.images,
        "epochs": options.epochs,
        "steps_per_epoch": training.steps,
        "first": [rows[0]["seconds"] for rows in rounds],
        "others": [round(sum(row["seconds"] for row in rows[1:]), 4) for rows in rounds],
        "losses": {str(epoch): round(rounds[0][epoch - 1]["train"]["loss"], 2) for epoch in epochs},
        "profile": training.profiled(),
    }
    print(f"{figures.machine(device)}: {', '.join(f'{name} = {value}' for name, value in chosen.items())}")
    for line in lines(result):
        print(line)
    for name, calls, time in result["profile"]["longest"]:
        print(f"  {name[:60]:60}  {calls:6.2f} a step  {time:9.2f} µs a step")
    figures.keep("whole", result, device, options.json)


def lines(result: dict[str, Any]) -> list[str]:
    """What is said of a result, but for the table of its profile."""
    whole = [first + others for first, others in zip(result["first"], result["others"], strict=True)]
    steps = result["steps_per_epoch"] * (result["epochs"] - 1)
    step = [1e6 * seconds / max(1, steps) for seconds in result["others"]]
    losses = ", ".join(f"{loss:.2f} after epoch {epoch}" for epoch, loss in result["losses"].items())
    found = result["profile"]
    return [
        f"{result['epochs']} epochs in {spread(whole)} s of training. The first, with what is compiled or recorded, "
        f"took {spread(result['first'])} s; after it, a step took {spread(step, 1)} µs.",
        f"Training loss: {losses}.",
        f"With a profiler, a step takes {found['step']:,.1f} µs, of which it accounts for {found['all']:,.1f}:",
    ]


if __name__ == "__main__":
    main()
