"""pythae's own trainer, with its progress bar and its console left out."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.loops import BATCH, RATE, Ended, Epoch, Work


class Encoder(BaseEncoder):
    """784-400-(20, 20)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.mean, self.log_var = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)

    def forward(self, x: Tensor) -> ModelOutput:
        hidden = F.relu(self.hidden(x.flatten(1)))
        return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_var(hidden))


class Decoder(BaseDecoder):
    """20-400-784."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.tanh(self.out(F.relu(self.hidden(z)))).view(-1, 1, 28, 28))


class TextbookVAE(VAE):
    """Its VAE halves the squared error; the textbook does not."""

    def loss_function(self, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        error = F.mse_loss(recon_x.flatten(1), x.flatten(1), reduction="none").sum(dim=-1)
        kl = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp(), dim=-1)
        return (error + kl).mean(), error.mean(), kl.mean()


class Trainer(BaseTrainer):
    """Its trainer, timed."""

    ended: Ended

    def _setup_callbacks(self) -> None:
        self.callback_handler = CallbackHandler([TrainingCallback()], self.model)

    def train_step(self, epoch: int) -> Any:
        started = time.perf_counter()
        loss = super().train_step(epoch)  # which pythae means by a step: an epoch
        self.ended(Epoch(time.perf_counter() - started, loss))
        return loss


def run(work: Work, ended: Ended) -> None:
    """On the images as floats in memory, which it converts once."""
    logging.getLogger("pythae").setLevel(logging.ERROR)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("pythae"):
            logging.getLogger(name).setLevel(logging.ERROR)
    torch.manual_seed(0)
    images = work.read()
    dataset = BaseDataset(images.float().div_(127.5).sub_(1), torch.zeros(len(images)))
    model = TextbookVAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=20), Encoder(), Decoder())
    config = BaseTrainerConfig(
        output_dir=work.folder,
        num_epochs=2**31,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        no_cuda=torch.device(work.device).type == "cpu",
    )
    trainer = Trainer(model, dataset, training_config=config)
    trainer.ended = ended
    trainer.train()
