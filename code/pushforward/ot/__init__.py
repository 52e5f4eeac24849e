"""Optimal transport: pure functions on point clouds, costs and weights.

Kantorovich's problem and its dual, the closed form on the line.
"""

from .duality import (
    Certificate,
    Critic,
    c_transform,
    certificate,
    kantorovich_rubinstein,
    potentials,
)
from .gaussian import (
    Affine,
    Barycenter,
    Moments,
    barycenter,
    bures,
    gaussian_map,
    gelbrich,
    geodesic,
    moments,
    sqrtm,
)
from .kantorovich import ExactPlan, cost, glue, interpolate, plan, product, wasserstein
from .quantile import (
    Monotone,
    area_between,
    cdf,
    monotone_coupling,
    quantile,
    quantile_map,
    wasserstein_1d,
)
from .sinkhorn import (
    EntropicPlan,
    birkhoff,
    entropic_cost,
    entropic_cost_gaussian,
    hilbert,
    rounded,
    sinkhorn,
    sinkhorn_divergence,
    sinkhorn_log,
)
from .sliced import Sliced, slice_constant, sliced_flow, sliced_wasserstein, sphere

__all__ = [
    "Affine",
    "Barycenter",
    "Certificate",
    "Critic",
    "EntropicPlan",
    "ExactPlan",
    "Moments",
    "Monotone",
    "Sliced",
    "area_between",
    "barycenter",
    "birkhoff",
    "bures",
    "c_transform",
    "cdf",
    "certificate",
    "cost",
    "entropic_cost",
    "entropic_cost_gaussian",
    "gaussian_map",
    "gelbrich",
    "geodesic",
    "glue",
    "hilbert",
    "interpolate",
    "kantorovich_rubinstein",
    "moments",
    "monotone_coupling",
    "plan",
    "potentials",
    "product",
    "quantile",
    "quantile_map",
    "rounded",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_log",
    "slice_constant",
    "sliced_flow",
    "sliced_wasserstein",
    "sphere",
    "sqrtm",
    "wasserstein",
    "wasserstein_1d",
]
