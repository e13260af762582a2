"""Gradients of recurrent layers in eval mode on CUDA, which cuDNN refuses: "cudnn RNN backward can
only be called in training mode".

Dropout between layers is all that tells the modes of torch's recurrent functions apart. So where
gradients will be taken these are called in train mode, without dropout. The call is changed on its
way and not the module: its mode, hooks and numbers stay as they are. Programs of TorchScript call
these functions where nobody sees it: there cuDNN's refusal is put into our words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from integrand.schemas.errors import SpecError

_ATEN = (torch.ops.aten.lstm, torch.ops.aten.gru, torch.ops.aten.rnn_tanh, torch.ops.aten.rnn_relu)
RECURRENT = frozenset(
    [
        *(torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu),
        *(each.input for each in _ATEN),
        *(each.data for each in _ATEN),
    ]
)
"""What modules call, and what exported programs call, with sequences of one length or packed."""
_REFUSAL = "RNN backward can only be called in training mode"


def differentiable(arguments: Sequence[Tensor]) -> AbstractContextManager[object]:
    """For a forward pass: its recurrent layers can be differentiated, if gradients are asked for.
    On the CPU they always can.
    """
    if torch.is_grad_enabled() and refused_on(arguments):
        return _InTrainMode()
    return nullcontext()


def refused_on(arguments: Sequence[Tensor]) -> bool:
    """Whether the backward pass of a recurrent layer in eval mode is refused for such tensors."""
    return any(argument.is_cuda for argument in arguments)


class _InTrainMode(TorchFunctionMode):
    """Torch's functions as they are called, but for recurrent ones in eval mode."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in RECURRENT:
            args = _without_dropout(args)
        return function(*args, **(kwargs or {}))


def _without_dropout(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of a recurrent function, in train mode without dropout instead of eval mode.

    They end with has_biases, num_layers, dropout, train, bidirectional and, where sequences are not
    packed, batch_first.
    """
    biases = 3 if isinstance(args[3], bool) else 4
    dropout, train = biases + 2, biases + 3
    if args[train]:
        return args
    return (*args[:dropout], 0.0, True, *args[train + 1 :])


def explained_refusal(error: RuntimeError) -> SpecError | None:
    """What to do about cuDNN's refusal; None for any other error."""
    if _REFUSAL not in str(error):
        return None
    return SpecError(
        "model",
        expected="recurrent layers whose gradients cuDNN gives",
        seen=f"{error}: those of TorchScript cannot be called in another mode from outside",
        next_step=(
            "give the module itself, or what torch.export.export makes of it; or explain it on the"
            " CPU, in a job with compute.gpus_per_worker: 0"
        ),
    )
