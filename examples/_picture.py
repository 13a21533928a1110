"""What the pictures of several examples have in common."""

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image


def save_in_few_colours(figure: Figure, path: Path, dpi: int = 80) -> None:
    """A file of 256 colours: in more, noise takes much space."""
    figure.savefig(path, dpi=dpi)
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize()
    few.save(path, optimize=True)
