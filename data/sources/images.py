"""A folder of pictures, one sub-folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...core.errors import ConfigError
from ...core.examples import Examples
from ...core.validation import lacking, require, require_count
from ..encoding import checked_classes, class_numbers
from ..values import fields_only, once
from .files import optional_import

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # greys of more than eight bits
MOST_16_BIT = 65535


@dataclass(frozen=True)
class ImageFolder:
    """Pictures in `path/CLASS/NAME.png` (or jpeg, bmp, gif, tiff, webp), read with Pillow.

    Names that begin with a dot are skipped.

    Parameters
    ----------
    size
        (height, width) that every picture is resized to, bilinearly.
    channels
        3 for RGB, 1 for grey, 4 for RGBA. Pixels of 8 and of 16 bits are scaled to 0..1; those that are floats must be
        in 0..1. Where channels has no place for transparency, it is left out.
    classes
        The names of the classes, in the order of their numbers. None: labels are the names of the sub-folders, which a
        population numbers in the sorted order of all clients' folders.

    Raises
    ------
    ConfigError
        For a missing folder, one without pictures, one that is none of the classes, a picture that does not read, that
        has several pages, or whose pixels have no scale, or Pillow not installed.
    """

    path: str | Path
    size: tuple[int, int]
    channels: Literal[1, 3, 4] = 3
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        require(len(self.size) == 2, f"expected size={self.size!r} to be (height, width)")
        for side in self.size:
            require_count("size", side)
        require(self.channels in (1, 3, 4), f"expected channels={self.channels!r} in 1, 3, 4")
        object.__setattr__(self, "classes", checked_classes(self.classes))

    __getstate__ = fields_only

    def class_names(self) -> list[str]:
        """Return the classes that were given, or else the names of the sub-folders, sorted."""
        return list(self.classes) if self.classes else self._folders()

    @once
    def load(self) -> Examples:
        """Read x, float32 in 0..1, shape (pictures, height, width, channels), and y, the pictures' classes.

        y: names of classes, or int32 of `classes`.
        """
        pillow = optional_import("PIL.Image", extra="images")
        files = [
            (name, file)
            for name in self._folders()
            for file in sorted((Path(self.path) / name).iterdir())
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        ]
        require(bool(files), f"no pictures in the sub-folders of {self.path}: expected {self.path}/CLASS/NAME.png")
        names = np.array([name for name, _ in files])
        y = names if not self.classes else class_numbers(names, tuple(self.class_names()), str(self.path))
        x = np.empty((len(files), *self.size, self.channels), np.float32)
        for row, (_, file) in enumerate(files):
            x[row] = self._read(pillow, file)
        return Examples(x, y)

    def _folders(self) -> list[str]:
        require(Path(self.path).is_dir(), f"no folder at {self.path}: put it there, or correct path")
        return sorted(one.name for one in Path(self.path).iterdir() if one.is_dir() and not one.name.startswith("."))

    def _read(self, pillow: Any, file: Path) -> np.ndarray:
        """Read one picture, 0..1: float32, shape (height, width, channels)."""
        height, width = self.size
        try:
            with pillow.open(file) as picture:
                # A phone's JPEG (MPO) has its picture first, and previews of it after.
                pages = 1 if picture.format == "MPO" else (1 if lacking(picture, ("n_frames",)) else picture.n_frames)
                require(pages == 1, f"{file} holds {pages} pictures: make each a file of its own")
                is_deep = picture.mode in DEEP_MODES
                plain = _deep_greys(pillow, picture, file) if is_deep else picture.convert(MODES[self.channels])
                pixels = np.asarray(plain.resize((width, height), pillow.Resampling.BILINEAR), np.float32)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
            raise ConfigError(f"{file} does not read as a picture ({error}): restore or remove it") from error
        pixels = pixels.reshape(height, width, -1)
        return self._in_channels(pixels) if is_deep else pixels / np.float32(255)

    def _in_channels(self, greys: np.ndarray) -> np.ndarray:
        """Return greys as the channels asked for; opaque."""
        colours = np.repeat(greys, min(self.channels, 3), axis=2)
        return colours if self.channels != 4 else np.concatenate([colours, np.ones_like(greys)], axis=2)


def _deep_greys(pillow: Any, picture: Any, file: Path) -> Any:
    """Return a grey picture of more than eight bits as floats in 0..1: Pillow's own conversion to 8 bits would cut.

    Errors: ConfigError for pixels whose scale nobody can know.
    """
    greys = np.asarray(picture).astype(np.float32)
    if picture.mode == "F":
        is_scaled = bool(np.isfinite(greys).all() and greys.min() >= 0 and greys.max() <= 1)
        require(is_scaled, f"{file} has floats from {greys.min():g} to {greys.max():g} as pixels: scale them to 0..1")
        return pillow.fromarray(greys)
    # Pillow before 12 reads PNGs of 16 bits as whole numbers of 32.
    is_16_bit = picture.mode != "I" or picture.format in ("PNG", "PPM")
    require(is_16_bit, f"{file} has whole numbers of 32 bits as pixels, which have no scale: save it with 16 bits")
    return pillow.fromarray(greys / np.float32(MOST_16_BIT))
