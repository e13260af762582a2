"""The kinds of input, one file each, found by their part of the spec in `table`."""
