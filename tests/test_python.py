"""Training and trained models from Python."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from helpers import Genkit

import genkit as gk

QUICK = {"dataset.limit": 256}
PAGE = Path(__file__).parent.parent / "docs" / "python.md"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> gk.TrainedModel:
    return train(tmp_path_factory.mktemp("trained") / "run")


def train(out: Path, model: str | gk.Recipe | None = "mnist_vae", **more: object) -> gk.TrainedModel:
    options = {"epochs": 2, "settings": QUICK, "device": "cpu", "show_progress": False, **more}
    return gk.train(model, out=out, **options)


def test_training_is_what_the_command_does(genkit: Genkit, model: gk.TrainedModel, tmp_path: Path) -> None:
    genkit(
        "train",
        "--model",
        "mnist_vae",
        "--epochs",
        2,
        "--set",
        "dataset.limit=256",
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    )
    assert (tmp_path / "run/recipe.yaml").read_text() == (model.run.path / "recipe.yaml").read_text()
    other = gk.load(tmp_path / "run", device="cpu")
    for name, weight in model.module.state_dict().items():
        assert torch.equal(weight, other.module.state_dict()[name]), name
    measured = json.loads(genkit("evaluate", tmp_path / "run", "--samples", 2, "--device", "cpu", "--json").stdout)
    assert model.evaluate(samples=2) == measured


def test_its_answers_are_those_of_its_own_export(model: gk.TrainedModel, tmp_path: Path) -> None:
    bundle = model.export(tmp_path / "bundle")
    assert gk.verify(tmp_path / "bundle").ok
    x = model.sample(5, seed=3)
    assert x.shape == (5, 1, 28, 28)
    assert x.dtype == np.float32
    assert np.array_equal(x, model.sample(5, seed=3))
    assert not np.array_equal(x, model.sample(5, seed=4))
    for name, ours, theirs in zip(("mean", "log_var"), model.encode(x), bundle.encode(x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=name)
    z = model.encode(x).mean
    np.testing.assert_allclose(model.decode(z), bundle.decode(z), atol=1e-5)
    bytes_ = (255 * x).round().astype(np.uint8)
    np.testing.assert_allclose(model.encode(bytes_).mean, model.encode(bytes_ / 255).mean, atol=1e-5)
    np.testing.assert_allclose(model.reconstruct(x, seed=1), model.reconstruct(x, seed=1))
    assert model.reconstruct(x).shape == x.shape


def test_labels_say_what_is_drawn(tmp_path: Path) -> None:
    model = train(tmp_path / "run", "mnist_cvae", epochs=1)
    x = model.sample(10)
    seven = model.sample(10, condition=7)
    np.testing.assert_allclose(x[7], seven[7], atol=1e-6)
    assert not np.allclose(x[0], seven[0], atol=1e-3)
    mean = model.encode(x, condition=range(10)).mean
    np.testing.assert_allclose(
        model.decode(mean, condition=7)[7], model.decode(mean, condition=range(10))[7], atol=1e-6
    )
    with pytest.raises(gk.InvalidOption, match=r"condition goes from 10 to 10; labels are 0 to 9"):
        model.decode(mean, condition=10)
    with pytest.raises(gk.InvalidOption, match=r"condition is int64 \(3,\), expected whole numbers \(10,\)"):
        model.encode(x, condition=[1, 2, 3])


def test_a_run_goes_on_and_a_finished_one_is_given_as_it_is(model: gk.TrainedModel, tmp_path: Path) -> None:
    half = train(tmp_path / "run", epochs=1)
    with pytest.raises(gk.InvalidRun, match="is not empty"):
        train(tmp_path / "run")
    whole = train(tmp_path / "run", None, resume=True)
    assert len(whole.run.metrics()) == 2
    weights = model.module.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in whole.module.state_dict().items())
    assert any(not torch.equal(weight, weights[name]) for name, weight in half.module.state_dict().items())
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    train(tmp_path / "run", "mnist_vae", resume=True)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before
    assert gk.load(tmp_path / "run", checkpoint=0, device="cpu").sample(1).shape == (1, 1, 28, 28)


@pytest.mark.filterwarnings("error::genkit.PluginWarning")
def test_progress_is_a_line_an_epoch_with_and_without_a_test_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", settings={**QUICK, "training.evaluate_every": 2}, show_progress=True)
    first, last = (line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch"))
    assert re.match(r"epoch 1/2  loss [\d.]+  squared_error [\d.]+  kl [\d.]+  [\d,]+ images/s", first)
    assert re.match(r"epoch 2/2  loss .*  test loss [\d.]+  [\d,]+ images/s", last)


def test_an_interrupt_reaches_the_caller_after_everything_is_saved(tmp_path: Path) -> None:
    class Stop:
        @gk.hookimpl
        def genkit_step_ended(self, epoch: int, batch: int) -> None:
            if (epoch, batch) == (2, 1):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        train(tmp_path / "run", plugins=[Stop()], epochs=3)
    assert gk.load(tmp_path / "run", device="cpu").run.checkpoints()[-1].position.batch == 1
    assert len(train(tmp_path / "run", None, epochs=3, resume=True).run.metrics()) == 3


def test_it_trains_in_a_thread(tmp_path: Path) -> None:
    trained: list[gk.TrainedModel] = []
    thread = threading.Thread(target=lambda: trained.append(train(tmp_path / "run", epochs=1)))
    thread.start()
    thread.join()
    assert trained[0].sample(1).shape == (1, 1, 28, 28)


def test_recipes_are_taken_as_they_are(model: gk.TrainedModel, tmp_path: Path) -> None:
    again = train(tmp_path / "run", model.recipe, settings={"encoder.hidden": 8, "training.clip_norm": 1.5})
    assert again.recipe.flat()["encoder.hidden"] == 8
    assert again.recipe.flat()["training.clip_norm"] == 1.5
    assert again.recipe.flat()["dataset.limit"] == 256


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"settings": {"encoder.hiden": 8}}, "named 'hiden'; did you mean 'hidden'"),
        ({"settings": {"encode": 8}}, "no recipe key named 'encode'; did you mean 'encoder'"),
        ({"settings": {"encoder.hidden": "wide"}}, "encoder.hidden = 'wide'"),
        ({"model": "mnist_vea"}, "mnist_vae"),
        ({"model": None}, "no model was named"),
        ({"epochs": -1}, "epochs = -1"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_a_wrong_request_writes_nothing(wrong: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(gk.GenkitError, match=message):
        train(tmp_path / "run", **{"model": "mnist_vae", **wrong})
    assert not (tmp_path / "run").exists()


def test_wrong_arrays_are_refused(model: gk.TrainedModel) -> None:
    x = model.sample(2)
    with pytest.raises(gk.InvalidOption, match=r"x has shape \(1, 28, 28\), expected \(n, 1, 28, 28\)"):
        model.encode(x[0])
    with pytest.raises(gk.InvalidOption, match=r"x goes from 0 to 255, expected floats in \[0, 1\], or uint8"):
        model.reconstruct(np.linspace(0, 255, 784).reshape(1, 1, 28, 28))
    with pytest.raises(gk.InvalidOption, match=r"z has shape \(2, 19\), expected \(n, 20\)"):
        model.decode(np.zeros((2, 19)))
    with pytest.raises(gk.InvalidOption, match="n = 0"):
        model.sample(0)
    with pytest.raises(gk.InvalidOption, match=r"picture: arrays of shapes \[\(2, 1, 28, 28\), \(1, 1, 28, 28\)\]"):
        gk.picture(x, x[:1])
    with pytest.raises(gk.InvalidOption, match="precision int4"):
        model.export(precisions=["int4"])


def test_a_picture_shows_the_arrays(model: gk.TrainedModel) -> None:
    black, white = np.zeros((3, 1, 28, 28), np.uint8), np.full((3, 1, 28, 28), 255, np.uint8)
    pixels = np.asarray(gk.picture(black, white))
    upper, lower = np.array_split(pixels, 2)
    assert upper.mean() < lower.mean()
    assert np.array_equal(np.asarray(gk.picture(white / 255)), np.asarray(gk.picture(white)))
    assert model.reconstructions(4).size == gk.picture(model.sample(4), model.sample(4)).size


def test_the_page_runs_in_a_notebook_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    quick = "limit = {'dataset.limit': 256, 'training.sample_every': 1}\n"
    cells = [
        block.replace("settings={", "settings={**limit, ").replace("epochs=2, ", "epochs=2, settings=limit, ")
        for block in blocks
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in (quick, *cells)])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    first, *_, last = notebook.cells[1:]
    bar, *pictures = first.outputs
    assert '<progress max="1" value="1.0000"' in bar.data["text/html"]
    assert re.search(r"epoch 5/5, [\d,]+ images/s", bar.data["text/html"])
    assert re.search(r"loss [\d.]+  .*test loss [\d.]+", bar.data["text/html"])
    assert [p.metadata["image/png"]["alt"] for p in pictures] == [
        "runs/wide/samples/epoch_0005.png",
        "runs/wide/reconstructions/epoch_0005.png",
        "runs/wide/loss.png",
    ]  # each redrawn in place
    shown = [cell for cell in notebook.cells if cell.source.strip().startswith(("x = ", "bundle = "))]
    assert [any("image/png" in o.get("data", {}) for o in cell.outputs) for cell in shown] == [True, True]
    assert re.fullmatch(r"1 [\d.]+\n2 [\d.]+\n", "".join(o.text for o in last.outputs if o.output_type == "stream"))
