"""The verbs: plan a job, run it, open its results."""

import lazy_loader

if __name__ == "service":
    raise ImportError(
        "import integrand.service, not the source folder service; run `pip install -e .` first"
    )

# Public names are listed in __init__.pyi, for type checkers too, and imported on first use: reading
# results with `open_run` loads neither torch nor Ray.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
