"""Hooks: who is called, and what becomes of one that fails."""

from __future__ import annotations

from typing import Any

import pytest

import genkit
from genkit import hookspecs


class Tracker:
    """Remembers what it was told, and fails on request."""

    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.told: list[Any] = []

    @genkit.hookimpl
    def genkit_epoch_ended(self, metrics: dict[str, Any]) -> None:
        self.told.append(metrics["epoch"])
        if self.fails:
            raise ConnectionError("the tracker's server is down")


def test_a_hook_that_raises_is_named_once_and_not_called_again_and_the_others_go_on() -> None:
    plugins, bad, good = genkit.Plugins(), Tracker(fails=True), Tracker(fails=False)
    plugins.observe("good", good)
    plugins.observe("bad", bad)
    with pytest.warns(genkit.PluginWarning, match="'genkit:bad'.*genkit_epoch_ended.*ConnectionError: the tracker"):
        plugins.notify("genkit_epoch_ended", run=None, metrics={"epoch": 1})
    plugins.notify("genkit_epoch_ended", run=None, metrics={"epoch": 2})
    assert (bad.told, good.told) == ([1], [1, 2])


def test_a_hook_with_an_argument_that_is_not_offered_is_refused_with_the_offer() -> None:
    class Wrong:
        @genkit.hookimpl
        def genkit_epoch_ended(self, metric: dict[str, Any]) -> None:
            pass

    plugins = genkit.Plugins()
    with pytest.warns(
        genkit.PluginWarning, match="genkit:wrong.*genkit_epoch_ended takes 'metric'.*it may take run, metrics"
    ):
        plugins.observe("wrong", Wrong())


def test_every_hook_says_what_it_is_for() -> None:
    hooks = [value for name, value in vars(hookspecs).items() if name.startswith("genkit_")]
    assert len(hooks) >= 8
    assert all(hook.__doc__ and hook.__doc__.rstrip().endswith(".") for hook in hooks)


def test_a_factory_that_cannot_be_loaded_is_named_with_its_plugin() -> None:
    registry = genkit.Registry("acme")
    registry.encoder("lost", "genkit_nowhere:Encoder")
    with pytest.raises(genkit.InvalidComponent, match=r"encoder 'lost' of the plugin 'acme'.*'genkit_nowhere:Encoder'"):
        registry.get("encoder", "lost").load()
    with pytest.raises(TypeError, match="must be callable or 'module:Name'"):
        registry.encoder("no factory", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="--runtime all means something else"):
        registry.runtime("all", "genkit_nowhere:Runtime")
