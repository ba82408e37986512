"""Image files -> uint8 tensors, whatever their colours, depth, transparency and orientation."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Of the files that are taken for images."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What these files may hold, whatever their ending. Pillow knows more, and hands some of it to other programs."""

_PATIENCE = 2.0
"""Seconds that reading may take before anything is said about it."""

_PORTION = 32
"""Files that a thread takes at a time."""


def decode(path: Path, event_shape: tuple[int, int, int]) -> Tensor:
    """The image in a file, uint8 of ``event_shape``, which is (channels, height, width); 1 channel is grey.

    It is turned upright by its EXIF orientation, fitted to the size by its shorter side with Lanczos' filter, and cut
    to its centre. Transparency is laid on white; an animation gives its first frame; 16-bit grey is divided by 257;
    colour profiles are not applied.

    Raises:
        Exception: of any kind, as it comes from Pillow, where the file is damaged or no image.
    """
    channels, height, width = event_shape
    with Image.open(path, formats=_FORMATS) as image:
        enough = 2 * max(height, width)
        image.draft(None, (enough, enough))  # a large JPEG is decoded at a fraction of its size, several times faster
        image.load()
        with suppress(SyntaxError):  # damaged EXIF data, which leave the pixels as they are
            ImageOps.exif_transpose(image, in_place=True)
        plain = _opaque(image).convert("RGB" if channels == 3 else "L")
    pixels = np.array(ImageOps.fit(plain, (width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).view(height, width, channels).permute(2, 0, 1).contiguous()


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
