"""What every plugin is asked, whatever it registers."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import pytest

from genkit.recipe import Recipe
from genkit.registry import CONFIGURED, Entry, option_fault, parameters_of
from genkit.testing.footprint import footprint
from genkit.testing.subjects import (
    REFERENCE,
    Composed,
    Subject,
    Suite,
    blaming,
    fail,
    installed,
    place_of,
    require,
)


class Checks:
    """Tests that are given what ``suite`` has for their arguments: one test for each."""

    suite: ClassVar[Suite]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Has pytest make a test of each check and each registration that it is for."""
        subjects: dict[str, list[Any]] = {
            "plugin": list(self.suite.plugins),
            "entry": self.suite.entries,
            "model": self.suite.trained,
            "dataset": self.suite.datasets,
            "exporter": self.suite.of_kind("exporter"),
            "runtime": self.suite.of_kind("runtime"),
            "tracker": self.suite.of_kind("tracker"),
        }
        together = metafunc.config.pluginmanager.hasplugin("xdist")
        for name in subjects.keys() & set(metafunc.fixturenames):
            values = [
                # one process trains a model once
                pytest.param(value, id=str(value), marks=pytest.mark.xdist_group(str(value)) if together else ())
                for value in subjects[name]
            ]
            metafunc.parametrize(name, values, indirect=name == "model", scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Composed:
        """A model, trained when a check first asks for it."""
        return Composed(request.param, tmp_path_factory.mktemp(str(request.param)))

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, tmp_path_factory: pytest.TempPathFactory) -> Composed:
        """The model that exporters, runtimes and trackers are tried with."""
        return Composed(
            Subject(Entry("model", REFERENCE.name, REFERENCE, "genkit.testing")), tmp_path_factory.mktemp("reference")
        )


class PluginChecks(Checks):
    """Loading, what it does to others, and what it says of itself."""

    def test_it_loads_without_a_warning(self, plugin: str) -> None:
        found = installed().plugins[plugin]
        require(
            not found.problems,
            f"plugin {plugin!r}",
            "; ".join(found.problems),
            "Mend it, and look at `genkit plugins`, which has to list what you registered and no problem.",
        )

    def test_importing_it_changes_nothing_for_others(self, plugin: str) -> None:
        place = f"plugin {plugin!r}"
        with blaming(place, "importing it in a new process", "Import it by itself: python -c 'import your_package'"):
            changed = footprint(plugin)
        if changed:
            fail(
                place,
                "; ".join(f"{step} changes {what}" for what, step in changed.items()),
                "These belong to the whole process. Move the call into the function that needs it and undo it there; "
                "for random numbers, use a torch.Generator of your own.",
            )

    def test_it_is_documented(self, entry: Subject) -> None:
        target, place = loaded(entry), place_of(entry.entry)
        if isinstance(target, Recipe):
            require(
                target.description,
                place,
                "it has no description",
                'Give the Recipe one line for `genkit models`: description="...".',
            )
            return
        name = getattr(target, "__qualname__", repr(target))
        require(
            (vars(target).get("__doc__") if inspect.isclass(target) else target.__doc__),
            place,
            f"{name} has no docstring",
            "Say in one what it computes: the formula, the shapes, and each option under `Args:`.",
        )

    def test_its_options_are_typed(self, entry: Subject) -> None:
        kind, name, target = entry.entry.kind, entry.entry.name, loaded(entry)
        if kind in CONFIGURED:
            for option in parameters_of(kind, target).values():
                fault = option_fault(kind, name, option)
                require(not fault, place_of(entry.entry), fault, "The signature is the configuration of a component.")


def loaded(subject: Subject) -> Any:
    """The factory of a registration, or its recipe."""
    with blaming(place_of(subject.entry), "importing it", "Correct the 'module:Name' that it is registered with."):
        return subject.entry.load()
