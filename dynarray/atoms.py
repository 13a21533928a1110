"""Convolution whose filters are composed, pixel by pixel, of a few atoms that all channels share.

`atom_conv2d` applies the atoms; `compose_atoms` makes them from fixed bases (see `atom_bases`) and a few
numbers per pixel.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, SupportsIndex

from ._border import find_outside
from ._check import check_shape
from ._geometry import LINE, PLANE, Space, check_kernel, check_window
from ._halo import pointwise, windowed
from ._operator import Checked, backward_of, forms, modules, register
from .composite._line import OnALine
from .typing import ArrayT, Border, Needs, Pair

__all__ = [
    "AtomConv1dGradients",
    "AtomConv2dGradients",
    "ComposeAtomsGradients",
    "atom_conv1d",
    "atom_conv1d_backward",
    "atom_conv2d",
    "atom_conv2d_backward",
    "compose_atoms",
    "compose_atoms_backward",
]


if TYPE_CHECKING:
    from rawkernels import atoms as _cuda

    from .composite import atoms as _composite
    from .cpu import atoms as _cpu
    from .reference import atoms as _reference
else:
    _reference, _composite, _cpu, _cuda = modules("atoms")


def atom_conv2d(
    x: ArrayT,
    atoms: ArrayT,
    coefficients: ArrayT,
    *,
    bias: ArrayT | None = None,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Pair | None = None,
    border: Border = "constant",
) -> ArrayT:
    """Convolution with a filter per pixel, composed of a few atoms that all channels share.

    Each channel is filtered by each atom of the pixel, ``z[n,c,m,p] = sum_ab atoms[n,m,a,b,p] * x[n,c,q]``
    with ``q = (h*s_y - pad_y + a*d_y, w*s_x - pad_x + b*d_x)`` and x outside the image as `border` says; then
    the coefficients mix channels and atoms, ``y[n,o,p] = bias[o] + sum_cm coefficients[o,c,m] * z[n,c,m,p]``.
    The filter in effect at p is ``sum_m coefficients[o,c,m] * atoms[n,m,:,:,p]``.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input: float32 or float64, on a GPU float16 and bfloat16 too. The other arrays have its dtype.
    atoms : array, (N, M, kh, kw, Ho, Wo)
        M filters per output pixel; `compose_atoms` makes them.
    coefficients : array, (O, C, M)
        How each output channel mixes the filtered input channels, the same for all pixels.
    bias : array, (O,), optional
        Added to the output channels.
    stride, dilation : int or (y, x)
        Step between outputs and between taps, in input pixels.
    padding : int or (y, x), optional
        Pixels added on each side. None means "same", ``dilation*(kernel - 1)/2``, and needs odd kernel sizes.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What lies outside the image, in the words of `numpy.pad`: zeros; the image mirrored about its last
        pixel, or behind it; its last pixel; the image again. ``scipy.ndimage`` calls "symmetric" "reflect".

    Returns
    -------
    array, (N, O, Ho, Wo)
        ``Ho = floor((H + 2*pad_y - d_y*(kh-1) - 1)/s_y) + 1``.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or differ in library, device or dtype, for shapes that
        do not match, and for parameters out of range. The message names the argument.

    Notes
    -----
    An output pixel costs ``C*M*(kh*kw + O)`` multiply-adds, an ordinary convolution ``C*O*kh*kw``.

    The filtered channels z are C*M maps, M times the input. They are never stored: the forward pass makes
    them in tiles, each multiplied by the coefficients at once, and the backward pass, which saves the inputs
    alone, makes them again. That is ``C*M*kh*kw`` multiply-adds a pixel, beside twice as many over the taps
    and ``2*C*M*O`` in matrix products that it needs anyway.

    References
    ----------
    Wang et al., "Adaptive Convolutions with Per-pixel Dynamic Filter Atom", ICCV 2021.

    Examples
    --------
    A single atom: a 3 x 3 box filter in the left half of the image, the identity in the right half:

    >>> import numpy as np, dynarray as dyn
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> atoms = np.zeros((1, 1, 3, 3, 4, 4))
    >>> atoms[..., :2] = 1 / 9
    >>> atoms[:, :, 1, 1, :, 2:] = 1
    >>> y = dyn.atom_conv2d(x, atoms, np.array([[[1.0]], [[10.0]]]))
    >>> y[0, :, 1].round(6).tolist()
    [[3.0, 5.0, 6.0, 7.0], [30.0, 50.0, 60.0, 70.0]]
    """
    return ATOM_CONV2D(
        (x, atoms, coefficients, bias), stride=stride, dilation=dilation, padding=padding, border=border
    )


def atom_conv1d(
    x: ArrayT,
    atoms: ArrayT,
    coefficients: ArrayT,
    *,
    bias: ArrayT | None = None,
    stride: SupportsIndex = 1,
    dilation: SupportsIndex = 1,
    padding: SupportsIndex | None = None,
    border: Border = "constant",
) -> ArrayT:
    """Convolution of a line with a filter per sample, composed of a few atoms that all channels share.

    ``y[n,o,l] = bias[o] + sum_cm coefficients[o,c,m] * z[n,c,m,l]`` with ``z[n,c,m,l] = sum_a atoms[n,m,a,l]
    * x[n,c, l*stride - padding + a*dilation]``: `atom_conv2d` on images of one row.

    Parameters
    ----------
    x : array, (N, C, L)
        The input; it and the other arrays have dtypes as in `atom_conv2d`.
    atoms : array, (N, M, k, Lo)
        M filters per output sample.
    coefficients : array, (O, C, M)
        How each output channel mixes the filtered input channels, the same for all samples.
    bias : array, (O,), optional
        Added to the output channels.
    stride, dilation : int
        Step between outputs and between taps, in input samples.
    padding : int, optional
        Samples added on each side. None means "same", ``dilation*(k - 1)/2``, and needs an odd kernel size.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What lies outside the line, in the words of `numpy.pad`: zeros; the line mirrored about its last
        sample, or behind it; its last sample; the line again. ``scipy.ndimage`` calls "symmetric" "reflect".

    Returns
    -------
    array, (N, O, Lo)
        ``Lo = floor((L + 2*padding - dilation*(k-1) - 1)/stride) + 1``.

    Raises
    ------
    TypeError, ValueError
        As `atom_conv2d`.

    Examples
    --------
    A single atom, the difference to the sample before, and two multiples of it:

    >>> import numpy as np, dynarray as dyn
    >>> atoms = np.zeros((1, 1, 3, 4)) + np.array([-1.0, 1.0, 0.0])[:, None]
    >>> dyn.atom_conv1d(np.array([[[1.0, 2.0, 4.0, 8.0]]]), atoms, np.array([[[1.0]], [[10.0]]])).tolist()
    [[[1.0, 1.0, 2.0, 4.0], [10.0, 10.0, 20.0, 40.0]]]
    """
    return ATOM_CONV1D(
        (x, atoms, coefficients, bias), stride=stride, dilation=dilation, padding=padding, border=border
    )


def compose_atoms(
    alpha: ArrayT,
    bases: ArrayT,
) -> ArrayT:
    """Filter atoms of every pixel as sums of bases: ``atoms[n,m,a,b,p] = sum_i alpha[n,m,i,p]*bases[i,a,b]``.

    Parameters
    ----------
    alpha : array, (N, M, B, Ho, Wo)
        The weight of each basis in each atom, per output pixel: float32 or float64, on a GPU float16 and
        bfloat16 too.
    bases : array, (B, kh, kw)
        The bases, in the dtype of `alpha`: for example `fourier_bessel_bases` or `multiscale_bases`.

    Returns
    -------
    array, (N, M, kh, kw, Ho, Wo)
        The atoms, as `atom_conv2d` takes them.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or differ in library, device or dtype, and for shapes
        that do not match. The message names the argument.

    Notes
    -----
    The backward pass needs only the inputs, so nothing else is saved and nothing is recomputed.

    References
    ----------
    Wang et al., "Adaptive Convolutions with Per-pixel Dynamic Filter Atom", ICCV 2021.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> bases = dyn.multiscale_bases(5)
    >>> alpha = np.zeros((1, 6, len(bases), 8, 8))
    >>> dyn.compose_atoms(alpha, bases).shape
    (1, 6, 5, 5, 8, 8)
    """
    return COMPOSE_ATOMS((alpha, bases))


def _check_atom_conv(
    name: str,
    space: Space,
    x: Any,
    atoms: Any,
    coefficients: Any,
    bias: Any,
    *,
    border: Any,
    **steps: Any,
) -> Checked:
    of_images, of_atoms = space.pattern("N C image"), space.pattern("N M kernel outputs")
    sizes = check_shape(name, "x", x, of_images, {})
    sizes = check_shape(name, "atoms", atoms, of_atoms, sizes)
    window = check_window(name, "atoms", sizes, space, **steps)
    check_shape(name, "atoms", atoms, of_atoms, sizes | window.sizes)
    sizes = check_shape(name, "coefficients", coefficients, "O C M", sizes)
    if bias is not None:
        check_shape(name, "bias", bias, "O", sizes)
    x, atoms = space.in_plane(x, "N C image"), space.in_plane(atoms, "N M kernel outputs")
    shapes = window.output_shapes(sizes["N"], sizes["O"])
    outside = find_outside(name, border, window, x.shape, by_output=1, once=3)
    return Checked((x, atoms, coefficients, bias), window.shortened(), *shapes, outside=outside)


def _check_compose_atoms(alpha: Any, bases: Any) -> Checked:
    name = "compose_atoms"
    sizes = check_shape(name, "alpha", alpha, "N M B Ho Wo", {})
    sizes = check_shape(name, "bases", bases, "B kh kw", sizes)
    check_kernel(name, "bases", sizes)
    return Checked((alpha, bases), {}, tuple(sizes[s] for s in ("N", "M", "kh", "kw", "Ho", "Wo")))


ATOM_CONV2D = register(
    atom_conv2d,
    forward=forms(_reference.forward, _cpu.forward, _cuda.forward),
    backward=forms(_reference.backward, _cpu.backward, _cuda.backward),
    check=partial(_check_atom_conv, "atom_conv2d", PLANE),
    composite=_composite.forward,
    keywords=("bias",),
    halo=windowed("atoms", kernel="atoms"),
)
ATOM_CONV1D = register(
    atom_conv1d,
    forward=ATOM_CONV2D.forward,
    backward=ATOM_CONV2D.backward,
    check=partial(_check_atom_conv, "atom_conv1d", LINE),
    composite=OnALine(_composite.forward),
    keywords=("bias",),
    halo=windowed("atoms", kernel="atoms", space=LINE),
)
COMPOSE_ATOMS = register(
    compose_atoms,
    forward=forms(_reference.compose_forward, _cpu.compose_forward, _cuda.compose_forward),
    backward=forms(_reference.compose_backward, _cpu.compose_backward, _cuda.compose_backward),
    check=_check_compose_atoms,
    composite=_composite.compose,
    halo=pointwise("alpha"),
)


class AtomConv2dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `atom_conv2d` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    atoms: ArrayT
    coefficients: ArrayT
    bias: ArrayT | None


class ComposeAtomsGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `compose_atoms` by its arrays; None where one was not asked for or not given."""

    alpha: ArrayT
    bases: ArrayT


@backward_of(ATOM_CONV2D, AtomConv2dGradients)
def atom_conv2d_backward(
    grad_output: ArrayT,
    x: ArrayT,
    atoms: ArrayT,
    coefficients: ArrayT,
    *,
    bias: ArrayT | None = None,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Pair | None = None,
    border: Border = "constant",
    needs: Needs = None,
) -> AtomConv2dGradients[ArrayT]:
    """Gradients of `atom_conv2d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, atoms = np.arange(16.0).reshape(1, 1, 4, 4), np.full((1, 1, 3, 3, 4, 4), 1 / 9)
    >>> grads = dyn.atom_conv2d_backward(np.ones((1, 2, 4, 4)), x, atoms, np.ones((2, 1, 1)))
    >>> grads.coefficients.ravel().round(6).tolist()  # of either output, the sum of what the atom gives
    [83.333333, 83.333333]
    >>> grads.atoms.shape
    (1, 1, 3, 3, 4, 4)
    """


class AtomConv1dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `atom_conv1d` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    atoms: ArrayT
    coefficients: ArrayT
    bias: ArrayT | None


@backward_of(ATOM_CONV1D, AtomConv1dGradients)
def atom_conv1d_backward(
    grad_output: ArrayT,
    x: ArrayT,
    atoms: ArrayT,
    coefficients: ArrayT,
    *,
    bias: ArrayT | None = None,
    stride: SupportsIndex = 1,
    dilation: SupportsIndex = 1,
    padding: SupportsIndex | None = None,
    border: Border = "constant",
    needs: Needs = None,
) -> AtomConv1dGradients[ArrayT]:
    """Gradients of `atom_conv1d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, atoms = np.array([[[1.0, 2.0, 4.0, 8.0]]]), np.zeros((1, 1, 3, 4))
    >>> grads = dyn.atom_conv1d_backward(np.ones((1, 1, 4)), x, atoms, np.full((1, 1, 1), 3.0))
    >>> grads.atoms[0, 0, 1].tolist(), grads.x.tolist()
    ([3.0, 6.0, 12.0, 24.0], [[[0.0, 0.0, 0.0, 0.0]]])
    """


@backward_of(COMPOSE_ATOMS, ComposeAtomsGradients)
def compose_atoms_backward(
    grad_output: ArrayT,
    alpha: ArrayT,
    bases: ArrayT,
    *,
    needs: Needs = None,
) -> ComposeAtomsGradients[ArrayT]:
    """Gradients of `compose_atoms`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> bases, alpha = np.arange(18.0).reshape(2, 3, 3), np.ones((1, 1, 2, 4, 4))
    >>> grads = dyn.compose_atoms_backward(np.ones((1, 1, 3, 3, 4, 4)), alpha, bases)
    >>> grads.alpha[0, 0, :, 0, 0].tolist()  # the sum of each basis
    [36.0, 117.0]
    >>> grads.bases[0, 0].tolist()  # one for each pixel
    [16.0, 16.0, 16.0]
    """
