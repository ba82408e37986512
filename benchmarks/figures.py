"""What the programs that measure speed share: the machine, medians with their spread, and the files of results.

A file ``benchmarks/results/<device>.json`` has a section for each program, with the machine and the versions that this
section was measured with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from genkit.training.device import describe_device

RESULTS = Path(__file__).parent / "results"
DEFAULT = Path("-")
"""``--json`` without a file: that of the device."""


def arguments(program: str, doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that all of them take."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{program}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each thing is measured")
    parser.add_argument(
        "--json", type=Path, nargs="?", const=DEFAULT, metavar="FILE", help="keep the figures, in results/<device>.json"
    )
    return parser


def file_of(device: torch.device) -> Path:
    """Where the results of a device are kept: ``nvidia_h100_80gb_hbm3.json``, a processor's in ``cpu_*.json``."""
    name = re.sub(r"\W+", "_", machine(device).lower())
    return RESULTS / f"{'cpu_' if device.type == 'cpu' else ''}{name}.json"


def machine(device: torch.device) -> str:
    """The processor or the GPU, for a person."""
    if device.type == "cuda":
        return describe_device(device)
    try:
        name = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0]
    except (OSError, IndexError):
        name = platform.processor() or platform.machine()
    return f"{name.strip()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def keep(section: str, figures: Mapping[str, Any], device: torch.device, path: Path | None) -> None:
    """Puts figures into a section of the results; does nothing where ``path`` is None.

    Other sections stay as they are, and so do other figures of this one that the same machine gave.
    """
    if path is None:
        return
    path = file_of(device) if path == DEFAULT else path
    kept = json.loads(path.read_text()) if path.exists() else {}
    here = {"machine": machine(device), "torch": torch.__version__}
    before = kept.get(section, {})
    kept[section] = {**(before if here.items() <= before.items() else here), **figures}
    path.write_text(json.dumps(kept, indent=2) + "\n")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """``2.25 (2.13 to 2.81)``: the median, the lowest and the highest."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round, so that what disturbs a whole round cancels."""
    return [one / other for one, other in zip(above, below, strict=True)]


def measured(command: Sequence[str | Path], **options: Any) -> tuple[float, float, float]:
    """Seconds of processor time, seconds on the clock, and megabytes at the peak, of a command that has to succeed.

    ``command`` is what follows ``python``. Children are counted as far as they have been waited for.
    """
    started = os.times().elapsed
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, **options)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))[:100]}: exit status {process.returncode}")
    return usage.ru_utime + usage.ru_stime, os.times().elapsed - started, usage.ru_maxrss / 1024
