"""What the operators cost: ``python -m benchmarks run`` measures it, ``report`` writes it into the README.

An operator family has one stem here too: ``cases/<stem>.py`` lists its shapes, counts its arithmetic and says
how it grows, ``peers/<stem>.py`` holds the same in PyTorch. Nothing else names an operator: `cases` finds the
stems in ``dynarray.OPERATORS``.
"""
