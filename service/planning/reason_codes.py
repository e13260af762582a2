"""Reasons as a spec asks for them, held against its features, its file of codes and its method."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
from collections.abc import Sequence

import pyarrow as pa

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape, Plan, ReasonCodes, ReasonLine
from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.specs.part import repeated
from integrand.schemas.specs.reasons import Reasons
from integrand.schemas.uris import Uri
from integrand.workers.data.conditions import check_repeatable, matching_rows, sandbox
from integrand.workers.data.values import arrow_type, widened
from integrand.workers.methods.table import method_of
from integrand.workers.reason_codes.candidates import named_features, of_features
from integrand.workers.shards.output import REASON_COLUMNS, planned_schema
from integrand.workers.storage.store import Store

HEADER = ["feature_or_group", "code", "text"]
_REASONS = "output.reasons"
_CODES = "output.reasons.codes"


def read_codes(store: Store, spec: AttributeSpec, base: str) -> ReasonCodes | None:
    """The file of codes that a spec names. Raises SpecError for one that is none."""
    asked = spec.output.reasons
    if asked is None or asked.codes is None:
        return None
    place = store.parse(asked.codes, base)
    try:
        data = store.read(place)
    except FileNotFoundError:
        raise SpecError(_CODES, expected="a CSV file", seen=f"nothing at {place}") from None
    return ReasonCodes(sha256=hashlib.sha256(data).hexdigest(), lines=_lines(data, place))


def _lines(data: bytes, place: Uri) -> tuple[ReasonLine, ...]:
    header, *rows = _cells(data, place) or [[]]
    if header != HEADER:
        raise _refused(place, f"the first line {','.join(HEADER)}", ",".join(header))
    found: dict[str, ReasonLine] = {}
    texts: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        if len(row) != len(HEADER) or not (row[0] and row[1]):
            raise _refused(place, "a feature, a code and a text", f"{row} in line {number}")
        line = ReasonLine(feature=row[0], code=row[1], text=row[2])
        if line.feature in found:
            raise _refused(place, "every feature once", f"`{line.feature}` again in line {number}")
        if texts.setdefault(line.code, line.text) != line.text:
            seen = f"another one of `{line.code}` in line {number}"
            raise _refused(place, "one text for each code", seen)
        found[line.feature] = line
    return tuple(found.values())


def _cells(data: bytes, place: Uri) -> list[list[str]]:
    """Lines that are not empty, cells without blanks around them."""
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _refused(place, "CSV in UTF-8", str(error)) from None
    return [[cell.strip() for cell in row] for row in rows if row]


def _refused(place: Uri, expected: str, seen: str) -> SpecError:
    return SpecError(f"{_CODES} {place}", expected=expected, seen=seen)


def check_reasons(
    spec: AttributeSpec, shapes: Sequence[InputShape], codes: ReasonCodes | None
) -> None:
    """SpecError for reasons that this job cannot give."""
    asked = spec.output.reasons
    if asked is None:
        return
    _check_sign(spec)
    features = named_features(shapes)
    if features is None:
        unnamed = next(shape.name for shape in shapes if not shape.named)
        raise SpecError(
            _REASONS,
            expected="features with names",
            seen=f"input `{unnamed}`, whose attributions are one list",
            next_step="read its features from `columns`, or leave out output.reasons",
        )
    known = [*features, *spec.output.feature_groups]
    for field in ("exclude", "prohibited"):
        _check_known(f"{_REASONS}.{field}", getattr(asked, field), known)
    if codes is not None:
        _check_known(_CODES, [line.feature for line in codes.lines], known)
    asked, codes = of_features(spec.output, asked, codes)
    if codes is not None:
        _check_coded(asked, features, codes)
    if set(features) <= {*asked.exclude}:
        raise SpecError(
            f"{_REASONS}.exclude", expected="a feature that may be given", seen="all excluded"
        )


def _check_sign(spec: AttributeSpec) -> None:
    if not method_of(spec.accuracy, spec.method).signed:
        raise SpecError(
            _REASONS,
            expected="a method whose attributions have a sign: which way a feature pushed",
            seen=f"method {spec.method.title}, which gives magnitudes alone, or slopes",
            next_step="take integrated_gradients, or leave out output.reasons",
        )


def _check_known(where: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5) or list(known[:5])
            raise SpecError(
                where,
                expected="names of features, or of groups of them",
                seen=f"`{name}`",
                next_step=f"did you mean {' or '.join(f'`{n}`' for n in near)}?",
            )


def _check_coded(asked: Reasons, features: Sequence[str], codes: ReasonCodes) -> None:
    lines = [line.feature for line in codes.lines]
    coded, twice = set(lines), repeated(lines)
    if twice:
        raise SpecError(
            _CODES,
            expected="one line for a feature: its own, or that of its group",
            seen=f"both for `{twice[0]}`",
            next_step="take one of them out",
        )
    missing = [name for name in features if name not in coded | {*asked.exclude, *asked.prohibited}]
    if missing:
        raise SpecError(
            _CODES,
            expected="a line for every feature that may be a reason",
            seen=f"none for {', '.join(f'`{n}`' for n in missing[:5])}",
            next_step="add it, or name the feature in output.reasons.exclude or .prohibited",
        )
    both = [name for name in asked.prohibited if name in coded]
    if both:
        raise SpecError(
            _CODES,
            expected="no text for a prohibited feature",
            seen=f"a line for `{both[0]}`",
            next_step="take the line out: among the reasons the feature is a failure",
        )


def check_when(plan: Plan) -> None:
    """SpecError for a condition that cannot be evaluated on the output's columns."""
    asked = plan.spec.output.reasons
    if asked is not None and asked.when is not None:
        row_id = arrow_type(plan.row_id_type) or pa.null()
        schema = widened(planned_schema(plan, row_id))
        table = schema.empty_table().drop_columns(REASON_COLUMNS)
        with sandbox() as connection:
            check_repeatable(connection, asked.when, f"{_REASONS}.when")
            matching_rows(connection, table, asked.when, f"{_REASONS}.when")


def reason_warnings(spec: AttributeSpec) -> tuple[str, ...]:
    """That no row's reasons can be certified, where nothing estimates an error."""
    method = method_of(spec.accuracy, spec.method)
    if spec.output.reasons is None or method.tolerance is not None or method.needs_closed_form:
        return ()
    return (
        "output.reasons: a rule without an error estimate leaves the reasons of every row"
        " `order_uncertain`; take accuracy of kind adaptive",
    )
