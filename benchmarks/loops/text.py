"""The textbook's own loop."""

from __future__ import annotations

import torch

from benchmarks.loops import Ended, Epoch, Work
from benchmarks.textbook import TextbookLoop
from genkit import cache_directory


def run(work: Work, ended: Ended) -> None:
    """Through torchvision's dataset and its transforms, an image at a time."""
    loop = TextbookLoop(cache_directory() / "data", torch.device(work.device), images=work.images)
    while True:
        seconds, loss, _ = loop.epoch()
        ended(Epoch(seconds, loss))
