"""Hugging Face's tables of images. They lie in memory-mapped files, so any row is read by its number."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt
from PIL import Image
from pydantic import AfterValidator
from torch.utils.data import Dataset

import genkit

_BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
"""What reads a single file of that ending."""

_TEST = ("test", "validation", "valid", "val", "dev")
"""What test sets are called; the first that there is is taken."""

_NO_LABELS = "none"


def _located(path: str) -> str:
    """A path of a file or folder that is here, from every working directory; anything else is a name on the hub."""
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else path


def huggingface(
    *,
    path: Annotated[str, AfterValidator(_located)],
    config: str | None = None,
    split_train: str = "train",
    split_test: str | None = None,
    test_fraction: Annotated[float, Gt(0), Lt(1)] | None = None,
    image: str | None = None,
    label: str | None = None,
    size: genkit.ImageSide | tuple[genkit.ImageSide, genkit.ImageSide] | None = None,
    channels: Literal[1, 3] | None = None,
    streaming: bool | None = None,
) -> genkit.Data:
    """The images of a dataset of Hugging Face's, uint8, with its labels.

    Args:
        path: a name on the hub, a folder of images or of Parquet files, one such file, or what ``save_to_disk`` wrote.
        config: which of the variants that a dataset on the hub comes in.
        split_train, split_test: the names of its sets; by default that of the test set is ``test``, or else
            ``validation``, ``valid``, ``val`` or ``dev``.
        test_fraction: how much to test on of a dataset that has no test set of its own.
        image: the column of images; by default the first of that type.
        label: the column of labels; by default the only one of that type, if there is one. ``none``: leaves them out.
        size: a side, or height and width, that images are fitted to; by default their own, if all have the same.
        channels: 3 for colour, 1 for grey; by default those of the first image.
        streaming: whether to decode images whenever they are used, out of the dataset's files, in place of once. By
            default, if they take more than 2 GB decoded.

    Raises:
        genkit.UnknownName: the dataset has no such split or column.
        genkit.DataUnavailable: there is no such dataset, it cannot be fetched or read, or it holds no images.
    """
    name = f"huggingface:{path}"
    splits = _load(path, config, name)
    if split_train not in splits:
        raise genkit.unknown(f"split of {name}", split_train, splits, "Splits")
    if split_test is None:
        split_test = next((known for known in _TEST if known in splits and known != split_train), None)
    elif split_test not in splits:
        raise genkit.unknown(f"split of {name}", split_test, splits, "Splits")
    if split_test is not None and test_fraction is not None:
        raise genkit.InvalidOption(f"dataset.test_fraction = {test_fraction}: {name} has the test set {split_test!r}")

    features = splits[split_train].features
    image = _image_column(features, image, name)
    label = _label_column(features, label, name)
    tables = [splits[split] for split in (split_train, split_test) if split is not None]
    classes = _classes(tables, label, name)
    pair: list[Dataset[Any]] = [Rows(table, image, label) for table in tables]
    if split_test is None:
        pair = list(genkit.hold_out(name, pair[0], test_fraction))
    return genkit.image_data(name, *pair, classes=classes, size=size, channels=channels, streaming=streaming)  # type: ignore[arg-type]


class Rows(Dataset[Any]):
    """The rows of a table as images with labels."""

    def __init__(self, table: Any, image: str, label: str | None) -> None:
        columns = [image] if label is None else [image, label]
        # decoded by genkit, in many threads and a JPEG no larger than it is needed
        self.table = table.select_columns(columns).cast_column(image, _library().Image(decode=False))
        self.image, self.label = image, label

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | None]:
        row = self.table[index]
        stored = row[self.image]
        if stored is None:
            raise genkit.DataUnavailable(f"row {index} has no image in its column {self.image!r}")
        picture = genkit.open_image(BytesIO(stored["bytes"]) if stored["bytes"] else Path(stored["path"]))
        return picture, None if self.label is None else row[self.label]


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise genkit.DataUnavailable(
            f'the dataset huggingface needs datasets: pip install "genkit-torch[huggingface]" ({error})'
        ) from error
    return datasets


def _load(path: str, config: str | None, name: str) -> Mapping[str, Any]:
    """The splits of a dataset, by name."""
    library, local = _library(), Path(path)
    if not sys.stderr.isatty():
        library.disable_progress_bars()
    try:
        if any((local / file).is_file() for file in ("dataset_dict.json", "state.json")):
            loaded = library.load_from_disk(path)
        elif local.is_file() and local.suffix in _BUILDERS:
            loaded = library.load_dataset(_BUILDERS[local.suffix], data_files=path)
        else:
            loaded = library.load_dataset(path, config)
    except Exception as error:  # of the library, of the hub's client, of the network, of a file's format
        reason = " ".join(str(error).split())[:300]
        where = "cannot be read" if local.exists() else "is no file or folder here, and cannot be had from the hub"
        raise genkit.DataUnavailable(f"{name} {where} ({type(error).__name__}: {reason})") from error
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _image_column(features: Mapping[str, Any], named: str | None, name: str) -> str:
    images = [column for column, feature in features.items() if isinstance(feature, _library().Image)]
    if named is None and not images:
        raise genkit.DataUnavailable(f"{name} has no column of images; its columns are {', '.join(features)}")
    if named is not None and named not in images:
        raise genkit.unknown(f"column of images of {name}", named, images, "There are")
    return named or images[0]


def _label_column(features: Mapping[str, Any], named: str | None, name: str) -> str | None:
    labels = [column for column, feature in features.items() if isinstance(feature, _library().ClassLabel)]
    if named == _NO_LABELS:
        return None
    if named is not None and named not in features:
        raise genkit.unknown(f"column of {name}", named, features, "Columns")
    return named or (labels[0] if len(labels) == 1 else None)


def _classes(tables: list[Any], label: str | None, name: str) -> int:
    """How many labels there are: as the column says itself, or counted where it holds plain whole numbers."""
    if label is None:
        return 0
    feature = tables[0].features[label]
    if isinstance(feature, _library().ClassLabel):
        return int(feature.num_classes)
    values = [value for table in tables for value in table[label]]
    if not all(type(value) is int for value in values):
        raise genkit.InvalidOption(f"dataset.label = {label}: that column of {name} does not hold whole numbers")
    return int(max(values)) + 1
