"""What every model can do, whoever registered it. A recipe that is added tomorrow is covered without an edit.

Each is trained through the commands' own code, on the first few observations of its own data.
"""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

import genkit
from genkit import inference, pictures, session
from genkit.graphs import latent_graphs
from genkit.inference import asking
from genkit.interfaces import unvalidated
from genkit.latent import draw
from genkit.random import seeded
from genkit.registry import Entry
from genkit.run import Run
from genkit.session import Loaded
from genkit.training.batches import batches_of

TRAIN, TEST, BATCH = 160, 48, 32


def first(dataset: Dataset[Any], n: int) -> Dataset[Any]:
    if isinstance(dataset, genkit.Transformed):
        return genkit.Transformed(first(dataset.dataset, n), dataset.transform)
    if type(dataset) is TensorDataset:
        return TensorDataset(*(tensor[:n] for tensor in dataset.tensors))
    return Subset(dataset, range(min(n, len(dataset))))  # type: ignore[arg-type]


def shortened(factory: Callable[..., genkit.Data]) -> Callable[..., genkit.Data]:
    @functools.wraps(factory)
    def few(*args: Any, **options: Any) -> genkit.Data:
        data = factory(*args, **options)
        return data._replace(train=first(data.train, TRAIN), test=first(data.test, TEST))

    return few


@functools.cache
def plugins() -> genkit.Plugins:
    """Everything that is installed, with few observations in each dataset."""
    found = genkit.load_plugins()
    for (kind, name), entry in list(found.registry.entries.items()):
        if kind == "dataset":
            found.registry.entries[kind, name] = Entry(kind, name, shortened(entry.load()), entry.plugin)
    return found


class Interrupt:
    """A person who presses Ctrl-C after the first epoch."""

    @genkit.hookimpl
    def genkit_epoch_ended(self) -> None:
        signal.raise_signal(signal.SIGINT)


def train(model: str, out: Path, *, seed: int = 0, stop: bool = False) -> Run:
    resume = out.exists()
    plan = session.plan(
        plugins().registry,
        model=None if resume else model,
        settings=[],
        training={} if resume else {"epochs": 2, "batch_size": BATCH, "seed": seed, "sample_every": 2},
        out=out,
        resume=resume,
    )
    watched = genkit.load_plugins() if stop else plugins()
    if stop:
        watched.registry = plugins().registry
        watched.observe("person", Interrupt())
    run, outcome = session.carry_out(plan, watched, device=None, data_dir=None, init_from=None)
    assert outcome == ("SIGINT" if stop else "finished")
    return run


def weights(run: Run, checkpoint: str = "last") -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(run.checkpoint(checkpoint).path / "weights.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def timeless(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in run.metrics()]


def models() -> list[Any]:
    names = genkit.load_plugins().registry.names("model")
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


@pytest.fixture(scope="module", params=models())
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(model: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(model, tmp_path_factory.mktemp(model) / "run")


@pytest.fixture(scope="module")
def loaded(run: Run) -> Loaded:
    return session.load(run.path, plugins().registry, "last", "auto", None)


@pytest.fixture(scope="module")
def on_cpu(run: Run) -> Loaded:
    """Where graphs are asked for."""
    return session.load(run.path, plugins().registry, "last", "cpu", None)


@pytest.fixture(scope="module")
def batch(loaded: Loaded) -> genkit.Batch:
    data = loaded.task.data
    batches = batches_of(data, data.train, 8, loaded.task.value_range, 0, loaded.device, 0)
    with seeded(0):
        return batches.load(next(batches.epoch(0)))


def test_a_pass_has_the_shapes_of_the_spec(loaded: Loaded, batch: genkit.Batch) -> None:
    spec = loaded.model.spec
    assert batch.x.shape == (8, *spec.event_shape)
    if spec.value_range:
        assert spec.value_range[0] <= batch.x.min() <= batch.x.max() <= spec.value_range[1]
    with asking(loaded.model, 0):
        step = loaded.model(batch, 3)
    assert step.z.shape == (3, 8, *spec.latent_shape)
    assert step.likelihood.batch_shape == (3, 8)
    assert step.likelihood.event_shape == spec.event_shape
    assert step.likelihood.mean.shape == (3, 8, *spec.event_shape)
    assert step.prior.batch_shape in ((), (8,))
    assert step.prior.event_shape == spec.latent_shape
    if step.posterior is not None:
        assert (step.posterior.batch_shape, step.posterior.event_shape) == ((8,), spec.latent_shape)


def test_each_turn_has_gradients_for_all_of_its_parameters_and_for_no_others(
    loaded: Loaded, batch: genkit.Batch
) -> None:
    module = loaded.task.module
    turns = loaded.task.turns()
    trained = {id(p) for turn in turns for p in turn.parameters}
    idle = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in trained]
    assert not idle, f"in no turn: {idle}"
    for turn in turns:
        module.zero_grad()
        with unvalidated(), seeded(0):
            turn(batch).total.backward(inputs=list(turn.parameters))
        own = {id(p) for p in turn.parameters}
        for name, parameter in module.named_parameters():
            assert (parameter.grad is not None) == (id(parameter) in own), (turn.name, name)
            assert parameter.grad is None or parameter.grad.isfinite().all(), (turn.name, name)
    module.zero_grad()


def test_training_moves_every_parameter(run: Run, loaded: Loaded) -> None:
    before, after = weights(run, "0"), weights(run)
    still = [name for name, _ in loaded.task.module.named_parameters() if torch.equal(before[name], after[name])]
    assert not still


def test_the_seed_decides_the_run(model: str, run: Run, tmp_path: Path) -> None:
    assert same(weights(train(model, tmp_path / "again")), weights(run))
    assert not same(weights(train(model, tmp_path / "other", seed=1), "0"), weights(run, "0"))


def test_a_run_that_was_stopped_and_resumed_is_the_run_that_was_not(model: str, run: Run, tmp_path: Path) -> None:
    stopped = train(model, tmp_path / "run", stop=True)
    assert [checkpoint.position.epoch for checkpoint in stopped.checkpoints()][-1] == 1
    resumed = train(model, tmp_path / "run")
    assert same(weights(resumed), weights(run))
    assert timeless(resumed) == timeless(run)


def test_its_metrics_and_pictures_are_there(run: Run, loaded: Loaded) -> None:
    for row in run.metrics():
        assert row["train"].keys() == row["test"].keys()
        assert all(isinstance(value, float) for value in (*row["train"].values(), *row["test"].values()))
    drawn = {"samples"} if loaded.model.encoder is None else {"samples", "reconstructions"}
    assert {path.parent.name for path in run.path.glob("*/epoch_*.png")} == drawn


def test_its_samples_follow_the_seed_and_stay_in_range(loaded: Loaded) -> None:
    spec = loaded.model.spec
    x = inference.sample(loaded.model, 6, seed=3)
    assert x.shape == (6, *spec.event_shape)
    assert x.isfinite().all()
    if spec.value_range:
        assert 0 <= x.min() <= x.max() <= 1
    assert torch.equal(x, inference.sample(loaded.model, 6, seed=3))
    assert not torch.equal(x, inference.sample(loaded.model, 6, seed=4))
    assert pictures.samples(loaded.model, 6).width > 0


def test_it_draws_what_it_is_asked_for_where_it_takes_a_label(on_cpu: Loaded) -> None:
    spec = on_cpu.model.spec
    graphs = [graph for graph in latent_graphs(on_cpu.model, on_cpu.task.data) if graph.name in ("prior", "decoder")]
    if any(isinstance(graph, genkit.Graph) and "condition" in graph.inputs for graph in graphs):
        one, other = (inference.sample(on_cpu.model, 4, condition=label) for label in (0, spec.classes - 1))
        assert not torch.equal(one, other)
    else:
        with pytest.raises(genkit.InvalidOption, match="label"):
            inference.sample(on_cpu.model, 4, condition=0)


def test_it_is_evaluated_and_what_cannot_be_measured_says_why(loaded: Loaded) -> None:
    result = session.evaluate(loaded, samples=2, seed=0)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["observations"] == TEST
    assert result["terms"] == pytest.approx(session.evaluate(loaded, samples=0, seed=0)["terms"])
    for key in ("log_likelihood", "reconstruction_error", "active_units"):
        assert result[key]["value"] is not None or result[key]["reason"], key
    if loaded.model.encoder is not None:
        assert result["reconstruction_error"]["value"] >= 0


def test_its_bundle_is_proven_and_draws_what_the_model_draws(on_cpu: Loaded, tmp_path: Path) -> None:
    report = session.export(on_cpu, plugins(), tmp_path / "bundle", format_="onnx", opset=18, seed=0)
    assert report.ok
    bundle = genkit.Bundle.open(tmp_path / "bundle")
    present = {graph.name for graph in bundle.manifest.graphs}
    absent = {graph.name: graph.reason for graph in bundle.manifest.absent}
    assert {"encoder", "decoder"} <= present | absent.keys()
    assert all(len(reason) > 10 for reason in absent.values())
    loaded = genkit.load_bundle(tmp_path / "bundle")
    if "prior" in absent:
        with pytest.raises(genkit.GenkitError, match="sample from the run"):
            loaded.sample(6)
        return
    labelled = any(value.name == "condition" for graph in bundle.manifest.graphs for value in graph.inputs)
    for condition in (0, on_cpu.model.spec.classes - 1) if labelled else (None,):
        drawn = torch.from_numpy(loaded.sample(600, seed=0, condition=condition))
        alike(drawn, inference.sample(on_cpu.model, 600, seed=0, condition=condition))


def test_a_learned_prior_is_exported_as_it_draws(on_cpu: Loaded) -> None:
    graphs = {graph.name: graph for graph in latent_graphs(on_cpu.model, on_cpu.task.data)}
    learned = any(True for _ in on_cpu.model.prior.parameters())
    assert ("prior" in graphs) or not learned
    graph = graphs.get("prior")
    if not isinstance(graph, genkit.Graph):
        return
    n, generator = 4000, torch.Generator().manual_seed(0)
    with asking(on_cpu.model, 0):
        values = {name: value.draw(n, generator) for name, value in graph.inputs.items()}
        if "condition" in values:
            values["condition"] = torch.full((n,), on_cpu.model.spec.classes - 1)
        (z,) = graph.module(*values.values())
        (again,) = graph.module(*values.values())
        expected = draw(on_cpu.model.prior_given(values.get("condition")), 1, n)[0]
    assert torch.equal(z, again)
    alike(z, expected)


def alike(one: Tensor, other: Tensor) -> None:
    """Two sets of draws whose means and deviations agree as far as their numbers allow."""
    assert one.shape == other.shape
    n, spread = len(one), (one.var(0) + other.var(0)).sqrt()
    varying = spread > 1e-3
    assert ((one.mean(0) - other.mean(0)).abs() <= 6 * spread / n**0.5 + 1e-4).all()
    assert (one.std(0) / other.std(0)).log().abs()[varying].median() < 0.2
