"""Hugging Face's datasets of images, from the hub or from files: ``--set dataset=huggingface:ylecun/mnist``."""

from __future__ import annotations

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes the dataset."""
    registry.dataset("huggingface", "genkit_huggingface.tables:huggingface")
