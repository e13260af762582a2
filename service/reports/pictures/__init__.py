"""Pictures of a run and of its rows, one file each: what they show is computed apart from how it is
drawn. They need no display, and of the packages only the extra `report`.
"""
