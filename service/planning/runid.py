"""The run id: a digest of whatever can change a value, of a job about to be planned or of a plan
that is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from integrand.schemas.ids import digest_json
from integrand.schemas.records import Artefact, Numerics, Plan
from integrand.schemas.specs.job import AttributeSpec

LATER = ("method",)
"""Parts of a spec without which older ones were written: they count where they are used."""
PLACES = ("uri", "root", "tokenizer")
"""Fields of a spec that say where something lies."""
FileId = tuple[str, int, str]
"""A source file as the run id knows it: path below the source root, size and fingerprint."""


def run_id(
    spec: AttributeSpec,
    files: Sequence[FileId],
    artefacts: Sequence[Artefact],
    code: Sequence[str | None],
    numerics: Numerics,
    salt: str,
    *,
    state: str | None = None,
    reason_codes: str | None = None,
    references: Mapping[str, Sequence[FileId]] = MappingProxyType({}),
    stored: bool = False,
) -> str:
    """Digest of spec, data, model and numerics: not the output, name, workers, attempts, deadlines
    or shard size.

    Where weights and sources lie does not matter, what they hold does. The torch build is not part
    of it, nor are the kernels in force: resuming on others is refused, or lowers the level of
    determinism. Nor are the smaller step batches, which kernels allow and no bit depends on. `code`
    are the digests of the entrypoint's package and of what is shipped, `state` that of the model
    that the factory built, `references` the files of datasets that baselines name, `reason_codes`
    that of the file of codes. Of `stored` records a field that they were written without does not
    count.
    """
    parts = {"inputs", "forward_args", "target", "baseline", "accuracy"} | _later(spec)
    places = {"weights", "uri", "code"}
    asked = spec.model_dump(mode="json", include=parts, exclude_unset=stored)
    used = {part: _used(asked[part]) for part in ("accuracy", "target")}
    identity: dict[str, Any] = {
        "spec": _without_places(asked) | used,
        "row_id": spec.source.row_id,
        "model": spec.model.model_dump(mode="json", exclude=places, exclude_unset=stored),
        "artefacts": [a.sha256 for a in artefacts],
        "code": list(code),
        "files": [list(f) for f in files],
        "numerics": _choices(numerics, stored=stored),
        "salt": salt,
    }
    identity |= {} if state is None else {"state": state}
    identity |= {} if reason_codes is None else {"reason_codes": reason_codes}
    identity |= _of_output(spec)
    if references:
        identity["references"] = {
            name: [list(f) for f in files] for name, files in references.items()
        }
    return digest_json(identity)[:24]


def _without_places(part: Any) -> Any:
    """Without the URIs of datasets, of folders of pictures and of tokenizers, at any depth."""
    if isinstance(part, dict):
        kept = {name: value for name, value in part.items() if name not in PLACES}
        return {name: _without_places(value) for name, value in kept.items()}
    return [_without_places(value) for value in part] if isinstance(part, list) else part


def _later(spec: AttributeSpec) -> set[str]:
    """Parts that specs did not always have, where they are not at their defaults."""
    defaults = {name: AttributeSpec.model_fields[name] for name in LATER}
    return {
        name
        for name, field in defaults.items()
        if getattr(spec, name) != field.get_default(call_default_factory=True)
    }


def _used(part: dict[str, Any]) -> dict[str, Any]:
    """How exact a job shall be, or its target, without fields that specs did not always have where
    they are at their defaults.
    """
    later: dict[str, object] = {"until": "tolerance", "axis": None, "columns": []}
    return {
        name: value for name, value in part.items() if name not in later or value != later[name]
    }


def _of_output(spec: AttributeSpec) -> dict[str, object]:
    """What is kept of results, where that is not what it is by default; not where it goes."""
    asked = spec.output.model_dump(
        mode="json", exclude={"uri": True, "reasons": {"codes"}}, exclude_defaults=True
    )
    if "groups" in asked:  # in their order, which is that of the columns: a digest sorts by name
        asked["groups"] = list(asked["groups"].items())
    return {"output": asked} if asked else {}


def _choices(numerics: Numerics, *, stored: bool) -> dict[str, object]:
    """The numerical choices that a job has the same on every machine; those of later versions only
    where they were made.
    """
    chosen: dict[str, object] = numerics.model_dump(
        mode="json", exclude={"torch_build", "kernels", "smaller_batches"}, exclude_unset=stored
    )
    later: dict[str, object] = {"takes_rows": None, "portable": False, "sizes": []}
    return {
        name: value for name, value in chosen.items() if name not in later or value != later[name]
    }


def stored_run_id(plan: Plan) -> str | None:
    """The id of a run from its stored plan alone; None of one that was written without the digest
    of its code.
    """
    if plan.code_bundle is None:
        return None
    files = plan.identity or tuple((f.path, f.size, f.fingerprint) for f in plan.files)
    return run_id(
        plan.spec,
        files,
        plan.artefacts,
        (plan.code_sha256, plan.code_bundle),
        plan.numerics,
        plan.salt,
        state=plan.model_state,
        references=plan.references,
        reason_codes=plan.reason_codes.sha256 if plan.reason_codes else None,
        stored=True,
    )
