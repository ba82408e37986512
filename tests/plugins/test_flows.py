"""Normalizing flows: their densities held against calculus, and what surrounds them."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from genkit_flows.flows import FlowMLPEncoder, FlowPrior
from genkit_flows.identity import IdentityDecoder, IdentityEncoder, MaximumLikelihood
from genkit_flows.moons import two_moons
from helpers import Genkit, picture_size
from torch import Tensor
from torch.distributions import Independent, Normal

import genkit
from genkit.inference import log_likelihood

KINDS = [
    pytest.param({"kind": kind, "coupling": coupling}, id=f"{kind}-{'coupling' if coupling else 'autoregressive'}")
    for kind in ("spline", "affine")
    for coupling in (True, False)
]
PLANE = genkit.Spec(event_shape=(2,), latent_shape=(2,), value_range=None)
IMAGES = genkit.Spec(event_shape=(1, 4, 4), latent_shape=(5,))


def _prior(size: int = 5, spread: float = 2.0, **options: Any) -> FlowPrior:
    """With weights ``spread`` times as large as at the start of training, so that it is far from the identity."""
    prior = FlowPrior(genkit.Spec((1,), (size,)), hidden=(16, 16), transforms=3, **options)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(spread)
    return prior


def _encoder(**options: Any) -> FlowMLPEncoder:
    return FlowMLPEncoder(IMAGES, hidden=(16,), context=4, transforms=3, flow_hidden=(16, 16), **options)


def _log_volume(function: Any, point: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(function, point).slogdet().logabsdet


# The prior


@pytest.mark.parametrize("options", KINDS)
def test_the_density_of_transported_noise_is_that_of_the_change_of_variables(options: dict[str, Any]) -> None:
    prior = _prior(**options).double()
    noise = prior.noise()["normal"].sample((6,)) * 2
    z = prior.transport(noise)
    volumes = torch.stack([_log_volume(lambda e: prior.transport(e[None])[0], row) for row in noise])
    assert volumes.abs().min() > 1e-3
    expected = Normal(0.0, 1.0).log_prob(noise).sum(1) - volumes
    torch.testing.assert_close(prior().log_prob(z), expected)


@pytest.mark.parametrize("options", KINDS)
def test_a_flow_undoes_what_it_did(options: dict[str, Any]) -> None:
    prior = _prior(**options).double()
    noise = torch.randn(50, 5, dtype=torch.float64) * 3  # also outside of the box of the splines
    z = prior.transport(noise)
    assert (z - noise).abs().max() > 0.1
    torch.testing.assert_close(prior().transform.inv(z), noise)


@pytest.mark.parametrize("kind", ["spline", "affine"])
def test_a_density_in_the_plane_integrates_to_one(kind: str) -> None:
    prior = _prior(2, spread=1.0, kind=kind)
    with torch.no_grad():
        drawn = prior().sample((4096,))
        low, high = drawn.amin(0) - 2, drawn.amax(0) + 2
        axes = [torch.linspace(*bounds, 250) for bounds in zip(low.tolist(), high.tolist(), strict=True)]
        cell = math.prod((axis[1] - axis[0]).item() for axis in axes)
        integral = prior().log_prob(torch.cartesian_prod(*axes)).double().exp().sum().item() * cell
    assert integral == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("options", KINDS)
def test_samples_of_the_prior_have_its_density_whatever_their_shape(options: dict[str, Any]) -> None:
    prior = _prior(**options)
    z = prior().rsample((3, 4))
    assert z.shape == (3, 4, 5)
    assert z.requires_grad
    drawn = prior()
    again = drawn.rsample((3, 4))
    torch.testing.assert_close(drawn.log_prob(again), prior().log_prob(again.clone()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_prior_works_in_few_dimensions(options: dict[str, Any], size: int) -> None:
    prior = _prior(size, **options).double()
    noise = torch.randn(4, size, dtype=torch.float64)
    torch.testing.assert_close(prior().transform.inv(prior.transport(noise)), noise)
    assert prior().log_prob(noise).shape == (4,)


def test_a_copy_a_cast_and_loaded_weights_are_the_same_flow() -> None:
    prior, noise = _prior(), torch.randn(8, 5)
    z = prior.transport(noise)
    assert torch.equal(copy.deepcopy(prior).transport(noise), z)
    wide = copy.deepcopy(prior).double().transport(noise.double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), z, rtol=1e-4, atol=1e-4)
    other = FlowPrior(genkit.Spec((1,), (5,)), hidden=(16, 16), transforms=3)
    assert not torch.equal(other.transport(noise), z)
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.transport(noise), z)


# The posterior


def test_the_density_of_a_posterior_is_that_of_the_change_of_variables() -> None:
    encoder = _encoder().double()
    params = encoder(torch.rand(6, 1, 4, 4, dtype=torch.float64))
    (graph,) = encoder.graphs(IMAGES)
    assert isinstance(graph, genkit.Graph)
    noise = torch.randn(6, 5, dtype=torch.float64)
    (z,) = graph.module(noise, *params)
    rows = [tuple(p[i : i + 1].detach() for p in params) for i in range(6)]
    volumes = [
        _log_volume(lambda e, row=row: graph.module(e[None], *row)[0][0], e) for row, e in zip(rows, noise, strict=True)
    ]
    expected = Normal(0.0, 1.0).log_prob(noise).sum(1) - torch.stack(volumes)
    torch.testing.assert_close(encoder.posterior(*params).log_prob(z), expected)
    mean, log_var, _ = params
    normal = Independent(Normal(mean, (0.5 * log_var).exp()), 1)
    assert (normal.log_prob(z) - expected).abs().min() > 1e-3


def test_the_flow_of_a_posterior_depends_on_the_context() -> None:
    encoder = _encoder()
    mean, log_var, context = encoder(torch.rand(3, 1, 4, 4))
    assert context.abs().max() < 1
    z = torch.randn(3, 5)
    one, other = (encoder.posterior(mean, log_var, c).log_prob(z) for c in (context, -context))
    assert (one - other).abs().min() > 1e-4


@pytest.mark.parametrize("draw", ["rsample", "sample"])
def test_a_drawn_latent_has_the_density_and_the_gradient_of_any_other(draw: str) -> None:
    """Known from the drawing where that is right, and computed by the inverse where it is not."""
    encoder = _encoder().double()
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    posterior = encoder.posterior(*encoder(x))
    z = getattr(posterior, draw)((4,))
    assert z.shape == (4, 3, 5)
    parameters = list(encoder.parameters())
    answers = []
    for value in (z, z.clone()):
        log_prob = posterior.log_prob(value)
        assert log_prob.shape == (4, 3)
        gradients = torch.autograd.grad(log_prob.sum(), parameters, retain_graph=True, materialize_grads=True)
        answers.append((log_prob, *gradients))
    torch.testing.assert_close(*answers)
    assert sum(g.abs().sum() for g in answers[0][1:]) > 0
    with torch.no_grad():
        torch.testing.assert_close(posterior.log_prob(z), answers[1][0])
        torch.testing.assert_close(posterior.log_prob(z[0]), answers[1][0][0])


def test_a_latent_and_its_density_take_one_pass_of_each_transform() -> None:
    encoder = _encoder()
    passes = []
    for transform in encoder.transform.transforms:
        transform.hyper.register_forward_hook(lambda *_: passes.append(1))
    posterior = encoder.posterior(*encoder(torch.rand(3, 1, 4, 4)))
    z = posterior.rsample((2,))
    posterior.log_prob(z)
    assert len(passes) == 3
    posterior.log_prob(z.clone())
    assert len(passes) > 3


def test_gradients_of_the_bound_reach_every_parameter_of_both_flows() -> None:
    registry = genkit.load_plugins().registry
    decoder = registry.get("decoder", "bernoulli_mlp").load()(IMAGES)
    model = genkit.LatentModel(IMAGES, _encoder(), decoder, FlowPrior(IMAGES))
    (turn,) = registry.get("loss", "negative_elbo").load()(IMAGES).turns(model)
    with genkit.unvalidated():
        terms = turn(genkit.Batch(torch.rand(8, 1, 4, 4).round()))
    terms.total.backward()
    assert terms.objective.shape == (8,)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_graph_of_the_encoder_is_traced_with_any_batch() -> None:
    encoder, x = _encoder(), torch.rand(3, 1, 4, 4)
    program = torch.export.export(encoder, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    more = torch.rand(7, 1, 4, 4)
    torch.testing.assert_close(program(more), encoder(more))


# A flow by itself


def _moons_model() -> genkit.LatentModel:
    return genkit.LatentModel(PLANE, IdentityEncoder(PLANE), IdentityDecoder(PLANE), _prior(2))


@pytest.mark.parametrize("samples", [1, 3])
def test_the_likelihood_of_a_flow_by_itself_is_exact(samples: int) -> None:
    model, x = _moons_model(), torch.randn(6, 2)
    with torch.no_grad():
        exact = model.prior().log_prob(x)
        torch.testing.assert_close(log_likelihood(model, genkit.Batch(x), samples), exact)
    terms = MaximumLikelihood()(model(genkit.Batch(x), samples))
    torch.testing.assert_close(terms.objective, -exact)


def test_a_wrong_reconstruction_has_no_likelihood() -> None:
    class Halved(IdentityDecoder):
        def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
            return (z / 2,)

    model = genkit.LatentModel(PLANE, IdentityEncoder(PLANE), Halved(PLANE), _prior(2))
    assert MaximumLikelihood()(model(genkit.Batch(torch.randn(1, 2)))).total == math.inf


def test_what_cannot_be_composed_is_refused_with_a_remedy() -> None:
    with pytest.raises(genkit.InvalidOption, match=r"latent_shape = \[3\].*set latent_shape to \[2\]"):
        IdentityEncoder(genkit.Spec((2,), (3,), None))
    with pytest.raises(genkit.InvalidOption, match=r"the decoder 'identity_map'.*set latent_shape to \[2\]"):
        IdentityDecoder(genkit.Spec((2,), (3,), None))
    for flow in (FlowPrior, FlowMLPEncoder):
        with pytest.raises(genkit.InvalidOption, match=r"latent_shape = \[4, 2\].*set latent_shape to \[8\]"):
            flow(genkit.Spec((2,), (4, 2)))
    model = genkit.LatentModel(PLANE, None, IdentityDecoder(PLANE), _prior(2))
    with pytest.raises(genkit.InvalidComponent, match="give the recipe an encoder"):
        MaximumLikelihood()(model(genkit.Batch(torch.randn(3, 2))))


def test_two_moons_are_two_half_circles_drawn_by_a_seed_of_their_own() -> None:
    def points(**options: Any) -> Iterator[Tensor]:
        data = two_moons(**options)
        assert data.event_shape == (2,)
        return (part.tensors[0] for part in (data.train, data.test))  # type: ignore[attr-defined]

    before = torch.get_rng_state()
    train, test = points(train=300, test=100, noise=0.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert (train.shape, test.shape, train.dtype) == ((300, 2), (100, 2), torch.float32)
    x, y = train.T
    upper = ((x**2 + y**2).sqrt() - 1).abs() < 1e-5
    lower = (((x - 1) ** 2 + (y - 0.5) ** 2).sqrt() - 1).abs() < 1e-5
    assert (upper | lower).all()
    assert (y[upper & ~lower] >= -1e-6).all()
    assert (y[lower & ~upper] <= 0.5 + 1e-6).all()
    assert 0.4 < upper.float().mean() < 0.6
    assert not any(torch.equal(row, other) for row in test for other in train)
    _, same_test = points(train=200, test=100, noise=0.0)
    assert torch.equal(same_test, test)
    assert torch.equal(next(points(train=300, test=100, noise=0.0)), train)
    assert not torch.equal(next(points(train=300, test=100, noise=0.0, seed=1)), train)
    noisy = next(points(train=300, test=100, noise=0.2))
    assert (noisy - train).std().item() == pytest.approx(0.2, rel=0.1)


def test_two_moons_are_learned_drawn_measured_and_exported(here: Genkit, tmp_path: Path) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    settings = ["dataset.train=4000", "dataset.test=500", "prior.transforms=2", "training.learning_rate=5e-3"]
    here("train", "--model", "two_moons_flow", "--epochs", 8, "--out", run, *(f"--set={s}" for s in settings))
    here("sample", run, "-n", 200, "--out", tmp_path / "moons.png")
    width, height = picture_size(tmp_path / "moons.png")
    assert width == height
    measured = json.loads(here("evaluate", run, "--samples", 1, "--json").stdout)
    # ln(area) of where the moons are is about 1; a normal distribution of the same mean and covariance gives -1.9
    assert measured["log_likelihood"]["value"] > -1.25
    assert measured["log_likelihood"]["value"] == pytest.approx(-measured["terms"]["loss"], abs=1e-4)

    here("export", run, "--out", bundle)
    z = onnxruntime.InferenceSession(bundle / "prior.onnx").run(["z"], {"normal": torch.randn(2000, 2).numpy()})[0]
    (x,) = onnxruntime.InferenceSession(bundle / "decoder.onnx").run(["x"], {"z": z})
    moons = two_moons(train=1, test=2000, noise=0.0).test.tensors[0]  # type: ignore[attr-defined]
    away = torch.cdist(torch.from_numpy(x), moons).amin(1)
    assert away.median() < 0.15
    assert away.quantile(0.95) < 0.5
    assert torch.cdist(moons, torch.from_numpy(x)).amin(1).max() < 0.3  # no part of either moon is left out


# zuko


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_without_zuko_only_the_flows_are_missing_and_the_message_names_the_remedy() -> None:
    done = _python(
        "import sys\n"
        "sys.modules['zuko'] = None\n"
        "from genkit.cli import main\n"
        "statuses = [main(['show', name]) for name in ('two_moons_flow', 'mnist_flow', 'mnist_vae')]\n"
        "statuses.append(main(['components']))\n"
        "import genkit_flows.identity, genkit_flows.moons\n"
        "print(*statuses, file=sys.stderr)"
    )
    *messages, statuses = done.stderr.splitlines()
    assert statuses == "2 2 0 0"
    assert [re.sub(r"^.*: (the \w+ '\w+') of the plugin.*$", r"\1", line) for line in messages] == [
        "the prior 'zuko_flow'",
        "the encoder 'flow_mlp'",
    ]
    assert all('pip install "genkit-torch[flows]"' in line for line in messages)
    assert "mnist_vae" in done.stdout
    assert "flow_mlp" in done.stdout


def test_zuko_does_not_switch_off_the_checks_of_other_distributions() -> None:
    done = _python("import genkit_flows.flows\nfrom torch.distributions import Normal\nNormal(0.0, -1.0)")
    assert "ValueError: Expected parameter scale" in done.stderr
