"""What is tried of a notebook's model: a pass before anything is computed, and why passes or rows
fail.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from integrand.schemas.errors import IntegrandError, SpecError
from integrand.workers.engine.evaluator import is_out_of_memory
from integrand.workers.models.gradients import differentiate, independent_of_inputs
from integrand.workers.models.modes import is_exported, training_parts
from integrand.workers.models.outputs import Forward, check_output, on_copies
from integrand.workers.models.portions import SIZES, takes
from integrand.workers.models.repeatability import measure_repeatability
from integrand.workers.models.row_tensors import RowTensors

MOST_ROWS = 4096
"""A pass over all rows of a call is tried only up to so many."""
_JUDGED_ROWS = 8
_DTYPE_WORDS = (
    "same dtype",
    "scalar type",
    "but found Double",
    "but found Float",
    "but got Float",
    "but got Double",
    "type (double)",
    "type (float)",
    "does not match weight dtype",
)


@dataclass(frozen=True, eq=False)
class Call:
    """A model with the tensors of one call, whose target is `[rows, targets, depth]`, and the rows
    of a step batch, if the caller chose them.
    """

    forward: Forward
    tensors: RowTensors
    batch_rows: int | None

    @property
    def rows(self) -> int:
        return self.tensors.rows

    def takes(self, rows: int) -> bool:
        """Whether the model runs on that many rows."""
        return takes(self.forward, self.tensors.arguments, rows)


def check_eval(forward: Forward) -> None:
    """Raises SpecError for a module in which rows would change each other's results."""
    if not isinstance(forward, nn.Module):
        return
    training = training_parts(forward)
    if training:
        raise SpecError(
            "model",
            expected="eval mode: in train mode rows change each other's results",
            seen=f"train mode in {', '.join(training[:3])}",
            next_step="call model.eval() first"
            + (", then torch.export.export" if is_exported(forward) else ""),
        )
    for name, module in forward.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise SpecError(
                f"model layer {name or type(module).__name__}",
                expected="batch norm with running statistics",
                seen=(
                    "track_running_stats=False: rows are normalised by whatever rows are beside"
                    " them"
                ),
                next_step="train it with running statistics, or use layer or group norm",
            )


def probe(call: Call, *, gradients: bool = True) -> None:
    """Check the output's shape and every target once, and unless no gradients are asked for, which
    inputs the output depends on. Two rows are run.
    """
    size = min(2, call.batch_rows or 2)
    some = call.tensors.repeat(size)
    points = [x.requires_grad_() for x in some.inputs]
    with torch.enable_grad():
        try:
            out = on_copies(call.forward, *points, *some.forward_args)
        except IntegrandError:
            raise
        except Exception as error:  # the model's own code
            if call.batch_rows is not None and call.takes(call.batch_rows):
                return  # it takes no other batches, and gets no other
            raise explain(call, size, error) from error
        _check_outputs(call, out, size)
        unused = unused_inputs(out, points) if gradients else []
    if unused:
        warnings.warn(
            f"the output does not depend on inputs {unused}: they get zeros", stacklevel=4
        )


def _check_outputs(call: Call, out: object, size: int) -> None:
    target = call.tensors.target
    if target is None:
        check_output(out, size, None)
        return
    index = torch.arange(size) % call.rows
    for table in target.unbind(1):
        found = check_output(out, size, table[index]).detach()
        every = found[:1].expand(call.rows, *found.shape[1:])
        check_output(every, call.rows, table)


def unused_inputs(out: Tensor, inputs: Sequence[Tensor]) -> list[int]:
    """Numbers of the inputs without a gradient path from `out`. Raises SpecError when no input has
    one.
    """
    if not out.requires_grad:
        raise independent_of_inputs()
    gradients = differentiate(out.sum(), inputs)
    unused = [i for i, g in enumerate(gradients) if g is None]
    if len(unused) == len(inputs):
        raise independent_of_inputs()
    return unused


# --- why a pass fails --------------------------------------------------------------------------


def explain(call: Call, size: int, error: Exception) -> SpecError:
    """The cause of an error that the model raised on `size` rows, and what to do."""
    if any(words in str(error) for words in _DTYPE_WORDS):
        return _other_dtype(call, error)
    if any(map(call.takes, _sizes(call, size))):
        return _particular(call, size, error)
    return SpecError(
        "model",
        expected="a forward pass over the rows given",
        seen=(
            f"{type(error).__name__}: {one_line(error)}, for arguments of shape"
            f" {_shapes(call.tensors.repeat(size).arguments)}"
        ),
        next_step=(
            "check shape and dtype of inputs and forward_args, and that the model takes them in"
            " this order: call it yourself on two rows"
        ),
    )


@contextmanager
def explained(call: Call, size: int) -> Iterator[None]:
    """SpecError for an error that comes from the number of rows in a step batch; any other stays as
    it is.
    """
    try:
        yield
    except IntegrandError:
        raise
    except Exception as error:  # the model's own code
        if (
            is_out_of_memory(error)
            or call.takes(size)
            or not any(map(call.takes, _sizes(call, size)))
        ):
            raise
        raise _particular(call, size, error) from error


def _particular(call: Call, size: int, error: Exception) -> SpecError:
    """For a model that takes some numbers of rows: because rows mix, or because it was written for
    them.
    """
    taken = [n for n in _sizes(call, size) if call.takes(n)]
    judged = max((n for n in taken if n <= call.rows), default=1)
    if judged > 1:
        batch = replace(call.tensors.repeat(judged), target=None)
        try:
            measure_repeatability(call.forward, batch, judged, gradients=False).check()
        except SpecError as coupled:
            return coupled
    return SpecError(
        "model",
        expected="a model that takes step batches of any number of rows",
        seen=(
            f"it takes {_numbers(taken)} rows, of up to {max(_sizes(call, size))} tried, and not"
            f" {size}: {type(error).__name__}: {one_line(error)}"
        ),
        next_step=(
            "is a hidden state, a view or an export of fixed size in it? make it follow"
            f" x.shape[0]; or attribute in batches that it takes: batch_rows={taken[-1]}"
        ),
    )


def _sizes(call: Call, size: int) -> list[int]:
    """Numbers of rows to try, in order."""
    all_rows = min(call.rows, MOST_ROWS)
    return sorted({*SIZES, all_rows, size})


def _numbers(values: Sequence[int]) -> str:
    shown = [str(value) for value in values]
    if len(shown) > 6:
        shown[4:-1] = ["…"]
    return ", ".join(shown)


def _other_dtype(call: Call, error: Exception) -> SpecError:
    """For rows of one dtype and parameters of another, in torch's words where the forward is no
    module.
    """
    rows, parameters = str(call.tensors.inputs[0].dtype)[6:], "another"
    if isinstance(call.forward, nn.Module):
        found = {str(p.dtype)[6:] for p in call.forward.parameters() if p.is_floating_point()}
        parameters = ", ".join(sorted(found - {rows})) or parameters
    return SpecError(
        "inputs",
        expected=f"rows, model and forward_args of one dtype; the model has {parameters}",
        seen=f"rows in {rows}: {one_line(error)}",
        next_step=(
            "cast the model to that of the rows with model.float() or model.double(), or the rows"
            " with x.double()"
        ),
    )


def one_line(error: BaseException) -> str:
    """What an error says, in one line; of a long one its end, where TorchScript puts the cause."""
    line = " ".join(str(error).split())
    if len(line) <= 300:
        return line
    return f"{line[:100]} … {line[-200:]}"


def _shapes(arguments: Sequence[Tensor]) -> list[list[int]]:
    return [list(a.shape) for a in arguments]


# --- why rows do not converge ------------------------------------------------------------------


def check_rows_apart(call: Call) -> None:
    """Raises SpecError for a model that draws random numbers, keeps state or mixes rows, as rows
    that do not converge may tell: tried on a few rows and their baselines.
    """
    count = min(call.rows, _JUDGED_ROWS)
    some = call.tensors.take(slice(count)).first_draw().expanded()
    pairs = zip(some.inputs, some.baselines, strict=True)
    ends = tuple(torch.cat([x, start]) for x, start in pairs)
    first_target = None if some.target is None else some.target[:, 0]
    batch = replace(some, target=first_target).repeat(2 * count)
    batch = replace(batch, inputs=ends)
    size = call.batch_rows or 2 * count
    # those flip at kinks
    found = measure_repeatability(call.forward, batch, max(2, size), gradients=False)
    if not found.steady:
        found.check()
