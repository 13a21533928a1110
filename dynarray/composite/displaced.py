"""`displaced_conv2d` in elementary functions."""

from typing import Any

import numpy as np


def forward(
    functions: Any,
    x: Any,
    weight: Any,
    displacement: Any,
    sigma: Any,
    bias: Any,
    *,
    spread: float,
    radius: tuple[int, int],
    displacement_gradient: str,
) -> Any:
    """Blur and displacement as matrices that act on rows and columns."""
    if displacement_gradient == "smooth":
        raise NotImplementedError(
            f"displaced_conv{2 if radius[0] else 1}d: a gradient of its gradient was asked for, but "
            "displacement_gradient='smooth' is no gradient of the output, so it has no composite definition; "
            "use 'exact'"
        )
    height, breadth = x.shape[2:]
    scale = spread if sigma is None else sigma

    def bell(distance: Any) -> Any:
        with np.errstate(under="ignore"):  # a tap too small to be represented is 0
            return functions.exp(functions.square(distance / scale) / -2)

    def blur(size: int, radius: int) -> Any:
        total = functions.sum(bell(np.arange(-radius, radius + 1, dtype=x.dtype)))
        distance = np.subtract.outer(np.arange(size), np.arange(size))
        return bell(distance.astype(x.dtype)) * (abs(distance) <= radius).astype(x.dtype) / total

    def moved(axis: int, size: int) -> Any:
        """(O, C, G, size, size): the weight of each pixel in each place of the output."""
        move = functions.reshape(displacement[..., axis], (*weight.shape, 1, 1))
        # Whole pixels and the rest: a float that holds both takes what lies just below a pixel for the pixel.
        plain = getattr(functions, "stop_gradient", lambda array: array)(move)
        whole = np.floor(plain)
        beside = whole + np.subtract.outer(np.arange(size), np.arange(size))
        ahead = functions.where(beside == 0, 1 - (move - whole), x.dtype.type(0))
        return functions.where(beside == -1, move - whole, ahead)

    image = functions.matmul(functions.matmul(blur(height, radius[0]), x), blur(breadth, radius[1]))
    image = functions.reshape(image, (x.shape[0], 1, x.shape[1], 1, height, breadth))
    columns = functions.swapaxes(moved(1, breadth), -1, -2)
    read = functions.matmul(functions.matmul(moved(0, height), image), columns)
    y = functions.sum(read * functions.reshape(weight, (*weight.shape, 1, 1)), (2, 3))
    return y if bias is None else y + functions.reshape(bias, (-1, 1, 1))
