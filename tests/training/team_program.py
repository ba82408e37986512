"""What two processes that torchrun starts do together; each of them checks it.

The arguments: a folder for runs, and "memory" where the processes can share it, or what they lack for that.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import genkit
from genkit.errors import SaidElsewhere
from genkit.training.loop import Trainer
from genkit.training.team import ALONE, Team, joined

NONE = genkit.Choice("none")
RECIPE = genkit.Recipe("toy", dataset=NONE, decoder=NONE, prior=NONE, loss=NONE, latent_shape=(1,)).with_training(
    epochs=2, batch_size=4, optimizer="sgd", learning_rate=0.1
)


class Counting(nn.Module):
    """A linear map, and a running mean of what it has seen."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(2))

    def terms(self, batch: genkit.Batch) -> genkit.Terms:
        if self.training:
            self.seen.lerp_(batch.x.mean(0), 0.1)
        return genkit.Terms((self.map(batch.x) - batch.x).square().sum(1))


def shares(team: Team) -> None:
    own, count = team.share(torch.arange(7))
    assert (own.tolist(), count) == [([0, 1, 2, 3], 4), ([4, 5, 6], 3)][team.rank]
    own, count = team.share(torch.tensor([9]))
    assert (own.tolist(), count) == [([9], 1), ([9], 0)][team.rank], "one that is lent and does not count"


def averages(team: Team) -> None:
    one, other, unused = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    one.grad = torch.full((2,), 2.0 + team.rank)
    other.grad = torch.ones(2) if team.leads else None
    state = torch.full((3,), float(team.rank))
    team.average([one, other, unused], [state], [0.5, 1.5][team.rank])
    assert one.grad.tolist() == [2.5, 2.5]
    assert other.grad is not None, "the others have one"
    assert other.grad.tolist() == [0.5, 0.5]
    assert unused.grad is None
    assert state.tolist() == [0.75] * 3


def answers(team: Team) -> None:
    assert team.greatest(team.rank + 5) == 6
    assert team.once(lambda: f"said by {team.rank}") == "said by 0"

    def wrong() -> None:
        raise genkit.InvalidRun("no")

    with pytest.raises([genkit.InvalidRun, SaidElsewhere][team.rank]) as caught:
        team.once(wrong)
    assert caught.value.status == 2


def trains(team: Team, folder: Path) -> None:
    """Nine observations: of the last batch, which is one of them, a process gets nothing."""
    x = torch.rand(9, 2, generator=torch.Generator().manual_seed(1))
    ends = []
    for each, name in ((ALONE, f"alone-{team.rank}"), (team, "together")):
        module = Counting()
        turn = genkit.Turn("main", module.terms, list(module.map.parameters()))
        data = genkit.Data(TensorDataset(x), TensorDataset(x), (2,))
        task = genkit.Task(module, lambda turn=turn: [turn], lambda: [], data)
        each.once(lambda name=name: genkit.Run.create(folder / name, RECIPE, {}) and None)
        trainer = Trainer(task, RECIPE.training, torch.device("cpu"), lambda *_, **__: None, each)
        assert trainer.fit(genkit.Run.open(folder / name)) == "finished"
        ends.append(module.state_dict())
    alone, together = ends
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-6, atol=1e-6)
    assert alone["seen"].abs().min() > 0


def refuses_what_cannot_be_sharded(team: Team) -> None:
    layer = nn.Linear(256, 256)
    x = torch.rand(4, 256)

    def terms(batch: genkit.Batch) -> genkit.Terms:
        return genkit.Terms((batch.x @ layer.weight).square().sum(1))

    data = genkit.Data(TensorDataset(x), TensorDataset(x), (256,))
    task = genkit.Task(layer, lambda: [genkit.Turn("main", terms, list(layer.parameters()))], lambda: [], data)
    options = RECIPE.with_training(sharded=True).training
    with pytest.raises(genkit.InvalidOption, match=r"elsewhere than in its own forward.*training\.sharded=false"):
        Trainer(task, options, torch.device("cpu"), lambda *_, **__: None, team)


folder, way = sys.argv[1:]


def refused(*_: object) -> None:
    raise PermissionError(way)


if way == "no memory":
    os.memfd_create = refused  # type: ignore[assignment]
if way == "no memory in one" and os.environ["RANK"] == "1":
    socket.recv_fds = refused  # type: ignore[assignment]
with joined() as here:
    assert here.size == 2
    assert (here.shared_sum is not None) == (way == "memory")
    shares(here)
    averages(here)
    answers(here)
    trains(here, Path(folder))
    refuses_what_cannot_be_sharded(here)
    sys.stdout.write(f"process {here.rank} is content\n")
