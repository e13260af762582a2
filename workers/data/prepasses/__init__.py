"""Passes over all the data before a run, one file each."""
