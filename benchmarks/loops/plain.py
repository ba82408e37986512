"""What someone who knows torch writes by hand: the images on the device, no wait for it, a fused optimiser."""

from __future__ import annotations

import time

import torch

from benchmarks.loops import BATCH, RATE, Ended, Epoch, Work
from benchmarks.textbook import VAE, loss_function


def run(work: Work, ended: Ended) -> None:
    """The textbook's network and loss. Images stay uint8 and are gathered a batch at a time."""
    device = torch.device(work.device)
    torch.manual_seed(0)
    images = work.read().flatten(1).to(device)
    net = VAE().to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, fused=True)
    while True:
        started = time.perf_counter()
        total = torch.zeros((), device=device)
        for rows in torch.randperm(len(images)).to(device).split(BATCH):
            x = images.index_select(0, rows).float().div_(127.5).sub_(1)
            recon, mu, logvar = net(x)
            loss = loss_function(recon, x, mu, logvar)
            optimizer.zero_grad()
            (loss / len(rows)).backward()
            optimizer.step()
            total += loss.detach()
        mean = total.item() / len(images)
        ended(Epoch(time.perf_counter() - started, mean))
