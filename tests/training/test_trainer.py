"""The trainer on toys that are nothing like a VAE."""

from __future__ import annotations

import json
import math
import os
import platform
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tree
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.data import Dataset, TensorDataset

import genkit
from genkit.random import seed_all, seed_cpu, seeded
from genkit.run import Position
from genkit.training.loop import Trainer

CPU = torch.device("cpu")
COMPONENT = genkit.Choice("none")


def toy(terms: Callable[[genkit.Batch], genkit.Terms], module: nn.Module, x: Tensor | None = None) -> genkit.Task:
    """A task of one turn over points on a line."""
    data = torch.linspace(0, 1, 10)[:, None] if x is None else x
    sets = genkit.Data(TensorDataset(data), TensorDataset(data), tuple(data.shape[1:]))
    return genkit.Task(module, lambda: [genkit.Turn("main", terms, list(module.parameters()))], lambda: [], sets)


def recipe_with(**options: Any) -> genkit.Recipe:
    recipe = genkit.Recipe(
        "toy", dataset=COMPONENT, decoder=COMPONENT, prior=COMPONENT, loss=COMPONENT, latent_shape=(1,)
    )
    return recipe.with_training(**{"epochs": 1, "batch_size": 4, "optimizer": "sgd", "learning_rate": 0.1, **options})


def train(task: genkit.Task, folder: Path, notify: Callable[..., None] = lambda *_, **__: None, **options: Any) -> Path:
    """Trains a task for an epoch, or as the options say."""
    recipe = recipe_with(**options)
    trainer = Trainer(task, recipe.training, CPU, notify)
    assert trainer.fit(genkit.Run.create(folder, recipe, {})) == "finished"
    return folder


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Scalars(nn.Module):
    """Two numbers, one for each player."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(2.0))
        self.b = nn.Parameter(torch.tensor(3.0))


def test_the_gradient_of_one_turn_never_reaches_the_parameters_of_another(tmp_path: Path) -> None:
    module = Scalars()
    seen: list[tuple[float | None, float | None]] = []

    def gradients() -> tuple[float | None, float | None]:
        a, b = module.a.grad, module.b.grad
        return None if a is None else a.item(), None if b is None else b.item()

    def first(batch: genkit.Batch) -> genkit.Terms:
        seen.append(gradients())
        return genkit.Terms(module.a * module.b * torch.ones(len(batch.x)))

    def second(batch: genkit.Batch) -> genkit.Terms:
        seen.append(gradients())
        return genkit.Terms(module.a * module.b.square() * torch.ones(len(batch.x)))

    task = toy(first, module)
    turns = [genkit.Turn("a", first, [module.a]), genkit.Turn("b", second, [module.b])]
    train(genkit.Task(module, lambda: turns, task.graphs, task.data), tmp_path / "run", batch_size=10, evaluate_every=0)
    rehearsal, step = seen[:-2], seen[-2:]
    assert set(rehearsal) == {(None, None)}
    assert step == [(None, None), (pytest.approx(3.0), None)]
    assert module.a.item() == pytest.approx(2 - 0.1 * 3)
    assert module.b.item() == pytest.approx(3 - 0.1 * 1.7 * 2 * 3)


def test_metrics_are_means_over_observations_also_where_the_last_batch_is_smaller(tmp_path: Path) -> None:
    module = Scalars()

    def terms(batch: genkit.Batch) -> genkit.Terms:
        value = batch.x[:, 0] + 0 * module.a
        return genkit.Terms(value, square=value.square(), whole=torch.tensor(float(len(value))))

    (row,) = rows(train(toy(terms, module), tmp_path / "run"))
    x = torch.linspace(0, 1, 10)
    assert row["step"] == 3
    for part in ("train", "test"):
        assert row[part]["loss"] == pytest.approx(x.mean().item())
        assert row[part]["square"] == pytest.approx(x.square().mean().item())
        assert row[part]["whole"] == pytest.approx((4 * 4 + 4 * 4 + 2 * 2) / 10)


def test_a_loss_may_differentiate_as_part_of_its_value_also_on_the_test_set(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)

    def terms(batch: genkit.Batch) -> genkit.Terms:
        x = batch.x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        return genkit.Terms((slope.norm(dim=1) - 1).square())

    row = rows(train(toy(terms, module), tmp_path / "run", epochs=20))[-1]
    assert row["test"]["loss"] < rows(tmp_path / "run")[0]["train"]["loss"]


@pytest.mark.parametrize("validating", [True, False])
def test_divergence_names_epoch_step_and_term_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, validating: bool
) -> None:
    module = Scalars()

    def terms(batch: genkit.Batch) -> genkit.Terms:
        scale = module.a if module.a > 1.5 else module.a * float("nan")
        likelihood = -Normal(scale, 1.0, validate_args=None if validating else False).log_prob(batch.x[:, 0])
        return genkit.Terms(0 * likelihood + scale.expand(len(batch.x)), likelihood=likelihood, fine=batch.x[:, 0])

    with pytest.raises(genkit.Diverged, match=r"in epoch 2, step 6: the term 'likelihood' is not finite"):
        train(toy(terms, module), tmp_path / "run", epochs=5)
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [1]
    last = genkit.Run.open(tmp_path / "run").checkpoint("last")
    assert last.position.epoch == 1
    assert all(value.isfinite().all() for value in last.weights().values())


def test_a_weight_that_is_not_finite_is_found_although_every_loss_was(tmp_path: Path) -> None:
    module = Scalars()

    def terms(batch: genkit.Batch) -> genkit.Terms:
        return genkit.Terms((module.a - module.a.detach()).abs().sqrt() * torch.ones(len(batch.x)))

    with pytest.raises(genkit.Diverged, match="the weight 'a' is not finite"):
        train(toy(terms, module), tmp_path / "run", batch_size=10)
    assert genkit.Run.open(tmp_path / "run").checkpoint("last").position.epoch == 0


def test_a_test_term_that_is_not_finite_is_null_and_warned_of(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    said = []

    def terms(batch: genkit.Batch) -> genkit.Terms:
        value = module(batch.x).square()[:, 0]
        return genkit.Terms(value, odd=value if module.training else value * math.inf)

    def notify(hook: str, **arguments: Any) -> None:
        if hook == "genkit_warning":
            said.append(arguments["message"])

    (row,) = rows(train(toy(terms, module), tmp_path / "run", notify))
    assert row["test"]["odd"] is None
    assert row["test"]["loss"] is not None
    assert said == ["the test term 'odd' of epoch 1 is inf; it is recorded as null"]


class Streamed(Dataset[Any]):
    """The same observations as a tensor data set holds, one by one."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.x, self.labels = x, labels

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.labels[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_cannot_be_read_stops_the_run_with_its_own_message(tmp_path: Path, workers: int) -> None:
    class Lost(Streamed):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            if index == 20:
                raise genkit.DataUnavailable("photo 20 is gone; put it back")
            return super().__getitem__(index)

    x = torch.zeros(30, 1, 4, 4)
    module = Scalars()
    data = genkit.Data(Lost(x, torch.zeros(30)), TensorDataset(x), (1, 4, 4))
    turns = [genkit.Turn("main", lambda batch: genkit.Terms(batch.x.flatten(1).mean(1) * module.a), [module.a])]
    task = genkit.Task(module, lambda: turns, lambda: [], data)
    with pytest.raises(genkit.DataUnavailable, match=r"^photo 20 is gone; put it back$"):
        train(task, tmp_path / "run", workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_resident_and_streamed_data_are_the_same_to_a_model(tmp_path: Path, workers: int) -> None:
    x = torch.randint(0, 256, (30, 1, 4, 4), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    labels = torch.arange(30) % 3
    batches: dict[str, list[genkit.Batch]] = {"resident": [], "streamed": []}
    for kind, dataset in (("resident", TensorDataset(x, labels)), ("streamed", Streamed(x, labels))):
        module = Scalars()

        def terms(batch: genkit.Batch, module: nn.Module = module, kind: str = kind) -> genkit.Terms:
            if module.training:
                batches[kind].append(batch)
            return genkit.Terms(batch.x.flatten(1).mean(1) * module.a)

        data = genkit.Data(dataset, dataset, (1, 4, 4), classes=3)
        turns = [genkit.Turn("main", terms, [module.a])]
        task = genkit.Task(module, lambda turns=turns: turns, lambda: [], data, value_range=(-1.0, 1.0))
        train(task, tmp_path / kind, workers=workers, evaluate_every=0, epochs=2)
    assert len(batches["resident"]) == len(batches["streamed"]) == 16
    for ours, theirs in zip(*batches.values(), strict=True):
        assert torch.equal(ours.x, theirs.x)
        assert ours.condition is not None
        assert torch.equal(ours.condition, theirs.condition)
        assert ours.x.dtype == torch.float32
    seen = torch.cat([batch.x for batch in batches["resident"][:8]])
    assert (x.min(), x.max()) == (0, 255)
    assert (seen.min(), seen.max()) == (-1.0, 1.0)
    assert torch.equal(seen.flatten().sort()[0], (x.float() / 255 * 2 - 1).flatten().sort()[0])
    assert not torch.equal(seen, torch.cat([batch.x for batch in batches["resident"][8:]]))


def test_an_item_draws_the_same_numbers_however_it_is_seeded() -> None:
    drawn = []
    for seed in (seed_all, seed_cpu):
        with seeded(0):
            seed(2**40 + 7)
            drawn.append((torch.rand(3).tolist(), np.random.rand(), random.random()))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"warmup_steps": 2}, [0.5, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine"}, [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]),
        ({"clip_norm": 0.25}, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_schedules_and_clipping_scale_the_step(
    tmp_path: Path, options: dict[str, Any], expected: Sequence[float]
) -> None:
    module = Scalars()
    path: list[float] = []

    def terms(batch: genkit.Batch) -> genkit.Terms:
        path.append(module.a.item())
        return genkit.Terms(module.a * torch.ones(len(batch.x)))

    train(toy(terms, module), tmp_path / "run", batch_size=5, epochs=2, evaluate_every=0, **options)
    values = [*path[2:], module.a.item()]  # the first two are the rehearsal's
    steps = [(before - after) / 0.1 for before, after in pairwise(values)]
    assert steps == pytest.approx(list(expected), rel=1e-4)


def test_bf16_computes_in_bfloat16_and_keeps_weights_and_losses_in_float32(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    dtypes = set()

    def terms(batch: genkit.Batch) -> genkit.Terms:
        y = module(batch.x)
        dtypes.add(y.dtype)
        return genkit.Terms(y.float().square()[:, 0])

    train(toy(terms, module), tmp_path / "run", precision="bf16", evaluate_every=0)
    assert torch.bfloat16 in dtypes
    weights = genkit.Run.open(tmp_path / "run").checkpoint("last").weights()
    assert {w.dtype for w in weights.values()} == {torch.float32}


def test_training_leaves_no_trace_in_the_random_state_or_the_global_flags(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled(), Normal(0.0, 1.0)._validate_args
    train(toy(lambda b: genkit.Terms((module(b.x) + torch.randn(1))[:, 0].square()), module), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.are_deterministic_algorithms_enabled(), Normal(0.0, 1.0)._validate_args) == before[1:]


def test_what_hooks_draw_changes_nothing_that_is_learned(tmp_path: Path) -> None:
    def draw(*_: object, **__: object) -> None:
        torch.rand(3), np.random.rand(3), random.random()

    def noisy(batch: genkit.Batch) -> genkit.Terms:
        noise = torch.rand(len(batch.x)) + np.random.rand() + random.random()
        return genkit.Terms(module.a * batch.x.squeeze(1) * noise)

    found = []
    for name, notify in (("quiet", lambda *_, **__: None), ("drawing", draw)):
        module = Scalars()
        run = train(toy(noisy, module), tmp_path / name, notify, epochs=3)
        found.append([row["train"] for row in rows(run)])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda b: torch.ones(len(b.x), 2), r"the term 'loss' of the turn 'main' has shape \[2, 2\]"),
        (lambda b: torch.ones(len(b.x) + 1), r"one value an observation, \[2\], or a scalar"),
    ],
)
def test_a_term_of_the_wrong_shape_is_refused_before_anything_is_written(
    tmp_path: Path, objective: Callable[[genkit.Batch], Tensor], message: str
) -> None:
    module = Scalars()
    with pytest.raises(genkit.InvalidComponent, match=message):
        train(toy(lambda b: genkit.Terms(objective(b) * module.a), module), tmp_path / "run")
    assert not tree(tmp_path)


def test_an_objective_without_a_gradient_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    module = Scalars()
    with pytest.raises(genkit.InvalidComponent, match="'main' depends on none of its parameters"):
        train(toy(lambda b: genkit.Terms(b.x[:, 0] * module.a.detach()), module), tmp_path / "run")
    assert not tree(tmp_path)


def test_a_turn_may_name_its_parameters_by_an_iterator_and_twice(tmp_path: Path) -> None:
    module = Scalars()
    task = toy(lambda b: genkit.Terms((module.a * module.b).expand(len(b.x))), module)
    (turn,) = task.turns()
    iterating = genkit.Turn("main", turn.terms, iter([module.a, module.b, module.a]))  # type: ignore[arg-type]
    train(genkit.Task(module, lambda: [iterating], task.graphs, task.data), tmp_path / "run", batch_size=10)
    assert (module.a.item(), module.b.item()) == (pytest.approx(2 - 0.3), pytest.approx(3 - 0.2))


def test_the_rehearsal_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    module.register_buffer("calls", torch.zeros(()))

    def terms(batch: genkit.Batch) -> genkit.Terms:
        module.calls += 1
        return genkit.Terms(module(batch.x)[:, 0].square())

    train(toy(terms, module), tmp_path / "run", epochs=0)
    assert genkit.Run.open(tmp_path / "run").checkpoint("0").weights()["calls"] == 0


def test_checkpoints_are_in_the_order_of_time_also_beyond_epoch_9999(tmp_path: Path) -> None:
    module = Scalars()
    run = genkit.Run.open(train(toy(lambda b: genkit.Terms(module.a.expand(len(b.x))), module), tmp_path / "run"))
    for epoch in (9999, 10000, 10001):
        run.save_checkpoint(Position(epoch, 0, epoch), {}, {}, {"test_loss": None}, 0)
    assert run.checkpoint("last").position.epoch == 10001


def test_a_picture_that_cannot_be_drawn_is_not_worth_a_run(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    task = toy(lambda b: genkit.Terms(module(b.x)[:, 0].square()), module)
    said: list[str] = []

    def paint() -> Any:
        raise ZeroDivisionError("no brush")

    def notify(hook: str, **arguments: Any) -> None:
        if hook == "genkit_warning":
            said.append(arguments["message"])

    broken = genkit.Task(task.module, task.turns, task.graphs, task.data, pictures={"samples": paint})
    train(broken, tmp_path / "run", notify)
    assert said == ["the picture 'samples' of epoch 1 could not be made: ZeroDivisionError: no brush"]


def test_an_interrupt_between_two_epochs_saves_and_ends_there(tmp_path: Path) -> None:
    module = Scalars()

    def notify(hook: str, **arguments: Any) -> None:
        if hook == "genkit_epoch_ended" and arguments["metrics"]["epoch"] == 2:
            signal.raise_signal(signal.SIGTERM)

    task = toy(lambda batch: genkit.Terms((batch.x.squeeze(1) * module.a - module.b).square()), module)
    recipe = recipe_with(epochs=5)
    run = genkit.Run.create(tmp_path / "run", recipe, {})
    assert Trainer(task, recipe.training, CPU, notify).fit(run) == "SIGTERM"
    assert [row["epoch"] for row in run.metrics()] == [1, 2]
    assert run.checkpoint("last").position == Position(2, 0, 6)
    assert Trainer(task, recipe.training, CPU, notify).fit(run) == "finished"
    assert [row["epoch"] for row in run.metrics()] == [1, 2, 3, 4, 5]


def test_the_peak_of_the_process_is_kept_when_the_run_is_over(tmp_path: Path) -> None:
    """Beside the metrics, which are the same when a run is resumed."""
    module = Scalars()
    task = toy(lambda batch: genkit.Terms((batch.x.squeeze(1) * module.a - module.b).square()), module)
    run = genkit.Run.create(tmp_path / "run", recipe_with(), {"device": "cpu"})
    ballast = torch.ones(2**26)  # 256 MB
    Trainer(task, recipe_with().training, CPU, lambda *_, **__: None).fit(run)
    del ballast
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["device"] == "cpu"
    assert 2**28 < environment["peak_memory_bytes"] < 2**40
    assert "peak_memory_bytes" not in run.metrics()[-1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back")
def test_what_a_step_frees_is_there_for_the_next_one_and_afterwards_for_others(tmp_path: Path) -> None:
    """A process counts the pages that it fetches for ten times 48 MB, before, in and after training; and what it holds.

    Where the environment has settings of its own, nothing is changed.
    """
    program = """
import ctypes
import resource
import sys
from pathlib import Path
import torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no large pages, whatever the system likes
import genkit
from torch.utils.data import TensorDataset
from genkit.training.loop import Trainer

def fetched(numbers=12_000_000):
    for turn in range(20):
        if turn == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(numbers)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

module, inside, none = torch.nn.Linear(1, 1), ["not yet"], genkit.Choice("none")

def terms(batch):
    if module.training and not inside:
        inside.extend([fetched(), held()])
    return genkit.Terms(module(batch.x).square().sum(1))

data = TensorDataset(torch.ones(4, 1))
turn = genkit.Turn("main", terms, list(module.parameters()))
task = genkit.Task(module, lambda: [turn], lambda: [], genkit.Data(data, data, (1,)))
recipe = genkit.Recipe("toy", dataset=none, decoder=none, prior=none, loss=none, latent_shape=(1,))
recipe = recipe.with_training(epochs=1)

def train(name):
    trainer = Trainer(task, recipe.training, torch.device("cpu"), lambda *_, **__: None)
    trainer.fit(genkit.Run.create(Path(sys.argv[1], name), recipe, {}))

train("imports everything")
inside.clear()
at_first = fetched()
train("run")
returned = inside[1] - held()
print(at_first, inside[0], fetched(48_000_000), returned)  # too large for any hole between what has been made since
"""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "THP_"))}
    pages = 10 * 48_000_000 // os.sysconf("SC_PAGESIZE")
    for environment, kept in ((own, True), ({**own, "MALLOC_MMAP_MAX_": "1000"}, False)):
        command = [sys.executable, "-c", program, str(tmp_path / str(kept))]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        at_first, inside, afterwards, returned = map(int, done.stdout.split())
        assert at_first > pages * 0.9
        assert inside < pages * 0.01 if kept else inside > pages * 0.9
        assert afterwards > 4 * pages * 0.9
        assert returned > 40_000_000 if kept else returned < 40_000_000
