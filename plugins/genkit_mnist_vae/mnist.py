"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28 x 28, with their labels."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

import genkit
from genkit_mnist_vae.sources import DIGESTS, SOURCES, UNDECODABLE, FetchError, Files, md5


def mnist(
    *,
    data_dir: Path | None = None,
    limit: PositiveInt | None = None,
    binarization: Literal["none", "static", "dynamic"] = "none",
) -> genkit.Data:
    """uint8 images of shape (n, 1, 28, 28) and int64 labels of shape (n,), in the original order.

    LeCun, Bottou, Bengio & Haffner (1998), "Gradient-based learning applied to document recognition". The files are
    looked for in torchvision's layout, ``MNIST/raw``, and otherwise fetched once and kept there.

    Args:
        data_dir: a folder to look in first, and to keep in what is fetched. By default the one in genkit's cache.
        limit: keeps the first so many training images and the first so many test images, for a quick try.
        binarization: of the pixels, to 0 and 255. ``static``: white from 50 % grey on, always the same. ``dynamic``:
            white with the probability of the grey value, drawn anew whenever an image is read. Likelihoods of
            differently binarized images cannot be compared, and neither kind is the fixed sample that Larochelle &
            Murray (2011) published.

    Raises:
        genkit.DataUnavailable: no source gave the files, or one that is there is damaged, or the folder is read-only.
        genkit.InvalidOption: ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise genkit.InvalidOption(f"limit = {limit}: keep at least 1 image, or leave it out to keep them all")
    files = _files(data_dir)
    train: Dataset[Any]
    test: Dataset[Any]
    train, test = (_dataset(files, prefix, limit) for prefix in ("train", "t10k"))
    if binarization == "none":
        return genkit.Data(train, test, event_shape=(1, 28, 28), classes=10)
    transform = {"static": threshold, "dynamic": binarize}[binarization]
    train, test = (genkit.Transformed(dataset, transform) for dataset in (train, test))
    return genkit.Data(train, test, event_shape=(1, 28, 28), classes=10)


def threshold(x: Tensor) -> Tensor:
    """uint8 -> 255 from 128 on, 0 below."""
    return (x > 127).to(torch.uint8) * 255


def binarize(x: Tensor) -> Tensor:
    """uint8 -> 255 with probability x / 255, otherwise 0."""
    return (torch.randint_like(x, 255) < x).to(torch.uint8) * 255


def _dataset(files: Files, prefix: str, limit: int | None) -> TensorDataset:
    # a bytearray, because torch warns of memory that it may not write to
    images = torch.frombuffer(bytearray(files[f"{prefix}-images-idx3-ubyte"]), dtype=torch.uint8, offset=16)
    labels = torch.frombuffer(bytearray(files[f"{prefix}-labels-idx1-ubyte"]), dtype=torch.uint8, offset=8)
    return TensorDataset(images.view(-1, 1, 28, 28)[:limit], labels[:limit].long())


def _files(data_dir: Path | None) -> Files:
    """The four files, from the first place or source that has them all; what is fetched is kept in the first place."""
    roots = [data_dir.expanduser()] if data_dir else []
    roots.append(genkit.cache_directory() / "data")
    folders = [root / "MNIST" / "raw" for root in dict.fromkeys(roots)]
    tried = []
    for folder in folders:
        found = {name: _read(path, name) for name in DIGESTS if (path := _find(folder, name))}
        if len(found) == len(DIGESTS):
            return found
        tried.append(f"{folder}: there is no {', '.join(name for name in DIGESTS if name not in found)}")
    for source, fetch in SOURCES.items():
        try:
            files = fetch()
        except FetchError as error:
            tried.append(f"{source}: {error}")
        else:
            _keep(files, folders[0])
            return files
    raise genkit.DataUnavailable(
        "\n  ".join(["MNIST was not found, and could not be fetched:", *tried])
        + f"\nPut the files {', '.join(DIGESTS)} into {folders[0]} by hand, as they are or compressed with the ending "
        ".gz, or name a folder whose MNIST/raw holds them with --data-dir."
    )


def _find(folder: Path, name: str) -> Path | None:
    """Where ``folder`` has ``name``, as it is or compressed; a dangling link counts, so that it is never replaced."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if os.path.lexists(path)), None)


def _read(path: Path, name: str) -> bytes:
    """The decoded content of ``path``, proven by its digest."""
    remedy = "Delete it, so that it is fetched again, or replace it."
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise genkit.DataUnavailable(f"{path} cannot be read: {error.strerror}. {remedy}") from error
    try:
        content = gzip.decompress(stored) if path.suffix == ".gz" else stored
    except UNDECODABLE as error:
        raise genkit.DataUnavailable(
            f"{path} is damaged: it has MD5 {md5(stored)} and does not decompress ({error}); decompressed, it must "
            f"have MD5 {DIGESTS[name]}. {remedy}"
        ) from error
    if md5(content) != DIGESTS[name]:
        decompressed = "decompressed, " if path.suffix == ".gz" else ""
        raise genkit.DataUnavailable(
            f"{path} is damaged or another dataset's: {decompressed}it has MD5 {md5(content)} and must have MD5 "
            f"{DIGESTS[name]}. {remedy}"
        )
    return content


def _keep(files: Files, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            if not _find(folder, name):
                genkit.write_atomically(folder / name, content)
    except OSError as error:
        raise genkit.DataUnavailable(
            f"MNIST was fetched but cannot be kept in {folder}: {error.strerror}. Make that folder writable, or choose "
            "another one with --data-dir or the environment variable GENKIT_HOME."
        ) from error
