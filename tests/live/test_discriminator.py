"""The best discriminator in the page, and the package's (eq:gan-two-gradients)."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pushforward.distributions import line_mixture
from pushforward.gans import NON_SATURATING, SATURATING
from pushforward.objectives import js, masses, normal_rule

MEANS = [(0.0,), (-1.5, 1.5)]
STATES = [(0, 2.5, 0.5), (0, 0.5, 0.5), (0, -1.5, 0.2), (1, 2.5, 0.5), (1, 4.0, 2.0),
          (1, 0.3, 1.0), (1, 1.5, 0.5)]  # fmt: skip


@pytest.fixture
def data() -> dict[str, Any]:
    return {"laws": [{"means": torch.tensor(means), "s": 0.5} for means in MEANS]}


@pytest.mark.parametrize(("law", "m", "s"), STATES)
def test_the_divergence_and_the_value_are_those_of_the_package(
    law: int, m: float, s: float, data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    found = figure("discriminator")({"law": law, "m": m, "s": s}, data)
    x = torch.linspace(-8, 8, 64_001) if s < 1 else torch.linspace(-24, 24, 64_001)
    p, q = masses(line_mixture(MEANS[law], 0.5), x), masses(line_mixture((m,), s), x)
    keep = (p > 1e-300) & (q > 1e-300)  # elsewhere a density has left double precision
    exact = float(js(p[keep], q[keep]))
    assert found["js"] == pytest.approx(exact, rel=1e-6)
    assert found["value"] == pytest.approx(2 * exact - math.log(4), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("law", "m", "s"), STATES)
def test_the_generator_hears_what_the_package_says(
    law: int, m: float, s: float, data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    """Through samples m + s z with the discriminator held, by quadrature."""
    found = figure("discriminator")({"law": law, "m": m, "s": s}, data)
    p, q = line_mixture(MEANS[law], 0.5), line_mixture((m,), s)
    rule, shift = normal_rule(), torch.tensor(m, requires_grad=True)

    def slope(loss: Callable[[Tensor], Tensor]) -> float:
        x = shift + s * rule.x
        held = loss(p.log_prob(x) - q.log_prob(x))
        return torch.autograd.grad(rule.w @ held, shift)[0].item()

    each = lambda objective: torch.func.vmap(lambda d: objective.generator(d[None]))
    for key, objective in (("saturating", SATURATING), ("other", NON_SATURATING)):
        exact = slope(each(objective))
        assert found[key] == pytest.approx(exact, rel=1e-6, abs=1e-9)


def test_samples_on_one_mode_hear_nothing_of_the_other(
    data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    """What the page says about a lost mode."""
    found = figure("discriminator")({"law": 1, "m": 1.5, "s": 0.5}, data)
    assert found["js"] > 0.2
    assert abs(found["saturating"]) < 0.02
    assert abs(found["other"]) < 0.02


@pytest.mark.parametrize(("law", "m", "s"), STATES)
def test_a_sample_is_pushed_down_the_loss_of_the_package(
    law: int, m: float, s: float, data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    """σ(D) D' and (1 − σ(D)) D' are minus the slopes of the two losses at x."""
    found = figure("discriminator")({"law": law, "m": m, "s": s}, data)
    p, q = line_mixture(MEANS[law], 0.5), line_mixture((m,), s)
    for part in ("seen", "seven"):
        x = torch.tensor(found[part]["x"], requires_grad=True)
        d = p.log_prob(x[:, None]) - q.log_prob(x[:, None])
        losses = [len(x) * o.generator(d) for o in (SATURATING, NON_SATURATING)]
        want = [-torch.autograd.grad(v, x, retain_graph=True)[0] for v in losses]
        torch.testing.assert_close(
            torch.tensor(found[part]["pushes"]), torch.stack(want, 1)
        )
