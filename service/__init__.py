"""The verbs: plan a job, run it, open its results."""

from importlib import import_module
from typing import Any

if __name__ == "service":
    raise ImportError(
        "import integrand.service, not the source folder service; run `pip install -e .` first"
    )

_HOMES = {
    "Run": "runs.query",
    "open_run": "runs.query",
    "plan_job": "running.jobs",
    "run_job": "running.jobs",
    "retry_quarantined": "running.retry",
    "verify_run": "checks.verify",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use, so that reading results with `open_run` never loads torch or ray."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
