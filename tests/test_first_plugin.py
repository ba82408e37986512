"""The tutorial of a plugin, typed as it is printed, in an environment of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import environment_with

PAGE = Path(__file__).parent.parent / "docs" / "plugins" / "first-plugin.md"
OFFLINE = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
"""Of pip: everything that it would fetch is there."""

pytestmark = pytest.mark.xdist_group("first_plugin")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def own_code() -> str:
    """What the author types: the module."""
    return max(blocks("python"), key=len)


def typed(line: str, python: Path, folder: Path) -> str:
    """What a line of the page prints, in a shell whose `pip`, `pytest` and `genkit` are those of the environment."""
    program, *arguments = shlex.split(line)
    if program == "pip":
        arguments = [arguments[0], *OFFLINE, *arguments[1:]]
    if program == "genkit" and arguments[0] == "train":
        arguments += ["--set", "dataset.limit=600"]
    options = ["--basetemp", str(folder / "inner"), "-p", "no:cacheprovider"] if program == "pytest" else []
    done = subprocess.run(
        [python, "-m", program, *arguments, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GENKIT_DISABLE_PLUGINS": ""},
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_page_leads_from_nothing_to_an_exported_and_verified_decoder(tmp_path: Path) -> None:
    python = environment_with(tmp_path / "venv")
    folder = tmp_path / "author"
    folder.mkdir()
    package, begin, mine, tests, finish = folder / "genkit-waves", *blocks("console")
    first, *begin = begin.splitlines()
    assert first == 'pip install "genkit-torch[testing]"', "which is what this environment has"
    for line in begin:
        typed(line, python, folder)
    assert "decoder waves, prior waves" in typed(mine.strip(), python, folder)

    written = [path.read_text() for path in package.rglob("*.*") if path.suffix in (".py", ".toml")]
    for block in (*blocks("toml"), *blocks("python")):
        if block != own_code():
            for line in block.splitlines():
                assert any(line in text for text in written), f"{line!r} is not in what was written"
    (package / "genkit_waves" / "components.py").write_text(own_code())

    assert "decoder-waves" in typed(f"{tests.strip()} -v", python, folder)
    for line in finish.splitlines():
        typed(line, python, folder)
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
    assert [graph["name"] for graph in manifest["graphs"]] == ["encoder", "decoder", "prior"]
    assert (manifest["recipe"]["decoder"], manifest["recipe"]["prior"]) == (
        {"use": "waves", "waves": 96},
        {"use": "waves"},
    )


def test_what_the_author_writes_is_short() -> None:
    assert len(own_code().splitlines()) < 60


def test_the_message_on_the_page_is_the_one_that_is_given(tmp_path: Path) -> None:
    python = environment_with(tmp_path / "venv")
    typed("genkit new plugin genkit-waves", python, tmp_path)
    typed("pip install -e genkit-waves", python, tmp_path)
    slip = own_code().replace('self.register_buffer("places", torch.stack', "self.places = (torch.stack")
    assert slip != own_code()
    (tmp_path / "genkit-waves" / "genkit_waves" / "components.py").write_text(slip)
    done = subprocess.run(
        [python, "-m", "pytest", "genkit-waves", "-k", "decoder-waves and device", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    (shown,) = blocks("text")
    said = " ".join(line.removeprefix("E").strip() for line in done.stdout.splitlines())
    for part in shown.replace("\n", " ").split("..."):
        assert " ".join(part.split()).removesuffix("(x.new_zeros(") in said, done.stdout
