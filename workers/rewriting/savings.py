"""Exact savings: rewritings of the model that leave its function as it is and its gradients
cheaper.

A plan chooses them once (`choosing.py`), a worker applies what was chosen. In float32 they move
last bits, now and then a single ReLU's mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from integrand.schemas.errors import IntegrityError
from integrand.workers.models.outputs import Forward
from integrand.workers.models.row_tensors import RowTensors
from integrand.workers.rewriting.aligning import align, alignable
from integrand.workers.rewriting.flops import Work, worthwhile
from integrand.workers.rewriting.folding import Pair, fold, foldable_pairs
from integrand.workers.rewriting.hoisting import Hoisted, hoist
from integrand.workers.rewriting.layout import convolutions, lay_out


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


@dataclass(frozen=True, eq=False)
class Candidate:
    """A module for which savings are chosen, with real rows; `work` is what one of them is taken to
    cost.
    """

    module: nn.Module
    rows: RowTensors
    work: Work

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        return foldable_pairs(self.module, self.rows.inputs, self.rows.forward_args)


@dataclass(frozen=True, kw_only=True)
class Saving:
    """One rewriting.

    applies       whether there is anything to rewrite, and whether it pays
    inapplicable  what is said where there is not
    rewrite       the module rewritten; of rows, shapes and dtypes alone matter
    """

    name: str
    applies: Callable[[Candidate], bool]
    inapplicable: str
    rewrite: Callable[[nn.Module, Savings, RowTensors], Rewritten]


def _folded(module: nn.Module, savings: Savings, rows: RowTensors) -> Rewritten:
    return Rewritten(fold(module, savings.folded))


FOLD = Saving(
    name="fold_batch_norm",
    applies=lambda candidate: bool(candidate.pairs),
    inapplicable="no layer whose output a batch norm alone reads, or Python reads tensor values",
    rewrite=_folded,
)


def _laid_out(module: nn.Module, savings: Savings, rows: RowTensors) -> Rewritten:
    return Rewritten(lay_out(module, rows.inputs))


LAYOUT = Saving(
    name="channels_last",
    applies=lambda candidate: bool(convolutions(candidate.module)),
    inapplicable="no 2-d or 3-d convolution",
    rewrite=_laid_out,
)


def _aligned(module: nn.Module, savings: Savings, rows: RowTensors) -> Rewritten:
    return Rewritten(align(module))


ALIGN = Saving(
    name="aligned_linear",
    applies=lambda candidate: alignable(candidate.module),
    inapplicable="no layer of another width than whole vectors",
    rewrite=_aligned,
)
"""It saves nothing: it is taken for the sake of bits alone, where kernels ask for it."""


def _hoistable(candidate: Candidate) -> bool:
    module, rows = candidate.module, candidate.rows
    hoisted = hoist(module, rows.inputs, rows.forward_args)
    if hoisted is None:
        return False
    return worthwhile(module, hoisted, rows.inputs, rows.forward_args, candidate.work)


def _hoisted(module: nn.Module, savings: Savings, rows: RowTensors) -> Rewritten:
    return Rewritten(module, hoist(module, rows.inputs, rows.forward_args))


HOIST = Saving(
    name="hoist_affine",
    applies=_hoistable,
    inapplicable="no affine prefix that can be traced, or one that saves too little",
    rewrite=_hoisted,
)

SAVINGS = (FOLD, LAYOUT, ALIGN, HOIST)
"""In the order of their application: folding first, since a hoisted prefix is then smaller."""


def without_hoisting(savings: Savings, reason: str) -> Savings:
    """The savings but for the hoisted prefix."""
    if HOIST.name not in savings.names:
        return savings
    return replace(
        savings,
        names=tuple(n for n in savings.names if n != HOIST.name),
        frontier=(),
        left_out=(*savings.left_out, (HOIST.name, reason)),
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
    rows = RowTensors(tuple(inputs), forward_args=tuple(forward_args))
    rewritten = rewrite(forward, savings, rows)
    frontier = rewritten.hoisted.frontier if rewritten.hoisted else ()
    if frontier != savings.frontier or bool(frontier) != (HOIST.name in savings.names):
        raise IntegrityError(
            "model",
            expected=f"an affine prefix up to {', '.join(savings.frontier) or 'some tensor'}",
            seen=f"up to {', '.join(frontier)}" if frontier else "none",
            next_step="plan again",
        )
    return rewritten


def rewrite(forward: Forward, savings: Savings, rows: RowTensors) -> Rewritten:
    """The model rewritten, wherever its affine prefix ends."""
    rewritten = Rewritten(forward)
    for saving in SAVINGS:
        if saving.name in savings.names:
            assert isinstance(rewritten.forward, nn.Module), "savings are chosen for modules alone"
            rewritten = saving.rewrite(rewritten.forward, savings, rows)
    return rewritten
