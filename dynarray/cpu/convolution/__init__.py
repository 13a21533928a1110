"""Plain convolutions on the CPU, for the layers around the operators."""

from .forms import Steps as Steps
from .forms import correlate as correlate
from .forms import correlate_input as correlate_input
from .forms import correlate_weight as correlate_weight
from .forms import suits as suits
