"""Remove noise whose level changes over the image: ordinary convolutions, filter atoms, predicted kernels.

A filter that removes strong noise blurs where there is little. Where the level of noise changes from place to
place, and nobody says where, should not the filters change as well? Three small networks of equally many
parameters learn the same task, blindly, from the same patches:

- `Residual` of ordinary 5 x 5 convolutions: the same filters everywhere, and what it predicts is added;
- the same network with `AtomConv` in place of these convolutions: at each pixel p, output channel o filters
  channel c by ``sum_m coefficients[o,c,m] * atoms[m,:,:,p]``, and another small network chooses the atoms.
  One with constant atoms is an ordinary convolution, so that what is gained or lost is due to the choice;
- `KernelPrediction`: ordinary convolutions that end in one 9 x 9 filter per pixel, positive and of sum 1, by
  which `local_filter2d` averages the noisy image itself: y[p] = sum_ab softmax(f[:,p])[a,b] * x[p + (a,b)].

The photographs come with scikit-image; seven are trained on, four others are judged on. The noise is white
and Gaussian, its standard deviation between 5 and 60 of 255 levels. Besides quality, the example looks into
the atoms that were learned: how much of their variation from pixel to pixel do level of noise, brightness and
contrast explain? To that end each entry of the atoms is fitted by a quadratic function of these.

    python examples/denoising.py             # two seeds
    python examples/denoising.py --full      # five seeds; goes on where it was stopped

Wang et al., "Adaptive Convolutions with Per-pixel Dynamic Filter Atom", ICCV 2021; Bako et al.,
"Kernel-predicting convolutional networks for denoising Monte Carlo renderings", SIGGRAPH 2017.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _denoising_picture import draw_maps, draw_results
from _photographs import TRAINING, Noisy, held_out, patches, photograph
from _record import print_table, record, spread
from _study import Found, Key, add_keeping, flatness, in_parts, keeping, of, run
from scipy.ndimage import uniform_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from autodiff import Tape, files
from autodiff import functions as F
from autodiff.layers import AtomConv, BatchNorm2d, Conv2d, Module, ReLU, Sequential
from autodiff.networks import summary
from autodiff.optim import Adam, cosine_schedule

NAME = "denoising"
PICTURES = Path(__file__).parents[1] / "docs" / "images"
FEATURES, DEPTH, KERNEL = 24, 3, 5  # of the network of ordinary convolutions
WINDOW = 9  # of the predicted kernels
# Of 5e-3, 1e-2 and 2e-2 the best for each method, or as good to 0.02 dB, on patches of training photographs.
RATES = {"convolutions": 5e-3, "filter atoms": 5e-3, "predicted kernels": 1e-2}

# ---------------------------------------------------------------------------------------------------------
# The networks


def trunk(layer: Callable[[], Module], features: int, rng: np.random.Generator) -> list:
    """From the image to features: a convolution, then `DEPTH` times a layer, normalised, rectified."""
    blocks = [(layer(), BatchNorm2d(features), ReLU()) for _ in range(DEPTH)]
    return [Conv2d(1, features, 3, rng=rng), ReLU(), *(part for block in blocks for part in block)]


def centred(image):
    """Grey values, 0 to 1, as a network likes them: with mean near 0."""
    return 4 * (image - 0.5)


class Residual(Module):
    """The image plus what the network finds missing."""

    def __init__(self, layer: Callable[[], Module], features: int, rng: np.random.Generator) -> None:
        self.features = Sequential(*trunk(layer, features, rng))
        self.last = Conv2d(features, 1, 3, rng=rng)
        # Begin close to the noisy image.
        self.last.weight.data *= 0.02
        self.last.bias.data *= 0

    def forward(self, noisy):
        """(N, 1, H, W) -> (N, 1, H, W)."""
        return noisy + self.last(self.features(centred(noisy)))


class KernelPrediction(Module):
    """The noisy image averaged over a window, with weights that the network finds for each pixel."""

    def __init__(self, features: int, rng: np.random.Generator) -> None:
        self.features = Sequential(*trunk(lambda: Conv2d(features, features, KERNEL, rng=rng), features, rng))
        self.last = Conv2d(features, WINDOW**2, 3, rng=rng)

    def kernels(self, noisy):
        """(N, 1, window, window, H, W), each positive and of sum 1."""
        n, _, h, w = noisy.shape
        logits = self.last(self.features(centred(noisy)))
        return F.softmax(logits, axis=1).reshape((n, 1, WINDOW, WINDOW, h, w))

    def forward(self, noisy):
        """(N, 1, H, W) -> (N, 1, H, W)."""
        return F.local_filter2d(noisy, self.kernels(noisy))


def ordinary(rng: np.random.Generator) -> Residual:
    """The network that the others are compared with."""
    return Residual(lambda: Conv2d(FEATURES, FEATURES, KERNEL, rng=rng), FEATURES, rng)


def with_atoms(rng: np.random.Generator, hidden: int) -> Residual:
    """The same, with atoms that `hidden` channels choose."""

    def layer() -> AtomConv:
        return AtomConv(FEATURES, FEATURES, KERNEL, hidden_channels=hidden, rng=rng)

    return Residual(layer, FEATURES, rng)


def nearest(
    make: Callable[[np.random.Generator, int], Module], budget: int
) -> Callable[[np.random.Generator], Module]:
    """What makes a network with about as many parameters as `budget`, by the size that `make` takes."""
    sizes = range(4, 40)
    differences = [abs(make(np.random.default_rng(0), size).num_parameters - budget) for size in sizes]
    best = sizes[int(np.argmin(differences))]
    return lambda rng: make(rng, best)


def methods() -> dict[str, Callable[[np.random.Generator], Module]]:
    """What makes the network of each method: with as many parameters as the first, or nearly so."""
    budget = ordinary(np.random.default_rng(0)).num_parameters
    return {
        "convolutions": ordinary,
        "filter atoms": nearest(with_atoms, budget),
        "predicted kernels": nearest(lambda rng, features: KernelPrediction(features, rng), budget),
    }


# ---------------------------------------------------------------------------------------------------------
# Training


class Sizes(NamedTuple):
    """What numbers depend on beside method and seed."""

    steps: int
    batch: int
    size: int  # of the patches
    side: int | None  # of what is judged of each photograph


def train(method: str, seed: int, sizes: Sizes) -> tuple[Module, np.ndarray]:
    """A network and its losses; patches and noise depend on the seed alone: all methods see the same."""
    network = methods()[method](np.random.default_rng([seed, 0]))
    rng = np.random.default_rng([seed, 1])
    photographs = [photograph(name) for name in TRAINING]
    optimizer = Adam(network.parameters())
    schedule = cosine_schedule(RATES[method], sizes.steps, warmup=10)
    losses = np.empty(sizes.steps)
    for step in range(sizes.steps):
        noisy, clean = patches(photographs, sizes.batch, sizes.size, rng)
        with Tape() as tape:
            loss = F.mean(F.square(network(noisy) - clean))
        losses[step] = float(loss)
        optimizer.lr = schedule(step)
        optimizer.step(tape.gradient(loss, optimizer.parameters))
    return network.eval(), in_parts(1e3 * losses)


def judged(sizes: Sizes) -> dict[str, Noisy]:
    """The photographs that nothing is trained on, or a corner of each."""
    corner = slice(sizes.side)
    return {name: Noisy(*(array[corner, corner] for array in scene)) for name, scene in held_out().items()}


def job(method: str, seed: int, sizes: Sizes, folder: Path | None) -> dict[str, Any]:
    """One training: scores, losses, and of atoms what explains them. Its network goes into the folder."""
    network, losses = train(method, seed, sizes)
    scenes = judged(sizes)
    found = scores({name: denoised(network, scene.noisy) for name, scene in scenes.items()}, scenes)
    if method == "filter atoms":
        found |= explanations(network, scenes)
    if folder is not None:
        files.save(network_file(method, sizes, folder), network.state_dict())
    return {"losses": losses, **found}


def network_file(method: str, sizes: Sizes, folder: Path) -> Path:
    """Where a network is until the pictures are drawn."""
    return folder / f"{method.replace(' ', '-')}-{'-'.join(map(str, sizes))}.safetensors"


def network_of(method: str, sizes: Sizes, folder: Path) -> Module:
    """That of the first seed; it is trained again where only its numbers were kept."""
    path = network_file(method, sizes, folder)
    if not path.exists():
        return train(method, 0, sizes)[0]
    network = methods()[method](np.random.default_rng(0))
    network.load_state_dict(files.load(path)[0])
    return network.eval()


# ---------------------------------------------------------------------------------------------------------
# The comparison


def denoised(network: Module, noisy: np.ndarray) -> np.ndarray:
    """What a network makes of an image (H, W)."""
    return np.clip(F.stop_gradient(network(noisy[None, None]))[0, 0], 0, 1)


def scores(results: dict[str, np.ndarray], scenes: dict[str, Noisy]) -> dict[str, float]:
    """PSNR and SSIM, means over the images, and PSNR of the pixels with the least and the most noise."""
    pairs = [(scenes[name].clean, result) for name, result in results.items()]
    levels = np.concatenate([scenes[name].level.ravel() for name in results])
    errors = np.concatenate([np.square(clean - result).ravel() for clean, result in pairs])
    low, high = np.quantile(levels, (1 / 3, 2 / 3))
    return {
        "PSNR": float(np.mean([peak_signal_noise_ratio(*pair, data_range=1) for pair in pairs])),
        "SSIM": float(np.mean([structural_similarity(*pair, data_range=1) for pair in pairs])),
        "least noise": float(-10 * np.log10(errors[levels <= low].mean())),
        "most noise": float(-10 * np.log10(errors[levels >= high].mean())),
    }


Rows = list[list[str]]


def quality_table(results: Mapping[Key, Found], scenes: dict[str, Noisy]) -> tuple[list[str], Rows]:
    """Scores of every method, and of the noisy images; the gain compares networks of the same seed."""
    columns = ["method", "parameters", "multiply-adds a pixel", "PSNR (dB)", "gain (dB)", "SSIM"]
    columns += ["PSNR, least noise", "PSNR, most noise", "loss still falling, %"]
    noisy = scores({name: np.clip(s.noisy, 0, 1) for name, s in scenes.items()}, scenes)
    rows = [["noisy", "", "", f"{noisy['PSNR']:.2f}", "", f"{noisy['SSIM']:.3f}"]]
    rows[0] += [f"{noisy['least noise']:.2f}", f"{noisy['most noise']:.2f}", ""]
    base = [float(each["PSNR"]) for each in of(results, "convolutions")]
    for method, make in methods().items():
        found = of(results, method)
        cost = summary(make(np.random.default_rng(0)), (1, 1, 32, 32))
        values = {name: [float(each[name]) for each in found] for name in noisy}
        gains = [score - other for score, other in zip(values["PSNR"], base, strict=True)]
        rows.append(
            [method, f"{cost.parameters:,}", f"{cost.multiply_adds // 32**2:,}"]
            + [spread(values["PSNR"], 2)]
            + ["" if method == "convolutions" else spread(gains, 2)]
            + [spread(values["SSIM"])]
            + [spread(values[part], 2) for part in ("least noise", "most noise")]
            + [flatness(found)]
        )
    return columns, rows


# ---------------------------------------------------------------------------------------------------------
# What the atoms look at


def atoms_of(network: Residual, noisy: np.ndarray) -> list[np.ndarray]:
    """The atoms that each layer chooses for an image: (M*k*k, H, W)."""
    found, x = [], centred(noisy[None, None])
    for layer in network.features.layers:
        if isinstance(layer, AtomConv):
            found.append(F.stop_gradient(layer.atoms(x)).reshape(-1, *noisy.shape))
        x = layer(x)
    return found


def surroundings(scene: Noisy) -> dict[str, np.ndarray]:
    """What an atom could depend on: level of noise, mean and standard deviation of 5 x 5 true pixels."""
    mean = uniform_filter(scene.clean, KERNEL)
    variance = uniform_filter(np.square(scene.clean), KERNEL) - np.square(mean)
    contrast = np.log(np.sqrt(np.maximum(variance, 0)) + 1 / 255)
    return {"level of noise": np.log(scene.level), "brightness": mean, "contrast": contrast}


def explained(maps: np.ndarray, causes: Sequence[np.ndarray]) -> float:
    """Percentage of the variance of maps (maps, pixels) that a quadratic function of the causes explains."""
    causes = [(cause - cause.mean()) / cause.std() for cause in causes]
    products = [a * b for i, a in enumerate(causes) for b in causes[: i + 1]]
    design = np.stack([np.ones_like(causes[0]), *causes, *products], axis=1)
    maps = maps - maps.mean(axis=1, keepdims=True)
    fitted = design @ np.linalg.lstsq(design, maps.T, rcond=None)[0]
    return float(100 * (1 - np.square(maps.T - fitted).sum() / np.square(maps).sum()))


def explanations(network: Any, scenes: dict[str, Noisy]) -> dict[str, float]:
    """For each layer of a network with atoms, how much of their variation each cause explains, in percent."""
    around = [surroundings(scene) for scene in scenes.values()]
    causes = {name: np.concatenate([a[name].ravel()[::7] for a in around]) for name in around[0]}
    images, found = [atoms_of(network, scene.noisy) for scene in scenes.values()], {}
    for layer, parts in enumerate(zip(*images), start=1):
        maps = np.concatenate([part.reshape(len(part), -1)[:, ::7] for part in parts], axis=1)
        for name, cause in causes.items():
            found[f"layer {layer}, {name}"] = explained(maps, [cause])
        found[f"layer {layer}, all three"] = explained(maps, list(causes.values()))
    return found


def causes_table(results: Sequence[Found]) -> tuple[list[str], Rows]:
    """`explanations` of all seeds."""
    columns = ["level of noise", "brightness", "contrast", "all three"]
    rows = [
        [f"{n}", *(spread([float(each[f"layer {n}, {name}"]) for each in results], 1) for name in columns)]
        for n in range(1, DEPTH + 1)
    ]
    return ["layer", *columns], rows


# ---------------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="networks of each method, at least 2")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder of the pictures")
    parser.add_argument("--quick", action="store_true", help="a few steps on small patches: does it run?")
    parser.add_argument("--full", action="store_true", help="five seeds, recorded for the documentation")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time (default: %(default)s)")
    add_keeping(parser, NAME)
    options = parser.parse_args(argv)
    options.batch, options.size, options.side = 8, 40, None
    if options.quick:
        options.steps, options.batch, options.size, options.side, options.workers = 20, 4, 32, 96, 1
    if options.full:
        options.seeds, options.output = 5, PICTURES
        options.steps, options.batch = 1500, 4
    if options.seeds < 2:
        parser.error("--seeds: a spread needs at least two")
    if not options.output.is_dir():
        parser.error(f"--output: there is no folder {options.output}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Train, compare, print, draw."""
    start = time.perf_counter()
    options = parse(argv)
    sizes = Sizes(*(getattr(options, name) for name in Sizes._fields))
    scenes = judged(sizes)
    with tempfile.TemporaryDirectory() as spare:
        folder = Path(f"{NAME}.parts") if options.full else Path(spare)
        folder.mkdir(exist_ok=True)
        jobs = {
            (method, seed): (method, seed, sizes, None if seed else folder)
            for seed in range(options.seeds)
            for method in RATES
        }
        results = run(job, jobs, workers=options.workers, **keeping(options, NAME))
        networks: dict[str, Any] = {method: network_of(method, sizes, folder) for method in RATES}
    tables = {
        f"Four held-out photographs, {options.seeds} seeds": quality_table(results, scenes),
        "Variation of the atoms that is explained (%)": causes_table(of(results, "filter atoms")),
    }
    for title, table in tables.items():
        print_table(title, *table)
    drawn = {
        method: {name: denoised(network, scene.noisy) for name, scene in scenes.items()}
        for method, network in networks.items()
    }
    draw_results(options.output / "denoising.png", scenes, drawn)
    name = "coffee"
    kernels = networks["predicted kernels"].kernels(scenes[name].noisy[None, None])
    atoms = atoms_of(networks["filter atoms"], scenes[name].noisy)
    draw_maps(options.output / "denoising_maps.png", scenes[name], atoms, F.stop_gradient(kernels)[0, 0])
    if options.full:
        settings = {name: getattr(options, name) for name in ("seeds", "steps", "batch", "size")}
        rates = ", ".join(f"{rate:g} ({method})" for method, rate in RATES.items())
        record(NAME, tables, **settings, **{"learning rates": rates})
    print(f"\n{time.perf_counter() - start:.0f} s; pictures: denoising.png, denoising_maps.png")


if __name__ == "__main__":
    main()
