"""MLflow: ``genkit train --tracker mlflow`` follows a run where MLflow is set up to keep its runs."""

from __future__ import annotations

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes the tracker."""
    registry.tracker("mlflow", "genkit_mlflow.tracker:MLflow")
