"""The terms, the pictures and the recipe of a run as a run of MLflow."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import genkit

try:
    from mlflow import MlflowClient, get_tracking_uri
    from mlflow.entities import Metric, Param
except ImportError as error:
    raise ImportError(f'it needs mlflow: pip install "genkit-torch[mlflow]" ({error})') from error

_STATUS = {"finished": "FINISHED", "interrupted": "KILLED"}

_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's own is minutes for a request, in which training would wait for a server that is away."""


class MLflow:
    """Keeps ``RUN/mlflow.json``, so that a resumed run is the same run there. The step of everything is its epoch."""

    def __init__(self) -> None:
        self.client: MlflowClient | None = None
        self.id = ""
        self.steps = 0
        """Optimiser steps that MLflow knows the metrics of."""

    @genkit.hookimpl
    def genkit_run_started(self, run: genkit.Run) -> None:
        """Begins or goes on with the run there, and gives it what it has missed of the metrics."""
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        file = run.path / "mlflow.json"
        kept = json.loads(file.read_text()) if file.exists() else {}
        uri = os.environ.get("MLFLOW_TRACKING_URI") or kept.get("tracking_uri") or get_tracking_uri()
        client = MlflowClient(uri)
        self.id = kept.get("run_id") or create(client, run)
        self.steps = int(client.get_run(self.id).data.metrics.get("step", 0))
        public = re.sub(r"//[^/@]*@", "//", uri)  # a run directory is shown around; passwords are not
        genkit.write_atomically(file, (json.dumps({"tracking_uri": public, "run_id": self.id}) + "\n").encode())
        client.update_run(self.id, status="RUNNING")
        self.client = client
        for row in run.metrics():
            self.genkit_epoch_ended(row)

    @genkit.hookimpl
    def genkit_picture_saved(self, run: genkit.Run, path: Path) -> None:
        """Keeps the picture as an artifact, in a folder of the same name."""
        if self.client:
            folder = path.parent.relative_to(run.path)
            self.client.log_artifact(self.id, str(path), None if folder == Path() else str(folder))

    @genkit.hookimpl
    def genkit_epoch_ended(self, metrics: Mapping[str, Any]) -> None:
        """Adds a line of ``metrics.jsonl`` that is not there yet; NaN where it has null."""
        if self.client is None or metrics["step"] <= self.steps:
            return
        values = {name: metrics[name] for name in ("step", "images_per_second")}
        for part in ("train", "test"):
            values |= {f"{part}/{term}": value for term, value in metrics.get(part, {}).items()}
        now = time.time_ns() // 1_000_000
        self.client.log_batch(
            self.id,
            [Metric(k, math.nan if v is None else v, now, metrics["epoch"]) for k, v in values.items()],
        )
        self.steps = metrics["step"]

    @genkit.hookimpl
    def genkit_run_ended(self, outcome: str) -> None:
        """Says how it ended, if training got as far as starting."""
        if self.client:
            self.client.set_terminated(self.id, _STATUS.get(outcome, "FAILED"))


def create(client: MlflowClient, run: genkit.Run) -> str:
    """A new run there, with the options of the recipe as its parameters; its id."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "genkit")
    experiment = client.get_experiment_by_name(name)
    experiment_id: str = experiment.experiment_id if experiment else client.create_experiment(name)
    path, recipe = run.path.resolve(), run.recipe
    created = client.create_run(experiment_id, tags={"genkit.run": str(path)}, run_name=path.name)
    client.log_batch(created.info.run_id, params=[Param(k, str(v)) for k, v in recipe.flat().items()])
    client.log_artifact(created.info.run_id, str(run.path / "recipe.yaml"))
    return str(created.info.run_id)
