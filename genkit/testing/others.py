"""What datasets, exporters, runtimes and trackers are asked."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genkit import session
from genkit.assemble import build_dataset
from genkit.bundle import Bundle, Exporter, Runtime
from genkit.data import length, take
from genkit.errors import ExportRefused, PluginWarning, RuntimeMissing
from genkit.random import seeded
from genkit.task import Data, Graph, Input
from genkit.testing.checks import Checks, loaded
from genkit.testing.subjects import (
    Composed,
    Subject,
    blaming,
    differing,
    installed,
    place_of,
    require,
    timeless,
    weights,
)
from genkit.training.batches import batches_of
from genkit.verification import verify

_OBSERVATIONS = 16


class DatasetChecks(Checks):
    """Shapes, types, ranges, labels, and that the seed decides."""

    def test_its_observations_are_as_it_says(self, dataset: Subject) -> None:
        place, data = place_of(dataset.entry), data_of(dataset)
        for part, chosen in (("training", data.train), ("test", data.test)):
            with blaming(place, f"reading the {part} set", "Items are x, (x,) or (x, label), by position."):
                x, labels = take(chosen, range(min(_OBSERVATIONS, length(chosen))))
            require(
                x.shape[1:] == tuple(data.event_shape),
                place,
                f"an observation of the {part} set has the shape {list(x.shape[1:])}, where event_shape = "
                f"{list(data.event_shape)}",
                "Let Data(event_shape=...) say the shape of one observation, without the batch.",
            )
            require(
                x.dtype == torch.uint8 or x.is_floating_point(),
                place,
                f"the observations of the {part} set are {x.dtype}",
                "Return uint8, which is scaled to the recipe's value_range, or floats, which are taken as they are.",
            )
            _require_range(place, dataset, part, x)
            _require_labels(place, data, part, labels)

    def test_a_whole_epoch_can_be_read(self, dataset: Subject) -> None:
        place, data = place_of(dataset.entry), data_of(dataset)
        for part, chosen in (("training", data.train), ("test", data.test)):
            with blaming(place, f"an epoch of the {part} set", "Every position from 0 to len() - 1 has an item."):
                batches = batches_of(data, chosen, 64, dataset.recipe.value_range, 0, torch.device("cpu"), 0)
                with seeded(0):
                    read = sum(len(batches.load(portion.items).x) for portion in batches.epoch(0))
            assert read == length(chosen)

    def test_the_seed_decides_its_observations(self, dataset: Subject) -> None:
        place = place_of(dataset.entry)
        sets = []
        for _ in range(2):
            with seeded(0):
                data = data_of(dataset)
            with seeded(0):
                sets.append([take(chosen, range(min(_OBSERVATIONS, length(chosen)))) for chosen in data[:2]])
        for one, other in zip(*sets, strict=True):
            require(
                torch.equal(one[0], other[0]) and (one[1] is None or torch.equal(one[1], other[1])),
                place,
                "its observations are other ones when it is made again with the same seed",
                "Draw from torch's, numpy's or Python's own generators, which are seeded, or from a torch.Generator "
                "with a `seed` option; sort what a folder lists.",
            )


class _Noisy(nn.Module):
    """What no exporter may publish: a function with another answer each time."""

    def forward(self, z: Tensor) -> tuple[Tensor]:
        return (z + torch.randn_like(z),)


class ExporterChecks(Checks):
    """It publishes what is proven, and nothing else."""

    def test_it_publishes_a_bundle_that_is_verified_until_it_is_changed(
        self, exporter: Subject, reference: Composed, tmp_path: Path
    ) -> None:
        place, target = place_of(exporter.entry), tmp_path / "bundle"
        with blaming(place, "exporting the reference model", "See genkit.Exporter, and genkit.stage and genkit.seal."):
            report = session.export(
                reference.on_cpu, reference.plugins, target, format_=exporter.entry.name, opset=18, seed=0
            )
        assert report.ok
        bundle = Bundle.open(target)
        require(
            {"encoder", "decoder"} == {graph.name for graph in bundle.manifest.graphs},
            place,
            f"of the graphs encoder and decoder, the bundle has {[graph.name for graph in bundle.manifest.graphs]}",
            "Every genkit.Graph becomes one of the manifest's `graphs`, or export() raises ExportRefused.",
        )
        found = verify(target)
        require(
            found.ok,
            place,
            f"`genkit verify` says no to what it published: {'; '.join(map(str, found.failures[:2]))}",
            "Publish what verify() was asked about, and genkit.seal() the folder last.",
        )
        for graph in bundle.manifest.graphs:
            content = bundle.file(graph.file).read_bytes()
            bundle.file(graph.file).write_bytes(content + b" ")
            require(
                not verify(target).ok,
                place,
                f"`genkit verify` says yes to a bundle whose {graph.file} was changed",
                "verify() begins with bundle.check_files().",
            )
            bundle.file(graph.file).write_bytes(content)

    def test_it_publishes_nothing_that_is_random(self, exporter: Subject, tmp_path: Path) -> None:
        place, target = place_of(exporter.entry), tmp_path / "bundle"
        noise = Input((4,), torch.float32, lambda n, generator: torch.randn(n, 4, generator=generator))
        made: Exporter = loaded(exporter)()
        published = None
        try:
            made.export(
                [Graph("noisy", _Noisy().eval(), {"z": noise}, ("x",))], target, about={}, opset=18, runtimes=[]
            )
        except ExportRefused:
            pass
        else:
            published = "a module that draws random numbers"
        require(
            not published and not target.exists(),
            place,
            f"it published {published or 'something although it refused'}",
            "Prove the graph against its module before genkit.stage() ends, and raise ExportRefused where that fails.",
        )


class RuntimeChecks(Checks):
    """It says what it is, and gives PyTorch's numbers."""

    def test_it_says_what_it_is(self, runtime: Subject) -> None:
        place, made = place_of(runtime.entry), made_runtime(runtime)
        for attribute in ("name", "version", "precision"):
            require(
                isinstance(getattr(made, attribute, None), str) and getattr(made, attribute),
                place,
                f"its {attribute} is {getattr(made, attribute, None)!r}",
                "`genkit runtimes` shows the name, the version and what keeps float32 honest: three texts.",
            )
        require(
            made.name == runtime.entry.name,
            place,
            f"it calls itself {made.name!r}",
            "The reports would name another runtime than the one that was asked for: register it under its name.",
        )

    def test_it_gives_the_numbers_of_the_module(self, runtime: Subject, reference: Composed) -> None:
        made, bundle = made_runtime(runtime), reference.bundle
        prover: Exporter = reference.plugins.registry.get("exporter", "onnx").load()()
        for graph in bundle.manifest.graphs:
            report = prover.verify_on(bundle, graph, made)
            require(
                report.ok,
                place_of(runtime.entry),
                "; ".join(map(str, report.failures[:2])),
                "load(path) gives a function from named float32 arrays to named arrays, in the graph's order and with "
                "its shapes; switch off reduced precision and approximations, and say so in `precision`.",
            )


class TrackerChecks(Checks):
    """It follows a run without a trace in what the run computes."""

    def test_it_follows_a_run_that_is_stopped_and_resumed_and_changes_nothing(
        self, tracker: Subject, reference: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place, run = place_of(tracker.entry), reference.run
        loaded(tracker)
        monkeypatch.chdir(tmp_path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", PluginWarning)
            with blaming(place, "a run with it", "Its factory takes no argument: options are environment variables."):
                reference.train(tmp_path / "run", stop=True, trackers=[tracker.entry.name])
                followed = reference.train(tmp_path / "run")
        said = [str(each.message) for each in caught if issubclass(each.category, PluginWarning)]
        said = [message for message in said if tracker.entry.name in message]
        require(
            not said,
            place,
            "; ".join(said),
            "A hook that raises is switched off. It has to bear a run that is resumed, where run.metrics() holds "
            "what is done already.",
        )
        changed = differing(weights(followed), weights(run))
        require(
            not changed and timeless(followed) == timeless(run),
            place,
            "a run that it follows comes out otherwise",
            "Only look: change no weights, no gradients and no files of the run.",
        )


def data_of(dataset: Subject) -> Data:
    """What the dataset's factory returns for its options."""
    with blaming(place_of(dataset.entry), "making it", "Its factory has to return a genkit.Data by its defaults."):
        return build_dataset(dataset.recipe.dataset, installed().registry, None)


def made_runtime(runtime: Subject) -> Runtime:
    """The runtime; a test that is for one whose library is not here is left out, with the reason."""
    with blaming(place_of(runtime.entry), "making it", "Raise genkit.RuntimeMissing where its library is not there."):
        factory: Any = runtime.entry.load()
        try:
            made: Runtime = factory()
        except RuntimeMissing as error:
            pytest.skip(str(error))
    return made


def _require_range(place: str, dataset: Subject, part: str, x: Tensor) -> None:
    bounds = dataset.recipe.value_range
    if x.dtype == torch.uint8:
        return
    require(
        x.isfinite().all(), place, f"the {part} set has values that are not finite", "Leave them out, or replace them."
    )
    if bounds is not None:
        require(
            bounds[0] <= x.min() and x.max() <= bounds[1],
            place,
            f"the values of the {part} set go from {x.min():g} to {x.max():g}, where value_range = {list(bounds)}",
            "Scale them, or return uint8, which is scaled for you. Where they are real-valued, say so in the recipe, "
            f'value_range=None; of a dataset alone: conformance(..., settings={{"{dataset}": ["value_range=null"]}}).',
        )


def _require_labels(place: str, data: Data, part: str, labels: Tensor | None) -> None:
    require(
        not data.classes or labels is not None,
        place,
        f"the {part} set has no labels, where classes = {data.classes}",
        "Return (x, label), or let Data say classes=0.",
    )
    if labels is not None and data.classes:
        require(
            not labels.is_floating_point() and labels.min() >= 0 and labels.max() < data.classes,
            place,
            f"the labels of the {part} set are {labels.dtype} from {labels.min()} to {labels.max()}, where classes = "
            f"{data.classes}",
            "Number them from 0 to classes - 1, as whole numbers.",
        )
