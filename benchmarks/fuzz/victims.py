"""Small proven bundles, and copies of them to be damaged."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from genkit_onnx.exporter import OnnxExporter
from google.protobuf.message import DecodeError
from torch import Tensor, nn

import genkit

CANARY = "canary-7f3a"
"""The first bytes of every file outside of a bundle. No answer may contain it."""

_LARGE = 2**26
"""Bytes that no file has but one that was made large on purpose."""

Content = dict[str, Any]


# What is proven


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.mean, self.log_var = nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.hidden(x).tanh()
        return self.mean(h), self.log_var(h)


class _Decoder(nn.Module):
    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(latent, hidden), nn.Tanh(), nn.Linear(hidden, 6), nn.Sigmoid())

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (self.net(z),)


class _Labelled(_Decoder):
    def __init__(self) -> None:
        super().__init__(latent=5, hidden=4)
        self.labels = nn.Embedding(4, 3)

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # labels, too
        return super().forward(torch.cat([z, self.labels(condition)], dim=1))


class _Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        down, up = nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ConvTranspose2d(3, 1, 4, stride=2, padding=1)
        self.net = nn.Sequential(down, nn.BatchNorm2d(3), nn.GELU(), up)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.net(x),)


class _ToCodes(nn.Module):
    codebook: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.tensor([-1.0, 2.0, 5.0]))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return ((x.unsqueeze(2) - self.codebook).abs().argmin(2),)


class _FromCodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.codebook = nn.Embedding(3, 2)
        self.out = nn.Linear(4, 6)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (self.out(self.codebook(z).flatten(1)),)


def _floats(*shape: int) -> genkit.Input:
    return genkit.Input(
        shape,
        torch.float32,
        lambda n, g: torch.randn(n, *shape, generator=g),
        {"kind": "normal", "parameters": [0.0, 1.0]},
    )


def _whole(high: int, *shape: int) -> genkit.Input:
    return genkit.Input(
        shape,
        torch.int64,
        lambda n, g: torch.randint(high, (n, *shape), generator=g),
        {"kind": "integers", "parameters": [0, high]},
    )


def _with_a_tie(n: int, generator: torch.Generator) -> Tensor:
    """The eighth row of a large batch is drawn right between two entries of the codebook."""
    x = torch.randn(n, 2, generator=generator)
    x[7:8, 0] = 0.5
    return x


def _graphs() -> dict[str, list[genkit.Graph]]:
    unit = {"x": (0.0, 1.0)}
    image = genkit.Input((1, 6, 6), torch.float32, lambda n, g: torch.rand(n, 1, 6, 6, generator=g))
    mlp = [
        genkit.Graph("encoder", _Encoder(), {"x": _floats(6)}, ("mean", "log_var")),
        genkit.Graph("decoder", _Decoder(2, 5), {"z": _floats(2)}, ("x",), unit),
    ]
    conv = genkit.Graph("decoder", _Convolutions(), {"x": image}, ("y",), unit, {"x": "NCHW", "y": "NCHW"})
    codes = [
        genkit.Graph("encoder", _ToCodes(), {"x": genkit.Input((2,), torch.float32, _with_a_tie)}, ("codes",)),
        genkit.Graph("decoder", _FromCodes(), {"z": _whole(3, 2)}, ("x",)),
    ]
    labelled = genkit.Graph("decoder", _Labelled(), {"z": _floats(2), "condition": _whole(4)}, ("x",), unit)
    external = genkit.Graph("decoder", _Decoder(2, 150), {"z": _floats(2)}, ("x",), unit)
    return {
        "mlp": mlp,
        "conv": [conv],
        "codes": codes,
        "labelled": [labelled],
        "external": [external],
        "reduced": [genkit.Graph("decoder", _Decoder(2, 200), {"z": _floats(2)}, ("x",), unit)],
    }


SOURCES = ("mlp", "conv", "codes", "labelled", "external", "reduced")


def export_sources(directory: Path) -> None:
    """Exports the proven bundles that copies are taken of: a folder each."""
    torch.manual_seed(0)
    about: Content = {
        "recipe": {"name": "victim", "encoder": {"use": "mlp", "hidden": 5}},
        "spec": {"event_shape": [6], "latent_shape": [2], "value_range": [0.0, 1.0], "classes": 0},
        "prior": {"use": "standard_normal", "distribution": {"kind": "normal", "parameters": [0.0, 1.0]}},
        "checkpoint": {"epoch": 3, "step": 99},
        "versions": {"torch": torch.__version__},
    }
    for name, graphs in _graphs().items():
        exporter = OnnxExporter(inline_limit=0 if name == "external" else None)
        precisions: tuple[genkit.ReducedPrecision, ...] = ("fp16",) if name == "reduced" else ()
        exporter.export(graphs, directory / name, about=about, opset=18, runtimes=[], precisions=precisions)


# What is damaged


class Inapplicable(Exception):
    """A damage that the present state of the copy does not allow, as an earlier one has taken its object away."""


@dataclass
class Victim:
    """A copy of a proven bundle.

    Args:
        source: of ``SOURCES``.
        path: of the copy.
        outside: a directory beside it with canaries, in which damages may put more.
        random: that decides what is damaged.
    """

    source: str
    path: Path
    outside: Path
    random: random.Random
    kinds: list[str] = field(default_factory=list)

    @classmethod
    def take(cls, sources: Path, source: str, room: Path, seed: str) -> Victim:
        """A fresh copy in the empty directory ``room``."""
        shutil.copytree(sources / source, room / "bundle")
        outside = room / "outside"
        outside.mkdir()
        for name in ("secret", "weights.data"):
            (outside / name).write_text(f"{CANARY}\n{name * 40}\n")
        return cls(source, room / "bundle", outside, random.Random(seed))

    def files(self) -> list[Path]:
        """Every regular file, the manifest included."""
        found = [Path(path) for path, mode in members(self.path) if stat.S_ISREG(mode)]
        if not found:
            raise Inapplicable
        return sorted(found)

    def read(self, path: Path) -> bytes:
        """What is in a file, as far as that is one, and not longer than a test can wait."""
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGE:
            raise Inapplicable
        return path.read_bytes()

    def file(self) -> Path:
        """Any file: the manifest and the graphs as often as all the rest."""
        files = [path for path in self.files() if path.stat().st_size <= _LARGE]
        weights = [1 if "test_data" in path.parts else 8 for path in files]
        return self.random.choices(files, weights)[0]

    def content(self) -> Content:
        """The manifest as plain data."""
        try:
            content: Content = json.loads(self.read(self.path / "manifest.json"))
            _ = content["graphs"][0]["file"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise Inapplicable from error
        return content

    def write(self, content: Content, *, sealed: bool, raw: tuple[str, str] | None = None) -> None:
        """Writes the manifest, with the digest that its content has if it is to be ``sealed``.

        ``raw``: a string of the content, and what stands in the file instead of it: no JSON that Python would write.
        """
        text = json.dumps(content)
        if raw is not None:
            text = text.replace(json.dumps(raw[0]), raw[1])
        if sealed:
            with _no_limit_on_digits():
                rest = {key: value for key, value in json.loads(text).items() if key != "digest"}
                digest = hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
            text = text.replace(content["digest"], digest)
        (self.path / "manifest.json").write_text(text, encoding="utf-8", errors="surrogatepass")

    def reseal(self) -> None:
        """Brings the digests up to date with the files."""
        content = self.content()
        content["files"] = {
            path.relative_to(self.path).as_posix(): hashlib.sha256(self.read(path)).hexdigest()
            for path in self.files()
            if path.name != "manifest.json"
        }
        self.write(content, sealed=True)

    def graph(self) -> Content:
        """Any graph of the manifest, of whatever precision."""
        content = self.content()
        graph: Content = self.random.choice([*content["graphs"], *content["reduced"]])
        return graph

    def rewrite(self, change: Callable[[onnx.ModelProto], object]) -> None:
        """Changes any of the graphs, and seals the bundle."""
        file = self.path / self.graph()["file"]
        try:
            model = onnx.ModelProto.FromString(self.read(file))
        except DecodeError as error:
            raise Inapplicable from error
        change(model)
        file.write_bytes(model.SerializeToString())
        self.reseal()

    def vectors(self, *kinds: str) -> list[Path]:
        """The golden vectors of these kinds."""
        found = [path for path in self.files() if path.name.partition("_")[0] in kinds and path.suffix == ".pb"]
        if not found:
            raise Inapplicable
        return found


def members(directory: Path) -> Iterator[tuple[str, int]]:
    """Everything below, and its mode: links are not followed, and no depth is too deep."""
    folders = [str(directory)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                yield entry.path, mode
                if stat.S_ISDIR(mode):
                    folders.append(entry.path)


@contextmanager
def _no_limit_on_digits() -> Iterator[None]:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)
