"""Variational autoencoders and autoencoders: bounds held against their formulas, networks against their promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from genkit_onnx.exporter import OnnxExporter
from genkit_vae.conditional import ClassNormal
from genkit_vae.conv import BernoulliConvDecoder, GaussianConvDecoder, GaussianConvEncoder
from genkit_vae.losses import ImportanceWeighted, NegativeELBO, SquaredError
from genkit_vae.mlp import BernoulliMLP, DeterministicMLP, GaussianMLP
from helpers import Genkit
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
)
from torch.utils.data import TensorDataset

import genkit
from genkit.graphs import latent_graphs
from genkit.inference import asking, log_likelihood, sample

SPEC = genkit.Spec(event_shape=(1, 3, 4), latent_shape=(2,), classes=3)
UNLABELLED = genkit.Spec(event_shape=(1, 3, 4), latent_shape=(2,))


class Fixed(genkit.Prior):
    """The same distribution for every label."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.distribution = distribution

    def forward(
        self, condition: Tensor | None = None, posterior: Callable[..., Distribution] | None = None
    ) -> Distribution:
        return self.distribution


def standard_normal(*shape: int) -> Distribution:
    return Independent(Normal(torch.zeros(shape), torch.ones(shape)), len(shape))


def one_component(*shape: int) -> Distribution:
    """The standard normal, dressed up as a mixture so that torch knows no closed divergence from it."""
    mixed = Independent(Normal(torch.zeros(1, *shape), torch.ones(1, *shape)), len(shape))
    return MixtureSameFamily(Categorical(logits=torch.zeros(1)), mixed)


def model(spec: genkit.Spec = UNLABELLED, prior: Distribution | None = None, **options: Any) -> genkit.LatentModel:
    small = {"hidden": (8,), **options}
    prior = standard_normal(*spec.latent_shape) if prior is None else prior
    return genkit.LatentModel(spec, GaussianMLP(spec, **small), BernoulliMLP(spec, **small), Fixed(prior))


def pixels(*shape: int) -> Tensor:
    return torch.rand(shape).round()


def data_of(images: Tensor, labels: Tensor | None = None, transform: Any = None) -> genkit.Data:
    dataset: Any = TensorDataset(images) if labels is None else TensorDataset(images, labels)
    if transform is not None:
        dataset = genkit.Transformed(dataset, transform)
    return genkit.Data(dataset, dataset, tuple(images.shape[1:]), 0 if labels is None else 3)


def without_encoder() -> genkit.Pass:
    z = torch.randn(1, 5, 2)
    likelihood = Independent(Normal(torch.zeros(1, 5, 3), 1.0), 1)
    return genkit.Pass(genkit.Batch(torch.randn(5, 3)), None, z, likelihood, standard_normal(2))


# The bounds


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_elbo_is_the_cross_entropy_plus_beta_times_the_closed_divergence(beta: float) -> None:
    step = model()(genkit.Batch(pixels(5, 1, 3, 4)))
    terms = NegativeELBO(UNLABELLED, beta=beta)(step)

    normal, logits = step.posterior.base_dist, step.likelihood.base_dist.logits[0]
    mean, variance = (t.detach().double().numpy() for t in (normal.mean, normal.variance))
    p = 1 / (1 + np.exp(-logits.detach().double().numpy()))
    x = step.batch.x.numpy()
    cross_entropy = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum((1, 2, 3))
    kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(1)

    assert terms.objective.shape == (5,)
    np.testing.assert_allclose(terms.terms["reconstruction"].detach(), cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(terms.terms["kl"].detach(), kl, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(terms.objective.detach(), cross_entropy + beta * kl, rtol=1e-5)


def test_the_warm_up_raises_the_weight_of_the_divergence_linearly_with_the_training_steps() -> None:
    loss, step = NegativeELBO(UNLABELLED, beta=2.0, warmup_steps=4), model()(genkit.Batch(pixels(5, 1, 3, 4)))

    def weight() -> float:
        terms = loss(step)
        weights: Tensor = (terms.objective - terms.terms["reconstruction"]) / terms.terms["kl"]
        return weights.mean().item()

    assert [weight() for _ in range(3)] == pytest.approx([0.5, 1.0, 1.5], rel=1e-3)
    loss.eval()
    assert [weight() for _ in range(3)] == pytest.approx([2.0] * 3, rel=1e-3)  # measured in full
    assert int(loss.steps) == 3  # and not counted
    loss.train()
    assert [weight() for _ in range(3)] == pytest.approx([2.0] * 3, rel=1e-3)


def test_the_warm_up_goes_on_where_a_checkpoint_left_it() -> None:
    step, states = model()(genkit.Batch(pixels(5, 1, 3, 4))), []
    for stops in ([6], [2, 4]):
        loss = NegativeELBO(UNLABELLED, warmup_steps=8)
        for steps in stops:
            saved = loss.state_dict()
            loss = NegativeELBO(UNLABELLED, warmup_steps=8)
            loss.load_state_dict(saved)
            objectives = [loss(step).total for _ in range(steps)]
        states.append(objectives[-1])
    assert torch.equal(*states)


def test_iwae_with_one_sample_is_the_elbo_with_a_sampled_divergence() -> None:
    step = model(prior=one_component(2))(genkit.Batch(pixels(5, 1, 3, 4)))
    iwae, elbo = ImportanceWeighted(UNLABELLED, samples=1)(step), NegativeELBO(UNLABELLED)(step)
    torch.testing.assert_close(iwae.objective, elbo.objective)
    torch.testing.assert_close(iwae.terms["kl"], elbo.terms["kl"])
    closed = NegativeELBO(UNLABELLED)(step._replace(prior=standard_normal(2)))
    assert not torch.allclose(iwae.objective, closed.objective)


def test_iwae_is_the_logarithm_of_the_mean_importance_weight() -> None:
    loss = ImportanceWeighted(UNLABELLED, samples=6)
    step = model().double()(genkit.Batch(pixels(5, 1, 3, 4).double()), loss.samples)
    weights = (
        step.likelihood.log_prob(step.batch.x) + step.prior.log_prob(step.z) - step.posterior.log_prob(step.z)
    ).exp()
    torch.testing.assert_close(loss(step).objective, -weights.mean(0).log())


def test_the_gradient_of_iwae_is_that_of_each_log_weight_in_proportion_to_its_weight() -> None:
    loss = ImportanceWeighted(UNLABELLED, samples=6)
    net = model()
    step = net(genkit.Batch(pixels(5, 1, 3, 4)), loss.samples)
    log_weights = step.likelihood.log_prob(step.batch.x) + step.prior.log_prob(step.z) - step.posterior.log_prob(step.z)
    parameters = list(net.parameters())
    share = log_weights.detach().softmax(0)  # Burda et al. (2016), equation 14
    expected = torch.autograd.grad(-(share * log_weights).sum(0).mean(), parameters, retain_graph=True)
    found = torch.autograd.grad(loss(step).total, parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_more_samples_bring_the_bound_nearer_to_the_likelihood_and_never_beyond() -> None:
    x = torch.linspace(-2, 2, 9).repeat(2000)[:, None]
    posterior, prior = Independent(Normal(torch.zeros_like(x), 1.0), 1), standard_normal(1)

    def bound(samples: int) -> float:
        z = posterior.sample((samples,))
        step = genkit.Pass(genkit.Batch(x), posterior, z, Independent(Normal(z, 1.0), 1), prior)
        return float(ImportanceWeighted(UNLABELLED, samples=samples)(step).total)

    exact = -float(Normal(0.0, math.sqrt(2)).log_prob(x).mean())  # x = z + noise, both standard normal
    one, five, many = bound(1), bound(5), bound(50)
    assert one > five + 0.1 > many + 0.1 > exact
    assert many == pytest.approx(exact, abs=0.05)


def test_squared_error_is_summed_over_the_elements_and_needs_no_posterior() -> None:
    step = without_encoder()
    terms = SquaredError(UNLABELLED)(step)
    np.testing.assert_allclose(terms.objective, np.square(step.batch.x.numpy()).sum(1), rtol=1e-6)


@pytest.mark.parametrize("loss", [NegativeELBO, ImportanceWeighted])
def test_a_bound_says_that_it_needs_an_encoder(loss: Callable[..., genkit.Loss]) -> None:
    with pytest.raises(genkit.InvalidComponent, match="needs a posterior; give the recipe an encoder"):
        loss(UNLABELLED)(without_encoder())


# The perceptrons


def test_the_networks_have_the_layers_and_activations_that_they_are_told() -> None:
    encoder = GaussianMLP(UNLABELLED, hidden=(7, 5), activation="elu")
    x = torch.rand(4, 1, 3, 4)
    first, second = (m for m in encoder.hidden.modules() if isinstance(m, torch.nn.Linear))
    elu = torch.nn.functional.elu
    hidden = elu(elu(x.flatten(1) @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    mean, log_var = encoder(x)
    assert hidden.shape == (4, 5)
    torch.testing.assert_close(mean, hidden @ encoder.mean.weight.T + encoder.mean.bias)
    torch.testing.assert_close(log_var, hidden @ encoder.log_var.weight.T + encoder.log_var.bias)
    torch.testing.assert_close(encoder.posterior(mean, log_var).stddev, log_var.exp().sqrt())


def test_an_autoencoder_has_a_point_for_a_posterior_and_no_likelihood() -> None:
    encoder = DeterministicMLP(UNLABELLED, hidden=(7,))
    x = pixels(4, 1, 3, 4)
    (z,) = encoder(x)
    assert torch.equal(encoder.posterior(z).rsample((3,)), z.expand(3, 4, 2))
    autoencoder = genkit.LatentModel(UNLABELLED, encoder, BernoulliMLP(UNLABELLED), Fixed(standard_normal(2)))
    with asking(autoencoder, 0), pytest.raises(genkit.NoDensity):
        log_likelihood(autoencoder, genkit.Batch(x), 5)
    with pytest.raises(genkit.NoDensity):
        NegativeELBO(UNLABELLED)(autoencoder(genkit.Batch(x)))


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 255.0), None])
@pytest.mark.parametrize("decoder", [BernoulliMLP, BernoulliConvDecoder])
def test_probabilities_are_refused_for_values_outside_0_and_1(
    decoder: Callable[..., genkit.Decoder], value_range: tuple[float, float] | None
) -> None:
    with pytest.raises(genkit.InvalidOption, match=r"value_range = .*: .* gives probabilities; --set value_range"):
        decoder(genkit.Spec((1, 8, 8), (2,), value_range))


@pytest.mark.parametrize("transform", [None, lambda x: 255 - x])
def test_a_bernoulli_decoder_starts_from_the_mean_of_every_pixel_as_the_model_sees_it(transform: Any) -> None:
    images = torch.randint(0, 256, (500, 1, 3, 4), dtype=torch.uint8)
    images[:, :, 0, 0] = 0  # of a pixel that is always black the logit is clamped
    net = model()
    net.decoder.prepare(net, data_of(images, transform=transform))
    net.decoder.out.weight.data.zero_()
    x, z = images / 255, torch.randn(2, 2)
    expected = (x if transform is None else 1 - x).mean(0).clamp(1e-3, 1 - 1e-3)
    torch.testing.assert_close(net.likelihood(z).mean, expected.expand(2, 1, 3, 4), rtol=1e-4, atol=1e-5)


def test_a_start_from_statistics_looks_at_a_bounded_number_of_observations_from_the_whole_set() -> None:
    class Counted(torch.utils.data.Dataset[Any]):
        read: list[int]

        def __init__(self) -> None:
            self.read = []

        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, index: int) -> Tensor:
            self.read.append(index)
            return torch.full((1, 3, 4), index / len(self))

    train = Counted()
    net = model()
    net.decoder.prepare(net, genkit.Data(train, train, (1, 3, 4)))
    assert len(set(train.read)) == len(train.read) <= 10_000
    assert net.decoder.out.bias.sigmoid().mean().item() == pytest.approx(0.5, abs=0.01)


# Labels


def test_the_label_is_a_one_hot_input_of_a_conditional_network_and_ignored_by_any_other() -> None:
    x, labels = torch.rand(3, 1, 3, 4), torch.tensor([0, 2, 1])
    for network, value in ((GaussianMLP, x), (BernoulliMLP, torch.rand(3, 2))):
        plain = network(SPEC, hidden=(8,))
        torch.testing.assert_close(plain(value, labels), plain(value))
        conditional = network(SPEC, hidden=(8,), conditional=True)
        one_hot = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])
        expected = conditional.hidden.layers(torch.cat([value.flatten(1), one_hot], dim=1))
        torch.testing.assert_close(conditional.hidden(value, labels), expected)
        assert not torch.allclose(conditional(value, labels)[0], conditional(value, labels.roll(1))[0])
        with pytest.raises(genkit.InvalidComponent, match="without labels"):
            conditional(value)


@pytest.mark.parametrize("component", [GaussianMLP, BernoulliMLP, lambda spec, conditional: ClassNormal(spec)])
def test_labels_that_the_data_do_not_have_are_refused(component: Callable[..., Any]) -> None:
    with pytest.raises(genkit.InvalidOption, match="this data has no labels"):
        component(UNLABELLED, conditional=True)


def test_the_prior_of_a_label_is_a_normal_of_its_own() -> None:
    prior = ClassNormal(SPEC)
    z, labels = torch.randn(4, 2), torch.tensor([0, 2, 1, 2])
    torch.testing.assert_close(prior(labels).log_prob(z), standard_normal(2).log_prob(z))  # where all labels start
    mean, log_scale = torch.randn(3, 2), torch.randn(3, 2)
    prior.load_state_dict({"mean.weight": mean, "log_scale.weight": log_scale})
    scale = log_scale.exp()[labels]
    density = -0.5 * ((z - mean[labels]) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(prior(labels).log_prob(z), density.sum(1))
    prior(labels[1:]).log_prob(z[1:]).sum().backward()
    assert [bool(row.any()) for row in prior.mean.weight.grad] == [False, True, True]
    with pytest.raises(genkit.InvalidComponent, match="without labels"):
        prior()


def test_a_conditional_model_draws_what_it_is_asked_for() -> None:
    labels = torch.arange(300) % 3
    images = torch.zeros(300, 1, 3, 4)
    images[torch.arange(300), 0, labels] = (torch.rand(300, 4) < 0.9).float()  # the label says which row is white
    options = {"hidden": (16,), "conditional": True}
    net = genkit.LatentModel(SPEC, GaussianMLP(SPEC, **options), BernoulliMLP(SPEC, **options), ClassNormal(SPEC))
    loss = NegativeELBO(SPEC)
    (turn,) = loss.turns(net)
    assert {id(p) for p in turn.parameters} == {id(p) for p in net.parameters()}
    optimizer = torch.optim.Adam(turn.parameters, lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        turn(genkit.Batch(images, labels)).total.backward()
        optimizer.step()
    for label in range(3):
        rows = sample(net, 20, condition=label).mean((1, 3))  # (20, 3)
        assert (rows[:, label] > 0.6).all()
        assert (rows.sum(1) - rows[:, label] < 0.4).all()


def test_every_graph_of_a_conditional_model_takes_the_label() -> None:
    options = {"hidden": (8,), "conditional": True}
    net = genkit.LatentModel(SPEC, GaussianMLP(SPEC, **options), BernoulliMLP(SPEC, **options), ClassNormal(SPEC))
    net.prior.mean.weight.data.normal_()
    graphs = latent_graphs(net, data_of(pixels(6, 1, 3, 4), torch.arange(6) % 3))
    assert {graph.name: list(graph.inputs)[-1] for graph in graphs if isinstance(graph, genkit.Graph)} == {
        "encoder": "condition",
        "decoder": "condition",
        "prior": "condition",
    }


# The convolutions

SHAPES = [(1, 8, 8), (3, 9, 13), (1, 28, 28), (2, 31, 17), (3, 64, 40)]
SMALL = {"width": 4, "hidden": 8}


@pytest.mark.parametrize("shape", SHAPES)
def test_convolutions_take_and_give_images_of_any_size(shape: tuple[int, int, int]) -> None:
    spec = genkit.Spec(shape, (2, 3))
    x, z = torch.rand(2, *shape), torch.randn(2, 2, 3)
    assert [p.shape for p in GaussianConvEncoder(spec, **SMALL)(x)] == [(2, 2, 3)] * 2
    for decoder in (BernoulliConvDecoder(spec, **SMALL), GaussianConvDecoder(spec, **SMALL)):
        likelihood = decoder.likelihood(*decoder(z))
        assert (likelihood.batch_shape, likelihood.event_shape) == ((2,), shape)
        assert likelihood.mean.amin() >= 0
        assert likelihood.mean.amax() <= 1


@pytest.mark.parametrize("shape", SHAPES)
def test_no_pixel_is_out_of_reach_of_the_convolutions(shape: tuple[int, int, int]) -> None:
    spec = genkit.Spec(shape, (2,))
    x = torch.rand(1, *shape, requires_grad=True)
    encoder = GaussianConvEncoder(spec, **SMALL, activation="tanh").eval()
    encoder(x)[0].sum().backward()
    assert (x.grad != 0).all()
    (pictures,) = BernoulliConvDecoder(spec, **SMALL, activation="tanh").eval()(torch.randn(2, 2))
    assert (pictures[0] != pictures[1]).all()


@pytest.mark.parametrize("shape", [(1, 7, 28), (1, 28, 7), (784,), (28, 28)])
@pytest.mark.parametrize("component", [GaussianConvEncoder, BernoulliConvDecoder, GaussianConvDecoder])
def test_what_is_not_an_image_or_too_small_a_one_is_refused(
    component: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    with pytest.raises(genkit.InvalidOption, match=r"needs images \[C, H, W\] with H and W of 8 or more"):
        component(genkit.Spec(shape, (2,)))


def test_the_learned_scale_is_one_number_whose_best_value_is_the_root_mean_squared_error() -> None:
    spec = genkit.Spec((3, 8, 8), (2,), (-1.0, 1.0))
    decoder = GaussianConvDecoder(spec, **SMALL)
    x = torch.rand(6, 3, 8, 8) * 2 - 1
    (mean,) = decoder(torch.randn(6, 2))
    error = (x - mean).square().mean().sqrt().item()
    optimizer = torch.optim.Rprop([decoder.log_scale], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (-decoder.likelihood(mean.detach()).log_prob(x)).mean().backward()
        optimizer.step()
    likelihood = decoder.likelihood(mean)
    assert likelihood.stddev.unique().tolist() == pytest.approx([error], rel=1e-3)
    # equation 4 of Rybkin et al. (2021), and the normalising constant
    nats = (x - mean).square().sum((1, 2, 3)) / (2 * error**2) + 192 * math.log(error * math.sqrt(2 * math.pi))
    torch.testing.assert_close(-likelihood.log_prob(x), nats, rtol=1e-4, atol=1e-3)


def test_the_learned_scale_starts_from_the_data_and_cannot_vanish() -> None:
    spec = genkit.Spec((3, 8, 8), (2,), (-1.0, 1.0))
    net = SimpleNamespace(spec=spec)
    decoder = GaussianConvDecoder(spec, **SMALL)
    images = torch.randint(40, 120, (50, 3, 8, 8), dtype=torch.uint8)
    decoder.prepare(net, data_of(images))
    (mean,) = decoder(torch.randn(64, 2))
    x = images / 255 * 2 - 1
    assert decoder.likelihood(mean).stddev[0, 0, 0, 0].item() == pytest.approx(float(x.std()), rel=0.05)
    decoder.upsampler.layers[-1].weight.data.zero_()
    torch.testing.assert_close(decoder(torch.randn(1, 2))[0].mean((0, 2, 3)), x.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    decoder.log_scale.data.fill_(-1000.0)
    assert decoder.likelihood(mean).stddev[0, 0, 0, 0].item() == pytest.approx(2 * math.exp(-6), rel=1e-4)


def test_a_normal_likelihood_needs_a_value_range() -> None:
    with pytest.raises(genkit.InvalidOption, match="give it a range"):
        GaussianConvDecoder(genkit.Spec((3, 8, 8), (2,), None))


def test_convolutions_of_odd_images_pass_the_gate_of_the_export(tmp_path: Path) -> None:
    spec = genkit.Spec((3, 11, 9), (2,))
    encoder, decoder = GaussianConvEncoder(spec, **SMALL), GaussianConvDecoder(spec, **SMALL)
    net = genkit.LatentModel(spec, encoder, decoder, Fixed(standard_normal(2)))
    data = data_of(torch.randint(0, 256, (64, 3, 11, 9), dtype=torch.uint8))
    net.decoder.prepare(net, data)
    with genkit.unvalidated():
        net(genkit.Batch(torch.rand(64, 3, 11, 9)))  # gives the batch norms their statistics
    net.eval()
    about = {"recipe": {"name": "odd"}, "prior": {"use": "standard_normal"}}
    graphs = latent_graphs(net, data)
    report = OnnxExporter().export(graphs, tmp_path / "bundle", about=about, opset=18, runtimes=[])
    assert report.ok
    assert [graph.name for graph in graphs] == ["encoder", "decoder"]


# The recipes


def test_the_label_is_asked_for_on_the_command_line_and_refused_where_there_is_none(
    here: Genkit, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    here("train", "--model", "mnist_cvae", "--epochs", 1, "--set", "dataset.limit=256", "--out", run)
    here("sample", run, "-n", 4, "--condition", 7, "--out", tmp_path / "seven.png")
    here("sample", run, "-n", 4, "--condition", 1, "--out", tmp_path / "one.png")
    assert (tmp_path / "seven.png").read_bytes() != (tmp_path / "one.png").read_bytes()
    refused = here("sample", run, "--condition", 10, check=False)
    assert (refused.returncode, "the labels go from 0 to 9" in refused.stderr) == (2, True)
