"""A plugin that fails half-way through its registration."""

import genkit


@genkit.hookimpl
def genkit_register(registry):
    registry.encoder("half", "genkit_unregistered:nothing")
    registry.encoder("whole", 3)
