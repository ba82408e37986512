"""What no loop can do without on this machine, for this model: the floor.

On a CPU, the bare matrix products of each step, at their shapes and in the layouts in which they occur, with the
optimiser's traffic after them, and the bytes of everything else over a bandwidth that is measured:

- the optimiser: Adam reads the parameter, the gradient and two moments, and writes all but the gradient. The four are
  10 MB of the textbook's network, which a last-level cache may hold, but not while products go through it. So the
  traffic is timed where it occurs, after a step's products and over the very weights and gradients of these, as two
  additions. They move six of the seven numbers that Adam moves of each parameter, and count for seven.
- elementwise: the gathering of uint8 rows and their conversion to float; of each hidden layer, the activation (read,
  written) and its gradient (two read, one written); of the output, tanh, loss and gradient in one pass (two read, one
  written); of the latent, the noise and its gradients. Most of what a pass reads has just been written, so the
  bandwidth is measured on two tensors of a batch's size that stay in the cache, which favours the floor.

What arithmetic costs outside of the products (tanh, Adam's roots, the noise) is not counted. On a GPU the floor is the
larger of all bytes over the bandwidth and of the products' operations over their rate, and the replay of a graph that
does next to nothing for each step. The operands of the products are then counted among the bytes, each once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.loops import BATCH, Ended, Epoch, Work, synchronize

PIXELS, LATENT = 784, 20

Product = tuple[Tensor, Tensor, Tensor]
"""Two factors, and where their product goes."""


class Network(NamedTuple):
    """The VAE with ``hidden`` units in each of its two hidden layers, and what a step of it moves."""

    hidden: int = 400

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """The inputs and outputs of each."""
        return (PIXELS, self.hidden), *[(self.hidden, LATENT)] * 2, (LATENT, self.hidden), (self.hidden, PIXELS)

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum((inputs + 1) * outputs for inputs, outputs in self.layers)

    @property
    def optimizer_bytes(self) -> int:
        """Of one step."""
        return 4 * 7 * self.parameters

    @property
    def elementwise_bytes(self) -> int:
        """Of one step."""
        return BATCH * (PIXELS * (1 + 4) + 4 * 5 * 2 * self.hidden + 4 * 3 * PIXELS + 4 * 7 * LATENT)


TEXTBOOK = Network()


class Bare(NamedTuple):
    """A step's products: of each layer the output and both gradients, of the first none of the input."""

    products: list[Product]
    weights: Tensor
    """As many numbers as there are parameters; parts of it, all but the biases, are what the products read."""
    gradients: Tensor
    """The same of what they write."""


def bare(device: torch.device, network: Network = TEXTBOOK) -> Bare:
    """The operands, random."""
    weights, gradients = (torch.randn(network.parameters, device=device) for _ in range(2))
    products, place = [], 0
    for i, (n, m) in enumerate(network.layers):
        x, g = (torch.randn(BATCH, size, device=device) for size in (n, m))
        w, dw = (whole[place : place + m * n].view(m, n) for whole in (weights, gradients))
        products += [(x, w.t(), x @ w.t()), (g.t(), x, dw)]
        products += [(g, w, g @ w)] if i else []
        place += m * n
    return Bare(products, weights, gradients)


def multiply(products: Iterable[Product]) -> None:
    """Once each."""
    for a, b, c in products:
        torch.mm(a, b, out=c)


def seconds_of(work: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Of ``times`` calls."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return time.perf_counter() - started


def bandwidth(size: int, device: torch.device, times: int) -> float:
    """Bytes a second of adding one tensor to another, ``size`` bytes in both; two are read and one is written."""
    a, b = (torch.ones(max(1, size // 8), device=device) for _ in range(2))
    return 12 * a.numel() * times / seconds_of(lambda: a.add_(b), device, times)


def floor(device: torch.device, steps: int, network: Network = TEXTBOOK) -> dict[str, float]:
    """Seconds of as many steps, by part; the ``floor`` is all of them."""
    return (on_gpu if device.type == "cuda" else on_cpu)(device, steps, network)


def run(work: Work, ended: Ended) -> None:
    """Epochs of nothing but that."""
    device = torch.device(work.device)
    while True:
        parts = floor(device, work.steps)
        ended(Epoch(parts.pop("floor"), None, parts))


def on_cpu(device: torch.device, steps: int, network: Network) -> dict[str, float]:
    """Seconds of an epoch, in all and by part; bandwidths in GB/s."""
    products, weights, gradients = bare(device, network)
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    multiplied = updated = 0.0
    for _ in range(steps):
        multiplied += seconds_of(lambda: multiply(products), device)
        updated += seconds_of(lambda: (first.add_(gradients), second.add_(weights)), device)
    optimizer = updated * network.optimizer_bytes / (2 * 12 * network.parameters)
    small = bandwidth(4 * 2 * BATCH * PIXELS, device, 10 * steps)
    elementwise = steps * network.elementwise_bytes / small
    return {
        "floor": multiplied + optimizer + elementwise,
        "matrix products": multiplied,
        "optimiser's traffic": optimizer,
        "elementwise traffic": elementwise,
        "GB/s, optimiser": steps * network.optimizer_bytes / optimizer / 1e9,
        "GB/s, elementwise": small / 1e9,
    }


def on_gpu(device: torch.device, steps: int, network: Network) -> dict[str, float]:
    """Seconds of an epoch, in all and by part; GB/s and TFLOP/s."""
    products = bare(device, network).products
    operations = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, _ in products)
    operands = 4 * sum(t.numel() for product in products for t in product)
    n = 8192
    a, b, c = (torch.ones(n, n, device=device) for _ in range(3))
    rate = 2 * n**3 * 10 / seconds_of(lambda: torch.mm(a, b, out=c), device, 10)
    memory = bandwidth(3 * 2**30, device, 20)
    tiny, graph = torch.zeros(1, device=device), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tiny.add_(1)
    bytes_ = (network.optimizer_bytes + network.elementwise_bytes + operands) / memory
    arithmetic = operations / rate
    replay = seconds_of(graph.replay, device, steps)
    return {
        "floor": steps * max(bytes_, arithmetic) + replay,
        "bytes": steps * bytes_,
        "operations": steps * arithmetic,
        "empty graphs": replay,
        "GB/s": memory / 1e9,
        "TFLOP/s": rate / 1e12,
    }
