"""From a model's output to one number per row: target selection and output transforms."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.workers.models.recurrence import differentiable

Forward = Callable[..., Tensor]
"""A model: from tensors `[rows, ...]` to outputs `[rows, ...]`."""
TargetLike = int | tuple[int, ...] | Tensor | list[int | tuple[int, ...] | Tensor] | None
"""A target as the notebook's door takes it; a list asks for several of each row."""

_TRANSFORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda axis: nn.Identity(),
    "softmax": nn.Softmax,
    "log_softmax": nn.LogSoftmax,
    "sigmoid": lambda axis: nn.Sigmoid(),
}


def on_copies(forward: Forward, *arguments: Tensor) -> Tensor:
    """`forward` at copies of the arguments: a model may write into what it is given, and a leaf
    refuses that.
    """
    with differentiable(arguments):
        return forward(*[a.clone() for a in arguments])


class Transformed(nn.Module):
    """A model followed by an output transform, which whoever looks into modules finds there.

    passed_on  how many of the last arguments are the transform's, behind the output
    """

    def __init__(self, model: Forward, transform: nn.Module, passed_on: int = 0) -> None:
        super().__init__()
        self.model, self.transform, self.passed_on = model, transform, passed_on
        self.training = isinstance(model, nn.Module) and model.training

    def forward(self, *arguments: Tensor) -> Tensor:
        own = len(arguments) - self.passed_on
        out: Tensor = self.transform(self.model(*arguments[:own]), *arguments[own:])
        return out


def plain_model(forward: Forward) -> Forward:
    """A model without the transforms behind it."""
    while isinstance(forward, Transformed):
        forward = forward.model
    return forward


def transform_module(name: str, axis: int = -1) -> nn.Module:
    """A named output transform, over an axis of `[rows, ...]` where it mixes outputs."""
    return _TRANSFORMS[name](axis).eval()


def transformed(forward: Forward, transform: str) -> Forward:
    """`forward` followed by a named output transform; `none` returns it unchanged."""
    if transform == "none":
        return forward
    return Transformed(forward, transform_module(transform))


def target_tables(target: TargetLike, rows: int) -> Tensor | None:
    """Any target, or list of targets, as indices `[rows, targets, depth]` int64, or None for scalar
    outputs.
    """
    given = target if isinstance(target, list) else [target]
    tables = [target_table(each, rows) for each in given]
    found = [table for table in tables if table is not None]
    alike = len({table.shape[1] for table in found}) <= 1
    indexed = len(found) == len(tables) or not isinstance(target, list)
    if not tables or not alike or not indexed:
        raise SpecError(
            "target",
            expected="a list of targets of one kind",
            seen=repr(target)[:80],
            next_step="give several indices, or several tuples of one length",
        )
    return torch.stack(found, 1) if found else None


def target_table(target: TargetLike, rows: int) -> Tensor | None:
    """Any target as indices `[rows, depth]` int64, or None for scalar outputs. Raises SpecError on
    wrong types.
    """
    if target is None:
        return None
    if isinstance(target, Tensor):
        return _row_targets(target, rows)
    indices: tuple[object, ...] = target if isinstance(target, tuple) else (target,)
    whole = [int(i) for i in indices if isinstance(i, Integral) and not isinstance(i, bool)]
    if len(whole) < len(indices):
        raise SpecError(
            "target",
            expected="None, an int, a tuple of ints, or an int64 tensor with one entry per row",
            seen=repr(target)[:80],
            next_step="name one output, or pass torch.tensor([...]) for one per row",
        )
    return torch.tensor(whole, dtype=torch.int64).expand(rows, len(whole))


def _row_targets(target: Tensor, rows: int) -> Tensor:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise SpecError(
            "target", expected="an int64 tensor", seen=str(target.dtype), next_step="call .long()"
        )
    if target.ndim == 0:
        return target.long().reshape(1, 1).expand(rows, 1)
    if target.shape[0] != rows or target.ndim > 2:
        raise SpecError(
            "target",
            expected=f"{rows} entries, one per row",
            seen=f"shape {list(target.shape)}",
            next_step="give one index per row; a tuple names one element of a tensor output",
        )
    return target.long().reshape(rows, -1)


def check_output(out: object, rows: int, table: Tensor | None) -> Tensor:
    """The model's output, once its shape is known to fit the rows and the targets. Raises SpecError
    otherwise.
    """
    tensor = _check_rows(out, rows)
    if table is None:
        if tensor[0].numel() != 1:
            sizes = ", ".join(map(str, tensor.shape[1:]))
            raise SpecError(
                "target",
                expected="an output index, since the model has several outputs",
                seen=f"no target and output shape [rows, {sizes}]",
                next_step=_name_one(tensor),
            )
        return tensor
    if tensor.ndim - 1 != table.shape[1]:
        raise _wrong_depth(tensor, table.shape[1])
    _check_indices(tensor, table)
    return tensor


def _check_rows(out: object, rows: int) -> Tensor:
    """The output, once it is known to be a floating-point tensor with one entry per row."""
    if not isinstance(out, Tensor):
        raise SpecError(
            "model output",
            expected="one tensor",
            seen=type(out).__name__,
            next_step="wrap the model so that it returns the tensor to explain",
        )
    if out.ndim == 0 or out.shape[0] != rows:
        raise SpecError(
            "model output",
            expected=f"one entry per row: [{rows}, ...]",
            seen=f"shape {list(out.shape)}",
            next_step=(
                "return outputs per row: no .squeeze() that may take the rows' dimension (use "
                ".squeeze(-1)), no sum or mean over rows; export with a dynamic first dimension"
            ),
        )
    if not out.is_floating_point():
        raise SpecError(
            "model output",
            expected="floating point",
            seen=str(out.dtype),
            next_step="return scores or probabilities, before argmax, rounding or casts",
        )
    return out


def _check_indices(out: Tensor, table: Tensor) -> None:
    """Raises SpecError for the first row whose target is outside of the output."""
    limits = torch.tensor(out.shape[1:], device=table.device, dtype=torch.int64)
    wrong = ((table < 0) | (table >= limits)).any(1).nonzero()
    if not len(wrong):
        return
    row = int(wrong[0, 0])
    zeros = ", ".join("0" * len(limits))
    last = ", ".join(str(size - 1) for size in out.shape[1:])
    sizes = ", ".join(map(str, out.shape[1:]))
    raise SpecError(
        f"target of row {row}",
        expected=f"from {zeros} to {last}",
        seen=", ".join(map(str, table[row].tolist())),
        next_step=f"name an output that exists: outputs are [rows, {sizes}]",
    )


def _name_one(out: Tensor) -> str:
    if out.ndim == 2:
        return f"name a target from 0 to {out.shape[-1] - 1}"
    first, *others = (str(n - 1) for n in out.shape[1:])
    return (
        f"name one element as a tuple, from ({', '.join('0' * (out.ndim - 1))}) to"
        f" ({', '.join([first, *others])})"
    )


def _wrong_depth(out: Tensor, depth: int) -> SpecError:
    """For targets of `depth` indices where the output has another number of dimensions after its
    rows.
    """
    sizes = ", ".join(map(str, out.shape[1:]))
    if out.ndim == 1:
        step = "a scalar output takes no target"
    elif out.ndim - 1 > depth:
        place = ", ".join(["target", *"0" * (out.ndim - 1 - depth)])
        step = (
            f"outputs are [rows, {sizes}]: name one element as a tuple, target=({place}), or wrap"
            " the model so that it returns one number per row and class, such as"
            " model(x).flatten(2).mean(-1)"
        )
    else:
        step = f"outputs are [rows, {sizes}]: give {out.ndim - 1} of them"
    return SpecError(
        "target",
        expected=f"{out.ndim - 1} indices per row for output shape {list(out.shape)}",
        seen=str(depth),
        next_step=step,
    )


def select(out: Tensor, table: Tensor | None) -> Tensor:
    """The explained output of each row, `[rows]`; `table` as from `target_table`, already
    checked.
    """
    if table is None:
        return out.reshape(out.shape[0])
    rows = torch.arange(out.shape[0], device=out.device)
    return out[(rows, *table.unbind(1))]
