"""What the user asks for, part by part: JobSpec and its pieces, frozen, with every unknown field
refused.

Unions are told apart by `kind`; `inputs` by whether `columns`, `column` or `ids` is given.
"""
