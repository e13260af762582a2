"""Code that runs beside a module's forward, where no reading of the module shows it."""

from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Whether calls of a module run code beside its forward, which may see or change what
    passes.
    """
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)
