"""Faults of a module, of how its inputs are drawn, and of the machinery that exports it.

Each is a context in which the graphs that it yields are exported. Every module reads a latent ``z`` and writes ``y``.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import genkit
from benchmarks.gate.exports import Translate, after_the_proof, translator
from benchmarks.gate.faults import NUMBERS, WEIGHTS, Fault, collector
from benchmarks.gate.subjects import LATENT, SUBJECTS, label, latent, weighted
from benchmarks.gate.surgery import reweight, weights

Graphs = tuple[genkit.Graph, ...]
Plant = Callable[[int], AbstractContextManager[Graphs]]

MODULE_FAULTS: list[Fault[Plant]] = []
fault = collector(MODULE_FAULTS)


class Faulty(nn.Module):
    """A layer, then a function of what it gives, in which the fault is."""

    def __init__(self, rest: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(LATENT, 6)
        self.rest = rest

    def forward(self, z: Tensor) -> object:
        h = self.rest(self.layer(z))
        return (h,) if isinstance(h, Tensor) else h


def _of(module: nn.Module, seed: int, **inputs: genkit.Input) -> Graphs:
    inputs = inputs or {"z": latent()}
    return (genkit.Graph("faulty", weighted(module, torch.Generator().manual_seed(seed)), inputs, ("y",)),)


def module(says: dict[str, str]) -> Callable[[Callable[[Tensor], object]], Callable[[Tensor], object]]:
    """Makes a fault of a function that a module computes."""

    def collect(rest: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
        @contextmanager
        def plant(seed: int) -> Iterator[Graphs]:
            yield _of(Faulty(rest), seed)

        plant.__name__, plant.__doc__ = rest.__name__, rest.__doc__
        fault("module", says=says)(plant)
        return rest

    return collect


_NOISY = {"reference": "y: the module gives other numbers for the same inputs"}


@module(_NOISY)
def noise_in_forward(h: Tensor) -> Tensor:
    """Noise that is drawn in forward."""
    return h + 1e-3 * torch.randn_like(h)


@module(_NOISY)
def noise_of_numpy(h: Tensor) -> Tensor:
    """Noise that torch's seed does not reach."""
    return h + float(np.random.rand())


@module({"structure": "the operator RandomNormalLike is random"})
def noise_that_drowns(h: Tensor) -> Tensor:
    """Noise that float32 does not see."""
    return h + 1e-12 * torch.randn_like(h)


@module(_NOISY)
def dropout_left_on(h: Tensor) -> Tensor:
    """The functional dropout, which is in training mode unless it is told."""
    return F.dropout(h, 0.1)


_COUPLED = {"reference": "y: in PyTorch, a row by itself gives other numbers than in a batch"}


@module(_COUPLED)
def coupled_rows(h: Tensor) -> Tensor:
    """Less the mean of the batch."""
    return h - h.mean(0)


@module(_COUPLED)
def barely_coupled_rows(h: Tensor) -> Tensor:
    """Less a millionth of the mean of the batch, which is about as much as a runtime may be off."""
    return h - 1e-6 * h.mean(0)


@module({"translation": "data-dependent"})
def branch_on_values(h: Tensor) -> Tensor:
    """An if that depends on numbers, and is never taken."""
    return 2 * h if h.isnan().any() else h


@module({"translation": "ValueError: Found the following conflicts"})
def loop_over_the_batch(h: Tensor) -> Tensor:
    """A loop of as many rounds as the example has rows."""
    return torch.stack([2 * row for row in h])


@module(_COUPLED)
def something_else_for_one_row(h: Tensor) -> Tensor:
    """A branch on the size of the batch, of which the trace of three rows knows nothing."""
    return 2 * h if len(h) > 1 else h


@module({"reference": "y: PyTorch's own float32 is not finite at batch"})
def overflow(h: Tensor) -> Tensor:
    """Infinite in the tails."""
    return (40 * h).exp()


@module({"reference": "y: PyTorch's own float32 is not finite at batch"})
def nothing_over_nothing(h: Tensor) -> Tensor:
    """0 / 0 where a unit is off."""
    h = h.relu()
    return h / h


@module({"reference": "y: PyTorch's own is float32 where its inputs are float64"})
def cast_inside(h: Tensor) -> Tensor:
    """A cast that no float64 gets through."""
    return h.float().tanh()


@module({"reference": "y: PyTorch's own is float64 where its inputs are float32"})
def constants_of_float64(h: Tensor) -> Tensor:
    """A constant that makes everything after it float64, which no phone has."""
    return h * torch.linspace(0, 1, 6, dtype=torch.float64)


@module({"reference": "the module fails in float64"})
def constants_of_float32(h: Tensor) -> Tensor:
    """A constant with which nothing but float32 can be multiplied."""
    return h @ torch.eye(6)


@module({"reference": "the module returns a list, expected a tuple of y"})
def list_of_outputs(h: Tensor) -> object:
    """A list where a tuple is due."""
    return [h]


@module({"reference": "the module returns 2 outputs, expected a tuple of y"})
def undeclared_output(h: Tensor) -> object:
    """One output too many."""
    return h, h


@module({"reference": "its first dimension has to be the batch"})
def sum_of_the_batch(h: Tensor) -> Tensor:
    """One number for all rows."""
    return h.sum()


@module({"reference": "its first dimension has to be the batch"})
def batch_in_the_last_place(h: Tensor) -> Tensor:
    """The rows as columns."""
    return h.T


@module({"reference": "its first dimension has to be the batch"})
def selection_of_rows(h: Tensor) -> Tensor:
    """As many rows as are positive."""
    return h[h[:, 0] > 0]


class _StillTraining(nn.Module):
    """Batch norm that ``eval()`` does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        self.norm.train()
        return (self.norm(self.layer(z[:, None])),)


@fault("module", says=_COUPLED)
@contextmanager
def batch_norm_left_in_training(seed: int) -> Iterator[Graphs]:
    """Batch norm by the statistics of the batch."""
    yield _of(_StillTraining(), seed)


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(LATENT, 6)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        calls = self.get_buffer("calls")
        calls += 1
        return (self.layer(z) * calls,)


@fault("module", says=_NOISY)
@contextmanager
def state_in_forward(seed: int) -> Iterator[Graphs]:
    """A count of the calls, of which the output makes use."""
    yield _of(_Counting(), seed)


class _Frozen(nn.Module):
    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        return (z + torch.randn(LATENT, generator=generator, dtype=z.dtype),)


@fault("module", says={"translation": "randn"})
@contextmanager
def noise_with_a_seed_of_its_own(seed: int) -> Iterator[Graphs]:
    """The same noise in each call, but not the same in float32 and in float64."""
    yield _of(_Frozen(), seed)


class _Attached(nn.Module):
    """Keeps what another computation gave, with all of its history."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(LATENT, 6)
        self.shift = self.layer.bias * 2

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (self.layer(z) + self.shift,)


@fault("module", says={"reference": "the module cannot be copied"})
@contextmanager
def part_of_a_computation(seed: int) -> Iterator[Graphs]:
    """A tensor that cannot be copied, so that there is nothing untouched to compare with."""
    yield (genkit.Graph("faulty", _Attached(), {"z": latent()}, ("y",)),)


# How inputs are drawn


def drawn(says: dict[str, str]) -> Callable[[Callable[[int], genkit.Input]], Callable[[int], genkit.Input]]:
    """Makes a fault of an input ``z`` of a graph that is right."""

    def collect(build: Callable[[int], genkit.Input]) -> Callable[[int], genkit.Input]:
        @contextmanager
        def plant(seed: int) -> Iterator[Graphs]:
            yield _of(Faulty(torch.tanh), seed, z=build(seed))

        plant.__name__, plant.__doc__ = build.__name__, build.__doc__
        fault("input", says=says)(plant)
        return build

    return collect


def _latent(draw: Callable[[int, torch.Generator], Tensor]) -> genkit.Input:
    return dataclasses.replace(latent(), draw=draw)


@drawn({"reference": "z: its draw function gives float32 (1, 7), expected float32 (1, 8)"})
def draw_of_another_shape(seed: int) -> genkit.Input:
    """A latent of 7 where 8 were promised."""
    return _latent(lambda n, g: torch.randn(n, 7, generator=g))


@drawn({"reference": "z: its draw function gives float64"})
def draw_of_another_dtype(seed: int) -> genkit.Input:
    """float64 where float32 was promised."""
    return _latent(lambda n, g: torch.randn(n, LATENT, generator=g).double())


@drawn({"reference": "z: its draw function fails: integer division or modulo by zero"})
def draw_that_fails(seed: int) -> genkit.Input:
    """An error in somebody else's code."""
    return _latent(lambda n, g: torch.ones(n) / (1 // 0))


@drawn({"reference": "z: its draw function gives numbers that are not finite"})
def draw_that_is_not_finite(seed: int) -> genkit.Input:
    """A latent with a NaN in it."""
    return _latent(lambda n, g: torch.randn(n, LATENT, generator=g).log())


@drawn({"reference": "z: its draw function gives nothing but zeros"})
def draw_of_zeros(seed: int) -> genkit.Input:
    """Zeros, which stay so however they are made harder, and show nothing of the rest."""
    return _latent(lambda n, g: torch.zeros(n, LATENT))


@drawn({"reference": "z: its draw function does not give what its distribution says"})
def draw_of_one_value(seed: int) -> genkit.Input:
    """One latent over and over, which shows nothing of the others."""
    return _latent(lambda n, g: torch.ones(n, LATENT))


@drawn({"reference": "z: its draw function does not give what its distribution says"})
def draw_of_another_distribution(seed: int) -> genkit.Input:
    """A latent that deployers are told to draw wider than it is."""
    return _latent(lambda n, g: 0.8 * torch.randn(n, LATENT, generator=g))


@fault("input", says={"reference": "condition: its draw function does not give what its distribution says"})
@contextmanager
def draw_of_half_the_labels(seed: int) -> Iterator[Graphs]:
    """Labels of which half are never drawn, so that nothing is known about them."""
    (graph,) = SUBJECTS["conditional"](seed)
    half = dataclasses.replace(label(), draw=lambda n, g: torch.randint(5, (n,), generator=g))
    yield (dataclasses.replace(graph, inputs={**graph.inputs, "condition": half}),)


# The machinery


def _rewritten(change: Callable[[onnx.ModelProto], None]) -> AbstractContextManager[None]:
    def changed(translate: Translate) -> Translate:
        def run(graph: genkit.Graph, opset: int, seed: int, **how: bool) -> onnx_ir.Model:
            model = onnx_ir.to_proto(translate(graph, opset, seed, **how))
            change(model)
            return onnx_ir.from_proto(model)

        return run

    return translator(changed)


@fault("machinery", says=NUMBERS | WEIGHTS)
@contextmanager
def translator_that_rounds_weights(seed: int) -> Iterator[Graphs]:
    """A translator that saves space."""

    def rounded(model: onnx.ModelProto) -> None:
        for tensor in weights(model):
            reweight(tensor, lambda array: array.astype(np.float16))

    with _rewritten(rounded):
        yield SUBJECTS["mlp"](seed)


def _of_another(change: Callable[[nn.Module], object]) -> AbstractContextManager[None]:
    """A translator that reads a copy of the module to which something was done."""

    def changed(translate: Translate) -> Translate:
        def run(graph: genkit.Graph, opset: int, seed: int, **how: bool) -> onnx_ir.Model:
            other = copy.deepcopy(graph.module)
            with torch.no_grad():
                change(other)
            return translate(dataclasses.replace(graph, module=other), opset, seed, **how)

        return run

    return translator(changed)


@fault("machinery", says=NUMBERS | WEIGHTS)
@contextmanager
def snapshot_before_the_last_step(seed: int) -> Iterator[Graphs]:
    """A translator that kept the module as it was one step of training ago."""
    with _of_another(lambda other: [p.add_(1e-5 * torch.randn_like(p)) for p in other.parameters()]):
        yield SUBJECTS["mlp"](seed)


@fault("machinery", says={"weights": "norm.running_mean does not have the bits of the checkpoint"})
@contextmanager
def translator_that_trains_on(seed: int) -> Iterator[Graphs]:
    """A translator whose tracing moves the statistics of batch norm."""
    with _of_another(lambda other: other.train()(torch.randn(9, LATENT))):
        yield SUBJECTS["conv"](seed)


_TOUCHED = {"translation": "the translation changed the module's own weights"}


@fault("machinery", says=_TOUCHED)
@contextmanager
def mutation_shared_with_the_reference(seed: int) -> Iterator[Graphs]:
    """A translator that rounds the weights of the very module from which the reference is computed."""

    def changed(translate: Translate) -> Translate:
        def run(graph: genkit.Graph, opset: int, seed: int, **how: bool) -> onnx_ir.Model:
            graph.module.half().float()
            return translate(graph, opset, seed, **how)

        return run

    with translator(changed):
        yield SUBJECTS["mlp"](seed)


class _Half(nn.Module):
    """One of several functions of a model."""

    def __init__(self, model: nn.ModuleList, part: int) -> None:
        super().__init__()
        self.model, self.part = model, part

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (self.model[self.part](z),)


@fault("machinery", says=_TOUCHED)
@contextmanager
def mutation_before_the_next_reference(seed: int) -> Iterator[Graphs]:
    """Two graphs of one model, and a translator whose first translation changes what the second is compared with."""
    model = nn.ModuleList([nn.Linear(LATENT, 6), nn.Linear(LATENT, 6)])
    weighted(model, torch.Generator().manual_seed(seed))

    def changed(translate: Translate) -> Translate:
        def run(graph: genkit.Graph, opset: int, seed: int, **how: bool) -> onnx_ir.Model:
            if graph.name == "first":
                model[1].half().float()
            return translate(graph, opset, seed, **how)

        return run

    with translator(changed):
        z = {"z": latent()}
        yield tuple(genkit.Graph(name, _Half(model, i), z, ("y",)) for i, name in enumerate(["first", "second"]))


@fault("machinery", says={"structure": "the inputs are z, expected x"})
@contextmanager
def graph_of_another_name(seed: int) -> Iterator[Graphs]:
    """A translator that gives the decoder for the encoder."""
    graphs = SUBJECTS["mlp"](seed)

    def changed(translate: Translate) -> Translate:
        return lambda graph, opset, seed, **how: translate(graphs[1], opset, seed, **how)

    with translator(changed):
        yield graphs


@fault("machinery", says={"structure": "opset 18 was asked for, the file says 20"})
@contextmanager
def another_opset(seed: int) -> Iterator[Graphs]:
    """A translator that writes the opset that it likes best."""

    def changed(translate: Translate) -> Translate:
        return lambda graph, opset, seed, **how: translate(graph, 20, seed, **how)

    with translator(changed):
        yield SUBJECTS["vq"](seed)


@fault("machinery", says={"files": "conv_decoder.onnx: changed"})
@contextmanager
def other_bytes_than_were_proven(seed: int) -> Iterator[Graphs]:
    """A file that is written once more when its proof is over."""

    def act(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-9])

    with after_the_proof(act):
        yield SUBJECTS["conv"](seed)
