"""Kernels that ``torch.compile`` makes of a function, drawing the random numbers that eager operations would draw.

They draw them in the same order as well from torch 2.13 on; before, the compiler may exchange two draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload

from genkit.errors import InvalidOption

_OWN = ("aten", "prims", "genkit")
"""Where operators are defined whose results have the sizes and strides that they declare."""

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"fallback_random": True}
_UNCHECKED: dict[str, Any] = {"size_asserts": False, "alignment_asserts": False}
"""Without asking in each call whether tensors have the sizes and strides that the kernels were made for."""


def compiled(function: F, options: Mapping[str, Any] | None = None) -> F:
    """``function``, compiled anew for each shape that it is called with. Call it inside of ``many_kernels()``.

    Args:
        options: of ``torch._inductor.config``, beside those that all of genkit's kernels are made with.
    """
    made: Any = torch.compile(function, dynamic=False, options={**_OPTIONS, **(options or {})})
    return made  # type: ignore[no-any-return]  # it has the same signature


def compiled_graph(function: Any, tensors: Sequence[Tensor]) -> Callable[[], None]:
    """A graph of operators that gives nothing, compiled for ``tensors``: they are what it reads and writes, always.

    So what torch does before and after each call, to get from arguments to those of its kernels, is done once. Their
    sizes are not looked at again either, unless there is an operator of others, which may give what it did not declare.

    Raises:
        RuntimeError: where the compiler fails.
    """
    from torch._inductor import compile_fx as compiler

    calls: list[Callable[[], Any]] = []
    """Of the kernels, with the arguments of their first call, which leave nothing to do afterwards."""

    def kernels_of(*arguments: Any, **keywords: Any) -> Callable[[list[Any]], Any]:
        kernels: Any = compiler.compile_fx_inner(*arguments, **keywords)

        def first(given: list[Any]) -> Any:
            kept = list(given)  # the kernels clear theirs
            results = kernels(given)
            if not results:
                call = kernels.current_callable
                calls.append(lambda: call(kept.copy()))
            return results

        first._boxed_call = True  # type: ignore[attr-defined]  # it takes a list
        return first

    compile_fx: Any = compiler.compile_fx  # it is declared to take and give less than it does
    known = all(node.target.namespace in _OWN for node in function.graph.nodes if isinstance(node.target, OpOverload))
    options = {**_OPTIONS, **(_UNCHECKED if known else {})}
    with torch.no_grad():
        whole = compile_fx(function, list(tensors), kernels_of, options)

    def call() -> None:
        if calls:
            calls[0]()
        else:
            whole(*tensors)

    return call


def not_compiled(step: str, error: Exception) -> InvalidOption:
    """What is said where ``--step`` asks for kernels that cannot be made."""
    cause = str(error).strip().splitlines()[0]
    return InvalidOption(
        f"step = {step!r}: torch.compile fails ({cause}); it needs a C++ compiler on a CPU, Triton on CUDA, and "
        "operations that it knows. --step eager does without"
    )


def many_kernels() -> AbstractContextManager[None]:
    """Lets several models in one process have kernels beside each other; by itself, torch gives up after eight."""
    limits: Any = torch._dynamo.config
    patched: AbstractContextManager[None] = limits.patch(recompile_limit=256, accumulated_recompile_limit=4096)
    return patched
