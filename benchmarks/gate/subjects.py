"""Four small models of the usual kinds, as graphs, of which faults are made.

Their weights follow from a seed and are as large as those of a trained model, whose outputs fill their range; batch
norms have seen data. They are small, because the gate's float64 evaluator is slow and a campaign runs it a thousand
times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import genkit

LATENT = 8
SIDE = 8
CLASSES = 10
CODES = 16


def latent() -> genkit.Input:
    """As a standard normal prior draws it, and says so."""
    drawn = {"kind": "normal", "parameters": [0.0, 1.0]}
    return genkit.Input((LATENT,), torch.float32, lambda n, g: torch.randn(n, LATENT, generator=g), drawn)


def image() -> genkit.Input:
    """Pixels in [0, 1]."""
    return genkit.Input((1, SIDE, SIDE), torch.float32, lambda n, g: torch.rand(n, 1, SIDE, SIDE, generator=g))


def label() -> genkit.Input:
    """One of the classes."""
    drawn = {"kind": "integers", "parameters": [0, CLASSES]}
    return genkit.Input((), torch.int64, lambda n, g: torch.randint(CLASSES, (n,), generator=g), drawn)


def codes() -> genkit.Input:
    """A grid of a codebook's codes."""
    return genkit.Input((4, 4), torch.int64, lambda n, g: torch.randint(CODES, (n, 4, 4), generator=g))


class MLPEncoder(nn.Module):
    """x in [0, 1] -> mean, log_var; inside, x goes from -1 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(SIDE * SIDE, 32)
        self.mean = nn.Linear(32, LATENT)
        self.log_var = nn.Linear(32, LATENT)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.hidden((2 * x - 1).flatten(1)).relu()
        return self.mean(h), self.log_var(h)


class MLPDecoder(nn.Module):
    """z -> x in [0, 1], the image of tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(LATENT, 32)
        self.square = nn.Linear(32, 32)
        self.last = nn.Linear(32, SIDE * SIDE)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        h = self.square(self.first(z).relu()).relu()
        return ((self.last(h).tanh().unflatten(1, (1, SIDE, SIDE)) + 1) / 2,)


class ConvDecoder(nn.Module):
    """z -> the mean and the scale of a Gaussian over pictures, which nothing bounds; batch norm, and the exact GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(LATENT, 6 * 9)
        self.up = nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.mix = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.ConvTranspose2d(6, 2, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        h = self.start(z).unflatten(1, (6, 3, 3))
        h = F.gelu(self.norm(self.up(h)))
        mean, log_scale = self.last(F.gelu(self.mix(h))).chunk(2, 1)
        return mean, log_scale.exp()


class VQEncoder(nn.Module):
    """x -> the grid of the nearest codes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 2, stride=2)
        self.second = nn.Conv2d(8, 4, 1)
        self.codebook = nn.Parameter(torch.empty(CODES, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.second(self.first(x).relu()).movedim(1, -1)  # (B, 4, 4, features)
        distances = self.codebook.square().sum(1) - 2 * h @ self.codebook.T
        return (distances.argmin(-1),)


class VQDecoder(nn.Module):
    """A grid of codes -> x in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(CODES, 4))
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.last = nn.ConvTranspose2d(8, 1, 2, stride=2)

    def forward(self, code: Tensor) -> tuple[Tensor, ...]:
        h = self.first(F.embedding(code, self.codebook).movedim(-1, 1)).relu()
        return (self.last(h).sigmoid(),)


class ConditionalDecoder(nn.Module):
    """z and a label -> the mean and the probabilities of four grey levels for each pixel."""

    levels = 4

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(CLASSES, 4)
        self.hidden = nn.Linear(LATENT + 4, 24)
        self.logits = nn.Linear(24, self.levels * SIDE * SIDE)
        self.register_buffer("greys", torch.linspace(0, 1, self.levels))

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, ...]:
        h = F.elu(self.hidden(torch.cat([z, self.label(condition)], 1)))
        probabilities = self.logits(h).unflatten(1, (self.levels, SIDE, SIDE)).softmax(1)
        greys = self.get_buffer("greys")
        return (probabilities * greys[:, None, None]).sum(1, keepdim=True), probabilities


def weighted(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """``module`` with weights as large as those of a trained one."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 1.5 * parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.2
            center = 1.0 if "norm.weight" in name else 0.0
            parameter.copy_(center + scale * torch.randn(parameter.shape, generator=generator))
    return module


def lived_in(module: nn.Module, inputs: Mapping[str, genkit.Input], seed: int) -> nn.Module:
    """``module`` with such weights, and with batch norms that have seen a few batches."""
    generator = torch.Generator().manual_seed(seed)
    weighted(module, generator).train()
    with torch.no_grad():
        for _ in range(20):
            module(*(value.draw(32, generator) for value in inputs.values()))
    return module.eval()


def _mlp(seed: int) -> tuple[genkit.Graph, ...]:
    unit = {"x": (0.0, 1.0)}
    x, z = {"x": image()}, {"z": latent()}
    return (
        genkit.Graph("mlp_encoder", lived_in(MLPEncoder(), x, seed), x, ("mean", "log_var"), unit),
        genkit.Graph("mlp_decoder", lived_in(MLPDecoder(), z, seed), z, ("x",), unit),
    )


def _conv(seed: int) -> tuple[genkit.Graph, ...]:
    z = {"z": latent()}
    return (genkit.Graph("conv_decoder", lived_in(ConvDecoder(), z, seed), z, ("x", "scale")),)


def _vq(seed: int) -> tuple[genkit.Graph, ...]:
    unit = {"x": (0.0, 1.0)}
    x, code = {"x": image()}, {"code": codes()}
    return (
        genkit.Graph("vq_encoder", lived_in(VQEncoder(), x, seed), x, ("code",), unit),
        genkit.Graph("vq_decoder", lived_in(VQDecoder(), code, seed), code, ("x",), unit),
    )


def _conditional(seed: int) -> tuple[genkit.Graph, ...]:
    inputs = {"z": latent(), "condition": label()}
    module = lived_in(ConditionalDecoder(), inputs, seed)
    ranges = {"x": (0.0, 1.0), "probabilities": (0.0, 1.0)}
    return (genkit.Graph("conditional_decoder", module, inputs, ("x", "probabilities"), ranges),)


SUBJECTS: Mapping[str, Callable[[int], tuple[genkit.Graph, ...]]] = {
    "mlp": _mlp,
    "conv": _conv,
    "vq": _vq,
    "conditional": _conditional,
}
"""By name: seed -> the graphs of one model."""
