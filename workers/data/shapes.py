"""What shape one row of each input has, and whether the source has every column of a job."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.arguments import (
    ForwardArg,
)
from integrand.schemas.specs.baselines import BaselinePart
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.specs.output import TopKStore
from integrand.workers.data.blocks import blocks_of
from integrand.workers.data.columns import (
    check_column,
    check_number,
    check_scalar,
    column_shape,
    columns_of,
    is_number,
    unnest,
)
from integrand.workers.data.grouping import check_groups
from integrand.workers.data.inputs.table import kind_of_input


def resolve_columns(schema: pa.Schema, spec: AttributeSpec) -> tuple[InputShape, ...]:
    """Check every column of the spec against the data, and tell each input's shape. Raises
    SpecError.
    """
    shapes = tuple(kind_of_input(one).resolve(schema, one) for one in spec.inputs)
    for shape, baseline in zip(shapes, spec.baselines, strict=True):
        _check_baseline(schema, baseline, shape)
    for arg in spec.passed:
        if arg.made_of is None and followed_by(schema, arg, shapes) is None:
            resolve_forward_arg(schema, arg)
    for name in columns_of(spec.target):
        check_number(schema, name)
    if spec.source.row_id is not None:
        check_scalar(schema, spec.source.row_id)
    check_groups(schema, spec, shapes)
    _check_outputs(spec, shapes)
    return shapes


def _check_outputs(spec: AttributeSpec, shapes: Sequence[InputShape]) -> None:
    """Refuse two attributions of one name; whether `ids` names features is known only with the
    data.
    """
    names: list[str] = []
    for shape in (block.shape for block in blocks_of(spec, shapes) if block.role == "attr"):
        apart = shape.named and not isinstance(spec.output.store, TopKStore)
        names += shape.columns if apart else (shape.name,)
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise SpecError(
            "inputs",
            expected="output columns of different names",
            seen=f"attr.{twice[0]} twice",
            next_step="rename an input or a column",
        )


def resolve_forward_arg(schema: pa.Schema, arg: ForwardArg) -> tuple[int, ...]:
    """Shape of one row of a forward argument: `()` for one scalar column. Raises SpecError like
    resolve_input.
    """
    if arg.column is None:
        for name in arg.columns:
            check_number(schema, name)
        return (len(arg.columns),)
    kind = check_column(schema, arg.column)
    if not arg.shape and is_number(kind):
        return ()
    return column_shape(arg.column, kind, arg.shape)


def followed_by(
    schema: pa.Schema, arg: ForwardArg, shapes: Sequence[InputShape]
) -> InputShape | None:
    """The input of ids whose lengths the lists of a forward argument have; None of one that has a
    shape of its own. Raises SpecError where there is no such input, or where it may be several.
    """
    if arg.column is None or arg.shape:
        return None
    leaf, sizes = unnest(check_column(schema, arg.column))
    varies = is_number(leaf) and sizes == (None,)
    varying = [shape for shape in shapes if shape.varying]
    if not varies or (arg.along is None and not varying):
        if arg.along is None:
            return None
        raise SpecError(
            f"column `{arg.column}`",
            expected=f"lists of numbers of any length, along `{arg.along}`",
            seen=str(schema.field(arg.column).type),
            next_step="leave out `along`, or store a list for each row",
        )
    named = [shape for shape in varying if arg.along in (None, shape.name)]
    if len(named) == 1:
        return named[0]
    raise SpecError(
        f"forward_args.{arg.name}",
        expected="one input of ids whose lists vary in length",
        seen=", ".join(shape.name for shape in named) or f"{arg.along}, which has one length",
        next_step="name the input in `along`" if named else "leave out `along`, and give a `shape`",
    )


def _check_baseline(schema: pa.Schema, baseline: BaselinePart, shape: InputShape) -> None:
    """What a baseline reads must make a tensor of its input's shape."""
    if not baseline.reads:
        return
    where = f"baseline of input `{shape.name}`"
    listed = any(read.holds == "list" for read in baseline.reads)
    if shape.named == listed:
        raise SpecError(
            where,
            expected="`columns`, one per feature" if shape.named else "`column`, one list column",
            seen="`column`" if shape.named else "`columns`",
        )
    names = columns_of(baseline)
    if listed:
        kind = check_column(schema, names[0])
        if shape.varying:
            _check_varying(names[0], kind)
        else:
            column_shape(names[0], kind, shape.shape)
        return
    if len(names) != shape.shape[0]:
        raise SpecError(where, expected=f"{shape.shape[0]} columns", seen=f"{len(names)}")
    for name in names:
        check_number(schema, name)


def _check_varying(name: str, kind: pa.DataType) -> None:
    """Lists of ids may be of any length."""
    leaf, sizes = unnest(kind)
    if is_number(leaf) and len(sizes) == 1:
        return
    raise SpecError(
        f"column `{name}`",
        expected="lists of integers",
        seen=str(kind),
        next_step="store one list of ids per row, as long as its own",
    )
