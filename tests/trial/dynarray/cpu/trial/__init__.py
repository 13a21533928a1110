"""`trial_gate2d` on the CPU: NumPy's loops will do."""

from ...reference.trial import backward as backward
from ...reference.trial import forward as forward
