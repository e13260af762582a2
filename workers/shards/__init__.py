"""One shard's life: read, attribute, encode, commit; and the worker that lives it."""
