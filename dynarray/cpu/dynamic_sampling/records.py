"""What the kernels of dynamic sampling take: records of what belongs together.

An image is worked on in bands of output rows; a band has a plan, which depends on sizes alone. The rows of x
that a band reads are packed into lines: a line is a row of an image with zeros beside it, one stretch for
each phase of the stride along x, so that a sampled region is one offset for a whole row of outputs. X1, the
sum of x over channels, which the taps of the spatial kernels read, is packed in the same way.
"""

from typing import Any, NamedTuple

import numpy as np

from ..engine.products import PRODUCT_ROWS

SUM, MAX, STACK = 0, 1, 2


class SampleAxis(NamedTuple):
    """Positions along one axis."""

    size: int
    outputs: int
    kernel: int
    samples: int
    sample_stride: int
    dilation: int
    stride: int

    def centres(self) -> np.ndarray:
        """Where samples lie, from the pixel of an output."""
        return (np.arange(self.samples) - (self.samples - 1) // 2) * self.sample_stride

    def taps(self) -> np.ndarray:
        """Where taps lie, from the centre of a sample."""
        return (np.arange(self.kernel) - self.kernel // 2) * self.dilation


class SampleCall(NamedTuple):
    """One call: what does not change from image to image."""

    rows: SampleAxis
    columns: SampleAxis
    channels: int
    outputs: int
    attended: bool  # by position
    itemsize: int
    kernel_residual: Any  # on each channel
    attention_residual: Any

    @property
    def groups(self) -> int:
        """Of PRODUCT_ROWS output channels, which are worked on together."""
        return -(-self.outputs // PRODUCT_ROWS)


class Lines(NamedTuple):
    """Where rows of an image lie, one line after the other."""

    rows: np.ndarray  # of the image; outside it lines are of zeros
    stretch: int  # elements of a phase
    left: int  # the column at element 0
    step: int  # columns between elements, and phases


class SamplePlaces(NamedTuple):
    """Where samples are: in lines of x, and in lines of the rows on which samples are centred."""

    image_rows: np.ndarray  # (rows of outputs, S): which line of x
    centre_rows: np.ndarray  # (rows of outputs, S): which row of centres
    columns: np.ndarray  # (S,): the element of pixel 0
    runs: np.ndarray  # (., 3): the elements of a line on which samples are centred: start, end, phase


class TapPlaces(NamedTuple):
    """Where taps read the lines of X1 for element k of phase f of a line: at ``rows + columns[., f] + k``."""

    rows: np.ndarray  # (kh, rows on which samples are centred)
    columns: np.ndarray  # (kw, phases)


class SamplePlan(NamedTuple):
    """Where everything is that a band of output rows reads."""

    first: int  # row of outputs
    rows: int
    block: int  # rows of outputs, for which what taps read is made together
    block_centres: int  # rows on which samples are centred, around any block
    image: Lines  # of x; the last one is of zeros
    centres: Lines  # the rows, inside the image or not, on which samples are centred
    totals: Lines  # of X1
    samples: SamplePlaces
    taps: TapPlaces
    channel: int  # elements of the lines of one channel


class SampleWidths(NamedTuple):
    """Sizes in scratch, in elements; padded is up to whole registers."""

    row: int  # of outputs, padded
    line: int
    padded_line: int
    margin: int  # of zeros before a row
    pitch: int  # from row to row
    tap: int  # from tap to tap, in what taps read
    output: int  # from output channel to output channel there, 0 if all read the same


class SampleDistances(NamedTuple):
    """Where planes of products begin, from the first on: as arrays, so that one kind of product serves."""

    kernels: np.ndarray  # of taps, in `SampleScratch.kernels`
    taps: np.ndarray  # in `SampleScratch.tap_values`
    regions: np.ndarray  # in `SampleScratch.weights`
    channels: np.ndarray  # in `SampleBand.lines`


class SampleLayout(NamedTuple):
    """What depends on no data: the same for a band of every image."""

    call: SampleCall
    plan: SamplePlan
    widths: SampleWidths
    distances: SampleDistances
    ones: np.ndarray  # as many as any row has, for what there is none of


class SampleInputs(NamedTuple):
    """The arrays of one image, contiguous; attention that is not given has no elements."""

    x: np.ndarray
    channel_kernel: np.ndarray
    spatial_kernel: np.ndarray
    sample_attention: np.ndarray  # (O, S*S, Ho, Wo)
    position_attention: np.ndarray


class SampleBand(NamedTuple):
    """A band of output rows of one image, with everything that it reads packed into lines."""

    call: SampleCall  # and so on: `SampleLayout`
    plan: SamplePlan
    widths: SampleWidths
    distances: SampleDistances
    ones: np.ndarray
    inputs: SampleInputs
    lines: np.ndarray  # of x, one channel after the other
    totals: np.ndarray  # of X1
    # (O, lines): the position attention of the tap on the centre, with its residual, where samples are
    # centred; no elements if not given
    central: np.ndarray


class SampleRow(NamedTuple):
    """The work of a moment: some output channels of one row of outputs."""

    first: int  # output channel
    outputs: int  # how many
    h: int  # the row, in the band
    number: int  # the row, in the image
    low: int  # the first row of centres in what taps read


class SampleGradOutput(NamedTuple):
    """The gradient of the output, and which samples it goes to."""

    grad_output: np.ndarray  # (1 or S*S, O, Ho, Wo)
    largest: np.ndarray  # (O, Ho, Wo), without elements unless "max"
    fuse: int


class SampleGrads(NamedTuple):
    """What the backward passes write, of one image; what is not wanted has no elements."""

    x: np.ndarray
    channel_kernel: np.ndarray
    spatial_kernel: np.ndarray
    sample_attention: np.ndarray
    position_attention: np.ndarray
    totals: np.ndarray  # (slots, ...): of the lines of X1 of a band, a slot for each work item
    lines: np.ndarray  # of x, of the band


class SampleWork(NamedTuple):
    """All that the backward passes read and write of a band."""

    given: SampleGradOutput
    grads: SampleGrads
    band: SampleBand


class PlaceScratch(NamedTuple):
    """Integers: where samples are, of a row of outputs."""

    lines: Any  # (S*S,): where pixel 0 of each sample lies in the lines of x
    centres: Any  # (S*S,): and in lines of the rows on which samples are centred
    by_sample: Any  # (S,): those of one row of centres in `SampleScratch.weights`, each seen from its centre
    by_column: Any  # (S,): and in `SampleScratch.kernels`


def place_scratch(samples: int) -> PlaceScratch:
    """The sizes of `PlaceScratch`."""
    regions = samples * samples
    return PlaceScratch(*((size, np.intp) for size in (regions, regions, samples, samples)))


class SampleScratch(NamedTuple):
    """For a row of PRODUCT_ROWS output channels; the second half is for gradients alone.

    Rows, `SampleWidths.pitch` apart, lie between margins of zeros: as far as a sample is from the first one
    of its row.
    """

    kernels: Any  # (PRODUCT_ROWS, taps, pitch): rows of the spatial kernel, with its residual
    sums: Any  # (S*S, PRODUCT_ROWS, pitch): over channels, then regions
    rows: Any  # rows of the channel kernel, copied; later rows of gradients on their way to where they belong
    tap_values: Any  # (PRODUCT_ROWS or 1, taps, block_centres, line): X1 under a tap, times the attention
    tap_attention: Any  # the same of the attention itself, with its residual
    weights: Any  # (S*S, PRODUCT_ROWS, pitch): grad_output * sample attention
    centred: Any  # (S*S, PRODUCT_ROWS, row): the same times the position attention of the centre
    by_tap: Any  # (PRODUCT_ROWS, taps, block_centres, padded line): sums of weights * spatial kernel
    by_centre: Any  # (PRODUCT_ROWS, block_centres, padded line): sums of weights * sums over channels
    places: Any  # `PlaceScratch`


class ChannelScratch(NamedTuple):
    """For one row of outputs, and some output channels and samples."""

    weights: Any  # (samples, outputs, row)
    moved: Any  # (samples, PRODUCT_ROWS, row): what goes to the lines of x
    copy: Any  # (outputs, PRODUCT_ROWS, row): of the channel kernel
    places: Any  # `PlaceScratch`


class MaximumScratch(NamedTuple):
    """For one row of outputs."""

    dots: Any  # sums over channels where the largest samples are
    weights: Any
