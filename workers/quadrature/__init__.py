"""Rules as data, and the certificates that judge them: nodes, weights, nested levels, grids."""
