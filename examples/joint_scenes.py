"""Joint upsampling on many scenes: depth and flow, learned filters against designed ones.

joint_upsampling.py learns on one scene. Here DDF-Up learns from scenes that are made of photographs without
end, and is asked to sharpen what it has not seen: depth and optical flow of made scenes of other photographs,
and the depth of a real one, the right third of Middlebury's motorcycle. A scene is a stack of layers: each
has an outline, a piece of a photograph, a slanted plane of depth, and an affine motion, so that both maps are
known exactly at every pixel. What is given is the grey image and the map, averaged over 4 x 4 pixels.

    bicubic            interpolation, without the image
    joint bilateral    means of what is near and of similar brightness (Kopf et al., 2007)
    guided             bilinear interpolation, in every window fitted to the image (He et al., 2010)
    DDF-Up             the network of joint_upsampling.py, one for depth and one for flow

The widths of the designed filters are those with the smallest error on made scenes of the photographs that
the network learns from.

    python examples/joint_scenes.py --quick     # does it run?
    python examples/joint_scenes.py             # two seeds
    python examples/joint_scenes.py --full      # five seeds; goes on where it was stopped

Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021; Scharstein et al., GCPR 2014, for the motorcycle.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from _flow_data import HELD_OUT, SIZE, TRAINING, photographs, random_layers
from _motorcycle import Scene, load, low_resolution
from _record import print_table, record, shown
from _study import Found, Key, add_options, finish_options, flatness, keeping, of, run, train
from joint_upsampling import Upsampler, interpolate, joint_bilateral, loss_of
from scipy.ndimage import uniform_filter

NAME = "joint_scenes"
SCALE, BATCH, RATE = 4, 4, 5e-3  # of maps: four scenes of depth, two of flow
TUNED_ON = 8  # scenes
# Which maps each test has, and whose network they are given to.
TESTS = {"made depth": "depth", "made flow": "flow", "motorcycle, depth": "depth"}
SPACES, COLOURS = (0.4, 0.6, 0.9, 1.4), (0.02, 0.05, 0.1, 0.2)
RADII, FLAT = (2, 4, 8), (1e-4, 1e-3, 1e-2)
Maps = list[Scene]  # a scene has as many as its quantity has components


def made(quantity: str, photos: Sequence[np.ndarray], rng: np.random.Generator) -> Maps:
    """The depth of a scene, or its flow along y and x, under its image."""
    grid = np.indices(SIZE).astype(float)
    image, maps = np.zeros(SIZE, np.float32), np.zeros((1 if quantity == "depth" else 2, *SIZE))
    for number, layer in enumerate(random_layers(photos, rng)):
        opacity = layer.paint(image)
        if quantity == "depth":
            slope = rng.normal(0, 0.03, 2)
            own = 3 * number + rng.uniform(0, 3) + np.tensordot(slope, grid - layer.centre[:, None, None], 1)
        else:
            own = layer.motion(grid) - grid
        maps = np.where(opacity >= 0.5, own, maps)
    image = 0.25 * image + rng.normal(0, 0.005, SIZE)
    return [scene_of(image, each) for each in maps]


def scene_of(image: np.ndarray, values: np.ndarray, valid: np.ndarray | None = None) -> Scene:
    """A map under a grey image, which counts as three colours."""
    photo = np.repeat(image[None].astype(np.float32), 3, axis=0)
    return Scene(photo, values.astype(np.float32), np.ones(image.shape, bool) if valid is None else valid)


def tests(count: int) -> dict[str, list[Maps]]:
    """What nothing was trained or tuned on."""
    photos, real = photographs(HELD_OUT), load()[1]
    grey = real.photo[0] - real.photo[0].mean()
    return {
        "made depth": [made("depth", photos, np.random.default_rng([7, i])) for i in range(count)],
        "made flow": [made("flow", photos, np.random.default_rng([8, i])) for i in range(count)],
        "motorcycle, depth": [[scene_of(grey, real.disparity, real.valid)]],
    }


# ---------------------------------------------------------------------------------------------------------
# Methods: a coarse map and the image to a fine map


def guided(low: np.ndarray, photo: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Bilinear interpolation, in every window replaced by the line of the image that fits it best."""
    image, first = photo[0].astype(float), interpolate(low, photo.shape[1:], 1).astype(float)
    mean = partial(uniform_filter, size=2 * radius + 1)
    slope = (mean(image * first) - mean(image) * mean(first)) / (mean(image**2) - mean(image) ** 2 + epsilon)
    return mean(slope) * image + mean(mean(first) - slope * mean(image))


def rmse(method: Callable[[np.ndarray, np.ndarray], np.ndarray], scenes: Sequence[Maps]) -> float:
    """Root mean square length of the error, over the known pixels of all scenes."""
    total, count = 0.0, 0
    for maps in scenes:
        for scene in maps:
            error = method(low_resolution(scene, SCALE), scene.photo) - scene.disparity
            total += float(np.square(error[scene.valid], dtype=np.float64).sum())
        count += int(maps[0].valid.sum())
    return float(np.sqrt(total / count))


def designed(quantity: str) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """The methods that do not learn, with their best widths."""
    photos = photographs(TRAINING)
    scenes = [made(quantity, photos, np.random.default_rng([9, i])) for i in range(TUNED_ON)]

    def best(make: Callable[..., Callable], *choices: Sequence[float]) -> Callable:
        return min((make(*chosen) for chosen in product(*choices)), key=lambda method: rmse(method, scenes))

    return {
        "bicubic": lambda low, photo: interpolate(low, photo.shape[1:], 3),
        "joint bilateral": best(
            lambda space, colour: lambda low, photo: joint_bilateral(low, photo, SCALE, space, colour),
            SPACES,
            COLOURS,
        ),
        "guided": best(lambda r, flat: lambda low, photo: guided(low, photo, r, flat), RADII, FLAT),
    }


# ---------------------------------------------------------------------------------------------------------
# The study


def job(quantity: str, seed: int, steps: int, count: int) -> dict[str, Any]:
    """One training."""
    network, photos = Upsampler(SCALE, np.random.default_rng(seed)), photographs(TRAINING)

    def loss(rng: np.random.Generator) -> Any:
        scenes: Maps = []
        while len(scenes) < BATCH:
            scenes += made(quantity, photos, rng)
        low = np.stack([low_resolution(scene, SCALE) for scene in scenes])[:, None]
        photo, values, valid = (np.stack(arrays) for arrays in zip(*scenes))
        return loss_of(network(low, photo), values[:, None], valid[:, None])

    losses = train(network, loss, steps, RATE, [seed, 1])
    own = {name: scenes for name, scenes in tests(count).items() if TESTS[name] == quantity}
    return {"losses": losses, **{name: rmse(network.upsample, scenes) for name, scenes in own.items()}}


def table(results: Mapping[Key, Found], count: int) -> tuple[list[str], list[list[str]]]:
    """Errors of every method; of DDF-Up also whether longer training might give more."""
    rows: dict[str, list[str]] = {}
    methods = {quantity: designed(quantity) for quantity in dict.fromkeys(TESTS.values())}
    for name, scenes in tests(count).items():
        for method, call in methods[TESTS[name]].items():
            rows.setdefault(method, [method]).append(f"{rmse(call, scenes):.3f}")
        found = [float(each[name]) for each in of(results, TESTS[name])]
        rows.setdefault("DDF-Up", ["DDF-Up"]).append(shown(found))
    falling = [f"{quantity} {flatness(of(results, quantity))}" for quantity in methods]
    for method, row in rows.items():
        row.append(", ".join(falling) if method == "DDF-Up" else "")
    return ["RMSE", *TESTS, "loss still falling, %"], list(rows.values())


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or go on, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser, NAME, steps=1000)
    options = finish_options(parser.parse_args(argv))
    count = 8 if options.quick else 40
    jobs = {
        (quantity, seed): (quantity, seed, options.steps, count)
        for seed in range(options.seeds)
        for quantity in dict.fromkeys(TESTS.values())
    }
    settings = {"steps": options.steps, "batch": BATCH, "rate": RATE, "scale": SCALE, "made scenes": count}
    kept = keeping(options, NAME)
    results = run(job, jobs, settings=settings, workers=options.workers, **kept)
    title = "A quarter of the resolution and an image: errors in the units of depth, and in pixels of flow"
    found = table(results, count)
    print_table(title, *found)
    if options.full:
        print(f"written: {record(NAME, {title: found}, seeds=options.seeds, **settings)}")


if __name__ == "__main__":
    main()
