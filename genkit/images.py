"""Images of every kind -> the uint8 tensors that models see, and labelled images -> a dataset."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import IO, Annotated, Any, Protocol

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from genkit.errors import DataUnavailable, GenkitError
from genkit.task import Data

ImageSide = Annotated[int, Ge(1), Le(4096)]
"""The type of an option that is a height or a width, in pixels."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What files may hold, whatever their ending. Pillow knows more, and hands some of it to other programs."""

_RESIDENT = 2 * 10**9
"""Bytes of decoded images up to which they stay in memory unless they are to be streamed."""

_PATIENCE = 2.0
"""Seconds that reading may take before anything is said about it."""

_PORTION = 32
"""Images that a thread takes at a time."""


class LabelledImages(Protocol):
    """Images in a fixed order, each with its label or None. They may be opened and not read yet."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int | None]:
        """The image there, and its label. Called in several processes, but in one thread at a time."""
        ...


def open_image(file: Path | IO[bytes]) -> ImageFile.ImageFile:
    """The image in a file, of a format that Pillow reads by itself. Its pixels are read when they are needed."""
    return Image.open(file, formats=_FORMATS)


def image_tensor(image: Image.Image, event_shape: tuple[int, int, int]) -> Tensor:
    """An image as uint8 of ``event_shape``, which is (channels, height, width); 1 channel is grey.

    It is turned upright by its EXIF orientation, fitted to the size by its shorter side with Lanczos' filter, and cut
    to its centre. Transparency is laid on white; an animation gives its first frame; 16-bit grey is divided by 257;
    colour profiles are not applied.

    Raises:
        Exception: of any kind, as it comes from Pillow, where the image is damaged.
    """
    channels, height, width = event_shape
    enough = 2 * max(height, width)
    image.draft(None, (enough, enough))  # a large JPEG is decoded at a fraction of its size, several times faster
    image.load()
    with suppress(SyntaxError):  # damaged EXIF data, which leave the pixels as they are
        ImageOps.exif_transpose(image, in_place=True)
    plain = _opaque(image).convert("RGB" if channels == 3 else "L")
    if plain.size != (width, height):
        plain = ImageOps.fit(plain, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(plain)).view(height, width, channels).permute(2, 0, 1).contiguous()


def image_data(
    name: str,
    train: LabelledImages,
    test: LabelledImages,
    *,
    classes: int = 0,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    streaming: bool | None = None,
) -> Data:
    """A dataset of images of any kind and size, as models see them.

    Args:
        name: of the dataset, in messages.
        train, test: the images.
        classes: how many labels there are: 0 to ``classes - 1``; 0: the labels are not kept.
        size: a side, or height and width, which every image is fitted to; None: that of the images, which all share it.
        channels: 3 for colour, 1 for grey; None: those of the first training image.
        streaming: whether the images are decoded anew whenever they are used; else they are decoded once, now, and
            stay in memory, on the device. None: what takes more than 2 GB decoded is streamed.

    Raises:
        DataUnavailable: an image cannot be read now, or the first one has no size that the others could share.
    """
    for images, use in ((train, "train"), (test, "test")):
        if not len(images):
            raise DataUnavailable(f"{name} has no image to {use} on")
    first, _ = _item(name, train, 0)
    with first, _reading(name, 0, first):
        first.load()
    if channels is None:
        channels = 1 if first.getbands()[0] in ("1", "L", "I", "F") else 3
    height, width = (size, size) if isinstance(size, int) else size or (first.height, first.width)
    shape = (channels, height, width)
    if streaming is None:
        streaming = (len(train) + len(test)) * math.prod(shape) > _RESIDENT
    read = [_Images(name, images, shape, classes, fit=size is not None) for images in (train, test)]
    sets = read if streaming else [images.in_memory() for images in read]
    return Data(sets[0], sets[1], shape, classes)


class _Images(Dataset[Any]):
    """Images that are decoded whenever they are used, as ``(x,)``, or as ``(x, label)`` where there are classes."""

    def __init__(
        self, name: str, images: LabelledImages, shape: tuple[int, int, int], classes: int, *, fit: bool
    ) -> None:
        self.name, self.images, self.shape, self.classes, self.fit = name, images, shape, classes, fit

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of files that it can read all the same
            return self.observation(index, *_item(self.name, self.images, index))

    def observation(self, index: int, image: Image.Image, label: int | None) -> tuple[Any, ...]:
        if not self.fit and (image.height, image.width) != self.shape[1:]:
            raise DataUnavailable(
                f"{self.name}: image {index} is {image.height} x {image.width}, and the first one is "
                f"{self.shape[1]} x {self.shape[2]}; say what all are fitted to, e.g. --set dataset.size=64"
            )
        with image, _reading(self.name, index, image):
            x = image_tensor(image, self.shape)
        if not self.classes:
            return (x,)
        if label is None or not 0 <= label < self.classes:
            raise DataUnavailable(
                f"{self.name}: image {index} has the label {label!r}; the labels of {self.classes} classes are the "
                f"whole numbers from 0 to {self.classes - 1}"
            )
        return x, label

    def in_memory(self) -> TensorDataset:
        """The same, decoded once. All are read, so that none fails in epoch 7."""
        count, one_at_a_time = len(self), Lock()
        columns = [torch.empty((count, *self.shape), dtype=torch.uint8)]
        columns += [torch.empty(count, dtype=torch.int64)] if self.classes else []

        def read(row: int) -> None:
            with one_at_a_time:
                image, label = _item(self.name, self.images, row)
            for column, value in zip(columns, self.observation(row, image, label), strict=True):
                column[row] = value

        failures = failures_of(read, count, f"{count:,} images of {self.name}")
        if failures:
            more = f" ({len(failures) - 1:,} more of {count:,} failed)" if len(failures) > 1 else ""
            raise DataUnavailable(failures[min(failures)] + more)
        return TensorDataset(*columns)


def _item(name: str, images: LabelledImages, index: int) -> tuple[Image.Image, int | None]:
    with _reading(name, index):
        return images[index]


@contextmanager
def _reading(name: str, index: int, image: Image.Image | None = None) -> Iterator[None]:
    """Names the image, and its file where it has one, if it cannot be read inside the block."""
    try:
        yield
    except GenkitError:
        raise
    except Exception as error:  # Pillow's readers raise what they like
        file = getattr(image, "filename", "")
        where = f"{index} ({file})" if file else index
        raise DataUnavailable(f"{name}: image {where} cannot be read: {_reason(error)}") from error


def failures_of(read: Callable[[int], object], count: int, what: str) -> Mapping[int, str]:
    """Calls ``read`` with every number below ``count``, in several threads; for each that raised, why.

    On stderr it says that ``what`` is being read, if that takes long.
    """

    def reasons(portion: range) -> Mapping[int, str]:
        failed = {}
        for number in portion:
            try:
                read(number)
            except Exception as error:  # Pillow's readers raise what they like
                failed[number] = _reason(error)
        return failed

    portions = [range(start, min(start + _PORTION, count)) for start in range(0, count, _PORTION)]
    console, started = Console(stderr=True), time.monotonic()
    columns = BarColumn(), TextColumn("{task.completed:,.0f}"), TimeRemainingColumn()
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", total=count)
    failures: dict[int, str] = {}
    announced = False
    # the filter is that of the whole process, so it is set once, and not in the threads
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor() as pool:
        try:
            for portion, failed in zip(portions, pool.map(reasons, portions), strict=True):
                failures |= failed
                bar.advance(task, len(portion))
                if not announced and time.monotonic() - started > _PATIENCE:
                    console.print(f"genkit: reading {what}", soft_wrap=True, highlight=False, markup=False)
                    bar.start()
                    announced = True
        finally:
            bar.stop()
    return failures


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message holds nothing but the whole path
        return "no image of a known format"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


def _opaque(image: Image.Image) -> Image.Image:
    """The image in 8 bits a channel, on white where it is transparent."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of an unknown range")
    if image.mode.startswith("I"):
        return _eight_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA"))
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey, which Pillow's own conversion cuts off at 255."""
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"its pixels go from {pixels.min()} to {pixels.max()}, beyond 16 bits")
    return Image.fromarray(np.round(pixels / 257).astype(np.uint8))
