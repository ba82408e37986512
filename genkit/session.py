"""What the commands do: plan and carry out a training run, load a trained one, measure it, export it."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from genkit.assemble import Composition, assemble, resolve
from genkit.data import length, take
from genkit.errors import GenkitError, InvalidComponent, InvalidOption, InvalidRun
from genkit.graphs import describe_prior, replaced
from genkit.inference import (
    ACTIVE,
    Density,
    asking,
    log_likelihood,
    posterior_means,
    squared_errors,
    variance_of_means,
)
from genkit.interfaces import Batch
from genkit.latent import LatentModel
from genkit.plugins import Plugins
from genkit.random import seeded
from genkit.recipe import Recipe
from genkit.registry import NO_TRACKER, Registry
from genkit.run import Checkpoint, Run
from genkit.task import Graph, Task
from genkit.training.batches import Batches, batches_of, for_measurement
from genkit.training.device import arithmetic, choose_device, describe_device
from genkit.training.loop import Trainer, measure
from genkit.training.step import checked_turns
from genkit.training.team import ALONE, Team

if TYPE_CHECKING:
    from genkit.bundle import Function, ReducedPrecision, Report


T = TypeVar("T")

_SAMPLES_OF_A_MEAN = 32
"""Of a posterior whose mean has no formula."""
_OBSERVATIONS_OF_A_LOSS = 2000
"""Of the test set, for the test loss of an exported graph. What is compared has the same observations and noise."""


@dataclass(frozen=True)
class Plan:
    """A training run that is about to begin or to go on."""

    path: Path
    recipe: Recipe
    begun: bool
    finished: bool


def plan(
    registry: Registry,
    *,
    model: str | Recipe | None,
    settings: Iterable[str] | Mapping[str, Any],
    training: Mapping[str, Any],
    out: Path | None,
    resume: bool,
) -> Plan:
    """What ``genkit train`` or ``genkit.train`` was asked to do, checked as far as it can be without loading data.

    Raises:
        GenkitError: where the request contradicts itself or what lies in ``out``.
    """
    if resume and out is None:
        raise InvalidOption("--resume: say which run with --out RUN")
    saved = Run.open(out).recipe if resume and out and not Run.vacant(out) else None
    if isinstance(model, Recipe):
        base = model
    elif saved is not None:
        base = saved
        if model and model != saved.name:
            raise InvalidRun(f"--model {model}: the run {out} is of the model {saved.name!r}; leave --model out")
    elif model:
        base = registry.get("model", model).load()
    else:
        raise InvalidOption("no model was named; use --model NAME (see `genkit models`) or --recipe FILE")
    recipe = resolve(base.with_settings(settings).with_training(**training), registry)
    path = out or Run.fresh_path(recipe.name)
    if saved is None:
        Run.require_vacant(path)
        return Plan(path, recipe, begun=False, finished=False)
    _require_same(path, resolve(saved, registry), recipe)
    done = max((checkpoint.position.epoch for checkpoint in Run(path).checkpoints()), default=-1)
    return Plan(path, recipe, begun=True, finished=done >= recipe.training.epochs)


def carry_out(
    plan: Plan,
    plugins: Plugins,
    *,
    device: str | None,
    data_dir: Path | None,
    init_from: Path | None,
    trackers: Sequence[str] | None = None,
    team: Team = ALONE,
) -> tuple[Run, str]:
    """Trains as planned; gives the run, and ``finished`` or the name of the signal that interrupted it.

    Every process of ``team`` has the same plan, and sees the same folder.

    What is None is as it was when the run was begun: the device, the data's folder, the weights to start from, and the
    trackers, which are those that the run was last given.
    """
    begun = Run.open(plan.path).environment if plan.begun else {}
    with (
        _tracking(plugins, trackers if team.leads else [], begun.get("trackers", [])) as following,
        _attributed(plan.recipe, plugins.registry),
    ):
        place = choose_device(device or begun.get("device_type", "auto"))
        data_dir, init_from = data_dir or _path(begun.get("data_dir")), init_from or _path(begun.get("init_from"))
        fresh = not (plan.begun and Run(plan.path).checkpoints())
        initial = Run.open(init_from).checkpoint("last") if init_from and fresh else None
        with team.one_after_another(), seeded(plan.recipe.training.seed):
            task = assemble(plan.recipe, plugins.registry, data_dir)
        if initial is not None:
            initial.load_into(task.module)
        trainer = Trainer(task, plan.recipe.training, place, plugins.notify, team)

        def begin() -> None:
            if plan.begun:
                run = Run.open(plan.path)
                run.recipe = plan.recipe
                if trackers is not None:
                    run.remember(trackers=following)
            else:
                made = environment(plan.recipe, plugins, place, data_dir, init_from)
                Run.create(plan.path, plan.recipe, made | {"trackers": following, "processes": team.size})

        team.once(begin)
        run = Run.open(plan.path)
        return run, trainer.fit(run)


@contextmanager
def _attributed(recipe: Recipe, registry: Registry) -> Iterator[None]:
    """Says which component of a recipe an ``InvalidComponent`` means that names a kind of component only."""
    try:
        yield
    except InvalidComponent as error:
        if isinstance(error.culprit, str):
            error.culprit = registry.get(error.culprit, recipe.components[error.culprit].use)
        raise


@contextmanager
def _tracking(plugins: Plugins, asked: Sequence[str] | None, remembered: Sequence[str]) -> Iterator[list[str]]:
    """Has the trackers that were asked for, or else those of before, follow what the block does; gives their names."""
    names = list(dict.fromkeys(remembered if asked is None else asked))
    if NO_TRACKER in names:
        if len(names) > 1:
            raise InvalidOption(f"--tracker {NO_TRACKER}: it means that nothing follows the run; leave the others out")
        names = []
    with ExitStack() as trackers:
        for name in names:
            try:
                trackers.enter_context(plugins.tracking(name))
            except GenkitError as error:
                if asked is not None:
                    raise
                remedy = f"The run has been followed by it; without: --tracker {NO_TRACKER}"
                raise type(error)(f"{error}\n{remedy}") from error
        yield names


@dataclass(frozen=True)
class Loaded:
    """A trained model, on its device."""

    task: Task
    model: LatentModel
    recipe: Recipe
    checkpoint: Checkpoint
    device: torch.device


def load(path: Path, registry: Registry, checkpoint: str, device: str, data_dir: Path | None) -> Loaded:
    """The model of a run as it was at a checkpoint, with its data.

    Raises:
        InvalidRun: if there is no such run or checkpoint, or it is damaged or another model's.
    """
    place = choose_device(device)
    run = Run.open(path)
    recipe, found = run.recipe, run.checkpoint(checkpoint)
    with seeded(recipe.training.seed), _attributed(recipe, registry):
        task = assemble(recipe, registry, data_dir or _path(run.environment.get("data_dir")))
    found.load_into(task.module)
    task.module.to(place).eval()
    assert isinstance(task.module, Composition)
    return Loaded(task, task.module.model, recipe, found, place)


def evaluate(loaded: Loaded, *, samples: int, seed: int) -> dict[str, Any]:
    """What can be measured on the test set; for what cannot, ``value`` is None and ``reason`` says why.

    The loss and its terms; the importance-weighted log-likelihood with ``samples`` samples; the reconstruction error;
    the number of active units (Burda et al. 2016).
    """
    task, options = loaded.task, loaded.recipe.training
    batches = batches_of(
        task.data, task.data.test, options.batch_size, task.value_range, None, loaded.device, options.workers
    )
    with arithmetic(options.precision if loaded.device.type == "cuda" else "fp32"):
        terms = measure(task, checked_turns(task.turns()), batches, loaded.device, seed)

    def over_the_test_set(measure_batch: Callable[[Batch], T]) -> list[T]:
        with asking(loaded.model, seed):
            return [measure_batch(batch) for batch in for_measurement(batches, seed)]

    position = loaded.checkpoint.position
    return {
        "model": loaded.recipe.name,
        "dataset": loaded.recipe.dataset.to_mapping(),
        "epoch": position.epoch,
        "step": position.step,
        "observations": batches.size,
        "terms": {name: value if math.isfinite(value) else None for name, value in terms.items()},
        "log_likelihood": {
            **_likelihood(Density(loaded.model, samples * batches.size), samples, over_the_test_set),
            "samples": samples,
            "units": "nats",
        },
        "reconstruction_error": _reconstruction_error(loaded.model, over_the_test_set),
        "active_units": {**_active_units(loaded.model, over_the_test_set), "threshold": ACTIVE},
    }


def _likelihood(density: Density, samples: int, over_the_test_set: Callable[..., list[Tensor]]) -> dict[str, Any]:
    model = density.model
    if model.encoder is None:
        return _missing("no density: the model has no encoder to propose latents")
    if not samples:
        return _missing("not asked for")
    try:
        return _mean(over_the_test_set(lambda batch: log_likelihood(model, batch, samples, density).cpu()))
    except NotImplementedError as error:
        if str(error).startswith("Could not run"):  # an operator that torch lacks on this device
            raise
        return _missing(f"no density: {error or 'a distribution of the model has no log_prob'}")


def _reconstruction_error(model: LatentModel, over_the_test_set: Callable[..., list[Tensor]]) -> dict[str, Any]:
    if model.encoder is None:
        return _missing("the model has no encoder, so it reconstructs nothing")
    units = "squared error of an observation" + ("" if model.spec.value_range is None else ", values in [0, 1]")
    return {**_mean(over_the_test_set(lambda batch: squared_errors(model, batch).cpu())), "units": units}


def _active_units(model: LatentModel, over_the_test_set: Callable[..., list[Any]]) -> dict[str, Any]:
    if model.encoder is None:
        return _missing("the model has no encoder")
    pairs = over_the_test_set(lambda batch: tuple(m.cpu() for m in posterior_means(model, batch, _SAMPLES_OF_A_MEAN)))
    if not pairs[0][0].is_floating_point():
        return _missing("the latents are codes, which have no variance")
    variances = variance_of_means(pairs)
    return {"value": int((variances > ACTIVE).sum()), "of": len(variances)}


def _mean(values: Sequence[Tensor]) -> dict[str, Any]:
    """The mean over the observations, and its standard error."""
    pooled = torch.cat(list(values)).double()
    mean = pooled.mean().item()
    if not math.isfinite(mean):
        return _missing(f"{mean} for {int((~pooled.isfinite()).sum())} of {len(pooled)} observations")
    return {"value": mean, "standard_error": pooled.std().item() / math.sqrt(len(pooled)) if len(pooled) > 1 else None}


def _missing(reason: str) -> dict[str, Any]:
    return {"value": None, "reason": reason}


def reduced_precisions(names: Iterable[str]) -> list[ReducedPrecision]:
    """Those of ``names`` that an export has to make besides fp32, each once, in the order of ``REDUCED``.

    Raises:
        InvalidOption: for one that there is not.
    """
    from genkit.bundle import REDUCED

    wanted = set(names)
    for name in sorted(wanted - {"fp32", *REDUCED}):
        raise InvalidOption(f"--precision {name}: it is one of fp32, {', '.join(REDUCED)}")
    return [name for name in REDUCED if name in wanted]


def export(
    loaded: Loaded,
    plugins: Plugins,
    target: Path,
    *,
    format_: str,
    opset: int,
    seed: int,
    precisions: Sequence[ReducedPrecision] = (),
) -> Report:
    """Publishes a proven bundle at ``target``, or raises ``ExportRefused`` and leaves it as it was."""
    exporter = plugins.registry.get("exporter", format_).load()()
    runtime = plugins.registry.get("runtime", "onnxruntime").load()()
    spec, position = loaded.model.spec, loaded.checkpoint.position
    with seeded(seed):
        about = {
            "recipe": _without_places(loaded.recipe.to_mapping()),
            "spec": {
                "event_shape": list(spec.event_shape),
                "latent_shape": list(spec.latent_shape),
                "value_range": spec.value_range and list(spec.value_range),
                "classes": spec.classes,
            },
            "prior": {**loaded.recipe.prior.to_mapping(), "distribution": describe_prior(loaded.model)},
            "checkpoint": {"epoch": position.epoch, "step": position.step},
            "versions": _versions("genkit-torch", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"),
        }
        report: Report = exporter.export(
            loaded.task.graphs(),
            target,
            about=about,
            opset=opset,
            runtimes=[runtime],
            seed=seed,
            precisions=precisions,
            score=_ExportedLoss(loaded, seed),
        )
    return report


class _ExportedLoss:
    """The test loss of a model with exported graphs in the place of its encoder or decoder."""

    def __init__(self, loaded: Loaded, seed: int) -> None:
        self.loaded, self.seed = loaded, seed
        self.observations = min(_OBSERVATIONS_OF_A_LOSS, length(loaded.task.data.test))

    def __call__(self, functions: Mapping[str, Function]) -> float:
        """The loss over the same observations, with the same noise, whatever ``functions`` are."""
        task, options = self.loaded.task, self.loaded.recipe.training
        turns = checked_turns(task.turns())
        if len(turns) > 1:
            raise GenkitError(f"the model has several losses: {', '.join(turn.name for turn in turns)}")
        graphs = {graph.name: graph for graph in task.graphs() if isinstance(graph, Graph)}
        with replaced(self.loaded.model, {name: (graphs[name], run) for name, run in functions.items()}):
            terms = measure(task, turns, self._batches(task, options.batch_size), self.loaded.device, self.seed)
        return terms["loss"]

    def _batches(self, task: Task, batch_size: int) -> Batches:
        """Test observations from all over the set, in memory."""
        size = length(task.data.test)
        with seeded(self.seed):
            chosen = take(task.data.test, [i * size // self.observations for i in range(self.observations)])
        subset = TensorDataset(*(part for part in chosen if part is not None))
        return batches_of(task.data, subset, batch_size, task.value_range, None, self.loaded.device, 0)


def environment(
    recipe: Recipe, plugins: Plugins, device: torch.device, data_dir: Path | None, init_from: Path | None
) -> dict[str, Any]:
    """What a run was made with: versions, device, seed, and the commit of each plugin where it is known."""
    contributing = [p for p in plugins.plugins.values() if p.entries]
    commits = {name: _commit(name) for name in {p.distribution for p in contributing}}
    return {
        "command": sys.argv[1:],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": _versions("genkit-torch", "torch", "torchvision", "numpy", "safetensors"),
        "device": describe_device(device),
        "device_type": device.type,
        "seed": recipe.training.seed,
        "data_dir": data_dir and str(data_dir.resolve()),
        "init_from": init_from and str(init_from.resolve()),
        "plugins": [
            {
                "name": p.name,
                "distribution": p.distribution,
                "version": p.version,
                "commit": commits[p.distribution],
            }
            for p in contributing
        ],
    }


def _without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for others to read: of paths on this machine, their last part."""
    return {
        key: _without_places(value)
        if isinstance(value, Mapping)
        else Path(value).name
        if isinstance(value, str) and Path(value).is_absolute()
        else value
        for key, value in recipe.items()
    }


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit(name: str) -> str | None:
    """The git commit that a distribution was installed from, by the record that pip keeps (PEP 610)."""
    try:
        record = json.loads(distribution(name).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    commit: str | None = record.get("vcs_info", {}).get("commit_id")
    if commit is None and record.get("url", "").startswith("file://"):
        folder = record["url"].removeprefix("file://")
        try:
            answer = subprocess.run(
                ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
            )
        except OSError:
            return None
        commit = answer.stdout.strip() or None
    return commit


def _require_same(path: Path, saved: Recipe, asked: Recipe) -> None:
    """A resumed run is the run that was begun; only what changes nothing already done may differ."""
    free = {"training.workers"} | ({"training.epochs"} if saved.training.schedule == "constant" else set())
    before, now = saved.flat(), asked.flat()
    for key in sorted(before.keys() | now.keys()):
        if key not in free and before.get(key) != now.get(key):
            raise InvalidRun(
                f"the run {path} was begun with {key} = {before.get(key)!r}, not {now.get(key)!r}; "
                "resume it as it is, or begin another with a new --out"
            )
