"""Bundles: what is opened, what is noticed, and that a destination is replaced as a whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tree

import genkit

Z = genkit.Value(name="z", dtype="float32", shape=("batch", 2))
X = genkit.Value(name="x", dtype="float32", shape=("batch", 3), range=(0.0, 1.0))
GRAPH = genkit.BundledGraph(
    name="decoder",
    file="decoder.onnx",
    opset=18,
    inputs=(Z,),
    outputs=(X,),
    batches=(1, 2),
    reduction=2,
    errors={"x": genkit.Errors(rms=1e-8, max=1e-7)},
)
CASES = [
    genkit.Case(
        {"z": np.full((rows, 2), 0.5, np.float32)},
        {"x": np.full((rows, 3), 0.1, np.float32)},
        {"x": np.full((rows, 3), 0.1)},
    )
    for rows in (1, 2)
]


def fill(directory: Path) -> None:
    """A small bundle; its graph is not one, which is for exporters to notice."""
    (directory / "decoder.onnx").write_bytes(b"a graph")
    (directory / "README.md").write_text("How to run it.\n")
    genkit.write_cases(directory, GRAPH, CASES)
    about = {"recipe": {"name": "tiny"}, "checkpoint": {"epoch": 3, "step": 99}}
    genkit.seal(directory, genkit.Manifest(format="onnx", graphs=(GRAPH,), **about))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    with genkit.stage(path) as staging:
        fill(staging)
    return path


def problems(path: Path) -> list[str]:
    return [check.detail for check in genkit.Bundle.open(path).check_files() if not check.ok]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


# Opening


def test_a_bundle_opens_with_its_manifest_typed_and_what_the_exporter_said_about_the_model(path: Path) -> None:
    bundle = genkit.Bundle.open(path)
    assert bundle.path == path
    assert bundle.manifest.graphs == (GRAPH,)
    assert bundle.manifest.about == {"recipe": {"name": "tiny"}, "checkpoint": {"epoch": 3, "step": 99}}
    assert list(bundle.manifest.files) == sorted(tree(path).keys() - {"manifest.json"})
    assert problems(path) == []


def test_golden_vectors_come_back_as_they_were_written(path: Path) -> None:
    bundle = genkit.Bundle.open(path)
    cases = bundle.cases(bundle.manifest.graphs[0])
    assert [case.rows for case in cases] == [1, 2]
    for found, written in zip(cases, CASES, strict=True):
        for kind in ("inputs", "outputs", "references"):
            for name, array in getattr(written, kind).items():
                again = getattr(found, kind)[name]
                assert (again.dtype, again.tobytes()) == (array.dtype, array.tobytes())


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("a file")])
def test_a_path_that_is_no_bundle_is_a_wrong_request(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "other")
    with pytest.raises(genkit.InvalidBundle, match=r"is not a bundle; `genkit export") as refused:
        genkit.Bundle.open(tmp_path / "other")
    assert refused.value.status == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"{}",
        b'{"format_version": 1, "format": "onnx", "graphs": 3}',
        b'{"format_version": 1, "format": ["onnx"], "graphs": []}',
        b'{"format_version": 2, "format": "onnx", "graphs": []}',
        b'{"format_version": 1, "format": "onnx", "graphs": [], "files": {"a": 1}}',
        b"[" * 100_000,
        b'{"format_version": 1, "format": "onnx", "graphs": [], "more": ' + b"[" * 100_000,
    ],
)
def test_a_damaged_manifest_fails_verification_in_one_line(path: Path, content: bytes) -> None:
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(genkit.VerificationFailed, match="is damaged") as refused:
        genkit.Bundle.open(path)
    assert refused.value.status == 1
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["graphs"][0].update(opset="18"),
        lambda m: m["graphs"][0].update(name="../decoder"),
        lambda m: m["graphs"][0].update(inputs=[]),
        lambda m: m["graphs"][0].update(batches=[0]),
        lambda m: m["graphs"][0]["errors"]["x"].update(rms=float("nan")),
        lambda m: m["graphs"][0]["errors"]["x"].update(rms=-1.0),
        lambda m: m["graphs"][0]["inputs"][0].update(shape=["rows", 2]),
        lambda m: m.pop("graphs"),
    ],
)
def test_a_manifest_of_wrong_types_fails_verification(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    rewrite(path, change)
    with pytest.raises(genkit.VerificationFailed, match="is damaged"):
        genkit.Bundle.open(path)


def test_a_truncated_manifest_fails_verification_wherever_it_ends(path: Path) -> None:
    whole = (path / "manifest.json").read_bytes().rstrip()
    for end in range(0, len(whole), 97):
        (path / "manifest.json").write_bytes(whole[:end])
        with pytest.raises(genkit.VerificationFailed):
            genkit.Bundle.open(path)


# Files


def test_a_flipped_bit_in_any_file_is_noticed(path: Path) -> None:
    for name in tree(path).keys() - {"manifest.json"}:
        content = (path / name).read_bytes()
        for position in (0, len(content) // 2, len(content) - 1):
            flipped = bytearray(content)
            flipped[position] ^= 1
            (path / name).write_bytes(flipped)
            assert [problem for problem in problems(path) if problem.startswith(f"{name}: changed")]
        (path / name).write_bytes(content)
    assert problems(path) == []


def test_a_flipped_bit_in_the_manifest_is_noticed(path: Path) -> None:
    content = (path / "manifest.json").read_bytes()
    for position in range(0, len(content.rstrip()), 7):
        flipped = bytearray(content)
        flipped[position] ^= 1
        (path / "manifest.json").write_bytes(flipped)
        try:
            assert problems(path), position
        except genkit.VerificationFailed:
            continue


def test_a_changed_manifest_is_noticed_even_where_it_still_makes_sense(path: Path) -> None:
    rewrite(path, lambda manifest: manifest["checkpoint"].update(epoch=4))
    assert problems(path) == ["manifest.json: changed after it was written"]


def test_a_missing_and_an_additional_file_are_noticed(path: Path) -> None:
    (path / "README.md").unlink()
    (path / "test_data" / "notes.txt").write_text("mine")
    assert problems(path) == ["README.md: missing", "test_data/notes.txt: not a file of this bundle"]


def test_a_directory_in_the_place_of_a_file_is_noticed(path: Path) -> None:
    (path / "README.md").unlink()
    (path / "README.md").mkdir()
    assert problems(path) == ["README.md: missing"]


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "test_data/../../secret", "..\\secret", "c:secret", ""])
def test_names_that_lead_outside_are_not_followed(path: Path, name: str) -> None:
    (path.parent / "secret").write_text("not ours")
    rewrite(path, lambda manifest: manifest["files"].update({name: "0" * 64}))
    assert f"{name!r} leads outside of the bundle" in problems(path)


@pytest.mark.parametrize("name", ["decoder.onnx", "test_data"])
def test_symbolic_links_are_not_followed(path: Path, name: str) -> None:
    outside = path.parent / "outside"
    (path / name).rename(outside)
    (path / name).symlink_to(outside)
    found = problems(path)
    assert any("is a symbolic link, or behind one" in problem for problem in found)
    bundle = genkit.Bundle.open(path)
    if name == "test_data":
        assert "test_data: not a file of this bundle" in found
        with pytest.raises(genkit.VerificationFailed, match="symbolic link"):
            bundle.cases(bundle.manifest.graphs[0])


def test_a_graph_that_is_not_among_the_files_is_noticed(path: Path) -> None:
    rewrite(path, lambda manifest: manifest["graphs"][0].update(file="../decoder.onnx"))
    assert "../decoder.onnx: not in the manifest's files" in problems(path)
    with pytest.raises(genkit.VerificationFailed, match="leads outside"):
        genkit.Bundle.open(path).file("../decoder.onnx")


def vector(array: np.ndarray[Any, Any], name: str) -> bytes:
    from onnx import numpy_helper

    content: bytes = numpy_helper.from_array(array, name).SerializeToString()
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"\xff" * 40, "cannot be read"),
        (vector(np.zeros((1, 2), np.float32), "y"), "cannot be read: it is not 'z'"),
        (vector(np.zeros((1, 2)), "z"), r"holds float64 \(1, 2\), expected float32 \(1, 2\)"),
        (vector(np.zeros((2, 2), np.float32), "z"), r"holds float32 \(2, 2\), expected float32 \(1, 2\)"),
        (vector(np.full((1, 2), np.nan, np.float32), "z"), "not finite"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_golden_vector_is_named(path: Path, content: bytes | None, reason: str) -> None:
    file = path / "test_data" / "decoder" / "test_data_set_0" / "input_0.pb"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    bundle = genkit.Bundle.open(path)
    with pytest.raises(genkit.VerificationFailed, match=rf"test_data_set_0/input_0\.pb: .*{reason}"):
        bundle.cases(bundle.manifest.graphs[0])


# Staging


def test_a_bundle_is_replaced_by_the_next_one_as_a_whole(path: Path) -> None:
    (path / "old.txt").write_text("from before")
    with genkit.stage(path) as staging:
        assert staging.parent == path.parent
        assert (path / "old.txt").exists()
        fill(staging)
    assert problems(path) == []
    assert [entry.name for entry in path.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, genkit.ExportRefused])
def test_a_failure_leaves_the_destination_as_it_was_and_nothing_beside_it(
    path: Path, error: type[BaseException]
) -> None:
    before = tree(path)

    def half(staging: Path) -> None:
        (staging / "half.onnx").write_text("half")
        raise error

    with pytest.raises(error), genkit.stage(path) as staging:
        half(staging)
    assert tree(path) == before
    assert [entry.name for entry in path.parent.iterdir()] == ["bundle"]


def test_a_failure_leaves_no_directory_that_was_not_there_before(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), genkit.stage(tmp_path / "new" / "deep" / "bundle"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_missing_parents_are_made(tmp_path: Path) -> None:
    with genkit.stage(tmp_path / "new" / "deep" / "bundle") as staging:
        fill(staging)
    assert problems(tmp_path / "new" / "deep" / "bundle") == []


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with genkit.stage(tmp_path / "bundle") as staging:
        fill(staging)
    assert problems(tmp_path / "bundle") == []


@pytest.mark.parametrize("name", ["thesis.tex", "manifest.json"])
def test_a_directory_that_is_no_bundle_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text('{"manifest_version": 3, "name": "somebody else\'s"}')
    before = tree(tmp_path)
    remedy = "is not a bundle; remove it, or choose another place"
    with pytest.raises(genkit.GenkitError, match=remedy) as refused, genkit.stage(tmp_path / "mine"):
        pytest.fail("the block was entered")
    assert refused.value.status == 2
    assert tree(tmp_path) == before


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(genkit.GenkitError, match="is not a bundle"), genkit.stage(tmp_path / "mine"):
        pytest.fail("the block was entered")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_a_wrong_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    remedy = r"cannot write the bundle .*; choose another place"
    with pytest.raises(genkit.GenkitError, match=remedy) as refused, genkit.stage(tmp_path / "file" / "bundle"):
        pytest.fail("the block was entered")
    assert refused.value.status == 2
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_is_said_in_one_line(path: Path) -> None:
    before = tree(path)
    with pytest.raises(genkit.GenkitError, match="No space left on device"), genkit.stage(path):
        raise OSError(28, "No space left on device")
    assert tree(path) == before


def test_where_the_new_bundle_cannot_be_put_the_old_one_comes_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(path)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == path and "replaced" not in self.name:
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr("genkit.files._swapped", lambda one, other: False)  # as on a system that cannot
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(genkit.GenkitError, match="Device or resource busy"), genkit.stage(path) as staging:
        fill(staging)
    assert tree(path) == before
    assert [entry.name for entry in path.parent.iterdir()] == ["bundle"]


def test_a_link_to_a_bundle_stays_a_link(path: Path) -> None:
    link = path.parent / "latest"
    link.symlink_to(path)
    with genkit.stage(link) as staging:
        fill(staging)
        (staging / "new.txt").write_text("new")
    assert link.is_symlink()
    assert (path / "new.txt").exists()


# Reports


def test_a_report_without_checks_is_not_a_good_one() -> None:
    assert not genkit.Report(()).ok


def test_a_report_as_json_has_every_check() -> None:
    report = genkit.Report(
        (genkit.Check("g", "files", True, "fine"), genkit.Check("g", "proof", False, "no", {"rms": 2}))
    )
    assert json.loads(report.to_json()) == {
        "ok": False,
        "checks": [
            {"graph": "g", "subject": "files", "ok": True, "detail": "fine", "measured": {}},
            {"graph": "g", "subject": "proof", "ok": False, "detail": "no", "measured": {"rms": 2}},
        ],
    }
    assert [check.subject for check in report.failures] == ["proof"]


def test_bundles_need_no_torch() -> None:
    code = "import sys, genkit; genkit.Bundle, genkit.stage, genkit.seal; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
