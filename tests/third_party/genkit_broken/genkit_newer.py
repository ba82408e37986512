"""A plugin for a genkit that is yet to come."""

import genkit

GENKIT_API = "9.1"


class Sampler(genkit.Sampler):
    pass
