"""Texts, as the token ids that were made of them when they were read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.inputs import TextInput
from integrand.workers.data.columns import check_column, is_text
from integrand.workers.data.inputs.base import InputArrays, InputKind
from integrand.workers.data.inputs.ids import PADDING, filled, padded
from integrand.workers.data.reasons import Reasons
from integrand.workers.data.tokenizing import reasons_of_texts, tokens_of, with_tokens
from integrand.workers.storage.store import Store


class Text(InputKind[TextInput]):
    """Like lists of ids (`inputs.ids.Ids`), of the column that `with_tokens` puts beside the
    texts.
    """

    judged_first = True

    def resolve(self, schema: pa.Schema, part: TextInput) -> InputShape:
        kind = check_column(schema, part.text)
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (is_text(plain) or pa.types.is_null(plain)):
            raise SpecError(
                f"column `{part.text}`",
                expected="strings",
                seen=str(kind),
                next_step="name a column of texts, or give token ids as `ids:`",
            )
        return InputShape(name=part.name, columns=(part.text,), shape=(), named=False, varying=True)

    def decode(
        self, store: Store, table: pa.Table, part: TextInput, tick: Callable[[], None]
    ) -> pa.Table:
        return with_tokens(store, part, table, tick)

    def read(
        self,
        table: pa.Table,
        part: TextInput,
        shape: InputShape,
        dtype: np.dtype[Any],
        reasons: Reasons,
    ) -> InputArrays:
        for row, reason in enumerate(reasons_of_texts(table, part.name)):
            reasons[row] = reasons[row] or reason
        ids = filled(tokens_of(table, part.name, "ids"), shape.shape[0], PADDING)
        return InputArrays((ids != PADDING).astype(dtype), ids)

    def padded_lengths(self, table: pa.Table, part: TextInput) -> NDArray[np.int64]:
        return padded(tokens_of(table, part.name, "ids"), part)
