"""Damages bundles by the thousand, and holds what is said about each against what may be said."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np
import onnxruntime

import genkit
from benchmarks.fuzz import files, graphs, manifests  # noqa: F401  (each registers its damages)
from benchmarks.fuzz.damages import DAMAGES, Damage
from benchmarks.fuzz.victims import CANARY, Inapplicable, Victim, members

SECONDS = 30.0
"""That a verification may take."""
_SLACK = 60.0
"""Beyond the limit, for starting a new child on a busy machine."""
_MORE = (0, 0, 0, 0, 1, 1, 2)
"""How many further damages are added to the one that is tried."""
_LONGEST = 2000
"""The characters that a line for a person may have."""


class Finding(NamedTuple):
    """Something that was said or done and may not be."""

    seed: int
    kinds: str
    what: str


class _Hang(BaseException):
    """The process that asks does not come back; no handler of it may stop this one."""


@dataclass
class Tally:
    """What became of the damaged bundles.

    ``outcomes`` are counted by kind: ``no`` (a report with a failed check), ``refused`` (an error of one or two lines),
    ``died`` and ``timed out`` (a report that says so of the child), ``harmless`` (verified, and the judge agrees).
    """

    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    slowest: dict[str, float] = field(default_factory=dict)
    loaded: int = 0
    findings: list[Finding] = field(default_factory=list)

    def count(self, kind: str, outcome: str, seconds: float) -> None:
        """Adds one bundle."""
        counts = self.outcomes.setdefault(kind, {})
        counts[outcome] = counts.get(outcome, 0) + 1
        self.slowest[kind] = max(self.slowest.get(kind, 0.0), round(seconds, 2))


def plan(seed: int) -> Damage:
    """What is tried with this seed: every damage in turn, and one that costs a time-out every twentieth time."""
    kinds = list(DAMAGES.values())
    turn, place = divmod(seed, len(kinds))
    if kinds[place].rare and turn % 20:
        return random.Random(f"instead of {seed}").choice([kind for kind in kinds if not kind.rare])
    return kinds[place]


def damaged(sources: Path, room: Path, seed: int) -> tuple[Victim, list[Damage]]:
    """The bundle of this seed, in the empty directory ``room``, and what was done to it."""
    first = plan(seed)
    for attempt in range(100):
        clear(room)
        draw = random.Random(f"{seed}.{attempt}")
        victim = Victim.take(sources, draw.choice(first.sources), room, f"{seed}.{attempt}.damage")
        try:
            first.apply(victim)
        except Inapplicable:
            continue
        done = [first]
        others = [kind for kind in DAMAGES.values() if not kind.rare and victim.source in kind.sources]
        for kind in draw.sample(others, 0 if first.rare else draw.choice(_MORE)):
            try:
                kind.apply(victim)
            except Exception:  # what the first has left is not always what the second needs
                continue
            done.append(kind)
        if _substance(victim.path) == _substance(sources / victim.source):
            continue  # such as a byte that was replaced by itself, or a space that was added to the manifest
        return victim, done
    raise AssertionError(f"{first.kind} does nothing")


def clear(room: Path) -> None:
    """Makes an empty directory; what was there may be deeper than Python's own functions can go."""
    subprocess.run(["rm", "-rf", room], check=True)
    room.mkdir()


def _substance(bundle: Path) -> dict[str, object]:
    """Everything that matters about a bundle."""
    found: dict[str, object] = {}
    for path, mode in members(bundle):
        small = stat.S_ISREG(mode) and Path(path).stat().st_size < 2**26
        found[path.removeprefix(str(bundle))] = Path(path).read_bytes() if small else mode
    with suppress(KeyError, TypeError, ValueError, RecursionError):
        pairs = json.loads(found["/manifest.json"], object_pairs_hook=list)  # type: ignore[arg-type]  # or a mode, a TypeError
        found["/manifest.json"] = json.dumps(pairs)
    return found


# What is said


def examine(sources: Path, room: Path, seed: int, tally: Tally, *, seconds: float = SECONDS) -> None:
    """Damages one bundle, asks about it, and adds what is said to the tally."""
    victim, done = damaged(sources, room, seed)
    path = victim.path
    if victim.random.random() < 0.1:
        path = room / "link"
        path.symlink_to(victim.path)
    _forget_reads(victim)
    before = time.monotonic()
    outcome, problem = _verified(path, done, tally, seconds)
    taken = time.monotonic() - before
    if not problem and outcome != "timed out" and outcome != "harmless":
        sealed = any(kind.sealed for kind in done)
        if not sealed or victim.random.random() < 0.1:
            tally.loaded += 1
            problem = _loaded(path, verify=sealed)
    if not problem and (read := _reads(victim)):
        problem = f"read outside of the bundle: {', '.join(read)}"
    kinds = " + ".join(kind.kind for kind in done)
    tally.count(done[0].kind, outcome, taken)
    if problem:
        tally.findings.append(Finding(seed, kinds, problem))


def _verified(path: Path, done: list[Damage], tally: Tally, seconds: float) -> tuple[str, str]:
    """What became of ``genkit.verify``, and what is wrong with that."""
    try:
        with _patience(seconds + _SLACK):
            report = genkit.verify(path, seconds=seconds)
    except genkit.GenkitError as error:
        return "refused", unfit(str(error), lines=2)
    except _Hang:
        return "hung", "verify does not come back"
    except BaseException as error:
        return "raised", f"verify raises {type(error).__name__}: {str(error)[:200]}"
    if report.ok:
        if any(kind.random for kind in done) and harmless(path):
            return "harmless", ""
        return "verified", "verified"
    problem = next(filter(None, (unfit(check.detail, lines=1) for check in report.checks)), "")
    said = report.failures[0].detail if report.failures[0].subject == "process" else ""
    if killed := re.search(r"was killed by (\w+)|ended with (status \d+)", said):
        signal_or_status = killed[1] or killed[2]
        tally.deaths[signal_or_status] = tally.deaths.get(signal_or_status, 0) + 1
        return "died", problem
    return ("timed out" if "not checked within" in said else "no"), problem


def _loaded(path: Path, *, verify: bool) -> str:
    """What is wrong with how ``genkit.load_bundle`` refuses."""
    try:
        with _patience(SECONDS + _SLACK):
            genkit.load_bundle(path, verify=verify)
    except genkit.GenkitError as error:
        return unfit(str(error), lines=2)
    except _Hang:
        return "load_bundle does not come back"
    except BaseException as error:
        return f"load_bundle raises {type(error).__name__}: {str(error)[:200]}"
    return f"load_bundle(verify={verify}) loads it"


def unfit(text: str, lines: int) -> str:
    """Why a message is none for a person; nothing where it is one."""
    found = text.split("\n")
    if not 1 <= len(found) <= lines or not all(found):
        return f"a message of {len(found)} lines: {text[:200]!r}"
    if not all(line.isprintable() for line in found):
        return f"a message that cannot be printed: {text[:200]!r}"
    if len(text) > _LONGEST:
        return f"a message of {len(text)} characters: {text[:200]!r}"
    if CANARY in text or "Traceback" in text:
        return f"a message with what it should not hold: {text[:200]!r}"
    return ""


def harmless(path: Path) -> bool:
    """Whether onnxruntime, asked without the gate, gives every golden output within the limits of its precision.

    Bits that were flipped and sealed may be those of a name, or the last of a weight.
    """
    bundle = genkit.Bundle.open(path)
    proven = {graph.name: graph for graph in bundle.manifest.graphs}
    asked = [(graph.file, graph, _limits(graph)) for graph in proven.values()]
    for reduced in bundle.manifest.reduced:
        asked.append((reduced.file, proven[reduced.of], {n: out.budget.max for n, out in reduced.outputs.items()}))
    return all(_within(path / file, graph, bundle.cases(graph), limits) for file, graph, limits in asked)


def _limits(graph: genkit.BundledGraph) -> dict[str, float | None]:
    factor = max(1.0, (graph.reduction / 512) ** 0.5)
    return {name: 32 * factor * errors.max for name, errors in graph.errors.items()}


def _within(
    file: Path, graph: genkit.BundledGraph, cases: Sequence[genkit.Case], limits: Mapping[str, float | None]
) -> bool:
    session, names = onnxruntime.InferenceSession(file), [value.name for value in graph.outputs]
    for case in cases:
        for name, found in zip(names, session.run(names, dict(case.inputs)), strict=True):
            limit = limits.get(name)
            if limit is None:
                right = (found == case.references[name]) | (found == case.ties[name])
            else:
                right = np.abs(found.astype(np.float64) - case.references[name]) <= limit
            if not right.all():
                return False
    return True


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Raises ``_Hang`` in what takes longer."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Reads outside


def _outside(victim: Victim) -> list[Path]:
    return [path for path in victim.outside.rglob("*") if path.is_file() and not path.is_symlink()]


def _forget_reads(victim: Victim) -> None:
    """Says of every file outside that it was last read long ago. The system says otherwise once it is read again."""
    for path in _outside(victim):
        os.utime(path, (0, path.stat().st_mtime))


def _reads(victim: Victim) -> list[str]:
    return [path.name for path in _outside(victim) if path.stat().st_atime != 0]


def reads_are_noticed(room: Path) -> bool:
    """Whether this file system keeps the time of the last read."""
    clear(room)
    file = room / "file"
    file.write_text(CANARY)
    os.utime(file, (0, file.stat().st_mtime))
    file.read_text()
    return file.stat().st_atime != 0
