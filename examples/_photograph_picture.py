"""The pictures of photograph.py: a photograph blurred and restored, and one denoised by a guide."""

from pathlib import Path

import numpy as np
from _picture import save_in_few_colours
from matplotlib.figure import Figure
from skimage.metrics import peak_signal_noise_ratio

WITHOUT_NUMBER = ("sharp", "flash", "true")  # what others are compared with, or are made by


def caption(name: str, photo: np.ndarray, true: np.ndarray) -> str:
    """Its name, and how near it is to what is true."""
    return name if name in WITHOUT_NUMBER else f"{name}, {peak_signal_noise_ratio(true, photo):.1f} dB"


def draw_restored(path: Path, photos: dict[str, np.ndarray], sigma: np.ndarray) -> None:
    """Whole photographs above, the width of the blur on the first; below, the far corner of each."""
    figure = Figure(figsize=(2.4 * len(photos), 5.4), layout="constrained")
    axes = figure.subplots(2, len(photos))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    piece = tuple(slice(-size // 3, None) for size in sigma.shape)
    for axis, near, (name, photo) in zip(*axes, photos.items()):
        axis.imshow(photo, interpolation="nearest")
        axis.set_title(caption(name, photo, photos["sharp"]), fontsize=9)
        near.imshow(photo[piece], interpolation="nearest")
        for each in (axis, near):
            each.set(xticks=[], yticks=[])
    lines = axes[0, 0].contour(sigma, levels=(0.5, 1, 1.5, 2, 2.5), colors="white", linewidths=0.8)
    axes[0, 0].clabel(lines, fontsize=7)
    axes[0, 0].set_title("sharp; sigma of the blur, pixels", fontsize=9)
    save_in_few_colours(figure, path)


def draw_denoised(path: Path, photos: dict[str, np.ndarray]) -> None:
    """A row of pieces, with the PSNR of the whole."""
    names = list(photos)
    across = -(-len(names) // 2)
    figure = Figure(figsize=(2.4 * across, 5.4), layout="constrained")
    axes = figure.subplots(2, across)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names):
        axis.imshow(photos[name][:120, :120], interpolation="nearest")
        axis.set_title(caption(name, photos[name], photos["true"]), fontsize=9)
    save_in_few_colours(figure, path)
