"""From a recipe and the registry to a task: options checked against signatures, components built and wired."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter
from pydantic_core import PydanticSerializationError
from torch import nn

from genkit import pictures
from genkit.errors import InvalidComponent, InvalidOption, unknown
from genkit.files import cache_directory
from genkit.graphs import latent_graphs
from genkit.interfaces import Component, Decoder, Encoder, Loss, Prior, Spec
from genkit.latent import LatentModel
from genkit.recipe import Choice, Recipe, TrainingOptions, checked, parse_value
from genkit.registry import DATA_DIR, Entry, Registry, option_fault, parameters_of
from genkit.task import Data, Task

_INTERFACES: Mapping[str, type[Component]] = {"encoder": Encoder, "decoder": Decoder, "prior": Prior, "loss": Loss}


class Composition(nn.Module):
    """A model and its loss: what moves to the device, is saved and is resumed."""

    def __init__(self, model: LatentModel, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss


def resolve(recipe: Recipe, registry: Registry) -> Recipe:
    """The recipe with every option spelt out and checked against its factory's signature.

    Raises:
        UnknownName: for a component or an option that does not exist.
        InvalidOption: for a value of the wrong type or out of range.
    """
    choices: dict[str, Any] = {}
    for kind, written in recipe.components.items():
        choice, entry = _chosen(kind, written, registry)
        values = _options(entry, choice)
        choices[kind] = Choice(choice.use, **{name: _plain(f"{kind}.{name}", v) for name, v in values.items()})
    return replace(recipe, **choices)


def assemble(recipe: Recipe, registry: Registry, data_dir: Path | None = None) -> Task:
    """Builds the data, the components and the task of a recipe. New weights come from the global random state.

    Args:
        recipe: resolved or not; its options are checked either way.
        registry: where the names are looked up.
        data_dir: given to a dataset factory that takes one; None: the cache.

    Raises:
        InvalidComponent: where a factory returns something that is not of its interface.
    """
    data = build_dataset(recipe.dataset, registry, data_dir)
    spec = Spec(tuple(data.event_shape), recipe.latent_shape, recipe.value_range, data.classes)
    parts: dict[str, Any] = {"encoder": None}
    for kind, interface in _INTERFACES.items():
        if kind in recipe.components:
            parts[kind] = _component(kind, interface, recipe.components[kind], registry, spec)
    loss = parts.pop("loss")
    model = LatentModel(spec, **parts)
    for component in (*(part for part in parts.values() if part is not None), loss):
        component.prepare(model, data)
    return Task(
        module=Composition(model, loss),
        turns=lambda: loss.turns(model),
        graphs=lambda: latent_graphs(model, data),
        data=data,
        value_range=recipe.value_range,
        pictures=pictures.of(model, data),
    )


def _plain(name: str, value: Any) -> Any:
    """An option's value as the recipe's file holds it."""
    try:
        return TypeAdapter(Any).dump_python(value, mode="json")
    except PydanticSerializationError:
        raise InvalidOption(
            f"{name} = {value!r}: a recipe holds plain data; let the component take a name, a number or a list instead"
        ) from None


def describe_options(recipe: Recipe, registry: Registry) -> list[dict[str, str]]:
    """Every option of a resolved recipe: its ``--set`` key, its type and its value, as text."""
    rows = []
    for kind, choice in recipe.components.items():
        rows.append({"key": kind, "type": "one of: " + ", ".join(registry.names(kind)), "value": choice.use})
        factory = registry.get(kind, choice.use).load()
        for name, parameter in parameters_of(kind, factory).items():
            if name in choice.options:
                described = _describe(_type(parameter, factory))
                rows.append({"key": f"{kind}.{name}", "type": described, "value": str(choice.options[name])})
    hints = get_type_hints(TrainingOptions, include_extras=True)
    for name, value in vars(recipe.training).items():
        if name in hints:
            rows.append({"key": f"training.{name}", "type": _describe(hints[name]), "value": str(value)})
    return rows


def _describe(kind: Any) -> str:
    """A type as a person reads it: ``int, at least 1, or null``."""
    schema = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).json_schema()
    parts = []
    for option in schema.get("anyOf", [schema]):
        if "enum" in option:
            parts.append(" | ".join(map(str, option["enum"])))
            continue
        limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
        bounds = [f"{words} {option[key]}" for key, words in limits.items() if key in option]
        parts.append(", ".join([option.get("type", "any"), *bounds]))
    return " or ".join(parts)


def _component(kind: str, interface: type[Component], choice: Choice, registry: Registry, spec: Spec) -> Component:
    choice, entry = _chosen(kind, choice, registry)
    component = _made(entry, spec, **_options(entry, choice))
    if not isinstance(component, interface):
        raise InvalidComponent(
            f"the {kind} {choice.use!r} is a {type(component).__name__}; its factory must return a "
            f"genkit.{interface.__name__}",
            culprit=entry,
        )
    if isinstance(component, Encoder | Decoder):
        outputs = getattr(component, "outputs", None)
        if not isinstance(outputs, tuple) or not outputs or not all(isinstance(name, str) for name in outputs):
            raise InvalidComponent(
                f"the {kind} {choice.use!r} has outputs = {outputs!r}; name what forward returns in a class attribute, "
                'e.g. outputs = ("mean", "log_var")',
                culprit=entry,
            )
    return component


def build_dataset(choice: Choice, registry: Registry, data_dir: Path | None) -> Data:
    choice, entry = _chosen("dataset", choice, registry)
    values = _options(entry, choice)
    if DATA_DIR in inspect.signature(entry.load()).parameters:
        values[DATA_DIR] = data_dir or cache_directory() / "data"
    data = _made(entry, **values)
    if not isinstance(data, Data):
        raise InvalidComponent(
            f"the dataset {choice.use!r} gave a {type(data).__name__}; its factory must return a genkit.Data",
            culprit=entry,
        )
    return data


def _chosen(kind: str, choice: Choice, registry: Registry) -> tuple[Choice, Entry]:
    """A choice whose name is one of the registry's, and the entry of that name.

    What is written behind a colon, ``use: torchvision:SVHN``, is the first option of the factory's signature, unless
    that option is given by its own name as well.
    """
    name, colon, text = choice.use.partition(":")
    entry = registry.get(kind, name)
    if not colon:
        return choice, entry
    names = [option for option in parameters_of(kind, entry.load()) if option != DATA_DIR]
    if not names:
        raise InvalidOption(f"{kind} = {choice.use!r}: {name!r} takes no option that could be written behind its name")
    return Choice(name, **{names[0]: parse_value(text), **choice.options}), entry


def _made(entry: Entry, *spec: Spec, **options: Any) -> Any:
    """What a factory makes, called as every factory is."""
    factory = entry.load()
    undefined = sorted(getattr(factory, "__abstractmethods__", ()))
    if undefined:
        raise InvalidComponent(
            f"the {entry.kind} {entry.name!r} does not define {' and '.join(undefined)}, which its interface asks for",
            culprit=entry,
        )
    try:
        return factory(*spec, **options)
    except TypeError as error:
        if error.__traceback__ and error.__traceback__.tb_next is None:  # nothing of the factory has run
            raise InvalidComponent(f"the {entry.kind} {entry.name!r} cannot be made: {error}", culprit=entry) from error
        raise


def _options(entry: Entry, choice: Choice) -> dict[str, Any]:
    """The keyword arguments of a factory: the choice's options, checked, over the signature's defaults."""
    kind, factory = entry.kind, entry.load()
    parameters = parameters_of(kind, factory)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
    for parameter in parameters.values():
        fault = option_fault(kind, choice.use, parameter)
        if fault and parameter.annotation is parameter.empty:
            raise InvalidComponent(fault, culprit=entry)
    values = {}
    for name, value in choice.options.items():
        if name not in parameters and not open_ended:
            raise unknown(f"option of the {kind} {choice.use!r}", name, parameters, "Options")
        expected = _type(parameters[name], factory) if name in parameters else Any
        values[name] = checked(f"{kind}.{name}", expected, value)
    for name, parameter in parameters.items():
        if name not in values and name != DATA_DIR:
            if parameter.default is parameter.empty:
                raise _unset(entry, parameter)
            values[name] = parameter.default
    return values


def _unset(entry: Entry, option: inspect.Parameter) -> InvalidOption | InvalidComponent:
    remedy = f"--set {entry.kind}.{option.name}=VALUE"
    fault = option_fault(entry.kind, entry.name, option)
    if fault:
        return InvalidComponent(f"{fault}, or give it a value: {remedy}", culprit=entry)
    return InvalidOption(f"{entry.kind}.{option.name} is not set, and {entry.name!r} has no default for it: {remedy}")


def _type(parameter: inspect.Parameter, factory: Callable[..., Any]) -> Any:
    """The annotation of an option; Any where there is none, or none that can be looked up when the program runs."""
    if parameter.annotation is parameter.empty:
        return Any
    names = vars(sys.modules[factory.__module__]) if hasattr(factory, "__module__") else {}
    annotated = SimpleNamespace(__annotations__={"option": parameter.annotation})
    try:
        return get_type_hints(annotated, names, include_extras=True)["option"]
    except NameError:
        return Any
