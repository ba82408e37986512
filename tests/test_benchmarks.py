"""The programs that measure speed run, and compare like with like. No time is asserted here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import sample, scale, speed
from benchmarks.figures import keep
from benchmarks.loops import Loop, Missing, Work
from benchmarks.loops.floor import TEXTBOOK, bare, floor, multiply

ROOT = Path(__file__).parent.parent


def benchmark(program: str, *arguments: object) -> str:
    command = [sys.executable, "-m", f"benchmarks.{program}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def figures(program: str, path: Path, *arguments: object) -> dict[str, Any]:
    """A section of the results, which can be shown."""
    benchmark(program, "--device", "cpu", "--json", path, *arguments)
    sections: dict[str, Any] = json.loads(path.read_text())
    assert sections[program]["machine"] in speed.block(program, {"cpu": sections})
    section: dict[str, Any] = sections[program]
    return section


def test_the_training_loops_do_the_same_work_and_one_that_is_not_installed_says_so(tmp_path: Path) -> None:
    rows = ("the textbook's loop", "plain torch, tuned", "genkit, eager", "the floor")
    only = [word for row in (*rows, "pythae 0.1.2") for word in ("--row", row)]
    loops = figures("train", tmp_path / "cpu.json", "--images", 512, "--rounds", 2, *only)["loops"]
    assert all(len(loops[row]["seconds"]) == 2 for row in rows)
    text = loops[rows[0]]["loss"]
    for row in rows[1:3]:
        assert loops[row]["loss"] == pytest.approx(text, rel=0.05), row
    assert text[-1] < 0.9 * text[0]
    if find_spec("pythae") is None:
        assert "pip install" in loops["pythae 0.1.2"]["missing"]
    else:
        assert loops["pythae 0.1.2"]["loss"] == pytest.approx(text, rel=0.05)


def test_a_loop_does_not_count_the_time_in_which_it_stands_still(tmp_path: Path) -> None:
    with Loop("plain", Work("cpu", 5120, str(tmp_path))) as loop:
        loop.epoch()
        started = time.perf_counter()
        loop.begin()
        while (epoch := loop.go_on(0.005)) is None:
            time.sleep(0.05)  # it stands still
        elapsed = time.perf_counter() - started
    assert loop.halted.value >= 0.05
    assert 0 < epoch.seconds <= elapsed - loop.halted.value


def test_a_loop_that_was_killed_is_said_to_have_failed_halted_or_not(tmp_path: Path) -> None:
    for halted in (False, True):
        with Loop("plain", Work("cpu", 256, str(tmp_path))) as loop:
            loop.epoch()
            assert loop.process.pid is not None
            os.kill(loop.process.pid, signal.SIGKILL)
            loop.begin()
            if halted:
                loop.halt()
            with pytest.raises(SystemExit, match="the loop 'plain' failed"):
                loop.go_on(None)


def test_the_floor_is_of_a_step_of_the_textbooks_network() -> None:
    """Its products, and the weights and gradients of these as what the optimiser goes over."""
    products, weights, gradients = bare(torch.device("cpu"))
    kernels = [784 * 400, 400 * 20, 400 * 20, 20 * 400, 400 * 784]
    operations = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, _ in products)
    assert operations == 2 * 128 * (3 * sum(kernels) - kernels[0])
    assert len(weights) == len(gradients) == TEXTBOOK.parameters == sum(kernels) + 400 + 20 + 20 + 400 + 784

    gradients.zero_()
    multiply(products)
    assert gradients[: sum(kernels)].all()
    weights.zero_()
    multiply(products)
    assert [bool(result.any()) for _, _, result in products] == [False, True] + [False, True, False] * 4

    found = floor(torch.device("cpu"), 2)
    parts = ("matrix products", "optimiser's traffic", "elementwise traffic")
    assert found["floor"] == pytest.approx(sum(found[part] for part in parts))


def test_the_whole_training_is_measured_and_its_steps_are_profiled(tmp_path: Path) -> None:
    found = figures("whole", tmp_path / "cpu.json", "--images", 300, "--epochs", 10, "--step", "eager")
    assert found["steps_per_epoch"] == 3
    assert found["first"][0] > 0
    assert found["others"][0] > 0
    assert list(found["losses"]) == ["2", "4", "6", "8", "10"]
    assert found["losses"]["10"] < found["losses"]["2"]
    longest = {name: calls for name, calls, _ in found["profile"]["longest"]}
    assert longest["aten::addmm"] == 5, "layers of the network"
    assert 0 < found["profile"]["all"] < found["profile"]["step"]


def test_what_genkit_refuses_on_a_device_is_said_of_that_row_alone(tmp_path: Path) -> None:
    work = Work("cpu", 256, str(tmp_path / "run"), {"precision": "tf32"})
    with Loop("genkit", work) as loop, pytest.raises(Missing, match="only CUDA devices have it"):
        loop.epoch()


def test_samples_and_likelihoods_are_measured_with_their_products(tmp_path: Path) -> None:
    found = figures("sample", tmp_path / "cpu.json", "--images", 8, "--samples", 200, "--rounds", 1)
    for name in ("drawn", "likelihood"):
        assert found[name]["seconds"][0] > 0 < found[name]["floor"][0]


@pytest.mark.parametrize("at_once", [128, 2048])
def test_the_products_are_of_the_rows_that_are_asked_for(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows too many would be counted as what the likelihood takes, which is measured around them."""
    multiplied: dict[int, int] = {}
    mm = torch.mm

    def counted(x: torch.Tensor, w: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        multiplied[w.shape[1]] = multiplied.get(w.shape[1], 0) + len(x)
        return mm(x, w, out=out)

    products = sample.Products(at_once, torch.device("cpu"))
    monkeypatch.setattr(torch, "mm", counted)
    taken = products(2560)
    assert multiplied == {400: 2560, 784: 2560}
    assert products.seconds == taken > 0


def test_growth_is_measured_over_data_in_memory_and_streamed_and_so_is_the_waiting(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    path.write_text('{"startup": {"machine": "another"}}')
    arguments = ["--rounds", 1, "--factors", 1, "--images", 130, "--part", "data", "--part", "waiting"]
    found = figures("scale", path, *arguments)
    assert set(found["data"][0]) == {"resident", "streamed"}
    assert 0 < found["waiting"][0]["waited"] < found["waiting"][0]["seconds"]
    assert json.loads(path.read_text())["startup"] == {"machine": "another"}, "other sections stay as they are"


def test_growth_over_parameters_stands_beside_that_of_the_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "HIDDEN", (8, 16))
    monkeypatch.setattr(scale, "BASE", 256)
    found = scale.over_parameters(tmp_path, torch.device("cpu"))
    (head, *rows, growth) = next(scale.tables("parameters", [found]))
    assert head == ["parameters", "seconds an epoch", "the floor", "times"]
    assert [row[0] for row in rows] == ["13,864", "26,904"]
    for (_, seconds, bound, times), size in zip(rows, ("13864", "26904"), strict=True):
        mine, least = found["seconds"][size], found["floor"][size]
        assert (seconds, bound, times) == (f"{mine:.2f}", f"{least:.2f}", f"{mine / least:.2f}")
        assert 0 < least < mine
    assert growth[0] == "growth at the end, the power"


def test_the_waiting_of_the_first_batches_is_measured_where_an_epoch_would_take_too_long(tmp_path: Path) -> None:
    part, whole = (scale.waiting(tmp_path, 130, batches, torch.device("cpu")) for batches in (2, None))
    assert 0 < part["waited"] < part["seconds"]
    (head, row), (_, other) = next(scale.tables("waiting", [part])), next(scale.tables("waiting", [whole]))
    assert head[1] == "waiting, % of the time"
    assert (row[0], other[0]) == ("the first 2 batches of 130", "an epoch of 130")


def test_figures_of_one_machine_are_kept_beside_each_other_and_those_of_another_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, device = tmp_path / "cpu.json", torch.device("cpu")
    keep("scale", {"data": [1], "waiting": [1]}, device, path)
    keep("scale", {"waiting": [2]}, device, path)
    kept = json.loads(path.read_text())["scale"]
    assert (kept["data"], kept["waiting"]) == ([1], [2])
    monkeypatch.setattr("benchmarks.figures.machine", lambda device: "another")
    keep("scale", {"waiting": [3]}, device, path)
    assert json.loads(path.read_text())["scale"] == {"machine": "another", "torch": torch.__version__, "waiting": [3]}
