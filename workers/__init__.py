"""The engine: what turns rows and a model into attributions, and the one door to object storage."""

from importlib import import_module
from typing import Any

if __name__ == "workers":
    raise ImportError(
        "import integrand.workers, not the source folder workers; run `pip install -e .` first"
    )

from integrand.workers.kernels import ask

ask()  # before MKL's first call, which whoever uses this package makes after importing it

_HOMES = {
    "Access": "storage.store",
    "Store": "storage.store",
    "Attribution": "methods.attribution",
    "attribute": "methods.attribution",
    "prepare": "methods.attribution",
    "at_embedding": "models.embeddings",
    "QuadratureRule": "quadrature.rules",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use, so that reading a run folder through `Store` never loads torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
