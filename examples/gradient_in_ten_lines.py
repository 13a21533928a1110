"""The gradient of a dynamic filter three ways: by the tape, by the operator's backward, by differences."""

import numpy as np

import dynarray as dyn
from autodiff import Tape, Variable
from autodiff import functions as F

rng = np.random.default_rng(0)
x = rng.standard_normal((1, 4, 16, 16))  # four channels
weight = rng.standard_normal((1, 1, 3, 3, 16, 16))  # a 3 x 3 filter of its own for each of the 16 x 16 pixels


def loss_of(weight):
    """Mean square of the filtered image; of an array a number, of a Variable one that the tape follows."""
    return F.mean(F.square(F.local_filter2d(x, weight)))


# 1. The tape records what happens to a Variable and walks back through it.
variable = Variable(weight)
with Tape() as tape:
    loss = loss_of(variable)
by_tape = tape.gradient(loss, variable)

# 2. By hand: the gradient of the mean square with respect to y is 2 y / y.size; the operator takes it from
# there to the weights.
y = dyn.local_filter2d(x, weight)
by_hand = dyn.local_filter2d_backward(2 * y / y.size, x, weight, needs=(False, True, False)).weight

# 3. By definition, along one direction: how the loss changes over a small step. The loss is a polynomial of
# degree two in the weights, so that the central difference has no error but rounding.
direction, step = rng.standard_normal(weight.shape), 1e-3
slope = (loss_of(weight + step * direction) - loss_of(weight - step * direction)) / (2 * step)

along = float(np.sum(by_tape * direction))
backward_error = float(np.abs(by_tape - by_hand).max() / np.abs(by_hand).max())
print(f"relative difference, tape and backward:    {backward_error:.1e}")
print(f"relative difference, tape and differences: {abs(along - slope) / abs(slope):.1e}")
