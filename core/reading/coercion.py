"""Conversion of what people bring to plain NumPy arrays: frames, tensors, sparse matrices, arrays of Python objects.

Each conversion is exact, or refused with a sentence that names the remedy: a wrong number is worse than none.
No library is imported here: foreign values are known by their methods.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from ..errors import ConfigError
from ..validation import lacking

MEMORY_FRACTION = 1 / 4  # share of the machine's memory that a data set may take to be held whole
NUMBER_KINDS = "biuf"
TEXT_TYPES = (str, bytes)


def as_array(value: Any, name: str = "an array") -> np.ndarray:
    """Return value as a plain array; memory-mapped arrays stay on disk, and plain arrays are returned as they are.

    name: what the value is to its reader, for messages.
    Errors: ConfigError for a value that is not an array, or whose meaning NumPy would lose: ragged rows, masked
    entries, dates, records, missing values or several types among Python objects, a text column in a frame of numbers.
    """
    if isinstance(value, np.memmap) or (type(value) is np.ndarray and value.dtype.kind in "biufUSc"):
        return value
    if is_frame(value):
        return _of_frame(value, name)
    if not lacking(value, ("toarray", "nnz")):
        return _of_sparse_matrix(value, name)
    if not lacking(value, ("row_splits",)):
        raise ConfigError(f"{name} is ragged, {_type_of(value)}: pad it, {name}.to_tensor()")
    if not lacking(value, ("dense_shape",)):
        raise ConfigError(f"{name} is sparse, {_type_of(value)}: make it dense, tf.sparse.to_dense({name})")
    if not lacking(value, ("num_batches", "on_epoch_end")):  # keras.utils.PyDataset
        raise ConfigError(
            f"{name} is {_type_of(value)}, which makes batches: put them together, numpy.concatenate([batch[0] for "
            "batch in …]), or make each client's with data.Generated"
        )
    if isinstance(value, np.ma.MaskedArray):
        return _of_masked(value, name)
    if not lacking(
        value, ("detach",)
    ):  # a tensor of PyTorch with a gradient, or on another device, has no plain numpy()
        value = value.detach().cpu().numpy()
    elif is_picture(value):
        return _of_picture(value)
    try:
        array = np.asarray(value if lacking(value, ("to_numpy",)) else value.to_numpy())
    except ValueError as error:
        raise ConfigError(f"{name} is no array ({error}): pad rows of different lengths") from error
    return _plain(array, name)


def is_frame(value: Any) -> bool:
    """Return whether value is a data frame: of pandas, polars, or the like."""
    return not lacking(value, ("columns", "dtypes")) and not isinstance(value, np.ndarray)


def frame_columns(frame: Any) -> tuple[str, ...]:
    """Return the labels of a frame's columns, as text; none where they are only numbered from 0."""
    columns = list(frame.columns)
    return () if columns == list(range(len(columns))) else tuple(map(str, columns))


def target_columns(labels: Any) -> tuple[str, ...]:
    """Return the columns of labels that are a frame of several, such as one for each class; none for other labels."""
    return frame_columns(labels) if is_frame(labels) and len(labels.columns) > 1 else ()


def is_picture(value: Any) -> bool:
    """Return whether value is an image of Pillow."""
    return not lacking(value, ("getbands", "convert"))


def is_text(array: Any) -> bool:
    """Return whether an array that came from `as_array` holds text, as NumPy's own strings or as Python objects."""
    if not isinstance(array, np.ndarray):
        return False
    if array.dtype.kind == "O":
        return array.size > 0 and isinstance(array.flat[0], TEXT_TYPES)
    return array.dtype.kind in "UST"


def rows_without(values: np.ndarray) -> np.ndarray:
    """Return the rows of a column that hold no value: None, NaN, NaT, NA of pandas, or empty text."""
    if values.dtype.kind in "fc":
        return np.flatnonzero(np.isnan(values))
    if values.dtype.kind in "mM":
        return np.flatnonzero(np.isnat(values))
    if values.dtype.kind in "biu":
        return np.empty(0, np.int64)
    return np.flatnonzero([_is_missing(value) for value in values.tolist()])


def listed_rows(rows: np.ndarray, most: int = 3) -> str:
    """Name rows for a message, counted from 1."""
    first = ", ".join(str(row + 1) for row in rows[:most])
    return f"row{'s' if len(rows) > 1 else ''} {first}{', …' if len(rows) > most else ''}"


def memory_bytes() -> int:
    """Return the size of the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _is_missing(value: Any) -> bool:
    # NaN, NaT and NA of pandas are not equal to themselves, or will not say; text and numbers are.
    if value is None:
        return True
    if isinstance(value, TEXT_TYPES):
        return not value.strip()
    try:
        return bool(value != value)
    except TypeError:
        return True


def _of_frame(frame: Any, name: str) -> np.ndarray:
    """Put a frame's columns side by side, in one type that holds them all: all numbers, or all text."""
    columns = [(label, column, column.to_numpy()) for label, column in _columns(frame)]
    if not columns:
        raise ConfigError(f"{name} is a frame without columns")
    of_text = [array.dtype.kind not in NUMBER_KINDS and _holds_only(array, TEXT_TYPES) for _, _, array in columns]
    if all(of_text):
        return np.column_stack([array for _, _, array in columns])
    arrays = []
    for label, column, array in columns:
        held = f"{column.dtype}" + (", held as object" if array.dtype.kind == "O" else "")
        if array.dtype.kind == "O" and not len(rows_without(array)):
            array = _of_objects(array, f"column {label!r} of {name}") if _is_numeric(array) else array
        if array.dtype.kind not in NUMBER_KINDS:
            raise ConfigError(
                f"column {label!r} of the frame {name} is of type {held}, where numbers are expected: encode it, as "
                "pandas.get_dummies does, or leave it out"
            )
        arrays.append(array)
    return np.column_stack(arrays)


def _columns(frame: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (label, column) of each of a frame's columns; two may have one label."""
    if not lacking(frame, ("items",)):
        yield from frame.items()
    else:
        yield from ((column.name, column) for column in frame.iter_columns())


def _of_sparse_matrix(matrix: Any, name: str) -> np.ndarray:
    """Make a matrix of scipy.sparse dense, where that leaves room for anything else."""
    needed = int(np.prod(matrix.shape)) * matrix.dtype.itemsize
    if needed > memory_bytes() * MEMORY_FRACTION:
        raise ConfigError(
            f"{name} is a sparse matrix that takes {needed / 2**30:.1f} GiB when dense, over a quarter of this "
            "machine's memory: give fewer columns, or data.Generated, whose make(client) returns a client's rows dense"
        )
    dense: np.ndarray = matrix.toarray()
    return dense


def _of_masked(array: np.ma.MaskedArray, name: str) -> np.ndarray:
    masked = int(np.ma.count_masked(array))
    if masked:
        raise ConfigError(f"{name} has {masked} masked entries, which an array cannot leave out: fill them, .filled(…)")
    return np.asarray(array.data)


def _of_picture(picture: Any) -> np.ndarray:
    """Return a picture of Pillow as its pixels; a palette's colours in place of their numbers."""
    if picture.mode in ("P", "PA"):
        is_transparent = picture.mode == "PA" or "transparency" in picture.info
        picture = picture.convert("RGBA" if is_transparent else "RGB")
    return np.asarray(picture.convert("L") if picture.mode == "1" else picture)


def _plain(array: np.ndarray, name: str) -> np.ndarray:
    """Return the array, unless its type means something that would be lost."""
    if array.dtype.kind in "mM":
        raise ConfigError(
            f"{name} is of type {array.dtype}, and dates are no numbers: give the days or seconds since one of them"
        )
    if array.dtype.names:
        raise ConfigError(
            f"{name} is an array of records ({', '.join(array.dtype.names)}): give its columns one by one, or "
            "numpy.lib.recfunctions.structured_to_unstructured(…)"
        )
    return _of_objects(array, name) if array.dtype.kind == "O" else array


def _of_objects(array: np.ndarray, name: str) -> np.ndarray:
    """Convert an array of Python objects: text stays as it is, numbers or equal arrays become what they make up."""
    if array.ndim == 0:
        raise ConfigError(f"expected {name} to be an array, got {_type_of(array.item())}")
    if _holds_only(array, TEXT_TYPES) or not array.size:
        return array
    if _is_numeric(array):
        numbers = np.array(array.tolist())
        return numbers if numbers.dtype.kind in NUMBER_KINDS else _refuse_objects(array, name)
    if _holds_only(array, (np.ndarray, list, tuple)):
        return _stacked(array, name)
    _refuse_objects(array, name)


def _is_numeric(array: np.ndarray) -> bool:
    return _holds_only(array, (bool, int, float, np.number, np.bool_))


def _holds_only(array: np.ndarray, types: tuple[type, ...]) -> bool:
    return array.dtype.kind == "O" and all(issubclass(kind, types) for kind in set(map(type, array.flat)))


def _stacked(array: np.ndarray, name: str) -> np.ndarray:
    """Stack rows that are arrays of their own into one array. Errors: ConfigError for rows that differ in shape."""
    rows = [as_array(np.asarray(row), name) for row in array.flat]
    shapes = {row.shape for row in rows}
    if len(shapes) > 1:
        lengths = sorted(len(row) for row in rows if row.ndim)
        raise ConfigError(
            f"{name} is ragged: its rows have from {lengths[0]} to {lengths[-1]} entries; pad them to one length, "
            "keras.utils.pad_sequences(…)"
        )
    return np.stack(rows).reshape(array.shape + rows[0].shape)


def _refuse_objects(array: np.ndarray, name: str) -> NoReturn:
    """Say what stands in the way. Errors: ConfigError, always."""
    without = rows_without(array.reshape(len(array), -1)[:, 0]) if array.ndim else np.empty(0)
    if len(without):
        raise ConfigError(
            f"{name} lacks {len(without)} values, in {listed_rows(without)}: fill them in, or leave out those rows"
        )
    kinds = ", ".join(sorted({kind.__name__ for kind in set(map(type, array.flat))}))
    raise ConfigError(f"{name} is an array of objects ({kinds}), where all must be numbers or all text")


def _type_of(value: Any) -> str:
    return f"a {type(value).__name__}"
