"""The textbook's own loop, changed only where a current torch no longer runs it.

Its three-value Normalize is one value for one channel, ``Variable`` is gone, and ``loss.data[0]`` is ``loss.item()``,
read once an epoch. The reconstruction error is ``reduction="sum"``, which was ``size_average=False``.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST


class VAE(nn.Module):
    """784-400-(20, 20)-400-784."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 400)
        self.fc21 = nn.Linear(400, 20)
        self.fc22 = nn.Linear(400, 20)
        self.fc3 = nn.Linear(20, 400)
        self.fc4 = nn.Linear(400, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h1 = F.relu(self.fc1(x))
        mu, logvar = self.fc21(h1), self.fc22(h1)
        std = logvar.mul(0.5).exp_()
        z = torch.randn_like(std).mul(std).add_(mu)
        return torch.tanh(self.fc4(F.relu(self.fc3(z)))), mu, logvar


def loss_function(recon_x: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Summed squared error + KL, over the whole batch."""
    mse = F.mse_loss(recon_x, x, reduction="sum")
    kld_element = mu.pow(2).add_(logvar.exp()).mul_(-1).add_(1).add_(logvar)
    return mse + torch.sum(kld_element).mul_(-0.5)


class TextbookLoop:
    """The loop of the text over the first ``images`` of MNIST, in torchvision's layout under ``root``."""

    def __init__(self, root: Path, device: torch.device, seed: int = 0, images: int = 60_000) -> None:
        torch.manual_seed(seed)
        scale = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
        dataset = MNIST(str(root), transform=scale)
        some = dataset if images >= len(dataset) else Subset(dataset, range(images))
        self.loader = DataLoader(some, batch_size=128, shuffle=True)
        self.net = VAE().to(device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        self.device = device

    def epoch(self) -> tuple[float, float, float]:
        """One epoch: seconds, the loss averaged over it, and the loss of the last batch."""
        started = time.perf_counter()
        total = torch.zeros((), device=self.device)
        for images, _ in self.loader:
            im = images.view(images.shape[0], -1).to(self.device)
            self.optimizer.zero_grad()
            recon_im, mu, logvar = self.net(im)
            loss = loss_function(recon_im, im, mu, logvar) / im.shape[0]
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * im.shape[0]
        mean, last = (total / len(self.loader.dataset)).item(), loss.item()  # type: ignore[arg-type]  # MNIST has one
        return time.perf_counter() - started, mean, last
