"""A plugin with a hook that asks for what it is not given."""

import genkit


@genkit.hookimpl
def genkit_epoch_ended(metric):
    pass
