"""What the README and the pages of the models promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import speed
from benchmarks.models import kept, pages
from genkit import DEPLOYMENT, load_plugins

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_what_installs_genkit_without_torch_is_what_is_said_elsewhere() -> None:
    assert f"```console\n{DEPLOYMENT}\n```" in README


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
