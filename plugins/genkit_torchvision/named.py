"""A class of ``torchvision.datasets`` as a dataset of genkit's, whatever its conventions are."""

from __future__ import annotations

import inspect
import io
import operator
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt
from PIL import Image
from pydantic import AfterValidator
from torch.utils.data import Dataset
from torchvision import datasets

import genkit

_SPLITS = {"train": ("train", "trainval", "train-standard"), "test": ("test", "val", "valid")}
"""What classes call their training and test sets; the first that a class knows is taken."""

_OURS = {"root", "download", "transform", "target_transform", "transforms", "loader"}
"""Arguments that are no business of ``dataset.options``."""


def _absolute(path: Path | None) -> Path | None:
    """As a recipe keeps it, so that a run finds its images from every working directory."""
    return path and path.expanduser().absolute()


def torchvision(
    *,
    name: str,
    root: Annotated[Path | None, AfterValidator(_absolute)] = None,
    split_train: str | None = None,
    split_test: str | None = None,
    test_fraction: Annotated[float, Gt(0), Lt(1)] | None = None,
    size: genkit.ImageSide | tuple[genkit.ImageSide, genkit.ImageSide] | None = None,
    channels: Literal[1, 3] | None = None,
    streaming: bool | None = None,
    options: dict[str, Any] | None = None,
    data_dir: Path | None = None,
) -> genkit.Data:
    """The images of a class of torchvision.datasets, uint8, with its labels where they are whole numbers.

    The class's signature says how its sets are told apart: by ``train=``, by ``split=`` or ``image_set=``, or not at
    all, and then a part is held out to test on. Files are looked for in torchvision's own layout, and downloaded by
    torchvision where they are not there.

    Args:
        name: of the class, e.g. ``FashionMNIST``.
        root: the folder that it looks in; by default ``--data-dir``, or genkit's cache.
        split_train, split_test: what the class calls its sets, where it is not one of the usual names.
        test_fraction: how much to test on of a dataset that has no test set of its own.
        size: a side, or height and width, that images are fitted to; by default their own, if all have the same.
        channels: 3 for colour, 1 for grey; by default those of the first image.
        streaming: whether to decode images whenever they are used, in place of once. By default, if they take more than
            2 GB decoded.
        options: further arguments of the class, e.g. ``{split: letters}`` for EMNIST.
        data_dir: where to look and to keep what is downloaded, unless ``root`` is given.

    Raises:
        genkit.UnknownName: torchvision has no such dataset of images, or the class no such argument.
        genkit.InvalidOption: an argument that the class needs is missing, or has a value that it does not know.
        genkit.DataUnavailable: the files are not there and cannot be downloaded, or are no images.
    """
    source = _Source(name, root or data_dir or genkit.cache_directory() / "data", options or {})
    train, test = source.sets(split_train, split_test)
    classes = _classes([part for part in (train, test) if part is not None])
    pair: Sequence[Dataset[Any]]
    if test is None:
        pair = genkit.hold_out(source.label, _Images(train, source.label), test_fraction)
    elif test_fraction is not None:
        raise genkit.InvalidOption(f"dataset.test_fraction = {test_fraction}: {name} has a test set of its own")
    else:
        pair = [_Images(part, source.label) for part in (train, test)]
    return genkit.image_data(
        source.label,
        *pair,
        classes=classes,
        size=size,
        channels=channels,
        streaming=streaming,
    )


class _Images(Dataset[Any]):
    """What a class of torchvision gives, as images with whole numbers for labels, or None."""

    def __init__(self, dataset: Any, label: str) -> None:
        self.dataset, self.label = dataset, label

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | None]:
        item = self.dataset[index]
        image, target = item[:2] if isinstance(item, tuple) and len(item) > 1 else (item, None)
        if not isinstance(image, Image.Image):
            raise genkit.DataUnavailable(f"{self.label} is no dataset of images: it gives a {type(image).__name__}")
        return image, _whole(target)


class _Source:
    """A class of torchvision's with its arguments; each of its sets is made from it."""

    def __init__(self, name: str, root: Path, options: Mapping[str, Any]) -> None:
        kinds = _kinds()
        if name not in kinds:
            raise genkit.unknown("dataset of torchvision", name, kinds, "There are")
        self.name, self.label, self.root = name, f"torchvision:{name}", root
        self.kind, self.parameters = kinds[name], _parameters(kinds[name])
        offered = self.parameters.keys() - _OURS
        for option in options:
            if option not in offered:
                raise genkit.unknown(f"argument of {name}", option, offered, "Arguments")
        self.options = dict(options)
        if "root" in self.parameters:
            self.options["root"] = str(root)
        if "loader" in self.parameters:
            self.options["loader"] = _load_image

    def sets(self, split_train: str | None, split_test: str | None) -> tuple[Any, Any]:
        """The training and the test set; None for a test set that there is not."""
        key = next((key for key in ("train", "split", "image_set") if key in self.parameters), None)
        if key in (None, "train") or key in self.options:
            if split_train or split_test:
                raise genkit.InvalidOption(f"dataset.split_train, split_test: {self.name} has no named sets to choose")
            if key == "train" and key not in self.options:
                return self.load(train=True), self.load(train=False)
            return self.load(), None
        train = self.first_known(key, [split_train] if split_train else _SPLITS["train"])
        try:
            return train, self.first_known(key, [split_test] if split_test else _SPLITS["test"])
        except genkit.InvalidOption:
            if split_test:
                raise
            return train, None

    def first_known(self, key: str, names: Sequence[str]) -> Any:
        """The set of the first of these names that the class knows."""
        for name in names[:-1]:
            try:
                return self.load(**{key: name})
            except genkit.InvalidOption:
                continue
        return self.load(**{key: names[-1]})

    def load(self, **chosen: Any) -> Any:
        """One set; downloaded if it is not there."""
        arguments = {**self.options, **chosen}
        missing = [p.name for p in self.parameters.values() if p.default is p.empty and p.name not in arguments]
        if missing:
            example = ", ".join(f"{name}: VALUE" for name in missing)
            raise genkit.InvalidOption(f"{self.name} needs {', '.join(missing)}: --set 'dataset.options={{{example}}}'")
        attempts = [False, True] if "download" in self.parameters else [None]
        for download in attempts:
            try:
                with redirect_stdout(io.StringIO()):  # where downloads say what a message says better
                    return self.kind(**arguments, **({} if download is None else {"download": download}))
            except ImportError as error:
                library = f"pip install {error.name}" if error.name else "install it"
                raise genkit.DataUnavailable(f"{self.label} needs another library ({error}): {library}") from error
            except Exception as error:
                if isinstance(error, ValueError) and "Valid values are" in str(error):
                    raise genkit.InvalidOption(f"{self.label}: {error}") from error
                cause = error
        raise self.unavailable(cause, downloadable=len(attempts) > 1) from cause

    def unavailable(self, cause: Exception, *, downloadable: bool) -> genkit.DataUnavailable:
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        failed = (
            "could not be loaded or downloaded" if downloadable else "could not be loaded, and cannot be downloaded"
        )
        return genkit.DataUnavailable(
            f"{self.label} {failed} ({type(cause).__name__}: {reason})\n"
            f"Put {_files(self.kind)} into {self.root}, or name the folder that has them with --set dataset.root=DIR."
        )


def _kinds() -> dict[str, type[Any]]:
    """The classes that give images, by name."""
    kinds = {name: getattr(datasets, name) for name in datasets.__all__}
    return {
        name: kind
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, datasets.VisionDataset) and kind is not datasets.VisionDataset
    }


def _parameters(kind: type[Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a class, also of its base where it hands ``**kwargs`` on."""
    found: dict[str, inspect.Parameter] = {}
    for base in inspect.getmro(kind):
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base).parameters.values())
        found = {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _files(kind: Any) -> str:
    """What a class looks for inside its root, as far as it says so itself."""
    resources = getattr(kind, "resources", None)
    if isinstance(resources, list):  # of MNIST and its kin
        return ", ".join(f"{kind.__name__}/raw/{Path(file).name}" for file, _ in resources)
    archive, folder = (getattr(kind, name, None) for name in ("filename", "base_folder"))
    if isinstance(archive, str) and isinstance(folder, str):
        return f"{archive}, or what it holds as {folder}/,"
    return "its files, in the layout that torchvision documents,"


def _load_image(path: str) -> Image.Image:
    return genkit.open_image(Path(path))


def _whole(target: Any) -> int | None:
    try:
        return operator.index(target)
    except (TypeError, ValueError):
        return None


def _classes(sets: Sequence[Any]) -> int:
    """How many labels there are; 0 where the targets are something else, or not all of them are known."""
    names = getattr(sets[0], "classes", None)
    count = len(names) if isinstance(names, Sequence) else int(getattr(sets[0], "num_classes", 0))
    labels = [label for part in sets for label in _labels(part)]
    if not labels:
        return 0 if _first_target(sets[0]) is None else count
    known = [label for label in labels if label is not None and label >= 0]
    return max(count, max(known) + 1) if len(known) == len(labels) else 0


def _labels(dataset: Any) -> list[int | None]:
    """The targets of a set without its images, by one of the names under which classes keep them."""
    for name in ("targets", "labels", "_labels", "y"):
        if (labels := getattr(dataset, name, None)) is not None:
            return [_whole(label) for label in labels]
    samples = getattr(dataset, "_samples", None) or ()
    return [_whole(sample[1]) for sample in samples]


def _first_target(dataset: Any) -> int | None:
    try:
        return _whole(dataset[0][1])
    except Exception:  # what is wrong with an image is said when the images are read
        return None
