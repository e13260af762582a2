"""Reason codes: which features pushed a row's output most, and whether their order is certain."""
