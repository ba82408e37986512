"""Shards in WebDataset's layout: an index of where each sample lies in the tar files, which are read at those places.

Read forwards, a shard cannot be shuffled as a whole or taken up in the middle of an epoch. By its index, it can.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Gt, Lt
from PIL import Image, UnidentifiedImageError
from pydantic import AfterValidator
from torch.utils.data import Dataset

import genkit

_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
"""The endings of the files of a sample that are taken for its image."""


def _located(shards: str | list[str]) -> list[str]:
    """Patterns of paths, as a recipe keeps them, so that a run finds its shards from every working directory."""
    patterns = shards.split("::") if isinstance(shards, str) else shards
    return [p if _elsewhere(p) else str(Path(p).expanduser().absolute()) for p in patterns]


def _elsewhere(pattern: str) -> bool:
    return "://" in pattern or pattern.startswith("pipe:")


Shards = Annotated[str | list[str], AfterValidator(_located)]


def webdataset(
    *,
    train: Shards,
    test: Shards | None = None,
    test_fraction: Annotated[float, Gt(0), Lt(1)] | None = None,
    image: str | None = None,
    label: str = "cls",
    size: genkit.ImageSide | tuple[genkit.ImageSide, genkit.ImageSide] | None = None,
    channels: Literal[1, 3] | None = None,
    streaming: bool = True,
) -> genkit.Data:
    """The images of WebDataset's shards, uint8, in the order of the shards, with labels if every sample has one.

    A sample is the files of one name up to its first dot, next to each other in a tar file that is not compressed:
    ``0001.jpg`` and ``0001.cls``, whose content is a whole number.

    Args:
        train, test: paths of shards, such as ``shards/{0000..0003}.tar``; several go into a list, or are joined by
            ``::``.
        test_fraction: how much to test on where there are no test shards.
        image: the ending of the files that are the images; by default that of any format that is known.
        label: the ending of the files that are the labels.
        size: a side, or height and width, that images are fitted to; by default their own, if all have the same.
        channels: 3 for colour, 1 for grey; by default those of the first image.
        streaming: whether to read and decode images whenever they are used; else they are decoded once and stay in
            memory, on the device.

    Raises:
        genkit.InvalidOption: both test shards and a fraction are given.
        genkit.DataUnavailable: a shard is missing, compressed, damaged or elsewhere, or a sample has no image.
    """
    if test is not None and test_fraction is not None:
        raise genkit.InvalidOption(f"dataset.test_fraction = {test_fraction}: there are test shards already")
    endings = _IMAGES if image is None else (image.lower().lstrip("."),)
    name = "webdataset"
    sets = [Samples(patterns, endings, label.lower()) for patterns in (train, test) if patterns is not None]
    labels = np.concatenate([samples.labels for samples in sets])
    classes = 0 if (labels < 0).any() else int(labels.max()) + 1
    pair: Sequence[Dataset[Any]] = sets
    if test is None:
        pair = genkit.hold_out(name, sets[0], test_fraction)
    return genkit.image_data(name, *pair, classes=classes, size=size, channels=channels, streaming=streaming)  # type: ignore[arg-type]


class Place(NamedTuple):
    """Where the image of a sample lies in its shard, in bytes, and the sample's label; -1: it has none."""

    start: int
    size: int
    label: int


class Samples(Dataset[Any]):
    """The samples of shards, as images with labels."""

    def __init__(self, patterns: str | list[str], endings: Sequence[str], label: str) -> None:
        expand, split_name = _library()
        self.shards = [shard for pattern in _located(patterns) for shard in expand(pattern)]
        found = [np.array(list(_places(shard, endings, label, split_name)), np.int64) for shard in self.shards]
        self.ends = np.cumsum([len(places) for places in found])
        self.places = np.concatenate([places.reshape(-1, len(Place._fields)) for places in found])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | None]:
        place = Place(*self.places[index].tolist())
        shard = self.shards[np.searchsorted(self.ends, index, side="right")]
        with Path(shard).open("rb") as file:
            file.seek(place.start)
            content = file.read(place.size)
        where = f"{shard}, byte {place.start}"
        try:
            image = genkit.open_image(BytesIO(content))
        except UnidentifiedImageError as error:
            raise genkit.DataUnavailable(f"{where}: there is no image of a known format") from error
        image.filename = where  # for whoever fails to read it
        return image, place.label

    @property
    def labels(self) -> Any:
        """Of all samples."""
        return self.places[:, Place._fields.index("label")]


def _library() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What braces in a pattern and the names of files mean is said by WebDataset itself."""
    try:
        from webdataset.shardlists import expand_urls
        from webdataset.tariterators import base_plus_ext
    except ImportError as error:
        raise genkit.DataUnavailable(
            f'the dataset webdataset needs webdataset: pip install "genkit-torch[webdataset]" ({error})'
        ) from error
    return expand_urls, base_plus_ext


def _places(shard: str, endings: Sequence[str], label: str, split_name: Callable[..., Any]) -> Iterator[Place]:
    """The places of the samples of one shard, in their order."""
    if _elsewhere(shard):
        raise genkit.DataUnavailable(f"{shard}: shards are read at any place, so they have to be files; fetch it first")
    try:
        with tarfile.open(shard, "r:") as archive:
            named = ((*split_name(member.name), member) for member in archive if member.isfile())
            for key, files in groupby((file for file in named if file[0] is not None), key=lambda file: file[0]):
                members = {ending.lower(): member for _, ending, member in files}
                images = [member for ending, member in members.items() if ending in endings]
                if len(images) != 1:
                    raise genkit.DataUnavailable(
                        f"{shard}: the sample {key!r} has {len(images)} images; its files end in "
                        f"{', '.join(members)}: say which is the image with --set dataset.image=ENDING"
                    )
                number = _number(archive, members[label]) if label in members else -1
                yield Place(images[0].offset_data, images[0].size, number)
    except tarfile.ReadError as error:
        raise genkit.DataUnavailable(
            f"{shard} is damaged or compressed ({error}); shards have to be plain tar files, so decompress it"
        ) from error
    except OSError as error:
        raise genkit.DataUnavailable(f"{shard} cannot be read: {error.strerror}") from error


def _number(archive: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = archive.extractfile(member)
    assert file is not None, "it is a file"
    text = file.read()
    if not text.strip().isdigit():
        raise genkit.DataUnavailable(
            f"{archive.name!s}: {member.name} holds {text[:20]!r}; a label is a whole number from 0 on. Say what files "
            "are labels with --set dataset.label=ENDING"
        )
    return int(text)
