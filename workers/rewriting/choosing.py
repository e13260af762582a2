"""Which savings a plan takes: each is kept only if outputs and path integrands of real rows agree
in float64 with the plain model's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from integrand.workers.models.gradients import SideBySide, gradients_at
from integrand.workers.models.outputs import Forward
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.rewriting.flops import JUDGED_WORK, Work
from integrand.workers.rewriting.folding import Pair
from integrand.workers.rewriting.savings import (
    ALIGN,
    FOLD,
    SAVINGS,
    Candidate,
    Rewritten,
    Saving,
    Savings,
    apply,
    rewrite,
)

CHOICE = tuple(saving for saving in SAVINGS if saving is not ALIGN)
AGREEMENT = 1e-9
"""Largest difference in float64, relative to a row's largest element."""
ALPHAS = (0.171, 0.437, 0.713, 0.941)
"""Where on the path results are compared: inside, since at x' = 0 a model without biases has every
ReLU on its kink.
"""


def choose(forward: Forward, rows: RowTensors, work: Work = JUDGED_WORK) -> Savings:
    """The savings that apply to a model and hold on real rows: a function of structure, shapes and
    float64 results.

    The target of `rows` is as from `outputs.target_table`. The first four rows that differ from
    their baseline are compared; each saving on top of those kept before it. `work` is what a row is
    taken to cost.
    """
    sample = _compared(rows)
    if sample is None:
        return _none("no row tried differs from its baseline")
    if not isinstance(forward, nn.Module):
        return _none("the model is not a torch.nn.Module")
    candidate = Candidate(forward, rows, work)
    proposed = [saving for saving in CHOICE if saving.applies(candidate)]
    kept, objections = _verified(candidate, proposed, sample)
    reasons = {s.name: s.inapplicable for s in CHOICE if s not in proposed} | objections
    left_out = tuple((s.name, reasons[s.name]) for s in CHOICE if s.name in reasons)
    return replace(kept, left_out=left_out)


def with_alignment(forward: Forward, kept: Savings, rows: RowTensors) -> Savings | None:
    """The savings with layers of whole vectors too; None where no layer has other widths or results
    differ.
    """
    sample = _compared(rows)
    if not isinstance(forward, nn.Module) or sample is None:
        return None
    if not ALIGN.applies(Candidate(forward, rows, JUDGED_WORK)):
        return None
    names = tuple(s.name for s in SAVINGS if s is ALIGN or s.name in kept.names)
    try:
        found, objection = _try(_reference(forward, sample), names, kept.folded)
    except Exception:  # noqa: BLE001 - the model's own code, in float64
        return None
    return replace(found, left_out=kept.left_out) if objection is None else None


def _none(reason: str) -> Savings:
    left_out = tuple((saving.name, reason) for saving in CHOICE)
    return Savings(left_out=left_out)


def _compared(rows: RowTensors) -> RowTensors | None:
    """Rows that differ from their baseline, as many as there are `ALPHAS`: another α in each, so
    that what mixes rows cannot agree. None where no row differs: then every attribution is zero
    whatever the model.
    """
    moves = [(x != b).flatten(1).any(1) for x, b in zip(rows.inputs, rows.baselines, strict=True)]
    index = torch.stack(moves).any(0).nonzero().flatten()[: len(ALPHAS)]
    if not len(index):
        return None
    return rows.take(index).repeat(len(ALPHAS)).expanded()


def _double(rows: RowTensors) -> RowTensors:
    return replace(
        rows,
        inputs=tuple(x.double() for x in rows.inputs),
        baselines=tuple(b.double() for b in rows.baselines),
        forward_args=tuple(a.double() if a.is_floating_point() else a for a in rows.forward_args),
    )


@dataclass(frozen=True, eq=False)
class _Reference:
    """A model as it is with its sample, and both in float64 with the outputs and integrands that
    they give.
    """

    native: nn.Module
    sample: RowTensors
    plain: nn.Module
    wide: RowTensors
    out: Tensor
    integrand: Tensor


def _reference(forward: nn.Module, sample: RowTensors) -> _Reference:
    plain = copy.deepcopy(forward).double()
    wide = _double(sample)
    out, integrand = _integrand(Rewritten(plain), wide)
    return _Reference(forward, sample, plain, wide, out, integrand)


def _verified(
    candidate: Candidate, proposed: Sequence[Saving], sample: RowTensors
) -> tuple[Savings, dict[str, str]]:
    """All that is proposed if together it agrees with the plain model; else each that does on top
    of those kept before. With an objection to each of the others, by name.
    """
    names = tuple(saving.name for saving in proposed)
    if not names:
        return Savings(), {}
    try:
        reference = _reference(candidate.module, sample)
    except Exception as error:  # noqa: BLE001 - the model's own code, in float64
        return Savings(), dict.fromkeys(names, f"in float64, {_told(error)}")
    kept, objection = _try(reference, names, candidate.pairs)
    if objection is None:
        return kept, {}
    kept, objections = Savings(), {}
    for name in names:
        wider, objection = _try(reference, (*kept.names, name), candidate.pairs)
        if objection is None:
            kept = wider
        else:
            objections[name] = objection
    return kept, objections


def _try(
    reference: _Reference, names: tuple[str, ...], pairs: tuple[Pair, ...]
) -> tuple[Savings, str | None]:
    """These savings, and why they cannot be used; None where they run as they will and agree in
    float64.
    """
    wide = reference.wide
    savings = Savings(names, pairs if FOLD.name in names else ())
    try:
        native = rewrite(reference.native, savings, reference.sample)
        # for what it raises: strides and dtypes within are other ones in float64
        _integrand(native, reference.sample)
        savings = replace(savings, frontier=native.hoisted.frontier if native.hoisted else ())
        again = apply(reference.plain, savings, wide.inputs, wide.forward_args)
        seen = _disagreement(reference, again)
    except Exception as error:  # noqa: BLE001 - the model's own code runs in another form, and may raise anything
        return savings, _told(error)
    if seen <= AGREEMENT:
        return savings, None
    return savings, f"differs from the plain model by {seen:.1e} in float64"


def _told(error: Exception) -> str:
    one_line = " ".join(str(error).split())
    return f"{type(error).__name__}: {one_line[:200]}"


def _disagreement(reference: _Reference, rewritten: Rewritten) -> float:
    """Largest relative difference of outputs and integrands; infinite where nothing finite can be
    compared.
    """
    out, integrand = reference.out, reference.integrand
    again, integrand_again = _integrand(rewritten, reference.wide)
    apart = torch.stack(
        [
            _ratio(out - again, out.abs().amax(1) + integrand.abs().sum(1)),
            _ratio(integrand - integrand_again, integrand.abs().amax(1)),
        ]
    )
    finite = out.isfinite().all(1) & integrand.isfinite().all(1)
    return max(apart[:, finite].nan_to_num(math.inf).flatten().tolist(), default=math.inf)


def _ratio(difference: Tensor, scale: Tensor) -> Tensor:
    apart = difference.abs().amax(1)
    return torch.where(apart == 0, 0.0, apart / scale)


def _integrand(rewritten: Rewritten, sample: RowTensors) -> tuple[Tensor, Tensor]:
    """Outputs [rows, outputs] and the integrand ∂f/∂x ⊙ (x − x') [rows, elements], between x' and x
    or h(x') and h(x).
    """
    hoisted, start, stop = rewritten.hoisted, sample.baselines, sample.inputs
    if hoisted is not None:
        with torch.no_grad():
            start, stop = (
                hoisted.prefix(*points, *(a.clone() for a in sample.forward_args))
                for points in (start, stop)
            )
    points = [_between(a, b) for a, b in zip(start, stop, strict=True)]
    tail = hoisted.tail if hoisted else rewritten.forward
    out, gradients = gradients_at(tail, points, sample.forward_args, sample.target)
    if hoisted is not None:
        cotangents = SideBySide.like(points).split(gradients)
        gradients = SideBySide.join(hoisted.pull(cotangents, sample.forward_args))
    difference = [x - b for x, b in zip(sample.inputs, sample.baselines, strict=True)]
    return out.reshape(len(out), -1), gradients * SideBySide.join(difference)


def _between(start: Tensor, stop: Tensor) -> Tensor:
    alphas = torch.tensor(ALPHAS, dtype=start.dtype, device=start.device).reshape(
        -1, *[1] * (start.ndim - 1)
    )
    return (start + alphas * (stop - start)).detach()
