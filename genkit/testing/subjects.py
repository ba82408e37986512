"""What is tested: the registrations of a plugin, each composed into something that can be trained, on few data."""

from __future__ import annotations

import functools
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NoReturn

import pytest
import torch
from annotated_types import Ge
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from genkit import hookimpl, session
from genkit.assemble import Composition, assemble
from genkit.bundle import Bundle
from genkit.data import Transformed, length, take
from genkit.errors import PluginWarning, unknown
from genkit.inference import to_batch
from genkit.interfaces import Batch
from genkit.latent import LatentModel
from genkit.plugins import Plugins, load_plugins
from genkit.random import seeded
from genkit.recipe import Choice, Recipe
from genkit.registry import CONFIGURED, Entry
from genkit.run import Run
from genkit.session import Loaded
from genkit.task import Data, Task

TRAIN, TEST, BATCH, EPOCHS = 160, 48, 32, 2
"""Observations to train on and to test on, in a batch, and passes over them: what a test of a model costs."""

COMPONENTS = tuple(kind for kind in CONFIGURED if kind != "dataset")

REFERENCE = Recipe(
    "reference",
    description="what a component that comes without a model is composed with",
    dataset=Choice("genkit_testing_blobs"),
    encoder=Choice("mlp", hidden=32),
    decoder=Choice("mlp", hidden=32),
    prior=Choice("standard_normal"),
    loss=Choice("squared_error_kl"),
    latent_shape=(4,),
    value_range=(0.0, 1.0),
)
"""The components of ``mnist_vae``, on small pictures that need no file."""


def blobs(
    *, shape: tuple[Annotated[int, Ge(1)], ...] = (1, 8, 8), classes: Annotated[int, Ge(0)] = 0, seed: int = 0
) -> Data:
    """uint8 observations that differ smoothly: mixtures of a few fixed patterns.

    Args:
        shape: of one observation.
        classes: the number of labels; 0: no labels.
        seed: of everything that is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(3, *shape, generator=generator)
    sets = []
    for size in (TRAIN, TEST):
        weights = torch.rand(size, 3, generator=generator)
        x = (255 * torch.einsum("nk,k...->n...", weights / weights.sum(1, keepdim=True), patterns)).byte()
        labels = [torch.randint(classes, (size,), generator=generator)] if classes else []
        sets.append(TensorDataset(x, *labels))
    return Data(sets[0], sets[1], shape, classes)


def first(dataset: Dataset[Any], n: int) -> Dataset[Any]:
    """The first ``n`` observations, resident where all of them are."""
    if isinstance(dataset, Transformed):
        return Transformed(first(dataset.dataset, n), dataset.transform)
    if type(dataset) is TensorDataset:
        return TensorDataset(*(tensor[:n] for tensor in dataset.tensors))
    return Subset(dataset, range(min(n, len(dataset))))  # type: ignore[arg-type]  # what has no length is refused later


def shortened(factory: Callable[..., Data]) -> Callable[..., Data]:
    """The dataset factory with the same signature, and few observations."""

    @functools.wraps(factory)
    def few(*args: Any, **options: Any) -> Data:
        data = factory(*args, **options)
        if not isinstance(data, Data):
            return data  # which `assemble` refuses, with a better message
        return data._replace(train=first(data.train, TRAIN), test=first(data.test, TEST))

    return few


def installed() -> Plugins:
    """Everything that is installed. What is wrong with a plugin is for a test to say, and no warning here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return load_plugins()


def fail(place: str, problem: str, remedy: str) -> NoReturn:
    """Ends the test with what is wrong, where, and how it is mended."""
    pytest.fail(f"{place}: {problem}\n{remedy}", pytrace=False)


def require(condition: object, place: str, problem: str, remedy: str) -> None:
    """Ends the test unless ``condition`` holds."""
    if not condition:
        fail(place, problem, remedy)


@contextmanager
def blaming(place: str, doing: str, remedy: str) -> Iterator[None]:
    """Ends the test where the block raises, with the traceback of what it raised."""
    try:
        yield
    except Exception as error:
        message = str(error).strip() or "no message"
        raise AssertionError(f"{place}: {doing} raised {type(error).__name__}: {message}\n{remedy}") from error


def place_of(entry: Entry) -> str:
    """How messages call a registration."""
    return f"plugin {entry.plugin!r}, {entry.kind} {entry.name!r}"


@dataclass(frozen=True)
class Subject:
    """One registration under test, by the id that pytest shows: ``decoder-waves``."""

    entry: Entry
    recipe: Recipe = REFERENCE

    def __str__(self) -> str:
        return f"{self.entry.kind}-{self.entry.name}"


@dataclass(frozen=True)
class Suite:
    """What one call of ``conformance`` tests."""

    plugins: Sequence[str]
    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    skip: Sequence[str] = ()

    @classmethod
    def of(cls, plugin: str | None, settings: Mapping[str, Sequence[str]], skip: Sequence[str]) -> Suite:
        """The suite of one plugin, or of all that is installed; every name in it exists."""
        found = installed()
        if plugin is not None and plugin not in found.plugins:
            raise unknown("plugin", plugin, found.plugins)
        suite = cls([plugin] if plugin is not None else list(found.plugins), settings, skip)
        known = [str(subject) for subject in suite.everything]
        for name in (*settings, *skip):
            if name not in known:
                raise unknown("registration", name, known, "Registered")
        return suite

    @cached_property
    def everything(self) -> list[Subject]:
        """Every registration of the plugins, left out or not."""
        entries = installed().registry.entries.values()
        return [Subject(entry, self._recipe(entry)) for entry in entries if entry.plugin in self.plugins]

    @property
    def entries(self) -> list[Subject]:
        """What is tested."""
        return [subject for subject in self.everything if str(subject) not in self.skip]

    def of_kind(self, *kinds: str) -> list[Subject]:
        """What is tested, of some kinds."""
        return [subject for subject in self.entries if subject.entry.kind in kinds]

    @property
    def trained(self) -> list[Subject]:
        """The models, and the components that are in none of them."""
        used = {
            (kind, choice.use) for model in self.of_kind("model") for kind, choice in model.recipe.components.items()
        }
        lone = [s for s in self.of_kind(*COMPONENTS) if (s.entry.kind, s.entry.name) not in used]
        return self.of_kind("model") + lone

    @property
    def datasets(self) -> list[Subject]:
        """The datasets as the models use them, or by themselves."""
        subjects = []
        for subject in self.of_kind("dataset"):
            used = [m.recipe for m in self.of_kind("model") if m.recipe.dataset.use == subject.entry.name]
            recipes = {str(recipe.dataset): recipe for recipe in used} or {"": subject.recipe}
            subjects += [replace(subject, recipe=recipe) for recipe in recipes.values()]
        return subjects

    def _recipe(self, entry: Entry) -> Recipe:
        """The model that a registration is tested in."""
        if isinstance(entry.target, Recipe):
            recipe = entry.target
        elif entry.kind in (*COMPONENTS, "dataset"):
            choice: Any = Choice(entry.name)
            recipe = replace(REFERENCE, **{"name": f"{entry.kind}-{entry.name}", entry.kind: choice})
        else:
            recipe = REFERENCE
        return recipe.with_settings(self.settings.get(f"{entry.kind}-{entry.name}", ()))


class Interrupt:
    """A person who presses Ctrl-C after the first epoch."""

    @hookimpl
    def genkit_epoch_ended(self) -> None:
        """Presses it."""
        signal.raise_signal(signal.SIGINT)


class Composed:
    """A model, and its runs, made by the commands' own code when they are first asked for."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject, self.recipe, self.folder = subject, subject.recipe, folder
        self.plugins = self._with_few_data()
        self._failed: set[str] = set()

    @property
    def place(self) -> str:
        """How messages call it."""
        if self.subject.entry.kind == "model":
            return place_of(self.subject.entry)
        others = [f"{kind} {c.use!r}" for kind, c in self.recipe.components.items() if kind != self.subject.entry.kind]
        return f"{place_of(self.subject.entry)} (composed with {', '.join(others[1:])})"

    def part(self, kind: str) -> str:
        """How messages call one of its components, whoever contributed it."""
        entry = self.plugins.registry.get(kind, self.recipe.components[kind].use)
        return f"{place_of(entry)} (in {self.recipe.name!r})" if entry != self.subject.entry else self.place

    def train(self, out: Path, *, seed: int = 0, stop: bool = False, trackers: Sequence[str] | None = None) -> Run:
        """A run of its own, or the rest of the run that is there."""
        resume = out.exists()
        plan = session.plan(
            self.plugins.registry,
            model=None if resume else self.recipe.name,
            settings=[],
            training={}
            if resume
            else {"epochs": EPOCHS, "batch_size": BATCH, "seed": seed, "sample_every": EPOCHS, "evaluate_every": 1},
            out=out,
            resume=resume,
        )
        watched = self._with_few_data()
        if stop:
            watched.observe("person", Interrupt())
        run, outcome = session.carry_out(plan, watched, device=None, data_dir=None, init_from=None, trackers=trackers)
        assert outcome == ("SIGINT" if stop else "finished")
        return run

    @cached_property
    def fresh(self) -> Task:
        """The model as it is built, on the CPU: what can be said of it before it is trained."""
        remedy = "A factory is called with the Spec, if it is no dataset's, and its options."
        with self._attempt("building it", remedy), seeded(0):
            return assemble(self.recipe, self.plugins.registry)

    @property
    def whole(self) -> LatentModel:
        """The model of ``fresh``, without its loss."""
        assert isinstance(self.fresh.module, Composition)
        return self.fresh.module.model

    @cached_property
    def run(self) -> Run:
        """The run that most tests look at."""
        with self._attempt("training it", "Mend what the traceback shows; what needs a trained model is skipped."):
            return self.train(self.folder / "run")

    @cached_property
    def loaded(self) -> Loaded:
        """The trained model, where `auto` puts it."""
        return session.load(self.run.path, self.plugins.registry, "last", "auto", None)

    @cached_property
    def on_cpu(self) -> Loaded:
        """The trained model where graphs are asked for."""
        return session.load(self.run.path, self.plugins.registry, "last", "cpu", None)

    @cached_property
    def bundle(self) -> Bundle:
        """Its proven graphs, to be read."""
        with self._attempt("exporting it", "See what `genkit export` says of it."):
            session.export(self.on_cpu, self.plugins, self.folder / "bundle", format_="onnx", opset=18, seed=0)
        return Bundle.open(self.folder / "bundle")

    def batch(self, n: int) -> Batch:
        """``n`` test observations, as the model sees them, on the CPU; again from the first where there are fewer."""
        test = self.fresh.data.test
        with seeded(0), blaming(self.part("dataset"), "reading it", "Items are x, (x,) or (x, label), by position."):
            return to_batch(self.whole, *take(test, [i % length(test) for i in range(n)]))

    @contextmanager
    def _attempt(self, doing: str, remedy: str) -> Iterator[None]:
        """Fails in the first test that needs what the block does; the others are skipped."""
        if doing in self._failed:
            pytest.skip(f"{doing} fails, as the first test that needed it says")
        self._failed.add(doing)
        with blaming(self.place, doing, remedy):
            yield
        self._failed.remove(doing)

    def _with_few_data(self) -> Plugins:
        """Everything that is installed, the model, and few observations in each dataset."""
        found = installed()
        entries = found.registry.entries
        for (kind, name), entry in list(entries.items()):
            if kind == "dataset" and name == self.recipe.dataset.use:
                entries[kind, name] = Entry(kind, name, shortened(entry.load()), entry.plugin)
        entries["dataset", REFERENCE.dataset.use] = Entry("dataset", REFERENCE.dataset.use, blobs, "genkit.testing")
        entries["model", self.recipe.name] = Entry("model", self.recipe.name, self.recipe, self.subject.entry.plugin)
        return found


def weights(run: Run, checkpoint: str = "last") -> dict[str, Tensor]:
    """The weights of a checkpoint, by name."""
    from safetensors.torch import load_file

    return load_file(run.checkpoint(checkpoint).path / "weights.safetensors")


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """The names of the weights that are not the same to the bit."""
    return [name for name in one.keys() | other.keys() if name not in one or not torch.equal(one[name], other[name])]


def timeless(run: Run) -> list[dict[str, Any]]:
    """The metrics of a run, without what a clock says."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in run.metrics()]
