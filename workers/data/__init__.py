"""What users bring, as columns, slices, tables and tensors, with a reason for each row that
is bad.
"""
