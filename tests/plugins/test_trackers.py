"""Trackers, against the real things: what TensorBoard and MLflow read of a run is what the run directory says."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from genkit_tensorboard.tracker import add_graph
from helpers import Genkit, tree
from mlflow import MlflowClient
from mlflow.entities import Run as MLflowRun
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

import genkit as gk
from genkit import session
from genkit.assemble import assemble

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # of what MLflow uses of it

SMALL = ["--set", "dataset.limit=256", "--set", "training.sample_every=1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database of MLflow's, which takes seconds to make, as MLflow is told of one."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    MlflowClient(uri).create_experiment("genkit", artifact_location=(folder / "artifacts").as_uri())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield uri


@pytest.fixture(scope="module")
def followed(genkit: Genkit, store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with both trackers."""
    run = tmp_path_factory.mktemp("followed") / "run"
    trackers = ["--tracker", "tensorboard", "--tracker", "mlflow"]
    done = genkit("train", "--model", "mnist_vae", "--epochs", 2, *SMALL, *trackers, "--out", run)
    assert "warning" not in done.stdout + done.stderr
    return run


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that ``metrics.jsonl`` makes, by the names that trackers give them."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in metrics(run):
        parts = {f"{part}/{term}": value for part in ("train", "test") for term, value in row[part].items()}
        for name, value in {**parts, "images_per_second": row["images_per_second"]}.items():
            found.setdefault(name, []).append((row["epoch"], value))
    return found


def in_float32(points: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    return {name: [(epoch, float(np.float32(value))) for epoch, value in curve] for name, curve in points.items()}


def learned(run: Path) -> list[Any]:
    """What training made: the terms and the weights, without what a clock says."""
    weights = {name: digest for name, digest in tree(run / "checkpoints").items() if name.endswith("safetensors")}
    return [[(row["train"], row["test"]) for row in metrics(run)], weights]


def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    read = events(run)
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def assembled(recipe: gk.Recipe) -> gk.Task:
    return assemble(recipe, gk.load_plugins().registry)


def graph(run: Path) -> GraphDef:
    return events(run).Graph()


def in_mlflow(uri: str, run: Path) -> tuple[MlflowClient, MLflowRun]:
    client = MlflowClient(uri)
    return client, client.get_run(json.loads((run / "mlflow.json").read_text())["run_id"])


def history(client: MlflowClient, run: MLflowRun) -> dict[str, list[tuple[int, float]]]:
    names = run.data.metrics.keys() - {"step"}
    return {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in names}


# TensorBoard


def test_tensorboard_reads_the_curves_of_the_run(followed: Path) -> None:
    assert scalars(followed) == in_float32(curves(followed))
    assert scalars(followed).keys() >= {"train/loss", "train/kl", "test/loss"}


def test_tensorboard_shows_every_grid_of_pictures(followed: Path) -> None:
    read = events(followed)
    assert set(read.Tags()["images"]) == {"samples", "reconstructions"}
    for tag in ("samples", "reconstructions"):
        assert [image.step for image in read.Images(tag)] == [1, 2]


def test_tensorboard_has_the_options_by_the_names_that_set_takes(followed: Path) -> None:
    content = events(followed).PluginTagToContent("hparams")
    session = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
    assert session.hparams["encoder.hidden"].number_value == 400
    assert session.hparams["training.learning_rate"].number_value == 1e-3
    assert session.hparams["prior.use"].string_value == "standard_normal"
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["train/loss", "test/loss"]


def test_tensorboard_draws_encoder_and_decoder_with_what_they_are_made_of(followed: Path) -> None:
    nodes = {node.name: node for node in graph(followed).node}
    for part, layers in (("EncoderGraph[encoder]", 3), ("DecoderGraph[decoder]", 2)):
        inside = [node for name, node in nodes.items() if f"/{part}/" in name]
        assert sum(node.op == "aten::linear" for node in inside) == layers
    shapes = [[d.size for d in s.dim] for node in nodes.values() for s in node.attr["_output_shapes"].list.shape]
    assert [2, 1, 28, 28] in shapes
    assert [2, 20] in shapes


def test_a_run_that_is_resumed_has_one_graph(here: Genkit, tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick = ["--set", "dataset.limit=128", "--set", "training.sample_every=0", "--tracker", "tensorboard"]
    here("train", "--model", "mnist_vae", "--epochs", 1, *quick, "--out", run)
    here("train", "--out", run, "--resume", "--epochs", 2)
    files = sorted((run / "tensorboard").iterdir())
    assert len(files) == 2
    assert [b"DecoderGraph" in file.read_bytes() for file in files] == [True, False]


def test_the_graph_is_drawn_of_every_kind_of_model_and_changes_none(tmp_path: Path) -> None:
    """Labels, batch norms, codes, a learned prior, no encoder."""
    registry = gk.load_plugins().registry
    for name in ("mnist_cvae", "mnist_conv_vae", "mnist_vqvae", "mnist_vamp", "mnist_gan"):
        task = assembled(registry.get("model", name).load().with_settings(["dataset.limit=64"]))
        task.module.train()
        frozen = next(task.module.children())
        frozen.eval()
        modes = [module.training for module in task.module.modules()]
        state = {key: value.clone() for key, value in task.module.state_dict().items()}
        writer = SummaryWriter(str(tmp_path / name / "tensorboard"))
        add_graph(writer, task)
        writer.close()
        assert {graph.name for graph in task.graphs() if isinstance(graph, gk.Graph)} == {
            node.name.split("[")[1].split("]")[0] for node in graph(tmp_path / name).node if "[" in node.name
        }
        assert [module.training for module in task.module.modules()] == modes
        assert all(torch.equal(value, state[key]) for key, value in task.module.state_dict().items())


def test_a_model_that_cannot_be_traced_costs_a_warning_and_no_curve(
    here: Genkit, followed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genkit_mnist_vae.components import MLPDecoder

    whole = MLPDecoder.forward

    def forward(self: Any, z: Any, condition: Any = None) -> Any:
        if torch.jit.is_tracing():
            raise RuntimeError("it looks at numbers\nand says so at length")
        return whole(self, z, condition)

    monkeypatch.setattr(MLPDecoder, "forward", forward)
    run = tmp_path / "run"
    done = here("train", "--model", "mnist_vae", "--epochs", 2, *SMALL, "--tracker", "tensorboard", "--out", run)
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert warning.endswith("no graph of the model: RuntimeError: it looks at numbers")
    assert "looks at numbers" not in done.stdout
    assert scalars(run) == in_float32(curves(run))
    assert learned(run) == learned(followed)


# MLflow


def test_mlflow_reads_the_curves_the_options_and_the_pictures_of_the_run(followed: Path, store: str) -> None:
    client, run = in_mlflow(store, followed)
    assert history(client, run) == curves(followed)
    assert run.data.metrics["step"] == metrics(followed)[-1]["step"]
    assert run.data.params["encoder.hidden"] == "400"
    assert run.data.params == {name: str(value) for name, value in gk.Run(followed).recipe.flat().items()}
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert {file.path for file in client.list_artifacts(run.info.run_id, "samples")} == {
        "samples/epoch_0001.png",
        "samples/epoch_0002.png",
    }
    copy = client.download_artifacts(run.info.run_id, "samples/epoch_0002.png")
    assert Path(copy).read_bytes() == (followed / "samples" / "epoch_0002.png").read_bytes()


def test_what_mlflow_missed_while_it_was_away_it_is_given_when_it_is_back(
    here: Genkit, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    quick = ["--set", "dataset.limit=128", "--set", "training.sample_every=0", "--tracker", "mlflow"]
    here("train", "--model", "mnist_vae", "--epochs", 1, *quick, "--out", run)
    kept = (run / "mlflow.json").read_text()
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        away.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert "switched off" in here("train", "--out", run, "--resume", "--epochs", 2).stderr
    assert (run / "mlflow.json").read_text() == kept
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # where the run is, the run knows
    assert not here("train", "--out", run, "--resume", "--epochs", 3).stderr
    client, found = in_mlflow(store, run)
    assert history(client, found) == curves(run)
    assert [epoch for epoch, _ in curves(run)["train/loss"]] == [1, 2, 3]


def test_no_password_of_a_server_is_left_in_the_run_directory(
    here: Genkit, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("genkit_mlflow.tracker.MlflowClient", lambda uri: asked.append(uri) or MlflowClient(store))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:secret@example.org/mlflow")
    run = tmp_path / "run"
    here(
        "train", "--model", "mnist_vae", "--epochs", 0, "--set", "dataset.limit=64", "--tracker", "mlflow", "--out", run
    )
    assert asked == ["https://ada:secret@example.org/mlflow"]
    assert json.loads((run / "mlflow.json").read_text())["tracking_uri"] == "https://example.org/mlflow"
    assert not [path for path in run.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


def test_a_term_that_was_not_finite_is_nan_in_both(followed: Path, store: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(followed, run, ignore=shutil.ignore_patterns("tensorboard", "mlflow.json"))
    first, last = metrics(run)
    last["test"]["kl"] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (first, last)))
    plugins = gk.load_plugins()
    with plugins.tracking("tensorboard"), plugins.tracking("mlflow"):
        started = {"run": gk.Run(run), "task": assembled(gk.Run(run).recipe), "device": "cpu"}
        plugins.notify("genkit_run_started", **started, epoch=2, epochs=2, batches=2)
        plugins.notify("genkit_run_ended", run=gk.Run(run), outcome="interrupted")
    client, found = in_mlflow(store, run)
    assert found.info.status == "KILLED"
    for shown in (scalars(run), history(client, found)):
        assert [math.isnan(value) for _, value in shown["test/kl"]] == [False, True]
        assert [math.isnan(value) for _, value in shown["test/loss"]] == [False, False]


# Resuming

KILLED = """
import os, signal, sys
import genkit, genkit.cli, genkit.plugins

class Killer:
    @genkit.hookimpl
    def genkit_step_ended(self, epoch):
        if epoch == 4:
            os.kill(os.getpid(), signal.SIGKILL)

def load_plugins(disabled, load=genkit.plugins.load_plugins):
    plugins = load(disabled)
    plugins.observe("killer", Killer())
    return plugins

genkit.plugins.load_plugins = load_plugins
genkit.cli.main(sys.argv[1:])
"""
"""``genkit``, killed in the fourth epoch, when the third has been told to trackers and is in no checkpoint."""


def test_a_resumed_run_goes_on_in_the_same_places_and_no_curve_folds_back(
    here: Genkit, store: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    sparse = ["--set", "dataset.limit=256", "--set", "training.sample_every=0", "--set", "training.checkpoint_every=2"]
    trackers = ["--tracker", "tensorboard", "--tracker", "mlflow"]
    command = ["train", "--model", "mnist_vae", "--epochs", 5, *sparse, *trackers, "--out", run]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, command)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [epoch for epoch, _ in scalars(run)["train/loss"]] == [1, 2, 3], "what was told is on the disk"
    assert max(checkpoint.position.epoch for checkpoint in gk.Run(run).checkpoints()) == 2
    _, before = in_mlflow(store, run)
    assert before.info.status == "RUNNING"

    here("train", "--out", run, "--resume")
    client, after = in_mlflow(store, run)
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    ours = client.search_runs([after.info.experiment_id], f"tags.`genkit.run` = '{run}'")
    assert len(ours) == 1
    times = ("images_per_second",)  # of the epoch that was made twice, a curve may have either
    wanted = {name: curve for name, curve in curves(run).items() if name not in times}
    assert {name: curve for name, curve in scalars(run).items() if name not in times} == in_float32(wanted)
    assert {name: curve for name, curve in history(client, after).items() if name not in times} == wanted
    assert [epoch for epoch, _ in wanted["test/loss"]] == [1, 2, 3, 4, 5]


def test_trackers_can_be_added_later_and_taken_away(here: Genkit, tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick = ["--set", "dataset.limit=128", "--set", "training.sample_every=0"]
    here("train", "--model", "mnist_vae", "--epochs", 1, *quick, "--out", run)
    assert not (run / "tensorboard").exists()
    here("train", "--out", run, "--resume", "--epochs", 2, "--tracker", "tensorboard")
    assert scalars(run) == in_float32(curves(run)), "with its past"
    here("train", "--out", run, "--resume", "--epochs", 3)
    assert scalars(run) == in_float32(curves(run)), "it was remembered"
    here("train", "--out", run, "--resume", "--epochs", 4, "--tracker", "none")
    here("train", "--out", run, "--resume", "--epochs", 5)
    assert [epoch for epoch, _ in scalars(run)["train/loss"]] == [1, 2, 3]
    assert len(metrics(run)) == 5


# What is not asked for, and what fails


def test_an_installed_tracker_does_nothing_to_a_run_that_did_not_ask(mnist_run: Path) -> None:
    assert {path.name for path in mnist_run.iterdir()} == {
        *("recipe.yaml", "environment.json", "metrics.jsonl", "loss.png"),
        *("checkpoints", "samples", "reconstructions"),
    }


def test_trackers_change_no_bit_of_what_is_learned(here: Genkit, followed: Path, tmp_path: Path) -> None:
    here("train", "--model", "mnist_vae", "--epochs", 2, *SMALL, "--out", tmp_path / "alone")
    assert learned(followed) == learned(tmp_path / "alone")


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["tensorbord"], ["no tracker named 'tensorbord'; did you mean 'tensorboard'? Installed: mlflow, tensorboard"]),
        (["none", "mlflow"], ["--tracker none", "leave the others out"]),
    ],
    ids=str,
)
def test_trackers_that_there_are_not(here: Genkit, tmp_path: Path, names: list[str], parts: list[str]) -> None:
    trackers = [argument for name in names for argument in ("--tracker", name)]
    done = here("train", "--model", "mnist_vae", *trackers, "--out", tmp_path / "run", check=False)
    assert done.returncode == 2
    assert all(part in done.stderr for part in parts)
    assert not tree(tmp_path)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_line_that_installs_it(tmp_path: Path, name: str) -> None:
    hidden = f"import sys; sys.modules[{name!r}] = None; from genkit.cli import main; sys.exit(main(sys.argv[1:]))"
    command = ["train", "--model", "mnist_vae", "--tracker", name, "--out", tmp_path / "run"]
    done = subprocess.run([sys.executable, "-c", hidden, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f'pip install "genkit-torch[{name}]"' in done.stderr
    assert not tree(tmp_path)


def test_a_run_whose_tracker_is_gone_says_how_to_go_on_without(here: Genkit, tmp_path: Path) -> None:
    run = tmp_path / "run"
    here("train", "--model", "mnist_vae", "--epochs", 0, "--set", "dataset.limit=64", "--out", run)
    gk.Run(run).remember(trackers=["gone"])
    done = here("train", "--out", run, "--resume", "--epochs", 1, check=False)
    assert done.returncode == 2
    assert "no tracker named 'gone'" in done.stderr
    assert done.stderr.endswith("The run has been followed by it; without: --tracker none\n")
    here("train", "--out", run, "--resume", "--epochs", 1, "--tracker", "none")
    assert len(metrics(run)) == 1


def test_a_server_that_is_away_costs_a_warning(
    here: Genkit, followed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = here(
        "train", "--model", "mnist_vae", "--epochs", 2, *SMALL, "--tracker", "mlflow", "--out", tmp_path / "run"
    )
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "'tracker mlflow' (genkit-torch " in warning
    assert "genkit_run_started failed and is switched off" in warning
    assert "Traceback" not in done.stderr
    assert learned(tmp_path / "run") == learned(followed)


def train(plugins: gk.Plugins, run: Path, tracker: str, epochs: int) -> None:
    """Trains or resumes a run of a few images in this process."""
    settings = [] if run.exists() else ["dataset.limit=128", "training.sample_every=0"]
    plan = session.plan(
        plugins.registry,
        model="mnist_vae",
        settings=settings,
        training={"epochs": epochs},
        out=run,
        resume=run.exists(),
    )
    done = session.carry_out(plan, plugins, device="cpu", data_dir=None, init_from=None, trackers=[tracker])
    assert done[1] == "finished"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of tensorboard's own thread
def test_a_full_disk_costs_a_warning_and_what_was_missed_is_made_up_for_later(tmp_path: Path) -> None:
    class Fills:
        @gk.hookimpl
        def genkit_checkpoint_saved(self, run: gk.Run, epoch: int) -> None:
            if epoch == 1:
                (file,) = (run.path / "tensorboard").iterdir()
                file.rename(run.path / "aside")
                file.symlink_to("/dev/full")

    plugins, run = gk.load_plugins(), tmp_path / "run"
    plugins.observe("fills", Fills())
    with pytest.warns(gk.PluginWarning, match="'tracker tensorboard'.*genkit_epoch_ended.*No space left"):
        train(plugins, run, "tensorboard", epochs=3)
    assert len(metrics(run)) == 3

    (file,) = (run / "tensorboard").iterdir()
    (run / "aside").replace(file)
    assert [epoch for epoch, _ in scalars(run)["train/loss"]] == [1]
    train(gk.load_plugins(), run, "tensorboard", epochs=4)
    assert scalars(run) == in_float32(curves(run))
    assert len(metrics(run)) == 4
