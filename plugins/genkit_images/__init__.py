"""Images in colour: a folder of the user's own, drawn shapes that need no file, and a model of them."""

from __future__ import annotations

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes the datasets of a folder and of drawn shapes, and a model of three-channel images."""
    registry.dataset("images", "genkit_images.folder:images")
    registry.dataset("drawn_shapes", "genkit_images.shapes:shapes")
    registry.model(
        genkit.Recipe(
            "shapes_vae",
            description="a VAE of small images in colour: convolutions, normal likelihood with one learned scale",
            dataset=genkit.Choice("drawn_shapes"),
            encoder=genkit.Choice("gaussian_conv", width=16),
            decoder=genkit.Choice("gaussian_conv", width=16),
            prior=genkit.Choice("standard_normal"),
            loss=genkit.Choice("negative_elbo"),
            latent_shape=(16,),
            value_range=(0.0, 1.0),
            training=genkit.TrainingOptions(epochs=30, batch_size=64, learning_rate=1e-3, sample_every=5),
        )
    )
