"""Every fault once: the gate refuses it, and says why. ``python -m benchmarks.faults`` tries ten of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import genkit
from benchmarks.faults import PAGE, kept, page
from benchmarks.gate.bundle_faults import BUNDLE_FAULTS
from benchmarks.gate.checkers import Checker, torch_verify, tutorial
from benchmarks.gate.faults import Fault
from benchmarks.gate.graph_faults import GRAPH_FAULTS
from benchmarks.gate.module_faults import MODULE_FAULTS
from benchmarks.gate.trials import Trial

SEED = 20
"""None of the campaign's."""


def every(faults: list[Fault[Callable[..., object]]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name.replace(" ", "-")) for fault in faults])


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """The four subjects, which the gate accepts as they are."""
    return Trial(SEED, tmp_path_factory.mktemp("trial"))


def test_the_gate_accepts_the_subjects_when_nothing_is_planted(trial: Trial, tmp_path: Path) -> None:
    assert len(trial.exported) == 6
    for exported in trial.exported.values():
        report = exported.prove(exported.model(), tmp_path / "same.onnx")
        assert report.ok, report.failures


@every(GRAPH_FAULTS)
def test_a_fault_in_a_graph_is_refused_for_its_reason(trial: Trial, fault: Fault[Callable[..., object]]) -> None:
    report, _ = trial.graph(fault)
    assert fault.named_by(report), report.failures


@every(BUNDLE_FAULTS)
def test_a_fault_in_a_bundle_is_refused_for_its_reason(trial: Trial, fault: Fault[Callable[..., object]]) -> None:
    report = trial.bundle(fault)
    assert fault.named_by(report), report.failures


@every(MODULE_FAULTS)
def test_a_fault_in_a_module_is_refused_for_its_reason(trial: Trial, fault: Fault[Callable[..., object]]) -> None:
    report = trial.module(fault)
    assert fault.named_by(report), report.failures
    assert not (trial.folder / "refused").exists()


def test_a_refusal_for_another_reason_does_not_name_the_fault() -> None:
    fault = next(fault for fault in GRAPH_FAULTS if fault.name == "clipped latent")
    right = genkit.Check("g", "graph proof", False, "x: rms error 9 times PyTorch's own at batch 64, limit 0.5")
    passed = genkit.Check("g", "graph proof", True, right.detail)
    other = genkit.Check("g", "structure", False, "onnx's checker rejects the file")
    assert fault.named_by(genkit.Report((right,)))
    for checks in ((), (passed,), (other,), (right, other)):
        assert not fault.named_by(genkit.Report(checks)), checks


def test_there_are_as_many_faults_as_names() -> None:
    names = [fault.name for fault in (*GRAPH_FAULTS, *BUNDLE_FAULTS, *MODULE_FAULTS)]
    assert len(names) == len(set(names)) >= 100


@pytest.mark.parametrize("make", [torch_verify, tutorial], ids=["torch", "tutorial"])
def test_other_checkers_tell_a_gross_fault_from_a_true_graph(trial: Trial, make: Callable[..., Checker]) -> None:
    exported = trial.exported["conv_decoder"]
    refuses = make(exported.graph, SEED)
    assert not refuses(exported.bundle.path / exported.promised.file)
    gross = next(fault for fault in GRAPH_FAULTS if fault.name == "rows for columns")
    model = exported.model()
    gross.plant(model, gross.random(0))
    file = trial.folder / "gross.onnx"
    file.write_bytes(model.SerializeToString())
    assert refuses(file)


def test_the_campaign_that_was_kept_missed_nothing_and_is_what_the_page_shows() -> None:
    results = kept()
    known = {fault.name for fault in (*GRAPH_FAULTS, *BUNDLE_FAULTS, *MODULE_FAULTS)}
    assert results["faults"].keys() == known
    for name, entry in results["faults"].items():
        assert entry["named"] == entry["refused"]["genkit"] == entry["trials"] == 10, name
    assert results["true_graphs"]["refused"]["genkit"] == 0
    assert PAGE.read_text() == page(results), "python -m benchmarks.faults --pages"
