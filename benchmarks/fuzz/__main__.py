"""``python -m benchmarks.fuzz``: damages 10,000 bundles and asks ``genkit.verify`` and ``load_bundle`` about each.

Bundle N is damaged as its seed N says: every damage in turn, three in seven times with one or two others. The answer
must be no, in one or two lines, in time, without a file outside being read. A part of the bundles is asked about by the
command, and a part under strace, which sees what native code opens. The figures go to ``benchmarks/results/fuzz.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.fuzz.campaign import SECONDS, Finding, Tally, clear, damaged, examine, reads_are_noticed, unfit
from benchmarks.fuzz.damages import DAMAGES
from benchmarks.fuzz.victims import export_sources

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"

_MEMORY = 2 * 2**30

_SYSTEM = re.compile(
    r"/(lib|lib64|usr|opt|sys)/|/etc/(ld\.so|localtime|nsswitch|ssl|hosts?|host\.conf|resolv\.conf|locale\.alias)"
    r"|/proc/(?!.*mem/$)|/dev/(null|u?random)/$|/\.dockerenv/$|anon_inode"
)
"""What python and the libraries read for themselves."""


def asked_by_command(sources: Path, room: Path, seeds: range) -> list[Finding]:
    """``genkit verify`` as a process: exit status 1 or 2, and one or two lines on the standard error."""
    findings = []
    for seed in seeds:
        victim, done = damaged(sources, room, seed)
        command = [sys.executable, "-m", "genkit", "verify", str(victim.path), "--time-limit", f"{SECONDS:g}"]
        said = subprocess.run(command, capture_output=True, check=False)
        problem = unfit(said.stderr.decode().removesuffix("\n"), lines=2)
        if said.returncode not in (1, 2):
            problem = f"exit status {said.returncode}: {said.stderr[-200:]!r}"
        if problem and not (said.returncode == 0 and any(kind.random for kind in done)):
            findings.append(Finding(seed, " + ".join(kind.kind for kind in done), f"genkit verify: {problem}"))
    return findings


def opened_elsewhere(sources: Path, room: Path, seeds: range) -> tuple[int, list[str]]:
    """How many files are opened for reading while those bundles are asked about, by whatever code, and the wrong ones.

    Right are the bundle, the temporary directory, and what python and its libraries consist of. A path is where it
    really leads.
    """
    clear(room)
    temporary = room / "tmp"
    temporary.mkdir()
    ours = [room / "room" / "bundle", sources, temporary, sys.prefix, sys.base_prefix, ROOT, Path.home() / ".cache"]
    ours += [Path(path).resolve() for path in sys.path if path]
    reading, writing = os.pipe()
    trace = [
        "strace",
        "-f",
        "-qq",
        "-y",
        "--seccomp-bpf",
        "-e",
        "trace=open,openat,openat2",
        "-o",
        f"/dev/fd/{writing}",
    ]
    worker = [sys.executable, "-m", "benchmarks.fuzz", "--sources", sources, "--room", room / "room"]
    worker += ["--first", str(seeds.start), "--bundles", str(len(seeds))]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen([*trace, *worker], pass_fds=[writing], env=environment) as process:
        os.close(writing)
        with os.fdopen(reading, errors="replace") as log:
            found = read_in(log, [str(path) for path in ours])
    if process.returncode:
        raise RuntimeError(f"strace ended with status {process.returncode}")
    return found


def read_in(log: Iterable[str], ours: Sequence[str]) -> tuple[int, list[str]]:
    """How many files a log of strace says were opened for reading, and those that are neither ours nor the system's."""
    count, elsewhere = 0, set()
    for line in log:
        call = re.search(r"(?:O_RDONLY|O_RDWR).*\) = \d+<(.*)>$", line)
        if call and "O_DIRECTORY" not in line:
            count += 1
            path = f"{call[1]}/"
            if not _SYSTEM.match(path) and not path.startswith(tuple(f"{own}/" for own in ours)):
                elsewhere.add(call[1])
    return count, sorted(elsewhere)


def campaign(sources: Path, room: Path, seeds: range, *, loud: bool = True) -> Tally:
    """Every seed in turn, in a process with little memory: whatever is damaged is not to be read by this one."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    tally, began = Tally(), time.monotonic()
    for done, seed in enumerate(seeds, start=1):
        known = len(tally.findings)
        examine(sources, room, seed, tally)
        for finding in tally.findings[known:]:
            print(finding, flush=True)
        if loud and done % 250 == 0:
            print(
                f"{done} of {len(seeds)}, {time.monotonic() - began:.0f} s, {len(tally.findings)} findings", flush=True
            )
    return tally


def figures(tally: Tally) -> dict[str, Any]:
    """What was counted."""
    outcomes = sum((Counter(counts) for counts in tally.outcomes.values()), Counter[str]())
    return {
        "bundles": outcomes.total(),
        "outcomes": dict(outcomes.most_common()),
        "deaths": dict(sorted(tally.deaths.items())),
        "loaded": tally.loaded,
        "kinds": {kind: tally.outcomes[kind] for kind in sorted(tally.outcomes)},
        "slowest": dict(sorted(tally.slowest.items(), key=lambda item: -item[1])[:10]),
        "findings": [finding._asdict() for finding in tally.findings],
    }


def main() -> None:
    """Runs the campaign, or a part of it for another one that looks on."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--bundles", type=int, default=10_000, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="of the first bundle")
    parser.add_argument("--commands", type=int, default=30, metavar="N", help="asked about by the command as well")
    parser.add_argument("--traced", type=int, default=3 * len(DAMAGES), metavar="N", help="under strace as well")
    parser.add_argument("--sources", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--room", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.bundles)
    if options.sources:
        campaign(options.sources, options.room, seeds, loud=False)
        return
    with tempfile.TemporaryDirectory() as directory:
        sources, room = Path(directory, "sources"), Path(directory, "room")
        export_sources(sources)
        began = time.monotonic()
        if not reads_are_noticed(room):
            print("this file system does not keep the time of the last read: only strace sees reads outside")
        tally = campaign(sources, room, seeds)
        seconds = time.monotonic() - began
        commands = seeds[:: max(1, len(seeds) // max(1, options.commands))][: options.commands]
        tally.findings += asked_by_command(sources, room, commands)
        opened, wrong = 0, []
        if shutil.which("strace") and options.traced:
            opened, wrong = opened_elsewhere(sources, room, seeds[: options.traced])
        clear(room)
    result = {
        "command": f"python -m benchmarks.fuzz --bundles {options.bundles} --first {options.first}",
        "machine": f"{platform.system()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("onnx", "onnxruntime-gpu", "numpy", "pydantic", "protobuf")},
        "seconds": round(seconds),
        "largest child, MiB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        **figures(tally),
        "commands": len(commands),
        "traced": {"bundles": min(options.traced, len(seeds)), "opened": opened, "elsewhere": wrong},
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "kinds"}, indent=2))
    sys.exit(bool(tally.findings or wrong))


if __name__ == "__main__":
    main()
