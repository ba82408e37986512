"""TensorBoard: ``genkit train --tracker tensorboard`` writes event files into the run directory."""

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes the tracker."""
    registry.tracker("tensorboard", "genkit_tensorboard.tracker:TensorBoard")
