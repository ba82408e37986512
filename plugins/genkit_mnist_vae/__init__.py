"""The reference plugin set: the textbook variational autoencoder of MNIST, registered like anybody's."""

from __future__ import annotations

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes the components of the textbook VAE, the MNIST dataset and the recipe that composes them."""
    registry.encoder("mlp", "genkit_mnist_vae.components:MLPEncoder")
    registry.decoder("mlp", "genkit_mnist_vae.components:MLPDecoder")
    registry.prior("standard_normal", "genkit_mnist_vae.components:StandardNormal")
    registry.loss("squared_error_kl", "genkit_mnist_vae.components:SquaredErrorKL")
    registry.dataset("mnist", "genkit_mnist_vae.mnist:mnist")
    registry.model(
        genkit.Recipe(
            "mnist_vae",
            description="the textbook VAE: 784-400-(20, 20)-400-784, squared error + KL",
            dataset=genkit.Choice("mnist"),
            encoder=genkit.Choice("mlp", hidden=400),
            decoder=genkit.Choice("mlp", hidden=400),
            prior=genkit.Choice("standard_normal"),
            loss=genkit.Choice("squared_error_kl"),
            latent_shape=(20,),
            value_range=(-1.0, 1.0),
            training=genkit.TrainingOptions(
                epochs=100, batch_size=128, optimizer="adam", learning_rate=1e-3, sample_every=20
            ),
        )
    )
