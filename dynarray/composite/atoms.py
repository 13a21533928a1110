"""`atom_conv2d` and `compose_atoms` in elementary functions."""

from typing import Any


def forward(
    functions: Any,
    x: Any,
    atoms: Any,
    coefficients: Any,
    bias: Any,
    *,
    stride: Any,
    dilation: Any,
    padding: Any,
) -> Any:
    """z = sum over taps of atom * shifted image, y = coefficients . z + bias."""
    (kh, kw), outputs = atoms.shape[2:4], atoms.shape[4:]
    margins = [
        # Zeros before, and as many after as the last tap of the last output reads.
        (padding[i], max(0, (outputs[i] - 1) * stride[i] + (k - 1) * dilation[i] + 1 - padding[i] - size))
        for i, (k, size) in enumerate(zip((kh, kw), x.shape[2:]))
    ]
    image = functions.pad(x, ((0, 0), (0, 0), *margins))

    def pixels(a: int, b: int) -> Any:
        rows, columns = (
            slice(tap * dilation[i], tap * dilation[i] + (outputs[i] - 1) * stride[i] + 1, stride[i])
            for i, tap in enumerate((a, b))
        )
        return image[:, :, rows, columns]

    z = functions.broadcast_to(x.dtype.type(0), (*x.shape[:2], atoms.shape[1], *outputs))
    if 0 not in outputs:
        for a in range(kh):
            for b in range(kw):
                z = z + functions.expand_dims(atoms[:, :, a, b], 1) * functions.expand_dims(pixels(a, b), 2)
    y = functions.einsum("ocm,ncmhw->nohw", coefficients, z)
    return y if bias is None else y + functions.reshape(bias, (-1, 1, 1))


def compose(functions: Any, alpha: Any, bases: Any) -> Any:
    """Each atom a sum of bases, weighted by alpha."""
    return functions.einsum("nmbhw,bij->nmijhw", alpha, bases)
