"""The conformance kit, tried: each check finds the fault that it is there for, and says where and what to do."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import genkit
from genkit.testing import conformance
from genkit.testing.checks import Checks, PluginChecks
from genkit.testing.models import ModelChecks
from genkit.testing.others import DatasetChecks, ExporterChecks, RuntimeChecks, TrackerChecks
from genkit.testing.subjects import Composed, Subject, Suite, installed

FAULTY = """
import os
import torch
from torch import nn
from torch.distributions import Independent, Normal
from torch.utils.data import TensorDataset
import genkit
from genkit_mnist_vae.components import MLPDecoder, MLPEncoder, SquaredErrorKL, StandardNormal
from genkit_onnx.exporter import OnnxExporter
from genkit_onnx.runtime import OnnxRuntime

class LosesTheBatch(MLPDecoder):
    "Averages it."
    def forward(self, z, condition=None):
        return (super().forward(z)[0].mean(0, keepdim=True),)

class Couples(MLPDecoder):
    "Normalises over the batch."
    def forward(self, z, condition=None):
        return super().forward(z / (1 + z.abs().amax(0)))

class DrawsNoise(MLPDecoder):
    "Dropout for ever."
    def forward(self, z, condition=None):
        return super().forward(nn.functional.dropout(z, 0.5, training=True))

class Branches(MLPDecoder):
    "Decides in Python."
    def forward(self, z, condition=None):
        return super().forward(z if z.sum() > 0 else z + 1)

class Stays(MLPDecoder):
    "Has a constant that stays where it was made."
    def __init__(self, spec):
        super().__init__(spec, hidden=8)
        self.shift = torch.zeros(spec.latent_shape)
    def forward(self, z, condition=None):
        return super().forward(z + self.shift)

class Scalar(MLPDecoder):
    "Forgets Independent."
    def likelihood(self, x):
        return Normal(x, 1.0)

class Beyond(MLPDecoder):
    "Leaves the value range."
    def likelihood(self, x):
        return super().likelihood(3 * x)

class Constant(MLPDecoder):
    "Does not look at z."
    def forward(self, z, condition=None):
        return super().forward(torch.zeros_like(z))

class Seeds(MLPDecoder):
    "Seeds everybody."
    def __init__(self, spec):
        torch.manual_seed(0)
        super().__init__(spec, hidden=8)

class Dead(MLPDecoder):
    "Has a parameter that never moves."
    def __init__(self, spec):
        super().__init__(spec, hidden=8)
        self.gain = nn.Parameter(torch.ones(()))
    def forward(self, z, condition=None):
        return super().forward(z + 0 * self.gain)

class Raises(MLPDecoder):
    "Works until it is trained."
    calls = 0
    def forward(self, z, condition=None):
        self.calls += self.training
        if self.calls > 3:
            raise RuntimeError("the moon is in the wrong house")
        return super().forward(z)

class Picky(MLPDecoder):
    "Looks at one label alone."
    def forward(self, z, condition=None):
        (x,) = super().forward(z)
        return (x if condition is None else x * (condition == 1)[:, None, None, None],)

class Undocumented(genkit.Decoder):
    outputs = ("x",)

class Untyped(MLPDecoder):
    "Says no type."
    def __init__(self, spec, *, hidden=8):
        super().__init__(spec, hidden=hidden)

class Double(MLPEncoder):
    "In float64."
    def forward(self, x, condition=None):
        return tuple(p.double() for p in super().forward(x))

class Idle(StandardNormal):
    "Has a parameter that nothing uses."
    def __init__(self, spec):
        super().__init__(spec)
        self.mean = nn.Parameter(torch.zeros(spec.latent_shape))

class Fresh(StandardNormal):
    "Draws from the system."
    def forward(self, condition=None, posterior=None):
        class Elsewhere(Independent):
            def rsample(self, shape=()):
                noise = torch.tensor([b / 128 - 1 for b in os.urandom(self.event_shape.numel() * shape.numel())])
                return noise.view(*shape, *self.event_shape)
        return Elsewhere(Normal(self.loc, self.scale), 1)

class Otherwise(genkit.Prior):
    "Exports another distribution than it draws from."
    def __init__(self, spec):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(spec.latent_shape))
    def forward(self, condition=None, posterior=None):
        return Independent(Normal(self.mean, torch.ones_like(self.mean)), 1)
    def noise(self):
        return {"noise": Independent(Normal(torch.zeros(self.mean.shape), torch.ones(self.mean.shape)), 1)}
    def transport(self, noise, condition=None, posterior=None):
        return 2 * noise + self.mean

class Chance(SquaredErrorKL):
    "Asks the system for chances."
    def forward(self, step):
        terms = super().forward(step)
        return genkit.Terms(terms.objective * (1 + os.urandom(1)[0] / 255), **terms.terms)

class Remembers(SquaredErrorKL):
    "Counts steps where no checkpoint sees it."
    steps = 0
    def forward(self, step):
        self.steps += self.training
        terms = super().forward(step)
        return genkit.Terms(terms.objective * self.steps, **terms.terms)

class Vague(SquaredErrorKL):
    "Has a term that is not finite after the first step."
    def forward(self, step):
        terms = super().forward(step)
        return genkit.Terms(terms.objective, vague=terms.objective * (float("nan") if not self.training else 1.0))

def outside(*, scale: float = 3.0) -> genkit.Data:
    "Floats beyond any range."
    x = scale * torch.rand(20, 1, 8, 8)
    return genkit.Data(TensorDataset(x), TensorDataset(x), (1, 8, 8))

def misshapen() -> genkit.Data:
    "Says another shape than it has."
    x = torch.rand(20, 1, 8, 8)
    return genkit.Data(TensorDataset(x), TensorDataset(x), (8, 8))

def mislabelled() -> genkit.Data:
    "Has a label too many."
    x, y = torch.rand(20, 1, 8, 8), torch.arange(20) % 3
    return genkit.Data(TensorDataset(x, y), TensorDataset(x, y), (1, 8, 8), classes=2)

class Gap(torch.utils.data.Dataset):
    def __len__(self):
        return 20
    def __getitem__(self, index):
        if index == 19:
            raise IndexError("there is no nineteenth")
        return torch.rand(1, 8, 8)

def gap() -> genkit.Data:
    "Lacks its last item."
    return genkit.Data(Gap(), Gap(), (1, 8, 8))

def shuffled() -> genkit.Data:
    "Comes in another order each time."
    x = torch.tensor(list(os.urandom(20 * 64)), dtype=torch.uint8).view(20, 1, 8, 8)
    return genkit.Data(TensorDataset(x), TensorDataset(x), (1, 8, 8))

class Careless(OnnxExporter):
    "Publishes before it is proven."
    def export(self, graphs, destination, **options):
        destination.mkdir()
        return super().export(graphs, destination / "inner", **options)

class Blind(OnnxExporter):
    "Verifies nothing."
    def export(self, graphs, destination, **options):
        report = super().export(graphs, destination, **options)
        genkit.seal(destination, genkit.Bundle.open(destination).manifest.model_copy(update={"format": "blind"}))
        return report
    def verify(self, bundle, runtimes):
        return genkit.Report((genkit.Check("", "trust", True, "it looked fine"),))

class Half(OnnxRuntime):
    "Computes in float16 and does not say so."
    name = "half"
    def load(self, path):
        run = super().load(path)
        return lambda inputs: {name: y.astype("float16").astype("float32") for name, y in run(inputs).items()}

class Nameless(OnnxRuntime):
    "Goes by another name."

class Trips:
    "Falls over the first epoch."
    @genkit.hookimpl
    def genkit_epoch_ended(self, metrics):
        raise KeyError("accuracy")

class Meddles:
    "Improves the metrics."
    @genkit.hookimpl
    def genkit_run_ended(self, run):
        file = run.path / "metrics.jsonl"
        file.write_text(file.read_text().replace('"kl"', '"KL"'))

@genkit.hookimpl
def genkit_register(registry):
    for kind, classes in {
        "encoder": [Double],
        "decoder": [LosesTheBatch, Couples, DrawsNoise, Branches, Stays, Scalar, Beyond, Constant, Seeds, Dead, Raises,
                    Undocumented, Untyped, Picky],
        "prior": [Idle, Fresh, Otherwise],
        "loss": [Chance, Remembers, Vague],
        "dataset": [outside, misshapen, mislabelled, gap, shuffled],
        "exporter": [Careless, Blind],
        "runtime": [Half, Nameless],
        "tracker": [Trips, Meddles],
    }.items():
        for each in classes:
            getattr(registry, kind)(each.__name__.lower(), each)
    registry.model(
        genkit.Recipe(
            "secret", dataset=genkit.Choice("outside"), encoder=genkit.Choice("mlp"), decoder=genkit.Choice("mlp"),
            prior=genkit.Choice("standard_normal"), loss=genkit.Choice("squared_error_kl"), latent_shape=(4,),
        )
    )
"""

EVERY = (PluginChecks, ModelChecks, DatasetChecks, ExporterChecks, RuntimeChecks, TrackerChecks)

FAULTS = {
    "test_it_is_documented": [
        ("model-secret", "it has no description", 'description="..."'),
        ("decoder-undocumented", "Undocumented has no docstring", "the formula, the shapes"),
    ],
    "test_its_observations_are_in_the_value_range": [
        ("model-secret", "its values go from", "Return uint8"),
    ],
    "test_it_draws_what_it_is_asked_for_where_it_takes_a_label": [
        ("decoder-picky", "the labels 0 and 2 give the same samples", "Use `condition`"),
    ],
    "test_its_options_are_typed": [
        ("decoder-untyped", "the option 'hidden' of the decoder 'untyped' has no type", "hidden: int = 8"),
    ],
    "test_its_shapes_and_dtypes_are_those_of_the_spec": [
        ("decoder-losesthebatch", "its output 'x' has shape [1, 1, 8, 8]", "give a tensor whose first dimension is 6"),
        ("decoder-scalar", "gave Normal of batch [3, 2, 1, 8, 8]", "wrap it: Independent("),
        ("encoder-double", "its output 'mean' is torch.float64", "Return float32"),
    ],
    "test_rows_do_not_depend_on_one_another_or_on_chance": [
        ("decoder-couples", "depends on the others in the batch", "Compute each row by itself"),
        ("decoder-drawsnoise", "another one when it is asked again", "must not draw random numbers"),
    ],
    "test_each_turn_has_gradients_for_all_of_its_parameters_and_for_no_others": [
        ("prior-idle", "'model.prior.mean' gets no gradient", "use it in forward()"),
    ],
    "test_it_computes_on_whatever_device_it_is_moved_to": [
        ("decoder-stays", "does not move with the module", "register_buffer()"),
    ],
    "test_it_trains": [
        ("decoder-raises", "RuntimeError: the moon is in the wrong house", "Mend what the traceback shows"),
    ],
    "test_training_moves_every_parameter": [
        ("decoder-dead", "'model.decoder.gain' is the same after training", "Its gradient is zero"),
    ],
    "test_the_seed_decides_the_run": [
        ("loss-chance", "the same seed gave other weights", "which genkit seeds"),
        ("decoder-seeds", "is the same with another seed", "Take that away"),
    ],
    "test_a_run_that_was_stopped_and_resumed_is_the_run_that_was_not": [
        ("loss-remembers", "interrupted and resumed ends with other values", "register_buffer"),
    ],
    "test_its_metrics_and_pictures_are_there": [
        ("loss-vague", "the term 'vague' is None after epoch 1", "not finite"),
    ],
    "test_its_samples_follow_the_seed_and_stay_in_range": [
        ("decoder-beyond", "scaled to [0, 1], go from", "sigmoid or a tanh"),
        ("decoder-constant", "samples with two seeds are the same", "does not depend on z"),
        ("prior-fresh", "two samples with one seed differ", "torch's own generator"),
    ],
    "test_it_is_evaluated_and_what_cannot_be_measured_says_why": [
        ("loss-chance", "its terms on the test set are other ones", "or ask a clock"),
    ],
    "test_its_bundle_is_proven_and_draws_what_the_model_draws": [
        ("decoder-branches", "not exported", "an `if` on the values of a tensor"),
    ],
    "test_a_learned_prior_is_exported_as_it_draws": [
        ("prior-otherwise", "distributed otherwise than what forward() draws", "with the noise of noise()"),
    ],
    "test_its_observations_are_as_it_says": [
        ("dataset-outside", "the values of the training set go from 0", "value_range=None"),
        ("dataset-misshapen", "has the shape [1, 8, 8], where event_shape = [8, 8]", "Data(event_shape=...)"),
        ("dataset-mislabelled", "torch.int64 from 0 to 2, where classes = 2", "from 0 to classes - 1"),
    ],
    "test_a_whole_epoch_can_be_read": [
        ("dataset-gap", "IndexError: there is no nineteenth", "Every position from 0 to len() - 1"),
    ],
    "test_the_seed_decides_its_observations": [
        ("dataset-shuffled", "made again with the same seed", "a torch.Generator"),
    ],
    "test_it_publishes_nothing_that_is_random": [
        ("exporter-careless", "it published something although it refused", "raise ExportRefused"),
    ],
    "test_it_publishes_a_bundle_that_is_verified_until_it_is_changed": [
        ("exporter-blind", "says yes to a bundle whose encoder.onnx was changed", "bundle.check_files()"),
    ],
    "test_it_gives_the_numbers_of_the_module": [
        ("runtime-half", "encoder: half: mean: rms error", "switch off reduced precision"),
    ],
    "test_it_says_what_it_is": [
        ("runtime-nameless", "it calls itself 'onnxruntime'", "register it under its name"),
    ],
    "test_it_follows_a_run_that_is_stopped_and_resumed_and_changes_nothing": [
        ("tracker-trips", "genkit_epoch_ended failed and is switched off: KeyError", "run.metrics()"),
        ("tracker-meddles", "a run that it follows comes out otherwise", "Only look"),
    ],
}

UNTRIED = {
    "test_importing_it_changes_nothing_for_others": "below",
    "test_it_loads_without_a_warning": "below",
}


def checks(*classes: type[Checks]) -> set[str]:
    return {name for each in classes for name in dir(each) if name.startswith("test_")}


@pytest.fixture
def faulty(install: Callable[[str, str], None]) -> Suite:
    install("faulty", FAULTY)
    return Suite.of("faulty", {"decoder-picky": ["dataset.classes=3"]}, ())


def complaint(suite: Suite, check: str, subject: Subject, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a check says of a subject; it has to say something."""
    owner = next(each for each in EVERY if check in vars(each))
    tested = type("TestConformance", (owner,), {"suite": suite})
    offered = {
        "model": Composed(subject, folder / "model"),
        "reference": Composed(Subject(installed().registry.get("model", "mnist_vae")), folder / "reference"),
        "tmp_path": folder,
        "monkeypatch": monkeypatch,
        "size": 2,
    }
    method = getattr(tested(), check)
    arguments = {name: offered.get(name, subject) for name in inspect.signature(method).parameters}
    with pytest.raises((pytest.fail.Exception, AssertionError)) as caught:
        method(**arguments)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore:plugin 'faulty'.*'untyped':genkit.PluginWarning")
@pytest.mark.parametrize(
    ("check", "subject", "problem", "remedy"),
    [
        pytest.param(check, *fault, id=f"{check.removeprefix('test_')}-{fault[0]}")
        for check, faults in FAULTS.items()
        for fault in faults
    ],
)
def test_the_fault_is_found_and_the_message_says_where_and_what_to_do(
    check: str, subject: str, problem: str, remedy: str, faulty: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = next(s for s in (*faulty.datasets, *faulty.entries) if str(s) == subject)
    said = complaint(faulty, check, chosen, tmp_path, monkeypatch)
    kind, name = subject.split("-")
    owner = "dataset 'outside'" if check == "test_its_observations_are_in_the_value_range" else f"{kind} {name!r}"
    assert said.startswith(f"plugin 'faulty', {owner}")
    assert problem in said
    assert remedy in said


def test_every_check_has_a_fault_that_it_finds() -> None:
    assert checks(*EVERY) == FAULTS.keys() | UNTRIED.keys()


@pytest.fixture
def undone() -> Iterator[None]:
    """What a plugin changes in this process, put back."""
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    validation: Any = torch.distributions.Distribution._validate_args
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    torch.set_default_dtype(dtype)
    torch.set_float32_matmul_precision(precision)
    torch.distributions.Distribution.set_default_validate_args(validation)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import torch; torch.manual_seed(0)", "the random state of torch"),
        ("import random; random.seed(0)", "the random state of Python"),
        ("import torch; torch.set_default_dtype(torch.float64)", "torch.get_default_dtype()"),
        ("import torch; torch.set_float32_matmul_precision('high')", "torch.get_float32_matmul_precision()"),
        ("import logging; logging.basicConfig()", "the handlers or the level of the root logger"),
        (
            "import torch.distributions as d; d.Distribution.set_default_validate_args(False)",
            "the argument checks",
        ),
    ],
)
def test_a_plugin_that_changes_the_process_is_found(
    code: str, what: str, install: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = "import genkit\n@genkit.hookimpl\ndef genkit_register(registry):\n    pass\n"
    install("meddling", f"{code}\n{hook}")
    with pytest.raises(pytest.fail.Exception) as caught:
        conformance("meddling")().test_importing_it_changes_nothing_for_others("meddling")  # type: ignore[attr-defined]
    expected = f"plugin 'meddling': importing the plugin's module and registering changes {re.escape(what)}"
    assert re.match(expected, str(caught.value))
    assert "Move the call into the function" in str(caught.value)


def test_a_plugin_that_does_not_load_is_found(install: Callable[[str, str], None]) -> None:
    install("misspelt", "import genkit\n@genkit.hookimpl\ndef genkit_registr(registry):\n    pass\n")
    with pytest.raises(pytest.fail.Exception, match=r"plugin 'misspelt': .*did you mean 'genkit_register'"):
        conformance("misspelt")().test_it_loads_without_a_warning("misspelt")  # type: ignore[attr-defined]


def test_names_that_are_not_there_are_refused_with_the_nearest() -> None:
    with pytest.raises(genkit.UnknownName, match="did you mean 'mnist_vae'"):
        conformance("mnist_va")
    with pytest.raises(genkit.UnknownName, match="did you mean 'decoder-mlp'"):
        conformance("mnist_vae", skip=["decoder-mpl"])


def test_settings_change_the_recipe_of_one_registration() -> None:
    settings = {"decoder-generator_mlp": ["latent_shape=[2]", "dataset.shape=[3, 4, 4]"]}
    suite = Suite.of("adversarial", settings, ())
    recipes = {str(subject): subject.recipe for subject in suite.trained}
    assert recipes["decoder-generator_mlp"].latent_shape == (2,)
    assert recipes["decoder-generator_mlp"].dataset.options["shape"] == [3, 4, 4]
    assert all(recipe.dataset.use == "mnist" for name, recipe in recipes.items() if name.startswith("model-"))


def test_what_a_plugin_does_not_register_is_not_asked() -> None:
    assert checks(conformance("tensorboard")) == checks(PluginChecks, TrackerChecks)
    assert checks(conformance("runtimes")) == checks(PluginChecks, RuntimeChecks)
