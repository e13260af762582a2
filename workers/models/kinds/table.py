"""The kinds of model, by their parts of the spec: a new kind is listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from integrand.schemas.specs.models import ExportedModel, FactoryModel, ModelPart, ScriptedModel
from integrand.workers.models.kinds.base import Load
from integrand.workers.models.kinds.exported import load_exported
from integrand.workers.models.kinds.factory import load_factory
from integrand.workers.models.kinds.scripted import load_script

KINDS: Mapping[type[ModelPart], Load[Any]] = MappingProxyType(
    {FactoryModel: load_factory, ExportedModel: load_exported, ScriptedModel: load_script}
)
