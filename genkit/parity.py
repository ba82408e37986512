"""A bundle in every runtime that is installed: graph by runtime, how far the numbers are off and how long they take.

Each runtime is asked in a process of its own, one graph after another, and a process that dies is replaced. So a
library that crashes costs one cell of the table, and none can disturb another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from genkit.bundle import Bundle, Check, Report
from genkit.plugins import load_plugins
from genkit.registry import Entry
from genkit.verification import SECONDS, Child, report_of, verify

Verdict = Literal["ok", "wrong", "no answer", "unsupported"]


@dataclass(frozen=True)
class RuntimeInfo:
    """A runtime that a plugin offers.

    Args:
        name: that it is registered under.
        plugin: that offers it.
        missing: whether its library is not installed.
        version: of the library; None where it cannot be used.
        precision: what keeps float32 what it is.
        problem: why it cannot be used; where it is missing, this ends with the line that installs it.
    """

    name: str
    plugin: str
    missing: bool = False
    version: str | None = None
    precision: str = ""
    problem: str = ""


@dataclass(frozen=True)
class ByDefault:
    """One graph in one runtime as its library comes: what a deployer gets who sets nothing. It is never a failure.

    Args:
        rms: the rms error in multiples of PyTorch's own, of the output where it is largest; None where there is none.
        reason: what else is the matter, such as numbers that are not finite, or a process that died.
    """

    rms: float | None
    reason: str = ""


@dataclass(frozen=True)
class Cell:
    """One graph in one runtime.

    Args:
        graph: of the bundle.
        runtime: by name.
        version: of the runtime's library; None where that cannot be told.
        verdict: ``ok``; ``wrong`` numbers, or none; ``no answer``, from a process that died or took too long;
            ``unsupported``, a graph that the runtime cannot hold, which is no failure.
        reason: what is the matter; where nothing is, which operators make an error large for rounding, if one is.
        rms: the rms error in multiples of PyTorch's own, of the output where it is largest; None without an answer.
        max: the largest error, likewise.
        wrong: how many whole numbers are wrong; None where the graph gives none.
        seconds: that a call takes, by batch size.
        by_default: the same without the settings that keep float32 what it is; None where there are none.
    """

    graph: str
    runtime: str
    version: str | None
    verdict: Verdict
    reason: str = ""
    rms: float | None = None
    max: float | None = None
    wrong: int | None = None
    seconds: Mapping[int, float] = field(default_factory=dict)
    by_default: ByDefault | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against deploying the graph, here or elsewhere."""
        return self.verdict in ("ok", "unsupported")


@dataclass(frozen=True)
class Parity:
    """What ``compare_runtimes`` found.

    Args:
        report: on what does not depend on a runtime: the files, the graphs, reduced graphs.
        cells: every graph in every installed runtime, graph by graph; none where the files are not those of the bundle.
        missing: the runtimes that could have been asked as well.
    """

    report: Report
    cells: tuple[Cell, ...]
    missing: tuple[RuntimeInfo, ...]

    @property
    def ok(self) -> bool:
        """Whether the bundle is in order, and no runtime that holds a graph of it is wrong."""
        return self.report.ok and all(cell.ok for cell in self.cells)

    @property
    def failures(self) -> tuple[str, ...]:
        """What speaks against it, a sentence each."""
        wrong = (f"{c.graph}: {c.runtime}: {c.verdict}, {c.reason}" for c in self.cells if not c.ok)
        return (*map(str, self.report.failures), *wrong)

    def to_json(self) -> str:
        """``{"ok": ..., "checks": [...], "cells": [...], "missing": [...]}``."""
        content = {**asdict(self.report), "cells": list(map(asdict, self.cells))}
        missing = [{"name": info.name, "problem": info.problem} for info in self.missing]
        return json.dumps({"ok": self.ok, **content, "missing": missing}, indent=2, allow_nan=False) + "\n"


def list_runtimes(disabled: Iterable[str] = ()) -> list[RuntimeInfo]:
    """Every runtime that a plugin offers, installed or not, by name. One that cannot be made is in it, with the reason.

    Args:
        disabled: plugins to leave unloaded.
    """
    plugins = load_plugins(disabled)
    registry, disabled = plugins.registry, plugins.absent
    with closing(Child()) as child:
        entries = [registry.get("runtime", name) for name in registry.names("runtime")]
        return [_describe(child, entry, SECONDS, disabled) for entry in entries]


def compare_runtimes(path: str | Path, *, seconds: float = SECONDS, disabled: Iterable[str] = ()) -> Parity:
    """Checks a bundle in every installed runtime, as ``verify`` does in those that it is told. Needs no torch.

    >>> genkit.compare_runtimes("bundle").ok
    True

    Args:
        path: of the bundle.
        seconds: after which a graph in a runtime has no answer.
        disabled: plugins to leave unloaded.

    Raises:
        InvalidBundle: where there is no bundle.
        VerificationFailed: for a manifest that cannot be read.
        UnknownName: for an exporter that the bundle names, which no plugin offers.
    """
    plugins = load_plugins(disabled)
    registry, disabled = plugins.registry, plugins.absent
    report = verify(path, (), seconds=seconds, disabled=disabled)
    bundle = Bundle.open(Path(path))
    graphs = [graph.name for graph in bundle.manifest.graphs]
    broken = any(not check.ok and not check.graph for check in report.checks)
    cells: list[Cell] = []
    missing = []
    for name in registry.names("runtime"):
        with closing(Child()) as child:
            info = _describe(child, registry.get("runtime", name), seconds, disabled)
            if info.missing:
                missing.append(info)
            elif not broken:
                cells += [_cell(child, bundle, graph, info, seconds, disabled) for graph in graphs]
    cells.sort(key=lambda cell: graphs.index(cell.graph))
    return Parity(report, tuple(cells), tuple(missing))


def _describe(child: Child, entry: Entry, seconds: float, disabled: list[str]) -> RuntimeInfo:
    answer = child.ask({"task": "describe", "runtime": entry.name, "disabled": disabled}, seconds)
    if "version" in answer:
        return RuntimeInfo(entry.name, entry.plugin, version=answer["version"], precision=answer["precision"])
    missing = answer.get("error") == "RuntimeMissing"
    return RuntimeInfo(entry.name, entry.plugin, missing, problem=_problem(answer))


def _cell(child: Child, bundle: Bundle, graph: str, runtime: RuntimeInfo, seconds: float, disabled: list[str]) -> Cell:
    request = {"path": str(bundle.path.resolve()), "graph": graph, "runtime": runtime.name, "disabled": disabled}
    answer = child.ask({"task": "verify_on", "defaults": False, **request}, seconds)
    of = graph, runtime.name, runtime.version
    if _silent(answer):
        return Cell(*of, "no answer", _problem(answer))
    checks = report_of(answer).checks
    figures = _figures(checks)
    verdict, reason = _verdict(checks)
    by_default = None
    if verdict != "unsupported":
        by_default = _by_default(child.ask({"task": "verify_on", "defaults": True, **request}, seconds))
    return Cell(
        *of,
        verdict,
        reason,
        rms=_largest(figures, "rms"),
        max=_largest(figures, "max"),
        wrong=_largest(figures, "wrong"),
        seconds={int(rows): float(f"{each:.3g}") for rows, each in answer.get("seconds", {}).items()},
        by_default=by_default,
    )


def _by_default(answer: dict[str, Any]) -> ByDefault | None:
    if not answer:
        return None
    if _silent(answer):
        return ByDefault(None, _problem(answer))
    checks = report_of(answer).checks
    reasons = (check.detail for check in checks if not check.ok and "rms" not in check.measured)
    return ByDefault(_largest(_figures(checks), "rms"), next(reasons, ""))


def _silent(answer: dict[str, Any]) -> bool:
    """Whether there is no report, because the process died, or the runtime cannot be made."""
    return "error" in answer or any(check["subject"] == "process" for check in answer["checks"])


def _figures(checks: tuple[Check, ...]) -> list[Mapping[str, Any]]:
    return [check.measured for check in checks if not check.measured.get("alone")]


def _verdict(checks: tuple[Check, ...]) -> tuple[Verdict, str]:
    failures = [check for check in checks if not check.ok]
    if failures:
        unsupported = failures[0].measured.get("unsupported")
        return ("unsupported" if unsupported else "wrong"), failures[0].detail
    suspects = dict.fromkeys(check.measured["suspects"] for check in checks if "suspects" in check.measured)
    return "ok", "; ".join(f"large for rounding, suspect {each}" for each in suspects)


def _largest(figures: list[Mapping[str, Any]], kind: str) -> Any:
    return max((each[kind] for each in figures if each.get(kind) is not None), default=None)


def _problem(answer: dict[str, Any]) -> str:
    return str(answer["message"] if "error" in answer else answer["checks"][0]["detail"])
