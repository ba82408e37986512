"""Adversarial models: what each player wants, what it may move, and where the game ends."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from helpers import Genkit
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional
from torch.utils.data import TensorDataset

import genkit
from genkit.assemble import Composition, assemble, resolve
from genkit.inference import sample
from genkit.training.loop import Trainer

CPU = torch.device("cpu")
OBJECTIVES = ("cross_entropy", "least_squares")
MEAN, SCALE = torch.tensor([3.0, -2.0]), torch.tensor([0.5, 1.0])


def points(*, count: int = 4096) -> genkit.Data:
    """A normal cloud around ``MEAN``."""
    x = MEAN + SCALE * torch.randn(count + 512, 2, generator=torch.Generator().manual_seed(1))
    return genkit.Data(TensorDataset(x[:count]), TensorDataset(x[count:]), (2,))


@pytest.fixture(scope="module")
def registry() -> genkit.Registry:
    registry = genkit.load_plugins().registry
    registry.dataset("points", points)
    return registry


GAN = genkit.Recipe(
    "gan",
    dataset=genkit.Choice("points"),
    decoder=genkit.Choice("generator_mlp", hidden=[32]),
    prior=genkit.Choice("uniform_noise"),
    loss=genkit.Choice("generative_adversarial", widths=[32, 32]),
    latent_shape=(3,),
    value_range=None,
    training=genkit.TrainingOptions(
        epochs=6,
        batch_size=64,
        learning_rate=5e-3,
        optimizer_options={"betas": [0.5, 0.999]},
        schedule="linear",
        evaluate_every=0,
        checkpoint_every=100,
    ),
)
AAE = dataclasses.replace(
    GAN,
    name="aae",
    encoder=genkit.Choice("deterministic_mlp", hidden=[32]),
    decoder=genkit.Choice("mlp", hidden=32),
    loss=genkit.Choice("latent_adversarial", widths=[32, 32]),
    latent_shape=(1,),
    value_range=(-8.0, 8.0),
).with_training(epochs=24, batch_size=256, learning_rate=4e-3)


def train(task: genkit.Task, recipe: genkit.Recipe, folder: Path) -> genkit.LatentModel:
    """The model after a run of the real trainer."""
    trainer = Trainer(dataclasses.replace(task, pictures={}), recipe.training, CPU, lambda *_, **__: None)
    assert trainer.fit(genkit.Run.create(folder, recipe, {})) == "finished"
    assert isinstance(task.module, Composition)
    return task.module.model


def states(task: genkit.Task) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in task.module.named_parameters()}


def moved(task: genkit.Task, before: dict[str, Tensor]) -> set[str]:
    """The parts of the model whose parameters changed."""
    changed = [name for name, value in states(task).items() if not torch.equal(value, before[name])]
    return {".".join(name.split(".")[:2]) for name in changed}


class Shift(genkit.Decoder):
    """x = z + shift."""

    outputs = ("x",)

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([shift]))

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return (z + self.shift,)

    def likelihood(self, *params: Tensor) -> Distribution:
        return genkit.Delta(params[0], 1)


class Standard(genkit.Prior):
    def forward(
        self, condition: Tensor | None = None, posterior: Callable[..., Distribution] | None = None
    ) -> Distribution:
        return Independent(Normal(torch.zeros(1), torch.ones(1)), 1)


def shifted(registry: genkit.Registry, objective: str, shift: float) -> tuple[genkit.Loss, Sequence[genkit.Turn]]:
    """The game against a generator of N(shift, 1)."""
    spec = genkit.Spec((1,), (1,), None)
    loss = registry.get("loss", "generative_adversarial").load()(spec, objective=objective, widths=(32,))
    return loss, loss.turns(genkit.LatentModel(spec, None, Shift(shift), Standard()))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_best_discriminator_is_the_ratio_of_the_densities(registry: genkit.Registry, objective: str) -> None:
    """Between N(1, 1) and N(-1, 1), the probability that x is of the first is sigmoid(2x)."""
    _, (turn, _) = shifted(registry, objective, shift=-1.0)
    optimizer = torch.optim.Adam(turn.parameters, 2e-2)
    for _ in range(300):
        optimizer.zero_grad()
        turn(genkit.Batch(1 + torch.randn(256, 1))).total.backward(inputs=turn.parameters)
        optimizer.step()
    x = torch.linspace(-2, 2, 9)[:, None]
    verdict = turn(genkit.Batch(x)).terms["real"]
    assert torch.allclose(verdict, torch.sigmoid(2 * x[:, 0]), atol=0.08)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_turn_minimises_the_published_formula(registry: genkit.Registry, objective: str) -> None:
    loss, (judge, forge) = shifted(registry, objective, shift=0.5)
    x = torch.randn(8, 1)
    torch.manual_seed(3)
    judged = judge(genkit.Batch(x))
    torch.manual_seed(3)
    forged = forge(genkit.Batch(x))
    torch.manual_seed(3)
    fakes = torch.randn(1, 8, 1)[0] + 0.5
    (discriminator,) = loss.children()
    of_real, of_fake = discriminator(x), discriminator(fakes)
    if objective == "cross_entropy":
        of_real, of_fake = of_real.sigmoid(), of_fake.sigmoid()
        ones, zeros = torch.ones(8), torch.zeros(8)
        cost = functional.binary_cross_entropy
        expected = cost(of_real, ones, reduction="none") + cost(of_fake, zeros, reduction="none")
        wanted = cost(of_fake, ones, reduction="none")  # - log D(G(z)), not log(1 - D(G(z)))
    else:
        expected = ((of_real - 1) ** 2 + of_fake**2) / 2
        wanted = (of_fake - 1) ** 2 / 2
    assert torch.allclose(judged.objective, expected, atol=1e-6)
    assert torch.allclose(forged.objective, wanted, atol=1e-6)
    assert torch.allclose(judged.terms["real"], of_real)
    assert torch.allclose(judged.terms["fake"], of_fake)
    assert torch.equal(judged.terms["fake"], forged.terms["fake"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_generator_moves_towards_what_is_taken_for_real_and_the_discriminator_tells_better(
    registry: genkit.Registry, objective: str
) -> None:
    _, (judge, forge) = shifted(registry, objective, shift=-1.0)
    batch = genkit.Batch(1 + torch.randn(512, 1))
    optimizer = torch.optim.SGD(judge.parameters, 0.1)
    before = judge(batch).terms
    for _ in range(50):
        optimizer.zero_grad()
        judge(batch).total.backward(inputs=judge.parameters)
        optimizer.step()
    after = judge(batch).terms
    assert after["real"].mean() - after["fake"].mean() > before["real"].mean() - before["fake"].mean() + 0.1
    (gradient,) = torch.autograd.grad(forge(batch).total, list(forge.parameters))
    assert gradient.item() < 0  # so that descent raises the shift, from -1 towards 1


@pytest.mark.parametrize(
    ("recipe", "turn", "moves"),
    [
        (GAN, "discriminator", {"loss.discriminator"}),
        (GAN, "generator", {"model.decoder"}),
        (AAE, "autoencoder", {"model.encoder", "model.decoder"}),
        (AAE, "discriminator", {"loss.discriminator"}),
    ],
)
def test_a_turn_moves_its_own_player_and_no_other(
    registry: genkit.Registry, tmp_path: Path, recipe: genkit.Recipe, turn: str, moves: set[str]
) -> None:
    recipe = recipe.with_settings(["dataset.count=128", "training.epochs=1"])
    task = assemble(recipe, registry)
    alone = dataclasses.replace(task, turns=lambda: [t for t in task.turns() if t.name == turn])
    before = states(task)
    train(alone, recipe, tmp_path / "run")
    assert moved(task, before) == moves


@pytest.mark.parametrize("recipe", [GAN, AAE])
def test_the_discriminators_turn_builds_no_graph_through_what_makes_the_fakes(
    registry: genkit.Registry, recipe: genkit.Recipe
) -> None:
    task = assemble(recipe, registry)
    turns = {turn.name: turn for turn in task.turns()}
    batch = genkit.Batch(torch.randn(8, 2))
    others = [p for name, turn in turns.items() if name != "discriminator" for p in turn.parameters]
    gradients = torch.autograd.grad(turns["discriminator"](batch).total, others, allow_unused=True)
    assert all(gradient is None for gradient in gradients)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_generator_learns_where_the_data_lie_and_how_far_they_spread(
    registry: genkit.Registry, tmp_path: Path, objective: str
) -> None:
    recipe = GAN.with_settings([f"loss.objective={objective}"])
    torch.manual_seed(0)
    task = assemble(recipe, registry)
    assert isinstance(task.module, Composition)
    untrained = sample(task.module.model, 2000)
    assert (untrained.mean(0) - MEAN).norm() > 2
    drawn = sample(train(task, recipe, tmp_path / "run"), 2000)
    assert (drawn.mean(0) - MEAN).norm() < 0.4
    assert torch.all((drawn.std(0) / SCALE).log().abs() < 0.6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_adversarial_autoencoder_weighs_its_error_against_the_discriminators_disbelief(
    registry: genkit.Registry, objective: str
) -> None:
    task = assemble(AAE.with_settings([f"loss.objective={objective}", "loss.weight=3"]), registry)
    model, loss = task.module.model, task.module.loss
    x = torch.randn(8, 2)
    autoencoder, _ = task.turns()
    terms = autoencoder(genkit.Batch(x))
    z = model.encoder(x)[0]
    error = (model.decoder(z)[0] - x).square().sum(1)
    score = loss.discriminator(z)
    disbelief = -functional.logsigmoid(score) if objective == "cross_entropy" else 0.5 * (score - 1) ** 2
    assert torch.allclose(terms.objective, error + 3 * disbelief, atol=1e-5)
    assert torch.allclose(terms.terms["reconstruction"], error, atol=1e-5)


@pytest.mark.parametrize(("prior", "scale"), [("standard_normal", 1.0), ("uniform_noise", 3**-0.5)])
def test_the_latents_of_an_adversarial_autoencoder_take_the_shape_of_the_prior(
    registry: genkit.Registry, tmp_path: Path, prior: str, scale: float
) -> None:
    recipe = AAE.with_settings([f"prior={prior}"])
    torch.manual_seed(0)
    task = assemble(recipe, registry)
    model = train(task, recipe, tmp_path / "run").eval()
    x = task.data.test.tensors[0]  # type: ignore[attr-defined]
    with torch.no_grad():
        step = model(genkit.Batch(x))
    z, error = step.z[0], (step.likelihood.mean[0] - x).square().sum(1).mean()
    assert z.mean().abs() < 0.2 * scale
    assert (z.std() / scale).log().abs() < 0.3
    assert error < 0.3 * x.var(0).sum()  # the direction that one latent cannot hold has 0.2 of the variance


def test_uniform_noise_has_the_density_and_the_bounds_that_it_was_given(registry: genkit.Registry) -> None:
    uniform = registry.get("prior", "uniform_noise").load()
    noise = uniform(genkit.Spec((2,), (3, 2)), low=-2.0, high=6.0)()
    z = noise.sample((1000,))
    assert z.shape == (1000, 3, 2)
    assert -2 <= z.min() < -1.9
    assert 5.9 < z.max() <= 6
    assert noise.log_prob(z)[0].item() == pytest.approx(-6 * torch.tensor(8.0).log().item())
    with pytest.raises(genkit.InvalidOption, match=r"low = 1.0, high = 1.0: .*the lower one first"):
        uniform(genkit.Spec((2,), (3,)), low=1.0, high=1.0)


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-3.0, 5.0), None])
@pytest.mark.parametrize("name", ["generator_mlp", "generator_conv"])
def test_a_generator_fills_the_value_range_and_has_no_density(
    registry: genkit.Registry, name: str, value_range: tuple[float, float] | None
) -> None:
    spec = genkit.Spec((3, 8, 12), (2, 5), value_range)
    generator = registry.get("decoder", name).load()(spec).eval()
    (x,) = generator(1e4 * torch.randn(6, 2, 5))
    assert x.shape == (6, 3, 8, 12)
    if value_range is None:
        assert x.abs().max() > 100
    else:
        assert (x.min().item(), x.max().item()) == pytest.approx(value_range)
    likelihood = generator.likelihood(x)
    assert torch.equal(likelihood.mean, x)
    with pytest.raises(genkit.NoDensity):
        likelihood.log_prob(x)


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 10)])
def test_a_discriminator_judges_images_of_any_size(
    registry: genkit.Registry, network: str, shape: tuple[int, ...]
) -> None:
    loss = registry.get("loss", "generative_adversarial").load()(
        genkit.Spec(shape, (2,)), network=network, widths=(4, 8)
    )
    (discriminator,) = loss.children()
    assert discriminator(torch.randn(5, *shape)).shape == (5,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["decoder=generator_conv"], r"decoder.channels = \[64, 32\]: 2 doublings .* not events \(2,\).*generator_mlp"),
        (["loss.network=conv"], r"loss.network = 'conv': it judges images \(C, H, W\), not \(2,\); take 'mlp'"),
        (["loss.objective=hinge"], r"loss.objective = 'hinge': .*'cross_entropy' or 'least_squares'"),
        (["encoder=deterministic_mlp"], r"'generative_adversarial' has nothing to teach an encoder; set encoder=null"),
        (["loss=latent_adversarial"], r"'latent_adversarial' needs a posterior; give the recipe an encoder"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_a_remedy(
    registry: genkit.Registry, settings: list[str], message: str
) -> None:
    with pytest.raises(genkit.GenkitError, match=message):
        assemble(resolve(GAN.with_settings(settings), registry), registry).turns()


def test_a_trained_gan_is_drawn_from_has_no_likelihood_and_exports_a_decoder_alone(
    here: Genkit, tmp_path: Path
) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    small = ["decoder.channels=[4,2]", "loss.widths=[2,4]", "latent_shape=[5]", "dataset.limit=128"]
    options = [part for setting in small for part in ("--set", setting)]
    here("train", "--model", "mnist_gan", "--epochs", 1, "--out", run, *options)
    (row,) = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    names = {f"discriminator/{n}" for n in ("loss", "real", "fake")} | {f"generator/{n}" for n in ("loss", "fake")}
    assert row["train"].keys() == row["test"].keys() == {"loss", *names}
    likelihood = json.loads(here("evaluate", run, "--samples", 2, "--json").stdout)["log_likelihood"]
    assert likelihood["value"] is None
    assert likelihood["reason"].startswith("no density")
    assert "this model has no encoder" in here("encode", run, check=False).stderr
    here("export", run, "--out", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [graph["name"] for graph in manifest["graphs"]] == ["decoder"]
    assert manifest["absent"] == [{"name": "encoder", "reason": "the model has no encoder"}]
    assert manifest["prior"]["distribution"] == {"kind": "uniform", "parameters": [-1.0, 1.0]}
    here("sample", bundle, "-n", 4, "--out", tmp_path / "samples.png")
    assert (tmp_path / "samples.png").is_file()
