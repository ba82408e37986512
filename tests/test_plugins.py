"""Hooks: who is called, and what becomes of one that fails."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from helpers import Genkit

import genkit
from genkit import hookspecs
from genkit.plugins import Plugin


class Tracker:
    """Remembers what it was told, and then raises what it was made with."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.told: list[Any] = []

    @genkit.hookimpl
    def genkit_epoch_ended(self, metrics: dict[str, Any]) -> None:
        self.told.append(metrics["epoch"])
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("the tracker's server is down"), "ConnectionError: the tracker"),
        (SystemExit(0), "SystemExit: 0"),
    ],
)
def test_a_hook_that_raises_is_named_once_and_not_called_again_and_the_others_go_on(
    error: BaseException, said: str
) -> None:
    plugins, bad, good = genkit.Plugins(), Tracker(error), Tracker()
    plugins.observe("good", good)
    plugins.observe("bad", bad)
    with pytest.warns(genkit.PluginWarning, match=f"'genkit:bad'.*test_plugins.py:.*genkit_epoch_ended.*{said}"):
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


def test_a_plugin_that_cannot_be_interrupted_is_named_while_it_is_waited_for(
    install: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    named, said = threading.Event(), []

    def warn(message: str, *_: object) -> None:
        said.append(message)
        if "'dawdles'" in message:  # and no other, which may be slow as well
            named.set()

    monkeypatch.setattr(threading, "named", named, raising=False)
    monkeypatch.setattr(warnings, "warn", warn)
    monkeypatch.setenv("GENKIT_PLUGIN_SECONDS", "0.01")
    install("dawdles", "import threading\nthreading.named.wait()\nimport genkit_nowhere")
    thread = threading.Thread(target=genkit.load_plugins)  # of which only the main one can be interrupted
    thread.start()
    thread.join()
    waiting, failed = (message for message in said if "'dawdles'" in message)
    assert "0.01 s that GENKIT_PLUGIN_SECONDS gives it, and cannot be interrupted here" in waiting
    assert "dawdles.py:3: it could not be imported: ModuleNotFoundError: No module named 'genkit_nowhere'" in failed
    assert "pip install -U dawdles, or leave it out: --disable-plugin dawdles" in failed


def test_the_alarm_clock_is_left_as_it_was(install: Callable[[str, str], None]) -> None:
    install("fine", "import genkit\n@genkit.hookimpl\ndef genkit_register(registry): pass")
    assert genkit.load_plugins().plugins["fine"].state == "loaded"
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_patience_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENKIT_PLUGIN_SECONDS", "soon")
    with pytest.raises(genkit.InvalidOption, match="GENKIT_PLUGIN_SECONDS = soon: it is a number of seconds"):
        genkit.load_plugins()


@pytest.mark.parametrize(
    ("name", "declared", "state", "message"),
    [
        ("present", '"1.0"', "loaded", None),
        ("future", '"1.1"', "failed", "wants version 1.1 .* and this is 1.0; pip install -U genkit-torch"),
        ("past", '"0.9"', "failed", "made for version 0.9 .* and this is 1.0; pip install -U past"),
        ("unclear", "1.0", "failed", 'GENKIT_API = 1.0 is no version; write it as text: GENKIT_API = "1.0"'),
    ],
)
def test_a_plugin_says_which_api_it_needs(
    install: Callable[[str, str], None], name: str, declared: str, state: str, message: str | None
) -> None:
    install(name, f"GENKIT_API = {declared}\nimport genkit\n@genkit.hookimpl\ndef genkit_register(registry): pass")
    with pytest.warns(genkit.PluginWarning, match=message) if message else nullcontext():
        plugins = genkit.load_plugins()
    assert plugins.plugins[name].state == state


def test_one_module_is_not_two_plugins() -> None:
    class Module:
        @genkit.hookimpl
        def genkit_register(self, registry: genkit.Registry) -> None:
            registry.encoder("one", "genkit_nowhere:Encoder")

    plugins, module = genkit.Plugins(), Module()
    plugins.add(module, Plugin("first", "acme", "1"))
    with pytest.warns(
        genkit.PluginWarning, match=r"'second' .*its module is that of plugin 'first' \(acme 1\) already"
    ):
        plugins.add(module, Plugin("second", "fork", "2"))
    assert plugins.registry.names("encoder") == ["one"]


def test_a_bundle_is_sampled_without_the_plugins_that_were_left_out(
    here: Genkit, mnist_run: Path, install: Callable[[str, str], None], tmp_path: Path
) -> None:
    here("export", mnist_run, "--out", tmp_path / "bundle")
    install("noisy", "raise RuntimeError('heard')")
    sample = ["sample", tmp_path / "bundle", "--out", tmp_path / "samples.png"]
    assert here(*sample).stderr.count("RuntimeError: heard") == 1
    assert "noisy" not in here(*sample, "--disable-plugin", "noisy").stderr
