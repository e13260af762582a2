"""Models as code in a folder, loaded as a worker loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from integrand.schemas.specs.models import FactoryModel, Model
from integrand.workers.models.code import model_artefacts
from integrand.workers.models.loading import load_model
from integrand.workers.models.outputs import Forward
from integrand.workers.storage.store import Store

STORE = Store()
BUILD = """
import torch
from torch import nn

def build(width=4, outputs=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, outputs)).eval()

def training():
    return nn.Sequential(nn.Linear(3, 2).eval(), nn.Dropout())

def function():
    return torch.sum

def build_wrongly():
    return 1 / 0

not_callable = 3
"""
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def factory(entrypoint: str = "toy_models:build", **fields: Any) -> FactoryModel:
    return FactoryModel(entrypoint=entrypoint, **fields)


def loaded(model: Model, folder: Path, precision: str = "float32") -> Forward:
    return load_model(
        STORE, model, model_artefacts(STORE, model, str(folder)), precision, "cpu"
    ).forward
