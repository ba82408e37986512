"""Has the reference show the examples of a docstring, which stand between its paragraphs, as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^|(?<=\n\n))(>>> .*?)(?=\n\n|\Z)", re.DOTALL)


class Doctests(griffe.Extension):
    """Fences them."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of one class, function or module."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(r"```python\n\1\n```", obj.docstring.value)
