"""What a damage is. The modules beside this one are lists of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.fuzz.victims import SOURCES, Victim

Apply = Callable[[Victim], object]


@dataclass(frozen=True)
class Damage:
    """One way to damage a bundle; by itself it is always one that has to be noticed.

    Args:
        kind: its name.
        apply: does it, to a copy of one of the ``sources``.
        sources: to which it makes sense.
        sealed: whether the digests are right again afterwards, so that something deeper has to notice it.
        rare: whether it costs a time-out, and so is tried less often.
        random: whether it may happen to be harmless, which an independent judge then has to confirm.
    """

    kind: str
    apply: Apply
    sources: tuple[str, ...]
    sealed: bool
    rare: bool
    random: bool


DAMAGES: dict[str, Damage] = {}


def damage(*sources: str, sealed: bool = False, rare: bool = False, random: bool = False) -> Callable[[Apply], Apply]:
    """Registers a function as a damage to copies of ``sources``, or of all of them."""

    def register(apply: Apply) -> Apply:
        kind = apply.__name__.removeprefix("_").replace("_", " ")
        DAMAGES[kind] = Damage(kind, apply, sources or SOURCES, sealed, rare, random)
        return apply

    return register
