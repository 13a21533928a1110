"""Memory for time: what the tape keeps, and what it does not have to keep.

The backward pass reads what the forward pass computed, so the tape keeps it: memory grows with every layer.
A checkpoint keeps nothing of what happens inside a piece of the network but what goes into it, and runs the
piece again when the backward pass comes to it. With n layers in pieces of k, about n/k inputs are kept, and
the insides of one piece at a time: n/k + m*k results, if the tape keeps m for each layer. That is smallest at
k = sqrt(n/m), and costs one more forward pass.

Pieces can be cut in turn. Halves of halves of halves ... keep only about log2(n) inputs, and run each layer
about log2(n) times.

This script trains nothing: it takes one gradient of a network of 48 layers in each of these ways, measures
memory and time, checks that the gradients are the same to the bit, and draws the memory over the passes.

    python examples/checkpointing.py
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from autodiff import Tape, Variable, checkpoint, differentiable
from autodiff import functions as F
from autodiff.layers import BatchNorm2d, Conv2d, Module, ReLU, Sequential

LAYERS = 48
MEGABYTE = 2**20


class Residual(Module):
    """Convolution, normalisation, activation, and a way around them."""

    def __init__(self, channels: int, rng: np.random.Generator) -> None:
        self.body = Sequential(
            Conv2d(channels, channels, 3, bias=False, rng=rng), BatchNorm2d(channels), ReLU()
        )

    def forward(self, x):
        """A little more than x."""
        return x + 0.2 * self.body(x)


# ---------------------------------------------------------------------------------------------------------
# Four ways to run a chain of layers


def plain(layers: Sequence[Callable], x):
    """Everything is kept."""
    for layer in layers:
        x = layer(x)
    return x


def in_pieces(size: int) -> Callable:
    """Of each piece of `size` layers, what goes into it is kept."""

    def run(layers: Sequence[Callable], x):
        for start in range(0, len(layers), size):
            piece = layers[start : start + size]
            x = checkpoint(lambda x, piece=piece: plain(piece, x))(x)
        return x

    return run


def in_halves(layers: Sequence[Callable], x):
    """Of each half what goes into it, and of each half of it, when it is run again."""
    if len(layers) == 1:
        return layers[0](x)
    middle = len(layers) // 2
    x = checkpoint(lambda x: in_halves(layers[:middle], x))(x)
    return checkpoint(lambda x: in_halves(layers[middle:], x))(x)


# ---------------------------------------------------------------------------------------------------------
# Measuring


class Measurement(NamedTuple):
    """One gradient: what it took, and what it is."""

    peak: float  # megabytes above those before
    seconds: float
    memory: list[float]  # megabytes above those before, each time a layer is passed in either direction
    turn: int  # the first of them in the backward pass
    gradients: list[np.ndarray]


def observed(layer: Callable, note: Callable[[], None]) -> Callable:
    """A layer that calls `note` whenever values or gradients pass it."""

    def on_the_way_back(grad: Any, saved: Any) -> Any:
        note()
        return grad

    @differentiable("x", x=("", on_the_way_back))
    def gate(x):
        note()
        return x

    return lambda x: gate(layer(x))


def gradient(forward: Callable, parameters: list[Variable]) -> list[np.ndarray]:
    """Of the mean square of what comes out, with respect to every parameter."""
    with Tape() as tape:
        loss = F.mean(F.square(forward()))
    return tape.gradient(loss, parameters)


def measure(run: Callable, network: Sequential, image: np.ndarray) -> Measurement:
    """Time without looking, then memory, since looking takes time."""
    parameters = network.parameters()
    seconds = np.inf
    for _ in range(3):
        start = time.perf_counter()
        gradient(lambda: run(network.layers, Variable(image)), parameters)
        seconds = min(seconds, time.perf_counter() - start)

    memory: list[float] = []

    def note() -> None:
        memory.append((tracemalloc.get_traced_memory()[0] - before) / MEGABYTE)

    def forward() -> Variable:
        nonlocal turn
        result = run([observed(layer, note) for layer in network.layers], Variable(image))
        turn = len(memory)
        return result

    turn = 0
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    grads = gradient(forward, parameters)
    peak = (tracemalloc.get_traced_memory()[1] - before) / MEGABYTE
    tracemalloc.stop()
    return Measurement(peak, seconds, memory, turn, grads)


def draw(path: Path, results: dict[str, Measurement]) -> None:
    """Memory from the first layer forward to the first layer backward."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axis = figure.subplots()
    for name, result in results.items():
        steps = np.arange(len(result.memory)) - result.turn
        (line,) = axis.plot(
            steps, result.memory, label=f"{name}: {result.peak:.0f} MB, {result.seconds:.2f} s"
        )
        axis.fill_between(steps, result.memory, alpha=0.1, color=line.get_color())
    axis.axvline(0, color="0.6", linewidth=0.8)
    axis.set(
        xlabel="layers passed, before and after the turn (those run again count too)",
        ylabel="memory, MB",
        title=f"One gradient of {LAYERS} layers",
        ylim=(0, None),
    )
    axis.legend()
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, compare, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("checkpointing.png"), help="the picture")
    options = parser.parse_args(argv)

    rng = np.random.default_rng(0)
    network = Sequential(*(Residual(16, rng) for _ in range(LAYERS)))
    image = rng.standard_normal((2, 16, 64, 64)).astype(np.float32)
    print(f"{LAYERS} layers; the result of each is {image.nbytes / MEGABYTE:.1f} MB\n")
    with Tape() as tape:
        network[0](Variable(image))
    tape.show()

    results = {"plain": measure(plain, network, image)}
    for size in (2, 4, 6, 12, 24):
        results[f"pieces of {size}"] = measure(in_pieces(size), network, image)
    results["halves of halves"] = measure(in_halves, network, image)

    first = results["plain"]
    print(f"\n{'':<18} {'peak memory':>12} {'of plain':>9} {'time':>8} {'of plain':>9}   gradients")
    for name, result in results.items():
        same = all(np.array_equal(a, b) for a, b in zip(result.gradients, first.gradients, strict=True))
        memory, seconds = result.peak / first.peak, result.seconds / first.seconds
        print(
            f"{name:<18} {result.peak:>9.1f} MB {memory:>9.2f} {result.seconds:>6.2f} s {seconds:>9.2f}   "
            f"{'the same bits' if same else 'DIFFER'}"
        )
    chosen = ("plain", "pieces of 24", "pieces of 4", "halves of halves")
    draw(options.output, {name: results[name] for name in chosen})
    print(f"\nthe picture is in {options.output}")


if __name__ == "__main__":
    main()
