"""Outputs and gradients at (row, node) items in step batches, and rows that enter, are judged and
leave.
"""
