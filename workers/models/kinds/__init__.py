"""How models are loaded: one file for each kind of model, found by `table`."""
