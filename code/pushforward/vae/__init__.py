"""Variational autoencoders: a latent, a decoder, an encoder and a bound."""

from .gauss import (
    VAE,
    BernoulliNet,
    Conditional,
    GaussianNet,
    LinearGaussian,
    NoisyNet,
    divergence,
    draw,
    gaussian_kl,
    linear_vae,
    pathwise_gradient,
    ppca,
    residual_decoder,
    residual_encoder,
    score_gradient,
)

__all__ = [
    "VAE",
    "BernoulliNet",
    "Conditional",
    "GaussianNet",
    "LinearGaussian",
    "NoisyNet",
    "divergence",
    "draw",
    "gaussian_kl",
    "linear_vae",
    "pathwise_gradient",
    "ppca",
    "residual_decoder",
    "residual_encoder",
    "score_gradient",
]
