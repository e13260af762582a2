"""A run folder read: footers, totals, the manifest, a DataFrame. Needs neither torch nor Ray."""
