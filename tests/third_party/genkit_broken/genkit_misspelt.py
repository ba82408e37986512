"""A plugin that misspells a hook."""

import genkit


@genkit.hookimpl
def genkit_registr(registry):
    pass
