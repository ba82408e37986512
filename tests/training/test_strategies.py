"""However a step is executed, it is the same step."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers import Genkit
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import genkit
from genkit.assemble import assemble, resolve
from genkit.random import seed_all
from genkit.run import Position
from genkit.training.batches import Portion
from genkit.training.graph import GraphStep
from genkit.training.loop import Trainer
from genkit.training.optimizers import OPTIMIZERS
from genkit.training.step import CompiledStep, EagerStep, forward
from genkit.training.tracing import Tracer

CPU = torch.device("cpu")

ORDERED = torch.__version__ >= "2.13"
"""Whether the compiler keeps the order of random numbers; before, it may exchange two draws of a step."""

LOOKING = {"adafactor", "adamax", "asgd", "nadam", "radam"}
"""The optimisers that read their own state in each step."""


class Noisy(nn.Module):
    """Everything that a step may change: weights of two players, running statistics, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        # no bias before a normalisation: its gradient is all rounding, which Adam makes large
        self.one = nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
        self.other = nn.Linear(3, 1)
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def turns(self) -> list[genkit.Turn]:
        def first(batch: genkit.Batch) -> genkit.Terms:
            noise = torch.randn_like(batch.x)
            late = torch.randn_like(batch.x) if ORDERED else noise  # is needed after the dropout, and drawn before it
            made = self.one(batch.x + noise) + late
            error = (made - batch.x[:, self.order]).square().sum(1)
            return genkit.Terms(error - self.other(made).squeeze(1), error=error)

        def second(batch: genkit.Batch) -> genkit.Terms:
            made = self.one(batch.x).detach()
            return genkit.Terms(nn.functional.softplus(self.other(made)).squeeze(1))

        return [
            genkit.Turn("one", first, list(self.one.parameters())),
            genkit.Turn("other", second, list(self.other.parameters())),
        ]


def noisy_task() -> genkit.Task:
    torch.manual_seed(0)
    module, x = Noisy(), torch.rand(44, 3)
    return genkit.Task(module, module.turns, lambda: [], genkit.Data(TensorDataset(x), TensorDataset(x), (3,)))


def recipe_with(**options: Any) -> genkit.Recipe:
    none = genkit.Choice("none")
    recipe = genkit.Recipe("toy", dataset=none, decoder=none, prior=none, loss=none, latent_shape=(1,))
    return recipe.with_training(**{"epochs": 3, "batch_size": 8, **options})


def train(trainer: Trainer, folder: Path, recipe: genkit.Recipe) -> dict[str, Tensor]:
    """What it ends with."""
    run = genkit.Run.create(folder, recipe, {})
    assert trainer.fit(run) == "finished"
    return end_of(run)


def end_of(run: genkit.Run) -> dict[str, Tensor]:
    """Every tensor of its last checkpoint, and the metrics."""
    last = run.checkpoint("last").path
    tensors = {**load_file(last / "weights.safetensors"), **load_file(last / "training.safetensors")}
    metrics = [value for row in run.metrics() for part in ("train", "test") for value in row[part].values()]
    return {**tensors, "metrics": torch.tensor(metrics, dtype=torch.float64)}


def quiet(*_: object, **__: object) -> None:
    """A run without hooks."""


@pytest.mark.parametrize(
    "options",
    [{}, {"schedule": "cosine", "warmup_steps": 5, "clip_norm": 0.5, "accumulate": 2}, {"optimizer": "sgd"}],
    ids=["plain", "scheduled", "sgd"],
)
def test_a_recorded_step_has_the_bits_of_an_eager_one(options: dict[str, Any], tmp_path: Path) -> None:
    """Whole batches and the partial one of each epoch, noise, statistics, learning rates, checkpoints, two turns."""
    ends = []
    for step in ("eager", "graph", "compiled_graph"):
        recipe = recipe_with(**options, step=step)
        trainer = Trainer(noisy_task(), recipe.training, CPU, quiet)
        ends.append(train(trainer, tmp_path / step, recipe))
        if step != "eager":
            assert trainer.step.recordings.keys() == {1}
    eager, graph, compiled = ends
    assert eager.keys() == graph.keys() == compiled.keys()
    for name, tensor in eager.items():
        if "schedule" in options:  # a learning rate in a tensor is a float32
            torch.testing.assert_close(graph[name], tensor, rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(tensor, graph[name]), name
        if name.startswith("random."):
            assert torch.equal(tensor, compiled[name]), name
        elif ORDERED or "accumulate" not in options:
            torch.testing.assert_close(compiled[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_compiled_steps_call_the_fused_optimiser_of_torch_on_the_parameters_themselves(tmp_path: Path) -> None:
    """Not the one that copies them, as the compiler would by itself, and with nothing in between."""
    recipe = recipe_with(step="compiled_graph")
    trainer = Trainer(noisy_task(), recipe.training, CPU, quiet)
    train(trainer, tmp_path / "run", recipe)
    assert isinstance(trainer.step, GraphStep)
    with torch.profiler.profile(acc_events=True) as profile:
        trainer.step.recordings[1].replay()
    called = {event.name for event in profile.events()}
    assert {name for name in called if "_fused_adam" in name} == {"aten::_fused_adam_"}
    assert not {name for name in called if "Wrapper" in name}, "arguments that were found once are found again"


def test_an_operator_of_others_that_gives_other_strides_than_it_declared_is_caught() -> None:
    @torch.library.custom_op("genkit_tests::turned", mutates_args=())
    def turned(x: torch.Tensor) -> torch.Tensor:
        return x.t().contiguous().t()

    turned.register_fake(torch.empty_like)
    x, y = torch.rand(3, 4), torch.zeros(3, 4)
    replay = Tracer(compiled=True).record(lambda: y.copy_(turned(x) * 2))
    with pytest.raises(AssertionError, match="stride"):
        replay()


@pytest.mark.parametrize("compiled", [False, True])
def test_recorded_work_may_write_to_tensors_that_share_memory(compiled: bool) -> None:
    """Time and again, and not while it is recorded."""
    whole = torch.zeros(8)
    begin, end = whole[:6], whole[2:]

    def work() -> None:
        begin.add_(1)
        end.mul_(2)
        begin.add_(end.sum())

    replay = Tracer(compiled=compiled).record(work)
    assert not whole.any()
    for _ in range(4):
        replay()
    got = whole.clone()
    whole.zero_()
    for _ in range(4):
        work()
    assert torch.equal(got, whole)


@pytest.mark.parametrize("step", ["graph", "compiled_graph"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(step: str, tmp_path: Path) -> None:
    """What is recorded after a resume is what was recorded before."""
    recipe = recipe_with(step=step, checkpoint_every=1)
    whole = train(Trainer(noisy_task(), recipe.training, CPU, quiet), tmp_path / "run", recipe)
    run = genkit.Run.open(tmp_path / "run")
    shutil.rmtree(run.checkpoint("last").path)
    assert Trainer(noisy_task(), recipe.training, CPU, quiet).fit(run) == "finished"
    for name, tensor in end_of(run).items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.parametrize("options", [{}, {"schedule": "cosine", "warmup_steps": 5}], ids=["plain", "scheduled"])
def test_steps_replayed_together_have_the_bits_of_those_replayed_one_by_one(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Five whole batches and a partial one an epoch; one run is interrupted with two steps put off."""
    alone = recipe_with(**options, step="graph")
    expected = train(Trainer(noisy_task(), alone.training, CPU, quiet), tmp_path / "alone", alone)

    recipe = recipe_with(**options, step="graph", steps_per_replay=3)
    trainer = Trainer(noisy_task(), recipe.training, CPU, quiet)
    together = train(trainer, tmp_path / "together", recipe)
    assert trainer.step.recordings.keys() == {1, 3}

    interrupted = Trainer(noisy_task(), recipe.training, CPU, quiet)
    take, stopped = interrupted.step, []

    def until_the_third(portion: Portion, step: int) -> None:
        take(portion, step)
        if step == 2:
            stopped.extend(take.waiting)
            signal.raise_signal(signal.SIGINT)

    interrupted.step = Mock(wraps=take, side_effect=until_the_third, optimizers=take.optimizers, active=take.active)
    run = genkit.Run.create(tmp_path / "interrupted", recipe, {})
    assert interrupted.fit(run) == "SIGINT"
    assert len(stopped) == 2
    assert run.checkpoints()[-1].position == Position(epoch=0, batch=3, step=3)
    assert Trainer(noisy_task(), recipe.training, CPU, quiet).fit(run) == "finished"

    for end in (together, end_of(run)):
        assert end.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, end[name]), name


class Repeater:
    """A recorder for work that may be done by Python again: the recording is the work itself."""

    def ready(self, step: int, taken: int) -> bool:
        return taken >= 4

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        return work


def test_compiled_steps_are_recorded_compiled_whatever_came_before(tmp_path: Path) -> None:
    """One is recorded before the partial batch of the first epoch, and three together after it."""
    recipe = recipe_with(step="compiled_graph")
    trainer = Trainer(noisy_task(), recipe.training, CPU, quiet)
    inner = CompiledStep(trainer.turns, trainer.training, recipe.training, CPU, trainer.meter, recorded=True)
    inner._forward = Mock(wraps=forward)
    trainer.step = GraphStep(inner, Repeater(), None, 3)
    train(trainer, tmp_path, recipe)
    assert trainer.step.recordings.keys() == {1, 3}
    assert inner._forward.call_count == 3 * 5 * 2, "epochs, whole batches, turns"


def test_what_a_step_takes_from_python_stands_still(tmp_path: Path) -> None:
    """Operations are repeated, not Python: the tests before would see it."""
    ends = []
    for name in ("eager", "graph"):
        recipe = recipe_with(optimizer="sgd", step=name)
        task, steps = noisy_task(), iter(range(1000))
        (one, _) = task.turns()

        def annealed(batch: genkit.Batch, one: genkit.Turn = one, steps: Any = steps) -> genkit.Terms:
            return genkit.Terms(one(batch).objective * (1 + next(steps)))

        turns = [genkit.Turn("one", annealed, one.parameters)]
        task = genkit.Task(task.module, lambda turns=turns: turns, task.graphs, task.data)
        ends.append(train(Trainer(task, recipe.training, CPU, quiet), tmp_path / name, recipe))
    assert not torch.allclose(ends[0]["one.0.weight"], ends[1]["one.0.weight"])


def looking(one: genkit.Turn, batch: genkit.Batch) -> genkit.Terms:
    """A turn that reads a value."""
    terms = one(batch)
    return terms if terms.objective.mean().item() < 1e9 else genkit.Terms(terms.objective * 0)


def looking_at_what_is_kept(one: genkit.Turn, batch: genkit.Batch) -> genkit.Terms:
    """A turn that reads a value which no operation of the step has made."""
    (weight, *_) = one.parameters
    return genkit.Terms(one(batch).objective * (1 if weight.detach().flatten()[0].item() < 1e9 else 0))


def choosing(one: genkit.Turn, batch: genkit.Batch) -> genkit.Terms:
    """A turn whose shapes depend on values."""
    objective = one(batch).objective
    return genkit.Terms(objective[objective > objective.median()].mean())


def choosing_by_place(one: genkit.Turn, batch: genkit.Batch) -> genkit.Terms:
    """A turn with a shape that depends on values, which are places."""
    objective = one(batch).objective
    return genkit.Terms(objective.take((objective > objective.median()).nonzero()).mean())


def task_of(turn: Callable[[genkit.Turn, genkit.Batch], genkit.Terms]) -> genkit.Task:
    task = noisy_task()
    one, other = task.turns()
    turns = [genkit.Turn("one", lambda batch: turn(one, batch), one.parameters), other]
    return genkit.Task(task.module, lambda: turns, task.graphs, task.data)


@pytest.mark.parametrize("step", ["graph", "compiled_graph"])
@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (looking, "_local_scalar_dense reads a value"),
        (looking_at_what_is_kept, "_local_scalar_dense reads a value"),
        (choosing, "the shape of what aten::index gives depends on values"),
        (choosing_by_place, "the shape of what aten::nonzero gives depends on values"),
    ],
)
def test_a_step_that_cannot_be_recorded_is_refused(
    turn: Callable[[genkit.Turn, genkit.Batch], genkit.Terms], reason: str, step: str, tmp_path: Path
) -> None:
    recipe = recipe_with(step=step)
    message = f"step = '{step}': a step of this model cannot be recorded .*{reason}.*use --step eager or compiled"
    with pytest.raises(genkit.InvalidOption, match=message):
        train(Trainer(task_of(turn), recipe.training, CPU, quiet), tmp_path, recipe)


def test_a_step_that_nobody_asked_to_record_goes_on_without(tmp_path: Path) -> None:
    warnings: list[str] = []
    recipe = recipe_with()
    trainer = Trainer(task_of(looking), recipe.training, CPU, quiet)
    inner = EagerStep(trainer.turns, trainer.training, recipe.training, CPU, trainer.meter, recorded=True)
    trainer.step = GraphStep(inner, Tracer(compiled=False), warnings.append)
    train(trainer, tmp_path, recipe)
    (warning,) = warnings
    assert warning == (
        "a step cannot be recorded as a CUDA graph (aten::_local_scalar_dense reads a value); training goes on without"
    )


def test_a_recording_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """The first turn has taken its step when the second one reads a value, and the whole step is taken again."""
    ends = []
    for otherwise in (None, lambda _: None):
        recipe, task = recipe_with(), noisy_task()
        one, other = task.turns()
        turns = [one, genkit.Turn("other", lambda batch, other=other: looking(other, batch), other.parameters)]
        task = genkit.Task(task.module, lambda turns=turns: turns, task.graphs, task.data)
        trainer = Trainer(task, recipe.training, CPU, quiet)
        if otherwise is not None:
            inner = EagerStep(trainer.turns, trainer.training, recipe.training, CPU, trainer.meter, recorded=True)
            trainer.step = GraphStep(inner, Tracer(compiled=False), otherwise)
        ends.append(train(trainer, tmp_path / str(len(ends)), recipe))
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_is_recorded_as_it_is_or_refused(name: str, tmp_path: Path) -> None:
    """What one computes in Python would stand still."""
    ends = []
    for step in ("eager", "graph"):
        torch.manual_seed(0)
        module, x = nn.Linear(3, 3, bias=False), torch.rand(43, 3)
        turn = genkit.Turn(
            "main",
            lambda batch, module=module: genkit.Terms((module(batch.x) - batch.x).square().sum(1)),
            list(module.parameters()),
        )
        data = genkit.Data(TensorDataset(x), TensorDataset(x), (3,))
        task = genkit.Task(module, lambda turn=turn: [turn], lambda: [], data)
        recipe = recipe_with(optimizer=name, step=step)
        trainer = Trainer(task, recipe.training, CPU, quiet)
        if step == "graph" and name in LOOKING:
            with pytest.raises(genkit.InvalidOption, match="reads a value"):
                train(trainer, tmp_path / step, recipe)
            return
        ends.append(train(trainer, tmp_path / step, recipe))
    for key, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][key]), key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": "graph", "sharded": True}, "sharded layers are gathered between operations"),
        ({"step": "compiled", "sharded": True}, "sharded layers are gathered between operations"),
    ],
)
def test_a_strategy_that_does_not_suit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(genkit.InvalidOption, match=message):
        Trainer(noisy_task(), recipe_with(**options).training, CPU, quiet)


def test_compiled_steps_differ_by_rounding_alone(here: Genkit, tmp_path: Path) -> None:
    """Six whole batches and a partial one, twice."""
    quick = [
        "--epochs",
        2,
        "--batch-size",
        64,
        "--set",
        f"dataset.limit={64 * 6 + 9}",
        "--set",
        "training.sample_every=0",
    ]
    ends = []
    for step in ("eager", "compiled", "compiled_graph"):
        here("train", "--model", "mnist_vae", *quick, "--step", step, "--out", tmp_path / step)
        ends.append(end_of(genkit.Run.open(tmp_path / step)))
    eager, *others = ends
    for name, tensor in eager.items():
        for compiled in others:
            if name.startswith("random."):
                assert torch.equal(tensor, compiled[name]), name
            else:
                torch.testing.assert_close(compiled[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", ["compiled", "compiled_graph"])
def test_what_cannot_be_compiled_is_said_with_the_way_round(
    step: str, here: Genkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no C++ compiler, and no kernel of an earlier run."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        quick = ["--epochs", 1, "--set", "dataset.limit=256", "--step", step, "--out", tmp_path / "run"]
        done = here("train", "--model", "mnist_ae", *quick, check=False)
    assert done.returncode == 2
    assert f"step = '{step}': torch.compile fails (" in done.stderr
    assert "it needs a C++ compiler on a CPU" in done.stderr
    assert "--step eager does without" in done.stderr


def test_accumulated_batches_are_the_large_ones_where_there_is_no_noise_and_near_where_there_is(
    here: Genkit, tmp_path: Path
) -> None:
    quick = ["--batch-size", 128, "--set", "dataset.limit=1000", "--set", "training.sample_every=0"]
    for model, epochs in (("mnist_ae", 2), ("mnist_vae", 8)):
        ends = []
        for parts in (1, 4):
            run = tmp_path / f"{model}-{parts}"
            here("train", "--model", model, "--epochs", epochs, *quick, "--accumulate", parts, "--out", run)
            ends.append(genkit.Run.open(run))
        whole, accumulated = (run.metrics()[-1]["train"]["loss"] for run in ends)
        if model == "mnist_ae":
            one, other = map(end_of, ends)
            for name, tensor in one.items():
                torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
            assert accumulated == pytest.approx(whole, rel=1e-6)
        else:
            assert accumulated == pytest.approx(whole, rel=0.02)
            assert accumulated != whole, "its noise is drawn part by part"


@pytest.mark.parametrize("parts", [3, 100])
def test_a_batch_in_parts_gives_the_gradients_of_the_whole(parts: int, tmp_path: Path) -> None:
    ends = []
    for accumulate in (1, parts):
        torch.manual_seed(0)
        module, x = nn.Linear(3, 3), torch.rand(43, 3)
        turn = genkit.Turn(
            "main",
            lambda batch, module=module: genkit.Terms((module(batch.x) - batch.x).square().sum(1)),
            list(module.parameters()),
        )
        data = genkit.Data(TensorDataset(x), TensorDataset(x), (3,))
        task = genkit.Task(module, lambda turn=turn: [turn], lambda: [], data)
        recipe = recipe_with(optimizer="sgd", learning_rate=0.1, batch_size=10, accumulate=accumulate)
        ends.append(train(Trainer(task, recipe.training, CPU, quiet), tmp_path / str(accumulate), recipe))
    torch.testing.assert_close(ends[1]["weight"], ends[0]["weight"])
    torch.testing.assert_close(ends[1]["metrics"], ends[0]["metrics"])


def mnist(limit: int, **options: Any) -> tuple[genkit.Recipe, genkit.Task]:
    registry = genkit.load_plugins().registry
    recipe = registry.get("model", "mnist_vae").load().with_settings({"dataset.limit": limit})
    recipe = resolve(recipe.with_training(epochs=2, batch_size=64, sample_every=0, **options), registry)
    seed_all(0)
    return recipe, assemble(recipe, registry)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("step", ["auto", "graph", "compiled", "compiled_graph"])
def test_the_strategies_agree_on_cuda(step: str, tmp_path: Path) -> None:
    device, ends = torch.device("cuda", 0), []
    for name in ("eager", step):
        recipe, task = mnist(64 * 6 + 9, step=name)
        ends.append(train(Trainer(task, recipe.training, device, quiet), tmp_path / name, recipe))
    for name, tensor in ends[0].items():
        if step in ("auto", "graph") or name.startswith("random."):
            assert torch.equal(tensor, ends[1][name]), name
        else:
            torch.testing.assert_close(ends[1][name], tensor, rtol=1e-4, atol=1e-5)
