"""What a newcomer writes after reading the README and the site: a pipeline without a framework.

A small network with a dynamic filter learns to take noise off a photograph. Its training is stopped half way
and goes on; the weights go into a file; a service loads them and answers from several threads; an image that
lies in a file is done in tiles, into another file.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from skimage import data

import autodiff
import dynarray as dyn
from autodiff import files, metrics
from autodiff import functions as F
from autodiff.layers import DDF, Conv2d, ReLU, Sequential, hold_averages
from autodiff.optim import Adam
from autodiff.train import Trainer, minibatches

folder = Path("files")
folder.mkdir(exist_ok=True)
rng = np.random.default_rng(0)

# The photograph, with noise and without, and patches of both.
clean = data.camera()[::2, ::2].astype(np.float32)[None, None] / 255
noisy = clean + rng.normal(0, 0.1, clean.shape).astype(np.float32)
corners = rng.integers(0, clean.shape[-1] - 32, (64, 2))
patches, targets = (
    np.concatenate([image[:, :, y : y + 32, x : x + 32] for y, x in corners]) for image in (noisy, clean)
)
batches = minibatches(8, patches, targets)


def make():
    """The network, untrained; it predicts what to add to its input."""
    return Sequential(Conv2d(1, 8, 3, rng=1), ReLU(), DDF(8, kernel_size=5, rng=2), Conv2d(8, 1, 3, rng=3))


def trainer():
    """A training that has not begun."""
    network = make()
    return Trainer(network, Adam(network.parameters(), 1e-2), lambda net, x, y: F.mse(x + net(x), y))


# Train and save; go on from the file; and once more without a stop, to compare.
trainer().fit(batches, 3, checkpoint=folder / "training.safetensors", progress=False)
resumed, whole = trainer(), trainer()
resumed.load(folder / "training.safetensors")
resumed.fit(batches, 6, progress=False)
whole.fit(batches, 6, progress=False)
files.save(folder / "weights.safetensors", resumed.network.state_dict())

# Serve, from threads.
network = make().eval()
files.load_module(folder / "weights.safetensors", network)


def answer(request):
    """What the service says to an image (N, 1, H, W)."""
    return request + network(request).data


requests = [noisy[:, :, i : i + 64, i : i + 48] for i in range(0, 128, 16)]
one_by_one = [answer(request) for request in requests]
with ThreadPoolExecutor(4) as pool:
    from_threads = list(pool.map(answer, requests))

# A large image, in tiles from file to file.
source = np.lib.format.open_memmap(folder / "noisy.npy", "w+", np.float32, noisy.shape)
source[:] = noisy
correction = np.lib.format.open_memmap(folder / "correction.npy", "w+", np.float32, noisy.shape)
hold_averages(network, noisy)
dyn.tiles.apply(network, (source,), correction, tile=96, halo=autodiff.halo(network, (1, 1, 22, 26)))
at_once = network(noisy).data

before, after = (metrics.psnr(image, clean, data_range=1) for image in (noisy, noisy + correction))
print(f"{before:.1f} dB, after the network {after:.1f} dB")
