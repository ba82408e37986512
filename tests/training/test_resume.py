"""A run that is killed, interrupted and resumed ends exactly like one that never was."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import Genkit, started
from safetensors.torch import load_file

from genkit import cache_directory
from genkit.cli import main

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


_WARM = multiprocessing.get_context("forkserver")
"""Starts processes that have imported torch already, from one that does nothing else."""
_WARM.set_forkserver_preload(["genkit.training.loop", "genkit_mnist_vae.components", "torch._dynamo"])


def _command(arguments: Sequence[str], printed: Path) -> None:
    """``genkit`` in the present process, of which nothing is to be left."""
    os.setsid()
    with printed.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    raise SystemExit(main(arguments))


def _stopped(
    arguments: Sequence[object], ready: Callable[[], bool], delay: float, number: signal.Signals, place: Path
) -> tuple[int | None, str]:
    """Sends a signal ``delay`` seconds after ``ready``; the exit status of the process, and what it had printed."""
    printed = place / "printed.txt"
    process = _WARM.Process(target=_command, args=([*map(str, arguments)], printed))
    process.start()
    while not ready():
        if not process.is_alive():
            raise AssertionError(f"it ended before it could be stopped:\n{printed.read_text()}")
        time.sleep(0.002)
    time.sleep(delay)
    assert process.pid
    os.kill(process.pid, number)
    process.join()
    return process.exitcode, printed.read_text()


def test_ten_kills_at_random_moments_change_nothing(here: Genkit, tmp_path: Path) -> None:
    arguments = ["train", "--model", "mnist_vae", "--epochs", 60, "--set", "dataset.limit=320", "--batch-size", 32]
    arguments += ["--set", "encoder.hidden=64", "--set", "decoder.hidden=64"]
    here(*arguments, "--out", tmp_path / "whole")
    moments = random.Random(0)
    run = tmp_path / "killed"
    for _ in range(10):
        wanted, delay = len(_lines(run)) + moments.randint(0, 3), moments.uniform(0, 0.05)
        again = [*arguments, "--out", run, "--resume"]
        status, _ = _stopped(again, lambda: len(_lines(run)) >= wanted, delay, signal.SIGKILL, tmp_path)  # noqa: B023
        assert status == -signal.SIGKILL
    assert len(_lines(run)) < 60
    here(*arguments, "--out", run, "--resume")
    assert _metrics(run) == _metrics(tmp_path / "whole")
    assert _state(run) == _state(tmp_path / "whole")
    assert not list(run.rglob(".*"))


def test_sigint_and_sigterm_save_in_the_middle_of_an_epoch_and_say_how_to_go_on(here: Genkit, tmp_path: Path) -> None:
    arguments = ["train", "--model", "mnist_vae", "--epochs", 3, "--set", "dataset.limit=5000", "--batch-size", 8]
    arguments += ["--set", "training.evaluate_every=0", "--set", "encoder.hidden=64", "--set", "decoder.hidden=64"]
    here(*arguments, "--out", tmp_path / "whole")
    run = tmp_path / "interrupted"
    for number, begun in ((signal.SIGINT, "epoch_0001"), (signal.SIGTERM, "epoch_0002")):
        again, ready = [*arguments, "--out", run, "--resume"], (run / "checkpoints" / begun).exists
        status, said = _stopped(again, ready, 0.05, number, tmp_path)
        assert status == 128 + number
        assert f"genkit train --out {run} --resume" in said
        assert "step" in sorted((run / "checkpoints").iterdir())[-1].name
    here("train", "--out", run, "--resume")
    assert _metrics(run) == _metrics(tmp_path / "whole")
    assert _state(run) == _state(tmp_path / "whole")


def test_streamed_data_with_random_items_resume_exactly_in_the_middle_of_an_epoch(
    acme: Genkit, acme_python: Path, tmp_path: Path
) -> None:
    arguments = ["train", "--model", "acme", "--epochs", 2, "--set", "dataset.count=1600", "--batch-size", 4]
    acme(*arguments, "--out", tmp_path / "whole", "--set", "training.workers=2")
    run = tmp_path / "interrupted"
    command = [acme_python, "-m", "genkit", *map(str, arguments), "--out", run]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as process:
        while not (run / "checkpoints" / "epoch_0001").exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.002)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert "step" in sorted((run / "checkpoints").iterdir())[-1].name
    acme("train", "--out", run, "--resume", "--set", "training.workers=0")
    assert _metrics(run) == _metrics(tmp_path / "whole")
    assert _state(run) == _state(tmp_path / "whole")


def test_a_run_that_was_finished_can_be_made_longer_as_if_it_always_had_been(here: Genkit, tmp_path: Path) -> None:
    arguments = ["train", "--model", "mnist_vae", "--set", "dataset.limit=256"]
    here(*arguments, "--epochs", 5, "--out", tmp_path / "whole")
    here(*arguments, "--epochs", 2, "--out", tmp_path / "longer")
    assert "finished" in here(*arguments, "--epochs", 2, "--out", tmp_path / "longer", "--resume").stdout
    here(*arguments, "--epochs", 5, "--out", tmp_path / "longer", "--resume")
    assert _state(tmp_path / "longer") == _state(tmp_path / "whole")
    assert _metrics(tmp_path / "longer") == _metrics(tmp_path / "whole")


def test_a_run_can_start_from_the_weights_of_another(here: Genkit, mnist_run: Path, tmp_path: Path) -> None:
    arguments = ["--model", "mnist_vae", "--set", "dataset.limit=256", "--epochs", 0, "--init-from", mnist_run]
    here("train", *arguments, "--out", tmp_path / "next")
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
    refused = here("train", *other, "--out", tmp_path / "other", check=False)
    assert refused.returncode == 2
    assert "holds another model" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_a_run_remembers_where_its_data_lie(here: Genkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here("train", "--model", "mnist_vae", "--set", "dataset.limit=64", "--epochs", 1, "--out", tmp_path / "here")
    elsewhere = tmp_path / "data"
    shutil.copytree(cache_directory() / "data", elsewhere)
    arguments = ["--model", "mnist_vae", "--set", "dataset.limit=64", "--epochs", 1, "--data-dir", elsewhere]
    here("train", *arguments, "--out", tmp_path / "run")
    nothing = {"GENKIT_HOME": str(tmp_path / "empty"), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    for name, value in nothing.items():
        monkeypatch.setenv(name, value)
    here("encode", tmp_path / "run")
    here("train", "--out", tmp_path / "run", "--resume", "--epochs", 2)


def test_the_saved_recipe_repeats_the_run(genkit: Genkit, mnist_run: Path, tmp_path: Path) -> None:
    genkit("train", "--recipe", mnist_run / "recipe.yaml", "--out", tmp_path / "again")
    assert _state(tmp_path / "again") == _state(mnist_run)
