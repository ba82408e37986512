"""What ``genkit evaluate`` measures, held against models whose answers are known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Genkit
from PIL import Image
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal, TransformedDistribution
from torch.utils.data import TensorDataset

import genkit
from genkit.distributions import log_density
from genkit.inference import Density, asking, log_likelihood, posterior_means, squared_errors, variance_of_means
from genkit.training.batches import batches_of, for_measurement

SPEC = genkit.Spec(event_shape=(3,), latent_shape=(3,), value_range=(-1.0, 1.0))


class Copies(genkit.Encoder):
    """z = x in the first element, and noise around the same place for every x in the others."""

    outputs = ("loc",)
    flow = False

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return (x * torch.tensor([1.0, 0.05, 0.0]),)

    def posterior(self, *params: Tensor) -> Distribution:
        normal = Independent(Normal(params[0], 0.5), 1)
        # a distribution that torch can draw from, but whose mean it does not know
        return TransformedDistribution(normal, []) if self.flow else normal


class Half(genkit.Decoder):
    """x = z / 2."""

    outputs = ("x",)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return (z * self.scale,)

    def likelihood(self, *params: Tensor) -> Distribution:
        return Independent(Normal(params[0], 1.0), 1)


class Standard(genkit.Prior):
    def forward(self, condition: Tensor | None = None, posterior: object = None) -> Distribution:
        return Independent(Normal(torch.zeros(3), torch.ones(3)), 1)


def model(*, flow: bool = False) -> genkit.LatentModel:
    encoder = Copies()
    encoder.flow = flow
    return genkit.LatentModel(SPEC, encoder, Half(), Standard())


@pytest.mark.parametrize("flow", [False, True])
def test_a_latent_is_active_where_its_posterior_mean_varies_with_the_data(*, flow: bool) -> None:
    """With data of variance 1/3, the means have the variances 1/3, 0.0025 / 3 and 0; only the first is above 0.01."""
    x = torch.rand(4000, 3) * 2 - 1
    pairs = [posterior_means(model(flow=flow), genkit.Batch(part), 32) for part in x.split(500)]
    variances = variance_of_means(pairs)
    expected = torch.tensor([1 / 3, 0.0025 / 3, 0.0], dtype=torch.float64)
    assert torch.allclose(variances, expected, atol=0.012 if not flow else 0.015)
    assert (variances > 0.01).tolist() == [True, False, False]


def test_sampled_means_do_not_count_their_own_noise_as_activity() -> None:
    """The mean of 32 draws has a variance of 0.25 / 32 = 0.008 by itself; with 4 draws it would pass the threshold."""
    pairs = [posterior_means(model(flow=True), genkit.Batch(torch.zeros(4000, 3)), 4)]
    assert pairs[0][0].var(0).min() > 0.05
    assert variance_of_means(pairs).abs().max() < 0.005


def test_the_reconstruction_error_is_measured_in_the_unit_range() -> None:
    """With z = x + noise, x' - x = -x / 2 + noise / 4 in the model's range, whose width is 2."""
    x = torch.full((20000, 3), 0.8)
    x[:, 1:] = 0
    errors = squared_errors(model(), genkit.Batch(x))
    assert errors.shape == (20000,)
    assert errors.mean().item() == pytest.approx(((0.4) ** 2 + 3 * 0.25**2) / 4, rel=0.02)


def test_the_estimate_does_not_depend_on_how_many_samples_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = genkit.Batch(torch.rand(20000, 3))
    whole = log_likelihood(model(), batch, 10)
    monkeypatch.setattr("genkit.inference._AT_ONCE", 7 * batch.x.numel())  # 7 at a time, and 3 in the end
    pieces = log_likelihood(model(), batch, 10)
    assert not torch.equal(whole, pieces)
    assert pieces.mean().item() == pytest.approx(whole.mean().item(), abs=0.03)


@pytest.mark.parametrize(
    "distribution",
    [
        Independent(Normal(torch.randn(5, 4, 2, 3), 0.7), 2),
        Independent(Normal(torch.randn(4, 6), torch.tensor(0.01)), 1),
        Independent(Normal(torch.randn(5, 4, 2, 3), torch.rand(2, 3) + 0.1), 2),
        Independent(Normal(torch.randn(4, 6), torch.rand(4, 1) + 0.1), 1),
        Independent(Normal(torch.randn(4, 6), 2.0), 0),
        Independent(Bernoulli(logits=torch.randn(5, 4, 2, 3)), 2),
        Normal(torch.randn(4), 1.0),
    ],
    ids=repr,
)
def test_a_density_in_few_passes_is_the_density(distribution: Distribution) -> None:
    value = torch.rand(distribution.batch_shape[-1:] + distribution.event_shape).round()
    torch.testing.assert_close(log_density(distribution, value), distribution.log_prob(value), rtol=1e-5, atol=1e-4)


def test_a_density_is_evaluated_in_parts_that_stay_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    class Labelled(Half):
        def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
            assert condition is not None
            rows.append(len(z))
            return (z * self.scale + condition[:, None],)

    labelled = genkit.LatentModel(SPEC, Copies(), Labelled(), Standard())
    z, x, labels = torch.randn(5, 7, 3), torch.rand(7, 3), torch.arange(7)
    whole = Density(labelled, 0)(z, x, labels)
    monkeypatch.setattr("genkit.inference._CACHED", 5 * 2 * 3)  # two observations, with their five samples
    parts = Density(labelled, 0)(z, x, labels)
    assert rows == [5 * 7, 5 * 2, 5 * 2, 5 * 2, 5]
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(whole, labelled.likelihood(z, labels).log_prob(x))


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler")
def test_a_large_request_is_compiled_and_gives_what_a_small_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    x, samples = torch.rand(6, 3), 10
    monkeypatch.setattr("genkit.inference._AT_ONCE", 4 * x.numel())  # 4 at a time, and 2 in the end
    monkeypatch.setattr("genkit.inference._CACHED", 2 * x.numel())  # in two parts, or one
    monkeypatch.setattr("genkit.inference._WORTH_COMPILING", len(x) * samples)
    asked = model()
    small, large = Density(asked, len(x) * samples - 1), Density(asked, len(x) * samples)
    results = []
    for density in (small, large):
        with asking(asked, 0):
            results.append(log_likelihood(asked, genkit.Batch(x), samples, density))
    assert small.compiled is None
    assert large.compiled is not None, "it was compiled, and the compiler did not fail"
    torch.testing.assert_close(*results)


def test_where_nothing_can_be_compiled_a_large_request_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> Callable[..., Tensor]:
        def run(*_: object) -> Tensor:
            raise RuntimeError("no compiler")

        return run

    monkeypatch.setattr("torch.compile", failing)
    density, z = Density(model(), 2**40), torch.rand(2, 6, 3)
    x = torch.rand(6, 3)
    assert density.compiled is not None
    assert torch.equal(density(z, x), density.evaluate(z, x, None))
    assert density.compiled is None


def test_memory_that_runs_out_halves_the_samples_at_once() -> None:
    asked: list[int] = []

    class Large(Half):
        def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
            asked.append(len(z) // 4)
            if len(z) > 4 * 10:
                raise torch.OutOfMemoryError
            return super().forward(z, condition)

    large = genkit.LatentModel(SPEC, Copies(), Large(), Standard())
    estimate = log_likelihood(large, genkit.Batch(torch.rand(4, 3)), 64)
    assert estimate.isfinite().all()
    assert sum(n for n in asked if n <= 10) == 64
    assert asked == [64, 32, 16, *[8] * 8]


def test_a_point_mass_over_continuous_values_has_no_density() -> None:
    class Deterministic(Copies):
        def posterior(self, *params: Tensor) -> Distribution:
            return genkit.Delta(params[0], 1)

    sure = genkit.LatentModel(SPEC, Deterministic(), Half(), Standard())
    with pytest.raises(genkit.NoDensity, match="a point mass over continuous values has no density"):
        log_likelihood(sure, genkit.Batch(torch.rand(4, 3)), 2)


def test_a_point_mass_is_its_value_whatever_is_asked() -> None:
    value = torch.randn(5, 3, requires_grad=True)
    delta = genkit.Delta(value, 1, log_density=0.0)
    assert (delta.batch_shape, delta.event_shape) == ((5,), (3,))
    z = delta.rsample((4,))
    assert torch.equal(z, value.expand(4, 5, 3))
    z.sum().backward()
    assert torch.equal(value.grad, torch.full((5, 3), 4.0))
    assert not delta.sample().requires_grad
    assert torch.equal(delta.log_prob(z), torch.zeros(4, 5))
    assert torch.equal(delta.log_prob(z + 1), torch.full((4, 5), -torch.inf))
    assert delta.expand((2, 5)).batch_shape == (2, 5)
    assert torch.equal(delta.expand((2, 5)).log_prob(value), torch.zeros(2, 5)), "one observation, several latents"
    codes = genkit.Delta(torch.tensor([[1, 2]]), 1, log_density=0.0)
    assert not codes.has_rsample
    assert codes.sample((3,)).dtype == torch.int64


@pytest.mark.parametrize("binarization", ["none", "static", "dynamic"])
def test_results_say_how_the_images_were_binarized(here: Genkit, tmp_path: Path, binarization: str) -> None:
    settings = ["--set", "dataset.limit=64", "--set", f"dataset.binarization={binarization}"]
    here("train", "--model", "mnist_vae", "--epochs", 1, *settings, "--out", tmp_path / "run")
    result = json.loads(here("evaluate", tmp_path / "run", "--samples", 2, "--json").stdout)
    assert result["dataset"] == {"use": "mnist", "limit": 64, "binarization": binarization}
    again = json.loads(here("evaluate", tmp_path / "run", "--samples", 2, "--json").stdout)
    assert again == result, "what is drawn for a measurement is drawn alike each time"
    table = here("evaluate", tmp_path / "run", "--samples", 2).stdout
    assert f"64 of mnist (limit 64, binarization {binarization})" in table
    assert "active units" in table
    assert "of 20" in table


def test_everything_is_measured_on_the_same_draw_of_the_test_set() -> None:
    """However much a measurement draws for itself between two batches."""
    grey = TensorDataset(torch.randint(0, 256, (40, 3), dtype=torch.uint8))
    x = genkit.Transformed(grey, lambda x: (torch.randint_like(x, 255) < x).to(torch.uint8) * 255)
    data = genkit.Data(x, x, (3,))
    batches = batches_of(data, data.test, 16, (0.0, 1.0), None, torch.device("cpu"), 0)

    def seen(draws: int, seed: int) -> Tensor:
        pieces = []
        for batch in for_measurement(batches, seed):
            pieces.append(batch.x)
            torch.randn(draws)
        return torch.cat(pieces)

    assert torch.equal(seen(1, 0), seen(1000, 0))
    assert not torch.equal(seen(1, 0), seen(1, 1))
    assert not torch.equal(seen(1, 0)[:16], seen(1, 0)[16:32])


def test_a_label_is_refused_by_a_model_that_does_not_look_at_it(here: Genkit, mnist_run: Path, tmp_path: Path) -> None:
    done = here("sample", mnist_run, "--condition", 3, "--out", tmp_path / "s.png", check=False)
    assert (done.returncode, done.stderr) == (2, "error: condition = 3: this model takes no label; leave it out\n")
    assert not (tmp_path / "s.png").exists()


def test_what_is_infinite_is_null_with_the_reason(here: Genkit, tmp_path: Path) -> None:
    """A normal posterior reaches beyond a bounded prior."""
    settings = ["--set", "dataset.limit=64", "--set", "prior=uniform_noise"]
    diverged = here("train", "--model", "mnist_binary_vae", *settings, "--out", tmp_path / "run", check=False)
    assert diverged.returncode == 1
    arguments = ["evaluate", tmp_path / "run", "--checkpoint", 0, "--samples", 2]
    result = json.loads(here(*arguments, "--json").stdout)
    assert result["terms"]["kl"] is None
    assert result["log_likelihood"]["value"] is None
    assert "of 64 observations" in result["log_likelihood"]["reason"]
    assert "not finite" in here(*arguments).stdout


def test_a_bundle_does_not_tell_where_the_data_lay(here: Genkit, tmp_path: Path) -> None:
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i, 10, 20)).save(tmp_path / f"{i}.png")
    settings = ["--set", "dataset=images", "--set", f"dataset.path={tmp_path}", "--set", "dataset.size=16"]
    here("train", "--model", "shapes_vae", "--epochs", 1, *settings, "--out", tmp_path / "run")
    here("export", tmp_path / "run", "--out", tmp_path / "bundle")
    manifest = (tmp_path / "bundle" / "manifest.json").read_text()
    assert json.loads(manifest)["recipe"]["dataset"]["path"] == tmp_path.name
    assert str(tmp_path) not in manifest
