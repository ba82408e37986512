"""Finds the installed plugins, one by one, and calls their hooks so that one bad plugin never takes down the rest."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, entry_points
from types import FrameType
from typing import Any, Literal

import pluggy

from genkit import hookspecs, places
from genkit.errors import GenkitError, InvalidComponent, InvalidOption, PluginWarning, unknown
from genkit.hookspecs import API_VERSION
from genkit.registry import NO_TRACKER, Entry, Registry, option_faults

GROUP = "genkit"
"""The entry-point group of plugins."""
DISABLED, PATIENCE = "GENKIT_DISABLE_PLUGINS", "GENKIT_PLUGIN_SECONDS"
"""Environment variables: plugins to leave unloaded; how long one may take to be imported and to register."""
SECONDS = 60.0
"""What ``PATIENCE`` is unless it is set. It is long, because a plugin may import torch, from a slow disk."""

_IN_BOX = "genkit-torch"
_API = "GENKIT_API"
_HOOKS = {
    name: list(inspect.signature(hook).parameters)
    for name, hook in vars(hookspecs).items()
    if name.startswith("genkit_")
}
"""The hooks, and the arguments that each may take."""


@dataclass
class Plugin:
    """One plugin: where it comes from, what it registered and what went wrong.

    ``name`` is that of its entry point; where two distributions have one of the same name, the second's is followed by
    its distribution. ``module`` is what the entry point names, ``api`` the version of ``API_VERSION`` that it declares,
    and ``without`` the option of the command that does without it.
    """

    name: str
    distribution: str
    version: str
    module: str = ""
    without: str = ""
    api: str = ""
    disabled: bool = False
    failed: bool = False
    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def state(self) -> Literal["loaded", "disabled", "failed"]:
        """Whether it was left unloaded on purpose, or could not be loaded."""
        return "disabled" if self.disabled else "failed" if self.failed else "loaded"

    @property
    def full_name(self) -> str:
        """``NAME of DISTRIBUTION``, which no other plugin has."""
        return full_name(self.name.removesuffix(f" of {self.distribution}"), self.distribution)

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.distribution} {self.version})"

    def warn(self, problem: str, place: str = "", remedy: str = "") -> None:
        """Notes a problem and says it once, as a ``PluginWarning`` of one line.

        Args:
            problem: what is wrong.
            place: where, ``file:line``.
            remedy: what to do, other than to leave it out.
        """
        where = f"{place}: " if place else ""
        remedies = ", or ".join(filter(None, (remedy, self.without and f"leave it out: {self.without}")))
        self.problems.append(f"{where}{problem}{'; ' if remedies else ''}{remedies}")
        warnings.warn(f"{self}{', ' if place else ': '}{self.problems[-1]}", PluginWarning, 2)

    def owns(self, module: str) -> bool:
        """Whether a module is of the package that its entry point names, or one from which it registered something."""
        homes = {self.module.partition(".")[0], *(entry.home for entry in self.entries)} - {""}
        return any(_within(module, home) for home in homes)


def full_name(name: str, distribution: str) -> str:
    """Of a plugin by the name of its entry point, where several distributions may have one of that name."""
    return f"{name} of {distribution}"


class Plugins:
    """The installed plugins and everything they registered."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.plugins: dict[str, Plugin] = {}
        self._manager = pluggy.PluginManager("genkit")
        self._manager.add_hookspecs(hookspecs)

    @property
    def absent(self) -> list[str]:
        """The plugins that are not loaded, whether on purpose or not; what another process need not try."""
        return [plugin.full_name for plugin in self.plugins.values() if plugin.module and plugin.state != "loaded"]

    def add(self, module: object, plugin: Plugin) -> None:
        """Takes a plugin's hooks, and what it registers; what is wrong with it becomes a warning."""
        self.plugins[plugin.name] = plugin
        try:
            staged = self._registered(module, plugin)
        except _Refused as refused:
            plugin.failed = True
            plugin.warn(*refused.args)
        except _SURVIVED as error:
            plugin.failed = True
            plugin.warn(f"it could not register: {_cause(error)}", _place(error, plugin))
        if plugin.failed:
            if self._manager.has_plugin(plugin.name):
                self._manager.unregister(name=plugin.name)
            return
        for entry in staged.entries.values():
            self.registry.add(entry)
        for late, held in staged.refused + self.registry.refused:
            owner = "itself" if held.plugin == plugin.name else str(self.plugins[held.plugin])
            plugin.warn(
                f"{late.kind} {late.name!r} is already registered by {owner}, which keeps the name",
                late.place,
                "give it another name",
            )
        self.registry.refused.clear()
        plugin.entries = [entry for entry in staged.entries.values() if entry in self.registry.entries.values()]
        for entry in plugin.entries:
            for fault in option_faults(entry):
                plugin.warn(fault, places.defined(entry.target))

    def _registered(self, module: object, plugin: Plugin) -> Registry:
        """What a plugin registers, its hooks being taken. One that fails half-way has registered nothing."""
        file = getattr(module, "__file__", "")
        _require_api(getattr(module, _API, None), plugin, file)
        held = self._manager.get_name(module)
        if held:
            raise _Refused(
                f"its module is that of {self.plugins[held]} already",
                file,
                f"pip uninstall {plugin.distribution}",
            )
        marked = ((name, self._manager.parse_hookimpl_opts(module, name)) for name in dir(module))
        hooks = {name: options["specname"] or name for name, options in marked if options}
        if not hooks:
            raise _Refused("it implements no hook", file, "mark its genkit_register with @genkit.hookimpl")
        for name, hook in hooks.items():
            function, offered = getattr(module, name), _HOOKS.get(hook)
            if offered is None:
                plugin.warn(_misspelt(hook), places.defined(function))
                continue
            strange = [argument for argument in inspect.signature(function).parameters if argument not in offered]
            if strange:
                raise _Refused(
                    f"its {hook} takes {', '.join(map(repr, strange))}, which it is not given",
                    places.defined(function),
                    f"it may take {', '.join(offered)}",
                )
        self._manager.register(module, plugin.name)
        staged = Registry(plugin.name)
        for implementation in self._manager.hook.genkit_register.get_hookimpls():
            if implementation.plugin_name == plugin.name:
                _call(implementation, registry=staged)
        return staged

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
        without = f"--tracker {NO_TRACKER}"
        self.add(entry.load()(), Plugin(label, owner.distribution, owner.version, owner.module, without))
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
            except _SURVIVED as error:
                self._manager.unregister(name=implementation.plugin_name)
                plugin = self.plugins[implementation.plugin_name]
                place = _place(error, plugin) or places.defined(implementation.function)
                plugin.warn(f"{hook} failed and is switched off: {_cause(error)}", place)

    def blame(self, error: BaseException) -> tuple[Plugin, str] | None:
        """The plugin, and the place in it, whose fault an error is: of what it raised, or of a contract it broke.

        None where that is nobody's, or where a plugin's own message says what to do.
        """
        found = places.innermost(error, lambda module: self._owner(module) is not None)
        if isinstance(error, InvalidComponent) and error.culprit is not None:
            culprit = error.culprit
            if isinstance(culprit, Entry):
                plugin = self.plugins.get(culprit.plugin)
                place = found[1] if found else _defined(culprit) or culprit.place
            else:
                plugin, place = self._owner(places.home(culprit)), places.defined(culprit)
            return (plugin, place) if plugin else None
        spoken = self._owner(places.raised_in(error)) is not None
        if isinstance(error, GenkitError) and (spoken or not isinstance(error, InvalidComponent)):
            return None
        owner = self._owner(found[0]) if found else None
        return (owner, found[1]) if found and owner else None

    def _owner(self, module: str) -> Plugin | None:
        """The plugin of whose package a module is; of several in one package, the one whose own module it is in."""
        candidates = [plugin for plugin in self.plugins.values() if plugin.owns(module)]
        return max(candidates, key=lambda p: len(p.module) * _within(module, p.module), default=None)


def load_plugins(disabled: Iterable[str] = ()) -> Plugins:
    """Every plugin of the entry-point group ``genkit``, in-box ones first, then by distribution and name.

    Args:
        disabled: plugins to leave unloaded, besides those of the environment variable ``GENKIT_DISABLE_PLUGINS``. Where
            several distributions have a plugin of one name, ``NAME of DISTRIBUTION`` is one of them.

    Raises:
        UnknownName: for a name in ``disabled`` that is not installed.
        InvalidOption: where ``GENKIT_PLUGIN_SECONDS`` is no number.
    """
    plugins, seconds = Plugins(), _patience()
    about = functools.cache(_about)  # it parses a file, and a distribution may have many plugins
    found = sorted({_identity(point, about): point for point in entry_points(group=GROUP)}.items())
    full_names = {full_name(name, distribution) for (_, distribution, name, *_), _ in found}
    names = [point.name for _, point in found]
    for name in disabled:
        if name not in names and name not in full_names:
            raise unknown("plugin", name, names)
    unwanted = {*disabled, *(name.strip() for name in os.environ.get(DISABLED, "").split(","))}
    for (_, distribution, name, version, _value), point in found:
        namesake = plugins.plugins.get(name)
        label = full_name(name, distribution) if namesake else name
        plugin = Plugin(label, distribution, version, point.module, f"--disable-plugin {_quoted(label)}")
        plugin.disabled = not unwanted.isdisjoint({name, plugin.full_name})
        plugins.plugins[plugin.name] = plugin
        if plugin.disabled:
            continue
        if namesake:
            entry_point = f"{name} = {point.value}"
            plugin.warn(f"its name is also that of {namesake}, so it goes by {label!r}", entry_point, "rename one")
        with _patient(plugin, seconds):
            module = _imported(point, plugin)
            if module is not None:
                plugins.add(module, plugin)
    return plugins


class _Refused(Exception):
    """The problem, the place and the remedy of a plugin that is not taken."""


class _TooLong(BaseException):
    """Raised inside a plugin that takes too long; no ``except Exception`` of it stops this one."""


_SURVIVED = (Exception, SystemExit, _TooLong)
"""What a plugin may raise without harm to the others: all but what the user asks for by Ctrl-C."""


def _imported(point: EntryPoint, plugin: Plugin) -> object | None:
    """What an entry point names; None, with a warning, and without a trace in ``sys.modules``, where it cannot be."""
    before = set(sys.modules)
    try:
        module: object = point.load()
    except _SURVIVED as error:
        for name in filter(plugin.owns, sys.modules.keys() - before):  # else half of it would be found again
            del sys.modules[name]
        plugin.failed = True
        try:  # what a newer genkit offers may be why it failed
            declared, file = (places.global_of(error, point.module, name) for name in (_API, "__file__"))
            _require_api(declared, plugin, str(file))
        except _Refused as refused:
            plugin.warn(*refused.args)
        else:
            lacking = isinstance(error, ModuleNotFoundError) and not plugin.owns(error.name or "")
            remedy = f"install what it needs: pip install -U {plugin.distribution}" if lacking else ""
            plugin.warn(f"it could not be imported: {_cause(error)}", _place(error, plugin), remedy)
        return None
    return module


@contextmanager
def _patient(plugin: Plugin, seconds: float) -> Iterator[None]:
    """Raises ``_TooLong`` in what the block runs after so many seconds, again and again; elsewhere, says who is slow.

    Only the main thread can be interrupted, where there is an alarm clock that nobody else has set.
    """
    if not seconds:
        yield
        return
    over = f"it took longer than the {seconds:g} s that {PATIENCE} gives it"
    alarm = getattr(signal, "SIGALRM", None)
    main = threading.current_thread() is threading.main_thread()
    if not main or alarm is None or signal.getsignal(alarm) is not signal.SIG_DFL:
        timer = threading.Timer(seconds, plugin.warn, [f"{over}, and cannot be interrupted here: still waiting"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        return

    def interrupt(_signal: int, frame: FrameType | None) -> None:
        if any(plugin.owns(each.f_globals.get("__name__", "")) for each, _ in traceback.walk_stack(frame)):
            raise _TooLong(over)

    signal.signal(alarm, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # once more, if the plugin catches even this
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(alarm, signal.SIG_DFL)


def _patience() -> float:
    given = os.environ.get(PATIENCE, SECONDS)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < threading.TIMEOUT_MAX:
        raise InvalidOption(f"{PATIENCE} = {given}: it is a number of seconds; 0: as long as it takes")
    return seconds


def _require_api(declared: object, plugin: Plugin, file: str) -> None:
    """Raises ``_Refused`` unless this genkit offers what a plugin declares that it needs."""
    if declared is None:
        return
    present = ".".join(map(str, API_VERSION))
    match = re.fullmatch(r"(\d+)\.(\d+)", declared) if isinstance(declared, str) else None
    if match is None:
        raise _Refused(f"its {_API} = {declared!r} is no version", file, f'write it as text: {_API} = "{present}"')
    plugin.api = match.group()
    wanted = int(match[1]), int(match[2])
    if wanted > API_VERSION:
        raise _Refused(
            f"it wants version {plugin.api} of genkit's plugin API, and this is {present}",
            file,
            f"pip install -U {_IN_BOX}",
        )
    if wanted[0] < API_VERSION[0]:
        raise _Refused(
            f"it was made for version {plugin.api} of genkit's plugin API, and this is {present}",
            file,
            f"pip install -U {plugin.distribution}",
        )


def _about(distribution: Distribution | None) -> tuple[str, str]:
    """Its name and its version."""
    return (distribution.name, distribution.version) if distribution else ("unknown", "?")


def _identity(
    point: EntryPoint, about: Callable[[Distribution | None], tuple[str, str]]
) -> tuple[bool, str, str, str, str]:
    """Sorts in-box plugins first; equal for one installation that is found on two paths."""
    distribution, version = about(point.dist)
    return distribution != _IN_BOX, distribution, point.name, version, point.value


def _call(implementation: pluggy.HookImpl, **arguments: Any) -> None:
    implementation.function(*(arguments[name] for name in implementation.argnames))


def _cause(error: BaseException) -> str:
    if isinstance(error, _TooLong):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _place(error: BaseException, plugin: Plugin) -> str:
    """Of the deepest frame of a plugin's own in the traceback of an error."""
    found = places.innermost(error, plugin.owns)
    return found[1] if found else ""


def _defined(entry: Entry) -> str:
    """Where the factory of an entry is, if it can be loaded."""
    try:
        return places.defined(entry.load())
    except Exception:
        return ""


def _within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def _misspelt(name: str) -> str:
    close = difflib.get_close_matches(name, _HOOKS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"hooks: {', '.join(_HOOKS)}"
    return f"there is no hook named {name!r}; {hint}"


def _quoted(name: str) -> str:
    return f"'{name}'" if " " in name else name
