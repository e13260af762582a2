"""What a notebook passes, as tensors that fit each other. Each refusal says what to change."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from integrand.schemas.errors import DataError, SpecError
from integrand.workers.engine.results import Tensors
from integrand.workers.models.outputs import TargetLike, target_tables
from integrand.workers.models.row_tensors import RowTensors

Baselines = Tensors | tuple[Tensor | float | None, ...] | float | None


def row_tensors(
    inputs: Tensors,
    baselines: Baselines,
    forward_args: Tensors,
    target: TargetLike,
    draws: int = 1,
) -> RowTensors:
    """The arguments of `attribute`, as it documents them; the target is `[rows, targets, depth]`.

    Raises SpecError or DataError.
    """
    xs = _tensors("inputs", inputs)
    for i, x in enumerate(xs):
        _check_input(f"inputs[{i}]", x, xs[0])
    _check_draws(draws)
    starts = _baselines(xs, baselines, draws)
    arguments = _forward_args(forward_args, xs)
    targets = target_tables(target, xs[0].shape[0])
    targets = None if targets is None else targets.to(xs[0].device)
    return RowTensors(xs, starts, arguments, targets, draws)


def _check_draws(draws: int) -> None:
    if draws < 1:
        raise SpecError(
            "draws", expected="at least 1", seen=str(draws), next_step="leave it out for one"
        )


def check_batch_rows(batch_rows: int | None) -> None:
    if batch_rows is not None and batch_rows < 1:
        raise SpecError(
            "batch_rows",
            expected="at least 1, or None",
            seen=str(batch_rows),
            next_step="leave it out",
        )


def _tensors(name: str, value: object) -> tuple[Tensor, ...]:
    given = value if isinstance(value, tuple) else (value,)
    wrong = [type(v).__name__ for v in given if not isinstance(v, Tensor)]
    if wrong or not given:
        raise SpecError(
            name,
            expected="a tensor or a tuple of tensors",
            seen=", ".join(wrong) or "an empty tuple",
            next_step="convert with torch.as_tensor; several go in a tuple",
        )
    # Autograd cannot save what was made in inference mode; a copy made outside of it is an ordinary
    # tensor.
    return tuple(v.clone() if v.is_inference() else v.detach() for v in given)


def _check_input(name: str, x: Tensor, first: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise _wrong_dtype(name, x)
    if x.ndim < 1 or x.shape[0] == 0:
        raise DataError(
            name,
            expected="at least one row",
            seen=f"shape {list(x.shape)}",
            next_step="skip empty batches",
        )
    if x[0].numel() == 0:
        raise DataError(
            name,
            expected="at least one element per row",
            seen=f"shape {list(x.shape)}",
            next_step="leave out the empty input",
        )
    if x.shape[0] != first.shape[0] or x.device != first.device:
        raise SpecError(
            name,
            expected=f"{first.shape[0]} rows on {first.device}",
            seen=f"{x.shape[0]} rows on {x.device}",
            next_step="give every input the same rows and device",
        )


def _wrong_dtype(name: str, x: Tensor) -> SpecError:
    if x.is_floating_point():
        step = "cast with .float(); half precision cannot carry the sums"
    else:
        step = "attribute at the embedding's output with at_embedding, or cast with .float()"
    return SpecError(name, expected="float32 or float64", seen=str(x.dtype), next_step=step)


def _baselines(xs: tuple[Tensor, ...], baselines: Baselines, draws: int) -> tuple[Tensor, ...]:
    if _is_number(baselines):
        baselines = tuple(baselines for _ in xs)
    each = baselines if isinstance(baselines, tuple) else (baselines,)
    if len(each) != len(xs):
        raise SpecError(
            "baselines",
            expected=f"one per input, of which there are {len(xs)}",
            seen=str(len(each)),
            next_step="pass a tuple with one baseline for each input, or one number for all",
        )
    pairs = zip(each, xs, strict=True)
    filled = tuple(_filled(b, x) if _is_number(b) else b for b, x in pairs)
    given = _tensors("baselines", filled)
    for i, (b, x) in enumerate(zip(given, xs, strict=True)):
        sizes = {1, draws, draws * x.shape[0]}
        if b.shape[1:] != x.shape[1:] or b.shape[0] not in sizes:
            own = " or ".join(f"{[size, *x.shape[1:]]}" for size in sorted(sizes, reverse=True))
            raise SpecError(
                f"baselines[{i}]",
                expected=f"shape {own}",
                seen=f"{list(b.shape)}",
                next_step=(
                    "add the row dimension with baseline[None]; several for each row are `draws`"
                ),
            )
    return tuple(b.to(x) for b, x in zip(given, xs, strict=True))


def _is_number(value: object) -> TypeGuard[float | None]:
    if isinstance(value, bool):
        return False
    return value is None or isinstance(value, Real | np.number)


def _filled(value: float | None, x: Tensor) -> Tensor:
    """One row of a number, or of zeros for None."""
    number = float(value or 0)
    return torch.full_like(x[:1], number)


def _forward_args(forward_args: Tensors, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if isinstance(forward_args, tuple) and not forward_args:
        return ()
    given = _tensors("forward_args", forward_args)
    for i, a in enumerate(given):
        if a.ndim == 0 or a.shape[0] != xs[0].shape[0]:
            raise SpecError(
                f"forward_args[{i}]",
                expected=f"{xs[0].shape[0]} rows",
                seen=f"shape {list(a.shape)}",
                next_step="close over what is the same for all rows: lambda x: model(x, mask)",
            )
    return given
