"""A plugin for a genkit that has gone."""

import genkit

GENKIT_API = "0.3"


@genkit.hookimpl
def genkit_register(registry):
    raise AssertionError("it is not called")
