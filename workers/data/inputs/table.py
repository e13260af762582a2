"""The kinds of input, by their parts of the spec: a new kind is listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from integrand.schemas.specs.inputs import (
    ColumnsInput,
    IdsInput,
    ImageInput,
    InputPart,
    TensorInput,
    TextInput,
)
from integrand.workers.data.inputs.base import InputKind
from integrand.workers.data.inputs.columns import Columns
from integrand.workers.data.inputs.ids import Ids
from integrand.workers.data.inputs.image import Image
from integrand.workers.data.inputs.tensor import Tensor
from integrand.workers.data.inputs.text import Text

KINDS: Mapping[type[InputPart], InputKind[Any]] = MappingProxyType(
    {
        ColumnsInput: Columns(),
        TensorInput: Tensor(),
        IdsInput: Ids(),
        ImageInput: Image(),
        TextInput: Text(),
    }
)


def kind_of_input(part: InputPart) -> InputKind[Any]:
    """What makes the tensors of a spec's input."""
    return KINDS[type(part)]
