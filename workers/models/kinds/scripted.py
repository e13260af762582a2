"""TorchScript programs."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch

from integrand.schemas.specs.models import ScriptedModel
from integrand.workers.models.kinds.base import Loaded, enter_eval, freeze, read_program


def load_script(
    model: ScriptedModel, files: Sequence[bytes], dtype: torch.dtype, device: str
) -> Loaded:
    """The program, put into eval mode unless it was frozen there."""

    def read() -> torch.jit.ScriptModule:
        script: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(files[0]), map_location=device)
        return script

    script = read_program(model.uri, read)
    notes = enter_eval(script, "the TorchScript program was")
    return Loaded(freeze(script, dtype, device), notes=notes)
