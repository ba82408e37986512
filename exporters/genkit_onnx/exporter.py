"""Graphs in, a proven bundle out, or nothing."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

import genkit
from genkit_onnx.accuracy import rounding_errors
from genkit_onnx.proof import prove
from genkit_onnx.readme import readme
from genkit_onnx.reduction import longest_reduction

if TYPE_CHECKING:
    from genkit_onnx.reference import Reference

_OLDEST_OPSET = 18  # PyTorch's own; it converts down only where it can

_ROWS_OF_VERIFY = 7
"""The largest batch whose graph proof ``verify`` repeats. Runtimes repeat all of them."""


class OnnxExporter:
    """The format ``onnx``. What ``export`` publishes has passed ``verify`` on the very bytes that are published."""

    def export(
        self,
        graphs: Sequence[genkit.Graph | genkit.NoGraph],
        destination: Path,
        *,
        about: Mapping[str, Any],
        opset: int,
        runtimes: Sequence[genkit.Runtime],
        seed: int = 0,
    ) -> genkit.Report:
        """Publishes a proven bundle at ``destination``, in the place of one that is there.

        Args:
            graphs: each becomes one file, or one line of the manifest that says why there is none.
            destination: a path that does not exist, an empty directory, or an earlier bundle.
            about: goes into the manifest as it is: ``recipe``, ``prior``, ``checkpoint``, ``versions``.
            opset: of ONNX, which the files must then have.
            runtimes: on which every graph is proven; onnxruntime where none is given.
            seed: of the inputs of the proof.

        Raises:
            ExportRefused: where any check fails. The destination is as it was, and the report lies beside it.
            InvalidOption: for an opset below 18.
            GenkitError: where the destination cannot be written, or is something else than a bundle.
        """
        if opset < _OLDEST_OPSET:
            raise genkit.InvalidOption(f"opset = {opset}: this exporter writes {_OLDEST_OPSET} or newer")
        destination = destination.resolve()  # `.` has no name to put another one beside
        rejected = destination.with_name(f"{destination.name}.rejected.json")
        with genkit.stage(destination) as staging:
            report = genkit.Report(tuple(_build(graphs, staging, about, opset, runtimes or _default_runtimes(), seed)))
            if not report.ok:
                genkit.write_atomically(rejected, report.to_json().encode())
                raise genkit.ExportRefused(_refusal(report, rejected))
            (staging / "parity.json").write_text(report.to_json(), encoding="utf-8")
            genkit.seal(staging, genkit.Bundle.open(staging).manifest)
        rejected.unlink(missing_ok=True)
        return report

    def verify(self, bundle: genkit.Bundle, runtimes: Sequence[genkit.Runtime]) -> genkit.Report:
        """Checks a bundle again, without torch. What is wrong with it is in the report; nothing is raised."""
        return genkit.Report(tuple(_verify(bundle, runtimes, rows=_ROWS_OF_VERIFY)))


def _build(
    graphs: Sequence[genkit.Graph | genkit.NoGraph],
    staging: Path,
    about: Mapping[str, Any],
    opset: int,
    runtimes: Sequence[genkit.Runtime],
    seed: int,
) -> Iterator[genkit.Check]:
    """Fills the staging directory and proves what is in it. Ends early where there is nothing to prove."""
    offered = [graph for graph in graphs if isinstance(graph, genkit.Graph)]
    absent = [
        genkit.Absent(name=graph.name, reason=graph.reason) for graph in graphs if isinstance(graph, genkit.NoGraph)
    ]
    if not offered:
        reasons = "; ".join(f"{graph.name}: {graph.reason}" for graph in absent) or "and gives no reason"
        yield genkit.Check("", "graphs", False, f"the model offers no graph ({reasons})")
        return
    names = [graph.name for graph in offered]
    unfit = [name for name in names if names.count(name) > 1 or not re.fullmatch(r"[A-Za-z0-9_-]+", name)]
    if unfit:
        detail = f"{', '.join(unfit)}: names have to differ, and to be of letters, digits, _ and -"
        yield genkit.Check("", "graphs", False, detail)
        return
    references = yield from _compute_references(offered, seed)
    bundled = []
    for graph, reference in references:
        entry = yield from _build_graph(graph, reference, staging, opset, seed)
        bundled += [entry] if entry else []
    if len(bundled) < len(offered):
        return
    assert not about.keys() & genkit.Manifest.model_fields.keys(), "these keys are the manifest's own"
    manifest = genkit.Manifest(format="onnx", graphs=tuple(bundled), absent=tuple(absent), **about)
    (staging / "README.md").write_text(readme(manifest), encoding="utf-8")
    genkit.seal(staging, manifest)
    yield from _verify(genkit.Bundle.open(staging), runtimes, rows=None)


def _compute_references(
    graphs: Sequence[genkit.Graph], seed: int
) -> Generator[genkit.Check, None, list[tuple[genkit.Graph, Reference]]]:
    """All of them before anything is translated: graphs share their modules, and a translator may touch one."""
    from genkit_onnx.reference import compute_reference

    references = []
    for graph in graphs:
        try:
            references.append((graph, compute_reference(graph, seed)))
        except genkit.ExportRefused as error:
            yield genkit.Check(graph.name, "reference", False, str(error))
        else:
            yield genkit.Check(graph.name, "reference", True, "PyTorch gives the same bits twice, and runs in float64")
    return references


def _build_graph(
    graph: genkit.Graph, reference: Reference, staging: Path, opset: int, seed: int
) -> Generator[genkit.Check, None, genkit.BundledGraph | None]:
    """Writes one graph and its golden vectors; nothing where its module has no translation."""
    from genkit_onnx.reference import compare_weights
    from genkit_onnx.translate import translate

    try:
        content = translate(graph, opset, seed)
    except genkit.ExportRefused as error:
        yield genkit.Check(graph.name, "translation", False, str(error))
        return None
    model = onnx.load_from_string(content)
    yield compare_weights(graph, model)
    entry = genkit.BundledGraph(
        name=graph.name,
        file=f"{graph.name}.onnx",
        opset=opset,
        inputs=reference.inputs,
        outputs=reference.outputs,
        batches=tuple(case.rows for case in reference.cases),
        reduction=longest_reduction(model),
        errors=rounding_errors(reference.cases),
        ignores=reference.ignores,
    )
    (staging / entry.file).write_bytes(content)
    genkit.write_cases(staging, entry, reference.cases)
    return entry


def _verify(bundle: genkit.Bundle, runtimes: Sequence[genkit.Runtime], *, rows: int | None) -> Iterator[genkit.Check]:
    if not bundle.manifest.graphs:
        yield genkit.Check("", "graphs", False, "the bundle holds no graph")
    for graph in bundle.manifest.graphs:
        try:
            file, cases = bundle.file(graph.file), bundle.cases(graph)
        except genkit.VerificationFailed as error:
            yield genkit.Check(graph.name, "golden vectors", False, str(error))
        else:
            yield from prove(graph, file, cases, runtimes, rows=rows)
    yield from bundle.check_files()  # last, so that they are still what was proven


def _default_runtimes() -> list[genkit.Runtime]:
    from genkit_onnx.runtime import OnnxRuntime

    return [OnnxRuntime()]


def _refusal(report: genkit.Report, rejected: Path) -> str:
    """The worst failure in one line, and where the rest can be read in another."""
    worst = max(report.failures, key=_excess)
    place = ": ".join(part for part in (worst.graph, worst.subject, worst.detail) if part)
    return (
        f"not exported, {len(report.failures)} of {len(report.checks)} checks failed: {place}\n"
        f"Nothing was published; the full report is in {rejected}"
    )


def _excess(check: genkit.Check) -> float:
    """How far beyond its limit; what is not a number at all is beyond any."""
    figures = [(check.measured.get(kind), check.measured.get(f"{kind}_limit")) for kind in ("rms", "max")]
    return max(figure / limit if figure is not None and limit else inf for figure, limit in figures)
