"""Optimisers by name, and how the learning rate moves over a run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam

from genkit.errors import InvalidOption, unknown
from genkit.recipe import TrainingOptions
from genkit.task import Turn

OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, Optimizer) and value not in (Optimizer, LBFGS, SparseAdam)
}
"""By name in lower case, every optimiser of ``torch.optim`` that takes dense gradients and one evaluation a step."""


def optimizer_for(turn: Turn, options: TrainingOptions, *, recorded: bool = False) -> Optimizer:
    """The optimiser of a turn: the training options, with the turn's own overrides over them.

    Args:
        recorded: whether its step has to be one that can be recorded.

    Raises:
        UnknownName: for an optimiser or a keyword that torch does not have.
        InvalidOption: for a value that the optimiser refuses, or one that cannot be recorded where it has to be.
    """
    keywords: dict[str, Any] = {**options.optimizer_options, **turn.optimizer}
    name = str(keywords.pop("optimizer", options.optimizer))
    keywords.setdefault("lr", keywords.pop("learning_rate", options.learning_rate))
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    known = inspect.signature(OPTIMIZERS[name]).parameters
    for keyword in keywords:
        if keyword not in known:
            raise unknown(f"option of the optimizer {name!r}", keyword, list(known)[1:], "Options")
    if "fused" in known and "foreach" not in keywords:
        keywords.setdefault("fused", all(p.is_floating_point() for p in turn.parameters))
    if recorded and turn.parameters[0].is_cuda:  # elsewhere, an optimiser that looks at its state is found as it does
        if "capturable" in known:
            keywords["capturable"] = True
        elif not keywords.get("fused"):
            raise InvalidOption(
                f"the optimizer {name!r} cannot be recorded in a CUDA graph; use --step eager or compiled"
            )
    try:
        return OPTIMIZERS[name](_groups(turn.parameters, options.sharded), **keywords)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidOption(f"the optimizer {name!r} of the turn {turn.name!r} refuses its options: {error}") from None


def _groups(parameters: Sequence[nn.Parameter], sharded: bool) -> list[dict[str, Any]]:
    """Parameters in groups that one kernel can take together: sharded ones apart from whole ones."""
    if not sharded:
        return [{"params": list(parameters)}]
    from torch.distributed.tensor import DTensor

    apart = [[p for p in parameters if isinstance(p, DTensor) is kind] for kind in (False, True)]
    return [{"params": group} for group in apart if group]


def learning_rate_factor(options: TrainingOptions, step: int, steps: int) -> float:
    """What the learning rate is multiplied with in step ``step`` (from 0) of ``steps``."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(1, steps - options.warmup_steps)
    match options.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
