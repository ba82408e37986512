"""To come."""

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Registers."""
