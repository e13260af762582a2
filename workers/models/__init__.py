"""A user's model: trusted, loaded, probed, and called at what it explains."""
