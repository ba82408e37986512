"""Packages that genkit knows nothing of, installed by pip, used from the command line."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from helpers import Genkit, picture_size


def test_a_third_party_model_trains_and_leaves_a_whole_run(acme_run: Path) -> None:
    rows = [json.loads(line) for line in (acme_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert set(rows[0]["train"]) == set(rows[0]["test"]) == {"loss", "l1", "kl"}
    assert rows[1]["train"]["loss"] < rows[0]["train"]["loss"]
    for picture in ("loss.png", "samples/epoch_0002.png", "reconstructions/epoch_0002.png"):
        assert picture_size(acme_run / picture)[0] >= 200
    plugins = json.loads((acme_run / "environment.json").read_text())["plugins"]
    assert {"name": "acme", "distribution": "genkit-acme", "version": "1.2.3"}.items() <= plugins[-1].items()


def test_it_resumes_samples_encodes_and_evaluates(
    acme: Genkit, acme_here: Genkit, acme_run: Path, tmp_path: Path
) -> None:
    assert "finished" in acme_here("train", "--out", acme_run, "--resume").stdout
    acme("sample", acme_run, "-n", 5, "--out", tmp_path / "s.png")
    acme_here("reconstruct", acme_run, "-n", 3, "--out", tmp_path / "r.png")
    width, height = picture_size(tmp_path / "s.png")
    assert width > height
    assert "log_scale" in acme_here("encode", acme_run, "--index", 3).stdout
    result = json.loads(acme_here("evaluate", acme_run, "--samples", 8, "--json").stdout)
    assert result["observations"] == 64
    assert result["log_likelihood"]["value"] < 0


def test_it_exports_a_verified_bundle_that_can_be_sampled(acme: Genkit, acme_run: Path, tmp_path: Path) -> None:
    acme("export", acme_run, "--out", tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    by_name = {graph["name"]: graph for graph in manifest["graphs"]}
    assert [o["name"] for o in by_name["encoder"]["outputs"]] == ["loc", "log_scale"]
    assert [o["name"] for o in by_name["decoder"]["outputs"]] == ["x", "logits"]
    assert manifest["prior"]["distribution"] == {"kind": "laplace", "parameters": [0.0, 1.0]}
    acme("verify", tmp_path / "bundle")
    acme("sample", tmp_path / "bundle", "-n", 8, "--out", tmp_path / "b.png")
    assert picture_size(tmp_path / "b.png")[0] >= 200


def test_labels_reach_the_components_that_use_them_and_no_other_graph(acme_here: Genkit, tmp_path: Path) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    acme_here("train", "--model", "acme", "--set", "dataset.labelled=true", "--epochs", 1, "--out", run)
    acme_here("export", run, "--out", bundle)
    graphs = {g["name"]: g for g in json.loads((bundle / "manifest.json").read_text())["graphs"]}
    assert [i["name"] for i in graphs["encoder"]["inputs"]] == ["x"]
    assert [(i["name"], i["dtype"]) for i in graphs["decoder"]["inputs"]] == [("z", "float32"), ("condition", "int64")]
    acme_here("sample", run, "--condition", 1, "--out", tmp_path / "ones.png")
    acme_here("sample", bundle, "--condition", 1, "--out", tmp_path / "bundle_ones.png")
    refused = acme_here("sample", run, "--condition", 2, check=False)
    assert (refused.returncode, refused.stderr) == (2, "error: condition = 2: the labels go from 0 to 1\n")


def test_a_model_of_two_turns_without_an_encoder_is_nothing_special(acme_here: Genkit, tmp_path: Path) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    acme_here("train", "--model", "acme_gan", "--out", run)
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(row["train"]) == {"loss", "critic/loss", "generator/loss"}
    assert row["train"]["loss"] == pytest.approx(row["train"]["critic/loss"] + row["train"]["generator/loss"])
    assert not (run / "reconstructions").exists()
    acme_here("sample", run, "--out", tmp_path / "points.png")
    result = json.loads(acme_here("evaluate", run, "--json").stdout)
    assert result["log_likelihood"]["value"] is None
    assert "no encoder" in result["log_likelihood"]["reason"]
    refused = acme_here("encode", run, check=False)
    assert refused.returncode == 2
    assert "no encoder" in refused.stderr
    acme_here("export", run, "--out", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [graph["name"] for graph in manifest["graphs"]] == ["decoder"]
    assert manifest["absent"] == [{"name": "encoder", "reason": "the model has no encoder"}]


def test_what_genkit_promises_holds_for_a_plugin_that_was_installed_later(acme_python: Path, tmp_path: Path) -> None:
    tests = tmp_path / "test_conformance.py"
    tests.write_text(
        "from genkit.testing import conformance\n"
        'TestConformance = conformance("acme", skip=["loss-explodes"])  # which is there to fail\n'
    )
    place = f"--basetemp={tmp_path / 'inner'}"  # two sessions in one folder tidy up after one another
    done = subprocess.run(
        [acme_python, "-m", "pytest", tests, "-q", "-p", "no:cacheprovider", place],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 50, "some eighteen checks of two models, and the rest"


def test_a_loss_that_explodes_ends_the_run_and_keeps_the_last_good_checkpoint(
    acme_here: Genkit, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    changes = ["--set", "loss=explodes", "--set", "loss.after=5", "--epochs", 3]
    done = acme_here("train", "--model", "acme", *changes, "--out", run, check=False)
    assert done.returncode == 1
    assert "in epoch 2, step 5: the term 'broken' is not finite" in done.stderr
    assert str(run / "checkpoints" / "epoch_0001") in done.stderr
    assert "Traceback" not in done.stderr
    acme_here("sample", run, "--out", tmp_path / "s.png")
