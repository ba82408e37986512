"""Checks bundles in a process of its own: whatever is in one cannot crash, hang or exhaust the process that asks.

A bundle is somebody else's file, and what reads it is native code, which may die of a damaged one: onnx's checker, a
runtime. So they read it in a child, which answers with the report. The child stays for the next bundle, and is replaced
when it dies.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import IO, Any

from genkit.bundle import MANIFEST, Arrays, Bundle, Check, Exporter, Function, Report, Runtime, TunedRuntime
from genkit.errors import GenkitError, InvalidOption, PluginWarning, error_of
from genkit.plugins import load_plugins

SECONDS = 600.0
"""How long a bundle may take, unless it is said otherwise."""
TIMED = (1, 64)
"""The batch sizes at which the latency of a runtime is measured."""
_TIMING, _MOST_CALLS = 0.2, 1000
"""The seconds and the calls after which a latency is known well enough."""
_LEAST_MEMORY, _MEMORY_FACTOR, _MEMORY_SHARE = 8 * 2**30, 32, 0.75
"""The bytes that a check may use: so many, or so many times the bundle's own, but not more of the machine's."""

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from genkit.verification import serve; serve()"


def verify(
    path: str | Path,
    runtimes: Sequence[str] = ("onnxruntime",),
    *,
    seconds: float = SECONDS,
    disabled: Iterable[str] = (),
) -> Report:
    """Checks a bundle again: its files, its graphs and their numbers. Needs no torch.

    >>> genkit.verify("bundle").ok
    True

    Args:
        path: of the bundle.
        runtimes: names of ``genkit components``, on each of which every graph is proven.
        seconds: after which the answer is no.
        disabled: plugins to leave unloaded.

    Returns:
        Every check; whatever is wrong with the bundle is in it, a reader that crashes or does not end included.

    Raises:
        InvalidBundle: where there is no bundle.
        VerificationFailed: for a manifest that cannot be read.
        UnknownName: for a runtime, or an exporter that the bundle names, which no plugin offers.
        RuntimeMissing: for a runtime whose library is not installed.
    """
    if seconds <= 0:
        raise InvalidOption(f"seconds = {seconds}: a time limit is above 0")
    plugins = load_plugins(disabled)
    for name in runtimes:
        plugins.registry.get("runtime", name)
    bundle = Bundle.open(Path(path))
    if not bundle.whole:  # nothing that it says can be relied on, not even which files to look at
        return Report((Check("", "files", False, f"{MANIFEST}: changed after it was written"),))
    request = {"path": str(bundle.path.resolve()), "runtimes": list(runtimes), "disabled": plugins.absent}
    with _turn:
        answer = _child.ask({"task": "verify", **request}, seconds)
    if "error" in answer:
        raise error_of(answer["error"], answer["message"])
    return report_of(answer)


def report_of(answer: dict[str, Any]) -> Report:
    """The report that a child's answer holds."""
    return Report(tuple(Check(**check) for check in answer["checks"]))


class Child:
    """A process that checks, and what it has said: one line of JSON for each line that it is asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._surroundings: Any = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What it answers to a ``task`` of ``_TASKS`` with its arguments, or the failed check that says why not."""
        process = self._started()
        try:
            assert process.stdin
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self._end(process)
            return _no(f"it was not checked within {seconds:g} s; give it more with --time-limit")
        except BrokenPipeError:
            line = ""
        except BaseException:  # whoever asked is leaving, and nobody would read the answer
            self._end(process)
            raise
        if line.endswith("\n"):  # else it died with the answer on its lips
            answer: dict[str, Any] = json.loads(line)
            return answer
        return _no(f"the process that reads it {_epitaph(self._end(process))}")

    def close(self) -> None:
        """Lets the child go, if there is one."""
        if self._process is not None:
            self._end(self._process)

    def disown(self) -> None:
        """Forgets the child, which is that of the process from which this one was forked."""
        self._process = None

    def _started(self) -> subprocess.Popen[str]:
        """The living child, or a new one; also where it would find other plugins than this process does."""
        surroundings = list(sys.path), dict(os.environ)
        if self._process is not None and (self._process.poll() is not None or surroundings != self._surroundings):
            self._end(self._process)
        if self._process is None:
            self._surroundings = surroundings
            command = [sys.executable, "-P", "-c", _CHILD, json.dumps(sys.path)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            assert self._process.stdout
            self._lines = queue.SimpleQueue()
            threading.Thread(target=_listen, args=(self._process.stdout, self._lines), daemon=True).start()
        return self._process

    def _end(self, process: subprocess.Popen[str]) -> int:
        self._process = None
        process.kill()
        with contextlib.suppress(OSError):  # what was written to a child that is gone
            assert process.stdin
            process.stdin.close()
        return process.wait()


_child, _turn = Child(), threading.Lock()
atexit.register(_child.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_child.disown)


def _listen(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Passes on what the child says, and an empty line for its end."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")


def _no(reason: str) -> dict[str, Any]:
    return {"checks": [asdict(Check("", "process", False, reason))]}


def _epitaph(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def serve() -> None:
    """What the child does: answers each line of its input with a line of its output, until there are no more."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # native code prints what it likes
        for line in sys.stdin:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PluginWarning)  # whoever asks has been told
                answer = _answer(**json.loads(line))
            print(json.dumps(answer), file=answers, flush=True)


def _answer(task: str, **arguments: Any) -> dict[str, Any]:
    try:
        return _TASKS[task](**arguments)
    except GenkitError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except (Exception, RecursionError) as error:
        return _no(f"it cannot be checked, {type(error).__name__}: {next(iter(str(error).splitlines()), '')}")


def _verify(path: str, runtimes: Sequence[str], disabled: Sequence[str]) -> dict[str, Any]:
    bundle = Bundle.open(Path(path))
    registry = load_plugins(disabled).registry
    exporter: Exporter = registry.get("exporter", bundle.manifest.format).load()()
    chosen = [registry.get("runtime", name).load()() for name in runtimes]
    _limit_memory(bundle)
    return asdict(exporter.verify(bundle, chosen))


def _verify_on(path: str, graph: str, runtime: str, defaults: bool, disabled: Sequence[str]) -> dict[str, Any]:
    """The report on one graph in one runtime, and where it holds, the seconds that a call takes, by batch size.

    ``defaults``: the report on the runtime as its library comes, and nothing else; empty where it is proven just so.
    """
    bundle = Bundle.open(Path(path))
    registry = load_plugins(disabled).registry
    exporter: Exporter = registry.get("exporter", bundle.manifest.format).load()()
    chosen: Runtime = registry.get("runtime", runtime).load()()
    if defaults:
        if not isinstance(chosen, TunedRuntime):
            return {}
        chosen = chosen.defaults()
    entry = next(entry for entry in bundle.manifest.graphs if entry.name == graph)
    _limit_memory(bundle)
    report = exporter.verify_on(bundle, entry, chosen)
    if defaults or not report.ok:
        return asdict(report)
    function = chosen.load(bundle.file(entry.file))
    timed = {str(case.rows): _latency(function, case.inputs) for case in bundle.cases(entry) if case.rows in TIMED}
    return {**asdict(report), "seconds": timed}


def _latency(function: Function, inputs: Arrays) -> float:
    """The median of the seconds that a call takes, but for the first, which allocates."""
    function(inputs)
    seconds: list[float] = []
    while sum(seconds) < _TIMING and len(seconds) < _MOST_CALLS:
        started = time.perf_counter()
        function(inputs)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def _describe(runtime: str, disabled: Sequence[str]) -> dict[str, Any]:
    found: Runtime = load_plugins(disabled).registry.get("runtime", runtime).load()()
    return {"version": found.version, "precision": found.precision}


_TASKS: dict[str, Callable[..., dict[str, Any]]] = {"verify": _verify, "verify_on": _verify_on, "describe": _describe}


def _limit_memory(bundle: Bundle) -> None:
    """A graph of a few bytes can ask for any amount."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    size = 512 * sum(member.lstat().st_blocks for member in bundle.path.iterdir())  # not what a file says it has
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bound = min(max(_LEAST_MEMORY, _MEMORY_FACTOR * size), int(_MEMORY_SHARE * machine))
    resource.setrlimit(resource.RLIMIT_DATA, (bound if most == resource.RLIM_INFINITY else min(bound, most), most))
