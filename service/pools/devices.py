"""What processes that use CUDA need in their environment before they first do."""

from __future__ import annotations

REPEATABLE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Without it matrix products differ from run to run (cuBLAS documentation, "Results
Reproducibility").
"""
