"""Formats of source files: one file each, found by `table`."""
