"""A plugin whose entry point has the name of another distribution's."""

import genkit

GENKIT_API = "1.0"


@genkit.hookimpl
def genkit_register(registry):
    registry.encoder("namesake", "genkit_nowhere:Encoder")
