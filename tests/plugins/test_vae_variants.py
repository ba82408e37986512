"""The losses and priors that make other models of a variational autoencoder, each held against its formula."""

from __future__ import annotations

import itertools
import math
from types import MappingProxyType
from typing import Any

import pytest
import torch
from genkit_vae.bernoulli import LogitBernoulli
from genkit_vae.discrepancy import MaximumMeanDiscrepancy, squared_discrepancy
from genkit_vae.hierarchical import Chain, HierarchicalBernoulliMLP, HierarchicalGaussianMLP, HierarchicalNormal
from genkit_vae.losses import ImportanceWeighted, NegativeELBO
from genkit_vae.mlp import BernoulliMLP, DeterministicMLP, GaussianMLP
from genkit_vae.total_correlation import TotalCorrelation
from genkit_vae.vamp import VampPrior
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Laplace, MultivariateNormal, Normal
from torch.utils.data import TensorDataset

import genkit
from genkit.assemble import resolve
from genkit.inference import log_likelihood

SPEC = genkit.Spec(event_shape=(1, 3, 3), latent_shape=(2,))
SMALL: MappingProxyType[str, Any] = MappingProxyType({"hidden": (8,)})


class StandardNormal(genkit.Prior):
    def forward(self, condition: Tensor | None = None, posterior: Any = None) -> Distribution:
        return standard_normal(2)


def standard_normal(units: int) -> Distribution:
    return Independent(Normal(torch.zeros(units), torch.ones(units)), 1)


def data_of(observations: int) -> genkit.Data:
    images = torch.randint(0, 256, (observations, 1, 3, 3), dtype=torch.uint8)
    return genkit.Data(TensorDataset(images), TensorDataset(images[:2]), (1, 3, 3))


def model_with(prior: genkit.Prior, encoder: genkit.Encoder | None = None) -> genkit.LatentModel:
    return genkit.LatentModel(SPEC, encoder or GaussianMLP(SPEC, **SMALL), BernoulliMLP(SPEC, **SMALL), prior)


def batch_of(rows: int) -> genkit.Batch:
    return genkit.Batch(torch.rand(rows, 1, 3, 3).round())


def factorised(mean: Tensor, std: float | Tensor) -> Distribution:
    return Independent(Normal(mean, std), 1)


def step_with(posterior: Distribution, z: Tensor) -> genkit.Pass:
    """A pass whose likelihood is the same for all, so that only the divergence is of interest."""
    rows = z.shape[1]
    x = torch.zeros(rows, 1)
    return genkit.Pass(genkit.Batch(x), posterior, z, factorised(x, 1.0), standard_normal(z.shape[-1]))


def total_correlation(observations: int, **options: Any) -> TotalCorrelation:
    loss = TotalCorrelation(SPEC, **options)
    loss.prepare(model_with(StandardNormal()), data_of(observations))
    return loss


# the Bernoulli likelihood


def test_the_density_of_pixels_and_its_derivatives_are_torchs_own() -> None:
    logits = torch.linspace(-30, 30, 61, dtype=torch.float64)[:, None].requires_grad_()
    x = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64, requires_grad=True)
    ours, torchs = LogitBernoulli(logits=logits).log_prob(x), Bernoulli(logits=logits, validate_args=False).log_prob(x)
    assert ours.shape == (61, 3)
    assert torch.allclose(ours, torchs, rtol=1e-12, atol=1e-14)
    for one, other in zip(*(torch.autograd.grad(y.sum(), (logits, x)) for y in (ours, torchs)), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)
    assert torch.autograd.gradgradcheck(lambda *at: LogitBernoulli(logits=at[0]).log_prob(at[1]), (logits[::9], x))


def test_the_density_of_pixels_is_finite_for_logits_of_any_size() -> None:
    logits = torch.tensor([1000.0, -1000.0, 0.0], requires_grad=True)
    density = LogitBernoulli(logits=logits).log_prob(torch.tensor([0.0, 1.0, 1.0]))
    assert torch.allclose(density, torch.tensor([-1000.0, -1000.0, -math.log(2)]))
    (gradient,) = torch.autograd.grad(density.sum(), logits)
    assert torch.allclose(gradient, torch.tensor([-1.0, 1.0, 0.5]))


# the total correlation


@pytest.mark.parametrize("sampling", ["stratified", "weighted"])
def test_with_all_weights_one_the_parts_add_up_to_the_sampled_bound(sampling: str) -> None:
    loss = total_correlation(40, alpha=1, beta=1, gamma=1, sampling=sampling)
    step = model_with(StandardNormal())(batch_of(7), samples=3)
    terms = loss(step)
    assert step.posterior is not None
    bound = step.likelihood.log_prob(step.batch.x) + step.prior.log_prob(step.z) - step.posterior.log_prob(step.z)
    assert terms.objective.shape == (7,)
    assert torch.allclose(terms.objective, -bound.mean(0), atol=1e-4)


def test_each_part_has_its_own_weight() -> None:
    step = model_with(StandardNormal())(batch_of(7))
    terms = total_correlation(40, alpha=2, beta=3, gamma=5)(step)
    parts = terms.terms
    expected = (
        parts["reconstruction"]
        + 2 * parts["mutual_information"]
        + 3 * parts["total_correlation"]
        + 5 * parts["dimension_wise_kl"]
    )
    assert torch.allclose(terms.objective, expected)


def test_two_clusters_on_a_diagonal_have_one_bit_of_information_and_one_of_total_correlation() -> None:
    mean = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    parts = total_correlation(2)(step_with(factorised(mean, 0.1), mean.unsqueeze(0))).terms
    bit = torch.full((2,), math.log(2))
    assert torch.allclose(parts["mutual_information"], bit)
    assert torch.allclose(parts["total_correlation"], bit)


def test_a_posterior_that_does_not_look_at_x_has_no_information_and_no_total_correlation() -> None:
    posterior = factorised(torch.full((6, 2), 0.3), 0.7)
    z = posterior.sample((4,))
    parts = total_correlation(1000)(step_with(posterior, z)).terms
    expected = (posterior.log_prob(z) - standard_normal(2).log_prob(z)).mean(0)
    assert torch.allclose(parts["mutual_information"], torch.zeros(6), atol=1e-5)
    assert torch.allclose(parts["total_correlation"], torch.zeros(6), atol=1e-5)
    assert torch.allclose(parts["dimension_wise_kl"], expected, atol=1e-5)


def test_the_stratified_estimate_of_the_aggregate_posterior_is_unbiased() -> None:
    """The mean over every batch of three that holds the first of six observations is the aggregate posterior."""
    means, z = torch.randn(6, 2), torch.randn(2)
    loss, estimates = total_correlation(6), []
    for others in itertools.combinations(range(1, 6), 2):
        posterior = factorised(means[[0, *others]], 0.8)
        at = z.expand(1, 3, 2)
        log_q = posterior.log_prob(at) - loss(step_with(posterior, at)).terms["mutual_information"]
        estimates.append(log_q[0, 0].exp())
    aggregate = factorised(means, 0.8).log_prob(z).exp().mean()
    assert torch.allclose(torch.stack(estimates).mean(), aggregate, rtol=1e-5)


def test_the_weighted_estimate_is_the_papers() -> None:
    means, std, z = torch.randn(3, 2), torch.rand(3, 2) + 0.5, torch.randn(1, 3, 2)
    parts = total_correlation(50, sampling="weighted")(step_with(factorised(means, std), z)).terms
    for i in range(3):
        q = [[Normal(means[j, d], std[j, d]).log_prob(z[0, i, d]).exp() for d in range(2)] for j in range(3)]
        log_joint = (sum(a * b for a, b in q) / (50 * 3)).log()
        log_marginals = sum((sum(row[d] for row in q) / (50 * 3)).log() for d in range(2))
        assert torch.allclose(parts["total_correlation"][i], log_joint - log_marginals, atol=1e-5)


def test_a_batch_of_one_row_has_finite_parts() -> None:
    terms = total_correlation(40)(model_with(StandardNormal())(batch_of(1)))
    assert all(torch.isfinite(value).all() for value in (terms.objective, *terms.terms.values()))


def test_a_posterior_with_dependent_latents_has_no_marginals_and_is_refused() -> None:
    dependent = MultivariateNormal(torch.zeros(3, 2), torch.eye(2))
    with pytest.raises(genkit.InvalidComponent, match=r"'beta_tc' needs a posterior whose latents are independent"):
        total_correlation(40)(step_with(dependent, dependent.sample((1,))))


# the maximum mean discrepancy


def test_the_discrepancy_is_the_unbiased_estimate_with_the_papers_kernel() -> None:
    a, b = torch.randn(5, 3), torch.randn(5, 3) + 1

    def kernel(x: Tensor, y: Tensor) -> float:
        distance = float(((x - y) ** 2).sum())
        return sum(2 * 3 * s / (2 * 3 * s + distance) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    pairs = [(i, j) for i in range(5) for j in range(5)]
    within = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) for i, j in pairs if i != j) / 20
    between = sum(kernel(a[i], b[j]) for i, j in pairs) / 25
    assert squared_discrepancy(a, b).item() == pytest.approx(within - 2 * between, abs=1e-5)


def test_the_discrepancy_of_equal_distributions_is_zero_on_average_and_of_others_is_not() -> None:
    equal = torch.stack([squared_discrepancy(torch.randn(16, 2), torch.randn(16, 2)) for _ in range(400)])
    other = torch.stack([squared_discrepancy(torch.randn(16, 2) + 1, torch.randn(16, 2)) for _ in range(400)])
    error = equal.std() / math.sqrt(len(equal))
    assert abs(equal.mean()) < 4 * error
    assert other.mean() > 40 * error
    assert (equal < 0).any()


def test_the_discrepancy_is_a_weighted_term_of_the_whole_batch() -> None:
    model = model_with(StandardNormal(), DeterministicMLP(SPEC, **SMALL))
    step = model(batch_of(6))
    torch.manual_seed(1)
    terms = MaximumMeanDiscrepancy(SPEC, weight=30.0)(step)
    torch.manual_seed(1)
    mmd = squared_discrepancy(step.z[0], standard_normal(2).sample((6,)))
    error = (step.likelihood.mean[0] - step.batch.x).square().flatten(1).sum(1)
    assert terms.terms["mmd"].shape == ()
    assert torch.allclose(terms.objective, error + 30 * mmd)


def test_the_discrepancy_draws_the_codes_to_the_prior() -> None:
    loc, scale = torch.tensor(2.0, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    for _ in range(150):
        mmd = squared_discrepancy(loc + scale * torch.randn(32, 2), torch.randn(32, 2))
        slopes = torch.autograd.grad(mmd, [loc, scale])
        with torch.no_grad():
            loc -= 0.2 * slopes[0]
            scale -= 0.2 * slopes[1]
    assert abs(loc.item()) < 0.3
    assert abs(scale.item()) == pytest.approx(1, abs=0.3)


def test_a_batch_of_one_row_has_no_discrepancy_and_still_trains() -> None:
    (turn,) = MaximumMeanDiscrepancy(SPEC).turns(model_with(StandardNormal(), DeterministicMLP(SPEC, **SMALL)))
    terms = turn(batch_of(1))
    terms.total.backward()
    assert terms.terms["mmd"] == 0
    assert torch.equal(terms.objective, terms.terms["squared_error"])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in turn.parameters)


def test_the_discrepancy_of_a_model_without_an_encoder_is_refused() -> None:
    model = genkit.LatentModel(SPEC, None, BernoulliMLP(SPEC, **SMALL), StandardNormal())
    with pytest.raises(genkit.InvalidComponent, match="'wae_mmd' needs a posterior"):
        MaximumMeanDiscrepancy(SPEC)(model(batch_of(3)))


# the mixture of posteriors


def vamp(components: int, data: genkit.Data, spec: genkit.Spec = SPEC) -> tuple[VampPrior, genkit.LatentModel]:
    prior = VampPrior(spec, components=components)
    decoder = BernoulliMLP(SPEC, **SMALL)
    model = genkit.LatentModel(spec, GaussianMLP(spec, **SMALL), decoder, prior)
    prior.prepare(model, data)
    return prior, model


def test_the_prior_is_the_mean_of_the_posteriors_of_its_pseudo_inputs() -> None:
    prior, model = vamp(4, data_of(9))
    z = torch.randn(5, 2)
    expected = torch.stack([model.posterior(u[None]).log_prob(z) for u in prior.pseudo_inputs]).exp().mean(0).log()
    assert torch.allclose(model.prior_given().log_prob(z), expected, atol=1e-5)


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), None])
def test_pseudo_inputs_start_as_training_observations(value_range: tuple[float, float] | None) -> None:
    data = data_of(4)
    prior, _ = vamp(6, data, genkit.Spec((1, 3, 3), (2,), value_range))
    low, high = value_range or (0.0, 255.0)
    images = low + data.train.tensors[0] / 255 * (high - low)  # type: ignore[attr-defined]
    expected = images[[0, 1, 2, 3, 0, 1]]
    assert torch.allclose(prior.pseudo_inputs, expected, atol=0.011 * (high - low) if value_range else 0)


def test_pseudo_inputs_stay_in_the_value_range_and_can_always_move() -> None:
    prior, _ = vamp(3, data_of(3))
    with torch.no_grad():
        prior.unconstrained.add_(torch.randn_like(prior.unconstrained) * 5)
    inputs = prior.pseudo_inputs
    inputs.sum().backward()
    assert inputs.min() >= 0
    assert inputs.max() <= 1
    assert prior.unconstrained.grad is not None
    assert (prior.unconstrained.grad > 0).all()


def test_the_bound_trains_encoder_decoder_and_pseudo_inputs() -> None:
    prior, model = vamp(3, data_of(9))
    (turn,) = NegativeELBO(SPEC).turns(model)
    turn(batch_of(4)).total.backward()
    assert any(p is prior.unconstrained for p in turn.parameters)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in turn.parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_chooses_a_component_and_a_place_in_it(dtype: torch.dtype) -> None:
    prior, model = vamp(3, data_of(9))
    model.to(dtype)
    third = torch.tensor(1 / 3)  # as float32, which is what the thresholds are, in either precision
    choice = torch.stack([torch.zeros(()), third.nextafter(torch.zeros(())), third, torch.tensor(0.9), torch.ones(())])
    normal = torch.randn(5, 2, dtype=dtype)
    mean, log_var = model.encoder(prior.pseudo_inputs)
    component = torch.tensor([0, 0, 1, 2, 2])
    expected = mean[component] + (0.5 * log_var[component]).exp() * normal
    assert torch.allclose(prior.transport(choice.to(dtype), normal, posterior=model.posterior), expected)


def test_transported_noise_has_the_moments_of_the_prior() -> None:
    prior, model = vamp(5, data_of(9))
    with torch.no_grad():
        noise = [distribution.sample((40_000,)) for distribution in prior.noise().values()]
        z = prior.transport(*noise, posterior=model.posterior)
        p = model.prior_given()
    assert torch.allclose(z.mean(0), p.mean, atol=0.03)
    assert torch.allclose(z.var(0), p.variance, rtol=0.05)


def test_a_mixture_of_posteriors_needs_an_encoder() -> None:
    prior = VampPrior(SPEC, components=2)
    model = genkit.LatentModel(SPEC, None, BernoulliMLP(SPEC, **SMALL), prior)
    with pytest.raises(genkit.InvalidComponent, match=r"'vamp' is a mixture of posteriors.*give the recipe an encoder"):
        prior.prepare(model, data_of(3))
    with pytest.raises(genkit.InvalidComponent, match="'vamp' is a mixture of posteriors"):
        model.prior_given()


def test_noise_is_not_mapped_by_posteriors_that_are_not_normal() -> None:
    class Other(GaussianMLP):
        def posterior(self, *params: Tensor) -> Distribution:
            return Independent(Laplace(params[0], params[1].exp()), 1)

    prior = VampPrior(SPEC, components=2)
    model = model_with(prior, Other(SPEC, **SMALL))
    with pytest.raises(genkit.InvalidComponent, match=r"'vamp' maps noise to latents where .* this one is .*Laplace"):
        prior.transport(torch.rand(3), torch.randn(3, 2), posterior=model.posterior)


# two stochastic layers

TWO = genkit.Spec(event_shape=(1, 3, 3), latent_shape=(5,))


def hierarchy(
    encoder: tuple[int, int] = (3, 2), decoder: tuple[int, int] = (3, 2)
) -> tuple[genkit.LatentModel, HierarchicalNormal]:
    prior = HierarchicalNormal(TWO, layers=(3, 2), **SMALL)
    posterior = HierarchicalGaussianMLP(TWO, layers=encoder, hidden_above=(8,), **SMALL)
    return genkit.LatentModel(TWO, posterior, HierarchicalBernoulliMLP(TWO, layers=decoder, **SMALL), prior), prior


@pytest.mark.parametrize("ancestor_last", [False, True])
def test_a_chain_of_linear_normals_is_the_joint_normal(ancestor_last: bool) -> None:
    """With a ~ N(0, I) and b|a ~ N(W a, s^2 I), cov(b) = W W' + s^2 I and cov(a, b) = W'."""
    weight = torch.randn(3, 2)
    chain = Chain(
        standard_normal(2), lambda a: Independent(Normal(a @ weight.T, 0.5), 1), 3, ancestor_last=ancestor_last
    )
    joint = torch.cat(
        [torch.cat([torch.eye(2), weight.T], 1), torch.cat([weight, weight @ weight.T + 0.25 * torch.eye(3)], 1)]
    )
    order = [2, 3, 4, 0, 1] if ancestor_last else [0, 1, 2, 3, 4]
    covariance = joint[order][:, order]
    z = chain.sample((50_000,))
    assert torch.allclose(z.T.cov(), covariance, atol=0.1)
    expected = MultivariateNormal(torch.zeros(5), covariance).log_prob(z[:10])
    assert torch.allclose(chain.log_prob(z[:10]), expected, atol=1e-3)


def test_a_chain_does_not_pretend_to_know_its_mean() -> None:
    with pytest.raises(NotImplementedError):
        _ = hierarchy()[0].posterior(batch_of(2).x).mean


def test_the_posterior_and_the_prior_of_two_layers_are_products_of_normals() -> None:
    model, prior = hierarchy()
    assert isinstance(model.encoder, HierarchicalGaussianMLP)
    x, z = batch_of(4).x, torch.randn(6, 4, 5)
    z1, z2 = z[..., :3], z[..., 3:]

    def normal(params: tuple[Tensor, ...], value: Tensor) -> Tensor:
        mean, log_var = params
        return Normal(mean, (0.5 * log_var).exp()).log_prob(value).sum(-1)

    q1 = normal(model.encoder(x), z1)
    q2 = torch.stack([normal(model.encoder.second(value), above) for value, above in zip(z1, z2, strict=True)])
    p1 = torch.stack([normal(prior.first(above), value) for value, above in zip(z1, z2, strict=True)])
    assert torch.allclose(model.posterior(x).log_prob(z), q1 + q2, atol=1e-5)
    assert torch.allclose(model.prior_given().log_prob(z), p1 + standard_normal(2).log_prob(z2), atol=1e-5)
    assert model.prior_given().sample().shape == (5,)


def test_transported_noise_has_the_density_of_the_prior_of_two_layers() -> None:
    model, prior = hierarchy()
    (noise,) = (distribution.sample((7,)) for distribution in prior.noise().values())
    z = prior.transport(noise)
    jacobian = torch.stack([torch.func.jacrev(lambda n: prior.transport(n[None])[0])(row) for row in noise])
    expected = standard_normal(5).log_prob(noise) - torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(model.prior_given().log_prob(z), expected, atol=1e-4)


def test_only_the_lower_layer_reaches_the_observation() -> None:
    model, _ = hierarchy()
    z = torch.randn(2, 5)
    above, below = z.clone(), z.clone()
    above[:, 3:] += 1
    below[:, :3] += 1
    assert torch.equal(model.likelihood(z).mean, model.likelihood(above).mean)
    assert not torch.equal(model.likelihood(z).mean, model.likelihood(below).mean)


@pytest.mark.parametrize("loss", [NegativeELBO(TWO), ImportanceWeighted(TWO, samples=5)])
def test_both_bounds_train_every_layer(loss: genkit.Loss) -> None:
    model, _ = hierarchy()
    (turn,) = loss.turns(model)
    turn(batch_of(4)).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in turn.parameters)


def test_the_likelihood_estimate_of_two_layers_does_not_depend_on_the_proposal() -> None:
    """Importance sampling from q and plain sampling from p estimate the same log p(x)."""
    model, _ = hierarchy()
    x = batch_of(3).x
    with torch.no_grad():
        z = model.prior_given().sample((40_000, 1)).expand(-1, 3, -1)
        plain = model.likelihood(z).log_prob(x).logsumexp(0) - math.log(40_000)
        assert torch.allclose(log_likelihood(model, genkit.Batch(x), 5_000), plain, atol=0.05)


def test_layers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(genkit.InvalidOption, match=r"encoder.layers = \[3, 3\], but latent_shape = \[5\].*=\[6\]"):
        HierarchicalGaussianMLP(TWO, layers=(3, 3))
    for kind, layers in ("encoder", {"encoder": (2, 3)}), ("decoder", {"decoder": (2, 3)}):
        model, prior = hierarchy(**layers)  # type: ignore[arg-type]
        with pytest.raises(genkit.InvalidOption, match=rf"prior.layers = \[3, 2\], but {kind}.layers = \[2, 3\]"):
            prior.prepare(model, data_of(3))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mnist_beta_tc", "loss.beta=10 loss.sampling=weighted"),
        ("mnist_wae", "loss.weight=10"),
        ("mnist_vamp", "prior.components=50"),
        ("mnist_hvae", "loss=importance_weighted_elbo loss.samples=50"),
    ],
)
def test_a_variant_is_one_component_away_from_another(name: str, settings: str) -> None:
    registry = genkit.load_plugins().registry
    recipe = registry.get("model", name).load().with_settings(settings.split())
    assert resolve(recipe, registry).components.keys() == {"dataset", "encoder", "decoder", "prior", "loss"}
