"""``python -m benchmarks.sample``: samples and importance-weighted likelihoods against the products that they take.

``mnist_vae`` as it is before training, which costs what it does afterwards. Samples go through ``genkit.inference`` as
in ``genkit sample``, likelihoods as in ``genkit evaluate``, in batches of 128 test images. The floor is the time of the
decoder's bare matrix products, 20 to 400 to 784, for as many rows, at that number of rows at a time which is fastest
here. Each is measured in turn with its floor, after a run that is not counted: likelihoods evaluation by evaluation,
some milliseconds each, because what others leave of the machine changes within seconds. A few images stand for all
10,000, for which genkit compiles the decoder; the seconds of the first batch, which waits for the compiler, are given
apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

import genkit
from benchmarks import figures
from benchmarks.figures import ratios, spread
from benchmarks.loops import BATCH, synchronize
from genkit.assemble import assemble, resolve
from genkit.data import take
from genkit.inference import Density, asking, log_likelihood, sample, to_batch
from genkit.training.device import choose_device

DRAWN = TEST_IMAGES = 10_000
ROWS = (128, 256, 512, 1024, 2048)
DECODER = ((20, 400), (400, 784))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


class Products:
    """The decoder's products alone, up to ``at_once`` rows at a time; ``seconds`` is what they took so far."""

    def __init__(self, at_once: int, device: torch.device) -> None:
        self.at_once, self.device, self.seconds = at_once, device, 0.0
        self.operands: list[tuple[Tensor, Tensor, Tensor]] = []
        for n, m in DECODER:
            x, w = torch.randn(at_once, n, device=device), torch.randn(m, n, device=device)
            self.operands.append((x, w.t(), x @ w.t()))

    def __call__(self, rows: int) -> float:
        """Multiplies as many rows, no more, because all of that time is taken for theirs; the seconds."""

        def work() -> None:
            for done in range(0, rows, self.at_once):
                now = min(self.at_once, rows - done)
                for x, w, y in self.operands:
                    torch.mm(x[:now], w, out=y[:now])

        taken = seconds(work, self.device)
        self.seconds += taken
        return taken


class InTurn(Density):
    """A density that has the products of as many rows carried out before each evaluation."""

    products: Products

    def __call__(self, z: Tensor, x: Tensor, condition: Tensor | None = None) -> Tensor:
        self.products(z.shape[0] * z.shape[1])
        return super().__call__(z, x, condition)


def main() -> None:
    """Measures and prints."""
    parser = figures.arguments("sample", __doc__, rounds=3)
    parser.add_argument("--samples", type=int, default=5000, metavar="K", help="importance samples of each image")
    parser.add_argument("--images", type=int, default=256, metavar="N", help="the first N test images")
    parser.add_argument("--all", action="store_true", help="all 10,000 test images")
    options = parser.parse_args()
    device = choose_device(options.device)

    registry = genkit.load_plugins().registry
    torch.manual_seed(0)
    task = assemble(resolve(registry.get("model", "mnist_vae").load(), registry), registry)
    model = task.module.to(device).model  # type: ignore[union-attr]  # a Composition
    images = TEST_IMAGES if options.all else options.images
    x, _ = take(task.data.test, range(images))

    at_once = min(ROWS, key=lambda rows: min(map(Products(rows, device), [2**14] * 3)))
    density = InTurn(model, TEST_IMAGES * options.samples)

    def likelihoods(images: Tensor) -> tuple[float, float]:
        """The seconds that they take, and those of the products."""
        density.products = products = Products(at_once, device)

        def work() -> None:
            with asking(model, 0):
                for piece in images.split(BATCH):
                    log_likelihood(model, to_batch(model, piece, None), options.samples, density)

        return seconds(work, device) - products.seconds, products.seconds

    first, _ = likelihoods(x[:BATCH])
    sample(model, DRAWN)
    drawn: list[float] = []
    weighed: list[float] = []
    drawn_floor: list[float] = []
    weighed_floor: list[float] = []
    for _ in range(options.rounds):
        drawn_floor.append(Products(at_once, device)(DRAWN))
        drawn.append(seconds(lambda: sample(model, DRAWN), device))
        mine, floor = likelihoods(x)
        weighed.append(mine)
        weighed_floor.append(floor)
    print(f"{figures.machine(device)}: medians of {options.rounds} rounds (lowest to highest)")
    result = {"images": images, "samples": options.samples, "rows_at_once": at_once}
    for name, mine, floor in (
        (f"{DRAWN:,} samples", drawn, drawn_floor),
        (f"log p(x) of {images:,} images, K = {options.samples:,}", weighed, weighed_floor),
    ):
        print(f"{name}: {spread(mine, 3)} s; the products {spread(floor, 3)} s; {spread(ratios(mine, floor))} times")
    print(f"the first batch, with what the compiler took: {first:.2f} s")
    result["drawn"] = {"seconds": [round(s, 4) for s in drawn], "floor": [round(s, 4) for s in drawn_floor]}
    result["likelihood"] = {"seconds": [round(s, 4) for s in weighed], "floor": [round(s, 4) for s in weighed_floor]}
    result["first_batch_seconds"] = round(first, 4)
    figures.keep("sample", result, device, options.json)


if __name__ == "__main__":
    main()
