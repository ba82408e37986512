"""A plugin with a lifecycle hook that fails in every run."""

import genkit


@genkit.hookimpl
def genkit_epoch_ended(metrics):
    raise ConnectionError("the server is down")
