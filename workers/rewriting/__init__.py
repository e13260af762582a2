"""Exact savings: a model rewritten so that it costs less and answers the same, verified and
recorded.
"""
