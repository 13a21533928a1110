"""How much of a photograph one output sees: the effective receptive field, with and without dynamic sampling.

The receptive field of an output is where the image can change it at all. The *effective* receptive field is
where the image does: the derivative of the output with respect to every pixel, which one backward pass gives,

    g[c, q] = d y[p] / d x[c, q],      weight of pixel q:  e[q] = sum_c g[c, q]**2.

For a stack of k x k convolutions it is much smaller than the receptive field, for each layer spreads the
derivative over its k x k taps at random: after n layers it lies within a radius that grows with sqrt(n) only
(Luo et al., "Understanding the effective receptive field", NeurIPS 2016). A dynamic sampling convolution
instead applies its kernel to S x S regions, sample_stride apart, so that the derivative of one layer,

    d y[o, p] / d x[c, q] = sum_ij As[o,i,j,p] * K[o,c,q - p_ij,p] * Ap[o,q - p_ij,p_ij]
                            + what goes through K, As and Ap, which are made from x near p,

reaches (S - 1)*sample_stride + k positions at once. The first part is also measured alone, by stopping the
gradient before K, As and Ap. Two numbers describe a map e: the area, the smallest number of pixels that holds
95 % of it, and its radius, sqrt(sum_q e[q]*|q - centre|**2 / sum_q e[q]).

The networks are not trained: what is measured is what their layers do at first, not what a task makes of it.

    python examples/effective_receptive_field.py    # see also --help

Wu et al., "Dynamic Filtering with Large Sampling Field for ConvNets", ECCV 2018.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _record import picture_in, record, shown
from matplotlib.figure import Figure
from scipy.ndimage import uniform_filter
from skimage.data import chelsea
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from autodiff import Tape, Variable
from autodiff import functions as F
from autodiff.layers import Conv2d, DynamicSamplingConv, Module

STEP = 8  # image pixels per position of the last layers
WIDTHS = 24, 32, 48
HELD = 0.95  # share of the squared gradient within the area
DECADES = 4  # of the squared gradient, in the picture
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "effective_receptive_field.png"


class Setting(NamedTuple):
    """The last layer: a 3 x 3 convolution (samples 0), or dynamic sampling."""

    samples: int
    sample_stride: int

    @property
    def side(self) -> int:
        """Of the square that the layer reads."""
        return 3 if not self.samples else (self.samples - 1) * self.sample_stride + 3

    @property
    def wide(self) -> bool:
        """Whether regions lie apart; of the others the picture shows only the convolution."""
        return self.sample_stride > 1 or not self.samples

    def __str__(self) -> str:
        return f"S = {self.samples}, stride {self.sample_stride}" if self.samples else "3 x 3 convolution"


SETTINGS = tuple(Setting(*pair) for pair in ((0, 1), (1, 1), (3, 1), (3, 2), (5, 2), (7, 2), (9, 1), (9, 2)))


class Block(Module):
    """Two 3 x 3 convolutions added to a shortcut, as in a ResNet."""

    def __init__(self, channels: int, outputs: int, stride: int, rng: np.random.Generator) -> None:
        self.first = Conv2d(channels, outputs, 3, stride=stride, rng=rng)
        self.second = Conv2d(outputs, outputs, 3, rng=rng)
        self.shortcut = None if stride == 1 else Conv2d(channels, outputs, 1, stride=stride, rng=rng)

    def forward(self, x: Any) -> Any:
        """x (N, channels, H, W) -> (N, outputs, H/stride, W/stride)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(shortcut + self.second(F.relu(self.first(x))))


class Network(Module):
    """A stem and five blocks, down to 1/8 of the size, and the layer in question."""

    def __init__(self, setting: Setting, rng: np.random.Generator) -> None:
        one, two, three = WIDTHS
        self.stem = Conv2d(3, one, 7, stride=2, rng=rng)
        self.blocks = [
            Block(one, one, 1, rng),
            Block(one, two, 2, rng),
            Block(two, two, 1, rng),
            Block(two, three, 2, rng),
            Block(three, three, 1, rng),
        ]
        if setting.samples:
            self.last: Module = DynamicSamplingConv(
                three, 24, samples=setting.samples, sample_stride=setting.sample_stride, rng=rng
            )
        else:
            self.last = Conv2d(three, 24, 3, rng=rng)

    def forward(self, x: Any, fixed: bool = False) -> Any:
        """x (N, 3, H, W) -> (N, 24, H/8, W/8), perhaps with the dynamic kernels as constants of the tape."""
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        if fixed and isinstance(self.last, DynamicSamplingConv):
            seen, last = F.stop_gradient(x), self.last
            made = *last.kernels(seen), *last.attention(seen)
            return F.dynamic_sampling_conv2d(last.feature(x), *made, **last.params)
        return self.last(x)


def weights_of_pixels(network: Network, image: np.ndarray, signs: np.ndarray, fixed: bool) -> np.ndarray:
    """e (H, W) for the output in the middle, its channels added with these signs; its sum is 1."""
    x = Variable(image)
    with Tape() as tape:
        y = network(x, fixed)
        high, wide = y.shape[2:]
        output = F.sum(y[0, :, high // 2, wide // 2] * signs)
    weights = np.square(tape.gradient(output, x)[0].astype(np.float64)).sum(0)
    return weights / weights.sum()


def area_of(weights: np.ndarray) -> int:
    """The smallest number of pixels that holds 95 % of the whole."""
    largest_first = np.sort(weights, axis=None)[::-1]
    return int(np.searchsorted(np.cumsum(largest_first), HELD)) + 1


def radius_of(weights: np.ndarray) -> float:
    """Root of the mean squared distance from the middle of the output's 8 x 8 pixels."""
    distances = [np.arange(size) - (size // (2 * STEP) * STEP) for size in weights.shape]
    squares = distances[0][:, None] ** 2 + distances[1] ** 2
    return float(np.sqrt((weights * squares).sum()))


def bounds_of(weights: np.ndarray) -> tuple[int, int]:
    """Height and width of the receptive field: of the pixels with any influence."""
    seen = weights > 0
    sides = [np.flatnonzero(seen.any(axis)) for axis in (1, 0)]
    return tuple(int(side[-1] - side[0]) + 1 for side in sides)  # type: ignore[return-value]


def measure(photo: np.ndarray, settings: Sequence[Setting], seeds: int) -> dict[Setting, np.ndarray]:
    """Maps e (2, seeds, H, W): all of it, and with fixed kernels; a seed gives all settings one backbone."""
    image = np.ascontiguousarray(photo.transpose(2, 0, 1)[None], np.float32) / 128 - 1
    maps = {setting: np.empty((2, seeds, *photo.shape[:2])) for setting in settings}
    with tqdm(total=len(settings) * seeds, desc="gradients", unit="network") as progress:
        for setting, found in maps.items():
            for seed in range(seeds):
                network = Network(setting, np.random.default_rng(seed))
                signs = np.random.default_rng([seed, 1]).choice((-1, 1), 24).astype(np.float32)
                for fixed in (False, True):
                    found[int(fixed), seed] = weights_of_pixels(network, image, signs, fixed)
                progress.update()
    return maps


def table_of(maps: dict[Setting, np.ndarray]) -> tuple[list[str], list[list[str]]]:
    """What is printed and recorded."""
    columns = ["last layer", "it reads", "receptive field"]
    for kind in ("", "fixed kernels: "):
        columns += [f"{kind}area", f"{kind}ratio", f"{kind}radius"]
    areas = {
        setting: np.array([[area_of(e) for e in kind] for kind in found]) for setting, found in maps.items()
    }
    plain = next(iter(areas.values()))
    rows = []
    for setting, found in maps.items():
        high, wide = bounds_of(found.sum((0, 1)))
        row = [str(setting), f"{setting.side} x {setting.side}", f"{high} x {wide}"]
        for kind in range(2):
            row += [shown(areas[setting][kind], 0), shown(areas[setting][kind] / plain[kind], 2)]
            row.append(shown([radius_of(e) for e in found[kind]], 1))
        rows.append(row)
    return columns, rows


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """With columns as wide as their widest cell."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows)]
    for row in (columns, *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))


def draw(path: Path, photo: np.ndarray, maps: dict[Setting, np.ndarray]) -> None:
    """What networks see of the photograph: mean maps, on a logarithmic scale of `DECADES`."""
    chosen = {setting: found for setting, found in maps.items() if setting.wide}
    shape = (1.9 * len(chosen), 2 * 1.9 * photo.shape[0] / photo.shape[1] + 0.9)
    figure = Figure(figsize=shape, layout="constrained")
    axes = figure.subplots(2, len(chosen))
    gray = photo.mean(2)
    middle = [size // (2 * STEP) * STEP for size in photo.shape[:2]]
    for column, (setting, found) in enumerate(chosen.items()):
        axes[0, column].set_title(str(setting), fontsize=8)
        for axis, kind in zip(axes[:, column], found):
            weights = uniform_filter(kind.mean(0), 5)
            level = 1 + np.log10(np.maximum(weights / weights.max(), 10.0**-DECADES)) / DECADES
            axis.imshow(gray, cmap="gray", vmin=-100, vmax=400)
            shade = axis.imshow(level, cmap="inferno", vmin=0, vmax=1, alpha=np.clip(2 * level, 0, 0.9))
            axis.plot(middle[1], middle[0], "+", color="black", markersize=4)
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("all paths", fontsize=8)
    axes[1, 0].set_ylabel("fixed kernels", fontsize=8)
    bar = figure.colorbar(shade, ax=axes, shrink=0.8, ticks=(0, 0.5, 1))
    bar.set_label("squared gradient, over its largest", fontsize=8)
    bar.ax.set_yticklabels([f"1e-{DECADES}", f"1e-{DECADES // 2}", "1"], fontsize=7)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="networks of each kind (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("effective_receptive_field.png"))
    parser.add_argument("--quick", action="store_true", help="one network of each of three kinds")
    parser.add_argument(
        "--full", action="store_true", help="ten networks of each kind; write table and picture into docs"
    )
    options = parser.parse_args(argv)
    options.settings = SETTINGS
    if options.quick:
        options.seeds, options.settings = 1, tuple(s for s in SETTINGS if s.samples in (0, 3))
    if options.full:
        options.seeds, options.output = 10, PICTURE
    options.output = picture_in(options.output, "effective_receptive_field.png", parser)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, draw."""
    start = time.perf_counter()
    options = parse(argv)
    photo = chelsea()[22:278, 30:414]
    # Products this small gain nothing from more threads of BLAS.
    with threadpool_limits(1):
        maps = measure(photo, options.settings, options.seeds)
    columns, rows = table_of(maps)
    print_table(columns, rows)
    draw(options.output, photo, maps)
    if options.full:
        title = f"Effective receptive field on a photograph of {photo.shape[0]} x {photo.shape[1]} pixels"
        record("effective_receptive_field", {title: (columns, rows)}, seeds=options.seeds)
    print(f"{time.perf_counter() - start:.0f} s; the picture is in {options.output}")


if __name__ == "__main__":
    main()
