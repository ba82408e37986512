"""Normalizing flows, by zuko: as a posterior, as a prior, and as a whole model of points in the plane."""

from __future__ import annotations

import genkit


@genkit.hookimpl
def genkit_register(registry: genkit.Registry) -> None:
    """Contributes a flow posterior, a flow prior, the components of a flow by itself, and a recipe of each."""
    registry.encoder("flow_mlp", "genkit_flows.flows:FlowMLPEncoder")
    registry.encoder("identity_map", "genkit_flows.identity:IdentityEncoder")
    registry.decoder("identity_map", "genkit_flows.identity:IdentityDecoder")
    registry.prior("zuko_flow", "genkit_flows.flows:FlowPrior")
    registry.loss("maximum_likelihood", "genkit_flows.identity:MaximumLikelihood")
    registry.dataset("two_moons", "genkit_flows.moons:two_moons")
    registry.model(
        genkit.Recipe(
            "mnist_flow",
            description="a VAE of binary digits: inverse autoregressive posterior, neural spline prior",
            dataset=genkit.Choice("mnist", binarization="dynamic"),
            encoder=genkit.Choice("flow_mlp", hidden=[400], context=64, transforms=2),
            decoder=genkit.Choice("bernoulli_mlp", hidden=[200, 200]),
            prior=genkit.Choice("zuko_flow", kind="spline", transforms=2),
            loss=genkit.Choice("negative_elbo"),
            latent_shape=(16,),
            value_range=(0.0, 1.0),
            training=genkit.TrainingOptions(
                epochs=60, batch_size=128, optimizer="adam", learning_rate=1e-3, schedule="cosine", sample_every=10
            ),
        )
    )
    registry.model(
        genkit.Recipe(
            "two_moons_flow",
            description="a neural spline flow of points in the plane, with an exact likelihood",
            dataset=genkit.Choice("two_moons"),
            encoder=genkit.Choice("identity_map"),
            decoder=genkit.Choice("identity_map"),
            prior=genkit.Choice("zuko_flow", kind="spline", transforms=4),
            loss=genkit.Choice("maximum_likelihood"),
            latent_shape=(2,),
            value_range=None,
            training=genkit.TrainingOptions(
                epochs=30, batch_size=256, optimizer="adam", learning_rate=1e-3, schedule="cosine", sample_every=10
            ),
        )
    )
