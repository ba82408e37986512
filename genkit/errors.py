"""Everything that a user can cause, each with the exit status that the command line gives it.

A message is one or two lines and names the value, the limit and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GenkitError(Exception):
    """Base of every error that genkit raises on purpose.

    ``status`` is the exit status of the command that met it: 2, the request was wrong; 1, the request was fine, it
    ran, and the answer is no.
    """

    status = 2


class UnknownName(GenkitError):
    """A component, model, plugin or option that nothing installed provides."""


class InvalidOption(GenkitError):
    """An option of a recipe or a command whose value is of the wrong type or out of range."""


class InvalidComponent(GenkitError):
    """A plugin's component broke the contract of its interface (a wrong shape, a missing name).

    Args:
        message: what is wrong and how it is done right.
        culprit: what broke it, where that is known: a function or class, an entry of the registry, or the kind of
            component, such as ``"loss"``, of which a recipe has one. The command line names its plugin and its place.
    """

    def __init__(self, message: str, culprit: object = None) -> None:
        super().__init__(message)
        self.culprit = culprit


class NoDensity(GenkitError, NotImplementedError):
    """A likelihood was asked of a distribution that has none."""


class DataUnavailable(GenkitError):
    """A dataset that could not be found, fetched or trusted."""


class InvalidRun(GenkitError):
    """A run directory that is missing, damaged, occupied or made by another model."""


class InvalidBundle(GenkitError):
    """A path that is not a bundle, so that there is nothing to verify or to run."""


class RuntimeMissing(GenkitError):
    """A runtime whose library is not installed. The message ends with the line that installs it."""


class Unsupported(GenkitError):
    """A graph that a runtime cannot hold, such as one with an operator that it lacks. The message says what."""

    status = 1


class Diverged(GenkitError):
    """A training loss or a weight that is no longer finite."""

    status = 1


class ProcessLost(GenkitError):
    """One of several processes that trained together has ended, and the others with it."""

    status = 1


class SaidElsewhere(GenkitError):
    """What another process of the same run has met and has told the user; this one ends in silence.

    Args:
        status: the exit status of the other's error.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    def __str__(self) -> str:
        return "another process of this run says what is wrong"


class ExportRefused(GenkitError):
    """A graph that could not be written, or that failed its proof; nothing was published."""

    status = 1


class VerificationFailed(GenkitError):
    """A bundle whose files or numbers are not what its manifest promises."""

    status = 1


class PluginWarning(UserWarning):
    """A plugin, or something that one was given, that could not be used; everything else goes on working."""


def plain(text: str, most: int = 600) -> str:
    """``text`` from somebody else's file, fit for a message: one printable line, with a gap where it is very long."""
    ends = text if len(text) <= 2 * most else text[:most] + text[-most:]
    line = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in ends)
    return line if len(line) <= most else f"{line[: most // 2]}…{line[1 - most // 2 :]}"


def unknown(kind: str, value: str, choices: Iterable[str], label: str = "Installed") -> UnknownName:
    """The error for ``value``, which is no ``kind``, with the nearest match and every choice under ``label``."""
    names = sorted(choices)
    close = difflib.get_close_matches(value[:100], names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return UnknownName(f"no {kind} named {plain(repr(value), 100)}{hint} {label}: {', '.join(names) or 'none'}")


def error_of(name: str, message: str) -> GenkitError:
    """The error of that class: what another process raised."""
    kinds: list[type[GenkitError]] = GenkitError.__subclasses__()
    return next((kind for kind in kinds if kind.__name__ == name), GenkitError)(message)
