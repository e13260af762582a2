"""Named feature columns, stacked."""

from __future__ import annotations

import pyarrow as pa

from integrand.schemas.records import InputShape
from integrand.schemas.specs.inputs import ColumnsInput
from integrand.workers.data.columns import check_number
from integrand.workers.data.inputs.scaled import Scaled, check_scaling


class Columns(Scaled[ColumnsInput]):
    """`[rows, features]`, one output column for each feature."""

    def resolve(self, schema: pa.Schema, part: ColumnsInput) -> InputShape:
        for name in part.columns:
            check_number(schema, name)
        shape = (len(part.columns),)
        check_scaling(part, shape)
        return InputShape(name=part.name, columns=part.columns, shape=shape, named=True)
