"""Spec files: YAML or JSON in, JobSpec out."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.job import AttributeSpec, parse_spec


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and refuses keys given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        written = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = _twice([self.construct_object(key, deep=True) for key in written])
        if twice:
            raise yaml.constructor.ConstructorError(None, None, twice, node.start_mark)
        return super().construct_mapping(node, deep)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys json.loads would silently overwrite."""
    twice = _twice([key for key, _ in pairs])
    if twice:
        raise ValueError(twice)
    return dict(pairs)


def _twice(keys: list[Any]) -> str | None:
    return next((f"key `{key}` is given twice" for key in keys if keys.count(key) > 1), None)


# YAML 1.1 wants a dot in floats and reads `1e-3` as a string; people write it all the same.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_spec(path: Path) -> tuple[AttributeSpec, str]:
    """A spec and the folder that its relative paths start from. Raises SpecError that names file,
    line and field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"spec file {path}", expected="a readable YAML or JSON file", seen=str(error)
        ) from error
    return parse_spec(parse_text(text, str(path)), where=str(path)), str(path.resolve().parent)


def parse_text(text: str, where: str) -> object:
    """YAML or JSON text as plain data."""
    try:
        return (
            json.loads(text, object_pairs_hook=_pairs)
            if where.endswith(".json")
            else yaml.load(text, _Loader)
        )
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
        raise SpecError(
            where, expected="valid YAML or JSON", seen=" ".join(str(error).split())
        ) from error
