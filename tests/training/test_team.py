"""Several processes train one model, as torchrun starts them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Genkit, started, tree
from safetensors.torch import load_file
from torch import Tensor

from genkit.cli import main

ROUNDING = 1e-5
"""How far a weight of about 0.1 may be from that of one process after 14 steps: sums are taken in another order."""
SPREAD = 0.02
"""Of the loss of a noisy model, whose processes draw numbers of their own; relative."""

AE = ["--model", "mnist_ae", "--epochs", 2, "--set", "dataset.limit=801", "--set", "training.sample_every=0"]
"""Six whole batches an epoch, and one of 33, of which one process gets more than the other."""
VAE = ["--model", "mnist_vae", "--epochs", 8, "--set", "dataset.limit=2000", "--set", "training.sample_every=0"]


def together(*arguments: object, processes: int = 2) -> list[object]:
    """The command line of ``genkit``, or of a program, in several processes."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return [*run, *([] if isinstance(arguments[0], Path) else ["-m", "genkit"]), *arguments]


def run_together(*arguments: object, processes: int = 2, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [*map(str, together(*arguments, processes=processes))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert not (check and done.returncode), done.stdout + done.stderr
    return done


def state(run: Path) -> dict[str, Tensor]:
    last = sorted((run / "checkpoints").glob("epoch_*"))[-1]
    return {**load_file(last / "weights.safetensors"), **load_file(last / "training.safetensors")}


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_alike(run: Path, other: Path) -> None:
    one, two = state(run), state(other)
    for name in one:
        if not name.startswith("random."):
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=ROUNDING, msg=lambda m, n=name: f"{n}: {m}")
    for row, alike in zip(rows(run), rows(other), strict=True):
        for part in ("train", "test"):
            assert alike[part]["loss"] == pytest.approx(row[part]["loss"], rel=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it."""
    run = tmp_path_factory.mktemp("team") / "alone"
    assert main(["train", *map(str, AE), "--out", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of a model that draws numbers."""
    run = tmp_path_factory.mktemp("team") / "noisy"
    run_together("train", *VAE, "--out", run)
    return run


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("memory", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux has it")),
        "no memory",
        "no memory in one",
    ],
)
def test_processes_share_average_and_answer_together(way: str, tmp_path: Path) -> None:
    done = run_together(Path(__file__).with_name("team_program.py"), tmp_path, way)
    assert sorted(re.findall(r"process (\d) is content", done.stdout)) == ["0", "1"]


def test_two_processes_train_as_one_does_and_only_the_first_writes(alone: Path, tmp_path: Path) -> None:
    done = run_together("train", *AE, "--out", tmp_path / "two")
    assert_alike(alone, tmp_path / "two")
    assert done.stdout.count("epoch 2/2") == 1
    assert tree(alone).keys() == tree(tmp_path / "two").keys()


def test_sharded_layers_learn_the_same_and_are_saved_whole(alone: Path, tmp_path: Path) -> None:
    run_together("train", *AE, "--set", "training.sharded=true", "--out", tmp_path / "sharded")
    assert_alike(alone, tmp_path / "sharded")


def test_a_run_goes_on_with_another_number_of_processes(alone: Path, here: Genkit, tmp_path: Path) -> None:
    run = tmp_path / "grown"
    here("train", *AE, "--epochs", 1, "--out", run)
    run_together("train", "--out", run, "--resume", "--epochs", 2, processes=3)
    assert_alike(alone, run)


def workers_of(parent: int) -> dict[int, int]:
    """The processes that torchrun started, by rank."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            is_child = int(place.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1]) == parent
            variables = place.joinpath("environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(v.removeprefix(b"RANK=")) for v in variables if v.startswith(b"RANK=")]
        if is_child and ranks:
            found[ranks[0]] = int(place.name)
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="it finds the processes in /proc")
def test_a_killed_process_ends_the_others_and_a_resumed_run_ends_with_the_same_bits(
    noisy: Path, tmp_path: Path
) -> None:
    run, command = tmp_path / "killed", together("train", *VAE, "--out", tmp_path / "killed")
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not (run / "metrics.jsonl").exists() or len(rows(run)) < 2:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        os.kill(workers_of(process.pid)[1], signal.SIGKILL)
        said = process.communicate()[0]
    assert process.returncode != 0
    assert re.search(r"error: process 0 of 2: another process of this run has ended, .* with --resume", said), said
    assert len(rows(run)) < 8
    run_together("train", "--out", run, "--resume")
    whole, resumed = state(noisy), state(run)
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])] == []
    for row, alike in zip(rows(noisy), rows(run), strict=True):
        assert (row["train"], row["test"]) == (alike["train"], alike["test"])


def test_a_noisy_model_has_the_loss_of_one_process_within_the_spread(here: Genkit, noisy: Path, tmp_path: Path) -> None:
    here("train", *VAE, "--out", tmp_path / "one")
    one, two = (rows(run)[-1] for run in (tmp_path / "one", noisy))
    assert two["train"]["loss"] == pytest.approx(one["train"]["loss"], rel=SPREAD)
    assert two["test"]["loss"] == pytest.approx(one["test"]["loss"], rel=SPREAD)
    assert two["train"]["loss"] != one["train"]["loss"], "their noise is their own"


def test_a_wrong_request_is_answered_once(tmp_path: Path) -> None:
    done = run_together("train", "--model", "mnist_vea", "--out", tmp_path / "x", check=False)
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("did you mean 'mnist_vae'?") == 1
