"""Generative adversarial networks: on the data (GAN), and on the latents of an autoencoder (AAE)."""

from __future__ import annotations

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes generators, uniform noise, the two adversarial losses and a recipe for each."""
    registry.decoder("generator_mlp", "genkit_adversarial.generators:generator_mlp")
    registry.decoder("generator_conv", "genkit_adversarial.generators:generator_conv")
    registry.prior("uniform_noise", "genkit_adversarial.priors:UniformNoise")
    registry.loss("generative_adversarial", "genkit_adversarial.losses:Adversarial")
    registry.loss("latent_adversarial", "genkit_adversarial.losses:AdversarialLatent")
    registry.model(
        genkit.Recipe(
            "mnist_gan",
            description="a generative adversarial network: 96 uniform numbers to an image, judged by a discriminator",
            dataset=genkit.Choice("mnist"),
            decoder=genkit.Choice("generator_conv", channels=[32, 16]),
            prior=genkit.Choice("uniform_noise"),
            loss=genkit.Choice("generative_adversarial", objective="least_squares", network="conv", widths=[16, 32]),
            latent_shape=(96,),
            value_range=(-1.0, 1.0),
            training=genkit.TrainingOptions(
                epochs=20,
                batch_size=128,
                optimizer="adam",
                learning_rate=1e-3,
                optimizer_options={"betas": [0.5, 0.999]},
                sample_every=5,
            ),
        )
    )
    registry.model(
        genkit.Recipe(
            "mnist_aae",
            description="an adversarial autoencoder: a discriminator makes the latents look like the prior",
            dataset=genkit.Choice("mnist"),
            encoder=genkit.Choice("deterministic_mlp", hidden=[400], activation="relu"),
            decoder=genkit.Choice("mlp", hidden=400),
            prior=genkit.Choice("standard_normal"),
            loss=genkit.Choice("latent_adversarial", weight=20.0, discriminator_learning_rate=5e-4),
            latent_shape=(8,),
            value_range=(-1.0, 1.0),
            training=genkit.TrainingOptions(
                epochs=50,
                batch_size=128,
                optimizer="adam",
                learning_rate=1e-3,
                optimizer_options={"betas": [0.5, 0.999]},
                schedule="cosine",
                sample_every=10,
            ),
        )
    )
