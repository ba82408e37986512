"""Finds the installed plugins, one by one, and calls their hooks so that one bad plugin never takes down the rest."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from genkit import hookspecs
from genkit.errors import PluginWarning, unknown
from genkit.registry import Entry, Registry

GROUP = "genkit"
"""The entry-point group of plugins."""

_IN_BOX = "genkit-torch"


@dataclass
class Plugin:
    """One plugin: where it comes from, what it registered and what went wrong."""

    name: str
    distribution: str
    version: str
    disabled: bool = False
    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def warn(self, problem: str) -> None:
        """Notes a problem and says it once, as a ``PluginWarning`` of one line."""
        self.problems.append(problem)
        warnings.warn(f"plugin {self.name!r} ({self.distribution} {self.version}): {problem}", PluginWarning, 2)


class Plugins:
    """The installed plugins and everything they registered."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.plugins: dict[str, Plugin] = {}
        self._manager = pluggy.PluginManager("genkit")
        self._manager.add_hookspecs(hookspecs)

    def add(self, module: object, plugin: Plugin) -> None:
        """Takes a plugin's hooks, and what it registers; what is wrong with it becomes a warning."""
        self.plugins[plugin.name] = plugin
        try:
            self._manager.register(module, plugin.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            plugin.warn(_cause(error))
            return
        try:
            staged = Registry(plugin.name)  # a plugin that fails half-way has registered nothing
            for hook in self._manager.get_hookcallers(module) or []:
                if not hook.has_spec():
                    plugin.warn(_misspelt(hook.name))
            if not self._manager.get_hookcallers(module):
                plugin.warn("it implements no hook; mark its genkit_register with @genkit.hookimpl")
            for implementation in self._manager.hook.genkit_register.get_hookimpls():
                if implementation.plugin_name == plugin.name:
                    _call(implementation, registry=staged)
        except (Exception, SystemExit) as error:
            plugin.warn(_cause(error))
            self._manager.unregister(name=plugin.name)
            return
        for entry in staged.entries.values():
            self.registry.add(entry)
        for late, held in staged.refused + self.registry.refused:
            owner = "itself" if held.plugin == plugin.name else f"plugin {held.plugin!r}"
            plugin.warn(f"{late.kind} {late.name!r} is already registered by {owner}, which keeps the name")
        self.registry.refused.clear()
        plugin.entries = [entry for entry in staged.entries.values() if entry in self.registry.entries.values()]

    def observe(self, name: str, observer: object) -> None:
        """Adds lifecycle hooks for the rest of this process, e.g. a progress display."""
        self.add(observer, Plugin(f"genkit:{name}", _IN_BOX, "in this process"))

    @contextmanager
    def tracking(self, name: str) -> Iterator[None]:
        """Adds the hooks of a new tracker of that name while the block runs.

        Raises:
            GenkitError: if there is none of that name, or something that it needs is not installed.
        """
        entry = self.registry.get("tracker", name)
        owner, label = self.plugins[entry.plugin], f"tracker {name}"
        self.add(entry.load()(), Plugin(label, owner.distribution, owner.version))
        try:
            yield
        finally:
            del self.plugins[label]
            if self._manager.has_plugin(label):  # it was not switched off
                self._manager.unregister(name=label)

    def notify(self, hook: str, **arguments: Any) -> None:
        """Calls one lifecycle hook in every plugin. One that raises is reported and not called again."""
        for implementation in list(getattr(self._manager.hook, hook).get_hookimpls()):
            try:
                _call(implementation, **arguments)
            except Exception as error:
                self._manager.unregister(name=implementation.plugin_name)
                self.plugins[implementation.plugin_name].warn(f"{hook} failed and is switched off: {_cause(error)}")


def load_plugins(disabled: Iterable[str] = ()) -> Plugins:
    """Every plugin of the entry-point group ``genkit``, in-box ones first, then by distribution and name.

    Args:
        disabled: plugins to leave unloaded, besides those of the environment variable ``GENKIT_DISABLE_PLUGINS``.

    Raises:
        UnknownName: for a name in ``disabled`` that is not installed.
    """
    plugins = Plugins()
    found = sorted({_identity(point): point for point in entry_points(group=GROUP)}.items())
    names = [point.name for _, point in found]
    for name in disabled:
        if name not in names:
            raise unknown("plugin", name, names)
    unwanted = {*disabled, *(name.strip() for name in os.environ.get("GENKIT_DISABLE_PLUGINS", "").split(","))}
    for (_, distribution, name, version, _value), point in found:
        label = name if name not in plugins.plugins else f"{name} of {distribution}"
        plugin = Plugin(label, distribution, version, disabled=name in unwanted)
        plugins.plugins[label] = plugin
        if plugin.disabled:
            continue
        try:
            module = point.load()
        except (Exception, SystemExit) as error:
            plugin.warn(f"it could not be imported: {_cause(error)}")
        else:
            plugins.add(module, plugin)
    return plugins


def _identity(point: EntryPoint) -> tuple[bool, str, str, str, str]:
    """Sorts in-box plugins first; equal for one installation that is found on two paths."""
    distribution = point.dist.name if point.dist else "unknown"
    version = point.dist.version if point.dist else "?"
    return distribution != _IN_BOX, distribution, point.name, version, point.value


def _call(implementation: pluggy.HookImpl, **arguments: Any) -> None:
    implementation.function(*(arguments[name] for name in implementation.argnames))


def _cause(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _misspelt(name: str) -> str:
    hooks = [hook for hook in vars(hookspecs) if hook.startswith("genkit_")]
    close = difflib.get_close_matches(name, hooks, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"hooks: {', '.join(hooks)}"
    return f"there is no hook named {name!r}; {hint}"
