"""Baseline kinds as tensors, one for each row or one for all."""
