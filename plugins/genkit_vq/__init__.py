"""Models whose latents are codes: the vector-quantised autoencoder and an autoregressive prior."""

from __future__ import annotations

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes the components of the VQ-VAE and the recipe that composes them for MNIST."""
    registry.encoder("vq_conv", "genkit_vq.components:VQConvEncoder")
    registry.decoder("vq_conv", "genkit_vq.components:VQConvDecoder")
    registry.prior("autoregressive_codes", "genkit_vq.prior:AutoregressiveCodes")
    registry.loss("vector_quantized", "genkit_vq.components:VQ")
    registry.model(
        genkit.Recipe(
            "mnist_vqvae",
            description="a VQ-VAE: 7 x 7 codes of 64, and a gated PixelCNN over them",
            dataset=genkit.Choice("mnist", binarization="dynamic"),
            encoder=genkit.Choice("vq_conv", width=32, blocks=1),
            decoder=genkit.Choice("vq_conv", codes=64, dimension=32, width=32, blocks=1),
            prior=genkit.Choice("autoregressive_codes", codes=64, width=32, layers=3, kernel=5),
            loss=genkit.Choice("vector_quantized", commitment=0.25, decay=0.99),
            latent_shape=(7, 7),
            value_range=(0.0, 1.0),
            training=genkit.TrainingOptions(
                epochs=20, batch_size=128, learning_rate=2e-3, schedule="cosine", sample_every=5
            ),
        )
    )
