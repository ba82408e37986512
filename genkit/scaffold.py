"""Writes the package of a new plugin from templates: complete, installable, and passing its own tests."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Literal, get_args

from genkit.errors import InvalidOption, unknown
from genkit.files import directory_written_atomically
from genkit.hookspecs import API_VERSION
from genkit.plugins import load_plugins

PluginKind = Literal["model", "component", "dataset", "exporter", "runtime", "tracker"]

_SUFFIX = ".template"


@dataclass(frozen=True)
class _Example:
    """What a kind of plugin is called, where its code is, and how one tries it."""

    summary: str
    module: str
    command: str


_EXAMPLES: dict[str, _Example] = {
    "model": _Example("A model of rings, with a decoder and a dataset of its own", "model", "train --model {name}"),
    "component": _Example(
        "A decoder and a prior",
        "components",
        "train --model mnist_vae --set decoder={name} --set prior={name}",
    ),
    "dataset": _Example("Pictures of rings", "data", "train --model mnist_vae --set dataset={name}"),
    "exporter": _Example("An exporter", "exporter", "export RUN --format {name}"),
    "runtime": _Example("A runtime", "runtime", "verify BUNDLE --runtime {name}"),
    "tracker": _Example("A tracker", "tracker", "train --model mnist_vae --tracker {name}"),
}


@dataclass(frozen=True)
class Scaffold:
    """A plugin that was written: where, and what one types next."""

    path: Path
    plugin: str
    commands: tuple[str, ...]


def new_plugin(written: str, kind: str, parent: Path) -> Scaffold:
    """Writes the package of a plugin into a new folder of ``parent``, whole or not at all.

    Args:
        written: its name; ``foo``, ``genkit-foo`` and ``genkit_foo`` are the plugin ``foo`` in the package
            ``genkit_foo`` of the distribution ``genkit-foo``. The folder is called as it is written.
        kind: of its example, one of ``PluginKind``.
        parent: an existing folder.

    Raises:
        InvalidOption: for a name that is not one, or is taken, and a folder that has something in it.
        UnknownName: for another kind.
    """
    if kind not in _EXAMPLES:
        raise unknown("kind of plugin", kind, get_args(PluginKind), "Kinds")
    name, target = _checked_name(written), parent / written
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InvalidOption(f"{target} exists and is not an empty folder; choose another name, or remove it")
    example = _EXAMPLES[kind]
    command = f"genkit {example.command.format(name=name)}"
    values = {
        "name": name,
        "package": f"genkit_{name}",
        "distribution": f"genkit-{name.replace('_', '-')}",
        "stem": "".join(part.capitalize() for part in name.split("_")),
        "summary": example.summary,
        "api": ".".join(map(str, API_VERSION)),
        "module": example.module,
        "try_it": command,
    }
    templates = files("genkit") / "templates"
    with directory_written_atomically(target, replace=True) as folder:
        for part in ("common", kind):
            _render(templates / part, folder, values)
    return Scaffold(target, name, (f"pip install -e '{written}[dev]'", f"pytest {written}", command))


def _checked_name(written: str) -> str:
    """The plugin's name, of which everything else is made."""
    name = re.sub(r"[-.]+", "_", written.lower()).removeprefix("genkit_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise InvalidOption(
            f"{written!r} is no name of a plugin: begin with a letter, go on with letters, digits, '-' or '_', and "
            "take no word of Python's own, e.g. genkit-waves"
        )
    taken = load_plugins().plugins.get(name)
    if taken is not None:
        raise InvalidOption(
            f"the plugin {name!r} is installed already, by {taken.distribution} {taken.version}; choose another name"
        )
    owners = packages_distributions().get(f"genkit_{name}")
    if owners:
        raise InvalidOption(f"the package genkit_{name} is installed already, by {owners[0]}; choose another name")
    return name


def _render(templates: Traversable, folder: Path, values: dict[str, str]) -> None:
    """Writes a folder of templates; the folder ``package`` becomes that of the plugin."""
    folder.mkdir(exist_ok=True)
    for template in templates.iterdir():
        if template.is_dir():
            name = values["package"] if template.name == "package" else template.name
            _render(template, folder / name, values)
        elif template.name.endswith(_SUFFIX):
            content = Template(template.read_text(encoding="utf-8")).substitute(values)
            (folder / template.name.removesuffix(_SUFFIX)).write_text(content, encoding="utf-8")
