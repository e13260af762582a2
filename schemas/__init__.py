"""The nouns of Integrand: job specs, plans, shards, manifests and their Arrow tables. Loads neither
torch nor Ray.
"""

import lazy_loader

if __name__ == "schemas":
    raise ImportError(
        "import integrand.schemas, not the source folder schemas; run `pip install -e .` first"
    )

# Public names are listed in __init__.pyi, for type checkers too, and imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
