"""A model as plain data: the names of its components and their options, in YAML and from the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Annotated, Any, Literal, Self

import yaml
from annotated_types import Ge, Gt, Lt
from pydantic import AllowInfNan, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass

from genkit.errors import InvalidOption, unknown


@dataclass(frozen=True, init=False)
class Choice:
    """A component by name, with options: ``Choice("mlp", hidden=400)``.

    The first option of its factory may be written behind the name: ``Choice("mlp:400")``.
    """

    use: str
    options: Mapping[str, Any]

    def __init__(self, use: str, /, **options: Any) -> None:
        object.__setattr__(self, "use", use)
        object.__setattr__(self, "options", options)

    def to_mapping(self) -> dict[str, Any]:
        """``{use: mlp, hidden: 400}``."""
        return {"use": self.use, **self.options}


@validated_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TrainingOptions:
    """How a model is trained.

    Args:
        epochs: passes over the training set.
        batch_size: observations a step, over all processes; the last step of an epoch takes what is left.
        accumulate: parts that a batch is computed in, one after another, so that a large batch fits the memory.
        optimizer: the name of a class of ``torch.optim``, in lower case.
        learning_rate: at its peak.
        optimizer_options: further keywords of the optimiser, e.g. ``{betas: [0.5, 0.999]}``.
        schedule: what the learning rate does after the warm-up: stay, or fall to 0 over the run's steps.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        clip_norm: the largest 2-norm of a turn's gradient; None: unclipped.
        precision: of training: float32, float32 with tf32 products (CUDA), or bfloat16 autocast. Weights, and the
            parameters of posteriors and likelihoods, stay float32; the test set is measured without autocast.
        seed: of the initial weights, the order of the data and all noise.
        evaluate_every: epochs between measurements on the test set; 0: never.
        sample_every: epochs between pictures, whose checkpoints are kept; 0: only at the end.
        checkpoint_every: epochs between checkpoints.
        step: how a step is executed: one operation after another (eager), in kernels that torch.compile makes of
            them (compiled), recorded once and replayed (graph), or both (compiled_graph). auto: eager on a CPU and
            in several processes, graph on CUDA where the model can be recorded.
        steps_per_replay: of recorded steps, how many are replayed at once; where none are recorded, nothing changes.
        sharded: whether large layers, with their gradients and the optimiser's state, are divided among the
            processes (FSDP2) instead of being held by each.
        workers: processes that read data which is not resident; None: one a core, four at most.
    """

    epochs: Annotated[int, Ge(0)] = 100
    batch_size: Annotated[int, Ge(1)] = 128
    accumulate: Annotated[int, Ge(1)] = 1
    optimizer: str = "adam"
    learning_rate: Annotated[float, Gt(0), AllowInfNan(False)] = 1e-3
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Ge(0)] = 0
    clip_norm: Annotated[float, Gt(0)] | None = None
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    evaluate_every: Annotated[int, Ge(0)] = 1
    sample_every: Annotated[int, Ge(0)] = 20
    checkpoint_every: Annotated[int, Ge(1)] = 1
    step: Literal["auto", "eager", "compiled", "graph", "compiled_graph"] = "auto"
    steps_per_replay: Annotated[int, Ge(1)] = 1
    sharded: bool = False
    workers: Annotated[int, Ge(0)] | None = None


_COMPONENTS = ("dataset", "encoder", "decoder", "prior", "loss")


@dataclass(frozen=True)
class Recipe:
    """A model: its components, its latent space, the range of its values and how it is trained.

    Args:
        name: what ``genkit train --model`` calls it.
        dataset, encoder, decoder, prior, loss: the components. ``encoder=None``: a model without one.
        latent_shape: of one latent.
        value_range: what the data is scaled to inside the model; None: left as it is.
        training: the defaults of its training.
        description: one line for ``genkit models``.

    Raises:
        InvalidOption: where a shape or a range makes no sense.
    """

    name: str
    _: KW_ONLY
    dataset: Choice
    encoder: Choice | None = None
    decoder: Choice
    prior: Choice
    loss: Choice
    latent_shape: tuple[int, ...]
    value_range: tuple[float, float] | None = (0.0, 1.0)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    description: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"\w[\w.-]*", self.name):
            raise InvalidOption(f"name = {self.name!r}: a name is made of letters, digits, '_', '-' and '.'")
        shape = checked("latent_shape", tuple[Annotated[int, Ge(1)], ...], self.latent_shape)
        bounds = checked("value_range", tuple[float, float] | None, self.value_range)
        if not shape:
            raise InvalidOption("latent_shape = []: it needs one dimension or more, e.g. [20]")
        if bounds is not None and not bounds[0] < bounds[1]:
            raise InvalidOption(f"value_range = {list(bounds)}: the first number must be below the second")
        object.__setattr__(self, "latent_shape", shape)
        object.__setattr__(self, "value_range", bounds)

    @property
    def components(self) -> dict[str, Choice]:
        """The choices by kind, without an absent encoder."""
        choices = {kind: getattr(self, kind) for kind in _COMPONENTS}
        return {kind: choice for kind, choice in choices.items() if choice is not None}

    def to_mapping(self) -> dict[str, Any]:
        """Plain data that ``from_mapping`` reads back."""
        mapping: dict[str, Any] = {"name": self.name}
        if self.description:
            mapping["description"] = self.description
        for kind in _COMPONENTS:
            choice: Choice | None = getattr(self, kind)
            mapping[kind] = choice and choice.to_mapping()
        mapping["latent_shape"] = list(self.latent_shape)
        mapping["value_range"] = self.value_range and list(self.value_range)
        mapping["training"] = {f.name: getattr(self.training, f.name) for f in fields(self.training)}
        return mapping

    def flat(self) -> dict[str, Any]:
        """Every option by the key that ``--set`` takes: ``{"encoder.hidden": 400, ...}``."""
        flat: dict[str, Any] = {}
        for key, value in self.to_mapping().items():
            if isinstance(value, Mapping) and value:
                flat |= {f"{key}.{k}": v for k, v in value.items()}
            else:
                flat[key] = value
        return flat

    def to_yaml(self) -> str:
        """The text of a ``recipe.yaml``."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False, default_flow_style=None, width=120)

    @classmethod
    def from_mapping(cls, mapping: Any, source: str) -> Self:
        """Reads what ``to_mapping`` wrote, or a person. ``source`` says in errors where it came from."""
        if not isinstance(mapping, Mapping):
            raise InvalidOption(f"{source}: a recipe is a mapping with the keys {', '.join(_keys(cls))}")
        for key in mapping:
            if key not in _keys(cls):
                raise unknown("recipe key", str(key), _keys(cls), "Keys")
        missing = [
            key for key in ("name", "dataset", "decoder", "prior", "loss", "latent_shape") if mapping.get(key) is None
        ]
        if missing:
            raise InvalidOption(f"{source}: the recipe has no {', '.join(missing)}")
        values = dict(mapping)
        for kind in _COMPONENTS:
            values[kind] = _choice(kind, values.get(kind))
        values["training"] = checked("training", TrainingOptions, values.get("training") or {})
        return cls(**values)

    @classmethod
    def from_yaml(cls, text: str, source: str) -> Self:
        """Reads the text of a ``recipe.yaml``."""
        try:
            return cls.from_mapping(yaml.safe_load(text), source)
        except yaml.YAMLError as error:
            where = getattr(error, "problem_mark", None)
            line = f" at line {where.line + 1}" if where else ""
            raise InvalidOption(f"{source}: this is not YAML{line}; compare it with `genkit show mnist_vae`") from None

    def with_settings(self, settings: Iterable[str] | Mapping[str, Any]) -> Self:
        """The recipe changed by settings in order: ``K=V`` texts, or a mapping of the same keys to values.

        ``encoder=other`` replaces a component and drops the old one's options; ``encoder.width=8`` changes one.
        ``encoder=other:8`` gives the first option of the other's factory its value at once.
        """
        mapping = self.to_mapping()
        pairs = settings.items() if isinstance(settings, Mapping) else map(_setting, settings)
        for key, value in pairs:
            head, *rest = key.split(".")
            if head not in _keys(type(self)):
                raise unknown("recipe key", head, _keys(type(self)), "Keys")
            if not rest:
                mapping[head] = value
                continue
            if isinstance(mapping[head], str):
                mapping[head] = {"use": mapping[head]}
            if len(rest) != 1 or not isinstance(mapping[head], dict):
                raise InvalidOption(f"{key} = {value!r}: {head} = {mapping[head]!r} has no option {'.'.join(rest)!r}")
            mapping[head][rest[0]] = value
        return type(self).from_mapping(mapping, "settings")

    def with_training(self, **changes: Any) -> Self:
        """The recipe with some training options changed."""
        mapping = self.to_mapping()
        mapping["training"].update(changes)
        return type(self).from_mapping(mapping, self.name)


def checked(name: str, kind: Any, value: Any) -> Any:
    """``value`` as an instance of the type ``kind``, or ``InvalidOption`` that names it as ``name``."""
    try:
        return TypeAdapter(kind, config=None if kind is TrainingOptions else _ANY).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in (name, *first["loc"]))
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            names = (f.name for f in fields(kind))
            raise unknown(f"{name} option", str(first["loc"][-1]), names, "Options") from None
        raise InvalidOption(f"{path} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


_ANY = ConfigDict(arbitrary_types_allowed=True)
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def _setting(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise InvalidOption(f"--set {text}: settings are written KEY=VALUE, e.g. encoder.hidden=800")
    return key.strip(), parse_value(value)


def parse_value(text: str) -> Any:
    """A setting's text as YAML, with the floats that YAML 1.1 takes for strings (1e-3)."""
    if _EXPONENT.fullmatch(text.strip()):
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _keys(cls: type[Recipe]) -> list[str]:
    return [f.name for f in fields(cls) if f.name != "_"]


def _choice(kind: str, value: Any) -> Choice | None:
    if value is None and kind == "encoder":
        return None
    if isinstance(value, str):
        return Choice(value)
    if isinstance(value, Mapping) and isinstance(value.get("use"), str):
        return Choice(value["use"], **{str(k): v for k, v in value.items() if k != "use"})
    raise InvalidOption(f"{kind} = {value!r}: write a component's name, or {{use: NAME, option: value}}")
