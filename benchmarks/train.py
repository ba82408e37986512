"""``python -m benchmarks.train``: an epoch of several training loops, in turn, on the same work.

All train the 784-400-(20, 20)-400-784 VAE with Adam and batches of 128 on the 60,000 images of MNIST, each in a process
of its own: the textbook's loop, the loop that an expert would write, pythae's trainer, pytorch-lightning, and genkit in
each of its ways to execute a step. Each runs an epoch first that is not counted; then come the rounds, an epoch of
each. On a CPU the loops of a round take turns, a twentieth of an epoch each, and stand still in between: its speed may
change within an epoch, where others use it as well. Ratios are taken round by round. A loop whose package is not
installed says so in its row.

The floor is what no loop can do without; benchmarks/loops/floor.py says what is in it.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import genkit
from benchmarks import figures
from benchmarks.figures import ratios, spread
from benchmarks.loops import Epoch, Loop, Missing, Work, taken_together
from genkit.training.device import choose_device

STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    name: {"step": name} for name in ("eager", "compiled", "graph", "compiled_graph")
}
"""genkit's ways to execute a step, and the training options that ask for each."""
AT_ONCE: Mapping[str, Mapping[str, Any]] = {
    f"{name}, 8 at once": {"step": name, "steps_per_replay": 8} for name in ("graph", "compiled_graph")
}
"""Those that may gain from several steps in one replay, which is on a GPU."""
ANYWHERE = "eager"
"""The one that works on every device, whose losses are compared in two precisions."""
BF16: Mapping[str, Mapping[str, Any]] = {
    f"{name}, bf16": {"step": name, "precision": "bf16"} for name in (ANYWHERE, "compiled_graph")
}
"""Those that are measured in bfloat16 too, where the device has it."""

TEXT, FLOOR = "the textbook's loop", "the floor"
LOOPS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    TEXT: ("text", {}),
    "plain torch, tuned": ("plain", {}),
    "pythae 0.1.2": ("pythae", {}),
    "pytorch-lightning": ("lightning", {}),
    **{f"genkit, {name}": ("genkit", options) for name, options in {**STRATEGIES, **AT_ONCE, **BF16}.items()},
    FLOOR: ("floor", {}),
}
"""Each row, its module in benchmarks.loops and its options."""
CURVES = (f"genkit, {ANYWHERE}", f"genkit, {ANYWHERE}, bf16")
"""The same but for the precision."""
TURNS = 20
"""Of each loop in a round, on a CPU. On a GPU, whose work goes on while a process stands still, there is one."""


def measure(names: Sequence[str], rounds: int, device: str, images: int, curve: int) -> dict[str, Any]:
    """The seconds and losses of each row, or what it misses; the warm-up's loss comes first in the curves."""
    rows: dict[str, list[Epoch]] = {name: [] for name in names}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        loops = {}
        for i, name in enumerate(names):
            module, options = LOOPS[name]
            loops[name] = stack.enter_context(Loop(module, Work(device, images, str(Path(folder, str(i))), options)))
        for name, loop in list(loops.items()):
            try:
                rows[name].append(loop.epoch())
            except Missing as error:
                missing[name] = str(error)
                del loops[name]
        for _ in range(rounds):
            slices = {name: rows[name][-1].seconds / TURNS if device == "cpu" else None for name in loops}
            for name, epoch in taken_together(loops, slices):
                rows[name].append(epoch)
        for _ in range(1 + rounds, curve):
            for name in (name for name in CURVES if name in loops):
                rows[name].append(loops[name].epoch())
    result: dict[str, Any] = {}
    for name, epochs in rows.items():
        if name in missing:
            result[name] = {"missing": missing[name]}
            continue
        counted = epochs[1 : 1 + rounds]
        result[name] = {"seconds": [round(epoch.seconds, 4) for epoch in counted]}
        if epochs[0].loss is not None:
            result[name]["loss"] = [round(epoch.loss, 3) for epoch in epochs if epoch.loss is not None]
        for part in counted[0].parts:
            result[name].setdefault("parts", {})[part] = [round(epoch.parts[part], 4) for epoch in counted]
    return result


def table(loops: Mapping[str, Any]) -> list[list[str]]:
    """A line for each row: seconds, how many times the textbook's speed and the floor's time, and the last loss."""
    text, floor = (loops.get(name, {}).get("seconds") for name in (TEXT, FLOOR))
    rows = []
    for name, row in loops.items():
        if "missing" in row:
            rows.append([name, row["missing"], "", "", ""])
            continue
        seconds = row["seconds"]
        rows.append(
            [
                name,
                spread(seconds),
                spread(ratios(text, seconds)) if text else "",
                spread(ratios(seconds, floor)) if floor else "",
                f"{row['loss'][len(seconds)]:.2f}" if "loss" in row else "",
            ]
        )
    return rows


def has_bf16(device: torch.device) -> bool:
    """Whether its arithmetic knows bfloat16, which a processor without it imitates, slowly."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))


HEAD = ["", "seconds an epoch", "the text's speed, times", "the floor's time, times", "loss"]


def main() -> None:
    """Measures and prints."""
    parser = figures.arguments("train", __doc__, rounds=3)
    parser.add_argument("--images", type=int, default=60_000, metavar="N", help="the first N alone")
    # not --only, after which torch.compile looks for a name to put into its code
    parser.add_argument("--row", action="append", metavar="ROW", choices=LOOPS, help="this one; once or more")
    parser.add_argument(
        "--curve", type=int, default=0, metavar="EPOCHS", help="go on so far with fp32 and bf16, and print both losses"
    )
    options = parser.parse_args()
    device = choose_device(options.device)
    genkit.load_plugins().registry.get("dataset", "mnist").load()()  # fetches the images, if need be

    bf16 = has_bf16(device)
    lacking = {*(() if bf16 else BF16), *(AT_ONCE if device.type == "cpu" else ())}
    names = options.row or [name for name in LOOPS if name.removeprefix("genkit, ") not in lacking]
    loops = measure(names, options.rounds, str(device), options.images, options.curve)
    versions = {}
    for name in ("pythae", "pytorch-lightning"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    result = {"versions": versions, "images": options.images, "bf16": bf16, "loops": loops}
    print(f"{figures.machine(device)}: {options.rounds} rounds, medians (lowest to highest)")
    columns = list(zip(HEAD, *table(loops), strict=True))
    widths = [max(map(len, column)) for column in columns]
    for line in zip(*columns, strict=True):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for name, row in loops.items():
        for part, values in row.get("parts", {}).items():
            print(f"  {name}: {part}: {statistics.median(values):.3f}")
    if options.curve:
        for name in (name for name in CURVES if name in loops):
            print(f"{name}, loss: {' '.join(f'{loss:.2f}' for loss in loops[name]['loss'])}")
    figures.keep("train", result, device, options.json)


if __name__ == "__main__":
    main()
