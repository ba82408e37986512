"""The pages of the documentation as sessions: their blocks are run, and what they show is what is printed.

A page is read from its top, in a folder of its own:

- ``console`` holds commands, a line each. ``genkit`` runs in this process, everything else in a shell. ``pip install``
  installs a folder that is there; of what an index would give it is asked whether it is here.
- ``python`` runs in one namespace a page.
- ``text`` directly after one of these is what it prints.
- A block with ``title="FILE"`` is written there by the reader. After ``<!-- shown -->`` the file is there already, and
  has the block in it.
- ``<!-- given: NAME ... -->`` says what lies in the folder at the beginning, of ``GIVEN``.
- What a page shows that begins "Written by `python -m PROGRAM`" is that program's.
- ``<!-- not run: REASON -->`` before a block excuses it, and ``<!-- run by tests/X.py -->`` says who else runs it, or,
  where no block follows directly, all of them from there on.

``python tests/pages.py PAGE ...`` runs pages as they are printed, and writes into them what is printed. The tests train
less, and so they do not compare the numbers that come after a training.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import distribution
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import typer
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from PIL import Image

import genkit
from genkit import session
from genkit.cli import app, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

LIMITS = {"mnist": ["dataset.limit=128"], "drawn_shapes": ["dataset.train_size=128", "dataset.test_size=64"]}
"""By the dataset of a model: what makes a training short."""
_OFFLINE = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
"""Of pip: everything that it would fetch is there."""
_MODULES = "".join(f'{name}() {{ python -m {name} "$@"; }}\n' for name in ("genkit", "pip", "pytest"))
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)
_TIME = re.compile(r"[\d.,]+(?= ?(?:s|ms|min|images/s)\b)")
_NUMBER = re.compile(r"-?\d[\d.,]*(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: ``lines`` of the page, the fences apart; ``excuse``: why it is not run, or who else runs it."""

    language: str
    title: str
    text: str
    lines: tuple[int, int]
    shown: bool = False
    output: bool = False
    excuse: str = ""


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    found: list[Block] = []
    text = page.read_text()
    writer = re.search(r"^Written by `python -m (benchmarks\.\w+)`", text, re.MULTILINE)
    rest = f"run by {writer[1].replace('.', '/')}.py" if writer else ""
    for before, token in pairwise([None, *MarkdownIt().parse(text)]):
        comment = _COMMENT.fullmatch(before.content.strip()) if before and before.type == "html_block" else None
        said = comment[1] if comment else ""
        if token.type not in ("fence", "code_block"):
            rest = said if said.startswith("run by ") else rest
            continue
        language, _, more = token.info.partition(" ")
        title = re.search(r'title="(.+?)"', more)
        runs = bool(found) and before is not None and before.type == "fence" and not found[-1].output
        found.append(
            Block(
                language,
                title[1] if title else "",
                token.content,
                (token.map[0] + 1, token.map[1] - 1),
                said == "shown",
                runs and language == "text" and found[-1].language in ("console", "python"),
                said if said.startswith(("run by ", "not run: ")) else rest,
            )
        )
    return found


def commands_of(block: Block) -> list[str]:
    """The lines of a block of commands; one that ends with a backslash goes on in the next."""
    return block.text.replace("\\\n", " ").splitlines()


@dataclass
class Session:
    """A page that is being run in ``folder``; ``quick``: with little training."""

    page: Path
    folder: Path
    quick: bool = True
    path: list[Path] = field(default_factory=list)
    """Where what was installed is imported from."""
    module: ModuleType = field(default_factory=lambda: ModuleType("page"))
    """Where what is typed in Python lives."""
    trained: bool = False
    """Whether numbers may differ from those of the page."""

    def run(self) -> Iterator[tuple[Block, str]]:
        """Runs the page; gives every block that is to show something, with what it should."""
        for name in _given(self.page):
            _put(name, self.folder)
            self.trained |= name in ("runs/first", "bundle")
        before = list(sys.path)
        sys.path.insert(0, str(self.folder))
        sys.modules[self.module.__name__] = self.module
        printed = ""
        try:
            with contextlib.chdir(self.folder), mock.patch.object(genkit, "train", self._train(genkit.train)):
                for block in blocks_of(self.page):
                    if block.output and not block.excuse:
                        yield block, printed
                    elif not block.excuse:
                        try:
                            printed = self._run(block)
                        except Exception as error:
                            raise AssertionError(f"{self.page}:{block.lines[0]}: {error}") from error
                        if block.shown:
                            yield block, printed
        finally:
            sys.path[:] = before
            del sys.modules[self.module.__name__]
            self._forget()

    def _run(self, block: Block) -> str:
        if block.title:
            file = self.folder / block.title
            if block.shown:
                return file.read_text()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
            return ""
        self._forget()
        if block.language == "console":
            return "".join(map(self._command, commands_of(block)))
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(block.text, f"{self.page.name}:{block.lines[0]}", "exec"), vars(self.module))
            return printed.getvalue()
        raise AssertionError(f"nothing runs a block of {block.language!r}; give it a title, or say why it is not run")

    def _command(self, line: str) -> str:
        words = shlex.split(line, comments=True)
        if words[:2] == ["pip", "install"]:
            return "".join(self._install(shlex.split(part)[2:]) for part in line.split(" && "))
        if words[0] != "genkit" or "|" in words:
            return self._shell(line)
        words = self._shortened(words[1:])
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()) as said:
            status = main(words)
        assert status == 0, f"{line}\n{printed.getvalue()}{said.getvalue()}"
        return printed.getvalue()

    def _shell(self, line: str) -> str:
        places = [*map(str, self.path), *filter(None, [os.environ.get("PYTHONPATH")])]
        temporary = self.folder.with_name(f"{self.folder.name}-inner")
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join(places),
            "PYTEST_ADDOPTS": f"-p no:cacheprovider --basetemp {temporary}",
        }
        done = subprocess.run(
            ["bash", "-ec", _MODULES + line], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _install(self, words: list[str]) -> str:
        for word in (word for word in words if not word.startswith("-")):
            if (source := self.folder / word).is_dir():
                site = self.folder.with_name(f"{self.folder.name}-site")
                pip = [sys.executable, "-m", "pip", "install", *_OFFLINE, "--target", str(site), str(source)]
                subprocess.run(pip, check=True)
                self.path += [source, site] if "-e" in words else [site]  # what is edited comes before the copy
                sys.path[:0] = map(str, self.path)
                importlib.invalidate_caches()
            else:
                wanted = Requirement(word)
                if find_spec(wanted.name) is None:  # a module often has its distribution's name
                    offered = distribution(wanted.name).metadata.get_all("Provides-Extra") or []
                    assert wanted.extras <= {*offered}, f"{word}: it has no such extra"
        return ""

    def _shortened(self, words: list[str]) -> list[str]:
        """The words of a command with less to compute, where that is what it does."""
        if not self.quick or words[0] not in ("train", "evaluate"):
            return words
        if words[0] == "evaluate":
            return [*words, "--samples", "2"]
        self.trained = True
        model = words[words.index("--model") + 1] if "--model" in words else ""
        limits = _limits(model) if not any(word.startswith("dataset=") for word in words) else []
        settings = [word for limit in limits for word in ("--set", limit)]
        return words if "--recipe" in words else [*words, "--epochs", "1", *settings]

    def _train(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """``genkit.train``, with less to compute."""

        def quickly(model: Any = None, /, **options: Any) -> Any:
            self.trained = True
            settings = options.get("settings", {})
            limits = {} if "dataset" in settings else dict(limit.split("=") for limit in _limits(model))
            return train(model, **{**options, "epochs": 1, "settings": {**settings, **limits}})

        return quickly if self.quick else train

    def _forget(self) -> None:
        """Has what the page has written imported anew."""
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(self.folder)):
                del sys.modules[name]


def same(shown: str, printed: str, numbers: bool) -> bool:
    """Whether a page shows what was printed, but for times, spaces, and, without ``numbers``, for these.

    Lines that then are the same, as those of the epochs are, count once, where the last of them is.
    """

    def comparable(text: str) -> list[str]:
        text = _TIME.sub("#", text) if numbers else _NUMBER.sub("#", text)
        return list(dict.fromkeys(" ".join(line.split()) for line in reversed(text.splitlines())))

    return comparable(shown) == comparable(printed)


def _limits(model: object) -> list[str]:
    registry = genkit.load_plugins().registry
    if model not in registry.names("model"):
        return []
    recipe = registry.get("model", str(model)).load()
    return LIMITS.get(recipe.dataset.use, [])


# What a session may begin with


def _given(page: Path) -> list[str]:
    return [name for names in re.findall(r"<!-- given: (.*?) -->", page.read_text()) for name in names.split()]


def _put(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(_made(name), folder / name)


_SHARED = tempfile.TemporaryDirectory()


@cache
def _made(name: str) -> Path:
    """One of ``GIVEN``, made once."""
    path = Path(_SHARED.name) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    GIVEN[name](path)
    return path


def _run(path: Path) -> None:
    genkit.train("mnist_vae", epochs=1, settings={"dataset.limit": 256}, out=path, device="cpu", show_progress=False)


def _bundle(path: Path) -> None:
    genkit.load(_made("runs/first"), device="cpu").export(path)


def _photos(path: Path) -> None:
    random = np.random.default_rng(0)
    for i in range(40):
        folder = path / ("cats", "dogs")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (72, 80, 3), np.uint8)).save(folder / f"{i}.png")


def _shards(path: Path) -> None:
    path.mkdir()
    photos = sorted(_made("photos").rglob("*.png"))
    for shard in range(4):
        with tarfile.open(path / f"{shard:04}.tar", "w") as tar:
            for photo in photos[shard::4]:
                tar.add(photo, photo.name)
                label = tarfile.TarInfo(f"{photo.stem}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(b"1" if photo.parent.name == "dogs" else b"0"))


def _scans(path: Path) -> None:
    photos = sorted(_made("photos").rglob("*.png"))
    path.mkdir()
    rows = [f"{shutil.copy(photo, path / photo.name).name},{int(photo.parent.name == 'dogs')}\n" for photo in photos]
    (path / "labels.csv").write_text("".join(rows))


GIVEN: Mapping[str, Callable[[Path], None]] = {
    "runs/first": _run,
    "bundle": _bundle,
    "photos": _photos,
    "scans": _scans,
    "shards": _shards,
}


# Commands that are not run


def _leaves(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield words, command
        return
    for word, each in command.commands.items():
        yield from _leaves(each, *words, word)


COMMANDS: dict[tuple[str, ...], Any] = dict(_leaves(typer.main.get_command(app)))


def accept(words: list[str], folder: Path) -> None:
    """Parses the words after ``genkit``; what they would train is put together, but for its data."""
    name = tuple(words[:2]) if tuple(words[:2]) in COMMANDS else tuple(words[:1])
    given = COMMANDS[name].make_context("genkit", words[len(name) :]).params
    registry = genkit.load_plugins().registry
    if name == ("train",) and given["model"] in registry.names("model"):
        settings, out = given["set_"] or [], folder / "run"
        session.plan(registry, model=given["model"], settings=settings, training={}, out=out, resume=False)


def write(page: Path) -> None:
    """Runs a page as it is printed, and writes what is printed into it."""
    lines = page.read_text().splitlines()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "page"
        place.mkdir()
        found = [(block, text) for block, text in Session(page, place, quick=False).run()]
    for block, text in reversed(found):
        if not (block.shown and block.text in text) and not same(block.text, text, numbers=True):
            lines[slice(*block.lines)] = text.splitlines()
    page.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    for each in parser.parse_args().pages:
        write(each.resolve())
