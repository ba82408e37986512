"""Random small architectures, all of them correct: ``architecture(seed)`` is a graph that an exporter has to accept.

A graph is a stem, which joins one or two latents, a label or a sequence of tokens, a chain of stages, and one to three
heads. What a stage may be depends on the rank of what flows: vectors (n), sequences (t, d) or images (c, h, w). Weights
are then scaled from tiny to saturating, normalising layers live through some batches, and outputs are brought to a size
between 1e-6 and 1e6.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import genkit

Shape = tuple[int, ...]
Factory = Callable[[random.Random, Shape], nn.Module]

GAINS = {1e-4: 1, 1e-2: 1, 0.3: 1, 1.0: 5, 3.0: 2, 30.0: 1}
"""What the weights of a graph are multiplied by, and how often."""
LONGEST = 50_000
"""Terms of the longest reduction."""


class Apply(nn.Module):
    """A function of a tensor and of some layers, as a layer. ``name`` is how the results call it."""

    def __init__(self, name: str, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.name, self.function, self.layers = name, function, nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, *self.layers)


class Weight(nn.Module):
    """A parameter by itself: a positional embedding, a codebook, a scale."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self) -> Tensor:
        return self.weight


class Network(nn.Module):
    """Inputs -> joined by the stem -> body -> one output a head."""

    def __init__(self, stem: nn.Module, body: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stem, self.body, self.heads = stem, body, nn.ModuleList(heads)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        h = self.body(self.stem(*inputs))
        return tuple(head(h) for head in self.heads)


def _function(function: Callable[[Tensor], Tensor], name: str) -> Callable[[], nn.Module]:
    return lambda: Apply(name, function)


ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    **{
        layer.__name__: layer
        for layer in (
            *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
            *(nn.Softplus, nn.Softsign, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid),
            *(nn.Tanh, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink),
        )
    },
    "GELU tanh": lambda: nn.GELU(approximate="tanh"),
    "Softplus beta": lambda: nn.Softplus(beta=3, threshold=10),
    "Softmax": lambda: nn.Softmax(-1),
    "LogSoftmax": lambda: nn.LogSoftmax(-1),
    "Dropout": nn.Dropout,
    **{
        name: _function(function, name)
        for name, function in {
            "exp": lambda x: x.clamp(-10, 10).exp(),
            "exp of half": lambda x: (0.5 * x.clamp(-10, 10)).exp(),
            "log": lambda x: (1 + x.square()).log(),
            "log1p": lambda x: x.abs().log1p(),
            "expm1": lambda x: x.clamp(max=5).expm1(),
            "sqrt": lambda x: (x.square() + 1e-6).sqrt(),
            "rsqrt": lambda x: x * (x.square() + 1).rsqrt(),
            "erf": torch.erf,
            "sin": torch.sin,
            "cos": torch.cos,
            "atan": torch.atan,
            "square": lambda x: x.clamp(-100, 100).square(),
            "cube": lambda x: x.clamp(-100, 100) ** 3,
            "abs": torch.abs,
            "reciprocal": lambda x: x / (1 + x.abs()),
            "min and max": lambda x: torch.minimum(x, 0.3 - x) + torch.maximum(x, -x / 2),
            "where": lambda x: torch.where(x > 0.25, x, 0.25 + 0.1 * x),
            "sign": lambda x: x.sign() * x.abs().sqrt(),
            "constants": lambda x: (x - 0.1307) / 0.3081,
            "quick GELU": lambda x: x * torch.sigmoid(1.702 * x),
        }.items()
    },
}
"""What keeps any shape as it is, and couples at most the last dimension."""


def _activation(r: random.Random, shape: Shape) -> nn.Module:
    return ACTIVATIONS[r.choice(list(ACTIVATIONS))]()


def _chain(r: random.Random, shape: Shape, *factories: Factory) -> nn.Module:
    layers = []
    for factory in factories:
        layer = factory(r, shape)
        layers.append(layer)
        shape = _shape(layer, shape)
    return nn.Sequential(*layers)


def _shape(layer: nn.Module, *shapes: Shape) -> Shape:
    """Of what comes out, which nobody knows better than the layer."""
    with torch.no_grad():
        return tuple(layer.eval()(*(torch.zeros(2, *shape) for shape in shapes)).shape[1:])


def _residual(same: Factory) -> Factory:
    return lambda r, s: Apply("residual", lambda x, f: x + f(x), same(r, s))


def _skip(same: Factory) -> Factory:
    """DenseNet's connection: the input beside the output, along the first dimension."""
    return lambda r, s: Apply("concatenation", lambda x, f: torch.cat([x, f(x)], 1), same(r, s))


def _twice(same: Factory) -> Factory:
    return lambda r, s: Apply("shared weights", lambda x, f: f(f(x).tanh()), same(r, s))


# Vectors


def _linear(r: random.Random, s: Shape, out: int | None = None) -> nn.Module:
    return nn.Linear(s[-1], out or r.choice((1, 5, 16, 32, 100)), bias=r.random() < 0.8)


def _square(r: random.Random, s: Shape) -> nn.Module:
    return _linear(r, s, s[-1])


def _outer(r: random.Random, s: Shape) -> nn.Module:
    """All products of two vectors, and a sum over up to ``LONGEST`` of them."""
    n = int(sqrt(r.choice((2_000, 10_000, LONGEST))))
    layers = nn.Linear(s[0], n), nn.Linear(s[0], n), nn.Linear(n * n, r.choice((1, 8)))
    return Apply("long reduction", lambda x, a, b, c: c((a(x)[:, :, None] * b(x)[:, None]).flatten(1)), *layers)


def _long_mean(r: random.Random, s: Shape) -> nn.Module:
    n = r.choice((1_000, 10_000))
    function = r.choice(
        [
            lambda x, f: f(x).unflatten(1, (5, -1)).tanh().mean(2),
            lambda x, f: f(x).unflatten(1, (5, -1)).tanh().sum(2),
            lambda x, f: f(x).unflatten(1, (5, -1)).tanh().logsumexp(2),
            lambda x, f: f(x).unflatten(1, (5, -1)).tanh().square().sum(2).sqrt(),
            lambda x, f: f(x).unflatten(1, (5, -1)).tanh().var(2),
            lambda x, f: f(x).unflatten(1, (5, -1)).tanh().amax(2),
        ]
    )
    return Apply("long statistic", function, nn.Linear(s[0], 5 * n))


def _to_image(r: random.Random, s: Shape) -> nn.Module:
    shape = r.choice((1, 3, 4, 8)), r.choice((3, 4, 7)), r.choice((4, 5))
    return nn.Sequential(nn.Linear(s[0], prod(shape)), nn.Unflatten(1, shape))


def _to_sequence(r: random.Random, s: Shape) -> nn.Module:
    shape = r.randint(2, 7), r.choice((4, 8, 16))
    return nn.Sequential(nn.Linear(s[0], prod(shape)), nn.Unflatten(1, shape))


VECTOR: Mapping[str, Factory] = {
    "Linear": _linear,
    "activation": _activation,
    "weight norm": lambda r, s: parametrizations.weight_norm(_linear(r, s)),
    "spectral norm": lambda r, s: parametrizations.spectral_norm(_linear(r, s)),
    "BatchNorm1d": lambda r, s: nn.BatchNorm1d(s[0]),
    "LayerNorm": lambda r, s: _chain(r, s, lambda r, s: _linear(r, s, 24), lambda r, s: nn.LayerNorm(24)),
    "RMSNorm": lambda r, s: _chain(r, s, lambda r, s: _linear(r, s, 24), lambda r, s: nn.RMSNorm(24)),
    "GroupNorm": lambda r, s: _chain(r, s, lambda r, s: _linear(r, s, 24), lambda r, s: nn.GroupNorm(4, 24)),
    "MLP": lambda r, s: _chain(r, s, _linear, _activation, _linear, _activation),
    "residual": _residual(lambda r, s: _chain(r, s, _linear, _activation, lambda r, t: _linear(r, t, s[0]))),
    "concatenation": _skip(lambda r, s: _chain(r, s, _linear, _activation)),
    "shared": _twice(_square),
    "GLU": lambda r, s: _chain(r, s, lambda r, s: _linear(r, s, 32), lambda r, s: nn.GLU()),
    "gate": lambda r, s: Apply("gate", lambda x, f, g: f(x) * g(x).sigmoid(), _square(r, s), _square(r, s)),
    "normalize": lambda r, s: Apply("normalize", lambda x: F.normalize(x, dim=1)),
    "centre": lambda r, s: Apply("centre", lambda x: x - x.mean(1, keepdim=True)),
    "cumsum": lambda r, s: Apply("cumsum", lambda x: x.cumsum(1)),
    "Embedding of a code": lambda r, s: Apply(
        "code", lambda x, f, e: e(f(x).argmax(1)), _linear(r, s, 7), nn.Embedding(7, 12)
    ),
    "GRUCell": lambda r, s: nn.GRUCell(s[0], 12),
    "LSTMCell": lambda r, s: Apply("LSTMCell", lambda x, f: f(x)[0], nn.LSTMCell(s[0], 12)),
    "long reduction": _outer,
    "long statistic": _long_mean,
    "to image": _to_image,
    "to sequence": _to_sequence,
}


# Sequences


def _heads(d: int) -> int:
    return next(h for h in (4, 2, 1) if d % h == 0)


def _scaled_dot_product(r: random.Random, s: Shape) -> nn.Module:
    causal, heads = r.random() < 0.5, _heads(s[1])

    def attend(x: Tensor, qkv: nn.Module, out: nn.Module) -> Tensor:
        q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in qkv(x).chunk(3, -1))
        y: Tensor = out(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2))
        return y

    return Apply("scaled dot product", attend, nn.Linear(s[1], 3 * s[1]), nn.Linear(s[1], s[1]))


def _attention(r: random.Random, s: Shape) -> nn.Module:
    """Written out, as it was before there was a function for it."""

    def attend(x: Tensor, q: nn.Module, k: nn.Module, v: nn.Module) -> Tensor:
        return (q(x) @ k(x).transpose(1, 2) / sqrt(s[1])).softmax(-1) @ v(x)

    return Apply("attention", attend, *(nn.Linear(s[1], s[1]) for _ in range(3)))


def _multihead(r: random.Random, s: Shape) -> nn.Module:
    attention = nn.MultiheadAttention(s[1], _heads(s[1]), batch_first=True)
    return Apply("MultiheadAttention", lambda x, f: f(x, x, x, need_weights=False)[0], attention)


def _transformer(r: random.Random, s: Shape) -> nn.Module:
    norm_first = r.random() < 0.5
    activation = r.choice(("relu", "gelu"))
    return nn.TransformerEncoderLayer(
        s[1], _heads(s[1]), 32, activation=activation, batch_first=True, norm_first=norm_first
    )


def _recurrent(layer: type[nn.RNNBase]) -> Factory:
    return lambda r, s: Apply(layer.__name__, lambda x, f: f(x)[0], layer(s[1], r.choice((5, 8)), batch_first=True))


def _over_time(factory: Callable[[int], nn.Module]) -> Factory:
    """A layer for (d, t), where there are several times: PyTorch refuses to normalise one number by itself."""
    return lambda r, s: (
        Apply("over time", lambda x, f: f(x.transpose(1, 2)).transpose(1, 2), factory(s[1]))
        if s[0] > 1
        else _linear(r, s)
    )


SEQUENCE: Mapping[str, Factory] = {
    "Linear": _linear,
    "activation": _activation,
    "LayerNorm": lambda r, s: nn.LayerNorm(s[1]),
    "RMSNorm": lambda r, s: nn.RMSNorm(s[1]),
    "BatchNorm1d": _over_time(nn.BatchNorm1d),
    "GroupNorm": _over_time(lambda d: nn.GroupNorm(1, d)),
    "InstanceNorm1d": _over_time(lambda d: nn.InstanceNorm1d(d, affine=True)),
    "Conv1d": _over_time(lambda d: nn.Conv1d(d, 8, 3, padding=1)),
    "ConvTranspose1d": _over_time(lambda d: nn.ConvTranspose1d(d, 4, 4, stride=2, padding=1)),
    "mixer": _residual(
        lambda r, s: Apply("mixer", lambda x, f: f(x.transpose(1, 2)).transpose(1, 2), nn.Linear(s[0], s[0]))
    ),
    "positions": lambda r, s: Apply("positions", lambda x, p: x + p(), Weight(*s)),
    "scaled dot product": _residual(_scaled_dot_product),
    "attention": _residual(_attention),
    "MultiheadAttention": _residual(_multihead),
    "TransformerEncoderLayer": _transformer,
    "RNN": _recurrent(nn.RNN),
    "GRU": _recurrent(nn.GRU),
    "LSTM": _recurrent(nn.LSTM),
    "MLP": _residual(lambda r, s: _chain(r, s, _linear, _activation, lambda r, t: _linear(r, t, s[1]))),
    "concatenation": _skip(_square),
    "mean": lambda r, s: Apply("mean", lambda x: x.mean(1)),
    "last": lambda r, s: Apply("last", lambda x: x[:, -1]),
    "max": lambda r, s: Apply("max", lambda x: x.amax(1)),
    "einsum": lambda r, s: Apply("einsum", lambda x, w: torch.einsum("btd,tde->be", x, w()), Weight(*s, 6)),
    "flatten": lambda r, s: nn.Flatten(),
}


# Images


def _conv(r: random.Random, s: Shape, out: int | None = None) -> nn.Module:
    """Keeps the height and the width."""
    kernel, dilation = r.choice(((1, 1), (3, 1), (5, 1), (3, 2)))
    out = out or r.choice((2, 4, 8))
    groups = r.choice([g for g in (1, 2, 4) if s[0] % g == 0 and out % g == 0])
    padding = dilation * (kernel // 2)
    mode = r.choice(("zeros", "zeros", "reflect", "replicate", "circular")) if padding < min(s[1:]) else "zeros"
    layer = nn.Conv2d(
        s[0], out, kernel, padding=padding, dilation=dilation, groups=groups, bias=r.random() < 0.7, padding_mode=mode
    )
    return r.choice((lambda x: x, lambda x: x, parametrizations.weight_norm, parametrizations.spectral_norm))(layer)


def _strided(r: random.Random, s: Shape) -> nn.Module:
    return nn.Conv2d(s[0], r.choice((4, 8)), 3, stride=2, padding=1)


def _transposed(r: random.Random, s: Shape) -> nn.Module:
    kernel, output_padding = r.choice(((4, 0), (3, 1)))
    groups = r.choice([g for g in (1, 2) if s[0] % g == 0])
    return nn.ConvTranspose2d(s[0], 4, kernel, stride=2, padding=1, output_padding=output_padding, groups=groups)


def _squeeze_and_excite(r: random.Random, s: Shape) -> nn.Module:
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(s[0], s[0], 1), _activation(r, s), nn.Conv2d(s[0], s[0], 1))
    return Apply("squeeze and excite", lambda x, f: x * f(x).sigmoid(), gate)


def _pool(layer: Callable[..., nn.Module], **options: object) -> Factory:
    return lambda r, s: layer(2, **options) if min(s[1:]) >= 4 else nn.Identity()


def _upsample(**options: object) -> Factory:
    """Only what is small, so that a chain of them stays so."""
    return lambda r, s: nn.Upsample(scale_factor=2, **options) if max(s[1:]) <= 10 else nn.Identity()


IMAGE: Mapping[str, Factory] = {
    "Conv2d": _conv,
    "strided": _strided,
    "ConvTranspose2d": lambda r, s: _transposed(r, s) if max(s[1:]) <= 10 else _strided(r, s),
    "activation": _activation,
    "BatchNorm2d": lambda r, s: _chain(r, s, _conv, lambda r, s: nn.BatchNorm2d(s[0])),
    "GroupNorm": lambda r, s: (
        nn.GroupNorm(r.choice([g for g in (1, 2, 4) if s[0] % g == 0]), s[0]) if prod(s[1:]) > 1 else _conv(r, s)
    ),
    "InstanceNorm2d": lambda r, s: nn.InstanceNorm2d(s[0], affine=r.random() < 0.5) if prod(s[1:]) > 1 else _conv(r, s),
    "LayerNorm": lambda r, s: nn.LayerNorm(s),
    "RMSNorm": lambda r, s: nn.RMSNorm(s),
    "LayerNorm of channels": lambda r, s: Apply(
        "LayerNorm of channels", lambda x, f: f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(s[0])
    ),
    "MaxPool2d": _pool(nn.MaxPool2d),
    "AvgPool2d": _pool(nn.AvgPool2d),
    "AvgPool2d padded": lambda r, s: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=r.random() < 0.5),
    "MaxPool2d overlapping": lambda r, s: nn.MaxPool2d(3, stride=2, padding=1),
    "AdaptiveAvgPool2d": lambda r, s: nn.AdaptiveAvgPool2d(1),
    "AdaptiveMaxPool2d": lambda r, s: nn.AdaptiveMaxPool2d(1),
    "nearest": _upsample(mode="nearest"),
    "bilinear": _upsample(mode="bilinear"),
    "bilinear, corners": _upsample(mode="bilinear", align_corners=True),
    "bicubic": _upsample(mode="bicubic"),
    "PixelShuffle": lambda r, s: (
        nn.Sequential(nn.Conv2d(s[0], 8, 1), nn.PixelShuffle(2)) if max(s[1:]) <= 10 else nn.Identity()
    ),
    "PixelUnshuffle": lambda r, s: nn.Identity() if s[1] % 2 or s[2] % 2 else nn.PixelUnshuffle(2),
    "ReflectionPad2d": lambda r, s: nn.ReflectionPad2d(1) if min(s[1:]) > 1 else nn.ZeroPad2d(1),
    "block": lambda r, s: _chain(r, s, _conv, _activation, _conv, _activation),
    "residual": _residual(lambda r, s: _chain(r, s, _conv, _activation, lambda r, t: _conv(r, t, s[0]))),
    "concatenation": _skip(_conv),
    "squeeze and excite": _squeeze_and_excite,
    "Softmax of channels": lambda r, s: nn.Softmax(1),
    "Dropout2d": lambda r, s: nn.Dropout2d(),
    "to sequence": lambda r, s: Apply("pixels as a sequence", lambda x: x.flatten(2).transpose(1, 2)),
    "flatten": lambda r, s: nn.Flatten(),
}

STAGES: Mapping[int, Mapping[str, Factory]] = {1: VECTOR, 2: SEQUENCE, 3: IMAGE}
"""By the rank of what flows."""


# Inputs


def _normal(shape: Shape) -> genkit.Input:
    return genkit.Input(shape, torch.float32, lambda n, g: torch.randn(n, *shape, generator=g))


def _picture(shape: Shape) -> genkit.Input:
    return genkit.Input(shape, torch.float32, lambda n, g: torch.rand(n, *shape, generator=g))


def _labels(classes: int, shape: Shape = ()) -> genkit.Input:
    return genkit.Input(shape, torch.int64, lambda n, g: torch.randint(classes, (n, *shape), generator=g))


def _stem(r: random.Random) -> tuple[Mapping[str, genkit.Input], nn.Module]:
    n = r.choice((1, 2, 8, 20, 64))
    kind = r.choice(
        (
            *("latent", "latent", "latent to image", "latent to image", "two latents", "label", "one-hot label"),
            *("modulated", "image", "image", "sequence", "tokens"),
        )
    )
    match kind:
        case "two latents":
            join = Apply(kind, lambda z, w, f, g: torch.cat([f(z), g(w)], 1), nn.Linear(n, 12), nn.Linear(3, 4))
            return {"z": _normal((n,)), "w": _normal((3,))}, join
        case "label":
            join = Apply(kind, lambda z, y, e: torch.cat([z, e(y)], 1), nn.Embedding(5, 6))
            return {"z": _normal((n,)), "condition": _labels(5)}, join
        case "one-hot label":
            join = Apply(kind, lambda z, y: torch.cat([z, F.one_hot(y, 5).to(z)], 1))
            return {"z": _normal((n,)), "condition": _labels(5)}, join
        case "modulated":
            join = Apply(kind, lambda z, y, e, f: z * e(y) + f(y), nn.Embedding(5, n), nn.Embedding(5, n))
            return {"z": _normal((n,)), "condition": _labels(5)}, join
        case "latent to image":
            return {"z": _normal((n,))}, _to_image(r, (n,))
        case "image":
            shape = r.choice((1, 3)), r.choice((6, 8, 12)), r.choice((7, 8))
            return {"x": _picture(shape)}, Apply(kind, lambda x: 2 * x - 1)
        case "sequence":
            return {"x": _normal((r.randint(2, 6), 8))}, nn.Linear(8, 8)
        case "tokens":
            return {"tokens": _labels(9, (r.randint(2, 6),))}, nn.Embedding(9, 8)
        case _:
            return {"z": _normal((n,))}, nn.Identity()


# Heads


def _values(r: random.Random, s: Shape) -> nn.Module:
    """Of any size from 1e-6 to 1e6, with or without an offset. ``architecture`` brings the scale to it."""
    head = _conv(r, s, 3) if len(s) == 3 else _linear(r, s)
    offset = r.choice((0.0, 0.0, 0.5, 30.0))
    return Apply("values", lambda x, f, scale: (f(x) + offset) * scale(), head, Weight())


def _last(name: str, function: Callable[[Tensor], Tensor], out: int = 6) -> Factory:
    """A function of a linear map, along the last dimension."""
    return lambda r, s: Apply(name, lambda x, f: function(f(x)), _linear(r, s, out))


HEADS: Mapping[str, Factory] = {
    "values": _values,
    "probability": _last("probability", torch.sigmoid),
    "picture": _last("picture", lambda x: (x.tanh() + 1) / 2),
    "probabilities": _last("probabilities", lambda x: x.softmax(-1)),
    "log-probabilities": _last("log-probabilities", lambda x: x.log_softmax(-1)),
    "scale": _last("scale", lambda x: F.softplus(x) + 1e-4),
    "standard deviation": _last("standard deviation", lambda x: (0.5 * x.clamp(-10, 10)).exp()),
    "code": _last("code", lambda x: x.argmax(-1)),
    "nearest code": lambda r, s: Apply(
        "nearest code",
        lambda x, f, e: (f(x).unsqueeze(-2) - e()).square().sum(-1).argmin(-1),
        _linear(r, s, 4),
        Weight(11, 4),
    ),
    "itself": lambda r, s: Apply("itself", lambda x: x * 1.5),
}
"""What a decoder, an encoder or a classifier may end with."""


# Graphs


def architecture(seed: int) -> genkit.Graph:
    """The ``seed``-th architecture. The same seed gives the same numbers, weights included."""
    r = random.Random(seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        inputs, stem = _stem(r)
        shape = tuple(stem(*(_draw(value, 2) for value in inputs.values())).shape[1:])
        stages = []
        for _ in range(r.randint(1, 7)):
            of_rank = STAGES[len(shape)]
            stages.append(_chain(r, shape, of_rank[r.choice(list(of_rank))], *r.choice(((), (_activation,)))))
            shape = _shape(stages[-1], shape)
        heads = [HEADS["values"], *(HEADS[name] for name in r.sample(list(HEADS)[1:], r.choice((0, 0, 1, 2))))]
        r.shuffle(heads)
        network = Network(stem, nn.Sequential(*stages), [head(r, shape) for head in heads])
        _scale(network, r.choices(list(GAINS), list(GAINS.values()))[0])
        _live(network, inputs)
        _size_outputs(network, inputs, r)
    names = tuple(f"y{i}" for i in range(len(heads)))
    return genkit.Graph("graph", network.eval(), inputs, names, {"x": (0.0, 1.0)} if "image" in layers(network) else {})


def layers(module: nn.Module) -> list[str]:
    """What a module is built of, by name, each once."""
    names = {
        part.name if isinstance(part, Apply) else type(part).__name__
        for part in module.modules()
        if isinstance(part, Apply) or not list(part.children())
    }
    return sorted(names - {"Weight", "Identity", "ModuleList", "NonDynamicallyQuantizableLinear"})


def _draw(value: genkit.Input, rows: int) -> Tensor:
    return value.draw(rows, torch.default_generator)


def _scale(network: nn.Module, gain: float) -> None:
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.mul_(gain)


def _live(network: nn.Module, inputs: Mapping[str, genkit.Input]) -> None:
    """Some batches of life: running statistics, and scales and shifts that are no longer one and zero."""
    for part in network.modules():
        if isinstance(
            part,
            nn.BatchNorm1d
            | nn.BatchNorm2d
            | nn.InstanceNorm1d
            | nn.InstanceNorm2d
            | nn.GroupNorm
            | nn.LayerNorm
            | nn.RMSNorm,
        ):
            for parameter in part.parameters(recurse=False):
                parameter.add_(0.3 * torch.randn_like(parameter))
    network.train()
    for _ in range(3):
        network(*(_draw(value, 32) for value in inputs.values()))
    network.eval()


def _size_outputs(network: Network, inputs: Mapping[str, genkit.Input], r: random.Random) -> None:
    """Brings the values to a size between 1e-6 and 1e6, where they are not zero."""
    outputs = network(*(_draw(value, 32) for value in inputs.values()))
    for head, y in zip(network.heads, outputs, strict=True):
        size, wanted = float(y.double().square().mean().sqrt()), 10 ** r.uniform(-6, 6)
        if isinstance(head, Apply) and head.name == "values" and size:
            head.layers[-1].weight.mul_(wanted / size)
