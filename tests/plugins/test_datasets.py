"""Other people's datasets, out of small files in their real formats: torchvision's, Hugging Face's, WebDataset's."""

from __future__ import annotations

import gc
import gzip
import hashlib
import inspect
import json
import math
import pickle
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import webdataset as wds
from genkit_huggingface.tables import huggingface
from genkit_torchvision.named import torchvision
from genkit_webdataset.shards import webdataset
from helpers import Genkit, picture_size, tree
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets as originals

import genkit as gk
from genkit import session

TINY = ["encoder.hidden=16", "decoder.hidden=16", "latent_shape=[4]", "training.workers=0", "training.batch_size=8"]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("GENKIT_HOME", str(tmp_path_factory.mktemp("home")))


def pictures(count: int, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int, classes: int = 10) -> list[int]:
    return [7 * i % classes for i in range(count)]


def rows(dataset: Any) -> tuple[Tensor, ...]:
    """x, and the labels if there are any."""
    return tuple(next(iter(DataLoader(dataset, batch_size=len(dataset)))))


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def train(model: str, dataset: str, run: Path, *more: str) -> list[Any]:
    pairs = [part for setting in (f"dataset={dataset}", *more) for part in ("--set", setting)]
    return ["train", "--model", model, *pairs, "--epochs", 1, "--out", run]


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, (done.stdout, done.stderr)
    errors = done.stderr[done.stderr.index("error: ") :]
    assert "Traceback" not in done.stderr + done.stdout
    assert len(errors.strip().splitlines()) <= 2
    for part in parts:
        assert part in errors


def works_throughout(here: Genkit, run: Path, bundle: Path, *sampling: Any) -> None:
    """Everything that is done with a trained model."""
    here("sample", run, "-n", 4, *sampling)
    here("reconstruct", run, "-n", 2)
    assert min(picture_size(run / "reconstructions.png")) > 0
    assert math.isfinite(json.loads(here("evaluate", run, "--samples", 2, "--json").stdout)["terms"]["loss"])
    here("export", run, "--out", bundle)
    assert (bundle / "decoder.onnx").is_file()


# Names with a colon


class Mean(gk.Prior):
    def __init__(self, spec: gk.Spec, *, location: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.shape, self.location, self.scale = spec.latent_shape, location, scale

    def forward(self, condition: Any = None, posterior: Any = None) -> Any:
        normal = torch.distributions.Normal(torch.full(self.shape, self.location), self.scale)
        return torch.distributions.Independent(normal, len(self.shape))


def resolved(*settings: str) -> gk.Recipe:
    registry = gk.load_plugins().registry
    registry.prior("mean", Mean)
    registry.dataset("bare", lambda: None)
    plan = session.plan(registry, model="mnist_vae", settings=settings, training={}, out=None, resume=False)
    return plan.recipe


@pytest.mark.parametrize(
    ("settings", "spelt"),
    [
        (["dataset=torchvision:SVHN"], ["dataset=torchvision", "dataset.name=SVHN"]),
        (["prior=mean:1.5"], ["prior=mean", "prior.location=1.5"]),
        (["prior=mean:1e-3", "prior.scale=2"], ["prior=mean", "prior.location=1e-3", "prior.scale=2"]),
        (["encoder=mlp:8"], ["encoder=mlp", "encoder.hidden=8"]),
        (["dataset=mnist:100"], ["dataset=mnist", "dataset.limit=100"]),
        (["prior=mean:1.5", "prior.location=2"], ["prior=mean", "prior.location=2"]),
        (["dataset=webdataset:/a.tar::/b.tar"], ["dataset=webdataset", "dataset.train=/a.tar::/b.tar"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_stands_behind_a_colon_is_the_first_option_of_any_component(settings: list[str], spelt: list[str]) -> None:
    assert resolved(*settings) == resolved(*spelt)
    assert resolved(*settings) == gk.Recipe.from_yaml(resolved(*settings).to_yaml(), "saved")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dataset=torchvison:SVHN", "no dataset named 'torchvison'; did you mean 'torchvision'"),
        ("prior=mean:wide", "prior.location = 'wide': input should be a valid number"),
        ("dataset=bare:1", "dataset = 'bare:1': 'bare' takes no option that could be written behind its name"),
    ],
)
def test_what_stands_behind_a_colon_is_checked(setting: str, message: str) -> None:
    with pytest.raises(gk.GenkitError, match=message):
        resolved(setting)


def test_a_name_with_a_colon_is_not_registered() -> None:
    with pytest.raises(ValueError, match="the name of the prior 'a:b' has a colon"):
        gk.load_plugins().registry.prior("a:b", Mean)


# torchvision


def idx(path: Path, values: Any, *, compressed: bool = False) -> Path:
    """Writes an array in the format of MNIST's files."""
    array = np.asarray(values, np.uint8)
    content = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4) for n in array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if compressed else content)
    return path


def fashion(root: Path, count: int = 24, *, compressed: bool = False) -> list[tuple[str, str]]:
    """FashionMNIST's four files, and what torchvision holds against them."""
    resources = []
    for number, (prefix, size) in enumerate((("train", count), ("t10k", 8))):
        for kind, values in (("images-idx3", pictures(size, 28, 28, seed=number)), ("labels-idx1", labels(size))):
            path = root / "FashionMNIST" / "raw" / f"{prefix}-{kind}-ubyte{'.gz' if compressed else ''}"
            resources.append((path.name, md5(idx(path, values, compressed=compressed))))
    return resources


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """CIFAR10's pickled batches; the training images, in the order of their bytes."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    every = pictures(24, 3, 32, 32)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = every[4 * number : 4 * number + 4]
        batch = {"data": part.reshape(4, -1), "labels": labels(4), "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(batch))
        lists["test_list" if name == "test_batch" else "train_list"].append([name, md5(folder / name)])
    meta = folder / "batches.meta"
    meta.write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    for name, files in lists.items():
        monkeypatch.setattr(originals.CIFAR10, name, files)
    monkeypatch.setattr(originals.CIFAR10, "meta", {**originals.CIFAR10.meta, "md5": md5(meta)})
    return every[:20]


def test_the_sets_of_a_class_that_takes_train(tmp_path: Path) -> None:
    fashion(tmp_path)
    data = torchvision(name="FashionMNIST", data_dir=tmp_path)
    assert (data.event_shape, data.classes) == ((1, 28, 28), 10)
    for number, (dataset, size) in enumerate(((data.train, 24), (data.test, 8))):
        x, y = rows(dataset)
        assert torch.equal(x, torch.from_numpy(pictures(size, 28, 28, seed=number)).unsqueeze(1))
        assert y.tolist() == labels(size)


def test_compressed_files_that_are_there_are_unpacked_and_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(originals.FashionMNIST, "resources", fashion(tmp_path, compressed=True))
    data = torchvision(name="FashionMNIST", root=tmp_path)
    assert torch.equal(rows(data.test)[0][:, 0], torch.from_numpy(pictures(8, 28, 28, seed=1)))
    assert capfd.readouterr().out == ""


def test_colours_and_checked_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = cifar10(tmp_path, monkeypatch)
    data = torchvision(name="CIFAR10", data_dir=tmp_path)
    assert (data.event_shape, data.classes) == ((3, 32, 32), 10)
    assert torch.equal(rows(data.train)[0], torch.from_numpy(expected))
    assert torchvision(name="CIFAR10", data_dir=tmp_path, size=(8, 16), channels=1).event_shape == (1, 8, 16)


def test_the_sets_of_a_class_that_takes_split(tmp_path: Path) -> None:
    """Food101: photographs of many sizes, listed in JSON."""
    root = tmp_path / "food-101"
    for split, count in (("train", 6), ("test", 3)):
        listed = {}
        for number, name in enumerate(("apple_pie", "waffles")):
            listed[name] = [f"{name}/{split}{i}" for i in range(count)]
            for i, file in enumerate(listed[name]):
                path = root / "images" / f"{file}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40 + i, 30), (255 * number, 0, 0)).save(path)
        (root / "meta").mkdir(exist_ok=True)
        (root / "meta" / f"{split}.json").write_text(json.dumps(listed))
    (root / "meta" / "classes.txt").write_text("apple_pie\nwaffles\n")
    data = torchvision(name="Food101", data_dir=tmp_path, size=16)
    assert (data.event_shape, data.classes, len(data.train), len(data.test)) == ((3, 16, 16), 2, 12, 6)
    for dataset in (data.train, data.test):
        x, y = rows(dataset)
        assert ((x[:, 0].float().mean((1, 2)) > 128) == y.bool()).all()
    with pytest.raises(
        gk.DataUnavailable, match=r"image 1 is 30 x 41, and the first one is 30 x 40; .*dataset\.size=64"
    ):
        torchvision(name="Food101", data_dir=tmp_path)
    swapped = torchvision(name="Food101", data_dir=tmp_path, size=16, split_train="test", split_test="train")
    assert (len(swapped.train), len(swapped.test)) == (6, 12)
    with pytest.raises(gk.InvalidOption, match="'holdout' for argument split"):
        torchvision(name="Food101", data_dir=tmp_path, size=16, split_test="holdout")


def test_a_class_whose_split_is_a_variant_is_told_by_options_which(tmp_path: Path) -> None:
    """EMNIST takes ``train=`` as well, behind ``**kwargs``, and its labels begin at 1."""
    for part, count in (("train", 8), ("test", 4)):
        for kind, values in (("images-idx3", pictures(count, 28, 28)), ("labels-idx1", np.arange(count) + 1)):
            idx(tmp_path / "EMNIST" / "raw" / f"emnist-letters-{part}-{kind}-ubyte", values)
    data = torchvision(name="EMNIST", data_dir=tmp_path, options={"split": "letters"})
    assert (len(data.train), len(data.test), data.classes) == (8, 4, 27)
    assert rows(data.test)[1].tolist() == [1, 2, 3, 4]
    with pytest.raises(gk.InvalidOption, match=r"EMNIST needs split: --set 'dataset.options=\{split: VALUE\}'"):
        torchvision(name="EMNIST", data_dir=tmp_path)
    with pytest.raises(gk.InvalidOption, match=r"Valid values are \{'byclass', 'bymerge'"):
        torchvision(name="EMNIST", data_dir=tmp_path, options={"split": "cursive"})


def folder_of_images(folder: Path, count: int = 20, mode: str = "L") -> Path:
    for i in range(count):
        path = folder / f"class{i % 2}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        array = pictures(1, 10, 12, *((3,) if mode == "RGB" else ()), seed=i)[0]
        Image.fromarray(array).save(path)
    return folder


def test_without_a_test_set_a_part_is_held_out_and_said_to_be(tmp_path: Path) -> None:
    """An ImageFolder of grey images, which stay grey."""
    folder = folder_of_images(tmp_path)
    with pytest.warns(gk.PluginWarning, match=r"torchvision:ImageFolder has no test set: a tenth .*test_fraction"):
        data = torchvision(name="ImageFolder", root=folder)
    assert (len(data.train), len(data.test), data.classes, data.event_shape) == (18, 2, 2, (1, 10, 12))
    torch.manual_seed(1)
    first, again = (torchvision(name="ImageFolder", root=folder, test_fraction=0.4) for _ in range(2))
    assert len(first.test) == 8
    assert torch.equal(rows(first.test)[0], rows(again.test)[0])
    together = torch.cat([rows(first.train)[0], rows(first.test)[0]])
    assert len(together.flatten(1).unique(dim=0)) == 20
    with pytest.raises(
        gk.UnknownName, match="no argument of ImageFolder named 'alow_empty'; did you mean 'allow_empty'"
    ):
        torchvision(name="ImageFolder", root=folder, options={"alow_empty": True})
    with pytest.raises(gk.InvalidOption, match="ImageFolder has no named sets"):
        torchvision(name="ImageFolder", root=folder, split_test="test")


def test_streamed_and_resident_images_are_the_same() -> None:
    """Of FakeData, whose every image is drawn by torch's own random state when it is asked for."""
    options = {"size": 40, "image_size": [3, 9, 7], "num_classes": 5}
    before = torch.get_rng_state()
    data = [torchvision(name="FakeData", options=options, test_fraction=0.2, streaming=s) for s in (True, False, None)]
    assert torch.equal(torch.get_rng_state(), before)
    assert [type(d.train) is TensorDataset for d in data] == [False, True, True]
    for part in ("train", "test"):
        streamed, *resident = (rows(getattr(d, part)) for d in data)
        for other in resident:
            assert all(torch.equal(a, b) for a, b in zip(streamed, other, strict=True))
    assert data[0][2:] == data[1][2:] == ((3, 9, 7), 5)


def test_an_unknown_class_and_one_without_images_are_refused(here: Genkit, tmp_path: Path) -> None:
    done = here(*train("mnist_vae", "torchvision:FashonMNIST", tmp_path / "run"), check=False)
    refused(done, "no dataset of torchvision named 'FashonMNIST'; did you mean 'FashionMNIST'?")
    np.save(tmp_path / "mnist_test_seq.npy", pictures(20, 3, 8, 8))
    folder = tmp_path / "MovingMNIST"
    folder.mkdir()
    (tmp_path / "mnist_test_seq.npy").rename(folder / "mnist_test_seq.npy")
    with pytest.raises(gk.DataUnavailable, match="MovingMNIST is no dataset of images: it gives a Tensor"):
        torchvision(name="MovingMNIST", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("FashionMNIST", "Put FashionMNIST/raw/train-images-idx3-ubyte.gz, FashionMNIST/raw/train-labels"),
        ("CIFAR10", "Put cifar-10-python.tar.gz, or what it holds as cifar-10-batches-py/"),
        ("Country211", "Put its files, in the layout that torchvision documents"),
    ],
)
def test_a_failed_download_says_where_to_put_the_files(
    here: Genkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: str
) -> None:
    def urlopen(*_: Any, **__: Any) -> None:
        raise OSError("there is no way\nto the world")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    command = train("mnist_vae", f"torchvision:{name}", tmp_path / "run")
    done = here(*command, "--data-dir", tmp_path / "data", check=False)
    refused(
        done, f"torchvision:{name} could not be loaded or downloaded", files, f"into {tmp_path}/data", "dataset.root"
    )
    assert not (tmp_path / "run").exists()


def test_a_class_that_needs_a_library_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, (_, file, _) in originals.SVHN.split_list.items():
        (tmp_path / file).write_bytes(b"")
        monkeypatch.setitem(originals.SVHN.split_list, split, ["", file, md5(tmp_path / file)])
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(gk.DataUnavailable, match=r"torchvision:SVHN needs another library.*pip install scipy"):
        torchvision(name="SVHN", data_dir=tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path)
    path = folder / "class1" / "05.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(gk.DataUnavailable, match=r"torchvision:ImageFolder: image \d+ \(.*05\.png\) cannot be read"):
        torchvision(name="ImageFolder", root=folder, test_fraction=0.1)
    data = torchvision(name="ImageFolder", root=folder, test_fraction=0.1, streaming=True)
    with pytest.raises(gk.DataUnavailable, match=r"torchvision:ImageFolder: image \d+ \(.*05\.png\) cannot be read"):
        rows(data.train), rows(data.test)


def test_a_conditional_model_of_torchvision_s_images_works_throughout(here: Genkit, tmp_path: Path) -> None:
    fashion(tmp_path / "data", 40)
    settings = ["encoder.hidden=[16]", "decoder.hidden=[16]", "dataset.size=12", "training.batch_size=16"]
    command = train("mnist_cvae", "torchvision:FashionMNIST", tmp_path / "run", *settings)
    done = here(*command, "--data-dir", tmp_path / "data")
    assert done.stderr == ""
    assert gk.Run(tmp_path / "run").recipe.dataset.to_mapping()["name"] == "FashionMNIST"
    works_throughout(here, tmp_path / "run", tmp_path / "bundle", "--condition", 9)
    graphs = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["graphs"]
    (decoder,) = [graph for graph in graphs if graph["name"] == "decoder"]
    assert [value["name"] for value in decoder["inputs"]] == ["z", "condition"]


# Hugging Face


def table(count: int, *shape: int, seed: int = 0) -> datasets.Dataset:
    features = datasets.Features({"id": datasets.Value("int32"), "picture": datasets.Image(), "kind": KIND})
    images = [Image.fromarray(array) for array in pictures(count, *shape, seed=seed)]
    return datasets.Dataset.from_dict({"id": range(count), "picture": images, "kind": labels(count, 3)}, features)


KIND = datasets.ClassLabel(names=["cat", "dog", "emu"])


def parquet(folder: Path, *shape: int) -> Path:
    """A folder as the hub keeps it."""
    folder.mkdir()
    table(20, *shape).to_parquet(folder / "train-00000-of-00001.parquet")
    table(6, *shape, seed=1).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def saved(folder: Path, *shape: int) -> Path:
    sets = {"train": table(20, *shape), "validation": table(6, *shape, seed=1)}
    datasets.DatasetDict(sets).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("make", [parquet, saved])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)], ids=["grey", "colour"])
def test_tables_on_the_disk_give_their_images_and_labels(
    tmp_path: Path, make: Callable[..., Path], shape: tuple[int, ...]
) -> None:
    data = huggingface(path=str(make(tmp_path / "table", *shape)))
    assert (data.event_shape, data.classes) == ((3 if len(shape) == 3 else 1, 9, 7), 3)
    for number, (dataset, count) in enumerate(((data.train, 20), (data.test, 6))):
        x, y = rows(dataset)
        expected = torch.from_numpy(pictures(count, *shape, seed=number))
        assert torch.equal(x, expected.unsqueeze(1) if len(shape) == 2 else expected.permute(0, 3, 1, 2))
        assert y.tolist() == labels(count, 3)


def test_a_folder_of_images_and_a_single_file(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder_of_images(tmp_path / "folder" / split, mode="RGB")
    data = huggingface(path=str(tmp_path / "folder"))
    assert (data.event_shape, data.classes, len(data.train), len(data.test)) == ((3, 10, 12), 2, 20, 20)
    file = parquet(tmp_path / "table", 8, 8) / "train-00000-of-00001.parquet"
    data = huggingface(path=str(file), test_fraction=0.25)
    assert (len(data.train), len(data.test)) == (15, 5)
    assert {*rows(data.train)[1].tolist(), *rows(data.test)[1].tolist()} == {0, 1, 2}


def test_rows_are_streamed_by_their_number_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = str(saved(tmp_path / "table", 8, 8, 3))
    streamed, resident = (huggingface(path=folder, streaming=streaming, size=6) for streaming in (True, None))
    assert type(resident.train) is TensorDataset
    assert type(streamed.train) is not TensorDataset
    for ours, theirs in zip(streamed[:2], resident[:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(rows(ours), rows(theirs), strict=True))


def test_columns_and_splits_can_be_named(tmp_path: Path) -> None:
    folder = str(parquet(tmp_path / "table", 8, 8))
    data = huggingface(path=folder, split_train="test", split_test="train", image="picture", label="id")
    assert (len(data.train), data.classes) == (6, 20)
    assert rows(data.train)[1].tolist() == list(range(6))
    assert huggingface(path=folder, label="none").classes == 0
    for options, message in (
        ({"split_train": "trian"}, "no split of huggingface:.* named 'trian'; did you mean 'train'"),
        ({"split_test": "tset"}, "named 'tset'; did you mean 'test'"),
        ({"image": "pictures"}, "no column of images of .* named 'pictures'; did you mean 'picture'"),
        ({"label": "kinds"}, "no column of .* named 'kinds'; did you mean 'kind'"),
        ({"label": "picture"}, "label = picture: that column .* does not hold whole numbers"),
        ({"test_fraction": 0.5}, "test_fraction = 0.5: .* has the test set 'test'"),
    ):
        with pytest.raises(gk.GenkitError, match=message):
            huggingface(path=folder, **options)


def test_what_is_no_dataset_of_images_is_refused(here: Genkit, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "words"))
    with pytest.raises(gk.DataUnavailable, match="has no column of images; its columns are text"):
        huggingface(path=str(tmp_path / "words"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(gk.DataUnavailable, match="empty cannot be read"):
        huggingface(path=str(tmp_path / "empty"))
    done = here(*train("mnist_vae", "huggingface:nobody/nothing", tmp_path / "run"), check=False)
    refused(done, "huggingface:nobody/nothing is no file or folder here, and cannot be had from the hub")


def test_a_model_in_colour_of_a_table_s_images_works_throughout(
    here: Genkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet(tmp_path / "table", 16, 16, 3)
    monkeypatch.chdir(tmp_path)
    settings = ["dataset.streaming=true", "encoder.width=4", "decoder.width=4", "training.workers=0"]
    here(*train("shapes_vae", "huggingface:table", Path("run"), *settings))
    monkeypatch.chdir(tmp_path / "run")  # the path in the recipe does not depend on where one stands
    works_throughout(here, tmp_path / "run", tmp_path / "bundle")


# WebDataset


def shards(folder: Path, count: int = 24, *, label: bool = True, mode: str = "L", ending: str = "png") -> str:
    """Shards by WebDataset's own writer, 8 samples each; their pattern."""
    folder.mkdir()
    shape = (10, 12) if mode == "L" else (10, 12, 3)
    with wds.ShardWriter(str(folder / "%04d.tar"), maxcount=8, verbose=0) as writer:
        for i, array in enumerate(pictures(count, *shape)):
            sample = {"__key__": f"n/{i:03d}", ending: Image.fromarray(array), "json": {"number": i}}
            writer.write({**sample, "cls": 3 * i % 10} if label else sample)
    return f"{folder}/{{0000..{count // 8 - 1:04d}}}.tar"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_shards_give_what_webdataset_reads_of_them(tmp_path: Path) -> None:
    pattern = shards(tmp_path / "a")
    data = webdataset(train=pattern, test=shards(tmp_path / "b", 8))
    assert (data.event_shape, data.classes, len(data.train), len(data.test)) == ((1, 10, 12), 10, 24, 8)
    x, y = rows(data.train)
    theirs = list(wds.WebDataset(pattern, shardshuffle=False).decode("l8").to_tuple("png", "cls"))
    gc.collect()  # WebDataset leaves closing its files to it
    assert torch.equal(x[:, 0], torch.from_numpy(np.stack([image for image, _ in theirs])))
    assert y.tolist() == [number for _, number in theirs]


def test_shards_are_streamed_or_resident_with_the_same_images(tmp_path: Path) -> None:
    pattern = shards(tmp_path / "a", mode="RGB")
    streamed, resident = (webdataset(train=pattern, test_fraction=0.25, streaming=s) for s in (True, False))
    assert type(streamed.train) is not TensorDataset
    assert type(resident.train) is TensorDataset
    assert (streamed.event_shape, len(streamed.test)) == ((3, 10, 12), 6)
    for ours, theirs in zip(streamed[:2], resident[:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(rows(ours), rows(theirs), strict=True))


def test_several_patterns_and_samples_without_labels(tmp_path: Path) -> None:
    one, two = shards(tmp_path / "a", 8, label=False), shards(tmp_path / "b", 16)
    for patterns in (f"{one}::{two}", [one, two]):
        data = webdataset(train=patterns, test=one)
        assert (len(data.train), data.classes) == (24, 0)
    assert len(rows(data.train)) == 1


def packed(path: Path, files: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            (path.parent / "file").write_bytes(content)
            archive.add(path.parent / "file", name)
    return path


def test_shards_that_cannot_be_used_are_named(here: Genkit, tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    Image.new("L", (4, 4)).save(picture)
    png = picture.read_bytes()
    cut = png[:-25]
    for name, files, message in (
        ("none", {}, r"none\.tar cannot be read: No such file"),
        (
            "two",
            {"a.png": png, "a.jpg": png, "b.png": png, "b.jpg": png},
            "'a' has 2 images; its files end in png, jpg",
        ),
        ("text", {"a.txt": b"hello"}, r"has 0 images; .*--set dataset\.image=ENDING"),
        ("word", {"a.png": png, "a.cls": b"cat"}, r"a\.cls holds b'cat'; a label is a whole number"),
        ("cut", {"a.png": cut, "b.png": cut}, r"image 0 \(.*cut\.tar, byte \d+\) cannot be read"),
        ("no", {"a.png": b"no", "b.png": b"no"}, r"no\.tar, byte \d+: there is no image of a known format"),
    ):
        path = tmp_path / f"{name}.tar"
        if files:
            packed(path, files)
        with pytest.raises(gk.DataUnavailable, match=message):
            rows(webdataset(train=str(path), test_fraction=0.5, size=4, streaming=False).train)
    packed(tmp_path / "z.tar.gz", {"a.png": png}, "w:gz")
    with pytest.raises(gk.DataUnavailable, match=r"z\.tar\.gz is damaged or compressed"):
        webdataset(train=str(tmp_path / "z.tar.gz"))
    with pytest.raises(gk.DataUnavailable, match="shards are read at any place, so they have to be files; fetch it"):
        webdataset(train="https://example.org/0.tar")
    assert len(webdataset(train=str(tmp_path / "two.tar"), test_fraction=0.5, image="JPG").train) == 1
    shard = packed(tmp_path / "cut.tar", {"a.png": png * 99, "b.png": png})
    shard.write_bytes(shard.read_bytes()[:3000])
    done = here(*train("mnist_vae", f"webdataset:{shard}", tmp_path / "run"), check=False)
    refused(done, f"{shard} is damaged or compressed")


class Interrupt:
    """A person who presses Ctrl-C in the middle of the second epoch."""

    @gk.hookimpl
    def genkit_step_ended(self, epoch: int) -> None:
        if epoch == 2:
            signal.raise_signal(signal.SIGINT)


def carried_out(pattern: str, run: Path, plugins: gk.Plugins, workers: int) -> str:
    settings = [f"dataset=webdataset:{pattern}", "dataset.test_fraction=0.25", *TINY]
    settings[-2] = f"training.workers={workers}"
    resume = run.exists()
    plan = session.plan(
        plugins.registry,
        model=None if resume else "mnist_vae",
        settings=settings,
        training={"epochs": 3, "batch_size": 4},
        out=run,
        resume=resume,
    )
    return session.carry_out(plan, plugins, device="cpu", data_dir=None, init_from=None)[1]


def test_shards_are_taken_up_again_in_the_middle_of_an_epoch_to_the_same_bits(tmp_path: Path) -> None:
    pattern = shards(tmp_path / "a")
    assert carried_out(pattern, tmp_path / "whole", gk.load_plugins(), workers=0) == "finished"
    stopped = gk.load_plugins()
    stopped.observe("person", Interrupt())
    assert carried_out(pattern, tmp_path / "run", stopped, workers=2) == "SIGINT"
    position = gk.Run(tmp_path / "run").checkpoints()[-1].position
    assert position.epoch == 1
    assert position.batch > 0
    assert carried_out(pattern, tmp_path / "run", gk.load_plugins(), workers=0) == "finished"
    weights = "checkpoints/epoch_0003/weights.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_a_model_of_shards_works_throughout(here: Genkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path / "shards", mode="RGB", ending="jpg")
    monkeypatch.chdir(tmp_path)
    settings = ["dataset.size=8", "dataset.test_fraction=0.25", *TINY]
    here(*train("mnist_vae", "webdataset:shards/{0000..0002}.tar", Path("run"), *settings))
    monkeypatch.chdir(tmp_path / "run")
    works_throughout(here, tmp_path / "run", tmp_path / "bundle")


# The page


def test_the_page_has_every_dataset_and_every_option_of_those_that_are_here_by_name() -> None:
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    registry = gk.load_plugins().registry
    assert all(f"`{name}" in page for name in registry.names("dataset"))
    for factory in (torchvision, huggingface, webdataset):
        for option in inspect.signature(factory).parameters:
            assert option == "data_dir" or f"`{option}" in page or f"dataset.{option}" in page, option


# What is not installed


@pytest.mark.parametrize(("name", "library"), [("huggingface", "datasets"), ("webdataset", "webdataset")])
def test_a_library_that_is_not_installed_costs_one_line_that_installs_it(
    tmp_path: Path, name: str, library: str
) -> None:
    hidden = f"import sys; sys.modules[{library!r}] = None; from genkit.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", hidden, *map(str, train("mnist_vae", f"{name}:{tmp_path}", tmp_path / "run"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    refused(done, f"the dataset {name} needs {library}", f'pip install "genkit-torch[{name}]"')
    assert not tree(tmp_path)
