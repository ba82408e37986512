"""What is right is not refused: architectures of ``benchmarks/correct.py``, and what its first thousand taught."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from gate_helpers import export, normal, written
from genkit_onnx.evaluator import reference_evaluator
from genkit_onnx.runtime import OnnxRuntime
from torch import Tensor, nn

import genkit
from benchmarks.architectures import ACTIVATIONS, HEADS, architecture, layers
from benchmarks.correct import outcome

SEEDS = (3213, 3409, 2143, 2764, 2893, 2221, 2817, 3345, 2485, 2382, 2899, 2067, 2106, 2559)
"""None of the campaign's; together they have every kind of layer, activation and head."""


@pytest.mark.parametrize("seed", SEEDS)
def test_a_correct_architecture_is_exported_and_verified(seed: int, tmp_path: Path) -> None:
    row = outcome(seed, tmp_path)
    assert row["outcome"] == "passed", row


def test_the_sample_has_every_layer() -> None:
    found = {name for seed in SEEDS for name in layers(architecture(seed).module)}
    assert len(found) >= 110
    assert found >= HEADS.keys()
    assert found >= ACTIVATIONS.keys() - {"GELU tanh", "Softplus beta"}, "which have the names of their classes"
    assert found >= {"Conv2d", "ConvTranspose2d", "MultiheadAttention", "GRU", "LSTM", "long reduction", "Embedding"}


def test_an_architecture_is_its_seed() -> None:
    one, same, other = (architecture(seed).module.state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert [value.shape for value in one.values()] != [value.shape for value in other.values()]


class Functions(nn.Module):
    """Functions of one input, each an output."""

    def __init__(self, scale: float, functions: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.scale, self.functions = scale, dict(functions)
        self.modules_among_them = nn.ModuleList(f for f in functions.values() if isinstance(f, nn.Module))

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(self.scale * z) for function in self.functions.values())


def errors(directory: Path, scale: float, functions: Mapping[str, Callable[[Tensor], Tensor]]) -> dict[str, Any]:
    """The rms errors of each function of ``scale`` times normal numbers, by what was proven."""
    graph = genkit.Graph("g", Functions(scale, functions), {"z": normal(18)}, tuple(functions))
    checks = [check for check in export(directory / "bundle", graph).checks if "rms" in check.measured]
    found: dict[str, Any] = {}
    for check in checks:
        found.setdefault(check.subject, {}).setdefault(check.measured["output"], check.measured["rms"])
    return found


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 100.0])
def test_no_digits_are_lost_near_zero_and_far_from_it(scale: float, tmp_path: Path) -> None:
    functions = {
        "elu": nn.ELU(),
        "other_elu": nn.ELU(alpha=0.7),
        "celu": nn.CELU(),
        "other_celu": nn.CELU(alpha=1.5),
        "selu": nn.SELU(),
        "log_sigmoid": nn.LogSigmoid(),
        "softplus": nn.Softplus(),
        "expm1": lambda x: x.clamp(max=50).expm1(),
    }
    found = errors(tmp_path, scale, functions)
    for name in functions:
        assert found["onnxruntime"][name] < 4, name
        assert found["graph proof"][name] < 1e-3, name


def test_the_graph_proof_is_exact_where_onnx_or_float64_would_have_it_otherwise(tmp_path: Path) -> None:
    functions = {
        "erf": torch.erf,
        "log_softmax": lambda x: (1000 * x).log_softmax(1),
        "transposed": nn.Sequential(nn.Unflatten(1, (6, 3, 1)), nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2)),
        "selu": nn.SELU(),
        "rms_norm": nn.RMSNorm(18),
        "functional_rms_norm": lambda x: torch.rms_norm(1e-4 * x, (18,)),
    }
    found = errors(tmp_path, 1.0, functions)
    assert max(found["graph proof"].values()) < 1e-3, found


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "group=2, strides=[2,3], pads=[1,0,2,1], output_padding=[1,0], dilations=[2,1]",
        "strides=[2,2], auto_pad='SAME_UPPER'",
        "strides=[2,2], auto_pad='SAME_LOWER', group=4",
        "strides=[3,2], output_shape=[14,12]",
    ],
)
def test_a_transposed_convolution_is_the_runtime_s_whatever_its_attributes(attributes: str, tmp_path: Path) -> None:
    body = f"x = ConvTranspose<{attributes}>(z, w, b)".replace("<>", "").replace("'", '"')
    biases = 3 * int((re.findall(r"group=(\d)", attributes) or "1")[0])
    inputs = f"float[batch,4,5,6] z, float[4,3,3,2] w, float[{biases}] b"
    file = written(tmp_path, body, inputs, f"float[batch,{biases},height,width] x")
    random = np.random.default_rng(0)
    shapes = {"z": (2, 4, 5, 6), "w": (4, 3, 3, 2), "b": (biases,)}
    given = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    (ours,) = reference_evaluator(onnx.load(file)).run(None, given)
    np.testing.assert_allclose(ours, OnnxRuntime().load(file)(given)["x"], atol=1e-5)


def test_what_cancels_is_no_reaction(tmp_path: Path) -> None:
    norm = nn.InstanceNorm1d(3, affine=True)
    nn.init.uniform_(norm.bias, 1, 2)
    found = errors(tmp_path, 1.0, {"mean": nn.Sequential(nn.Unflatten(1, (3, 6)), norm, nn.AdaptiveAvgPool1d(1))})
    assert found["graph proof"]["mean"] < 1e-3
    (graph,) = genkit.Bundle.open(tmp_path / "bundle").manifest.graphs
    assert graph.ignores["z"]["mean"] == tuple(range(18))


@pytest.mark.parametrize(("shift", "spelt_out"), [(0.0, False), (-20.0, True)])
def test_a_sigmoid_is_spelt_out_where_onnxruntime_has_no_digits_of_it(
    shift: float, spelt_out: bool, tmp_path: Path
) -> None:
    found = errors(tmp_path, 1.0, {"probability": lambda x: (x + shift).sigmoid()})
    assert found["onnxruntime"]["probability"] < 4
    operators = {node.op_type for node in onnx.load(tmp_path / "bundle" / "g.onnx").graph.node}
    assert ("Sigmoid" in operators, "Exp" in operators) == (not spelt_out, spelt_out)
