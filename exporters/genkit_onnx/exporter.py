"""Graphs in, a proven bundle out, or nothing; and the same proof for files that somebody else wrote."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

import genkit
from genkit_onnx.accuracy import rounding_errors
from genkit_onnx.precision_proof import examine_reduced, in_the_place_of
from genkit_onnx.proof import examine, examine_on, faithful
from genkit_onnx.protobuf import initializers
from genkit_onnx.readme import readme
from genkit_onnx.reduction import longest_reduction
from genkit_onnx.structure import declared_opset, external_file, notes, one_line

if TYPE_CHECKING:
    from genkit_onnx.reference import Reference

_ROWS_OF_VERIFY = 7
"""The largest batch whose graph proof ``verify`` repeats. Runtimes repeat all of them."""


class OnnxExporter:
    """The format ``onnx``. What ``export`` publishes has passed ``verify`` on the very bytes that are published.

    Args:
        inline_limit: the bytes of weights from which on a graph keeps them in a file beside it; None: what a protocol
            buffer can hold.
    """

    def __init__(self, *, inline_limit: int | None = None) -> None:
        self.inline_limit = inline_limit

    def export(
        self,
        graphs: Sequence[genkit.Graph | genkit.NoGraph],
        destination: Path,
        *,
        about: Mapping[str, Any],
        opset: int,
        runtimes: Sequence[genkit.Runtime],
        seed: int = 0,
        precisions: Sequence[genkit.ReducedPrecision] = (),
        score: genkit.Score | None = None,
    ) -> genkit.Report:
        """Publishes a proven bundle at ``destination``, in the place of one that is there.

        Args:
            graphs: each becomes one file, or one line of the manifest that says why there is none.
            destination: a path that does not exist, an empty directory, or an earlier bundle.
            about: what the manifest says of the model: ``recipe``, ``spec``, ``prior``, ``checkpoint``, ``versions``.
            opset: of ONNX, which the files must then have.
            runtimes: on which every graph is proven; onnxruntime where none is given.
            seed: of the inputs of the proof.
            precisions: in which the graphs are wanted as well. One that cannot be had in a precision is among the
                absent ones of the manifest, with the reason.
            score: measures the test loss with reduced graphs; None: nobody can say.

        Raises:
            ExportRefused: where any check fails. The destination is as it was, and the report lies beside it.
            InvalidOption: for an opset that the translator does not write.
            GenkitError: where the destination cannot be written, or is something else than a bundle.
        """
        from genkit_onnx.translate import NEWEST_OPSET, OLDEST_OPSET

        if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
            raise genkit.InvalidOption(f"opset = {opset}: this exporter writes {OLDEST_OPSET} to {NEWEST_OPSET}")
        destination = destination.resolve()  # `.` has no name to put another one beside
        rejected = destination.with_name(f"{destination.name}.rejected.json")
        with genkit.stage(destination) as staging:
            proven_on = runtimes or _default_runtimes()
            checks = self._build(
                graphs, staging, about, opset, proven_on, seed, tuple(dict.fromkeys(precisions)), score
            )
            report = genkit.Report(tuple(checks))
            if not report.ok:
                raise genkit.ExportRefused(_refusal(report, _keep(report, rejected)))
            (staging / "parity.json").write_text(report.to_json(), encoding="utf-8")
            genkit.seal(staging, genkit.Bundle.open(staging).manifest)
        rejected.unlink(missing_ok=True)
        return report

    def prove(
        self, graph: genkit.Graph, file: Path, *, runtimes: Sequence[genkit.Runtime] = (), seed: int = 0
    ) -> genkit.Report:
        """Holds a file that somebody else wrote against a module, as ``export`` does with its own.

        The graph's inputs and outputs have to be those of the file. What concerns publishing alone is not asked for:
        notes about the exporting machine, the name of the batch dimension, and the bits of the weights, which others
        fold into one another.

        Raises:
            InvalidOption: where there is no such file.
        """
        if not file.is_file():
            raise genkit.InvalidOption(f"{file}: there is no such file")
        return genkit.Report(tuple(_prove(graph, file, runtimes or _default_runtimes(), seed)))

    def verify(self, bundle: genkit.Bundle, runtimes: Sequence[genkit.Runtime]) -> genkit.Report:
        """Checks a bundle again, without torch. What is wrong with it is in the report; nothing is raised."""
        return genkit.Report(tuple(_verify(bundle, runtimes, rows=_ROWS_OF_VERIFY)))

    def verify_on(self, bundle: genkit.Bundle, graph: genkit.BundledGraph, runtime: genkit.Runtime) -> genkit.Report:
        """Checks that ``runtime`` gives the numbers of one graph. The rest of the bundle is for ``verify`` to check."""
        changed = [genkit.Check(graph.name, runtime.name, False, c.detail) for c in bundle.check_files() if not c.ok]
        if changed:
            return genkit.Report(tuple(changed))
        try:
            file, cases = bundle.file(graph.file), bundle.cases(graph)
        except genkit.VerificationFailed as error:
            return genkit.Report((genkit.Check(graph.name, runtime.name, False, str(error)),))
        return genkit.Report(tuple(examine_on(graph, file, cases, runtime)))

    def _build(
        self,
        graphs: Sequence[genkit.Graph | genkit.NoGraph],
        staging: Path,
        about: Mapping[str, Any],
        opset: int,
        runtimes: Sequence[genkit.Runtime],
        seed: int,
        precisions: Sequence[genkit.ReducedPrecision],
        score: genkit.Score | None,
    ) -> Iterator[genkit.Check]:
        """Fills the staging directory and proves what is in it. Ends early where there is nothing to prove."""
        about = genkit.Manifest(format="onnx", graphs=(), **about).about  # as the notes are compared with it later
        offered = [graph for graph in graphs if isinstance(graph, genkit.Graph)]
        absent = [
            genkit.Absent(name=graph.name, reason=graph.reason) for graph in graphs if isinstance(graph, genkit.NoGraph)
        ]
        if not offered:
            reasons = "; ".join(f"{graph.name}: {graph.reason}" for graph in absent) or "and gives no reason"
            yield genkit.Check("", "graphs", False, f"the model offers no graph ({reasons})")
            return
        names = [graph.name for graph in offered]
        names += [f"{name}_{precision}" for name in names for precision in precisions]
        unfit = [name for name in names if names.count(name) > 1 or not re.fullmatch(r"[A-Za-z0-9_-]{1,105}", name)]
        if unfit:
            detail = f"{', '.join(unfit)}: names have to differ, and to be of letters, digits, _ and -"
            yield genkit.Check("", "graphs", False, detail)
            return
        # All references before anything is translated: graphs share their modules, and a translator may touch one.
        references = []
        for graph in offered:
            references.append((yield from _reference(graph, seed)))
        bundled = []
        for graph, reference in zip(offered, references, strict=True):
            if reference is None:
                continue
            entry = yield from self._build_graph(graph, reference, staging, about, opset, seed, runtimes)
            bundled += [entry] if entry else []
        if len(bundled) < len(offered):
            return
        manifest = genkit.Manifest(format="onnx", graphs=tuple(bundled), absent=tuple(absent), **about)
        if precisions:
            from genkit_onnx.reducing import Reducer

            full = genkit.Bundle(staging, manifest, whole=True)
            reducer = Reducer(full, runtimes[0], seed, score, self.inline_limit)
            manifest = yield from reducer.reduce_all(offered, precisions)
        (staging / "README.md").write_text(readme(manifest), encoding="utf-8")
        genkit.seal(staging, manifest)
        yield from _verify(genkit.Bundle.open(staging), runtimes, rows=None)

    def _build_graph(
        self,
        graph: genkit.Graph,
        reference: Reference,
        staging: Path,
        about: Mapping[str, Any],
        opset: int,
        seed: int,
        runtimes: Sequence[genkit.Runtime],
    ) -> Generator[genkit.Check, None, genkit.BundledGraph | None]:
        """Writes one graph and its golden vectors; nothing where its module has no translation.

        Where a runtime fails with an operator that has a careful spelling, the graph is written with that instead.
        """
        from genkit_onnx.reference import compare_weights, digest
        from genkit_onnx.spelling import CAREFUL_SPELLINGS
        from genkit_onnx.translate import save, translate

        file = staging / f"{graph.name}.onnx"
        for careful in (False, True):
            try:
                model = translate(graph, opset, seed, careful=careful)
            except genkit.ExportRefused as error:
                yield genkit.Check(graph.name, "translation", False, str(error))
                return None
            if digest(graph.module) != reference.weights:
                yield genkit.Check(graph.name, "translation", False, "the translation changed the module's own weights")
                return None
            entry = _entry(graph, reference, file.name, opset)
            save(model, graph.name, file, notes(entry, about), self.inline_limit)
            entry = _measured(entry, file)
            suspects = CAREFUL_SPELLINGS.keys() & {node.op_type for node in model.graph}
            if not suspects or faithful(entry, file, reference.cases, runtimes):
                break
        yield compare_weights(graph, initializers(onnx.load(file, load_external_data=False), staging))
        genkit.write_cases(staging, entry, reference.cases)
        return entry


def _reference(graph: genkit.Graph, seed: int) -> Generator[genkit.Check, None, Reference | None]:
    from genkit_onnx.reference import compute_reference

    try:
        reference = compute_reference(graph, seed)
    except genkit.ExportRefused as error:
        yield genkit.Check(graph.name, "reference", False, str(error))
        return None
    yield genkit.Check(graph.name, "reference", True, "PyTorch gives the same bits twice, and runs in float64")
    return reference


def _entry(graph: genkit.Graph, reference: Reference, file: str, opset: int) -> genkit.BundledGraph:
    return genkit.BundledGraph(
        name=graph.name,
        file=file,
        weights=reference.weights,
        opset=opset,
        inputs=reference.inputs,
        outputs=reference.outputs,
        batches=tuple(case.rows for case in reference.cases),
        reduction=1,
        errors=rounding_errors(reference.cases),
        ignores=reference.ignores,
    )


def _measured(entry: genkit.BundledGraph, file: Path) -> genkit.BundledGraph:
    """With what only the file itself says: where its weights are, and its longest sum."""
    model = onnx.load(file, load_external_data=False)
    return entry.model_copy(update={"data": external_file(model), "reduction": longest_reduction(model)})


def _prove(graph: genkit.Graph, file: Path, runtimes: Sequence[genkit.Runtime], seed: int) -> Iterator[genkit.Check]:
    try:
        model = onnx.load(file, load_external_data=False)
        data = external_file(model)
        if data is not None and (Path(data).name != data or not file.with_name(data).is_file()):
            raise ValueError(f"its weights should be in {data!r}, which is not a file beside it")
    except Exception as error:  # protobuf has classes of its own
        yield genkit.Check(graph.name, "structure", False, f"{file.name} cannot be read: {one_line(error)}")
        return
    names = [value.name for value in model.graph.input], tuple(value.name for value in model.graph.output)
    inputs = {
        names[0][int(name)] if name.isdigit() and int(name) < len(names[0]) else name: value
        for name, value in graph.inputs.items()
    }
    graph = dataclasses.replace(graph, inputs=inputs, outputs=graph.outputs or names[1])
    reference = yield from _reference(graph, seed)
    if reference is None:
        return
    entry = _measured(_entry(graph, reference, file.name, declared_opset(model) or 1), file)
    yield from examine(entry, file, reference.cases, runtimes, promised=None)


def _verify(bundle: genkit.Bundle, runtimes: Sequence[genkit.Runtime], *, rows: int | None) -> Iterator[genkit.Check]:
    changed = [check for check in bundle.check_files() if not check.ok]
    if changed:  # they are not read any further: copied, parsed, given to native code
        yield from changed
        return
    if not bundle.manifest.graphs:
        yield genkit.Check("", "graphs", False, "the bundle holds no graph")
    about = bundle.manifest.about
    for graph in bundle.manifest.graphs:
        try:
            file, cases = bundle.file(graph.file), bundle.cases(graph)
        except genkit.VerificationFailed as error:
            yield genkit.Check(graph.name, "golden vectors", False, str(error))
        else:
            yield from examine(graph, file, cases, runtimes, promised=notes(graph, about), rows=rows)
    for reduced in bundle.manifest.reduced:
        found = next((graph for graph in bundle.manifest.graphs if graph.name == reduced.of), None)
        if found is None:
            yield genkit.Check(reduced.name, "structure", False, f"there is no {reduced.of!r}, that it stands for")
            continue
        try:
            files, cases = (bundle.file(reduced.file), bundle.file(found.file)), bundle.cases(found)
        except genkit.VerificationFailed as error:
            yield genkit.Check(reduced.name, "golden vectors", False, str(error))
        else:
            said = notes(in_the_place_of(found, reduced), about, reduced.precision, reduced.ranges)
            yield from examine_reduced(reduced, found, files, cases, runtimes, promised=said)
    yield from bundle.check_files()  # once more, so that they are still what was proven


def _default_runtimes() -> list[genkit.Runtime]:
    from genkit_onnx.runtime import OnnxRuntime

    return [OnnxRuntime()]


def _keep(report: genkit.Report, path: Path) -> str:
    """Where the report of a refusal can be read. A disk that is full is not the news."""
    try:
        genkit.write_atomically(path, report.to_json().encode())
    except OSError as error:
        return f"the full report could not be kept ({error.strerror})"
    return f"the full report is in {path}"


def _refusal(report: genkit.Report, kept: str) -> str:
    """The worst failure in one line, and where the rest can be read in another."""
    return (
        f"not exported, {len(report.failures)} of {len(report.checks)} checks failed: "
        f"{max(report.failures, key=_excess)}\n"
        f"Nothing was published; {kept}"
    )


def _excess(check: genkit.Check) -> float:
    """How far beyond its limit; what is not a number at all is beyond any."""
    figures = [(check.measured.get(kind), check.measured.get(f"{kind}_limit")) for kind in ("rms", "max")]
    return max(figure / limit if figure is not None and limit else inf for figure, limit in figures)
