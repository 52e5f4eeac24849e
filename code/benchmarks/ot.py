"""Optimal transport beside its peers: ``python code/benchmarks/ot.py``.

Sinkhorn stops, for everybody, when the larger L1 error of the two marginals is
below one tolerance; the tolerance that a peer needs for that is found first, in
its own terms.  The table shows the error that was reached.
"""

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

sys.path.append(sys.path.pop(0))  # POT's package has the name of this file
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import numpy as np
import torch
from interleave import Thunk, machine, table
from torch import Tensor

from pushforward.ot import bures, cost, plan, sinkhorn, sinkhorn_log, wasserstein_1d

torch.set_num_threads(1)


def installed(name: str) -> bool:
    """Say whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


def problem(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return costs in [0, 1] between two Gaussian clouds in the plane, weights."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, 2, generator=rng, dtype=torch.float64)
    C = cost(x, 0.7 * y + torch.tensor([1.0, 0.5], dtype=torch.float64))
    return (C / C.max()).to(dtype), torch.full((n,), 1 / n, dtype=dtype)


def marginal_error(P: Any, n: int) -> float:
    """Return the larger of the L1 errors of rows and columns; inf if not finite."""
    P = np.asarray(P, dtype=np.float64)
    error = max(np.abs(P.sum(1) - 1 / n).sum(), np.abs(P.sum(0) - 1 / n).sum())
    return float(error) if np.isfinite(error) else float("inf")


def tuned(run: Callable[[float], Any], n: int, tol: float) -> Thunk:
    """Return ``run`` at the loosest of its tolerances that reaches ``tol``."""
    for stop in 10.0 ** np.arange(-1, -13, -0.5):
        if marginal_error(run(float(stop)), n) <= tol:
            return lambda: run(float(stop))
    return lambda: run(float(stop))


def pot_sinkhorn(
    C: Tensor, a: Tensor, eps: float, method: str, steps: int = 20_000
) -> Callable[[float], np.ndarray]:
    """Return POT's Sinkhorn on NumPy arrays, by its tolerance."""
    import ot

    C, a = C.numpy(), a.numpy()
    return lambda stop: ot.sinkhorn(
        a, a, C, eps, method=method, stopThr=stop, numItermax=steps, warn=False
    )


def ott_sinkhorn(
    C: Tensor, a: Tensor, eps: float, steps: int = 20_000
) -> Callable[[float], Any]:
    """Return OTT's Sinkhorn, compiled, by its tolerance."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    C_, a_ = jax.numpy.asarray(C.numpy()), jax.numpy.asarray(a.numpy())
    solvers: dict[float, Any] = {}

    def run(stop: float) -> Any:
        if stop not in solvers:
            solver = Sinkhorn(threshold=stop, max_iterations=steps)
            solvers[stop] = jax.jit(
                lambda c: (
                    solver(
                        LinearProblem(Geometry(cost_matrix=c, epsilon=eps), a_, a_)
                    ).matrix
                )
            )
        return solvers[stop](C_).block_until_ready()

    return run


def geomloss_sinkhorn(n: int, eps: float) -> Thunk:
    """Return GeomLoss's potentials and the plan; it has no stopping rule."""
    from geomloss import SamplesLoss

    C, a = problem(n)
    loss = SamplesLoss(
        "sinkhorn", p=2, blur=eps**0.5, scaling=0.9, diameter=1.0, debias=False,
        potentials=True, backend="tensorized",
        cost=lambda x, _: C[None] if x[0, 0, 0] == 0 else C.T[None],
    )  # fmt: skip
    x, y = (torch.full((1, n, 2), float(k), dtype=torch.float64) for k in (0, 1))

    def run() -> np.ndarray:
        f, g = loss(a[None], x, a[None], y)
        return torch.exp((f[0][:, None] + g[0] - C) / eps).numpy() / n**2

    return run


def sinkhorns(n: int, eps: float, tol: float) -> dict[str, Thunk | None]:
    """Return ours and the peers' Sinkhorn, each tuned to the same error."""
    thunks: dict[str, Thunk | None] = {}
    for dtype, bits in ((torch.float64, 64), (torch.float32, 32)):
        C, a = problem(n, dtype)
        thunks[f"ours f{bits}"] = lambda C=C, a=a: sinkhorn(C, a, a, eps, tol=tol).P
        thunks[f"POT sinkhorn f{bits}"] = tuned(
            pot_sinkhorn(C, a, eps, "sinkhorn"), n, tol
        )
    C, a = problem(n)
    thunks["ours, plain log domain"] = lambda: sinkhorn_log(C, a, a, eps, tol=tol).P
    thunks["POT sinkhorn_log"] = tuned(pot_sinkhorn(C, a, eps, "sinkhorn_log"), n, tol)
    thunks["ott-jax"] = (
        tuned(ott_sinkhorn(C, a, eps), n, tol) if installed("ott") else None
    )
    thunks["geomloss, scaling .9"] = (
        geomloss_sinkhorn(n, eps) if installed("geomloss") else None
    )
    return thunks


def survival(n: int, eps: float, tol: float, steps: int) -> dict[str, Thunk | None]:
    """Return what claims to work where the kernel underflows."""
    C, a = problem(n)
    C32, a32 = problem(n, torch.float32)
    ott = ott_sinkhorn(C, a, eps, steps) if installed("ott") else None
    thunks: dict[str, Thunk | None] = {
        "ours f64": lambda: sinkhorn(C, a, a, eps, tol=tol, steps=steps).P,
        "ours f32": lambda: sinkhorn(C32, a32, a32, eps, tol=tol, steps=steps).P,
        "ott-jax": None if ott is None else lambda: ott(tol),
    }
    for method in ("sinkhorn", "sinkhorn_stabilized", "sinkhorn_log"):
        run = pot_sinkhorn(C, a, eps, method, steps)
        thunks[f"POT {method}"] = lambda run=run: run(tol)
    return thunks


def lines(n: int) -> tuple[dict[str, Thunk | None], float]:
    """Return the 1-D distances of n points, and their common value."""
    import ot

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(n), 1 + 1.5 * rng.standard_normal(n)
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    exact = float(np.mean((np.sort(x) - np.sort(y)) ** 2))
    return {
        "ours": lambda: float(wasserstein_1d(tx, ty)) ** 2,
        "POT wasserstein_1d": lambda: float(ot.wasserstein_1d(x, y, p=2)),
        "POT emd2_1d": lambda: float(ot.emd2_1d(x, y)),
    }, exact


def gaussians(d: int) -> tuple[dict[str, Thunk | None], float]:
    """Return the Gaussian distances in dimension d, and their common value."""
    import ot

    rng = torch.Generator().manual_seed(0)
    F, G = torch.randn(2, d, d, generator=rng, dtype=torch.float64)
    S, T, m = F @ F.T / d, G @ G.T / d, torch.zeros(d, dtype=torch.float64)
    roots = torch.linalg.eigvals(S @ T).real.clamp(min=0).sqrt().sum()
    exact = float(S.trace() + T.trace() - 2 * roots)
    arrays = [t.numpy() for t in (m, m, S, T)]
    return {
        "ours": lambda: float(bures(m, S, m, T)),
        "POT bures_wasserstein_distance": lambda: (
            float(ot.gaussian.bures_wasserstein_distance(*arrays)) ** 2
        ),
    }, exact


def exact_plans(n: int) -> tuple[dict[str, Thunk | None], float]:
    """Return solvers of the linear program, and its value."""
    import ot
    from scipy.optimize import linear_sum_assignment

    C, a = problem(n)
    Cn, an = C.numpy(), a.numpy()

    def assignment() -> float:
        i, j = linear_sum_assignment(Cn)
        return float(Cn[i, j].mean())

    return {
        "ours (network simplex, certified)": lambda: float(plan(C, a, a).value),
        "POT emd2": lambda: float(ot.emd2(an, an, Cn)),
        "scipy linear_sum_assignment": assignment,
    }, assignment()


def relative(exact: float) -> Callable[[float], str]:
    """Return a certificate: the error relative to a value known otherwise."""
    return lambda value: f"relative error {abs(value / exact - 1):.1e}"


def main() -> None:
    """Print every table."""
    warnings.simplefilter("ignore")  # of peers that overflow: the certificate tells
    print(machine())
    n = 1000
    marginals = lambda P: f"marginals within {marginal_error(P, n):.1e}"
    for eps, tol in ((0.05, 1e-6), (0.005, 1e-4)):
        title = f"Sinkhorn, n = {n}, C in [0, 1], ε = {eps}, L1 error ≤ {tol:.0e}"
        print(table(title, sinkhorns(n, eps, tol), certify=marginals))
    title = f"Sinkhorn, n = {n}, ε = 1e-4, tolerance 1e-3, at most 1000 sweeps, once"
    print(table(title, survival(n, 1e-4, 1e-3, 1000), certify=marginals, rounds=1))
    for title, (thunks, exact) in (
        ("1-D W2², a million points a side, float64", lines(1_000_000)),
        ("Gaussian W2², d = 200", gaussians(200)),
        ("Exact transport, n = 1000 in the plane", exact_plans(n)),
    ):
        print(table(title, thunks, certify=relative(exact)))
    print(machine())


if __name__ == "__main__":
    main()
