"""What every plugin promises, asked of everything that is installed, by the kit that other people's plugins use.

What is registered tomorrow is covered without an edit.
"""

from __future__ import annotations

from genkit.testing import conformance

TestContract = conformance(
    None,
    skip=[
        "dataset-images",  # it needs a folder: tests/plugins/test_images.py
        "dataset-torchvision",  # these three need files: tests/plugins/test_datasets.py
        "dataset-huggingface",
        "dataset-webdataset",
        "tracker-mlflow",  # it needs a database: tests/plugins/test_trackers.py
    ],
)
