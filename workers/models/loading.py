"""From a model spec to a callable.

Model code runs only where the operator named its module prefix; every artefact's sha256 is
rechecked before use.
"""

from __future__ import annotations

import torch

from integrand.schemas.records import Artefact
from integrand.schemas.specs.models import ModelPart
from integrand.workers.models.code import read_verified
from integrand.workers.models.kinds.base import Loaded
from integrand.workers.models.kinds.table import KINDS
from integrand.workers.storage.store import Store

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def load_model(
    store: Store, model: ModelPart, artefacts: tuple[Artefact, ...], precision: str, device: str
) -> Loaded:
    """The model as a callable on tensors of `precision`, in eval mode with frozen parameters.

    Raises IntegrityError if a file is not the planned one, SpecError if it does not load or was
    exported in train mode. The caller has passed `check_trust`.
    """
    files = [read_verified(store, artefact) for artefact in artefacts]
    return KINDS[type(model)](model, files, DTYPES[precision], device)
