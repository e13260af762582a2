"""What an attribution is held to: its own estimate, tolerance and gap."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from integrand.schemas.tables import RowStatus
from integrand.workers.methods.attribution import Attribution


def parts(found: Attribution) -> tuple[Tensor, ...]:
    return found.attributions if isinstance(found.attributions, tuple) else (found.attributions,)


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.reshape(len(t), -1) for t in tensors], 1)


def check(found: Attribution, expected: Tensor, tolerance: float) -> None:
    """Certified rows are within the tolerance; every row's error is at most twice its estimate, as
    promised; and the gap is what it says it is.
    """
    values = flat(parts(found))
    rounding = 1e-13 * (expected.abs().sum(1) + found.f_input.abs() + found.f_baseline.abs())
    error, size = (values - expected).abs().sum(1), values.abs().sum(1)
    told = torch.where(size > 0, found.error_estimate * size, math.inf)
    assert (error <= 2 * told + rounding).all(), (error / size, found.error_estimate)
    certified = torch.tensor([s == RowStatus.ok for s in found.status])
    assert (error <= tolerance * expected.abs().sum(1) + rounding)[certified].all(), (
        error / expected.abs().sum(1)
    )
    torch.testing.assert_close(
        found.gap, values.sum(1) - (found.f_input - found.f_baseline), rtol=1e-9, atol=1e-12
    )
