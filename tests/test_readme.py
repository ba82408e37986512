"""What the README shows is what happens."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import command, environment_with
from helpers import Genkit, picture_size

from benchmarks import speed
from benchmarks.models import kept, pages
from genkit import DEPLOYMENT, load_plugins

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def _commands() -> list[list[str]]:
    lines = "".join(_blocks("console")).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("genkit ")]


def _run_all(genkit: Genkit, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    for arguments in commands:
        quick = ["--epochs", "1", "--set", "dataset.limit=256"] if arguments[0] == "train" else []
        if "--recipe" in arguments:
            quick = []
        genkit(*arguments, *quick)


def test_the_commands_and_the_decoder_snippet_work_as_printed(
    genkit: Genkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run_all(genkit, [c for c in _commands() if "sharp" not in str(c) and c != ["plugins"]], monkeypatch, tmp_path)
    assert picture_size(tmp_path / "runs" / "first" / "samples.png")[0] >= 200
    assert (tmp_path / "runs/again/recipe.yaml").read_text() == (tmp_path / "runs/wide/recipe.yaml").read_text()
    decode, load, prove = _blocks("python")[1:]
    (tmp_path / "snippet.py").write_text(decode)
    assert runpy.run_path(str(tmp_path / "snippet.py"))["x"].shape == (16, 1, 28, 28)
    (tmp_path / "snippet.py").write_text(load)
    assert runpy.run_path(str(tmp_path / "snippet.py"))["mean"].shape == (16, 20)
    (tmp_path / "snippet.py").write_text(prove)
    done = subprocess.run([sys.executable, "snippet.py"], capture_output=True, text=True, check=True)
    assert "ok     decoder: graph proof: " in done.stdout
    assert "FAILED" not in done.stdout
    assert f"```console\n{DEPLOYMENT}\n```" in README


def test_the_plugin_works_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sharp"
    package.mkdir()
    (package / "pyproject.toml").write_text(_blocks("toml")[0])
    (package / "sharp.py").write_text(_blocks("python")[0])
    genkit = command(environment_with(tmp_path / "venv", package))
    _run_all(genkit, [c for c in _commands() if "sharp" in str(c)], monkeypatch, tmp_path)
    assert "loss absolute_error_kl, model mnist_sharp" in genkit("plugins").stdout
    assert '"absolute_error"' in (tmp_path / "runs" / "sharp" / "metrics.jsonl").read_text()


def test_pictures_and_pages_that_are_linked_exist() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_model_has_a_page_with_its_formula_its_source_and_its_command() -> None:
    models = {e.name for e in load_plugins().registry.entries.values() if e.kind == "model"}
    index = (ROOT / "docs" / "models" / "README.md").read_text()
    for name in models:
        page = (ROOT / "docs" / "models" / f"{name}.md").read_text()
        for part in (f"# {name}\n", "\n$$\n", "\nSource: ", f"\ngenkit train --model {name}\n"):
            assert part in page, (name, part)
        assert f"`{name}`" in index, "what it cost"


def test_the_figures_on_the_pages_are_those_that_were_kept() -> None:
    for path, content in pages(kept()).items():
        assert path.read_text() == content, f"{path.name}: python -m benchmarks.models --pages"


@pytest.mark.parametrize("page", speed.PAGES, ids=lambda page: page.name)
def test_the_speed_on_a_page_is_what_was_measured(page: Path) -> None:
    text = page.read_text()
    assert text.count("<!-- measured: ") == text.count("<!-- /measured -->") > 0
    assert text == speed.written(text, speed.kept()), f"{page.name}: python -m benchmarks.speed"
