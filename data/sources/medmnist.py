"""MedMNIST: small medical pictures, two- and three-dimensional, in the .npz files that its authors publish."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ...core.errors import ConfigError
from ...core.examples import Examples
from ...core.validation import require
from ..values import fields_only, once
from .files import read_npz
from .named import in_folder, not_found

PICTURES = (
    "pathmnist",
    "chestmnist",
    "dermamnist",
    "octmnist",
    "pneumoniamnist",
    "retinamnist",
    "breastmnist",
    "bloodmnist",
    "tissuemnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
)
VOLUMES = (
    "organmnist3d",
    "nodulemnist3d",
    "adrenalmnist3d",
    "fracturemnist3d",
    "vesselmnist3d",
    "synapsemnist3d",
)
SIZES = (28, 64, 128, 224)


@dataclass(frozen=True)
class MedMnist:
    """A data set of MedMNIST v2 (Yang et al. 2023, https://doi.org/10.1038/s41597-022-01721-8).

    From pathmnist.npz, of another size pathmnist_64.npz, in the folder $UMBEL_DATA.

    Parameters
    ----------
    name
        "pathmnist", "bloodmnist", …, "organmnist3d".
    split
        The authors' own.
    size
        28, or 64, 128, 224 of MedMNIST+. x: float32 in 0..1, shape (n, size, size, 1 or 3), of a volume (n, size, size,
        size, 1). y: int32, shape (n,); with several labels for a picture (chestmnist) shape (n, labels), each 0 or 1.

    Raises
    ------
    ConfigError
        For a file that is missing, or is not of that format.
    """

    name: str
    split: Literal["train", "val", "test"] = "train"
    size: int = 28

    def __post_init__(self) -> None:
        known = (*PICTURES, *VOLUMES)
        require(self.name in known, f"expected name={self.name!r} in {', '.join(known)}")
        require(self.split in ("train", "val", "test"), f"expected split={self.split!r} in train, val, test")
        require(self.size in SIZES, f"expected size={self.size!r} in {', '.join(map(str, SIZES))}")

    __getstate__ = fields_only

    @property
    def file(self) -> str:
        """Name of the file, as its authors publish it."""
        return f"{self.name}.npz" if self.size == 28 else f"{self.name}_{self.size}.npz"

    @property
    def path(self) -> Path | None:
        """Path where the file is looked for; None without $UMBEL_DATA."""
        return in_folder(self.file)

    @once
    def load(self) -> Examples:
        """Return the examples of the split, in their original order."""
        if self.path is None or not self.path.is_file():
            raise not_found(self.file, "from https://medmnist.com: arrays train_images, train_labels, val_…, test_…")
        images, labels = read_npz(self.path, (f"{self.split}_images", f"{self.split}_labels"))
        axes = 3 if self.name in VOLUMES else 2
        sides = (self.size,) * axes
        is_whole = (
            images.dtype == np.uint8 and images.shape[1 : 1 + axes] == sides and images.ndim in (axes + 1, axes + 2)
        )
        is_whole = is_whole and labels.ndim == 2 and len(labels) == len(images) and labels.dtype.kind in "iu"
        if not is_whole:
            raise ConfigError(
                f"{self.path} is not {self.name}: its arrays are {images.dtype} {images.shape} and {labels.shape}; "
                "restore it"
            )
        x = images.reshape(len(images), *sides, -1).astype(np.float32)
        x /= 255
        y = labels.astype(np.int32)
        return Examples(x, y[:, 0] if y.shape[1] == 1 else y)
