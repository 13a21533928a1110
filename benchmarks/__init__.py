"""What the operators cost: ``python -m benchmarks run`` measures it, ``report`` writes it into the README.

An operator family has one stem here too: `<stem>.py` lists its shapes and counts its arithmetic,
`<stem>_torch.py` holds its peers. `cases.py` imports the stems; nothing else names an operator.
"""
