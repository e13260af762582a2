"""Demonstrations on real and synthetic data."""
