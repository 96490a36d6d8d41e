"""What becomes an array is exact, and what would lose its meaning is refused with the remedy."""

import numpy as np
import pytest

from umbel.core.errors import ConfigError
from umbel.core.examples import Examples
from umbel.core.reading.coercion import as_array


def test_plain_and_mapped_arrays_are_returned_as_they_are(tmp_path):
    for array in (np.ones(3), np.array(["a"]), np.array([1j])):
        assert as_array(array) is array
    np.save(tmp_path / "a.npy", np.ones(3))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert as_array(mapped) is mapped


def test_sparse_matrices_become_dense_where_they_fit():
    scipy = pytest.importorskip("scipy.sparse")
    dense = np.eye(3, dtype=np.float32)
    for kind in (scipy.csr_matrix, scipy.coo_array, scipy.csc_array):
        array = as_array(kind(dense))
        np.testing.assert_array_equal(array, dense)
        assert array.dtype == np.float32
    with pytest.raises(ConfigError, match=r"x is a sparse matrix that takes 7450.6 GiB when dense"):
        Examples.of(scipy.csr_matrix((10**6, 10**6)))


def test_frames_of_numbers_are_matrices():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.5, 2.0], "b": [True, False], "c": pandas.array([3, 4], dtype="Int64")})
    np.testing.assert_array_equal(as_array(frame), [[1.5, 1, 3], [2, 0, 4]])
    sparse = pandas.DataFrame({"a": pandas.arrays.SparseArray([0.0, 1.0])})
    np.testing.assert_array_equal(as_array(sparse), [[0], [1]])
    assert as_array(pandas.DataFrame({"a": ["x", "y"]})).tolist() == [["x"], ["y"]]


@pytest.mark.parametrize("kind", ["object", "str", "category", "datetime64[ns]", "timedelta64[ns]", "boolean"])
def test_a_column_of_no_numbers_is_named(kind):
    pandas = pytest.importorskip("pandas")
    values = {"boolean": [True, None], "datetime64[ns]": ["2020", "2021"], "timedelta64[ns]": [1, 2]}
    frame = pandas.DataFrame({"a": [1.0, 2.0], "b": pandas.Series(values.get(kind, ["x", "y"])).astype(kind)})
    with pytest.raises(ConfigError, match=rf"column 'b' of the frame x is of type {kind[:6]}.*: encode it"):
        Examples.of((frame, np.arange(2)))


def test_objects_that_make_up_an_array_become_one():
    rows = np.empty(2, object)
    rows[:] = [np.ones(3), np.zeros(3)]
    assert as_array(rows).shape == (2, 3)
    numbers = as_array(np.array([1, 2.5, True], object))
    assert numbers.dtype == np.float64
    assert as_array(np.array(["a", "bc"], object)).tolist() == ["a", "bc"]
    assert type(as_array(np.ma.masked_array([1.0], [False]))) is np.ndarray


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([[1, 2], [3]], object), "y is ragged: its rows have from 1 to 2 entries; pad them"),
        (np.array(["a", None], object), "y lacks 1 values, in row 2"),
        (np.array(["a", np.nan], object), "y lacks 1 values, in row 2"),
        (np.array(["a", 1], object), r"y is an array of objects \(int, str\)"),
        (np.array([{}], object), r"y is an array of objects \(dict\)"),
        (np.ma.masked_array([1.0, 2.0], [False, True]), "y has 1 masked entries"),
        (np.array(["2020-01-01"], "datetime64[D]"), r"y is of type datetime64\[D\], and dates are no numbers"),
        (np.array([(1, 2.0)], [("a", int), ("b", float)]), r"y is an array of records \(a, b\)"),
    ],
)
def test_what_would_lose_its_meaning_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        Examples.of((np.zeros(len(value)), value))


def test_pictures_are_pixels_whatever_their_mode():
    pillow = pytest.importorskip("PIL.Image")
    colour = pillow.new("RGB", (2, 2), (255, 0, 0))
    np.testing.assert_array_equal(as_array(colour.quantize(2)), as_array(colour))  # not the palette's numbers
    assert as_array(pillow.new("1", (2, 2), 1)).tolist() == [[255, 255], [255, 255]]
