"""Fixtures: an environment in which the third-party packages are really installed, and the command in it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tools
import torch
from helpers import Genkit

from genkit.cli import main

THIRD_PARTY = Path(__file__).parent / "third_party"


def environment_with(path: Path, *packages: Path) -> Path:
    """A virtual environment over the present one, with ``packages`` installed into it by pip; its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    python = path / "bin" / "python"
    site = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    here = sysconfig.get_path("purelib")
    Path(site, "underlying.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    if packages:
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*install, *packages], check=True)
    return python


def command(python: Path | str, **variables: str) -> Genkit:
    def genkit(*arguments: object, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [python, "-m", "genkit", *map(str, arguments)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **variables, **more},
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return genkit


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def acme_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with the good third-party package."""
    return environment_with(tmp_path_factory.mktemp("acme") / "venv", THIRD_PARTY / "genkit_acme")


@pytest.fixture(scope="session")
def acme(acme_python: Path) -> Genkit:
    """``genkit`` in an environment with the good third-party package."""
    return command(acme_python)


@pytest.fixture(scope="session")
def broken_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with three packages: good, broken in every way, and taking others' names."""
    packages = [THIRD_PARTY / name for name in ("genkit_acme", "genkit_broken", "genkit_shadowing")]
    return environment_with(tmp_path_factory.mktemp("broken") / "venv", *packages)


@pytest.fixture(scope="session")
def broken(broken_python: Path) -> Genkit:
    """``genkit`` in an environment with the bad third-party packages beside the good one."""
    return command(broken_python)


@pytest.fixture(scope="session")
def genkit() -> Genkit:
    """``genkit`` as it is installed here."""
    return command(sys.executable)


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Genkit:
    """``genkit`` in this process, for the many tests to which a process of its own adds nothing."""

    def genkit(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        done = subprocess.CompletedProcess([], status, *capfd.readouterr())
        assert not (check and status), done
        return done

    return genkit


@pytest.fixture
def acme_here(acme_python: Path, here: Genkit, monkeypatch: pytest.MonkeyPatch) -> Iterator[Genkit]:
    """``genkit`` in this process, with the good third-party package as pip installed it."""
    (site,) = acme_python.parents[1].glob("lib/python*/site-packages")
    monkeypatch.syspath_prepend(str(site))
    yield here
    for name in [name for name in sys.modules if name.partition(".")[0] == "genkit_acme"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def acme_run(acme: Genkit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the third-party model."""
    run = tmp_path_factory.mktemp("acme_run") / "run"
    acme("train", "--model", "acme", "--out", run)
    return run


@pytest.fixture(scope="session")
def mnist_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the textbook model on a few images."""
    run = tmp_path_factory.mktemp("mnist_run") / "run"
    assert (
        main(["train", "--model", "mnist_vae", "--epochs", "2", "--set", "dataset.limit=512", "--out", str(run)]) == 0
    )
    return run


@pytest.fixture(scope="session")
def node_modules() -> Iterator[Path]:
    """Where the packages for JavaScript are installed."""
    with tempfile.TemporaryDirectory() as directory:
        yield tools.install_npm(Path(directory))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """``install(name, code)`` leaves a plugin on the path, as an installer would."""

    def install(name: str, code: str) -> None:
        folder = tmp_path / "site"
        information = folder / f"{name}-1.dist-info"
        information.mkdir(parents=True)
        (folder / f"{name}.py").write_text(code)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (information / "entry_points.txt").write_text(f"[genkit]\n{name} = {name}\n")
        monkeypatch.syspath_prepend(str(folder))

    return install
