"""A folder of pictures, one sub-folder per class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.errors import ConfigError
from ..core.examples import Examples
from ..core.validation import require, require_count
from .sources import optional_import
from .values import fields_only, once

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))


@dataclass(frozen=True)
class ImageFolder:
    """Pictures in `path/CLASS/NAME.png` (or jpeg, bmp, gif, tiff, webp), read with Pillow.

    size: (height, width) that every picture is resized to, bilinearly.
    channels: 3 for RGB, 1 for grey, 4 for RGBA.
    Labels number the sub-folders in sorted order; names that begin with a dot are skipped. Errors: ConfigError for a
    missing folder, one without pictures, a picture that does not read, or Pillow not installed.
    """

    path: str | Path
    size: tuple[int, int]
    channels: Literal[1, 3, 4] = 3

    def __post_init__(self) -> None:
        require(len(self.size) == 2, f"expected size={self.size!r} to be (height, width)")
        for side in self.size:
            require_count("size", side)
        require(self.channels in (1, 3, 4), f"expected channels={self.channels!r} in 1, 3, 4")

    __getstate__ = fields_only

    def class_names(self) -> list[str]:
        """The sub-folders, in the order of their labels."""
        require(Path(self.path).is_dir(), f"no folder at {self.path}: put it there, or correct path")
        return sorted(one.name for one in Path(self.path).iterdir() if one.is_dir() and not one.name.startswith("."))

    @once
    def load(self) -> Examples:
        """x float32 in 0..1, shape (pictures, height, width, channels); y int32."""
        pillow = optional_import("PIL.Image", extra="images")
        files = [
            (label, file)
            for label, name in enumerate(self.class_names())
            for file in sorted((Path(self.path) / name).iterdir())
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        ]
        require(bool(files), f"no pictures in the sub-folders of {self.path}: expected {self.path}/CLASS/NAME.png")
        x = np.empty((len(files), *self.size, self.channels), np.float32)
        for row, (_, file) in enumerate(files):
            x[row] = self._read(pillow, file)
        x /= 255
        return Examples(x, np.array([label for label, _ in files], np.int32))

    def _read(self, pillow: Any, file: Path) -> np.ndarray:
        """One picture, 0..255."""
        height, width = self.size
        try:
            with pillow.open(file) as picture:
                mode = {1: "L", 3: "RGB", 4: "RGBA"}[self.channels]
                pixels = np.asarray(picture.convert(mode).resize((width, height), pillow.Resampling.BILINEAR))
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
            raise ConfigError(f"{file} does not read as a picture ({error}): restore or remove it") from error
        return pixels.reshape(height, width, self.channels)
