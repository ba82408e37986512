"""What a latent-variable model offers to exporters: encoder, decoder and learned prior, with the scaling inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution, Gumbel, Independent, Laplace, Normal, Uniform

from genkit.data import UNIT, from_unit, length, take, to_unit
from genkit.errors import GenkitError
from genkit.inference import asking, device_of, to_batch
from genkit.interfaces import Batch, Decoder, Encoder, unvalidated
from genkit.latent import LatentModel, draw
from genkit.random import seeded
from genkit.task import Data, Graph, Input, NoGraph

if TYPE_CHECKING:
    from genkit.bundle import Function

_DRAWN_BY_NUMPY: Mapping[type, tuple[str, tuple[str, str]]] = {
    Normal: ("normal", ("loc", "scale")),
    Laplace: ("laplace", ("loc", "scale")),
    Gumbel: ("gumbel", ("loc", "scale")),
    Uniform: ("uniform", ("low", "high")),
}
"""Distributions that a deployer can draw without torch: numpy's name, and the parameters in numpy's order."""


class EncoderGraph(nn.Module):
    """x in [0, 1] -> the posterior's parameters."""

    def __init__(self, encoder: Encoder, value_range: tuple[float, float] | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.value_range = value_range

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return tuple(self.encoder(from_unit(x, self.value_range), condition))


class DecoderGraph(nn.Module):
    """z -> the likelihood's mean in [0, 1], then the raw parameters that are not this mean."""

    def __init__(self, decoder: Decoder, value_range: tuple[float, float] | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.value_range = value_range

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        params = self.decoder(z, condition)
        mean = to_unit(self.decoder.likelihood(*params).mean, self.value_range)
        return mean, *(p for p, name in zip(params, self.decoder.outputs, strict=True) if name != "x")


class PriorGraph(nn.Module):
    """Noise, and a label if there is one -> z, by the prior's own map."""

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        self.model = model
        self.inputs = len(model.prior.noise())

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        noise, condition = values[: self.inputs], next(iter(values[self.inputs :]), None)
        return (self.model.prior.transport(*noise, condition=condition, posterior=self.model.proposal),)


class LocationScaleGraph(nn.Module):
    """Noise of the standard distribution, and a label if there is one -> z of a factorised prior of the same kind."""

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        base = _base(self.model.prior_given(condition))
        if isinstance(base, Uniform):
            return (base.low + (base.high - base.low) * noise,)
        return (base.loc + base.scale * noise,)


class _Draws:
    """What the graphs of a trained model are given in use.

    It is of the training set, because a test loss must not be measured on what a graph was calibrated on.
    """

    def __init__(self, model: LatentModel, data: Data) -> None:
        self.model, self.data = model, data

    def observations(self, n: int, generator: Generator) -> Tensor:
        with asking(self.model, _seed(generator)):
            return to_unit(self._batch(n).x, self.model.spec.value_range)

    def latents(self, n: int, generator: Generator) -> Tensor:
        model, classes = self.model, self.model.spec.classes
        with asking(model, _seed(generator)):
            labels = torch.randint(classes, (n,)).to(device_of(model)) if classes else None
            return draw(model.prior_given(labels), 1, n)[0]

    def latents_in_use(self, n: int, generator: Generator) -> Tensor:
        """Draws of the prior, and every other one of a posterior: what is sampled, and what is reconstructed."""
        z = self.latents(n, generator).clone()
        if self.model.encoder is not None and n > 1:
            with asking(self.model, _seed(generator)):
                z[1::2] = draw(self.model.posterior(*self._batch(n // 2)), 1, n // 2)[0]
        return z

    def _batch(self, n: int) -> Batch:
        x, labels = take(self.data.train, torch.randint(length(self.data.train), (n,)))
        return to_batch(self.model, x, labels)


def latent_graphs(model: LatentModel, data: Data) -> list[Graph | NoGraph]:
    """The encoder, the decoder, a learned prior, and whatever the components offer under other names or in their place.

    A graph has the input ``condition`` where its outputs depend on the label.
    """
    spec, bounds = model.spec, model.spec.value_range
    unit = {} if bounds is None else {"x": UNIT}
    layouts = {"x": "NCHW"} if len(spec.event_shape) == 3 else {}
    draws = _Draws(model, data)

    def graph(name: str, module: nn.Module, inputs: dict[str, Input], outputs: tuple[str, ...]) -> Graph:
        if spec.classes and _uses_label(module, inputs, spec.classes):
            drawn = {"kind": "integers", "parameters": [0, spec.classes]}
            labels = Input((), torch.int64, lambda n, g: torch.randint(spec.classes, (n,), generator=g), drawn)
            inputs = {**inputs, "condition": labels}
        return Graph(name, module, inputs, outputs, {**unit, **_ranges(inputs)}, layouts)

    offered: dict[str, Graph | NoGraph] = {}
    if model.encoder is None:
        offered["encoder"] = NoGraph("encoder", "the model has no encoder")
    else:
        x = Input(spec.event_shape, torch.float32, draws.observations)
        offered["encoder"] = graph("encoder", EncoderGraph(model.encoder, bounds), {"x": x}, model.encoder.outputs)
    described = describe_prior(model)
    z = Input(
        spec.latent_shape, draws.latents(1, torch.Generator()).dtype, draws.latents, described, draws.latents_in_use
    )
    outputs = ("x", *(name for name in model.decoder.outputs if name != "x"))
    offered["decoder"] = graph("decoder", DecoderGraph(model.decoder, bounds), {"z": z}, outputs)
    if model.prior.noise():
        noise = {name: _noise(distribution) for name, distribution in model.prior.noise().items()}
        module = PriorGraph(model)
        try:
            with asking(model, 0):
                labels = [torch.zeros(1, dtype=torch.int64)] if spec.classes else []
                rows = [*(value.draw(1, torch.Generator()) for value in noise.values()), *labels]
                module(*(row.to(device_of(model)) for row in rows))
        except (GenkitError, NotImplementedError) as error:  # whether it can depends on the other components, too
            offered["prior"] = NoGraph("prior", str(error))
        else:
            offered["prior"] = graph("prior", module, noise, ("z",))
    elif described is None or any(True for _ in model.prior.parameters()):
        with asking(model, 0):
            base = _base(_any_prior(model))
        if type(base) in _DRAWN_BY_NUMPY:
            standard = type(base)(torch.zeros(spec.latent_shape), torch.ones(spec.latent_shape))
            offered["prior"] = graph("prior", LocationScaleGraph(model), {"noise": _noise(standard)}, ("z",))
        else:
            offered["prior"] = NoGraph("prior", f"{type(model.prior).__name__} gives no map from noise to latents")
    for component in (model.encoder, model.decoder, model.prior):
        if component is not None:
            offered.update({g.name: g for g in component.graphs(spec)})
    return list(offered.values())


def _noise(distribution: Distribution) -> Input:
    """What a prior is made from, as an input of its graph."""

    def draw(n: int, generator: Generator) -> Tensor:
        with seeded(_seed(generator)), unvalidated():
            return distribution.sample((n,)).cpu()

    example = draw(1, torch.Generator())
    return Input(tuple(example.shape[1:]), example.dtype, draw, _described(distribution))


def _ranges(inputs: Mapping[str, Input]) -> dict[str, tuple[float, float]]:
    """Of the inputs that are drawn uniformly, all elements alike."""
    drawn = {name: value.distribution for name, value in inputs.items() if value.distribution}
    uniform = {name: tuple(d["parameters"]) for name, d in drawn.items() if d["kind"] == "uniform"}
    return {name: bounds for name, bounds in uniform.items() if all(isinstance(bound, float) for bound in bounds)}


def _seed(generator: Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def _uses_label(module: nn.Module, inputs: Mapping[str, Input], classes: int) -> bool:
    """Whether the outputs change when nothing but the labels does, or need labels at all."""
    generator, device = torch.Generator().manual_seed(0), device_of(module)
    rows = [value.draw(classes, generator).to(device) for value in inputs.values()]
    labels = torch.arange(classes, device=device)
    with asking(module, 0):
        try:
            module(*rows)
        except Exception:  # it cannot do without, or it cannot do at all
            module(*rows, labels)
            return True
        pairs = zip(module(*rows, labels), module(*rows, labels.roll(1)), strict=True)
        return any(not torch.equal(one, other) for one, other in pairs)


@contextmanager
def replaced(model: LatentModel, graphs: Mapping[str, tuple[Graph, Function]]) -> Iterator[None]:
    """Inside the block the model computes by graphs, as some runtime runs them, in the place of its own modules.

    Raises:
        GenkitError: for a graph that does not compute what a module of the model does, or a loss that needs gradients.
    """
    with ExitStack() as stack:
        for name, (graph, function) in graphs.items():
            if isinstance(graph.module, EncoderGraph):
                inner: Encoder | Decoder = graph.module.encoder
            elif isinstance(graph.module, DecoderGraph):
                inner = graph.module.decoder
            else:
                raise GenkitError(f"the loss does not run the graph {name!r}")
            stack.enter_context(_forwarding(inner, _as_forward(graph, function, inner.outputs, model.spec.value_range)))
        try:
            yield
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise GenkitError("the loss differentiates the model, and a graph has no gradients") from error


@contextmanager
def _forwarding(module: nn.Module, forward: Callable[..., tuple[Tensor, ...]]) -> Iterator[None]:
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


def _as_forward(
    graph: Graph, function: Function, outputs: Sequence[str], value_range: tuple[float, float] | None
) -> Callable[..., tuple[Tensor, ...]]:
    """``Encoder.forward`` or ``Decoder.forward``, by the graph of it: back from [0, 1] to the range inside."""
    encodes = isinstance(graph.module, EncoderGraph)

    def forward(value: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        given = {"x": to_unit(value, value_range)} if encodes else {"z": value}
        if condition is not None and "condition" in graph.inputs:
            given["condition"] = condition
        arrays = function({name: tensor.numpy(force=True) for name, tensor in given.items()})
        found = {name: torch.from_numpy(array).to(value.device) for name, array in arrays.items()}
        if not encodes:
            found["x"] = from_unit(found["x"], value_range)
        return tuple(found[name] for name in outputs)

    return forward


def describe_prior(model: LatentModel) -> dict[str, Any] | None:
    """An unconditional, factorised prior as numpy draws it: ``{"kind": "normal", "parameters": [loc, scale]}``.

    The parameters have the latent's shape, or are one number for all of it. None for any other prior.
    """
    with asking(model, 0):
        prior = _any_prior(model)
    return None if prior.batch_shape else _described(prior)


def _any_prior(model: LatentModel) -> Distribution:
    """p(z), of some label where it takes one."""
    labels = torch.zeros(1, dtype=torch.int64, device=device_of(model)) if model.spec.classes else None
    return model.prior_given(labels)


def _base(distribution: Distribution) -> Any:
    return distribution.base_dist if isinstance(distribution, Independent) else distribution


def _described(distribution: Distribution) -> dict[str, Any] | None:
    base = _base(distribution)
    if type(base) not in _DRAWN_BY_NUMPY:
        return None
    kind, names = _DRAWN_BY_NUMPY[type(base)]
    values = [getattr(base, name).detach().cpu() for name in names]
    parameters = [v.flatten()[0].item() if (v == v.flatten()[0]).all() else v.tolist() for v in values]
    return {"kind": kind, "parameters": parameters}
