"""The user's own images: a folder of files, each decoded once at the start, so that none fails in epoch 7."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import torch
from annotated_types import Ge, Gt, Lt
from pydantic import AfterValidator
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

import genkit

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Of the files that are taken for images."""


def _absolute(path: Path) -> Path:
    """As a recipe keeps it, so that a run finds its images from every working directory."""
    return path.expanduser().resolve()


def images(
    *,
    path: Annotated[Path, AfterValidator(_absolute)],
    size: genkit.ImageSide | tuple[genkit.ImageSide, genkit.ImageSide] = 64,
    channels: Literal[1, 3] = 3,
    labels: Literal["auto", "folders", "none"] = "auto",
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1,
    recursive: bool = True,
    unreadable: Literal["error", "skip"] = "error",
    memory_limit_mb: Annotated[int, Ge(0)] = 2000,
) -> genkit.Data:
    """uint8 images of shape (channels, height, width) in the order of their names, and int64 labels if there are any.

    A file is an image if its ending is that of PNG, JPEG, WebP, BMP, GIF (its first frame is taken), TIFF or PPM; what
    begins with a dot is passed over. Images are turned upright by their EXIF orientation, fitted to the size by their
    shorter side with Lanczos' filter, and cut to their centre. Transparency is laid on white.

    An image is in the test set if the SHA-256 of its name inside the folder, as a fraction of the largest, is below
    ``test_fraction``, so adding images moves none of those that are there. Only where a set would be empty, it takes
    the one image that is nearest to it.

    Args:
        path: the folder.
        size: a side, or height and width, of what the model sees.
        channels: 3 for red, green and blue; 1 for grey.
        labels: ``folders``: the sub-folder that an image lies in, however deep; they are numbered in the order of
            their names. ``auto``: the same where all images lie in sub-folders, and there are two of these or more.
        test_fraction: how much of the images to test on, about.
        recursive: whether to look into sub-folders.
        unreadable: what to do about a file that is damaged or no image: refuse the folder (``error``), or leave the
            file out with a warning (``skip``).
        memory_limit_mb: images that take so many megabytes or less once they are decoded stay in memory, on the
            device (and twice in memory for a moment); more are decoded anew whenever they are used.

    Raises:
        genkit.DataUnavailable: there is no such folder, it holds files that cannot be read, or fewer than two images.
    """
    names = _find(path, recursive)
    height, width = size if isinstance(size, tuple) else (size, size)
    event_shape = (channels, height, width)
    resident = len(names) * math.prod(event_shape) <= memory_limit_mb * 10**6
    pixels = torch.empty((len(names) if resident else 0, *event_shape), dtype=torch.uint8)

    def read(row: int) -> None:
        image = decode(path / names[row], event_shape)
        if resident:
            pixels[row] = image

    failures = genkit.failures_of(read, len(names), f"{len(names):,} images in {path}")
    if failures:
        _report(path, {names[row]: why for row, why in failures.items()}, len(names), unreadable)
    rows = {name: row for row, name in enumerate(names) if row not in failures}

    parts = _split(path, list(rows), test_fraction)
    classes = _classes(path, names, labels)
    sets: list[Dataset[Any]] = []
    for part in parts:
        files = ImageFiles(path, part, classes, event_shape)
        chosen = [rows[name] for name in part]
        sets.append(TensorDataset(pixels[chosen], *files.labels) if resident else files)
    return genkit.Data(sets[0], sets[1], event_shape, len(classes))


def decode(path: Path, event_shape: tuple[int, int, int]) -> Tensor:
    """The image in a file."""
    with genkit.open_image(path) as image:
        return genkit.image_tensor(image, event_shape)


class ImageFiles(Dataset[Any]):
    """Images that are decoded whenever they are used, as ``(x,)``, or as ``(x, label)`` where there are classes."""

    def __init__(
        self, folder: Path, names: Sequence[str], classes: Sequence[str], event_shape: tuple[int, int, int]
    ) -> None:
        self.folder = folder
        self.names = names
        self.event_shape = event_shape
        numbers = {name: number for number, name in enumerate(classes)}
        self.labels = [torch.tensor([numbers[_top(name)] for name in names])] if classes else []

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        path = self.folder / self.names[index]
        try:
            with warnings.catch_warnings(action="ignore"):  # whatever there was to say was said at the start
                x = decode(path, self.event_shape)
        except Exception as error:
            raise genkit.DataUnavailable(
                f"{path} could be read at the start and cannot be read now ({error}); put it back, and go on with "
                "--resume"
            ) from error
        return (x, *(labels[index] for labels in self.labels))


def _find(folder: Path, recursive: bool) -> list[str]:
    """The sorted names of the images in a folder, relative to it, with slashes."""
    if not folder.exists():
        raise genkit.DataUnavailable(
            f"dataset.path = {folder}: there is no such folder; give the one that holds the images"
        )
    if not folder.is_dir():
        raise genkit.DataUnavailable(
            f"dataset.path = {folder}: this is a file; give the folder that holds the images (unpack an archive first)"
        )

    def refuse(error: OSError) -> NoReturn:
        raise genkit.DataUnavailable(f"{error.filename} cannot be read: {error.strerror}; make it readable, or move it")

    names = []
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(root)
        folders[:] = [name for name in folders if recursive and name[0] != "." and not _leads_back(here / name)]
        found = (here / name for name in files if name[0] != "." and name.lower().endswith(ENDINGS))
        names += [path.relative_to(folder).as_posix() for path in found]
    return sorted(names)


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _top(name: str) -> str:
    """The sub-folder that a name begins with; empty where the file lies in the folder itself."""
    return name.rpartition("/")[0].partition("/")[0]


def _classes(folder: Path, names: Sequence[str], labels: Literal["auto", "folders", "none"]) -> list[str]:
    """The sub-folders that are labels, in the order of their numbers."""
    tops = sorted({_top(name) for name in names})
    if labels == "none" or (labels == "auto" and (tops[0] == "" or len(tops) < 2)):
        return []
    if tops[0] == "":
        stray = [name for name in names if not _top(name)]
        raise genkit.DataUnavailable(
            f"dataset.labels = folders: {_listed(stray)} in {folder} lie in no sub-folder; move them into one each, or "
            "--set dataset.labels=none"
        )
    return tops


def _split(folder: Path, names: Sequence[str], test_fraction: float) -> tuple[list[str], list[str]]:
    """The names of the training and of the test set."""
    if len(names) < 2:
        raise genkit.DataUnavailable(
            f"dataset.path = {folder} holds {'1 image' if names else 'no image'} that can be read; two or more are "
            f"needed, in files that end in {', '.join(ENDINGS)}"
        )
    shares = {name: int.from_bytes(sha256(os.fsencode(name)).digest()) / 256**32 for name in names}
    lowest, highest = min(names, key=shares.__getitem__), max(names, key=shares.__getitem__)
    test = {name for name in names if shares[name] < test_fraction and name != highest} | {lowest}
    return [name for name in names if name not in test], [name for name in names if name in test]


def _report(folder: Path, failures: Mapping[str, str], count: int, unreadable: Literal["error", "skip"]) -> None:
    """Refuses the folder, or warns that these of its files are left out."""
    listed = _listed([f"{name} ({why})" for name, why in sorted(failures.items())])
    message = f"dataset.path = {folder}: {len(failures):,} of the {count:,} images cannot be read"
    if unreadable == "error":
        raise genkit.DataUnavailable(
            f"{message}: {listed}\nRepair or remove them, or leave them out with --set dataset.unreadable=skip."
        )
    warnings.warn(f"{message} and are left out: {listed}", genkit.PluginWarning, stacklevel=3)


def _listed(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
