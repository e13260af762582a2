"""A plan carried out: dispatch, attempts, quarantine, bisection, resume."""
