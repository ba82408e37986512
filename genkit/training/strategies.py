"""Which way of executing a step a run takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genkit.errors import InvalidOption
from genkit.recipe import TrainingOptions
from genkit.task import Turn
from genkit.training.batches import Batches
from genkit.training.graph import CUDARecorder, GraphStep
from genkit.training.meter import Meter
from genkit.training.step import CompiledStep, EagerStep
from genkit.training.team import Team
from genkit.training.tracing import Tracer


def step_for(
    module: nn.Module,
    turns: Sequence[Turn],
    batches: Batches,
    options: TrainingOptions,
    device: torch.device,
    meter: Meter,
    team: Team,
    warn: Callable[[str], None],
) -> EagerStep | GraphStep:
    """The strategy that ``options.step`` names, or with ``auto`` the one that suits the device.

    Raises:
        InvalidOption: where it does not go with the device, the optimiser or the number of processes.
    """
    name = options.step
    recorded = name in ("graph", "compiled_graph")
    if recorded and team.size > 1:
        raise InvalidOption(f"step = {name!r}: a graph holds no other process; use --step compiled or eager")
    if options.sharded and name not in ("auto", "eager"):
        raise InvalidOption(f"step = {name!r}: sharded layers are gathered between operations; use --step eager")

    def states() -> list[Tensor]:
        if team.size == 1:
            return []
        saved = module.state_dict().keys()
        return [b for name, b in module.named_buffers() if name in saved and b.is_floating_point()]

    def built(kind: type[EagerStep], recorded: bool) -> EagerStep:
        return kind(turns, batches, options, device, meter, team=team, states=states, recorded=recorded)

    at_once = options.steps_per_replay
    if name == "auto" and device.type == "cuda" and team.size == 1:
        try:
            return GraphStep(built(EagerStep, True), CUDARecorder(), warn, at_once)
        except InvalidOption:  # an optimiser that cannot be recorded; if it is wrong itself, that is said next
            return built(EagerStep, False)
    if recorded and device.type != "cuda":
        return GraphStep(built(EagerStep, True), Tracer(compiled=name == "compiled_graph"), None, at_once)
    step = built(CompiledStep if name.startswith("compiled") else EagerStep, recorded)
    return GraphStep(step, CUDARecorder(), None, at_once) if recorded else step
