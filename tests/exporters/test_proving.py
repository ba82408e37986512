"""``genkit.prove``: anybody's file against anybody's module, in three lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import genkit
from benchmarks.gate.graph_faults import Plant, notes_of_the_machine, nudged_weight, weights_of_fp16


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 10))
    layers(torch.randn(256, 20) * 2)
    return layers.eval()


def written(module: nn.Module, file: Path, **options: Any) -> Path:
    """As a stranger writes it: torch's own exporter, with its own settings."""
    torch.onnx.export(module, (torch.randn(3, 20),), file, dynamic_shapes=({0: "rows"},), verbose=False, **options)
    return file


@pytest.fixture(scope="module")
def file(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(module, tmp_path_factory.mktemp("stranger") / "net.onnx", external_data=False)


def test_a_right_file_passes_and_the_report_says_what_was_looked_at(module: nn.Module, file: Path) -> None:
    report = genkit.prove(module, file, torch.randn(64, 20))
    assert report.ok, str(report)
    assert {check.subject for check in report.checks} >= {"reference", "structure", "graph proof", "onnxruntime"}
    assert "ok     net: graph proof: " in str(report)


@pytest.mark.parametrize(
    "inputs",
    [
        torch.randn(1, 20, generator=torch.Generator().manual_seed(0)),
        [torch.randn(8, 20, generator=torch.Generator().manual_seed(0))],
        genkit.Input((20,), torch.float32, lambda n, g: torch.randn(n, 20, generator=g)),
        {"input": torch.randn(8, 20, generator=torch.Generator().manual_seed(0))},
    ],
)
def test_inputs_are_given_by_name_or_in_order_as_examples_or_as_what_draws_them(
    module: nn.Module, file: Path, inputs: Any
) -> None:
    assert genkit.prove(module, str(file), inputs).ok


def test_a_module_in_training_mode_is_proven_in_evaluation_mode_and_left_so(module: nn.Module, file: Path) -> None:
    module.train()
    try:
        assert genkit.prove(module, file, torch.randn(8, 20)).ok
        assert module.training
    finally:
        module.eval()


def test_weights_in_a_file_beside_it_are_read(module: nn.Module, tmp_path: Path) -> None:
    file = written(module, tmp_path / "net.onnx", external_data=True)
    assert (tmp_path / "net.onnx.data").exists()
    assert genkit.prove(module, file, torch.randn(8, 20)).ok
    (tmp_path / "net.onnx.data").unlink()
    report = genkit.prove(module, file, torch.randn(8, 20))
    assert [c.detail for c in report.failures] == [
        "net.onnx cannot be read: its weights should be in 'net.onnx.data', which is not a file beside it"
    ]


def fault(file: Path, folder: Path, change: Plant) -> Path:
    model = onnx.load(file)
    change(model, np.random.default_rng(0))
    onnx.save(model, folder / "faulty.onnx")
    return folder / "faulty.onnx"


@pytest.mark.parametrize("change", [nudged_weight, weights_of_fp16])
def test_a_wrong_file_is_refused(module: nn.Module, file: Path, tmp_path: Path, change: Plant) -> None:
    report = genkit.prove(module, fault(file, tmp_path, change), torch.randn(64, 20))
    failures = [check.detail for check in report.failures if check.subject == "graph proof"]
    assert any("times PyTorch's own" in detail for detail in failures), str(report)


def test_notes_of_the_machine_are_remarked_and_no_failure(module: nn.Module, file: Path, tmp_path: Path) -> None:
    report = genkit.prove(module, fault(file, tmp_path, notes_of_the_machine), torch.randn(8, 20))
    assert report.ok
    assert any("carries notes of the machine" in check.detail for check in report.checks)


def test_names_that_are_asked_for_have_to_be_there(module: nn.Module, file: Path) -> None:
    report = genkit.prove(module, file, {"z": torch.randn(8, 20)}, outputs=["x"])
    assert [c for c in report.failures if "the inputs are input, expected z" in c.detail]
    assert [c for c in report.failures if c.subject == "structure" and "expected x" in c.detail]


def test_a_batch_that_is_static_is_refused(module: nn.Module, tmp_path: Path) -> None:
    torch.onnx.export(module, (torch.randn(3, 20),), tmp_path / "net.onnx", verbose=False, external_data=False)
    report = genkit.prove(module, tmp_path / "net.onnx", torch.randn(8, 20))
    assert [c for c in report.failures if "has shape [3, 20], expected [batch, 20]" in c.detail], str(report)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 20)), "input '0' is a ndarray; give a genkit.Input, or a tensor"),
        (torch.zeros(0, 20), r"input '0' is a tensor of shape \(0, 20\)"),
        (torch.tensor(1.0), r"input '0' is a tensor of shape \(\)"),
    ],
)
def test_an_input_of_another_kind_is_an_error(module: nn.Module, file: Path, inputs: Any, message: str) -> None:
    with pytest.raises(genkit.InvalidOption, match=message):
        genkit.prove(module, file, [inputs])


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_a_file_that_is_none_is_said(module: nn.Module, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "net.onnx"
    if content is None:
        with pytest.raises(genkit.InvalidOption, match="there is no such file"):
            genkit.prove(module, file, torch.randn(2, 20))
        return
    file.write_bytes(content)
    assert not genkit.prove(module, file, torch.randn(2, 20)).ok


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda y: {"y": y}, "the module returns a dict, expected a tuple of"),
        (lambda y: (y, None), "the module returns 2 outputs, expected a tuple of"),
        (lambda y: (None,), "is a NoneType; an output has to be a tensor"),
    ],
)
def test_a_module_that_gives_something_else_than_tensors_is_refused(
    module: nn.Module, file: Path, answer: Callable[[Any], Any], reason: str
) -> None:
    class Odd(nn.Module):
        def forward(self, z: torch.Tensor) -> Any:
            return answer(module(z))

    report = genkit.prove(Odd(), file, torch.randn(8, 20))
    assert [check for check in report.failures if check.subject == "reference" and reason in check.detail], str(report)


def test_a_module_may_give_a_list(module: nn.Module, file: Path) -> None:
    class Listing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, z: torch.Tensor) -> list[torch.Tensor]:
            return [self.inner(z)]

    assert genkit.prove(Listing(), file, torch.randn(8, 20)).ok
