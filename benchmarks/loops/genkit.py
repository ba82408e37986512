"""``mnist_vae`` through genkit's trainer, in a run directory, as ``genkit train`` does it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

import genkit
from benchmarks.loops import BATCH, RATE, Ended, Epoch, Work
from genkit.assemble import assemble, resolve
from genkit.random import seeded
from genkit.training.loop import Trainer


def run(work: Work, ended: Ended) -> None:
    """The work's options are of the training, e.g. ``precision``.

    An epoch's seconds are those of ``metrics.jsonl``: of training alone. With the part "all" the test set, the metrics
    and the checkpoint on the disk are counted as well.
    """
    registry = genkit.load_plugins().registry
    recipe = registry.get("model", "mnist_vae").load().with_settings({"dataset.limit": work.images})
    training = {"epochs": 2**31, "batch_size": BATCH, "learning_rate": RATE, "sample_every": 0, **work.options}
    recipe = resolve(recipe.with_training(**training), registry)
    row: dict[str, Any] = {}
    started = 0.0

    def notify(hook: str, **arguments: Any) -> None:
        nonlocal started
        if hook == "genkit_epoch_ended":
            row.update(arguments["metrics"])
        elif hook == "genkit_run_started":
            started = time.perf_counter()
        elif hook == "genkit_checkpoint_saved" and row:
            everything = time.perf_counter() - started
            ended(Epoch(row["seconds"], row["train"]["loss"], {"all": everything}))
            started = time.perf_counter()

    with seeded(recipe.training.seed):
        task = assemble(recipe, registry)
    trainer = Trainer(task, recipe.training, torch.device(work.device), notify)
    trainer.fit(genkit.Run.create(Path(work.folder), recipe, {}))
