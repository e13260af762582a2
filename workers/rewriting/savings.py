"""Exact savings: rewritings of the model that leave its function as it is and its gradients
cheaper.

A plan chooses them once, each kept only if outputs and path integrands of real rows agree in
float64 with the plain model's; a worker applies what was chosen. In float32 they move last bits,
now and then a single ReLU's mask.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from integrand.schemas.errors import IntegrityError
from integrand.workers.models.gradients import SideBySide, gradients_at
from integrand.workers.models.outputs import Forward
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.rewriting.aligning import align, alignable
from integrand.workers.rewriting.flops import JUDGED_WORK, Work, worthwhile
from integrand.workers.rewriting.folding import Pair, fold, foldable_pairs
from integrand.workers.rewriting.hoisting import Hoisted, hoist

FOLD, LAYOUT, ALIGN, HOIST = "fold_batch_norm", "channels_last", "aligned_linear", "hoist_affine"
NAMES = (FOLD, LAYOUT, HOIST)
"""In the order of their application: folding first, since a hoisted prefix is then smaller. Aligned
layers, before it, save nothing: they are taken for the sake of bits alone, where kernels ask for
them.
"""
AGREEMENT = 1e-9
"""Largest difference in float64, relative to a row's largest element."""
ALPHAS = (0.171, 0.437, 0.713, 0.941)
"""Where on the path results are compared: inside, since at x' = 0 a model without biases has every
ReLU on its kink.
"""
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_INAPPLICABLE = {
    FOLD: "no layer whose output a batch norm alone reads, or Python reads tensor values",
    LAYOUT: "no 2-d or 3-d convolution",
    HOIST: "no affine prefix that can be traced, or one that saves too little",
}


@dataclass(frozen=True)
class Savings:
    """What a plan freezes: names in the order of their application, what each found, and why others
    were left out.

    `folded` are the pairs of layer and batch norm; `frontier` names the tensors of the trace at
    which a hoisted prefix ends.
    """

    names: tuple[str, ...] = ()
    folded: tuple[Pair, ...] = ()
    frontier: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Rewritten:
    """A model with its savings applied; where its prefix was hoisted, in two halves too."""

    forward: Forward
    hoisted: Hoisted | None = None


def choose(
    forward: Forward,
    rows: RowTensors,
    work: Work = JUDGED_WORK,
) -> Savings:
    """The savings that apply to a model and hold on real rows: a function of structure, shapes and
    float64 results.

    The target of `rows` is as from `outputs.target_table`. The first four rows that differ from
    their baseline are compared; each saving on top of those kept before it. `work` is what a row is
    taken to cost.
    """
    sample = _compared(rows)
    if not isinstance(forward, nn.Module) or sample is None:
        reason = (
            "no row tried differs from its baseline"
            if sample is None
            else "the model is not a torch.nn.Module"
        )
        return Savings(left_out=tuple((name, reason) for name in NAMES))
    pairs = foldable_pairs(forward, rows.inputs, rows.forward_args)
    applies = {
        FOLD: bool(pairs),
        LAYOUT: bool(_convolutions(forward)),
        HOIST: _hoistable(forward, rows.inputs, rows.forward_args, work),
    }
    proposed = tuple(name for name in NAMES if applies[name])
    kept, objections = _verified(forward, proposed, pairs, sample) if proposed else (Savings(), {})
    reasons = {
        name: reason for name, reason in _INAPPLICABLE.items() if not applies[name]
    } | objections
    return replace(kept, left_out=tuple((name, reasons[name]) for name in NAMES if name in reasons))


def with_alignment(
    forward: Forward,
    kept: Savings,
    rows: RowTensors,
) -> Savings | None:
    """The savings with layers of whole vectors too; None where no layer has other widths or results
    differ.
    """
    sample = _compared(rows)
    if not isinstance(forward, nn.Module) or sample is None or not alignable(forward):
        return None
    names = tuple(name for name in (FOLD, LAYOUT, ALIGN, HOIST) if name in (*kept.names, ALIGN))
    try:
        found, objection = _try(_reference(forward, sample), names, kept.folded)
    except Exception:  # noqa: BLE001 - the model's own code, in float64
        return None
    return replace(found, left_out=kept.left_out) if objection is None else None


def without_hoisting(savings: Savings, reason: str) -> Savings:
    """The savings but for the hoisted prefix."""
    if HOIST not in savings.names:
        return savings
    return replace(
        savings,
        names=tuple(n for n in savings.names if n != HOIST),
        frontier=(),
        left_out=(*savings.left_out, (HOIST, reason)),
    )


def apply(
    forward: Forward,
    savings: Savings,
    inputs: Sequence[Tensor],
    forward_args: Sequence[Tensor] = (),
) -> Rewritten:
    """The model rewritten as planned; the given one is not touched. Rows of zeros will do for
    `inputs`.

    Raises IntegrityError if its affine prefix does not end where the plan saw it end.
    """
    rewritten = _rewrite(forward, savings.names, savings.folded, inputs, forward_args)
    frontier = rewritten.hoisted.frontier if rewritten.hoisted else ()
    if frontier != savings.frontier or bool(frontier) != (HOIST in savings.names):
        raise IntegrityError(
            "model",
            expected=f"an affine prefix up to {', '.join(savings.frontier) or 'some tensor'}",
            seen=f"up to {', '.join(frontier)}" if frontier else "none",
            next_step="plan again",
        )
    return rewritten


def _rewrite(
    forward: Forward,
    names: Sequence[str],
    pairs: Sequence[Pair],
    inputs: Sequence[Tensor],
    forward_args: Sequence[Tensor],
) -> Rewritten:
    if FOLD in names:
        forward = fold(forward, pairs)
    if LAYOUT in names:
        forward = lay_out(forward, inputs)
    if ALIGN in names:
        forward = align(forward)
    return Rewritten(forward, hoist(forward, inputs, forward_args) if HOIST in names else None)


# --- memory format -----------------------------------------------------------------------------


class ChannelsLast(nn.Module):
    """Hands images and volumes on with their channels innermost; everything else as it is."""

    def __init__(self, module: nn.Module, dimensions: tuple[int, ...]) -> None:
        super().__init__()
        self.module, self.dimensions, self.training = module, dimensions, False

    def forward(self, *arguments: Tensor) -> Tensor:
        images = [
            a.contiguous(memory_format=_FORMATS[n]) if n in _FORMATS else a
            for a, n in zip(arguments, self.dimensions, strict=False)
        ]
        return self.module(*images, *arguments[len(images) :])


def lay_out(module: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """A copy of `module` with the weights of its convolutions, and inputs of such ranks, channels
    last.
    """
    placed = copy.deepcopy(module)
    for layer in _convolutions(placed):
        layer.weight.data = layer.weight.data.contiguous(memory_format=_FORMATS[layer.weight.ndim])
    return ChannelsLast(placed, tuple(x.ndim for x in inputs))


def _convolutions(module: nn.Module) -> list[nn.Module]:
    """By layer type: a scripted module tells its own by name."""
    names = {kind.__name__ for kind in _CONVOLUTIONS}
    return [
        m
        for m in module.modules()
        if isinstance(m, _CONVOLUTIONS) or getattr(m, "original_name", "") in names
    ]


# --- verification ------------------------------------------------------------------------------


def _compared(rows: RowTensors) -> RowTensors | None:
    """Rows that differ from their baseline, as many as there are `ALPHAS`: another α in each, so
    that what mixes rows cannot agree. None where no row differs: then every attribution is zero
    whatever the model.
    """
    moves = [(x != b).flatten(1).any(1) for x, b in zip(rows.inputs, rows.baselines, strict=True)]
    index = torch.stack(moves).any(0).nonzero().flatten()[: len(ALPHAS)]
    return rows.take(index).repeat(len(ALPHAS)).expanded() if len(index) else None


def _double(rows: RowTensors) -> RowTensors:
    return replace(
        rows,
        inputs=tuple(x.double() for x in rows.inputs),
        baselines=tuple(b.double() for b in rows.baselines),
        forward_args=tuple(a.double() if a.is_floating_point() else a for a in rows.forward_args),
    )


def _hoistable(
    module: nn.Module, inputs: Sequence[Tensor], forward_args: Sequence[Tensor], work: Work
) -> bool:
    hoisted = hoist(module, inputs, forward_args)
    return hoisted is not None and worthwhile(module, hoisted, inputs, forward_args, work)


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
    plain, wide = copy.deepcopy(forward).double(), _double(sample)
    return _Reference(forward, sample, plain, wide, *_integrand(Rewritten(plain), wide))


def _verified(
    forward: nn.Module, proposed: tuple[str, ...], pairs: tuple[Pair, ...], sample: RowTensors
) -> tuple[Savings, dict[str, str]]:
    """All that is proposed if together it agrees with the plain model; else each that does on top
    of those kept before.
    """
    try:
        reference = _reference(forward, sample)
    except Exception as error:  # noqa: BLE001 - the model's own code, in float64
        return Savings(), dict.fromkeys(proposed, f"in float64, {_told(error)}")
    kept, objection = _try(reference, proposed, pairs)
    if objection is None:
        return kept, {}
    kept, objections = Savings(), {}
    for name in proposed:
        wider, objection = _try(reference, (*kept.names, name), pairs)
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
    sample, wide = reference.sample, reference.wide
    savings = Savings(names, pairs if FOLD in names else ())
    try:
        native = _rewrite(reference.native, names, pairs, sample.inputs, sample.forward_args)
        # for what it raises: strides and dtypes within are other ones in float64
        _integrand(native, sample)
        savings = replace(savings, frontier=native.hoisted.frontier if native.hoisted else ())
        seen = _disagreement(
            reference, apply(reference.plain, savings, wide.inputs, wide.forward_args)
        )
    except Exception as error:  # noqa: BLE001 - the model's own code runs in another form, and may raise anything
        return savings, _told(error)
    return (
        savings,
        None if seen <= AGREEMENT else f"differs from the plain model by {seen:.1e} in float64",
    )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


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
