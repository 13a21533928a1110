"""Measuring: clocks, machines, processes of their own, and the runs that use them. Names no operator."""
