"""The exported bundle, and what exporters and runtimes have to offer. Nothing here imports torch.

BUNDLE/
  <graph>.onnx                   one file a graph
  <graph>.onnx.data              its weights, where they are more than one protocol buffer can hold (2 GB)
  <graph>_<precision>.onnx       the same function in fp16 or int8, where that was asked for
  manifest.json                  what it is, and the sha256 of every other file
  parity.json                    the report of the gate that let it be published
  test_data/<graph>/test_data_set_<i>/
    input_<j>.pb, output_<j>.pb  golden vectors in ONNX's own layout: PyTorch's float32
    reference_<j>.pb             the same outputs by the same module in float64
    ties_<j>.pb                  whole numbers once more, the other one where rounding decides between two
  README.md                      how to load and run it
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from annotated_types import Ge, Le, Len
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
    field_validator,
)

from genkit.errors import GenkitError, InvalidBundle, VerificationFailed, plain
from genkit.files import directory_written_atomically

if TYPE_CHECKING:
    from genkit.task import Graph, NoGraph

Arrays = Mapping[str, NDArray[Any]]
Function = Callable[[Arrays], Arrays]
"""A graph as it is run: named inputs to named outputs."""

ReducedPrecision = Literal["fp16", "int8"]
REDUCED = get_args(ReducedPrecision)
"""The precisions of which a bundle can hold a graph beside the one in fp32."""

MANIFEST = "manifest.json"

_LARGEST_MANIFEST = 8 * 2**20
"""Bytes, a thousand times what is usual. A megabyte of fields that do not belong costs a hundred of memory."""
_LARGEST_FILE = 2**31
"""Bytes that a protocol buffer can have, and any other file but one of weights. A file of terabytes takes no room."""
_MOST_PROBLEMS = 100

DEPLOYMENT = (
    "pip install numpy onnx onnxruntime platformdirs pluggy pydantic PyYAML rich typer && "
    "pip install --no-deps genkit-torch"
)
"""What verifies and runs bundles, without torch."""


# What the gate says


@dataclass(frozen=True)
class Check:
    """One thing that was held against its limit.

    Args:
        graph: the graph's name; empty for the bundle as a whole.
        subject: what was checked, e.g. ``graph proof``, ``onnxruntime``, ``structure``, ``files``.
        ok: whether it holds.
        detail: one sentence for a person: the value, the limit, the place. What cannot be printed in it is escaped,
            and what is very long has a gap, because it may quote a damaged file.
        measured: figures for a program, e.g. ``{"rms": 0.1, "rms_limit": 0.5, "batch": 64}``.
    """

    graph: str
    subject: str
    ok: bool
    detail: str
    measured: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", plain(self.detail))

    def __str__(self) -> str:
        """The place and the sentence, for a message."""
        return ": ".join(filter(None, (self.graph, self.subject, self.detail)))


@dataclass(frozen=True)
class Report:
    """Everything that the gate looked at, in order."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check holds (and there was one)."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.ok)

    def __str__(self) -> str:
        """A line a check, for a person."""
        return "\n".join(f"{'ok    ' if check.ok else 'FAILED'} {check}" for check in self.checks)

    def to_json(self) -> str:
        """``{"ok": ..., "checks": [...]}``, as ``parity.json`` holds it."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2, allow_nan=False) + "\n"


# What the manifest says


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


DrawnKind = Literal["normal", "laplace", "gumbel", "uniform", "integers"]
DRAWN = get_args(DrawnKind)
"""The methods of ``numpy.random.Generator`` that a manifest may name."""


class Drawn(_Record):
    """How numpy draws an input: ``getattr(numpy.random.default_rng(), kind)(*parameters, shape)``.

    A parameter is one number, or nested lists of the input's shape.
    """

    kind: DrawnKind
    parameters: tuple[Any, ...]


class Value(_Record):
    """One named input or output of a graph, e.g. ``z``, ``float32``, ``("batch", 20)``.

    ``range`` bounds the values: ``(low, high)``, or None where nothing does. ``layout`` names the dimensions of an
    image, a letter each (``NCHW``), and is None for anything else. ``distribution`` says how an input is drawn, where
    numpy can draw it.
    """

    name: str
    dtype: str
    shape: tuple[Literal["batch"] | PositiveInt, ...]
    range: tuple[float, float] | None = None
    layout: Annotated[str, StringConstraints(pattern=r"^[A-Z]+$")] | None = None
    distribution: Drawn | None = None

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers, which are right or wrong, and not more or less so."""
        return not self.dtype.startswith("float")

    def draw(self, random: np.random.Generator, rows: int) -> NDArray[Any]:
        """``(rows, *shape)`` of the distribution, which there has to be."""
        assert self.distribution is not None
        shape = (rows, *self.shape[1:])
        array: NDArray[Any] = getattr(random, self.distribution.kind)(
            *map(np.asarray, self.distribution.parameters), shape
        )
        return array.astype(self.dtype)


class Errors(_Record):
    """PyTorch's own float32 rounding error on the golden vectors: the unit in which every other error is given.

    With u = 2^-24: ``rms`` = max(rms(y32 - y64), u rms(y64)) and ``max`` = max(max|y32 - y64|, u max|y64|).
    """

    rms: NonNegativeFloat
    max: NonNegativeFloat


class BundledGraph(_Record):
    """One graph of a bundle.

    Args:
        name: of the graph.
        file: inside the bundle.
        data: beside it, the one file that holds the weights that ``file`` is too small for; None: it holds them all.
        weights: the sha256 of the PyTorch module's state, by which two exports of one checkpoint can be told.
        opset: of ONNX that was asked for and that the file declares.
        inputs: in order.
        outputs: in order.
        batches: the rows of each golden set, in order.
        reduction: K, the longest sum in the graph, with which correct rounding errors grow.
        errors: of each floating output.
        ignores: by input and output, the probes (see the exporter) to which PyTorch's float32 itself does not react.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", max_length=100)]
    file: str
    data: str | None = None
    weights: str = ""
    opset: PositiveInt
    inputs: Annotated[tuple[Value, ...], Len(1)]
    outputs: Annotated[tuple[Value, ...], Len(1)]
    batches: Annotated[tuple[PositiveInt, ...], Len(1)]
    reduction: PositiveInt
    errors: dict[str, Errors]
    ignores: dict[str, dict[str, tuple[NonNegativeInt, ...]]] = {}


class Accuracy(_Record):
    """How far an output of a reduced graph is from the module in float64, or may be.

    Args:
        rms: of the error, in the output's own units.
        max: the largest error, likewise.
        psnr: where the output has a range: ``20 log10(width / rms)``, in dB; None without a range, or without an error.
        agreement: of an output of whole numbers, which has nothing else, the share that is the same.
    """

    rms: NonNegativeFloat | None = None
    max: NonNegativeFloat | None = None
    psnr: float | None = None
    agreement: Annotated[float, Ge(0), Le(1)] | None = None

    def __str__(self) -> str:
        if self.agreement is not None:
            return f"{self.agreement:.2%} of the numbers agree"
        psnr = "" if self.psnr is None else f", {self.psnr:.1f} dB"
        return f"rms error {self.rms:.2g}{psnr}"


class ReducedOutput(_Record):
    """One output of a reduced graph: what was allowed before, and what was measured at export."""

    budget: Accuracy
    measured: Accuracy


class LossChange(_Record):
    """The test loss, in its own units, of the model with a graph of the bundle in the place of its own module.

    Args:
        fp32: with the graph in fp32.
        reduced: with the reduced one; same observations, same noise.
        change: the second less the first.
        budget: that the size of the change had to keep.
        observations: of the test set that took part.
    """

    fp32: float
    reduced: float
    change: float
    budget: NonNegativeFloat
    observations: PositiveInt


class ReducedGraph(_Record):
    """A graph of the bundle once more, with the same inputs, outputs and golden vectors, in less than float32.

    Args:
        name: ``<of>_<precision>``.
        of: the graph that it stands for.
        precision: of weights and arithmetic: ``fp16``, or ``int8`` by the channel with scales fixed at export.
        file: inside the bundle.
        data: as of ``BundledGraph``.
        size: of its files, in bytes.
        fp32_size: of those of the graph that it stands for.
        outputs: by name.
        ranges: int8: the smallest and the largest value of each tensor that is quantized, and of each input, on the
            data that the scales were chosen on. Budgets hold where all of them stay within; beyond, one saturates.
        float32: operators that keep weights, or compute, in float32 none the less.
        loss: how the test loss changes; None where that cannot be measured.
        no_loss: why not.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", max_length=105)]
    of: str
    precision: ReducedPrecision
    file: str
    data: str | None = None
    size: PositiveInt
    fp32_size: PositiveInt
    outputs: dict[str, ReducedOutput]
    ranges: dict[str, tuple[float, float]] = {}
    float32: tuple[str, ...] = ()
    loss: LossChange | None = None
    no_loss: str = ""


class Absent(_Record):
    """A graph that the model cannot offer, or one that cannot be reduced, and why."""

    name: str
    reason: str


class Prior(_Record):
    """The prior of the recipe: its name, its options, and how numpy draws from it where numpy can."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    use: str = ""
    distribution: Drawn | None = None


class Position(_Record):
    """How far the model had been trained."""

    epoch: NonNegativeInt
    step: NonNegativeInt


class Manifest(BaseModel):
    """``manifest.json``: the fields below, and whatever else the exporting command said about the model.

    Args:
        format_version: of this file.
        format: the name of the exporter that verifies the bundle.
        recipe: of the model, as ``recipe.yaml`` has it.
        spec: ``event_shape``, ``latent_shape``, ``value_range`` and ``classes`` of the model.
        prior: what latents are drawn from.
        checkpoint: that was exported.
        versions: of the packages that took part.
        graphs: that the bundle holds.
        absent: graphs that it does not hold.
        reduced: some of the graphs in other precisions than fp32.
        files: the sha256 of every file but this one, by path.
        digest: the sha256 of everything else in this file, so that it vouches for itself as well.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    format_version: Literal[1] = 1
    format: str
    recipe: dict[str, Any] | None = None
    spec: dict[str, Any] | None = None
    prior: Prior | None = None
    checkpoint: Position | None = None
    versions: dict[str, str] | None = None
    graphs: tuple[BundledGraph, ...]
    absent: tuple[Absent, ...] = ()
    reduced: tuple[ReducedGraph, ...] = ()
    files: dict[str, str] = {}
    digest: str = ""

    @field_validator("format_version", mode="before")
    @classmethod
    def _is_whole(cls, value: object) -> object:
        if type(value) is not int:  # to pydantic, true and 1.0 are 1
            raise ValueError("it is no whole number")
        return value

    @property
    def about(self) -> dict[str, Any]:
        """What the exporting command said about the model: ``recipe``, ``spec``, ``prior`` and so on, as plain data."""
        own = {"format_version", "format", "graphs", "absent", "reduced", "files", "digest"}
        return {key: value for key, value in self.model_dump(mode="json", exclude=own).items() if value is not None}


def manifest_schema() -> str:
    """The JSON schema of ``manifest.json``, which lies in this package as ``manifest.schema.json``."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


# The bundle


@dataclass(frozen=True)
class Case:
    """Golden vectors of one batch size.

    Args:
        inputs: by name, each ``(rows, *shape)``.
        outputs: what PyTorch gives in float32.
        references: what the same module gives in float64.
        ties: for outputs that are whole numbers, what else may be there: where rounding decides between two numbers,
            the other one, and elsewhere the reference again.
    """

    inputs: Arrays
    outputs: Arrays
    references: Arrays
    ties: Arrays = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The batch size."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. Nothing but the manifest has been looked at yet."""

    path: Path
    manifest: Manifest
    whole: bool
    """Whether the manifest has the digest that it was written with."""

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Reads the manifest of the bundle at ``path``.

        Raises:
            InvalidBundle: where there is no bundle (exit status 2).
            VerificationFailed: for a manifest that is damaged (exit status 1).
        """
        file = path / MANIFEST
        if not file.is_file() or file.is_symlink():
            what = f"has no {MANIFEST}" if path.exists() else "does not exist"
            raise InvalidBundle(f"{path} {what}, so it is not a bundle; `genkit export RUN --out {path}` writes one")
        try:
            with file.open("rb") as stream:
                content = stream.read(_LARGEST_MANIFEST + 1)
        except OSError as error:
            raise InvalidBundle(f"{file} cannot be read: {error.strerror}") from error
        try:
            if len(content) > _LARGEST_MANIFEST:
                raise ValueError(f"it has more than {_LARGEST_MANIFEST} bytes")
            manifest = Manifest.model_validate_json(content, strict=True)
            return cls(path, manifest, whole=manifest.digest == _digest(json.loads(content, object_pairs_hook=_unique)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            problem = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
        except (ValueError, RecursionError) as error:
            problem = str(error)
        raise VerificationFailed(f"{file} is damaged ({plain(problem)}); export the bundle again")

    def file(self, name: str) -> Path:
        """The path of a file of the bundle.

        Raises:
            VerificationFailed: for a name that leads outside of the bundle, through a symbolic link, or to a pipe, a
                device or a socket, whose reader may never come back.
        """
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or any(sign in name for sign in "\\:\0"):
            raise VerificationFailed(f"{plain(repr(name))} leads outside of the bundle")
        path, shown = self.path, plain(name, 80)
        try:
            for part in parts:
                path /= part
                if path.is_symlink():
                    raise VerificationFailed(f"{shown} is a symbolic link, or behind one")
                if path.exists() and not (path.is_file() or path.is_dir()):
                    raise VerificationFailed(f"{shown} is a pipe, a device or a socket, or behind one")
        except OSError as error:
            raise VerificationFailed(f"{shown}: {error.strerror}") from error
        return path

    def check_files(self) -> list[Check]:
        """Whether the files are those that the manifest lists, and no others: one check, or one a problem."""
        problems = [] if self.whole else [f"{MANIFEST}: changed after it was written"]
        graphs: tuple[BundledGraph | ReducedGraph, ...] = (*self.manifest.graphs, *self.manifest.reduced)
        weights = {graph.data for graph in graphs}
        for name, expected in self.manifest.files.items():
            try:
                path = self.file(name)
                if not path.is_file():
                    problems.append(f"{name}: missing")
                elif name not in weights and path.stat().st_size > _LARGEST_FILE:
                    problems.append(f"{name}: larger than {_LARGEST_FILE} bytes")
                elif (found := _sha256(path)) != expected:
                    problems.append(f"{name}: changed, sha256 {found[:12]}... where {expected[:12]}... was exported")
            except VerificationFailed as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{name}: {error.strerror}")
        needed = [name for graph in graphs for name in (graph.file, graph.data) if name is not None]
        problems += [f"{name}: not in the manifest's files" for name in needed if name not in self.manifest.files]
        unknown = sorted(set(_files(self.path)) - set(self.manifest.files) - {MANIFEST})
        problems += [f"{name}: not a file of this bundle" for name in unknown]
        if problems:
            more = [f"{len(problems) - _MOST_PROBLEMS} more of the kind"] if len(problems) > _MOST_PROBLEMS else []
            return [Check("", "files", False, problem) for problem in problems[:_MOST_PROBLEMS] + more]
        return [
            Check("", "files", True, f"{len(self.manifest.files)} files have the sha256 that they were written with")
        ]

    def cases(self, graph: BundledGraph) -> list[Case]:
        """The golden vectors of a graph, one case for each of ``graph.batches``.

        Raises:
            VerificationFailed: for a file that is missing, damaged, or not of the names, shapes and dtypes promised.
        """
        return [self._case(graph, i, rows) for i, rows in enumerate(graph.batches)]

    def _case(self, graph: BundledGraph, index: int, rows: int) -> Case:
        def read(kind: str, values: Sequence[Value]) -> Arrays:
            found = {}
            for j, value in enumerate(values):
                if kind == "ties" and not value.whole:
                    continue
                name = _golden(graph.name, index, kind, j)
                dtype = "float64" if kind == "reference" and value.dtype == "float32" else value.dtype
                shape = (rows, *value.shape[1:])
                array = _read_tensor(self.file(name), name, value.name)
                if (str(array.dtype), array.shape) != (dtype, shape):
                    raise VerificationFailed(f"{name}: holds {array.dtype} {array.shape}, expected {dtype} {shape}")
                if not np.isfinite(array).all():
                    raise VerificationFailed(f"{name}: holds values that are not finite")
                found[value.name] = array
            return found

        outputs = graph.outputs
        return Case(read("input", graph.inputs), *(read(kind, outputs) for kind in ("output", "reference", "ties")))


# Writing one


@contextmanager
def stage(destination: Path) -> Iterator[Path]:
    """An empty directory to build a bundle in. When the block ends it becomes ``destination``.

    A bundle (or an empty directory) that stands there stays until that moment, and is untouched if the block raises.

    Raises:
        InvalidBundle: before any work, where ``destination`` is something else, which would be lost.
        GenkitError: where the directory cannot be written.
    """
    destination = destination.resolve()
    if destination.exists() and not _replaceable(destination):
        raise InvalidBundle(f"{destination} exists and is not a bundle; remove it, or choose another place with --out")
    created = [parent for parent in destination.parents if not parent.exists()]
    try:
        with directory_written_atomically(destination, replace=True) as staging:
            yield staging
    except OSError as error:
        reason = error.strerror or error
        raise GenkitError(
            f"cannot write the bundle {destination}: {reason}; choose another place with --out"
        ) from error
    finally:
        for parent in created:
            with suppress(OSError):  # it is no longer empty: something was published or kept in it
                parent.rmdir()


def write_cases(directory: Path, graph: BundledGraph, cases: Sequence[Case]) -> None:
    """Writes the golden vectors of a graph where ``Bundle.cases`` and ONNX's own test tools look for them."""
    from onnx import numpy_helper

    for i, case in enumerate(cases):
        parts = ("input", graph.inputs, case.inputs), ("output", graph.outputs, case.outputs)
        private = ("reference", graph.outputs, case.references), ("ties", graph.outputs, case.ties)
        for kind, values, arrays in (*parts, *private):
            for j, value in ((j, value) for j, value in enumerate(values) if value.name in arrays):
                path = directory / _golden(graph.name, i, kind, j)
                path.parent.mkdir(parents=True, exist_ok=True)
                tensor = numpy_helper.from_array(arrays[value.name], value.name)
                path.write_bytes(tensor.SerializeToString(deterministic=True))


def seal(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest of the finished bundle in ``directory``, with the sha256 of every file in it."""
    content = manifest.model_dump(mode="json", exclude={"files", "digest"})
    content["files"] = {name: _sha256(directory / name) for name in sorted(_files(directory)) if name != MANIFEST}
    content["digest"] = _digest(content)
    (directory / MANIFEST).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _golden(graph: str, index: int, kind: str, position: int) -> str:
    # ONNX's test tools glob input_*.pb and output_*.pb, which references and ties must not match.
    return f"test_data/{graph}/test_data_set_{index}/{kind}_{position}.pb"


def _read_tensor(path: Path, name: str, label: str) -> NDArray[Any]:
    from onnx import TensorProto, numpy_helper

    try:
        tensor = TensorProto()
        tensor.ParseFromString(path.read_bytes())
        if tensor.name != label or tensor.data_location == TensorProto.EXTERNAL:
            raise ValueError(f"it is not {label!r}")
        array: NDArray[Any] = numpy_helper.to_array(tensor)
        if array.shape != tuple(tensor.dims):  # one of -1 would be taken for whatever fits
            raise ValueError(f"it has the dimensions {plain(str(tensor.dims), 80)}")
    except Exception as error:  # whatever a damaged protocol buffer makes its reader raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise VerificationFailed(f"{name}: cannot be read: {lines[0]}") from error
    return array


def _replaceable(path: Path) -> bool:
    """Whether nothing but a bundle is lost with ``path``. Many other things have a manifest.json."""
    if not path.is_dir():
        return False
    manifest = path / MANIFEST
    return not any(path.iterdir()) or (manifest.is_file() and b'"format_version"' in manifest.read_bytes()[:64])


def _files(directory: Path) -> Iterator[str]:
    """Every file below, as paths with forward slashes. So are links, which are not followed, and unreadable folders."""
    folders = [""]  # not a recursion: folders can be deeper than that
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(directory / folder))
        except OSError:
            yield folder
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            else:
                yield name


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name is repeated: of two values, each reader would take another."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is repeated in an object")
    return found


def _digest(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# What exporters and runtimes offer


class Runtime(Protocol):
    """Something that runs an exported graph: registered with ``registry.runtime(name, factory)``.

    A runtime whose library is optional imports it when it is made, and not with its module; where the library is not
    there, the factory raises ``RuntimeMissing`` with the line that installs it. So one plugin can offer many runtimes,
    and those that nobody installed cost nothing and are listed by ``genkit runtimes`` all the same.

    Args:
        name: that it is registered under.
        version: of the library.
        precision: one line: what was set so that float32 is computed in float32.
    """

    name: str
    version: str
    precision: str

    def load(self, path: Path) -> Callable[[Arrays], dict[str, NDArray[Any]]]:
        """Opens one graph. The function it returns maps named inputs to named outputs, in the graph's order.

        Raises:
            Unsupported: for a graph that this runtime cannot hold, which is not the graph's fault; the message is the
                reason. The function may raise it as well, where a library finds out when it first runs.
        """
        ...


@runtime_checkable
class TunedRuntime(Runtime, Protocol):
    """A runtime that is set otherwise than its library is by default, so that its float32 is float32.

    What a deployer gets who sets nothing is for ``genkit verify --runtime all`` to measure and to show beside.
    """

    def defaults(self) -> Runtime:
        """The same runtime, as its library comes."""
        ...


class Score(Protocol):
    """The test loss of a model, with exported graphs in the place of its own modules.

    Args:
        observations: of the test set that take part, always the same.
    """

    observations: int

    def __call__(self, functions: Mapping[str, Function]) -> float:
        """The loss with ``functions`` in the place of the graphs of these names; everything else is the model's own.

        Raises:
            GenkitError: where the loss does not run such a graph, or there is no one loss; the message is the reason.
        """
        ...


class Exporter(Protocol):
    """Something that turns graphs into a bundle: registered with ``registry.exporter(name, factory)``."""

    def export(
        self,
        graphs: Sequence[Graph | NoGraph],
        destination: Path,
        *,
        about: Mapping[str, Any],
        opset: int,
        runtimes: Sequence[Runtime],
        seed: int = 0,
        precisions: Sequence[ReducedPrecision] = (),
        score: Score | None = None,
    ) -> Report:
        """Publishes a proven bundle at ``destination``, or raises ``ExportRefused`` and leaves it untouched.

        ``precisions``: in which the graphs are wanted beside fp32; ``score`` then measures the test loss.
        """
        ...

    def prove(self, graph: Graph, file: Path, *, runtimes: Sequence[Runtime] = (), seed: int = 0) -> Report:
        """Holds a file that somebody else wrote against the module of ``graph``, as ``export`` does with its own.

        A graph with an input called by its position (``"0"``) or without outputs takes the file's names.
        """
        ...

    def verify(self, bundle: Bundle, runtimes: Sequence[Runtime]) -> Report:
        """Checks a bundle again, without torch."""
        ...

    def verify_on(self, bundle: Bundle, graph: BundledGraph, runtime: Runtime) -> Report:
        """Checks that ``runtime`` gives the numbers of one graph, and nothing that does not depend on the runtime.

        Every check is of the subject ``runtime.name``. In its ``measured``, ``unsupported`` is true where the runtime
        cannot hold the graph; else ``rms`` and ``max`` are multiples of PyTorch's own error and ``wrong`` counts whole
        numbers, of an output's answers to the golden vectors. ``alone`` marks what only compares rows with one another.
        """
        ...
