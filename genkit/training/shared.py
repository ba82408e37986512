"""Sums over processes of one machine that lie in memory which they share, where gloo sends them through the network.

There, 2.6 MB take two processes 3 ms, and threads have to be woken for it; here, 1 ms.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genkit.errors import InvalidComponent

if TYPE_CHECKING:
    from genkit.training.team import Team

AT_ONCE = 2**20
"""Numbers of each process that are shared at a time."""

_MOST = 8
"""Processes. Each of them reads what all have written; on a ring, it would move as much through a network's copies."""

_TO_CONNECT = 60.0
"""Seconds that one process waits for another while connections are made."""


class SharedSum:
    """Sums tensors over all processes in place, in the order of their ranks, so that all have the same bits.

    Parts of tensors go into either half of the memory in turn. Who writes into a half has met the others after they
    wrote the part before, and that they did after they had read what was in this half.

    Args:
        memory: float32, ``2 * size * AT_ONCE`` of them, the same for all processes.
        peers: connections with each of the others, which keep messages apart.
    """

    def __init__(self, memory: Tensor, rank: int, peers: Sequence[socket.socket]) -> None:
        self.halves = memory.view(2, len(peers) + 1, AT_ONCE)
        self.rank, self.peers = rank, peers
        self.half = 0

    def __call__(self, values: Tensor) -> None:
        """``values``: one dimension, float32, on the CPU, and as many in every process. Errors as of ``meet``."""
        for start in range(0, len(values), AT_ONCE):
            part = values[start : start + AT_ONCE]
            slots = self.halves[self.half, :, : len(part)]
            self.half = 1 - self.half
            slots[self.rank] = part
            self.meet(len(values))
            torch.add(slots[0], slots[1], out=part)
            for slot in slots[2:]:
                part += slot

    def meet(self, count: int) -> None:
        """Returns once every process has called it with the same ``count`` of numbers to sum.

        Raises:
            ConnectionError: where another process has ended.
            TimeoutError: where it does not come.
            InvalidComponent: where it has another count.
        """
        own = struct.pack("<q", count)
        for peer in self.peers:
            peer.send(own)
        for peer in self.peers:
            other = peer.recv(len(own))
            if not other:
                raise ConnectionError("connection closed by peer")
            if other != own:
                raise InvalidComponent(
                    f"processes that train one model have {count:,} and {struct.unpack('<q', other)[0]:,} numbers in "
                    "its gradients and buffers; a module may not depend on the process that it is in"
                )

    def close(self) -> None:
        """Gives up the connections."""
        hang_up(self.peers)


def shared_sum(team: Team, patience: float) -> SharedSum | None:
    """A way for the processes of one machine, all of which have to call this; None where it cannot be had.

    Args:
        patience: how many seconds one of them waits for another.
    """
    if sys.platform != "linux" or team.size > _MOST:
        return None
    peers: list[socket.socket] = []
    memory = name = None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with suppress(OSError):
            listener.settimeout(_TO_CONNECT)
            listener.bind("")  # the system finds a name
            listener.listen(team.size)
            name = listener.getsockname()
        names = [name for name in team.gather(name) if name]
        if len(names) == team.size:
            try:
                connect(listener, names, team.rank, peers)
                memory = memory_of(team, peers)
            except OSError:
                hang_up(peers)  # nobody is to wait for this one
    if not all(team.gather(memory is not None)) or memory is None:
        hang_up(peers)
        return None
    for peer in peers:
        peer.settimeout(patience)
    return SharedSum(memory, team.rank, peers)


def connect(listener: socket.socket, names: Sequence[bytes], rank: int, peers: list[socket.socket]) -> None:
    """Adds connections with the processes before this one, in order, and with those after it."""
    for name in names[:rank]:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peers.append(peer)
        peer.settimeout(_TO_CONNECT)
        peer.connect(name)
    for _ in names[rank + 1 :]:
        peers.append(listener.accept()[0])


def memory_of(team: Team, peers: Sequence[socket.socket]) -> Tensor:
    """The memory for the sums, which the process that leads makes and gives to the others."""
    size = 2 * team.size * AT_ONCE * torch.float32.itemsize
    if team.leads:
        file = os.memfd_create("genkit")
        os.ftruncate(file, size)
        for peer in peers:
            socket.send_fds(peer, [b"\0"], [file])
    else:
        _, files, _, _ = socket.recv_fds(peers[0], 1, 1)
        if not files:
            raise ConnectionError("the process that leads has no memory to share")
        file = files[0]
    try:
        return torch.frombuffer(mmap.mmap(file, size), dtype=torch.float32)
    finally:
        os.close(file)


def hang_up(peers: Sequence[socket.socket]) -> None:
    """Ends connections, also for those that processes inherited which this one started."""
    for peer in peers:
        with suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)
        peer.close()
