"""Which outputs of a model are explained: one file for each kind of target, found by `table`."""
