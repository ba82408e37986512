"""Components that break their contract, each in its own way, and otherwise work."""

import sys

import torch
from torch import nn
from torch.distributions import Independent, Normal
from torch.utils.data import TensorDataset

import genkit


class Working(genkit.Encoder):
    outputs = ("loc", "log_scale")

    def __init__(self, spec):
        super().__init__()
        self.out = nn.Linear(256, 2 * spec.latent_shape[0])

    def forward(self, x, condition=None):
        return self.out(x.flatten(1)).chunk(2, dim=1)

    def posterior(self, loc, log_scale):
        return Independent(Normal(loc, log_scale.exp()), 1)


class Late(Working):
    def __init__(self, spec, *, width=8):
        raise AssertionError("it is not called")


class Init(Working):
    def __init__(self, spec):
        raise FileNotFoundError(2, "No such file or directory", "weights.bin")


class Forward(Working):
    def forward(self, x, condition=None):
        return self.out(x)


class Exits(Working):
    def forward(self, x, condition=None):
        sys.exit(0)


class Abstract(genkit.Encoder):
    outputs = ("loc",)

    def __init__(self, spec):
        super().__init__()

    def forward(self, x, condition=None):
        return (x,)


class Count(Working):
    def forward(self, x, condition=None):
        return self.out(x.flatten(1))


class Rows(Working):
    def forward(self, x, condition=None):
        return self.out(x.flatten(1)).mean(0).chunk(2)


class Event(Working):
    def posterior(self, loc, log_scale):
        return Independent(Normal(loc[:, :5], log_scale[:, :5].exp()), 1)


class Unwrapped(Working):
    def posterior(self, loc, log_scale):
        return Normal(loc, log_scale.exp())


class Number(genkit.Loss):
    def forward(self, step):
        return step.likelihood.mean.square().mean()


class Elements(genkit.Loss):
    def forward(self, step):
        return genkit.Terms(step.likelihood.mean[0].flatten(1))


def shrunk(*, count: int = 64):
    images = TensorDataset(torch.zeros(count, 1, 16, 16, dtype=torch.uint8))
    return genkit.Data(images, images, (1, 8, 8))
