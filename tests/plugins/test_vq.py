"""The VQ-VAE: its codebook held against the paper's formulas, its prior against sums over every grid of codes."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from genkit_onnx.exporter import OnnxExporter
from genkit_vq.codebook import Codebook
from genkit_vq.components import VQ, VQConvDecoder, VQConvEncoder
from genkit_vq.prior import AutoregressiveCodes
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.utils.data import TensorDataset

import genkit
from genkit.graphs import latent_graphs
from genkit.inference import asking, log_likelihood, reconstruct

SPEC = genkit.Spec(event_shape=(1, 8, 8), latent_shape=(2, 2))


def data_of(images: Tensor) -> genkit.Data:
    dataset = TensorDataset(images)
    return genkit.Data(dataset, dataset, tuple(images.shape[1:]))


def pixels(n: int) -> Tensor:
    return torch.rand(n, *SPEC.event_shape).round()


def vqvae(codes: int = 6, dimension: int = 3) -> genkit.LatentModel:
    encoder = VQConvEncoder(SPEC, width=8, blocks=1)
    decoder = VQConvDecoder(SPEC, codes=codes, dimension=dimension, width=8, blocks=1)
    model = genkit.LatentModel(SPEC, encoder, decoder, AutoregressiveCodes(SPEC, codes=codes, width=8, layers=2))
    prepare(model)
    return model


def prepare(model: genkit.LatentModel) -> None:
    for component in (model.encoder, model.decoder, model.prior):
        component.prepare(model, data_of(pixels(4)))


def grid_prior(codes: int, *shape: int, layers: int = 2) -> AutoregressiveCodes:
    """A prior with large random weights, so that codes depend strongly on each other, in float64."""
    prior = AutoregressiveCodes(genkit.Spec((1, 8, 8), shape), codes=codes, width=8, layers=layers)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return prior.double()


def every_grid(codes: int, height: int, width: int) -> Tensor:
    return torch.tensor(list(product(range(codes), repeat=height * width))).reshape(-1, height, width)


def copied(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


# The codebook


def test_every_vector_gets_the_code_that_is_nearest_to_it() -> None:
    codebook = Codebook(5, 3)
    vectors = torch.randn(4, 3, 2, 6)
    codes = codebook.nearest(vectors)
    distances = (vectors[:, None] - codebook.vectors[None, :, :, None, None]).square().sum(2)  # (4, 5, 2, 6)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, distances.argmin(1))
    assert torch.equal(codebook.lookup(codes)[1, :, 0, 5], codebook.vectors[codes[1, 0, 5]])
    assert torch.equal(codebook.nearest(codebook.lookup(codes)), codes)


def test_the_moving_averages_are_those_of_the_paper() -> None:
    codebook = Codebook(3, 2)
    size, total = codebook.sizes.tolist(), codebook.sums.tolist()
    decay, epsilon = 0.9, 1e-5
    for _ in range(3):
        vectors, codes = torch.randn(4, 2, 3), torch.randint(2, (4, 3))  # the code 2 is never used
        codebook.update(vectors, codes, decay)
        for i in range(3):
            members = [vectors[b, :, j].tolist() for b in range(4) for j in range(3) if codes[b, j] == i]
            size[i] = decay * size[i] + (1 - decay) * len(members)
            for d in range(2):
                total[i][d] = decay * total[i][d] + (1 - decay) * sum(member[d] for member in members)
    smoothed = [(n + epsilon) / (sum(size) + 3 * epsilon) * sum(size) for n in size]
    expected = [[total[i][d] / smoothed[i] for d in range(2)] for i in range(3)]
    torch.testing.assert_close(codebook.sizes, torch.tensor(size))
    torch.testing.assert_close(codebook.vectors, torch.tensor(expected))


def test_codes_that_are_not_used_begin_anew_where_errors_are_large() -> None:
    vectors = torch.cat([0.01 * torch.randn(90, 2), torch.tensor([5.0, 5.0]) + 0.01 * torch.randn(10, 2)])

    def after(revival: float, seed: int) -> Tensor:
        torch.manual_seed(0)
        codebook = Codebook(4, 2)
        codebook.update(torch.zeros(100, 2), torch.zeros(100, dtype=torch.int64), 0.0)
        torch.manual_seed(seed)
        codebook.update(vectors, torch.zeros(100, dtype=torch.int64), 0.9, revival)
        return codebook.vectors

    left, revived = after(0.0, 1), after(0.01, 1)
    assert not any((vector == vectors).all(1).any() for vector in left)
    torch.testing.assert_close(revived[0], left[0])
    assert all((vector == vectors).all(1).any() for vector in revived[1:])
    assert len(revived[1:].unique(dim=0)) == 3
    assert (revived[1:] > 4).all(), "the far vectors are a tenth of all, and have nearly all of the error"
    assert torch.equal(revived, after(0.01, 1))
    assert not torch.equal(revived, after(0.01, 2))


def test_fewer_vectors_than_dead_codes_are_enough_to_begin_anew() -> None:
    codebook = Codebook(8, 2)
    vectors = torch.randn(3, 2)
    codebook.update(vectors, codebook.nearest(vectors), 0.5, 1.0)
    assert codebook.vectors.isfinite().all()


# The loss


def test_the_encoder_gets_the_gradient_that_the_codes_vectors_would_get() -> None:
    model, batch = vqvae(), genkit.Batch(pixels(5))
    parameters = list(model.encoder.parameters())
    terms = VQ(SPEC, commitment=0.25).eval().turns(model)[0](batch)
    found = torch.autograd.grad(terms.total, parameters)

    codes, vectors = model.encoder(batch.x)
    e = model.decoder.codebook.vectors[codes].movedim(-1, 1).requires_grad_()
    logits = model.decoder.net(e)
    reconstruction = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.x, reduction="sum") / 5
    (straight,) = torch.autograd.grad(reconstruction, e)
    commitment = 0.25 * 2 * (vectors - e).detach() / 5
    expected = torch.autograd.grad(vectors, parameters, straight + commitment)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert terms.terms["reconstruction"].sum().item() == pytest.approx(reconstruction.item() * 5, rel=1e-5)
    assert terms.terms["commitment"].sum().item() == pytest.approx((vectors - e).square().sum().item(), rel=1e-5)


def test_neither_turn_sends_a_gradient_into_the_other() -> None:
    model, batch = vqvae(), genkit.Batch(pixels(5))
    turns = VQ(SPEC).turns(model)
    owners = [(model.encoder, model.decoder), (model.prior,)]
    for turn, own in zip(turns, owners, strict=True):
        model.zero_grad()
        turn(batch).total.backward()  # not even where it is not confined to the turn's parameters
        reached = {id(p) for p in model.parameters() if p.grad is not None}
        assert reached == {id(p) for p in turn.parameters} == {id(p) for part in own for p in part.parameters()}


def test_only_training_moves_the_codebook() -> None:
    model, loss, batch = vqvae(), VQ(SPEC), genkit.Batch(pixels(5))
    before = copied(model)
    for turn in loss.eval().turns(model):
        turn(batch)
    assert moved(model, before) == set()
    for turn in loss.train().turns(model):
        turn(batch)
    buffers = {f"{part}.codebook.{name}" for part in ("encoder", "decoder") for name in ("vectors", "sizes", "sums")}
    assert moved(model, before) == buffers


def test_perplexity_is_the_number_of_codes_that_are_equally_used() -> None:
    model, batch = vqvae(), genkit.Batch(pixels(2))
    codes, _ = model.encoder(batch.x)
    shares = codes.flatten().bincount().double() / codes.numel()
    entropy = -sum(p * np.log(p) for p in shares.tolist() if p)
    terms = VQ(SPEC).eval().turns(model)[0](batch).terms
    assert terms["perplexity"].item() == pytest.approx(np.exp(entropy), rel=1e-5)


def test_the_log_likelihood_is_that_of_the_image_given_its_codes_and_of_the_codes() -> None:
    model, batch = vqvae(), genkit.Batch(pixels(5))
    with asking(model, 0):
        codes, _ = model.encoder(batch.x)
        expected = model.likelihood(codes).log_prob(batch.x) + model.prior_given().log_prob(codes)
        for k in (1, 7):
            torch.testing.assert_close(log_likelihood(model, batch, k), expected)


def test_training_raises_the_bound_and_ends_with_reconstructions() -> None:
    patterns = torch.zeros(4, 1, 8, 8)
    patterns[0, :, :4], patterns[1, :, :, :4], patterns[2, :, 4:, 4:], patterns[3, :, 2:6] = 1, 1, 1, 1
    model, batch = vqvae(codes=8), genkit.Batch(patterns.repeat(8, 1, 1, 1))
    turns = VQ(SPEC, decay=0.9).turns(model)
    optimizers = [torch.optim.Adam(turn.parameters, lr=1e-2) for turn in turns]

    def bound() -> float:
        with asking(model, 0):
            return log_likelihood(model, batch, 1).mean().item()

    assert bound() < -45
    for _ in range(100):
        for turn, optimizer in zip(turns, optimizers, strict=True):
            optimizer.zero_grad()
            turn(batch).total.backward()
            optimizer.step()
    assert bound() > -20
    assert (reconstruct(model, patterns) - patterns).abs().mean() < 0.1


# The prior


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (3, 1)])
def test_the_probabilities_of_all_grids_add_up_to_one(shape: tuple[int, int]) -> None:
    p = grid_prior(3, *shape)()
    total = p.log_prob(every_grid(3, *shape)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_a_code_depends_on_every_code_before_it_and_on_none_after() -> None:
    height, width = 4, 5
    prior = grid_prior(3, height, width, layers=4)
    codes = torch.randint(3, (1, height, width))
    before = prior.net(codes).flatten(1, 2)
    for changed in range(height * width):
        other = codes.clone()
        other.view(-1)[changed] = (other.view(-1)[changed] + 1) % 3
        differs = (prior.net(other).flatten(1, 2) != before).any(-1).flatten()
        assert differs.tolist() == [position > changed for position in range(height * width)]


def test_log_prob_has_the_lead_of_its_codes_and_samples_the_lead_that_was_asked_for() -> None:
    p = grid_prior(3, 2, 2)()
    codes = p.sample((4, 5))
    assert (codes.shape, codes.dtype) == ((4, 5, 2, 2), torch.int64)
    assert (p.batch_shape, p.event_shape) == ((), (2, 2))
    log_prob = p.log_prob(codes)
    assert log_prob.shape == (4, 5)
    torch.testing.assert_close(p.log_prob(codes[3, 1]), log_prob[3, 1])
    assert p.sample().shape == (2, 2)


def test_codes_are_drawn_as_often_as_they_are_probable() -> None:
    p = grid_prior(3, 2, 2)()
    grids, n = every_grid(3, 2, 2), 10_000
    index = (p.sample((n,)).flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
    expected = p.log_prob(grids).exp() * n
    assert expected.max() > 3 * n / 81, "the weights are too small to tell anything from a uniform distribution"
    off = (index.bincount(minlength=81) - expected) / expected.clamp_min(1).sqrt()
    assert off.abs().max() < 5
    assert off.square().sum() < 81 + 5 * np.sqrt(2 * 81)


# The graphs


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[genkit.LatentModel, Path, genkit.Bundle]:
    torch.manual_seed(0)
    model, path = vqvae(), tmp_path_factory.mktemp("vq") / "bundle"
    images = pixels(64)
    vectors = model.encoder(images)[1].detach()
    for _ in range(5):  # spread over the vectors, so that the codes differ
        model.decoder.codebook.update(vectors, model.decoder.codebook.nearest(vectors), 0.5, 0.5)
    report = OnnxExporter().export(
        latent_graphs(model, data_of(images)),
        path,
        about={"recipe": {"name": "vq"}, "prior": {}},
        opset=18,
        runtimes=[],
    )
    assert report.ok
    return model, path, genkit.Bundle.open(path)


def test_images_to_codes_and_codes_to_images_are_proven_graphs_and_the_prior_says_why_it_is_none(
    exported: tuple[genkit.LatentModel, Path, genkit.Bundle],
) -> None:
    _, _, bundle = exported
    graphs = {graph.name: graph for graph in bundle.manifest.graphs}
    (codes, vectors) = graphs["encoder"].outputs
    assert (codes.name, codes.dtype, codes.shape) == ("codes", "int64", ("batch", 2, 2))
    assert (vectors.name, vectors.dtype, vectors.shape) == ("vectors", "float32", ("batch", 3, 2, 2))
    (z,) = graphs["decoder"].inputs
    assert (z.name, z.dtype, z.shape) == ("z", "int64", ("batch", 2, 2))
    assert [output.name for output in graphs["decoder"].outputs] == ["x", "logits"]
    assert {absent.name: absent.reason.split(":")[0] for absent in bundle.manifest.absent} == {
        "prior": "autoregressive"
    }


def test_the_two_graphs_in_a_row_are_the_reconstruction(
    exported: tuple[genkit.LatentModel, Path, genkit.Bundle],
) -> None:
    model, path, _ = exported
    x = pixels(5)
    encoder, decoder = (onnxruntime.InferenceSession(path / f"{name}.onnx") for name in ("encoder", "decoder"))
    codes, _ = encoder.run(None, {"x": x.numpy()})
    with asking(model, 0):
        expected, _ = model.encoder(x)
    assert np.array_equal(codes, expected)
    assert len(np.unique(codes)) > 2
    drawn, _ = decoder.run(None, {"z": codes})
    torch.testing.assert_close(torch.from_numpy(drawn), reconstruct(model, x))


# What does not fit


class Codeless(genkit.Decoder):
    outputs = ("x",)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return (z,)

    def likelihood(self, *params: Tensor) -> Distribution:
        return Independent(Normal(params[0], 1.0), 2)


def test_a_decoder_without_a_codebook_is_refused_by_all_who_need_one() -> None:
    model = vqvae()
    other = genkit.LatentModel(SPEC, model.encoder, Codeless(), model.prior)
    for component in (model.encoder, model.prior):
        with pytest.raises(genkit.InvalidComponent, match="Codeless has no codebook"):
            component.prepare(other, data_of(pixels(4)))
    with pytest.raises(genkit.InvalidComponent, match="Codeless has no codebook"):
        VQ(SPEC).turns(other)


def test_an_encoder_without_codes_is_refused_by_the_loss() -> None:
    model = vqvae()
    with pytest.raises(genkit.InvalidComponent, match="outputs are codes and vectors"):
        VQ(SPEC).turns(genkit.LatentModel(SPEC, None, model.decoder, model.prior))


def test_another_number_of_codes_in_the_prior_is_refused_with_the_right_one() -> None:
    model = vqvae(codes=6)
    model.prior = AutoregressiveCodes(SPEC, codes=5)
    with pytest.raises(genkit.InvalidOption, match=r"prior\.codes = 5.*has 6; --set prior\.codes=6"):
        prepare(model)


@pytest.mark.parametrize(
    ("factory", "spec", "options", "message"),
    [
        (VQConvEncoder, genkit.Spec((1, 8, 8), (3, 3)), {}, r"latent_shape = \[3, 3\]"),
        (VQConvEncoder, genkit.Spec((1, 8, 8), (8, 8)), {}, r"latent_shape = \[8, 8\]"),
        (VQConvEncoder, genkit.Spec((1, 8, 12), (2, 2)), {}, r"latent_shape = \[2, 2\]"),
        (VQConvDecoder, genkit.Spec((64,), (2, 2)), {}, "of an image"),
        (VQConvDecoder, genkit.Spec((1, 8, 8), (4,)), {}, "a grid"),
        (VQConvDecoder, genkit.Spec((1, 8, 8), (2, 2), (-1.0, 1.0)), {}, r"value_range=\[0,1\]"),
        (AutoregressiveCodes, genkit.Spec((1, 8, 8), (4,)), {}, r"latent_shape = \[4\]"),
        (AutoregressiveCodes, genkit.Spec((1, 8, 8), (2, 2)), {"kernel": 4}, r"prior\.kernel = 4"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_remedy(
    factory: Any, spec: genkit.Spec, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(genkit.InvalidOption, match=message):
        factory(spec, **options)
