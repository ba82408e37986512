"""Images: a folder of the user's own, whatever its files are, and shapes that are drawn."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from genkit_images.folder import decode, images
from genkit_images.shapes import shapes
from helpers import Genkit, picture_size, tree
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

import genkit
from genkit import images as core

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def rows(dataset: Any) -> list[Tensor]:
    """What a dataset holds, collated: x, and the labels if it has any."""
    items = [tuple(dataset[i]) for i in range(len(dataset))]
    return list(default_collate(items))


def everything(data: genkit.Data) -> Tensor:
    return torch.cat([rows(data.train)[0], rows(data.test)[0]])


def noise(path: Path, seed: int, size: tuple[int, int] = (20, 24), **options: Any) -> Path:
    """An image that differs from all others, smooth enough for JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


def filled(folder: Path, count: int = 40, ending: str = "png") -> Path:
    for i in range(count):
        noise(folder / f"{i:03d}.{ending}", i)
    return folder


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def one(tmp_path: Path, picture: Image.Image, name: str, size: Any = 8, channels: Any = 3, **options: Any) -> Tensor:
    """What a file becomes, float (channels, height, width)."""
    folder = tmp_path / "one"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for copy in ("a", "b"):  # one for each set
        picture.save(folder / f"{copy}_{name}", **options)
    x = everything(images(path=folder, size=size, channels=channels))
    assert torch.equal(x[0], x[1])
    assert x.dtype == torch.uint8
    return x[0].float()


def halves(mode: str, left: Any, right: Any) -> Image.Image:
    picture = Image.new(mode, (16, 16), left)
    picture.paste(right, (8, 0, 16, 16))
    return picture


def is_halves(x: Tensor, left: tuple[int, ...], right: tuple[int, ...], tolerance: float = 1.0) -> bool:
    """Whether an 8 x 8 image is ``left`` at its left and ``right`` at its right, away from the edge between."""
    sides = [(x[:, :, :2], left), (x[:, :, -2:], right)]
    return all((part - torch.tensor(c)[:, None, None]).abs().max() <= tolerance for part, c in sides)


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    picture = halves("P", 0, 1)
    picture.putpalette([value for colour in colours for value in colour])
    return picture


@pytest.mark.parametrize(
    ("picture", "name", "options", "left", "right", "tolerance"),
    [
        (halves("RGB", RED, GREEN), "x.png", {}, RED, GREEN, 1),
        (halves("RGB", RED, GREEN), "x.jpg", {"quality": 95, "subsampling": 0}, RED, GREEN, 5),
        (halves("RGB", RED, BLUE), "x.webp", {"lossless": True}, RED, BLUE, 1),
        (halves("RGB", RED, BLUE), "x.bmp", {}, RED, BLUE, 1),
        (halves("RGB", RED, BLUE), "X.TIFF", {}, RED, BLUE, 1),
        (palette(RED, GREEN), "x.gif", {"save_all": True, "append_images": [palette(BLUE, BLUE)]}, RED, GREEN, 1),
        (halves("L", 10, 200), "x.png", {}, (10,) * 3, (200,) * 3, 1),
        (halves("1", 0, 1), "x.png", {}, (0,) * 3, WHITE, 1),
        (palette(RED, BLUE), "x.png", {}, RED, BLUE, 1),
        (palette(RED, BLUE), "x.png", {"transparency": 1}, RED, WHITE, 1),
        (halves("RGBA", (*RED, 255), (*BLUE, 0)), "x.png", {}, RED, WHITE, 1),
        (halves("RGBA", (0, 0, 0, 128), (*BLUE, 255)), "x.png", {}, (127,) * 3, BLUE, 1),
        (halves("LA", (50, 255), (0, 0)), "x.png", {}, (50,) * 3, WHITE, 1),
        (halves("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "x.jpg", {"quality": 95}, RED, (0, 0, 0), 5),
        (halves("I;16", 257 * 40 + 100, 65535), "x.png", {}, (40,) * 3, WHITE, 1),
        (halves("I;16", 257 * 40 + 100, 65535), "x.tif", {}, (40,) * 3, WHITE, 1),
        (halves("I;16", 257 * 40 + 100, 65535), "x.pgm", {}, (40,) * 3, WHITE, 1),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else value if isinstance(value, str) else "",
)
def test_files_of_every_kind_show_their_colours(
    tmp_path: Path,
    picture: Image.Image,
    name: str,
    options: dict[str, Any],
    left: tuple[int, ...],
    right: tuple[int, ...],
    tolerance: float,
) -> None:
    assert is_halves(one(tmp_path, picture, name, **options), left, right, tolerance)


def test_one_channel_is_the_luminance(tmp_path: Path) -> None:
    assert is_halves(one(tmp_path, halves("RGB", RED, WHITE), "x.png", channels=1), (76,), (255,))
    assert is_halves(one(tmp_path, halves("I;16", 257 * 40 + 100, 65535), "x.png", channels=1), (40,), (255,))


def test_a_camera_s_orientation_is_respected(tmp_path: Path) -> None:
    upright = halves("RGB", RED, BLUE)
    # stored as the camera held sideways sees it, with the note to turn it by a quarter
    stored, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    for name in ("x.jpg", "x.png"):
        assert is_halves(one(tmp_path, stored, name, exif=exif), RED, BLUE, 12), name
        assert not is_halves(one(tmp_path, stored, name), RED, BLUE, 12), name


def test_damaged_exif_data_do_not_cost_a_good_image(tmp_path: Path) -> None:
    assert is_halves(one(tmp_path, halves("RGB", RED, BLUE), "x.png", exif=b"no exif at all"), RED, BLUE)


def test_what_a_file_holds_counts_and_not_what_it_is_called(tmp_path: Path) -> None:
    assert is_halves(one(tmp_path, halves("RGB", RED, BLUE), "x.jpg", format="PNG"), RED, BLUE)


def test_the_shorter_side_is_fitted_and_the_centre_kept(tmp_path: Path) -> None:
    wide = Image.new("RGB", (90, 30), RED)
    wide.paste(GREEN, (30, 0, 60, 30))
    assert is_halves(one(tmp_path, wide, "x.png", size=30), GREEN, GREEN)
    x = one(tmp_path, wide, "x.png", size=(10, 30))
    assert x.shape == (3, 10, 30)
    assert is_halves(x, RED, RED)
    assert is_halves(x[:, :, 14:16], GREEN, GREEN)
    assert is_halves(one(tmp_path, wide.transpose(Image.Transpose.ROTATE_90), "x.png", size=30), GREEN, GREEN)


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_shrinking_averages_instead_of_picking_pixels(tmp_path: Path, name: str) -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    x = one(tmp_path, Image.fromarray(stripes), name, size=16)
    assert (x - 127.5).abs().max() < 4


def test_a_small_image_is_enlarged(tmp_path: Path) -> None:
    assert is_halves(one(tmp_path, halves("RGB", RED, BLUE).resize((4, 4)), "x.png", size=32), RED, BLUE, 12)


def expected_test_set(names: list[str], fraction: float) -> set[str]:
    return {name for name in names if int(sha256(name.encode()).hexdigest(), 16) / 16**64 < fraction}


def members(folder: Path, dataset: Any, size: int) -> list[str]:
    """Which files the images of a dataset are."""
    known = {}
    for path in sorted(folder.rglob("*.png")):
        x = decode(path, (3, size, size))
        known[x.numpy().tobytes()] = path.relative_to(folder).as_posix()
    return [known[x.numpy().tobytes()] for x in rows(dataset)[0]]


def test_the_split_goes_by_name_and_survives_new_files(tmp_path: Path) -> None:
    folder = filled(tmp_path / "pictures", 60)
    before = images(path=folder, size=8, test_fraction=0.25)
    names = sorted(path.name for path in folder.iterdir())
    test = expected_test_set(names, 0.25)
    assert 5 < len(test) < 25
    assert members(folder, before.test, 8) == sorted(test)
    assert members(folder, before.train, 8) == sorted(set(names) - test)
    for i in range(60, 90):
        noise(folder / f"more/{i}.png", i)
    after = images(path=folder, size=8, test_fraction=0.25, labels="none")
    assert set(members(folder, after.test, 8)) & set(names) == test
    assert len(after.train) + len(after.test) == 90


def test_two_images_are_enough_for_two_sets(tmp_path: Path) -> None:
    folder = filled(tmp_path / "pictures", 2)
    for fraction in (1e-9, 1 - 1e-9):
        data = images(path=folder, size=8, test_fraction=fraction)
        assert (len(data.train), len(data.test)) == (1, 1)


def test_sub_folders_are_labels_numbered_by_name(tmp_path: Path) -> None:
    for i, name in enumerate(["zebra", "ant/big", "ant/small", "mole"] * 10):
        noise(tmp_path / name / f"{i}.png", i)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.txt").write_text("no images here")
    data = images(path=tmp_path, size=8)
    assert data.classes == 3
    for dataset in (data.train, data.test):
        labels = rows(dataset)[1]
        assert labels.dtype == torch.int64
        tops = [name.partition("/")[0] for name in members(tmp_path, dataset, 8)]
        assert labels.tolist() == [["ant", "mole", "zebra"].index(top) for top in tops]


def test_folders_are_labels_only_where_every_image_is_in_one_of_several(tmp_path: Path) -> None:
    filled(tmp_path / "pictures" / "only", 6)
    data = images(path=tmp_path / "pictures", size=8)
    assert data.classes == 0
    assert len(rows(data.train)) == 1
    assert images(path=tmp_path / "pictures", size=8, labels="folders").classes == 1
    filled(tmp_path / "pictures" / "second", 6)
    assert images(path=tmp_path / "pictures", size=8).classes == 2
    assert images(path=tmp_path / "pictures", size=8, labels="none").classes == 0
    noise(tmp_path / "pictures" / "stray.png", 1)
    assert images(path=tmp_path / "pictures", size=8).classes == 0
    with pytest.raises(genkit.DataUnavailable, match=r"labels = folders: stray\.png in .* no sub-folder"):
        images(path=tmp_path / "pictures", size=8, labels="folders")


def test_only_images_that_are_meant_are_found(tmp_path: Path) -> None:
    filled(tmp_path, 4)
    filled(tmp_path / "deep" / "deeper", 3)
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "._000.png").write_text("what macOS leaves behind")
    filled(tmp_path / ".thumbnails", 2)
    (tmp_path / "deep" / "round").symlink_to(tmp_path)
    assert len(everything(images(path=tmp_path, size=8))) == 7
    assert len(everything(images(path=tmp_path, size=8, recursive=False))) == 4


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    filled(tmp_path / "elsewhere", 3)
    filled(tmp_path / "pictures" / "cats", 3)
    (tmp_path / "pictures" / "dogs").symlink_to(tmp_path / "elsewhere")
    assert images(path=tmp_path / "pictures", size=8).classes == 2


@pytest.mark.parametrize("labelled", [False, True])
def test_streamed_and_resident_images_are_the_same(tmp_path: Path, labelled: bool) -> None:
    for i in range(20):
        noise(tmp_path / (f"{i % 2}/{i}.jpg" if labelled else f"{i}.jpg"), i, (70, 50), quality=90)
    resident = images(path=tmp_path, size=(12, 16))
    streamed = images(path=tmp_path, size=(12, 16), memory_limit_mb=0)
    assert resident[2:] == streamed[2:] == ((3, 12, 16), 2 if labelled else 0)
    for ours, theirs in zip(resident[:2], streamed[:2], strict=True):
        assert type(ours) is TensorDataset
        assert type(theirs) is not TensorDataset
        assert all(torch.equal(a, b) for a, b in zip(rows(ours), rows(theirs), strict=True))


def test_the_memory_limit_is_that_of_the_decoded_images(tmp_path: Path) -> None:
    filled(tmp_path, 11)
    assert type(images(path=tmp_path, size=174, memory_limit_mb=1).train) is TensorDataset  # 11 * 3 * 174^2 < 10^6
    assert type(images(path=tmp_path, size=175, memory_limit_mb=1).train) is not TensorDataset


@pytest.mark.parametrize("limit", [0, 2000], ids=["streamed", "resident"])
def test_unreadable_files_can_be_left_out_with_a_warning(tmp_path: Path, limit: int) -> None:
    filled(tmp_path, 30)
    whole = images(path=tmp_path, size=8, memory_limit_mb=limit)
    bad = ["003.png", "017.png"]
    truncated(tmp_path / bad[0])
    (tmp_path / bad[1]).write_text("no image")
    with pytest.warns(genkit.PluginWarning, match=r"2 of the 30 images .* left out: 003\.png .*, 017\.png") as caught:
        data = images(path=tmp_path, size=8, unreadable="skip", memory_limit_mb=limit)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    for path in bad:
        (tmp_path / path).unlink()
    rest = images(path=tmp_path, size=8)
    for theirs, ours, before in zip(rest[:2], data[:2], whole[:2], strict=True):
        assert torch.equal(rows(theirs)[0], rows(ours)[0])
        assert len(ours) <= len(before)


def test_reading_says_something_only_if_it_takes_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, 4)
    images(path=tmp_path, size=8)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(core, "_PATIENCE", -1.0)
    monkeypatch.delenv("FORCE_COLOR", raising=False)  # to rich, it makes any stream a terminal
    images(path=tmp_path, size=8)
    assert capsys.readouterr() == ("", f"genkit: reading 4 images in {tmp_path}\n")


def test_reading_leaves_the_warning_filters_as_they_were(tmp_path: Path) -> None:
    filled(tmp_path, 4)
    before = list(warnings.filters)
    images(path=tmp_path, size=8, memory_limit_mb=0).train[0]
    assert warnings.filters == before


Arguments = Callable[[Path], list[str]]


def settings(path: Path, *more: str, model: str = "mnist_vae") -> list[Any]:
    """What makes a small model train on a folder, for a few steps."""
    given = [f"dataset.path={path}", "dataset.size=8", "encoder.hidden=16", "decoder.hidden=16", "latent_shape=[4]"]
    pairs = [part for setting in ("dataset=images", *given, *more) for part in ("--set", setting)]
    return ["train", "--model", model, *pairs, "--epochs", 1]


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) <= 2
    for part in parts:
        assert part in done.stderr


def broken_files(path: Path) -> None:
    filled(path, 30)
    for i in range(7):
        truncated(path / f"{i:03d}.png")
    noise(path / "photo.jpg", 50, (64, 64))
    truncated(path / "photo.jpg")


@pytest.mark.parametrize(
    ("prepare", "more", "parts"),
    [
        (lambda path: None, [], ["dataset.path = {path}: there is no such folder", "holds the images"]),
        (lambda path: path.write_text("a zip"), [], ["dataset.path = {path}: this is a file", "unpack"]),
        (lambda path: path.mkdir(), [], ["dataset.path = {path} holds no image", "two or more", ".png, .jpg"]),
        (lambda path: filled(path, 1), [], ["{path} holds 1 image", "two or more are needed"]),
        (lambda path: filled(path / "in", 5), ["dataset.recursive=false"], ["{path} holds no image"]),
        (
            broken_files,
            [],
            [
                "8 of the 31 images cannot be read: 000.png (",
                "004.png (",
                "and 3 more",
                "--set dataset.unreadable=skip",
            ],
        ),
        (
            lambda path: [truncated(noise(path / f"{i}.png", i)) for i in range(3)],
            ["dataset.unreadable=skip"],
            ["3 of the 3 images", "holds no image that can be read"],
        ),
        (lambda path: filled(path, 4), ["dataset.labels=folders"], ["000.png", "dataset.labels=none"]),
        (lambda path: filled(path, 4), ["dataset.size=0"], ["dataset.size", "greater than or equal to 1"]),
        (lambda path: filled(path, 4), ["dataset.channels=4"], ["dataset.channels = 4", "1 or 3"]),
        (lambda path: filled(path, 4), ["dataset.test_fraction=1"], ["dataset.test_fraction = 1", "less than 1"]),
    ],
    ids=[
        "no folder",
        "a file",
        "empty",
        "one image",
        "only deeper",
        "damaged",
        "nothing left",
        "no labels",
        "size",
        "channels",
        "fraction",
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused_at_the_start(
    here: Genkit, tmp_path: Path, prepare: Callable[[Path], object], more: list[str], parts: list[str]
) -> None:
    path = tmp_path / "pictures"
    prepare(path)
    before = tree(tmp_path)
    done = here(*settings(path, *more), "--out", tmp_path / "run", check=False)
    if "dataset.unreadable=skip" in more:
        warned, _, error = done.stderr.partition("\n")
        assert warned.startswith("warning: ")
        assert parts[0] in warned
        done, parts = subprocess.CompletedProcess([], done.returncode, done.stdout, error), parts[1:]
    refused(done, *(part.format(path=path) for part in parts))
    assert tree(tmp_path) == before


def test_a_folder_that_is_not_named_is_asked_for(here: Genkit, tmp_path: Path) -> None:
    done = here("train", "--model", "mnist_vae", "--set", "dataset=images", "--out", tmp_path / "run", check=False)
    refused(done, "dataset.path is not set", "--set dataset.path=")


def test_a_file_that_breaks_during_training_is_named(tmp_path: Path) -> None:
    filled(tmp_path, 4)
    data = images(path=tmp_path, size=8, memory_limit_mb=0)
    for path in tmp_path.iterdir():
        truncated(path)
    with pytest.raises(genkit.DataUnavailable, match=r"00\d\.png could be read at the start"):
        data.train[0]


@pytest.mark.parametrize("limit", [0, 2000], ids=["streamed", "resident"])
def test_a_folder_trains_through_the_command(
    here: Genkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    for i in range(24):
        noise(tmp_path / "pictures" / "ab"[i % 2] / f"{i}.jpg", i)
    truncated(tmp_path / "pictures" / "a" / "0.jpg")
    monkeypatch.chdir(tmp_path)
    options = (f"dataset.memory_limit_mb={limit}", "dataset.unreadable=skip", "training.workers=0")
    done = here(*settings(Path("pictures"), *options), "--out", "run")
    assert done.stderr.startswith("warning: ")
    assert "1 of the 24 images cannot be read and are left out: a/0.jpg" in done.stderr
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert math.isfinite(json.loads(line)["train"]["loss"])
    monkeypatch.chdir(tmp_path / "run")  # the path in the recipe does not depend on where one stands
    here("sample", tmp_path / "run")
    here("reconstruct", tmp_path / "run", "-n", 2)
    assert min(picture_size(tmp_path / "run" / "reconstructions.png")) > 0


def test_streamed_and_resident_images_train_to_the_same_weights(here: Genkit, tmp_path: Path) -> None:
    filled(tmp_path / "pictures", 24)
    weights = set()
    for limit in (0, 2000):
        options = (f"dataset.memory_limit_mb={limit}", "training.workers=0", "training.batch_size=8")
        here(*settings(tmp_path / "pictures", *options), "--out", tmp_path / str(limit))
        weights.add((tmp_path / str(limit) / "checkpoints/epoch_0001/weights.safetensors").read_bytes())
    assert len(weights) == 1


def test_shapes_have_the_documented_shapes_types_and_counts() -> None:
    train, test, event_shape, classes = shapes(size=24, train_size=301, test_size=150)
    assert (event_shape, classes) == ((3, 24, 24), 3)
    for dataset, count in ((train, 301), (test, 150)):
        x, labels = dataset.tensors  # type: ignore[attr-defined]
        assert x.shape == (count, *event_shape)
        assert (x.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert labels.bincount().min() > count / 5
        assert len(labels.unique()) == 3


def test_shapes_are_a_function_of_the_seed_and_the_sets_share_nothing() -> None:
    first = everything(shapes(train_size=50, test_size=50))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(everything(shapes(train_size=50, test_size=50)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(everything(shapes(train_size=333, test_size=50))[:50], first[:50])
    other = everything(shapes(train_size=50, test_size=50, seed=1))
    assert len(torch.cat([first, other]).flatten(1).unique(dim=0)) == 200


def test_each_shape_covers_the_area_and_has_the_colours_that_it_should() -> None:
    """The covered fraction of every image against the areas of a disc and of inscribed polygons."""
    x, labels = shapes(size=128, train_size=300, test_size=1).train.tensors  # type: ignore[attr-defined]
    background = x[:, :, 0, 0].float()
    for corner in ((0, -1), (-1, 0), (-1, -1)):
        assert (x[:, :, corner[0], corner[1]] == x[:, :, 0, 0]).float().mean() > 0.99
    difference = (x.float() - background[:, :, None, None]).abs().amax(1)
    strongest = difference.flatten(1).amax(1)
    assert strongest.min() > 0.59 * 255
    cover = difference / strongest[:, None, None]
    inside = cover.sum((1, 2))
    assert ((cover > 0.02) & (cover < 0.98)).flatten(1).any(1).all()  # antialiased edges
    ys, xs = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    middle = torch.stack([(cover * c).sum((1, 2)) / inside for c in (xs, ys)], 1)
    reach = ((xs - middle[:, :1, None]) ** 2 + (ys - middle[:, 1:, None]) ** 2).sqrt()
    radius = (reach * (cover > 0.5)).flatten(1).amax(1) + 0.5
    areas = torch.tensor([math.pi, 2.0, 3 * math.sqrt(3) / 4])[labels]
    assert (inside / (areas * radius**2) - 1).abs().max() < 0.12
    assert radius.min() > 0.19 * 128
    assert radius.max() < 0.41 * 128
    assert middle.std(0).min() > 10


@pytest.mark.parametrize("option", ["size=4", "train_size=0", "test_size=0", "seed=-1"])
def test_shapes_that_cannot_be_drawn_are_refused(here: Genkit, tmp_path: Path, option: str) -> None:
    done = here("train", "--model", "shapes_vae", "--set", f"dataset.{option}", "--out", tmp_path / "run", check=False)
    refused(done, f"dataset.{option.replace('=', ' = ')}", "greater than or equal to")
