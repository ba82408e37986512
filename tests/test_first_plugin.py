"""The first plugin: how short it is, and what its author is told of a slip. ``test_docs.py`` runs the page itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pages
from conftest import environment_with

from genkit.scaffold import new_plugin

PAGE = pages.ROOT / "docs" / "plugins" / "first-plugin.md"


def own_code() -> str:
    """What the author types: the module."""
    (block,) = [block for block in pages.blocks_of(PAGE) if block.title.endswith("/components.py")]
    return block.text


def test_what_the_author_writes_is_short() -> None:
    assert len(own_code().splitlines()) < 60


def test_the_message_on_the_page_is_the_one_that_is_given(tmp_path: Path) -> None:
    package = new_plugin("genkit-waves", "component", tmp_path).path
    slip = own_code().replace('self.register_buffer("places", torch.stack', "self.places = (torch.stack")
    assert slip != own_code()
    (package / "genkit_waves" / "components.py").write_text(slip)
    python = environment_with(tmp_path / "venv", package)
    done = subprocess.run(
        [python, "-m", "pytest", "genkit-waves", "-k", "decoder-waves and device", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    (shown,) = [block for block in pages.blocks_of(PAGE) if block.language == "text" and block.excuse]
    said = " ".join(line.removeprefix("E").strip() for line in done.stdout.splitlines())
    for part in shown.text.replace("\n", " ").split("..."):
        assert " ".join(part.split()).removesuffix("(x.new_zeros(") in said, done.stdout
