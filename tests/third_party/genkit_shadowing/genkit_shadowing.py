"""A plugin that wants a name that is taken, and contributes another."""

import genkit


@genkit.hookimpl
def genkit_register(registry):
    registry.encoder("mlp", "genkit_shadowing:nothing")
    registry.encoder("shadow", "genkit_shadowing:nothing")
