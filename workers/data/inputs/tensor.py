"""One column of lists or tensors of numbers."""

from __future__ import annotations

import pyarrow as pa

from integrand.schemas.records import InputShape
from integrand.schemas.specs.inputs import TensorInput
from integrand.workers.data.columns import check_column, column_shape
from integrand.workers.data.inputs.scaled import Scaled, check_scaling


class Tensor(Scaled[TensorInput]):
    """`[rows, *shape]`, one output column of lists."""

    def resolve(self, schema: pa.Schema, part: TensorInput) -> InputShape:
        kind = check_column(schema, part.column)
        shape = column_shape(part.column, kind, part.shape)
        check_scaling(part, shape)
        return InputShape(name=part.name, columns=(part.column,), shape=shape, named=False)
