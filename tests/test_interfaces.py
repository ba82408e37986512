"""What the interfaces must be able to say, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

import genkit
from genkit.inference import log_likelihood


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
