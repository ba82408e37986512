"""``python -m benchmarks.scale``: how the time of an epoch grows, with the data, the model and the processes.

- data: 1, 10 and 100 times 6,000 drawn images of 28 x 28, in memory and streamed from a file; ``mnist_vae``;
- parameters: hidden layers of 100 to 12,800 units, on 6,000 images, and the floor of each network
  (benchmarks/loops/floor.py);
- processes: ``torchrun`` with 1, 2 and 4 of them, each limited to one thread: ``mnist_vae`` on the 60,000 images of
  MNIST, in the textbook's batches and in large ones, and ``mnist_iwae``, which computes 50 times as much for each
  gradient, on 6,000. Fewer cores than that are shared; on GPUs there is one for each process, and no more processes
  than that. Beside it, the products of an epoch by as many processes that never wait for each other;
- waiting: of an epoch of ``shapes_vae`` on images of 64 x 64 x 3 that are streamed from a file, the share of its time
  that the loop spends on waiting for its next portion. ``--images 1000000`` writes 12 GB; ``--batches 200`` is for a
  processor, which would take hours for all of them.

A figure is the second epoch's ``seconds`` in ``metrics.jsonl``; the first is the warm-up. Growth is linear where the
time an image, and a million parameters' share of it, stay the same. A file of images is on the disk alone when an
epoch of it begins, as far as the system lets itself be told so.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

import genkit
from benchmarks import figures
from benchmarks.figures import spread
from benchmarks.loops import BATCH, synchronize
from benchmarks.loops.floor import Network, bare, floor, multiply, seconds_of
from genkit.assemble import assemble, resolve
from genkit.random import seeded
from genkit.training.device import choose_device
from genkit.training.loop import Trainer

SMALL, LARGE = (1, 28, 28), (3, 64, 64)
BASE = 6_000
FACTORS = (1, 10, 100)
HIDDEN = (100, 200, 400, 800, 1600, 3200, 6400, 12800)
PROCESSES = (1, 2, 4)
TOGETHER = (
    ("mnist_vae", 128, 60_000),
    ("mnist_vae", 1024, 60_000),
    ("mnist_vae", 4096, 60_000),
    ("mnist_iwae", 128, 6_000),
)
"""Models, batch sizes and images for several processes: from much talk for little work to the opposite."""
PARTS = ("data", "parameters", "processes", "waiting")
_BLOCK = 10_000
_GROWTH = "growth at the end, the power"


class Stored(Dataset[Any]):
    """Images in a file of numpy's format, read one by one."""

    def __init__(self, path: Path) -> None:
        self.images = np.load(path, mmap_mode="r")
        self.images._mmap.madvise(mmap.MADV_RANDOM)  # or the system reads what lies around each

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (torch.from_numpy(np.array(self.images[index])),)


def written(path: Path, count: int, shape: Sequence[int]) -> Path:
    """A file of ``count`` images of noise, uint8; where the system can be asked for it, none of it stays in memory."""
    generator = np.random.default_rng(0)
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *shape))
    for start in range(0, count, _BLOCK):
        rows = min(_BLOCK, count - start)
        images[start : start + rows] = generator.integers(0, 256, (rows, *shape), np.uint8)
    images.flush()
    del images
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


class Epochs:
    """Epochs of a model on given images, through genkit's trainer."""

    def __init__(self, model: str, train: Dataset[Any], shape: tuple[int, ...], device: torch.device, **settings: Any):
        registry = genkit.load_plugins().registry
        test = TensorDataset(torch.zeros(2, *shape, dtype=torch.uint8))
        registry.dataset("drawn_noise", lambda: genkit.Data(train, test, shape))
        recipe = registry.get("model", model).load().with_settings({"dataset": "drawn_noise", **settings})
        training = {"epochs": 2, "evaluate_every": 0, "sample_every": 0}
        self.recipe = resolve(recipe.with_training(**training), registry)
        with seeded(0):
            self.task = replace(assemble(self.recipe, registry), pictures={})
        self.trainer = Trainer(self.task, self.recipe.training, device, lambda hook, **_: None)

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self.task.module.parameters())

    def fit(self) -> list[dict[str, Any]]:
        """Trains; gives the metrics."""
        with tempfile.TemporaryDirectory() as folder:
            run = genkit.Run.create(Path(folder, "run"), self.recipe, {})
            self.trainer.fit(run)
            return run.metrics()

    def seconds(self) -> float:
        """Of the second epoch."""
        return float(self.fit()[-1]["seconds"])

    def waiting(self, batches: int | None) -> tuple[float, float]:
        """Seconds of the last epoch, and how many of them were spent on waiting for portions.

        Where ``batches`` are given, training is interrupted after as many; that is within the first epoch then, and the
        start of the readers is in it.
        """
        elapsed, waited = 0.0, 0.0
        epoch_of = self.trainer.training.epoch

        def timed(epoch: int, start: int = 0) -> Iterator[Any]:
            nonlocal elapsed, waited
            waited, began, portions = 0.0, time.perf_counter(), epoch_of(epoch, start)
            for taken in itertools.count():
                asked = time.perf_counter()
                portion = next(portions, None)
                waited += time.perf_counter() - asked
                if portion is not None and taken != batches:
                    yield portion
                    continue
                synchronize(self.trainer.device)
                elapsed = time.perf_counter() - began
                if portion is not None:
                    signal.raise_signal(signal.SIGINT)
                    yield portion
                return

        self.trainer.training.epoch = timed  # type: ignore[method-assign]  # to measure the loop's own iterator
        self.fit()
        return elapsed, waited


def over_data(folder: Path, factors: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Seconds an epoch, by where the images are and how many."""
    found: dict[str, dict[str, float]] = {"resident": {}, "streamed": {}}
    for factor in factors:
        path = written(folder / "images.npy", factor * BASE, SMALL)
        resident = TensorDataset(torch.from_numpy(np.load(path)))
        found["resident"][str(factor * BASE)] = Epochs("mnist_vae", resident, SMALL, device).seconds()
        del resident
        found["streamed"][str(factor * BASE)] = Epochs("mnist_vae", Stored(path), SMALL, device).seconds()
    return found


def over_parameters(folder: Path, device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds an epoch, and those of the floor for as many steps, by the number of parameters."""
    images = TensorDataset(torch.from_numpy(np.load(written(folder / "images.npy", BASE, SMALL))))
    found: dict[str, dict[str, float]] = {"seconds": {}, "floor": {}}
    for hidden in HIDDEN:
        settings = {"encoder.hidden": hidden, "decoder.hidden": hidden}
        epochs = Epochs("mnist_vae", images, SMALL, device, **settings)
        size = str(epochs.parameters)
        found["seconds"][size] = epochs.seconds()
        del epochs
        found["floor"][size] = floor(device, math.ceil(BASE / BATCH), Network(hidden))["floor"]
    return found


def over_processes(folder: Path, device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds an epoch, by the number of processes that torchrun starts; on a CPU, each has one thread.

    Beside it, how long as many processes take that divide an epoch's products and never wait for each other: no way of
    training together can gain more on this machine.
    """
    most = torch.cuda.device_count() if device.type == "cuda" else max(PROCESSES)
    counts = [count for count in PROCESSES if count <= most]
    found = {
        f"{model}, batches of {size:,}": {str(n): together(folder, device, model, size, images, n) for n in counts}
        for model, size, images in TOGETHER
    }
    if device.type == "cpu":
        found["products apart"] = {str(count): apart(count) for count in counts}
    return found


def together(folder: Path, device: torch.device, model: str, batch_size: int, images: int, count: int) -> float:
    """Seconds of the second epoch of ``count`` processes that train one model."""
    run = folder / f"{model}_{batch_size}_{count}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "genkit", "train", "--model", model, "--set", f"dataset.limit={images}", "--epochs", "2"]
    command += ["--device", device.type, "--batch-size", str(batch_size), "--set", "training.evaluate_every=0"]
    command += ["--set", "training.sample_every=0", "--out", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    rows = (run / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(rows[-1])["seconds"])


def apart(count: int) -> float:
    """Seconds that ``count`` processes of one thread take for an epoch's products, of which each has its part."""
    context = multiprocessing.get_context("spawn")
    begin, times = context.Barrier(count), context.Queue()
    steps = 60_000 // BATCH // count
    workers = [context.Process(target=_multiply, args=(begin, times, steps)) for _ in range(count)]
    for worker in workers:
        worker.start()
    slowest: float = max(times.get() for _ in workers)
    for worker in workers:
        worker.join()
    return slowest


def _multiply(begin: Any, times: Any, steps: int) -> None:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    products = bare(cpu).products
    begin.wait()
    times.put(seconds_of(lambda: multiply(products), cpu, steps))


def waiting(folder: Path, images: int, batches: int | None, device: torch.device) -> dict[str, Any]:
    """The share of an epoch's time that the loop waits for its input."""
    stored = Stored(written(folder / "images.npy", images, LARGE))
    seconds, waited = Epochs("shapes_vae", stored, LARGE, device).waiting(batches)
    return {"images": images, "batches": batches, "seconds": seconds, "waited": waited}


def slope(times: Mapping[str, float]) -> float:
    """The exponent of the growth between the last two sizes: 1 where it is linear, once what does not grow is small."""
    (size, before), (larger, after) = list(times.items())[-2:]
    return math.log(after / before) / math.log(int(larger) / int(size))


def tables(part: str, rounds: Sequence[Mapping[str, Any]]) -> Iterator[list[list[str]]]:
    """What was found, for a person: of each kind the head and the rows."""
    if part == "waiting":
        first, shares = rounds[0], spread([100 * found["waited"] / found["seconds"] for found in rounds])
        what = f"the first {first['batches']:,} batches of" if first["batches"] else "an epoch of"
        yield [["images of 64 x 64 x 3, streamed", "waiting, % of the time"], [f"{what} {first['images']:,}", shares]]
        return
    if part == "parameters":
        columns = [
            [round_["seconds"] for round_ in rounds],
            [round_["floor"] for round_ in rounds],
            [{n: one / round_["floor"][n] for n, one in round_["seconds"].items()} for round_ in rounds],
        ]
        sizes = rounds[0]["floor"]
        rows = [[f"{int(n):,}", *(spread([times[n] for times in column]) for column in columns)] for n in sizes]
        rows.append([_GROWTH, *(spread([slope(times) for times in column]) for column in columns[:2]), ""])
        yield [["parameters", "seconds an epoch", "the floor", "times"], *rows]
        return
    what = {"data": "images", "processes": "processes"}[part]
    for kind in rounds[0]:
        each = [found[kind] for found in rounds]
        head = [f"{what}, {kind}", "seconds an epoch"]
        rows = [[f"{int(size):,}", spread([times[size] for times in each])] for size in each[0]]
        if part == "processes":
            head.append("times the speed of one")
            for row, size in zip(rows, each[0], strict=True):
                row.append(spread([times["1"] / times[size] for times in each]))
        elif len(rows) > 1:
            rows.append([_GROWTH, spread([slope(times) for times in each])])
        yield [head, *rows]


def main() -> None:
    """Measures and prints."""
    parser = figures.arguments("scale", __doc__, rounds=3)
    parser.add_argument("--part", action="append", choices=PARTS, help="this one; once or more. Default: all")
    parser.add_argument("--factors", type=int, nargs="+", default=FACTORS, help=f"times {BASE:,} images")
    parser.add_argument("--images", type=int, default=4_000, metavar="N", help="of 64 x 64 x 3, for the waiting")
    parser.add_argument("--batches", type=int, metavar="N", help="of them, for the waiting. Default: two epochs")
    options = parser.parse_args()
    device = choose_device(options.device)

    result: dict[str, list[Any]] = {part: [] for part in PARTS if part in (options.part or PARTS)}
    for _ in range(options.rounds):
        for part, rounds in result.items():
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                if part == "data":
                    rounds.append(over_data(folder, options.factors, device))
                elif part == "parameters":
                    rounds.append(over_parameters(folder, device))
                elif part == "processes":
                    rounds.append(over_processes(folder, device))
                else:
                    rounds.append(waiting(folder, options.images, options.batches, device))
    print(f"{figures.machine(device)}: medians of {options.rounds} rounds (lowest to highest)")
    for part, rounds in result.items():
        for table in tables(part, rounds):
            print()
            for first, *others in table:
                print(f"{first:42}" + "".join(f"{other:26}" for other in others).rstrip())
    figures.keep("scale", result, device, options.json)


if __name__ == "__main__":
    main()
