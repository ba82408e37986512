"""The documentation: its site is built, nothing that a person can use is missing from it, and it does what it shows."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import runpy
import shlex
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pages
import pytest
from pages import blocks_of

import genkit
from genkit import hookspecs


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as it is published: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=pages.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_every_command_and_option_is_explained(site: Path) -> None:
    page = text_of(site / "reference" / "commands" / "index.html")
    for words, command in pages.COMMANDS.items():
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


def test_every_field_of_a_bundle_is_explained() -> None:
    page = (pages.ROOT / "docs" / "bundle.md").read_text()
    schema = json.loads(genkit.manifest_schema())
    tables = re.findall(r"<!-- fields: (\w+) -->\n((?:\|.*\n)+)", page)
    explained = {
        record: {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in row.split(", ")}
        for record, table in tables
    }
    records = {"Manifest": schema, **schema["$defs"]}
    assert explained == {name: {f"`{field}`" for field in record["properties"]} for name, record in records.items()}


def test_nothing_of_the_site_comes_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|source|iframe)[^>]*\bsrc="([^"]+)"', page.read_text())
        loaded += re.findall(r'<link[^>]*rel="(?:stylesheet|icon|preload)"[^>]*href="([^"]+)"', page.read_text())
        assert not [address for address in loaded if "//" in address], page.name


EXCUSED = {
    "README.md": {"not run: each makes an environment, and the first trains for minutes"},
    "docs/architecture.md": {"not run: a drawing"},
    "docs/datasets.md": {"not run: the data are downloaded"},
    "docs/trackers.md": {"not run: it serves until it is stopped", "run by tests/plugins/test_trackers.py"},
    "docs/deploy.md": {"run by tests/exporters/test_recipes.py"},
    "docs/matrix.md": {"run by benchmarks/matrix.py"},
    "docs/plugins/faults.md": {"run by tests/test_plugin_faults.py"},
    "docs/models/likelihoods.md": {"not run: days of a GPU"},
    "docs/plugins/first-plugin.md": {"run by tests/test_new_plugin.py", "run by tests/test_first_plugin.py"},
    **{
        f"docs/plugins/{kind}.md": {"run by tests/test_new_plugin.py"}
        for kind in ("component", "dataset", "exporter", "model", "runtime", "tracker")
    },
    "docs/python.md": {"run by tests/test_python.py"},
    "docs/runtimes.md": {
        "run by tests/exporters/test_runtimes.py",
        "run by tests/tools.py",
        "run by benchmarks/matrix.py",
    },
    "docs/scaling.md": {
        "run by tests/training/test_strategies.py",
        "run by tests/training/test_team.py",
        "not run: it takes two machines",
        "not run: it takes a cluster",
    },
    "docs/web.md": {"run by tests/exporters/test_web.py"},
}
"""What of the pages is not run as a session, and why."""


def name_of(page: Path) -> str:
    return page.relative_to(pages.ROOT).as_posix()


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in pages.PAGES if blocks_of(page)])
def test_every_block_of_a_page_runs_and_the_page_shows_what_is_printed(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    running = pages.Session(page, folder)
    for block, printed in running.run():
        shown = block.text in printed if block.shown else pages.same(block.text, printed, not running.trained)
        remedy = f"python tests/pages.py {name_of(page)}"
        assert shown, f"{name_of(page)}:{block.lines[0]} ({remedy})\n{block.text}is not\n{printed}"
    for block in blocks_of(page):
        if block.excuse and block.language == "console":
            for line in pages.commands_of(block):
                if line.startswith("genkit "):
                    pages.accept(shlex.split(line, comments=True)[1:], tmp_path)


def test_few_blocks_are_excused_and_somebody_runs_them() -> None:
    excuses = {name_of(page): {b.excuse for b in blocks_of(page) if b.excuse} for page in pages.PAGES}
    assert {page: found for page, found in excuses.items() if found} == EXCUSED
    for excuse in set().union(*EXCUSED.values()):
        assert excuse.startswith("not run: ") or (pages.ROOT / excuse.removeprefix("run by ")).is_file(), excuse


@pytest.mark.filterwarnings("ignore:'benchmarks:RuntimeWarning")  # of runpy, where a test has imported it before
@pytest.mark.parametrize(
    "command",
    sorted({m for page in pages.PAGES for m in re.findall(r"`python -m (benchmarks\.[^`]+)`", page.read_text())}),
)
def test_the_program_takes_the_arguments_that_a_page_gives_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Taken(BaseException):
        """Instead of hours of measuring."""

    def parse(self: argparse.ArgumentParser, *arguments: Any) -> None:
        original(self, *arguments)
        raise Taken

    original = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(Taken):
        runpy.run_module(sys.argv[0], run_name="__main__")
