"""Where in the code of a plugin something is, as a message names it: ``file:line``."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from types import FrameType


def defined(thing: object) -> str:
    """Of a function, a method or a class, or of the class of anything else; empty where there is no source."""
    code = getattr(thing, "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno}"
    kind = thing if isinstance(thing, type) else type(thing)
    try:
        return f"{inspect.getfile(kind)}:{inspect.getsourcelines(kind)[1]}"
    except (OSError, TypeError):
        return ""


def home(thing: object) -> str:
    """The module in which a function, a method or a class is defined, or the class of anything else."""
    return str(getattr(thing, "__module__", ""))


def called() -> str:
    """Of the call that came into the module that asks, from outside of it."""
    frame = sys._getframe(1).f_back  # its own frame in a local would hold itself, and the locals of all its callers
    inside = _module(sys._getframe(1))
    while frame is not None and _module(frame) == inside:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""


def innermost(error: BaseException, wanted: Callable[[str], bool]) -> tuple[str, str] | None:
    """The module, and the place, of the deepest frame of an error, or of its cause, whose module is ``wanted``."""
    found = None
    for frame, line in _frames(error):
        if wanted(_module(frame)):
            function = frame.f_code.co_name
            within = "" if function == "<module>" else f" in {function}"
            found = _module(frame), f"{frame.f_code.co_filename}:{line}{within}"
    if found is None and isinstance(error, SyntaxError) and error.filename:
        return "", f"{error.filename}:{error.lineno}"
    return found or (innermost(error.__cause__, wanted) if error.__cause__ else None)


def raised_in(error: BaseException) -> str:
    """The module whose code raised it."""
    return next((_module(frame) for frame, _ in reversed(_frames(error))), "")


def global_of(error: BaseException, module: str, name: str) -> object:
    """What ``name`` was in a module whose import failed with this error; None where it was not reached."""
    spaces = (frame.f_globals for frame, _ in _frames(error) if _module(frame) == module)
    return next((space[name] for space in spaces if name in space), None)


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    return list(traceback.walk_tb(error.__traceback__))


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
