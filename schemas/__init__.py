"""The nouns of Integrand: job specs, plans, shards, manifests and their Arrow tables. Needs
pydantic and pyarrow alone.
"""

from importlib import import_module
from typing import Any

if __name__ == "schemas":
    raise ImportError(
        "import integrand.schemas, not the source folder schemas; run `pip install -e .` first"
    )

_HOMES = {
    "Adaptive": "specs.accuracy",
    "AttributeSpec": "specs.job",
    "Exact": "specs.accuracy",
    "FixedSteps": "specs.accuracy",
    "JobSpec": "specs.job",
    "Plan": "records",
    "RunManifest": "records",
    "Shard": "records",
    "ShardFooter": "records",
    "RowStatus": "tables",
    "DataError": "errors",
    "IntegrandError": "errors",
    "IntegrityError": "errors",
    "SpecError": "errors",
    "TransientError": "errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
