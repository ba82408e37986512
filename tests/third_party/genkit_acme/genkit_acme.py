"""A complete plugin by somebody else: five components and two recipes in one module, on the public interface alone."""

import torch
from torch import nn
from torch.distributions import Independent, Laplace, Normal
from torch.utils.data import Dataset, TensorDataset

import genkit


class Conv(genkit.Encoder):
    """One convolution to a Laplace posterior."""

    outputs = ("loc", "log_scale")

    def __init__(self, spec, *, width: int = 8):
        super().__init__()
        channels, height, _ = spec.event_shape
        self.net = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.SiLU(), nn.Flatten()
        )
        self.out = nn.Linear(width * (height // 2) ** 2, 2 * spec.latent_shape[0])

    def forward(self, x, condition=None):
        return self.out(self.net(x)).chunk(2, dim=1)

    def posterior(self, loc, log_scale):
        return Independent(Laplace(loc, log_scale.exp()), 1)


class Deconv(genkit.Decoder):
    """Uses the label where the data has any."""

    outputs = ("logits",)

    def __init__(self, spec, *, width: int = 8):
        super().__init__()
        channels, self.height, _ = spec.event_shape
        self.width, self.classes = width, spec.classes
        self.into = nn.Linear(spec.latent_shape[0] + spec.classes, width * (self.height // 2) ** 2)
        self.up = nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1)

    def forward(self, z, condition=None):
        if self.classes:
            z = torch.cat([z, nn.functional.one_hot(condition, self.classes).to(z.dtype)], dim=1)
        hidden = self.into(z).relu().unflatten(1, (self.width, self.height // 2, self.height // 2))
        return (self.up(hidden),)

    def likelihood(self, logits):
        return Independent(Normal(logits.sigmoid(), 0.5), 3)


class LaplacePrior(genkit.Prior):
    """Laplace, of mean 0 and scale 1."""

    def __init__(self, spec):
        super().__init__()
        self.register_buffer("loc", torch.zeros(spec.latent_shape))

    def forward(self, condition=None, posterior=None):
        return Independent(Laplace(self.loc, torch.ones_like(self.loc)), 1)


class L1(genkit.Loss):
    """Absolute errors and the divergence."""

    def forward(self, step):
        error = (step.likelihood.mean - step.batch.x).abs().flatten(2).sum(2).mean(0)
        kl = genkit.divergence(step.posterior, step.prior, step.z)
        return genkit.Terms(error + kl, l1=error, kl=kl)


class Rings(Dataset):
    """Rings of two radii, drawn when asked for, with noise: nothing is resident."""

    def __init__(self, count, labelled):
        self.count, self.labelled = count, labelled

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        label = index % 2
        axis = torch.linspace(-1, 1, 16)
        distance = (axis[:, None] ** 2 + axis[None, :] ** 2).sqrt() - (0.4, 0.8)[label] + 0.02 * torch.randn(())
        image = (255 * torch.exp(-((distance / 0.1) ** 2))).to(torch.uint8)[None]
        return (image, label) if self.labelled else image


def rings(*, count: int = 192, labelled: bool = False) -> genkit.Data:
    """Rings of two radii, which can be told to be labels."""
    return genkit.Data(Rings(count, labelled), Rings(64, labelled), (1, 16, 16), classes=2 if labelled else 0)


class Explodes(genkit.Loss):
    """A loss that is no longer finite after some steps."""

    def __init__(self, spec, *, after: int = 5):
        super().__init__()
        self.after, self.steps = after, 0

    def forward(self, step):
        self.steps += self.training
        error = (step.likelihood.mean - step.batch.x).square().flatten(2).sum(2).mean(0)
        broken = error * (float("nan") if self.steps >= self.after else 1.0)
        return genkit.Terms(error + broken, error=error, broken=broken)


def points(*, count: int = 256) -> genkit.Data:
    """Two-dimensional, real-valued, resident."""
    angle = torch.rand(count + 64) * 2 * torch.pi
    xy = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(count + 64, 2)
    return genkit.Data(TensorDataset(xy[:count]), TensorDataset(xy[count:]), (2,))


class Generator(genkit.Decoder):
    """One hidden layer."""

    outputs = ("x",)

    def __init__(self, spec):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(spec.latent_shape[0], 32), nn.ReLU(), nn.Linear(32, spec.event_shape[0]))

    def forward(self, z, condition=None):
        return (self.net(z),)

    def likelihood(self, x):
        return Independent(Normal(x, 1.0), 1)


class Adversarial(genkit.Loss):
    """Two turns a step: a model without an encoder, and a player that lives in the loss."""

    def __init__(self, spec):
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(spec.event_shape[0], 32), nn.ReLU(), nn.Linear(32, 1))

    def turns(self, model):
        def fake(batch):
            return model(batch).likelihood.mean[0]

        def judge(x):
            return self.critic(x).squeeze(1)

        softplus = nn.functional.softplus
        return [
            genkit.Turn(
                "critic",
                lambda batch: genkit.Terms(softplus(-judge(batch.x)) + softplus(judge(fake(batch)))),
                list(self.critic.parameters()),
                {"betas": (0.5, 0.999), "learning_rate": 2e-3},
            ),
            genkit.Turn(
                "generator",
                lambda batch: genkit.Terms(softplus(-judge(fake(batch)))),
                list(model.decoder.parameters()),
            ),
        ]


@genkit.hookimpl
def genkit_register(registry):
    registry.encoder("conv", Conv)
    registry.decoder("conv", "genkit_acme:Deconv")
    registry.decoder("generator", Generator)
    registry.prior("laplace", LaplacePrior)
    registry.loss("l1", L1)
    registry.loss("explodes", Explodes)
    registry.loss("adversarial", Adversarial)
    registry.dataset("rings", rings)
    registry.dataset("points", points)
    small = genkit.TrainingOptions(epochs=2, batch_size=64, learning_rate=1e-3)
    registry.model(
        genkit.Recipe(
            "acme",
            description="a VAE of rings",
            dataset=genkit.Choice("rings"),
            encoder=genkit.Choice("conv", width=8),
            decoder=genkit.Choice("conv", width=8),
            prior=genkit.Choice("laplace"),
            loss=genkit.Choice("l1"),
            latent_shape=(6,),
            value_range=(0.0, 1.0),
            training=small,
        )
    )
    registry.model(
        genkit.Recipe(
            "acme_gan",
            description="a GAN of points on a circle",
            dataset=genkit.Choice("points"),
            decoder=genkit.Choice("generator"),
            prior=genkit.Choice("standard_normal"),
            loss=genkit.Choice("adversarial"),
            latent_shape=(2,),
            value_range=None,
            training=small,
        )
    )
