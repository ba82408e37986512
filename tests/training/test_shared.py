"""Sums in shared memory, by threads that stand for processes."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from threading import Event

import pytest
import torch
from torch import Tensor

from genkit.errors import InvalidComponent
from genkit.training.shared import AT_ONCE, SharedSum

Members = Callable[[int], list[SharedSum]]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep messages apart")


@pytest.fixture
def members() -> Iterator[Members]:
    """Makes some, each with a connection to every other."""
    made: list[SharedSum] = []

    def of_size(size: int) -> list[SharedSum]:
        peers: list[list[socket.socket]] = [[] for _ in range(size)]
        for ranks in combinations(range(size), 2):
            for rank, end in zip(ranks, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET), strict=True):
                end.settimeout(60)
                peers[rank].append(end)
        memory = torch.empty(2 * size * AT_ONCE)
        these = [SharedSum(memory, rank, peers[rank]) for rank in range(size)]
        made.extend(these)
        return these

    yield of_size
    for member in made:
        member.close()


def together(*calls: Callable[[], None]) -> list[BaseException | None]:
    """What each of the calls raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.exception() for future in [pool.submit(call) for call in calls]]


@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("count", [5, AT_ONCE, 2 * AT_ONCE + 1])
def test_all_have_the_bits_of_the_sum_in_the_order_of_the_ranks(members: Members, size: int, count: int) -> None:
    torch.manual_seed(0)
    values = [torch.randn(count) for _ in range(size)]
    expected = values[0].clone()
    for value in values[1:]:
        expected += value
    assert together(*(lambda m=m, v=v: m(v) for m, v in zip(members(size), values, strict=True))) == [None] * size
    for value in values:
        assert torch.equal(value, expected)


def test_nobody_writes_where_another_still_reads(members: Members) -> None:
    """One of two is held up after a meeting until the other has written what it will bring to the next."""
    slow, quick = members(2)
    written = Event()
    meet_of_the_slow, meet_of_the_quick = slow.meet, quick.meet
    came: list[str] = []

    def held_up(count: int) -> None:
        meet_of_the_slow(count)
        came.append("slow")
        if came.count("slow") == 1:
            assert written.wait(60)

    def seen(count: int) -> None:
        came.append("quick")
        if came.count("quick") == 2:
            written.set()
        meet_of_the_quick(count)

    slow.meet, quick.meet = held_up, seen  # type: ignore[method-assign,assignment]
    ones = torch.ones(2 * AT_ONCE)
    growing = torch.arange(2.0 * AT_ONCE)
    assert together(lambda: slow(ones), lambda: quick(growing)) == [None, None]
    assert torch.equal(ones, torch.arange(2.0 * AT_ONCE) + 1)
    assert torch.equal(growing, ones)


def test_different_numbers_of_values_and_processes_that_have_ended_are_errors(members: Members) -> None:
    one, other = members(2)
    values: list[Tensor] = [torch.zeros(1000), torch.zeros(2000)]
    errors = together(lambda: one(values[0]), lambda: other(values[1]))
    assert [type(error) for error in errors] == [InvalidComponent] * 2
    for error, numbers in zip(errors, ("1,000 and 2,000", "2,000 and 1,000"), strict=True):
        assert f"have {numbers} numbers in its gradients and buffers" in str(error)

    one, other = members(2)
    other.close()
    with pytest.raises(ConnectionError):
        one(values[0])

    one, other = members(2)

    def ends() -> None:
        assert other.peers[0].recv(1), "the other waits now"
        other.close()

    errors = together(lambda: one(values[0]), ends)
    assert [type(error) for error in errors] == [ConnectionError, type(None)]
