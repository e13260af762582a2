"""From a model and rows to attributions: the doors for a call, and one file for each method."""
