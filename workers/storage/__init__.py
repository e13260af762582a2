"""The one door to files and object stores: create, read, list, and how long a store is
waited for.
"""
