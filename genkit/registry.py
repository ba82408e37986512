"""What plugins contribute: components, models, exporters, runtimes and trackers, by kind and name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from genkit import places
from genkit.errors import GenkitError, InvalidComponent, unknown
from genkit.recipe import Recipe

KINDS = ("model", "encoder", "decoder", "prior", "loss", "dataset", "exporter", "runtime", "tracker")
CONFIGURED = ("encoder", "decoder", "prior", "loss", "dataset")
"""The kinds whose factories take options: those of which a recipe chooses one each."""
DATA_DIR = "data_dir"
"""The argument of a dataset's factory that is not an option of it: the folder of the user's data."""
ALL_RUNTIMES = "all"
"""In the place of a runtime's name: every one that is installed."""
NO_TRACKER = "none"
"""In the place of a tracker's name: whatever the run was given before, nothing follows it now."""
_RESERVED = {"runtime": ALL_RUNTIMES, "tracker": NO_TRACKER}

Factory = Callable[..., Any] | str
"""A callable, or ``"package.module:Name"``, which is imported when it is first needed."""


@dataclass(frozen=True)
class Entry:
    """One registered name. ``target`` is a recipe for a model and a factory for everything else.

    ``place`` is where it was registered, ``file:line``.
    """

    kind: str
    name: str
    target: Factory | Recipe
    plugin: str = ""
    place: str = field(default="", compare=False)

    @property
    def home(self) -> str:
        """The module that the factory is from; empty for a recipe."""
        if isinstance(self.target, str):
            return self.target.partition(":")[0]
        return "" if isinstance(self.target, Recipe) else places.home(self.target)

    def load(self) -> Any:
        """The factory itself (or the recipe), imported now if it was registered by its name."""
        if not isinstance(self.target, str):
            return self.target
        module, _, name = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except GenkitError:
            raise
        except Exception as error:
            raise InvalidComponent(
                f"the {self.kind} {self.name!r} of the plugin {self.plugin!r} cannot be loaded from {self.target!r}: "
                f"{type(error).__name__}: {error}",
                culprit=self,
            ) from error


@dataclass
class Registry:
    """Named contributions. A name that is taken within its kind stays with whoever took it first."""

    plugin: str = ""
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    refused: list[tuple[Entry, Entry]] = field(default_factory=list)
    """Registrations that came too late, each with the one that holds the name."""

    def encoder(self, name: str, factory: Factory) -> None:
        """Contributes ``factory(spec, **options) -> Encoder``."""
        self._add("encoder", name, factory)

    def decoder(self, name: str, factory: Factory) -> None:
        """Contributes ``factory(spec, **options) -> Decoder``."""
        self._add("decoder", name, factory)

    def prior(self, name: str, factory: Factory) -> None:
        """Contributes ``factory(spec, **options) -> Prior``."""
        self._add("prior", name, factory)

    def loss(self, name: str, factory: Factory) -> None:
        """Contributes ``factory(spec, **options) -> Loss``."""
        self._add("loss", name, factory)

    def dataset(self, name: str, factory: Factory) -> None:
        """Contributes ``factory(**options) -> Data``; one that takes ``data_dir`` is given the user's."""
        self._add("dataset", name, factory)

    def exporter(self, name: str, factory: Factory) -> None:
        """Contributes ``factory() -> Exporter``, for ``genkit export --format NAME``."""
        self._add("exporter", name, factory)

    def runtime(self, name: str, factory: Factory) -> None:
        """Contributes ``factory() -> Runtime``, for ``genkit verify --runtime NAME``."""
        self._add("runtime", name, factory)

    def tracker(self, name: str, factory: Factory) -> None:
        """Contributes ``factory() -> object`` with lifecycle hooks, for ``genkit train --tracker NAME``."""
        self._add("tracker", name, factory)

    def model(self, recipe: Recipe) -> None:
        """Contributes a model, under its recipe's name."""
        if not isinstance(recipe, Recipe):
            raise TypeError(f"registry.model takes a genkit.Recipe, not {recipe!r}")
        self.add(Entry("model", recipe.name, recipe, self.plugin, places.called()))

    def names(self, kind: str) -> list[str]:
        """The names registered under a kind, sorted."""
        return sorted(name for k, name in self.entries if k == kind)

    def get(self, kind: str, name: str) -> Entry:
        """The entry of that name, or ``UnknownName`` with the nearest match."""
        try:
            return self.entries[kind, name]
        except KeyError:
            raise unknown(kind, name, self.names(kind)) from None

    def add(self, entry: Entry) -> None:
        """Takes an entry, or notes that its name is taken."""
        held = self.entries.setdefault((entry.kind, entry.name), entry)
        if held is not entry:
            self.refused.append((entry, held))

    def _add(self, kind: str, name: str, factory: Factory) -> None:
        if not callable(factory) and not (isinstance(factory, str) and factory.count(":") == 1):
            raise TypeError(f"the factory of {kind} {name!r} must be callable or 'module:Name', not {factory!r}")
        if ":" in name:
            raise ValueError(f"the name of the {kind} {name!r} has a colon, behind which its first option is written")
        if name == _RESERVED.get(kind):
            raise ValueError(f"--{kind} {name} means something else; give the {kind} another name")
        self.add(Entry(kind, name, factory, self.plugin, places.called()))


def parameters_of(kind: str, factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a factory: what its signature names, less the spec that components take first."""
    parameters = list(inspect.signature(factory).parameters.values())
    options = parameters if kind == "dataset" else parameters[1:]
    return {p.name: p for p in options if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}


def option_faults(entry: Entry) -> list[str]:
    """What is wrong with the options of a component or a dataset that was registered as a callable.

    One that was registered by its name is not imported for that; it is asked when it is first used.
    """
    if entry.kind not in CONFIGURED or not callable(entry.target):
        return []
    faults = [option_fault(entry.kind, entry.name, p) for p in parameters_of(entry.kind, entry.target).values()]
    return [fault for fault in faults if fault]


def option_fault(kind: str, name: str, option: inspect.Parameter) -> str:
    """What an option of the factory of that kind and name lacks, and how it is written; empty where it lacks nothing.

    A type, always; and a default, but for the options of a dataset, which may be what only its user knows.
    """
    untyped = option.annotation is option.empty
    unset = option.default is option.empty
    lacks = ["type"] * untyped + ["default"] * (unset and kind != "dataset")
    if not lacks or (kind, option.name) == ("dataset", DATA_DIR):
        return ""
    kind_of_value = ("int" if unset else type(option.default).__name__) if untyped else str(option).partition(": ")[2]
    value = "" if unset and kind == "dataset" else f" = {'...' if unset else repr(option.default)}"
    return (
        f"the option {option.name!r} of the {kind} {name!r} has no {' and no '.join(lacks)}; write it as, e.g., "
        f"{option.name}: {kind_of_value}{value}"
    )
