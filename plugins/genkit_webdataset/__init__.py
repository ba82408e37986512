"""WebDataset's shards of images: ``--set "dataset=webdataset:shards/{0000..0003}.tar"``."""

from __future__ import annotations

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes the dataset."""
    registry.dataset("webdataset", "genkit_webdataset.shards:webdataset")
