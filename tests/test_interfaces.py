"""What the interfaces must be able to say, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
)
from torch.utils.data import TensorDataset

import genkit
from genkit.graphs import describe_prior, latent_graphs
from genkit.inference import log_likelihood

SPEC = genkit.Spec(event_shape=(5,), latent_shape=(2,), value_range=None)


class Gaussian(genkit.Encoder):
    outputs = ("mean", "log_std")

    def __init__(self, spec: genkit.Spec) -> None:
        super().__init__()
        self.net = nn.Linear(5, 4)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.net(x).chunk(2, dim=1)

    def posterior(self, *params: Tensor) -> Distribution:
        return Independent(Normal(params[0], params[1].exp()), 1)


class Linear(genkit.Decoder):
    outputs = ("x",)

    def __init__(self, spec: genkit.Spec) -> None:
        super().__init__()
        self.net = nn.Linear(2, 5)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return (self.net(z),)

    def likelihood(self, *params: Tensor) -> Distribution:
        return Independent(Normal(params[0], 0.5), 1)


class Standard(genkit.Prior):
    def forward(
        self, condition: Tensor | None = None, posterior: Callable[..., Distribution] | None = None
    ) -> Distribution:
        return Independent(Normal(torch.zeros(2), torch.ones(2)), 1)


class MixtureOfPosteriors(genkit.Prior):
    """A prior with parameters that calls the encoder (Tomczak & Welling 2018)."""

    def __init__(self, spec: genkit.Spec) -> None:
        super().__init__()
        self.inputs = nn.Parameter(torch.randn(3, 5))

    def forward(
        self, condition: Tensor | None = None, posterior: Callable[..., Distribution] | None = None
    ) -> Distribution:
        assert posterior is not None
        return MixtureSameFamily(Categorical(logits=torch.zeros(3)), posterior(self.inputs))


class ImportanceWeighted(genkit.Loss):
    """A bound that needs several latent samples an observation."""

    samples = 7

    def forward(self, step: genkit.Pass) -> genkit.Terms:
        assert step.posterior is not None
        log_weights = (
            step.likelihood.log_prob(step.batch.x) + step.prior.log_prob(step.z) - step.posterior.log_prob(step.z)
        )
        return genkit.Terms(math.log(self.samples) - log_weights.logsumexp(0))


def _model(prior: genkit.Prior | None = None) -> genkit.LatentModel:
    return genkit.LatentModel(SPEC, Gaussian(SPEC), Linear(SPEC), prior or Standard())


@pytest.mark.parametrize("samples", [1, 7])
def test_a_pass_has_the_shapes_it_promises(samples: int) -> None:
    step = _model()(genkit.Batch(torch.randn(3, 5)), samples)
    assert step.z.shape == (samples, 3, 2)
    assert step.posterior.batch_shape == (3,)
    assert step.likelihood.batch_shape == (samples, 3)
    assert step.likelihood.event_shape == (5,)
    assert step.prior.batch_shape == ()


def test_a_loss_says_how_many_samples_it_wants_and_its_gradient_reaches_every_parameter() -> None:
    loss, model = ImportanceWeighted(), _model(MixtureOfPosteriors(SPEC))
    (turn,) = loss.turns(model)
    terms = turn(genkit.Batch(torch.randn(4, 5)))
    assert terms.objective.shape == (4,)
    terms.total.backward()
    assert len(turn.parameters) == 5
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in turn.parameters)


class Codes(Gaussian):
    """A discrete posterior, which cannot be differentiated through."""

    def posterior(self, *params: Tensor) -> Distribution:
        return Independent(Bernoulli(logits=params[0]), 1)


def test_a_discrete_posterior_is_sampled_without_gradients() -> None:
    model = genkit.LatentModel(SPEC, Codes(SPEC), Linear(SPEC), Standard())
    z = model(genkit.Batch(torch.randn(3, 5)), 4).z
    assert z.shape == (4, 3, 2)
    assert set(z.unique().tolist()) <= {0.0, 1.0}


class Normalised(Gaussian):
    def __init__(self, spec: genkit.Spec) -> None:
        super().__init__(spec)
        self.net = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4))


def test_asking_a_model_for_its_graphs_does_not_change_it() -> None:
    model = genkit.LatentModel(SPEC, Normalised(SPEC), Linear(SPEC), MixtureOfPosteriors(SPEC))
    x = TensorDataset(torch.randn(8, 5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decoder = latent_graphs(model, genkit.Data(x, x, (5,)))[1]
    assert isinstance(decoder, genkit.Graph)
    assert decoder.inputs["z"].draw(3, torch.Generator()).shape == (3, 2)
    assert describe_prior(model) is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_outputs_that_are_not_what_was_named_are_refused() -> None:
    class Bare(Linear):
        def forward(self, z: Tensor, condition: Tensor | None = None) -> Any:
            return self.net(z)

    class Three(Gaussian):
        def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
            return (*super().forward(x), x)

    with pytest.raises(genkit.InvalidComponent, match=r"Bare.forward returned a Tensor; its outputs = \('x',\)"):
        genkit.LatentModel(SPEC, Gaussian(SPEC), Bare(SPEC), Standard())(genkit.Batch(torch.randn(3, 5)))
    with pytest.raises(genkit.InvalidComponent, match=r"Three.forward returned 3 tensors"):
        genkit.LatentModel(SPEC, Three(SPEC), Linear(SPEC), Standard())(genkit.Batch(torch.randn(3, 5)))


def test_a_divergence_is_exact_where_it_can_be_and_estimated_otherwise() -> None:
    step = _model()(genkit.Batch(torch.randn(3, 5)), 20_000)
    exact = genkit.divergence(step.posterior, step.prior, step.z)
    assert torch.equal(exact, kl_divergence(step.posterior, step.prior))
    standard = Independent(Normal(torch.zeros(1, 2), torch.ones(1, 2)), 1)
    one_component = MixtureSameFamily(Categorical(torch.ones(1)), standard)
    estimate = genkit.divergence(step.posterior, one_component, step.z)
    assert torch.allclose(estimate, exact, atol=0.05)


@pytest.mark.parametrize("samples", [1, 50, 5000])
def test_the_likelihood_estimate_matches_a_model_that_is_known_in_closed_form(samples: int) -> None:
    """With z ~ N(0, I) and x|z ~ N(Wz + b, s^2 I), x ~ N(b, W W' + s^2 I)."""
    model = _model()
    with torch.no_grad():
        weight, bias = model.decoder.net.weight, model.decoder.net.bias
        x = torch.randn(40, 5)
        truth = MultivariateNormal(bias, weight @ weight.T + 0.25 * torch.eye(5)).log_prob(x)
        estimate = torch.stack([log_likelihood(model, genkit.Batch(x), samples) for _ in range(8)])
    bias_of_the_bound, spread = estimate.mean() - truth.mean(), estimate.mean(1).std() / math.sqrt(8)
    assert bias_of_the_bound < 3 * spread
    if samples == 5000:
        assert abs(bias_of_the_bound) < 0.02 + 3 * spread


@pytest.mark.parametrize(
    ("base", "missing"), [(genkit.Encoder, "posterior"), (genkit.Decoder, "likelihood"), (genkit.Prior, "forward")]
)
def test_a_missing_method_fails_at_construction(base: type, missing: str) -> None:
    class Incomplete(base):  # type: ignore[misc]
        outputs = ("x",)

        if missing != "forward":

            def forward(self, *args: Any) -> Any: ...

    with pytest.raises(TypeError, match=missing):
        Incomplete()


def test_a_loss_needs_a_forward_or_turns() -> None:
    class Empty(genkit.Loss):
        pass

    with pytest.raises(TypeError, match=r"Empty must define forward\(step\) or turns\(model\)"):
        Empty()


def test_a_term_cannot_take_the_name_of_the_objective() -> None:
    with pytest.raises(genkit.InvalidComponent, match="'loss'"):
        genkit.Terms(torch.ones(2), loss=torch.ones(2))


def test_a_recipe_survives_yaml_and_settings_replace_or_change_a_component() -> None:
    recipe = genkit.Recipe(
        "r",
        dataset=genkit.Choice("d", size=3),
        encoder=genkit.Choice("conv", width=8),
        decoder=genkit.Choice("conv", width=8),
        prior=genkit.Choice("p"),
        loss=genkit.Choice("l"),
        latent_shape=(4, 2),
        value_range=None,
        training=genkit.TrainingOptions(epochs=3, optimizer_options={"betas": [0.5, 0.9]}),
    )
    assert genkit.Recipe.from_yaml(recipe.to_yaml(), "test") == recipe
    settings = "encoder.width=9 decoder=mlp decoder.hidden=3 prior.scale=1e-3 training.epochs=5 latent_shape=[7]"
    changed = recipe.with_settings(settings.split())
    assert changed.encoder == genkit.Choice("conv", width=9)
    assert changed.decoder == genkit.Choice("mlp", hidden=3)
    assert changed.prior == genkit.Choice("p", scale=0.001)
    assert (changed.training.epochs, changed.latent_shape) == (5, (7,))
    assert recipe.with_settings(["encoder=null"]).encoder is None
