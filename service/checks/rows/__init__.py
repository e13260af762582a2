"""Checks of one shard's object while its rows are in memory."""
