"""What a latent-variable model offers to exporters: its encoder and decoder, with the scaling of values inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Gumbel, Independent, Laplace, Normal, Uniform

from genkit.data import UNIT, from_unit, length, scale, take, to_unit
from genkit.inference import asking, device_of
from genkit.interfaces import Decoder, Encoder
from genkit.latent import LatentModel, draw
from genkit.task import Data, Graph, Input, NoGraph

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


def latent_graphs(model: LatentModel, data: Data) -> list[Graph | NoGraph]:
    """The encoder, the decoder, and whatever else the components offer under other names or in their place.

    A graph has the input ``condition`` where its outputs depend on the label.
    """
    spec, bounds = model.spec, model.spec.value_range
    unit = {} if bounds is None else {"x": UNIT}

    def observations(n: int, generator: Generator) -> Tensor:
        x, _ = take(data.test, torch.randint(length(data.test), (n,), generator=generator))
        return to_unit(scale(x, bounds), bounds)

    def latents(n: int, generator: Generator) -> Tensor:
        with asking(model, int(torch.randint(2**62, (), generator=generator))):
            labels = torch.randint(spec.classes, (n,)) if spec.classes else None
            return draw(model.prior_given(labels), 1, n)[0]

    def graph(name: str, module: nn.Module, source: str, value: Input, outputs: tuple[str, ...]) -> Graph:
        inputs = {source: value}
        if spec.classes and _uses_label(module, value, spec.classes):
            inputs["condition"] = Input((), torch.int64, lambda n, g: torch.randint(spec.classes, (n,), generator=g))
        return Graph(name, module, inputs, outputs, unit)

    offered: dict[str, Graph | NoGraph] = {}
    if model.encoder is None:
        offered["encoder"] = NoGraph("encoder", "the model has no encoder")
    else:
        x = Input(spec.event_shape, torch.float32, observations)
        offered["encoder"] = graph("encoder", EncoderGraph(model.encoder, bounds), "x", x, model.encoder.outputs)
    z = Input(spec.latent_shape, latents(1, torch.Generator()).dtype, latents)
    outputs = ("x", *(name for name in model.decoder.outputs if name != "x"))
    offered["decoder"] = graph("decoder", DecoderGraph(model.decoder, bounds), "z", z, outputs)
    for component in (model.encoder, model.decoder, model.prior):
        if component is not None:
            offered.update({g.name: g for g in component.graphs(spec)})
    return list(offered.values())


def _uses_label(module: nn.Module, value: Input, classes: int) -> bool:
    """Whether the outputs change when nothing but the labels does, or need labels at all."""
    rows, labels = value.draw(classes, torch.Generator().manual_seed(0)), torch.arange(classes)
    with asking(module, 0):
        try:
            module(rows)
        except Exception:  # it cannot do without
            return True
        pairs = zip(module(rows, labels), module(rows, labels.roll(1)), strict=True)
        return any(not torch.equal(one, other) for one, other in pairs)


def describe_prior(model: LatentModel) -> dict[str, Any] | None:
    """An unconditional, factorised prior as numpy draws it: ``{"kind": "normal", "parameters": [loc, scale]}``.

    The parameters have the latent's shape, or are one number for all of it. None for any other prior.
    """
    with asking(model, 0):
        labels = torch.zeros(1, dtype=torch.int64, device=device_of(model)) if model.spec.classes else None
        prior = model.prior_given(labels)
    base = prior.base_dist if isinstance(prior, Independent) else prior
    if prior.batch_shape or type(base) not in _DRAWN_BY_NUMPY:
        return None
    kind, names = _DRAWN_BY_NUMPY[type(base)]
    values = [getattr(base, name).detach().cpu() for name in names]
    parameters = [v.flatten()[0].item() if (v == v.flatten()[0]).all() else v.tolist() for v in values]
    return {"kind": kind, "parameters": parameters}
