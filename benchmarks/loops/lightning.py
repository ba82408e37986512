"""pytorch-lightning, with logging, checkpoints and progress bars off."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.loops import BATCH, RATE, Ended, Epoch, Work, synchronize
from benchmarks.textbook import VAE, loss_function


class Module(pl.LightningModule):
    """The textbook's network, loss and optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.net = VAE()
        self.total = torch.zeros(())

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x = batch[0].flatten(1)
        recon, mu, logvar = self.net(x)
        loss = loss_function(recon, x, mu, logvar)
        self.total = self.total.to(loss.device) + loss.detach()
        return loss / len(x)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=RATE)


class Clock(pl.Callback):
    """An epoch from its start to its end."""

    def __init__(self, images: int, ended: Ended) -> None:
        self.images, self.ended, self.started = images, ended, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        synchronize(module.device)
        seconds = time.perf_counter() - self.started
        mean = module.total.item() / self.images
        module.total = torch.zeros(())
        self.ended(Epoch(seconds, mean))


def run(work: Work, ended: Ended) -> None:
    """On the images as floats in memory."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(0)
    images = work.read().float().div_(127.5).sub_(1)
    trainer = pl.Trainer(
        max_epochs=-1,
        accelerator="gpu" if work.device.startswith("cuda") else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Clock(len(images), ended)],
    )
    trainer.fit(Module(), DataLoader(TensorDataset(images), batch_size=BATCH, shuffle=True))
