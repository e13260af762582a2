"""JobSpec to Plan: sources, shards, what is tried on a few rows, the step batch that is chosen."""
