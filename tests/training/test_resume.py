"""A run that is killed, interrupted and resumed ends exactly like one that never was."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import Genkit
from safetensors.torch import load_file

from genkit import cache_directory

_TIMES = ("seconds", "images_per_second")


def _lines(run: Path) -> list[str]:
    path = run / "metrics.jsonl"
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(line).items() if k not in _TIMES} for line in _lines(run)]


def _state(run: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Every tensor of the last checkpoint, bit for bit, and its plain values, times aside."""
    last = sorted((run / "checkpoints").glob("epoch_*"))[-1]
    tensors = {
        f"{name}/{key}": value.numpy().tobytes()
        for name in ("weights", "training")
        for key, value in load_file(last / f"{name}.safetensors").items()
    }
    plain = json.loads((last / "state.json").read_text())
    return tensors, {k: v for k, v in plain.items() if k not in _TIMES}


def _start(*arguments: object, python: Path | str = sys.executable) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, "-m", "genkit", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _stop(process: subprocess.Popen[str], ready: Callable[[], bool], delay: float, number: signal.Signals) -> str:
    """Sends a signal ``delay`` seconds after ``ready``; what the process had printed."""
    while not ready():
        if process.poll() is not None:
            raise AssertionError(f"it ended before it could be stopped:\n{process.communicate()[0]}")
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(process.pid, number)
    return process.communicate()[0]


def test_ten_kills_at_random_moments_change_nothing(genkit: Genkit, tmp_path: Path) -> None:
    arguments = ["train", "--model", "mnist_vae", "--epochs", 60, "--set", "dataset.limit=640", "--batch-size", 64]
    genkit(*arguments, "--out", tmp_path / "whole")
    moments = random.Random(0)
    run = tmp_path / "killed"
    for _ in range(10):
        before, more = len(_lines(run)), moments.randint(0, 4)
        process = _start(*arguments, "--out", run, "--resume")
        _stop(process, lambda: len(_lines(run)) >= before + more, moments.uniform(0, 0.1), signal.SIGKILL)  # noqa: B023
        assert process.returncode == -signal.SIGKILL
    assert len(_lines(run)) < 60
    genkit(*arguments, "--out", run, "--resume")
    assert _metrics(run) == _metrics(tmp_path / "whole")
    assert _state(run) == _state(tmp_path / "whole")
    assert not list(run.rglob(".*"))


def test_sigint_and_sigterm_save_in_the_middle_of_an_epoch_and_say_how_to_go_on(genkit: Genkit, tmp_path: Path) -> None:
    arguments = ["train", "--model", "mnist_vae", "--epochs", 3, "--set", "dataset.limit=10000", "--batch-size", 8]
    arguments += ["--set", "training.evaluate_every=0"]
    genkit(*arguments, "--out", tmp_path / "whole")
    run = tmp_path / "interrupted"
    for number, begun in ((signal.SIGINT, "epoch_0001"), (signal.SIGTERM, "epoch_0002")):
        process = _start(*arguments, "--out", run, "--resume")
        said = _stop(process, (run / "checkpoints" / begun).exists, 0.1, number)
        assert process.returncode == 128 + number
        assert f"genkit train --out {run} --resume" in said
        assert "step" in sorted((run / "checkpoints").iterdir())[-1].name
    genkit("train", "--out", run, "--resume")
    assert _metrics(run) == _metrics(tmp_path / "whole")
    assert _state(run) == _state(tmp_path / "whole")


def test_streamed_data_with_random_items_resume_exactly_in_the_middle_of_an_epoch(
    acme: Genkit, acme_python: Path, tmp_path: Path
) -> None:
    arguments = ["train", "--model", "acme", "--epochs", 2, "--set", "dataset.count=4000", "--batch-size", 4]
    acme(*arguments, "--out", tmp_path / "whole", "--set", "training.workers=2")
    run = tmp_path / "interrupted"
    process = _start(*arguments, "--out", run, python=acme_python)
    _stop(process, (run / "checkpoints" / "epoch_0001").exists, 0.3, signal.SIGINT)
    assert "step" in sorted((run / "checkpoints").iterdir())[-1].name
    acme("train", "--out", run, "--resume", "--set", "training.workers=0")
    assert _metrics(run) == _metrics(tmp_path / "whole")
    assert _state(run) == _state(tmp_path / "whole")


def test_a_run_that_was_finished_can_be_made_longer_as_if_it_always_had_been(genkit: Genkit, tmp_path: Path) -> None:
    arguments = ["train", "--model", "mnist_vae", "--set", "dataset.limit=256"]
    genkit(*arguments, "--epochs", 5, "--out", tmp_path / "whole")
    genkit(*arguments, "--epochs", 2, "--out", tmp_path / "longer")
    assert "finished" in genkit(*arguments, "--epochs", 2, "--out", tmp_path / "longer", "--resume").stdout
    genkit(*arguments, "--epochs", 5, "--out", tmp_path / "longer", "--resume")
    assert _state(tmp_path / "longer") == _state(tmp_path / "whole")
    assert _metrics(tmp_path / "longer") == _metrics(tmp_path / "whole")


def test_a_run_can_start_from_the_weights_of_another(genkit: Genkit, mnist_run: Path, tmp_path: Path) -> None:
    arguments = ["--model", "mnist_vae", "--set", "dataset.limit=256", "--epochs", 0, "--init-from", mnist_run]
    genkit("train", *arguments, "--out", tmp_path / "next")
    begun = tmp_path / "next" / "checkpoints" / "epoch_0000" / "weights.safetensors"
    assert begun.read_bytes() == (mnist_run / "checkpoints" / "epoch_0002" / "weights.safetensors").read_bytes()
    other = [
        "--model",
        "mnist_vae",
        "--set",
        "dataset.limit=256",
        "--set",
        "latent_shape=[3]",
        "--init-from",
        mnist_run,
    ]
    refused = genkit("train", *other, "--out", tmp_path / "other", check=False)
    assert refused.returncode == 2
    assert "holds another model" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_a_run_remembers_where_its_data_lie(genkit: Genkit, tmp_path: Path) -> None:
    genkit("train", "--model", "mnist_vae", "--set", "dataset.limit=64", "--epochs", 1, "--out", tmp_path / "here")
    elsewhere = tmp_path / "data"
    shutil.copytree(cache_directory() / "data", elsewhere)
    arguments = ["--model", "mnist_vae", "--set", "dataset.limit=64", "--epochs", 1, "--data-dir", elsewhere]
    genkit("train", *arguments, "--out", tmp_path / "run")
    nothing = {"GENKIT_HOME": str(tmp_path / "empty"), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    genkit("encode", tmp_path / "run", **nothing)
    genkit("train", "--out", tmp_path / "run", "--resume", "--epochs", 2, **nothing)


def test_the_saved_recipe_repeats_the_run(genkit: Genkit, mnist_run: Path, tmp_path: Path) -> None:
    genkit("train", "--recipe", mnist_run / "recipe.yaml", "--out", tmp_path / "again")
    assert _state(tmp_path / "again") == _state(mnist_run)
