"""What every model can do, whoever registered it, and so every component that one is made of."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)

from genkit import inference, pictures, session
from genkit.assemble import Composition, assemble
from genkit.bundle import Bundle
from genkit.data import length
from genkit.errors import ExportRefused, GenkitError, InvalidOption
from genkit.graphs import latent_graphs
from genkit.inference import asking
from genkit.interfaces import Batch, Decoder, Encoder, Loss, unvalidated
from genkit.latent import LatentModel, draw
from genkit.loading import load_bundle
from genkit.random import seeded
from genkit.task import Graph, Turn
from genkit.testing.checks import Checks
from genkit.testing.subjects import EPOCHS, Composed, blaming, differing, fail, require, timeless, weights

SIZES = (1, 2, 7)
"""Batches that no module may mistake for another dimension."""


class ModelChecks(Checks):
    """From shapes to proven exports, in the order in which they are best mended."""

    def test_its_observations_are_in_the_value_range(self, model: Composed) -> None:
        spec, x = model.whole.spec, model.batch(8).x
        place = model.part("dataset")
        require(
            x.shape == (8, *spec.event_shape),
            place,
            f"a batch of 8 has the shape {list(x.shape)}, where event_shape = {list(spec.event_shape)}",
            "Return observations of the event_shape that the dataset's `Data` says.",
        )
        if spec.value_range is not None:
            low, high = spec.value_range
            require(
                low <= x.min() and x.max() <= high,
                place,
                f"its values go from {x.min():g} to {x.max():g}, where value_range = [{low:g}, {high:g}]",
                "Return uint8, which is scaled for you, or floats of the recipe's value_range; "
                "value_range=None is for data without one.",
            )

    @pytest.mark.parametrize("size", SIZES)
    def test_its_shapes_and_dtypes_are_those_of_the_spec(self, model: Composed, size: int) -> None:
        whole, spec = model.whole, model.whole.spec
        batch = model.batch(size)
        with asking(whole, 0):
            posterior = None
            if whole.encoder is not None:
                place = model.part("encoder")
                with blaming(place, f"a batch of {size}", "forward(x, condition) takes (B, *event_shape)."):
                    _require_dtypes(place, whole.encoder, whole.encoder(*batch))
                    posterior = whole.posterior(*batch)
            with blaming(model.part("prior"), "the prior", "forward(condition, posterior) returns a distribution."):
                prior = whole.prior_given(batch.condition)
            place = model.part("decoder")
            z = draw(prior if posterior is None else posterior, 3, size)
            with blaming(place, f"a batch of {3 * size}", "forward(z, condition) takes (B, *latent_shape)."):
                _require_dtypes(place, whole.decoder, whole.decode(z, batch.condition))
            with blaming(
                place, "likelihood(*params) with leading dimensions (3, B)", "Give it any leading dimensions."
            ):
                mean = whole.likelihood(z, batch.condition).mean
            require(
                mean.shape == (3, size, *spec.event_shape) and mean.is_floating_point(),
                place,
                f"likelihood(...).mean is {mean.dtype} of shape {list(mean.shape)}",
                f"Pictures and exports are this mean: make it floats of shape {[3, size, *spec.event_shape]}.",
            )

    def test_rows_do_not_depend_on_one_another_or_on_chance(self, model: Composed) -> None:
        whole, batch = model.whole, model.batch(4)
        with asking(whole, 0):
            z = draw(whole.prior_given(batch.condition), 1, 4)[0]
        parts: list[tuple[str, nn.Module | None, Tensor]] = [
            ("encoder", whole.encoder, batch.x),
            ("decoder", whole.decoder, z),
        ]
        for kind, part, value in parts:
            if part is None:
                continue
            with asking(whole, 1):
                together, again = part(value, batch.condition), part(value, batch.condition)
                alone = part(value[:1], None if batch.condition is None else batch.condition[:1])
            for name, one, other, single in zip(part.outputs, together, again, alone, strict=True):  # type: ignore[arg-type]  # a tuple of names
                require(
                    torch.equal(one, other),
                    model.part(kind),
                    f"its output {name!r} is another one when it is asked again, in evaluation mode",
                    "forward() must not draw random numbers: noise belongs into the distribution that it parametrises.",
                )
                require(
                    torch.allclose(one[:1], single, rtol=1e-3, atol=1e-4),
                    model.part(kind),
                    f"its output {name!r} for an observation depends on the others in the batch, in evaluation mode",
                    "Compute each row by itself: nothing like `x - x.mean()` or `softmax(x, 0)` over the batch; "
                    "batch norm has to follow model.eval().",
                )

    def test_each_turn_has_gradients_for_all_of_its_parameters_and_for_no_others(self, model: Composed) -> None:
        module, batch, place = model.fresh.module, model.batch(8), model.part("loss")
        turns = model.fresh.turns()
        trained = {id(p) for turn in turns for p in turn.parameters}
        for name, parameter in module.named_parameters():
            require(
                not parameter.requires_grad or id(parameter) in trained,
                _owner(model, name),
                f"the parameter {name!r} is in no turn, so nothing trains it",
                "Name it in a Turn of the loss, make it a buffer, or set requires_grad=False.",
            )
        for turn in turns:
            module.zero_grad()
            with unvalidated(), seeded(0), blaming(place, f"the turn {turn.name!r}", "See the traceback."):
                terms = turn(batch)
            for term, value in {"objective": terms.objective, **terms.terms}.items():
                require(
                    value.shape in ((8,), ()) and value.isfinite().all(),
                    place,
                    f"the term {term!r} of a batch of 8 has the shape {list(value.shape)}"
                    + ("" if value.isfinite().all() else ", and values that are not finite"),
                    "Give one finite number an observation, (B,), or a scalar for what concerns the whole batch.",
                )
            with blaming(place, f"the backward pass of the turn {turn.name!r}", _NO_GRADIENT):
                terms.total.backward(inputs=list(turn.parameters))
            _require_gradients(model, module, turn)
        module.zero_grad()

    def test_it_computes_on_whatever_device_it_is_moved_to(self, model: Composed) -> None:
        with _elsewhere(model.fresh.module, model.batch(4)) as (whole, loss, moved):
            if whole.encoder is not None:
                with _staying(model.part("encoder")):
                    draw(whole.posterior(*moved), 1, 4)
            with _staying(model.part("prior")):
                z = draw(whole.prior_given(moved.condition), 1, 4)
            with _staying(model.part("decoder")):
                whole.likelihood(z, moved.condition).mean.sum()
            with _staying(model.part("loss")):
                for turn in loss.turns(whole):
                    turn(moved)

    def test_it_trains(self, model: Composed) -> None:
        assert [row["epoch"] for row in model.run.metrics()] == list(range(1, EPOCHS + 1))

    def test_training_moves_every_parameter(self, model: Composed) -> None:
        before, after = weights(model.run, "0"), weights(model.run)
        for name, _ in model.loaded.task.module.named_parameters():
            require(
                not torch.equal(before[name], after[name]),
                _owner(model, name),
                f"the parameter {name!r} is the same after training as before",
                "Its gradient is zero. Let the loss depend on it, or drop it; look for a detach(), a clamp() or a ReLU "
                "that is never on.",
            )

    def test_the_seed_decides_the_run(self, model: Composed, tmp_path: Path) -> None:
        run = model.run
        changed = differing(weights(model.train(tmp_path / "again")), weights(run))
        require(
            not changed,
            model.place,
            f"the same seed gave other weights the second time: {', '.join(changed[:4])}",
            "Draw from torch's, numpy's or Python's own generators, which genkit seeds, and from nothing that a clock "
            "or the process decides; keep no state outside of the module.",
        )
        drawn = []
        for seed in (0, 1):
            with seeded(seed), unvalidated():
                task = assemble(model.recipe, model.plugins.registry)
                for turn in task.turns():
                    turn(model.batch(4))
                drawn.append(torch.rand(8))
        require(
            not torch.equal(*drawn),
            model.place,
            "what is drawn after it was built and run once is the same with another seed",
            "Something in it seeds the random state of everybody. Take that away; genkit seeds every run.",
        )

    def test_a_run_that_was_stopped_and_resumed_is_the_run_that_was_not(self, model: Composed, tmp_path: Path) -> None:
        run = model.run
        stopped = model.train(tmp_path / "run", stop=True)
        assert [checkpoint.position.epoch for checkpoint in stopped.checkpoints()][-1] == 1
        with blaming(model.place, "resuming", "What was saved has to be loadable into a model that is built anew."):
            resumed = model.train(tmp_path / "run")
        changed = differing(weights(resumed), weights(run))
        if timeless(resumed) != timeless(run):
            changed += ["the metrics"]
        require(
            not changed,
            model.place,
            f"a run that was interrupted and resumed ends with other values: {', '.join(changed[:4])}",
            "Something that training changes is not in the state_dict. Make it a parameter or a buffer "
            "(register_buffer), not a plain attribute.",
        )

    def test_its_metrics_and_pictures_are_there(self, model: Composed) -> None:
        for row in model.run.metrics():
            assert row["train"].keys() == row["test"].keys()
            for name, value in (*row["train"].items(), *row["test"].items()):
                require(
                    isinstance(value, float),
                    model.part("loss"),
                    f"the term {name!r} is {value!r} after epoch {row['epoch']}",
                    "It is not finite. Look for a log of 0 or an exp of something large.",
                )
        drawn = {path.parent.name for path in model.run.path.glob("*/epoch_*.png")}
        assert drawn == ({"samples"} if model.whole.encoder is None else {"samples", "reconstructions"})

    def test_its_samples_follow_the_seed_and_stay_in_range(self, model: Composed) -> None:
        whole, spec = model.loaded.model, model.loaded.model.spec
        with blaming(model.place, "sampling", "Samples are likelihood(*forward(z)).mean, for z of the prior."):
            x = inference.sample(whole, 6, seed=3)
            again, other = inference.sample(whole, 6, seed=3), inference.sample(whole, 6, seed=4)
        require(
            x.shape == (6, *spec.event_shape) and x.isfinite().all(),
            model.part("decoder"),
            f"six samples have the shape {list(x.shape)}" + ("" if x.isfinite().all() else ", and are not finite"),
            f"The mean of the likelihood has to be finite, of shape (6, *{list(spec.event_shape)}).",
        )
        if spec.value_range is not None:
            require(
                x.min() >= 0 and x.max() <= 1,
                model.part("decoder"),
                f"its samples, scaled to [0, 1], go from {x.min():g} to {x.max():g}",
                "End the network with a sigmoid or a tanh that is scaled to spec.value_range.",
            )
        require(
            torch.equal(x, again),
            model.part("prior"),
            "two samples with one seed differ",
            "Draw from torch's own generator, and from nothing else.",
        )
        require(
            not torch.equal(x, other),
            model.part("decoder"),
            "samples with two seeds are the same",
            "The output does not depend on z, or the prior always draws the same: look for a dead ReLU, or a seed.",
        )
        assert pictures.samples(whole, 6).width > 0

    def test_it_draws_what_it_is_asked_for_where_it_takes_a_label(self, model: Composed) -> None:
        whole, data = model.on_cpu.model, model.on_cpu.task.data
        graphs = [graph for graph in latent_graphs(whole, data) if graph.name in ("prior", "decoder")]
        if any(isinstance(graph, Graph) and "condition" in graph.inputs for graph in graphs):
            last = whole.spec.classes - 1
            one, other = (inference.sample(whole, 4, condition=label) for label in (0, last))
            require(
                not torch.equal(one, other),
                model.part("decoder"),
                f"the labels 0 and {last} give the same samples",
                "Use `condition` so that every label counts, e.g. by an nn.Embedding(spec.classes, ...).",
            )
        else:
            with pytest.raises(InvalidOption, match="label"):
                inference.sample(whole, 4, condition=0)

    def test_it_is_evaluated_and_what_cannot_be_measured_says_why(self, model: Composed) -> None:
        loaded = model.loaded
        with blaming(
            model.place, "evaluating", "A distribution without a density raises genkit.NoDensity in log_prob."
        ):
            result = session.evaluate(loaded, samples=2, seed=0)
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert result["observations"] == length(loaded.task.data.test)
        require(
            result["terms"] == pytest.approx(session.evaluate(loaded, samples=0, seed=0)["terms"]),
            model.part("loss"),
            "its terms on the test set are other ones when they are measured again with the same seed",
            "In evaluation mode a loss may draw from torch's generator, but must not count, remember or ask a clock.",
        )
        for key in ("log_likelihood", "reconstruction_error", "active_units"):
            measured = result[key]
            require(
                measured["value"] is not None or measured["reason"],
                model.place,
                f"{key} has no value and no reason",
                "Raise genkit.NoDensity with a message where a distribution has no density.",
            )

    def test_its_bundle_is_proven_and_draws_what_the_model_draws(self, model: Composed, tmp_path: Path) -> None:
        on_cpu, whole = model.on_cpu, model.on_cpu.model
        try:
            report = session.export(on_cpu, model.plugins, tmp_path / "bundle", format_="onnx", opset=18, seed=0)
        except ExportRefused as error:
            fail(model.place, str(error), _UNTRACEABLE)
        assert report.ok
        manifest = Bundle.open(tmp_path / "bundle").manifest
        present = {graph.name for graph in manifest.graphs}
        absent = {graph.name: graph.reason for graph in manifest.absent}
        assert {"encoder", "decoder"} <= present | absent.keys()
        for name, reason in absent.items():
            require(
                len(reason) > 10,
                model.place,
                f"it offers no graph {name!r}, for the reason {reason!r}",
                "Say in NoGraph what stands in the way; those who deploy the model will read it.",
            )
        loaded = load_bundle(tmp_path / "bundle")
        if "prior" in absent:
            with pytest.raises(GenkitError, match="sample from the run"):
                loaded.sample(6)
            return
        labelled = any(value.name == "condition" for graph in manifest.graphs for value in graph.inputs)
        for condition in (0, whole.spec.classes - 1) if labelled else (None,):
            drawn = torch.from_numpy(loaded.sample(600, seed=0, condition=condition))
            _require_alike(model, drawn, inference.sample(whole, 600, seed=0, condition=condition))

    def test_a_learned_prior_is_exported_as_it_draws(self, model: Composed) -> None:
        whole = model.on_cpu.model
        graphs = {graph.name: graph for graph in latent_graphs(whole, model.on_cpu.task.data)}
        assert "prior" in graphs or not any(True for _ in whole.prior.parameters())
        graph = graphs.get("prior")
        if not isinstance(graph, Graph):
            return
        n, generator = 4000, torch.Generator().manual_seed(0)
        with asking(whole, 0):
            values = {name: value.draw(n, generator) for name, value in graph.inputs.items()}
            if "condition" in values:
                values["condition"] = torch.full((n,), whole.spec.classes - 1)
            (z,), (again,) = graph.module(*values.values()), graph.module(*values.values())
            expected = draw(whole.prior_given(values.get("condition")), 1, n)[0]
        require(torch.equal(z, again), model.part("prior"), "transport() is random", "Draw in noise() alone.")
        _require_alike(model, z, expected)


_NO_GRADIENT = "Its objective has to be differentiable by the turn's parameters: look for a detach() or a no_grad()."
_UNTRACEABLE = (
    "What is exported is forward(): tensors in, tensors out, without numpy, .item(), or an `if` on the values of a "
    "tensor; a shape is taken from the spec, and only the batch may vary."
)


def _require_dtypes(place: str, part: Encoder | Decoder, params: Sequence[Tensor]) -> None:
    for name, value in zip(part.outputs, params, strict=False):  # their number is for the core to say
        require(
            value.dtype in (torch.float32, torch.int64),
            place,
            f"its output {name!r} is {value.dtype}",
            "Return float32, or int64 for codes: make constants with the dtype of what comes in.",
        )


def _require_gradients(model: Composed, module: nn.Module, turn: Turn) -> None:
    own = {id(p) for p in turn.parameters}
    for name, parameter in module.named_parameters():
        if id(parameter) not in own:
            assert parameter.grad is None, (turn.name, name)
            continue
        require(
            parameter.grad is not None,
            _owner(model, name),
            f"the parameter {name!r} gets no gradient from the turn {turn.name!r}",
            "Let the loss depend on it: use it in forward(), and look for a detach(), a no_grad() or a .data.",
        )
        assert parameter.grad is not None
        require(
            parameter.grad.isfinite().all(),
            _owner(model, name),
            f"the gradient of {name!r} is not finite",
            "Look for a sqrt, a log or a norm at 0.",
        )


def _owner(model: Composed, parameter: str) -> str:
    """How messages call the component that has a parameter: ``model.decoder.net.weight`` is the decoder's."""
    first, second, *_ = parameter.split(".")
    return model.part("loss" if first == "loss" else second)


def _require_alike(model: Composed, one: Tensor, other: Tensor) -> None:
    """Two sets of draws whose means and deviations agree as far as their numbers allow."""
    n, spread = len(one), (one.var(0) + other.var(0)).sqrt()
    varying = spread > 1e-3
    require(
        one.shape == other.shape
        and ((one.mean(0) - other.mean(0)).abs() <= 6 * spread / n**0.5 + 1e-4).all()
        and (one.std(0) / other.std(0)).log().abs()[varying].median() < 0.2,
        model.part("prior"),
        "what is drawn from its exported graph is distributed otherwise than what forward() draws",
        "transport(*noise) with the noise of noise() has to give the same distribution as forward().",
    )


@contextmanager
def _staying(place: str) -> Iterator[None]:
    """Blames whoever meets a tensor that was left behind on the CPU."""
    try:
        with unvalidated():
            yield
    except (DataDependentOutputException, DynamicOutputShapeException):
        pass  # it looks at values, of which there are none here
    except (FakeTensorDeviceMismatchError, AssertionError) as error:
        if isinstance(error, AssertionError) and "FakeTensor" not in str(error):
            raise  # somebody else's
        raise AssertionError(
            f"{place}: it uses a tensor that does not move with the module, {error}\nRegister constants with "
            "register_buffer(), and make new tensors with `device=` of what comes in (x.new_zeros(...))."
        ) from error


@contextmanager
def _elsewhere(module: nn.Module, batch: Batch) -> Iterator[tuple[LatentModel, Loss, Batch]]:
    """All three as they would be on a GPU, whether there is one or not: tensors that have a device, and no values."""
    assert isinstance(module, Composition)
    moved, mode = copy.deepcopy(module), FakeTensorMode()

    def on(value: Tensor) -> Tensor:
        fake: Tensor = mode.from_tensor(value.detach().cpu())
        with mode:
            return fake.to("cuda")

    for part in moved.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(on(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on(buffer)
    there = Batch(on(batch.x), None if batch.condition is None else on(batch.condition))
    moved.eval()
    with mode:
        yield moved.model, moved.loss, there
