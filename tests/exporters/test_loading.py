"""A bundle as functions: numpy in, numpy out, and clear words for what does not fit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gate_helpers import decoder, encoder, export, normal
from torch import Tensor, nn

import genkit

UNIT = {"kind": "normal", "parameters": [0.0, 1.0]}


def standard(graph: genkit.Graph) -> genkit.Graph:
    """With a latent that numpy can draw."""
    (z,) = graph.inputs.values()
    return genkit.Graph(
        graph.name, graph.module, {"z": genkit.Input(z.shape, z.dtype, z.draw, UNIT)}, graph.outputs, graph.ranges
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "bundle"
    export(path, encoder(), standard(decoder()))
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> genkit.LoadedBundle:
    return genkit.load_bundle(path)


def test_encode_and_decode_give_what_the_module_gives(model: genkit.LoadedBundle) -> None:
    x, z = np.random.default_rng(0).random((5, 1, 28, 28), np.float32), np.zeros((3, 20))
    with torch.no_grad():
        mean, log_var = (y.numpy() for y in encoder().module(torch.from_numpy(x)))
        decoded = decoder().module(torch.from_numpy(z).float())[0].numpy()
    posterior = model.encode(x)
    assert posterior._fields == ("mean", "log_var")
    np.testing.assert_allclose(posterior.mean, mean, atol=1e-5)
    np.testing.assert_allclose(posterior.log_var, log_var, atol=1e-5)
    np.testing.assert_allclose(model.decode(z), decoded, atol=1e-5)
    np.testing.assert_array_equal(model.run("decoder", z=z).x, model.decode(z))


def test_samples_follow_from_the_seed(model: genkit.LoadedBundle) -> None:
    first = model.sample(4, seed=7)
    assert (first.shape, first.dtype) == ((4, 1, 28, 28), np.float32)
    np.testing.assert_array_equal(first, model.sample(4, seed=7))
    assert not np.array_equal(first, model.sample(4, seed=8))
    z = np.random.default_rng(7).normal(0, 1, (4, 20)).astype(np.float32)
    np.testing.assert_array_equal(first, model.decode(z))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.decode(np.zeros(20)), r"z has shape \(20,\), expected float32 \(n, 20\)"),
        (lambda m: m.decode(np.zeros((0, 20))), r"z has shape \(0, 20\)"),
        (lambda m: m.decode(np.zeros((2, 20), np.int64)), "z is int64, expected float32"),
        (lambda m: m.encode(np.full((1, 1, 28, 28), 255.0)), r"x goes from 255 to 255, expected .* in \[0, 1\]"),
        (lambda m: m.encode(np.full((1, 1, 28, 28), np.nan)), "x goes from nan to nan"),
        (lambda m: m.run("decoder"), r"decoder needs z: float32 \(n, 20\)"),
        (lambda m: m.run("decoder", z=np.zeros((1, 20)), y=0), "no input of decoder named 'y'. It takes: z"),
        (lambda m: m.run("decodr"), "no graph named 'decodr'; did you mean 'decoder'"),
        (lambda m: m.decode(np.zeros((1, 20)), condition=3), "no input of decoder named 'condition'"),
        (lambda m: m.sample(0), "n = 0: it is at least 1"),
        (lambda m: m.sample(1, condition=3), "condition = 3: this model takes no label"),
    ],
)
def test_what_does_not_fit_is_said(
    model: genkit.LoadedBundle, call: Callable[[genkit.LoadedBundle], Any], message: str
) -> None:
    with pytest.raises(genkit.GenkitError, match=message) as refused:
        call(model)
    assert refused.value.status == 2


class Painted(nn.Module):
    """A latent and a label."""

    def __init__(self) -> None:
        super().__init__()
        self.color = nn.Embedding(3, 4)

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, ...]:
        return (z + self.color(condition),)


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(4))

    def forward(self, noise: Tensor) -> tuple[Tensor, ...]:
        return (self.loc + 2 * noise,)


def test_a_learned_prior_and_labels_are_chained(tmp_path: Path) -> None:
    def laplace(n: int, g: torch.Generator) -> Tensor:
        return torch.rand(n, 4, generator=g).log() * torch.randn(n, 4, generator=g).sign()

    noise = genkit.Input((4,), torch.float32, laplace, {"kind": "laplace", "parameters": [0.0, 1.0]})
    drawn = {"kind": "integers", "parameters": [0, 3]}
    labels = genkit.Input((), torch.int64, lambda n, g: torch.randint(3, (n,), generator=g), drawn)
    prior, painted = Learned(), Painted()
    export(
        tmp_path / "bundle",
        genkit.Graph("prior", prior, {"noise": noise}, ("z",)),
        genkit.Graph("decoder", painted, {"z": normal(4), "condition": labels}, ("x",)),
        genkit.NoGraph("encoder", "the model has no encoder"),
    )
    model = genkit.load_bundle(tmp_path / "bundle")
    base = torch.from_numpy(np.random.default_rng(5).laplace(0, 1, (6, 4)).astype(np.float32))
    for condition, labelled in ((None, torch.arange(6) % 3), (2, torch.full((6,), 2))):
        with torch.no_grad():
            (expected,) = painted(*prior(base), labelled)
        np.testing.assert_allclose(model.sample(6, seed=5, condition=condition), expected, atol=1e-6)
    np.testing.assert_array_equal(model.decode(np.zeros((2, 4)), 1), model.decode(np.zeros((2, 4)), [1, 1]))
    for call, message in (
        (lambda: model.sample(2, condition=3), "condition = 3: the labels go from 0 to 2"),
        (lambda: model.decode(np.zeros((2, 4)), 3), r"condition goes from 3 to 3, expected int64 \(n,\) in \[0, 2\]"),
        (lambda: model.decode(np.zeros((2, 4)), [1, 1, 1]), "different numbers of rows"),
        (lambda: model.decode(np.zeros((2, 4))), "decoder needs condition: int64"),
        (lambda: model.encode(np.zeros((2, 4))), "has no encoder: the model has no encoder"),
    ):
        with pytest.raises(genkit.GenkitError, match=message):
            call()


def test_a_latent_that_numpy_cannot_draw_is_said(tmp_path: Path) -> None:
    export(tmp_path / "bundle", decoder(), genkit.NoGraph("prior", "it is autoregressive"))
    model = genkit.load_bundle(tmp_path / "bundle", verify=False)
    with pytest.raises(genkit.GenkitError, match=r"numpy cannot draw 'z' \(it is autoregressive\)"):
        model.sample(1)


@pytest.mark.parametrize("verify", [True, False])
def test_a_bundle_that_was_changed_is_not_loaded(path: Path, tmp_path: Path, verify: bool) -> None:
    copy = shutil.copytree(path, tmp_path / "copy")
    with (copy / "decoder.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(genkit.VerificationFailed, match=r"decoder\.onnx: changed"):
        genkit.load_bundle(copy, verify=verify)


def test_a_bundle_with_wrong_numbers_and_right_digests_is_not_loaded(path: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(path, tmp_path / "copy")
    reference = copy / "test_data" / "decoder" / "test_data_set_0" / "reference_0.pb"
    reference.write_bytes(reference.read_bytes()[:-8] + bytes(8))
    genkit.seal(copy, genkit.Bundle.open(copy).manifest)
    with pytest.raises(genkit.VerificationFailed, match="decoder: "):
        genkit.load_bundle(copy)


def test_loading_needs_no_torch(path: Path) -> None:
    code = (
        "import sys, genkit\n"
        f"model = genkit.load_bundle({str(path)!r})\n"
        "assert model.encode(model.sample(2)).mean.shape == (2, 20)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_snippet_of_the_readme_runs_as_printed(path: Path) -> None:
    part = (path / "README.md").read_text().split("## With genkit")[1].split("\n## ")[0]
    (snippet,) = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    assert 'mean, log_var = model.run("encoder", x=x)' in snippet
    assert f"```console\n{genkit.DEPLOYMENT}\ngenkit verify bundle\n```" in part
    code = f"{snippet}\nprint(x.shape, mean.shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=path.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "(16, 1, 28, 28) (16, 20)\n"
