"""Variational autoencoders and their kin: networks, bounds and priors that differ by one component each."""

from __future__ import annotations

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes the components and the recipes of this family."""
    registry.encoder("gaussian_mlp", "genkit_vae.mlp:GaussianMLP")
    registry.encoder("deterministic_mlp", "genkit_vae.mlp:DeterministicMLP")
    registry.decoder("bernoulli_mlp", "genkit_vae.mlp:BernoulliMLP")
    registry.encoder("gaussian_conv", "genkit_vae.conv:GaussianConvEncoder")
    registry.decoder("bernoulli_conv", "genkit_vae.conv:BernoulliConvDecoder")
    registry.decoder("gaussian_conv", "genkit_vae.conv:GaussianConvDecoder")
    registry.prior("class_normal", "genkit_vae.conditional:ClassNormal")
    registry.loss("negative_elbo", "genkit_vae.losses:NegativeELBO")
    registry.loss("importance_weighted_elbo", "genkit_vae.losses:ImportanceWeighted")
    registry.loss("squared_error_alone", "genkit_vae.losses:SquaredError")
    registry.loss("beta_tc", "genkit_vae.total_correlation:TotalCorrelation")
    registry.loss("wae_mmd", "genkit_vae.discrepancy:MaximumMeanDiscrepancy")
    registry.prior("vamp", "genkit_vae.vamp:VampPrior")
    registry.encoder("hierarchical_gaussian_mlp", "genkit_vae.hierarchical:HierarchicalGaussianMLP")
    registry.prior("hierarchical_normal", "genkit_vae.hierarchical:HierarchicalNormal")
    registry.decoder("hierarchical_bernoulli_mlp", "genkit_vae.hierarchical:HierarchicalBernoulliMLP")

    registry.model(
        genkit.Recipe(
            "mnist_binary_vae",
            description="784-200-200-(50, 50)-200-200-784 on binarized pixels, the evidence lower bound",
            dataset=genkit.Choice("mnist", binarization="dynamic"),
            encoder=genkit.Choice("gaussian_mlp"),
            decoder=genkit.Choice("bernoulli_mlp"),
            prior=genkit.Choice("standard_normal"),
            loss=genkit.Choice("negative_elbo"),
            latent_shape=(50,),
            training=genkit.TrainingOptions(epochs=100, batch_size=128, learning_rate=2e-3, schedule="cosine"),
        )
    )
    registry.model(
        genkit.Recipe(
            "mnist_iwae",
            description="784-200-200-(50, 50)-200-200-784 on binarized pixels, 50 importance-weighted samples",
            dataset=genkit.Choice("mnist", binarization="dynamic"),
            encoder=genkit.Choice("gaussian_mlp"),
            decoder=genkit.Choice("bernoulli_mlp"),
            prior=genkit.Choice("standard_normal"),
            loss=genkit.Choice("importance_weighted_elbo", samples=50),
            latent_shape=(50,),
            training=genkit.TrainingOptions(epochs=100, batch_size=128, learning_rate=2e-3, schedule="cosine"),
        )
    )
    registry.model(
        genkit.Recipe(
            "mnist_ae",
            description="an autoencoder of mnist_vae's size: no noise and no prior, to compare with",
            dataset=genkit.Choice("mnist"),
            encoder=genkit.Choice("deterministic_mlp", hidden=(400,), activation="relu"),
            decoder=genkit.Choice("mlp", hidden=400),
            prior=genkit.Choice("standard_normal"),
            loss=genkit.Choice("squared_error_alone"),
            latent_shape=(20,),
            value_range=(-1.0, 1.0),
            training=genkit.TrainingOptions(epochs=100, batch_size=128, learning_rate=1e-3),
        )
    )
    registry.model(
        genkit.Recipe(
            "mnist_beta_tc",
            description="mnist_binary_vae with 10 latents and six times the total correlation between them",
            dataset=genkit.Choice("mnist", binarization="dynamic"),
            encoder=genkit.Choice("gaussian_mlp"),
            decoder=genkit.Choice("bernoulli_mlp"),
            prior=genkit.Choice("standard_normal"),
            loss=genkit.Choice("beta_tc", beta=6.0),
            latent_shape=(10,),
            training=genkit.TrainingOptions(epochs=100, batch_size=512, learning_rate=2e-3, schedule="cosine"),
        )
    )
    registry.model(
        genkit.Recipe(
            "mnist_wae",
            description="an autoencoder whose codes are drawn to the prior by their maximum mean discrepancy",
            dataset=genkit.Choice("mnist"),
            encoder=genkit.Choice("deterministic_mlp"),
            decoder=genkit.Choice("bernoulli_mlp"),
            prior=genkit.Choice("standard_normal"),
            loss=genkit.Choice("wae_mmd"),
            latent_shape=(8,),
            training=genkit.TrainingOptions(epochs=100, batch_size=128, learning_rate=1e-3),
        )
    )
    registry.model(
        genkit.Recipe(
            "mnist_vamp",
            description="mnist_binary_vae with a prior of 500 posteriors of learned pseudo-inputs",
            dataset=genkit.Choice("mnist", binarization="dynamic"),
            encoder=genkit.Choice("gaussian_mlp"),
            decoder=genkit.Choice("bernoulli_mlp"),
            prior=genkit.Choice("vamp", components=500),
            loss=genkit.Choice("negative_elbo"),
            latent_shape=(50,),
            training=genkit.TrainingOptions(epochs=100, batch_size=128, learning_rate=2e-3, schedule="cosine"),
        )
    )
    registry.model(
        genkit.Recipe(
            "mnist_hvae",
            description="two stochastic layers: 784-200-200-100-100-100-50 on binarized pixels",
            dataset=genkit.Choice("mnist", binarization="dynamic"),
            encoder=genkit.Choice("hierarchical_gaussian_mlp"),
            decoder=genkit.Choice("hierarchical_bernoulli_mlp"),
            prior=genkit.Choice("hierarchical_normal"),
            loss=genkit.Choice("negative_elbo"),
            latent_shape=(150,),
            training=genkit.TrainingOptions(epochs=100, batch_size=128, learning_rate=2e-3, schedule="cosine"),
        )
    )
    registry.model(
        genkit.Recipe(
            "mnist_conv_vae",
            description="convolutions to 20 latents and back to binarized pixels, the evidence lower bound",
            dataset=genkit.Choice("mnist", binarization="dynamic"),  # a Bernoulli is a likelihood of binary pixels only
            encoder=genkit.Choice("gaussian_conv", width=16),
            decoder=genkit.Choice("bernoulli_conv", width=16),
            prior=genkit.Choice("standard_normal"),
            loss=genkit.Choice("negative_elbo"),
            latent_shape=(20,),
            training=genkit.TrainingOptions(
                epochs=40, batch_size=128, learning_rate=2e-3, schedule="cosine", sample_every=10
            ),
        )
    )
    registry.model(
        genkit.Recipe(
            "mnist_cvae",
            description="a VAE that is told the label, and draws the digit that it is asked for",
            dataset=genkit.Choice("mnist", binarization="dynamic"),
            encoder=genkit.Choice("gaussian_mlp", conditional=True),
            decoder=genkit.Choice("bernoulli_mlp", conditional=True),
            prior=genkit.Choice("class_normal"),
            loss=genkit.Choice("negative_elbo"),
            latent_shape=(20,),
            training=genkit.TrainingOptions(epochs=100, batch_size=128, learning_rate=2e-3, schedule="cosine"),
        )
    )
