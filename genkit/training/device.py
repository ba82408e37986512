"""Where and in which arithmetic a run computes, set for the run alone."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from genkit.errors import InvalidOption

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of mallopt, as malloc.h numbers them."""
_SETTINGS = {
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "GLIBC_TUNABLES",
}
"""Where the environment has one, it is for a reason."""


def choose_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one), ``cpu`` or ``cuda`` as a device.

    Raises:
        InvalidOption: for another name, or CUDA where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InvalidOption(f"device = {name!r}: it is one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidOption("device = 'cuda': torch finds no CUDA device here; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with this
    return torch.device("cuda", torch.cuda.current_device())


def describe_device(device: torch.device) -> str:
    """Its name for a person."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def require_precision(device: torch.device, precision: str) -> None:
    """Raises ``InvalidOption`` for tf32 on a device that has none."""
    if precision == "tf32" and device.type != "cuda":
        raise InvalidOption("precision = 'tf32': only CUDA devices have it; use --precision fp32 or bf16")


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Deterministic algorithms, and float32 products in the asked precision, inside the block."""
    with ExitStack() as stack:
        cudnn: Any = torch.backends.cudnn
        backends: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
        for backend in backends:
            stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
            backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        deterministic = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        stack.callback(torch.use_deterministic_algorithms, deterministic, warn_only=warn_only)
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory: Any = torch.utils.deterministic
        stack.callback(setattr, memory, "fill_uninitialized_memory", memory.fill_uninitialized_memory)
        memory.fill_uninitialized_memory = False  # it would cost a pass over every new tensor
        yield


@contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """Has the C library keep, inside the block, what tensors on a CPU free, for those of the next step.

    By itself, glibc gives each piece of more than 32 MB back to the system, and the next one is of new pages, which the
    system clears first. Afterwards what is free is given back, and it does so again, but for pieces that fit into a gap
    which was left below something else. Other C libraries are left as they are, and so is one that the environment has
    settings for. It is for the main thread: others get such pieces from elsewhere.
    """
    library = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    if library is None or not hasattr(library, "gnu_get_libc_version") or _SETTINGS & os.environ.keys():
        yield
        return
    library.mallopt(_TRIM_THRESHOLD, -1)
    library.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        # glibc moves its thresholds up to these values as large pieces are freed, until somebody sets one
        library.mallopt(_MMAP_MAX, 65536)
        library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        library.mallopt(_TRIM_THRESHOLD, 64 * 2**20)
        library.malloc_trim(0)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that tensors held on a CUDA device since the last reset; elsewhere, that the process ever held.

    None where the operating system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory(device: torch.device) -> None:
    """Has ``peak_memory`` look at what follows."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
