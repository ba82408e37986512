"""A bundle, ready to be used from Python: numpy in, numpy out, no torch."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genkit.bundle import Arrays, Bundle, BundledGraph, Value
from genkit.errors import GenkitError, InvalidOption, VerificationFailed, unknown
from genkit.plugins import load_plugins
from genkit.verification import verify as verify_bundle


def load_bundle(
    path: str | Path,
    *,
    precision: str = "fp32",
    runtime: str = "onnxruntime",
    verify: bool = True,
    disabled: Iterable[str] = (),
) -> LoadedBundle:
    """Opens an exported model for use. It needs numpy and a runtime, and no torch.

    >>> model = genkit.load_bundle("bundle")
    >>> model.sample(16, seed=0).shape
    (16, 1, 28, 28)
    >>> mean, log_var = model.encode(model.sample(16))

    Args:
        path: of the bundle.
        precision: ``fp16`` or ``int8`` runs the reduced graphs of that precision, where the bundle has them, and the
            others in fp32.
        runtime: that runs the graphs; a name of ``genkit components``.
        verify: whether everything is proven first, as by ``genkit verify`` (a second or so for a small model). Else
            only the files are held against their digests, which is enough for a bundle that was verified before.
        disabled: plugins to leave unloaded.

    Raises:
        InvalidBundle: where there is no bundle.
        VerificationFailed: where it is not what was exported.
        UnknownName: for a runtime that is not installed, or a precision that the bundle does not have.
    """
    bundle = Bundle.open(Path(path))
    precisions = {"fp32", *(reduced.precision for reduced in bundle.manifest.reduced)}
    if precision not in precisions:
        raise unknown("precision", precision, precisions, "In the bundle")
    plugins = load_plugins(disabled)
    checks = verify_bundle(path, [runtime], disabled=plugins.absent).checks if verify else tuple(bundle.check_files())
    failed = [check for check in checks if not check.ok]
    if failed:
        raise VerificationFailed(f"{path} is not what was exported: {failed[0]}; do not use it, export it again")
    return LoadedBundle(bundle, plugins.registry.get("runtime", runtime).load()(), precision)


class LoadedBundle:
    """What ``load_bundle`` gives: the graphs of a bundle as functions.

    Args:
        bundle: its files have been checked.
        runtime: opens each graph when it is first used.
        precision: of the files that are opened, where there is one of it.
    """

    def __init__(self, bundle: Bundle, runtime: Any, precision: str = "fp32") -> None:
        self.bundle = bundle
        self._files = {graph.name: graph.file for graph in bundle.manifest.graphs}
        self._files |= {r.of: r.file for r in bundle.manifest.reduced if r.precision == precision}
        self._runtime = runtime
        self._functions: dict[str, Callable[[Arrays], dict[str, NDArray[Any]]]] = {}

    def __repr__(self) -> str:
        return f"<genkit.LoadedBundle {self.bundle.path}: {', '.join(self.graphs)}>"

    @cached_property
    def graphs(self) -> dict[str, BundledGraph]:
        """What can be run: the graphs of the manifest, by name."""
        return {graph.name: graph for graph in self.bundle.manifest.graphs}

    def run(self, graph: str, **inputs: ArrayLike) -> Any:
        """All outputs of one graph as a named tuple of arrays, in the order of the manifest.

        Args:
            graph: ``encoder``, ``decoder``, or any other of ``graphs``.
            inputs: every input of the graph, ``(n, *shape)`` of the manifest, within its range.

        Raises:
            GenkitError: where the bundle has no such graph, with the reason that the manifest gives.
            InvalidOption: for an input that is missing, unknown, of another shape, or out of range.
        """
        entry = self._graph(graph)
        feeds = _feeds(entry, inputs)
        if graph not in self._functions:
            self._functions[graph] = self._runtime.load(self.bundle.file(self._files[graph]))
        outputs = self._functions[graph](feeds)
        kind = namedtuple("Outputs", outputs, rename=True)  # type: ignore[misc]  # the names are the manifest's
        return kind(*outputs.values())

    def encode(self, x: ArrayLike, condition: ArrayLike | None = None) -> Any:
        """The posterior's parameters for observations ``(n, *event_shape)``: a named tuple, e.g. ``mean, log_var``.

        ``condition``: labels ``(n,)`` or one for all, where the encoder takes them.
        """
        return self.run("encoder", **_labelled(self._graph("encoder"), {"x": x}, condition))

    def decode(self, z: ArrayLike, condition: ArrayLike | None = None) -> NDArray[Any]:
        """The observations ``(n, *event_shape)`` of latents ``(n, *latent_shape)``: the mean of their likelihood.

        ``condition``: labels ``(n,)`` or one for all, where the decoder takes them.
        """
        decoded: NDArray[Any] = self.run("decoder", **_labelled(self._graph("decoder"), {"z": z}, condition))[0]
        return decoded

    def sample(self, n: int, seed: int = 0, condition: int | None = None) -> NDArray[Any]:
        """``n`` observations, decoded from latents of the prior.

        Args:
            n: at least 1.
            seed: of numpy's generator.
            condition: the label of all of them; None: each label in turn. For models that take one.

        Raises:
            GenkitError: where the prior can be drawn from in the run alone.
            InvalidOption: for a label that the model does not have.
        """
        if n < 1:
            raise InvalidOption(f"n = {n}: it is at least 1")
        chain = sampling_chain(self.bundle)
        random, known = np.random.default_rng(seed), {}
        classes = max((_classes(value) for graph in chain for value in graph.inputs), default=0)
        if condition is not None and not 0 <= condition < classes:
            limit = f"the labels go from 0 to {classes - 1}" if classes else "this model takes no label"
            raise InvalidOption(f"condition = {condition}: {limit}")
        if classes:
            known["condition"] = np.arange(n) % classes if condition is None else np.full(n, condition)
        for graph in chain:
            for value in graph.inputs:
                if value.name not in known:
                    known[value.name] = value.draw(random, n)
            outputs = self.run(graph.name, **{value.name: known[value.name] for value in graph.inputs})
            known |= dict(zip((value.name for value in graph.outputs), outputs, strict=True))
        return known[chain[-1].outputs[0].name]

    def _graph(self, name: str) -> BundledGraph:
        if name in self.graphs:
            return self.graphs[name]
        for absent in self.bundle.manifest.absent:
            if absent.name == name:
                raise GenkitError(f"{self.bundle.path} has no {name}: {absent.reason}")
        raise unknown("graph", name, self.graphs, "In the bundle")


def sampling_chain(bundle: Bundle) -> list[BundledGraph]:
    """The graphs that lead from what numpy can draw to observations, in their order.

    Raises:
        GenkitError: where there is no decoder, or an input of it that neither numpy nor the prior's graph gives.
    """
    graphs = {graph.name: graph for graph in bundle.manifest.graphs}
    if "decoder" not in graphs:
        raise GenkitError(f"{bundle.path}: the bundle has no decoder, so there is nothing to sample")
    chain = [graphs[name] for name in ("prior", "decoder") if name in graphs]
    given = {value.name for graph in chain[:-1] for value in graph.outputs}
    for value in (value for graph in chain for value in graph.inputs):
        if value.distribution is None and value.name not in given:
            reason = next((absent.reason for absent in bundle.manifest.absent if absent.name == "prior"), "")
            raise GenkitError(
                f"{bundle.path}: numpy cannot draw {value.name!r} ({reason or 'its prior is not described'}); "
                "sample from the run instead"
            )
    return chain


def _classes(value: Value) -> int:
    """How many labels there are, where the input is one."""
    drawn = value.distribution
    return int(drawn.parameters[1]) if value.name == "condition" and drawn and drawn.kind == "integers" else 0


def _labelled(graph: BundledGraph, inputs: dict[str, ArrayLike], condition: ArrayLike | None) -> dict[str, ArrayLike]:
    if condition is None:
        return inputs
    rows = len(np.atleast_1d(next(iter(inputs.values()))))
    labels = np.asarray(condition)
    return {**inputs, "condition": np.full(rows, labels) if labels.ndim == 0 else labels}


def _feeds(graph: BundledGraph, inputs: dict[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    """The inputs as the graph takes them, each checked against what the manifest says of it."""
    expected = {value.name: value for value in graph.inputs}
    for name in inputs:
        if name not in expected:
            raise unknown(f"input of {graph.name}", name, expected, "It takes")
    feeds = {}
    for name, value in expected.items():
        if name not in inputs:
            raise InvalidOption(f"{graph.name} needs {name}: {_described(value)}")
        feeds[name] = _fed(graph, value, inputs[name])
    rows = {name: len(array) for name, array in feeds.items()}
    if len(set(rows.values())) > 1:
        raise InvalidOption(f"{graph.name}: its inputs have different numbers of rows: {rows}")
    return feeds


def _fed(graph: BundledGraph, value: Value, given: ArrayLike) -> NDArray[Any]:
    array = np.asarray(given)
    shape = value.shape[1:]
    if array.ndim == 0 or array.shape[1:] != shape or len(array) == 0:
        raise InvalidOption(f"{graph.name}: {value.name} has shape {array.shape}, expected {_described(value)}")
    if value.whole != np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
        raise InvalidOption(f"{graph.name}: {value.name} is {array.dtype}, expected {_described(value)}")
    low, high = value.range or (-np.inf, np.inf)
    if classes := _classes(value):
        low, high = 0, classes - 1
    if (low, high) != (-np.inf, np.inf) and not (array.min() >= low and array.max() <= high):
        raise InvalidOption(
            f"{graph.name}: {value.name} goes from {array.min():g} to {array.max():g}, expected {_described(value)}"
        )
    return np.ascontiguousarray(array, dtype=value.dtype)


def _described(value: Value) -> str:
    shape = ", ".join(("n", *map(str, value.shape[1:]))) + ("," if len(value.shape) == 1 else "")
    bounds: Sequence[float] = value.range or ((0, _classes(value) - 1) if _classes(value) else ())
    return f"{value.dtype} ({shape})" + (f" in [{bounds[0]:g}, {bounds[1]:g}]" if bounds else "")
