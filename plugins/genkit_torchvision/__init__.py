"""Every image dataset of torchvision, by its name: ``--set dataset=torchvision:FashionMNIST``."""

from __future__ import annotations

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes the dataset."""
    registry.dataset("torchvision", "genkit_torchvision.named:torchvision")
