"""A run held against itself: its objects counted again, a few of its rows attributed again."""
