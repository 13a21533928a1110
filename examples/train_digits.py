"""The shortest training: a small network learns to read handwritten digits, in seconds, without a GPU.

The 1,797 digits of 8 x 8 pixels are part of scikit-learn. One in five is held out and never trained on. What
happens to each batch is four lines, in `autodiff.train`:

    with Tape() as tape:                                               # record
        value = loss(network, *batch)                                  # what the network got wrong
    grads = tape.gradient(value, optimizer.parameters)                 # how that changes with every parameter
    optimizer.step(grads)                                              # a step downhill

    python examples/train_digits.py
    python examples/train_digits.py --checkpoint digits.safetensors    # stop it (Ctrl-C), start it again
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

from autodiff import functions as F
from autodiff.layers import BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential
from autodiff.networks import summary
from autodiff.optim import AdamW, cosine_schedule
from autodiff.train import Trainer, minibatches

EPOCHS = 15


def load(seed: int) -> list[np.ndarray]:
    """Images (N, 1, 8, 8) from 0 to 1 and labels (N,): to train on, and held out."""
    digits = load_digits()
    images = digits.images[:, None].astype(np.float32) / 16
    parts = train_test_split(images, digits.target, test_size=0.2, stratify=digits.target, random_state=seed)
    train_images, test_images, train_labels, test_labels = parts
    return [train_images, train_labels, test_images, test_labels]


def small_network(seed: int) -> Sequential:
    """Three convolutions, with half the resolution after the second, and a linear layer."""
    rng = np.random.default_rng(seed)
    return Sequential(
        Conv2d(1, 32, 3, bias=False, rng=rng),
        BatchNorm2d(32),
        ReLU(),
        Conv2d(32, 32, 3, bias=False, rng=rng),
        BatchNorm2d(32),
        ReLU(),
        MaxPool2d(2),
        Conv2d(32, 64, 3, bias=False, rng=rng),
        BatchNorm2d(64),
        ReLU(),
        Flatten(),
        Linear(64 * 4 * 4, 10, rng=rng),
    )


def shifted(batches, rng: np.random.Generator):
    """Batches whose images are moved by up to one pixel: a digit stays the same digit."""
    for images, labels in batches(rng):
        dy, dx = rng.integers(0, 3, 2)
        padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
        yield padded[:, :, dy : dy + 8, dx : dx + 8], labels


def loss(network: Module, images: np.ndarray, labels: np.ndarray):
    """How little the network believed in the right digits."""
    return F.cross_entropy(network(images), labels)


def main(argv: Sequence[str] | None = None) -> None:
    """Train and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--until", type=int, default=EPOCHS, help=f"stop after this epoch, of {EPOCHS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--checkpoint", type=Path, help="written after each epoch; if it exists, go on from it"
    )
    options = parser.parse_args(argv)
    start = time.perf_counter()

    images, labels, test_images, test_labels = load(options.seed)
    network = small_network(options.seed)
    print(summary(network, (1, 1, 8, 8)))

    def evaluate(network: Module) -> dict[str, float]:
        return {"accuracy": np.mean(network(test_images).data.argmax(1) == test_labels)}

    draw = minibatches(64, images, labels)
    steps = EPOCHS * -(-len(images) // 64)
    optimizer = AdamW(network.parameters(), weight_decay=0.05)
    trainer = Trainer(network, optimizer, loss, schedule=cosine_schedule(3e-3, steps), seed=options.seed)
    if options.checkpoint and options.checkpoint.exists():
        trainer.load(options.checkpoint)
        print(f"going on after epoch {trainer.epoch}")
    # Matrices this small gain nothing from more threads of BLAS, which wait for each other while others work.
    with threadpool_limits(1):
        trainer.fit(
            lambda rng: shifted(draw, rng), options.until, evaluate=evaluate, checkpoint=options.checkpoint
        )
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
