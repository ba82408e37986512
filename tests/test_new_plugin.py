"""From an idea to a package: what `genkit new plugin` writes, and what it refuses to.

That each kind passes its own tests is shown by .ci/run, in an environment of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from conftest import command, environment_with
from helpers import Genkit, tree

from genkit.cli import main
from genkit.scaffold import PluginKind

KINDS = get_args(PluginKind)


@pytest.fixture(scope="module")
def written(genkit: Genkit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plugin of each kind, as it was written."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind in KINDS:
            said = genkit("new", "plugin", f"genkit-my-{kind}", "--kind", kind).stdout
            assert f"pip install -e 'genkit-my-{kind}[dev]'\n  pytest genkit-my-{kind}\n" in said
    return folder


@pytest.fixture(scope="module")
def python(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment of its own into which all of them were installed."""
    return environment_with(tmp_path_factory.mktemp("new") / "venv", *sorted(written.iterdir()))


def test_what_is_written_is_what_is_registered(python: Path) -> None:
    registered = command(python)("plugins").stdout
    for what in (
        "decoder my_component, prior my_component",
        "dataset my_dataset",
        "exporter my_exporter",
        "decoder my_model, dataset my_model, model my_model",
        "runtime my_runtime",
        "tracker my_tracker",
    ):
        assert what in registered


def test_what_is_written_is_clean(written: Path) -> None:
    packages = [f"genkit-my-{kind}/genkit_my_{kind}" for kind in KINDS]
    ours = ["--config-file", f"genkit-my-{KINDS[0]}/pyproject.toml"]
    for tool in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy", *ours, *packages]):
        done = subprocess.run(
            [sys.executable, "-m", *tool],
            cwd=written,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "RUFF_NO_CACHE": "true", "MYPY_CACHE_DIR": str(written.parent / "mypy")},
        )
        assert done.returncode == 0, f"{tool}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", ["genkit-foo-bar", "genkit_foo_bar", "foo-bar", "Foo.Bar"])
def test_a_name_is_the_same_however_it_is_spelt(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "plugin", name]) == 0
    assert 'name = "genkit-foo-bar"' in (tmp_path / name / "pyproject.toml").read_text()
    assert 'foo_bar = "genkit_foo_bar"' in (tmp_path / name / "pyproject.toml").read_text()
    assert "class FooBarDecoder" in (tmp_path / name / "genkit_foo_bar" / "components.py").read_text()
    assert not [file for file in tree(tmp_path) if "template" in file]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["2d"], "'2d' is no name of a plugin: begin with a letter"),
        (["genkit-lambda"], "'genkit-lambda' is no name of a plugin"),
        (["../elsewhere"], "'../elsewhere' is no name of a plugin"),
        (["vae"], "the plugin 'vae' is installed already, by genkit-torch"),
        (["genkit-mnist-vae"], "the plugin 'mnist_vae' is installed already"),
        (["waves", "--kind", "modl"], "no kind of plugin named 'modl'; did you mean 'model'?"),
        (["taken"], "taken exists and is not an empty folder"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is(
    arguments: list[str], complaint: str, here: Genkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = here("new", "plugin", *arguments, check=False)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert tree(tmp_path) == before


def test_a_disk_that_fills_up_leaves_no_half_of_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write, written = Path.write_text, []

    def full(path: Path, *arguments: object, **options: object) -> int:
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["new", "plugin", "waves"]) == 2
    assert len(written) == 4
    assert not tree(tmp_path)
