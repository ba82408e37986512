"""The documentation: its site is built, nothing that a person can use is missing from it, and its commands exist."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import typer

import genkit
from genkit import hookspecs, session
from genkit.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def leaves(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield words, command
        return
    for word, each in command.commands.items():
        yield from leaves(each, *words, word)


COMMANDS = dict(leaves(typer.main.get_command(app)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as it is published: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_every_command_and_option_is_explained(site: Path) -> None:
    page = text_of(site / "reference" / "commands" / "index.html")
    for words, command in COMMANDS.items():
        assert command.help, words
        assert " ".join(("genkit", *words)) in page
        for option in command.params:
            if option.name != "help":
                assert option.help or option.param_type_name == "argument", (words, option.name)
                assert all(spelling in page for spelling in option.opts if spelling.startswith("-")), option.opts


def test_every_hook_and_every_public_name_is_explained(site: Path) -> None:
    page = text_of(site / "reference" / "hooks" / "index.html")
    for name, hook in vars(hookspecs).items():
        if name.startswith("genkit_"):
            assert inspect.getdoc(hook), name
            assert name in page
            assert all(argument in page for argument in inspect.signature(hook).parameters), name
    page = text_of(site / "reference" / "api" / "index.html")
    for name in genkit.__all__:
        thing = getattr(genkit, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name
        if getattr(thing, "__module__", "genkit").startswith("genkit."):
            assert re.search(rf"\b{name}\b", page), name


def test_nothing_of_the_site_comes_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|source|iframe)[^>]*\bsrc="([^"]+)"', page.read_text())
        loaded += re.findall(r'<link[^>]*rel="(?:stylesheet|icon|preload)"[^>]*href="([^"]+)"', page.read_text())
        assert not [address for address in loaded if "//" in address], page.name


def commands_of(page: Path) -> list[list[str]]:
    blocks = re.findall(r"^```(?:console)?\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("genkit ")]


@pytest.mark.parametrize("page", [pytest.param(p, id=p.relative_to(ROOT).as_posix()) for p in PAGES if commands_of(p)])
def test_the_commands_of_a_page_exist_and_what_they_train_can_be_made(page: Path, tmp_path: Path) -> None:
    registry = genkit.load_plugins().registry
    for words in commands_of(page):
        name = tuple(words[:2]) if tuple(words[:2]) in COMMANDS else tuple(words[:1])
        command = COMMANDS[name]
        given = command.make_context("genkit", words[len(name) :]).params
        if name == ("train",) and given["model"] in registry.names("model"):
            out, settings = tmp_path / "run", given["set_"] or []
            session.plan(registry, model=given["model"], settings=settings, training={}, out=out, resume=False)
