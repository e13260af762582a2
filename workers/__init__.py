"""The engine: what turns rows and a model into attributions, and the one door to object storage."""

import lazy_loader

if __name__ == "workers":
    raise ImportError(
        "import integrand.workers, not the source folder workers; run `pip install -e .` first"
    )

from integrand.workers.kernels import ask

ask()  # before MKL's first call, which whoever uses this package makes after importing it

# Public names are listed in __init__.pyi, for type checkers too, and imported on first use: reading
# a run folder through `Store` never loads torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
