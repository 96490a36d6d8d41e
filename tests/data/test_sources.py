"""Sources: what goes into a file comes out of `load`, and what is wrong with a file is said in one line."""

import importlib.util
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from umbel.core.errors import ConfigError
from umbel.core.protocols import Source
from umbel.data import (
    ALL_SOURCES,
    Arrays,
    ByKey,
    Cifar10,
    CsvTable,
    Digits,
    FashionMnist,
    ImageFolder,
    Mnist,
    NpzFile,
    ParquetTable,
    Partitioned,
    Shakespeare,
    TfDataset,
    TorchDataset,
)
from umbel.data.sources.shakespeare import decode, encode

X = np.arange(24, dtype=np.float32).reshape(6, 4)
Y = np.array([0, 1, 2, 0, 1, 2], np.int32)


def given_data(file):
    """Skip unless the folder $UMBEL_DATA has the file."""
    folder = os.environ.get("UMBEL_DATA")
    if not folder or not (Path(folder) / file).is_file():
        pytest.skip(f"{file} is not in the folder $UMBEL_DATA")


@pytest.fixture
def table(tmp_path):
    """A table of six people, as CSV and as Parquet."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "age": [31, 45, 27, 60, 52, 38],
            "pulse": [61.5, 70.0, 66.0, 80.25, 75.0, 68.0],
            "verdict": ["well", "ill", "well", "ill", "ill", "well"],
            "clinic": ["b", "a", "b", "c", "a", "c"],
        }
    )
    frame.to_csv(tmp_path / "people.csv", index=False)
    frame.to_parquet(tmp_path / "people.parquet")
    return frame, tmp_path


def test_importing_data_imports_no_heavy_library():
    heavy = ("sklearn", "pandas", "matplotlib", "tensorflow", "keras", "PIL", "scipy")
    code = f"import sys, umbel.data; print([one for one in {heavy} if one in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize("kind", ALL_SOURCES)
def test_every_source_is_one(kind):
    assert isinstance(kind, type)
    assert callable(kind.load)
    assert issubclass(kind, Source)


def test_arrays_may_nest_and_keep_their_weights():
    source = Arrays({"image": X, "text": X[:, :1]}, (Y, Y), np.ones(6))
    examples = source.load()
    assert examples.count == 6
    assert examples.x["image"] is X
    assert len(repr(source)) < 120


def test_arrays_of_unequal_lengths_are_refused():
    with pytest.raises(ConfigError, match="one length, got lengths 6, 5"):
        Arrays(X, Y[:5])


def test_arrays_compare_by_content_and_pickle():
    source = Arrays(X, Y)
    assert source == Arrays(X.copy(), Y.copy()) == pickle.loads(pickle.dumps(source))
    assert hash(source) == hash(Arrays(X.copy(), Y.copy()))
    assert source != Arrays(X + 1, Y)
    assert source != Arrays(X, Y.astype(np.int64))


def test_memory_mapped_arrays_stay_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    population = Partitioned(Arrays(mapped, Y), clients=3, stream=True)
    assert isinstance(population.source.load().x, np.memmap)
    assert population.resident() is None
    np.testing.assert_array_equal(population.examples(1).x, X[population.indices(1)])


def test_npz_round_trip(tmp_path):
    np.savez(tmp_path / "set.npz", inputs=X, y=Y, importance=np.ones(6), who=np.array(list("aabbcc")))
    source = NpzFile(tmp_path / "set.npz", x="inputs", sample_weight="importance", group="who")
    examples = source.load()
    np.testing.assert_array_equal(examples.x, X)
    np.testing.assert_array_equal(examples.y, Y)
    np.testing.assert_array_equal(examples.sample_weight, np.ones(6))
    assert Partitioned(source, by=ByKey()).sizes().tolist() == [2, 2, 2]


def test_equal_sources_load_once_until_the_file_changes(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, x=X, y=Y)
    first = NpzFile(path)
    assert NpzFile(path).load() is first.load()
    np.savez(path, x=X[:3], y=Y[:3])
    assert NpzFile(path).load().count == 3
    assert first.load().count == 6
    assert len(pickle.dumps(first)) < 400  # what was loaded does not travel


def test_npz_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "set.npz", x=np.array([{}, []], object), y=Y[:2])
    with pytest.raises(ConfigError, match=r"set\.npz holds an array of Python objects, which is refused"):
        NpzFile(tmp_path / "set.npz").load()


def test_npz_names_are_suggested(tmp_path):
    np.savez(tmp_path / "set.npz", x_train=X, y=Y)
    with pytest.raises(ConfigError, match=r"set\.npz holds no array 'x_trian': did you mean 'x_train'"):
        NpzFile(tmp_path / "set.npz", x="x_trian").load()


@pytest.mark.parametrize("source", [NpzFile("gone.npz"), CsvTable("gone.npz", "y"), ParquetTable("gone.npz", "y")])
def test_a_missing_file_is_named(source):
    with pytest.raises(ConfigError, match=r"no file at gone\.npz: put it there"):
        source.load()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x80\x04K\x01.", b"plain text"])
def test_a_corrupt_npz_is_named(tmp_path, content):
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"set\.npz does not read as an \.npz file .*: restore it"):
        NpzFile(tmp_path / "set.npz").load()


def test_a_truncated_npz_is_named(tmp_path):
    np.savez_compressed(tmp_path / "set.npz", x=np.random.default_rng(0).random((100, 100)), y=np.zeros(100))
    whole = (tmp_path / "set.npz").read_bytes()
    damaged = whole[:2000] + bytes(100) + whole[2100:]
    (tmp_path / "set.npz").write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"set\.npz does not read"):
        NpzFile(tmp_path / "set.npz").load()


@pytest.mark.parametrize(("kind", "file"), [(CsvTable, "people.csv"), (ParquetTable, "people.parquet")])
def test_table_round_trip(table, kind, file):
    frame, folder = table
    source = kind(folder / file, label="verdict", group="clinic")
    examples = source.load()
    np.testing.assert_array_equal(examples.x, frame[["age", "pulse"]].to_numpy(np.float32))
    assert examples.x.dtype == np.float32
    assert examples.y.tolist() == frame["verdict"].tolist()  # a population gives them numbers
    assert kind(folder / file, "verdict", ("age",), classes=("well", "ill")).load().y.tolist() == [0, 1, 0, 1, 1, 0]
    assert source.groups().tolist() == list("babcac")
    assert kind(folder / file, label="age", features=("pulse",)).load().x.shape == (6, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label": "verdcit"}, "has no column 'verdcit': did you mean 'verdict'"),
        ({"label": "verdict"}, "column 'clinic' is not numeric"),
        ({"label": "verdict", "features": ("age", "weight")}, "has no column 'weight'"),
    ],
)
def test_table_errors_name_file_and_column(table, wrong, message):
    with pytest.raises(ConfigError, match=rf"people\.csv.*{message}"):
        CsvTable(table[1] / "people.csv", **wrong).load()


def test_table_with_gaps_is_refused(table):
    frame, folder = table
    frame.assign(pulse=[1.0, None, 2.0, None, 3.0, 4.0]).to_csv(folder / "gaps.csv", index=False)
    with pytest.raises(ConfigError, match=r"column 'pulse' lacks 2 values, the first in row 2"):
        CsvTable(folder / "gaps.csv", label="verdict", features=("pulse",)).load()


def test_a_corrupt_table_is_named(tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "set.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ConfigError, match=r"set\.parquet does not read as a table"):
        ParquetTable(tmp_path / "set.parquet", "y").load()
    (tmp_path / "set.csv").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(ConfigError, match=r"set\.csv does not read as a table"):
        CsvTable(tmp_path / "set.csv", "b").load()


@pytest.mark.parametrize(
    ("module", "source", "extra"),
    [("pandas", CsvTable("a.csv", "y"), "tables"), ("PIL.Image", ImageFolder(".", (8, 8)), "images")],
)
def test_a_missing_library_names_the_extra(monkeypatch, module, source, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'umbel\[{extra}\]'"):
        source.load()


def test_image_folder_round_trip(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    shades = {"cat": (0, 51), "dog": (255,)}
    for name, values in shades.items():
        (tmp_path / name).mkdir()
        for shade in values:
            pillow.fromarray(np.full((12, 10, 3), shade, np.uint8)).save(tmp_path / name / f"{shade:03}.png")
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    source = ImageFolder(tmp_path, size=(6, 5))
    x, y, _ = source.load()
    assert x.shape == (3, 6, 5, 3)
    np.testing.assert_allclose(x.mean(axis=(1, 2, 3)), [0.0, 0.2, 1.0], atol=1e-6)
    assert y.tolist() == ["cat", "cat", "dog"]
    assert source.class_names() == ["cat", "dog"]
    assert ImageFolder(tmp_path, size=(6, 5), classes=("dog", "cat")).load().y.tolist() == [1, 1, 0]
    assert ImageFolder(tmp_path, size=(6, 5), channels=1).load().x.shape == (3, 6, 5, 1)
    (tmp_path / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ConfigError, match=r"broken\.png does not read as a picture"):
        ImageFolder(tmp_path, size=(4, 4)).load()


def test_image_folder_without_pictures(tmp_path):
    pytest.importorskip("PIL")
    with pytest.raises(ConfigError, match=r"expected .*/CLASS/NAME\.png"):
        ImageFolder(tmp_path, size=(8, 8)).load()
    with pytest.raises(ConfigError, match="no folder at nowhere"):
        ImageFolder("nowhere", size=(8, 8)).load()


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")
def test_tf_dataset_gives_back_its_tensors():
    tf = pytest.importorskip("tensorflow")
    single = tf.data.Dataset.from_tensor_slices((X, Y))
    for dataset in (single, single.batch(4), single.batch(2, drop_remainder=True)):
        examples = TfDataset(dataset).load()
        np.testing.assert_array_equal(examples.x, X)
        np.testing.assert_array_equal(examples.y, Y)
    named = TfDataset(tf.data.Dataset.from_tensor_slices(({"a": X, "b": Y}, Y)).batch(4))
    np.testing.assert_array_equal(named.load().x["b"], Y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(named)).load().x["a"], X)
    # Arrays of one example may have one length, as those of a batch have: the calls that made the data set tell.
    pairs = tf.data.Dataset.from_tensor_slices((X, X))
    for dataset in (pairs, pairs.shuffle(6).prefetch(1), pairs.batch(4), pairs.batch(2, drop_remainder=True).cache()):
        assert TfDataset(dataset).load().x.shape == X.shape
    unclear = pairs.map(lambda x, y: (x, y))
    with pytest.raises(ConfigError, match=r"could be batches or single examples: say which"):
        TfDataset(unclear).load()
    assert TfDataset(unclear, batched=False).load().y.shape == X.shape
    rows = tf.data.Dataset.from_tensor_slices({"image": X, "label": Y})
    np.testing.assert_array_equal(TfDataset(rows.batch(4)).load().y, Y)
    with pytest.raises(ConfigError, match=r"elements of RaggedTensorSpec.*make them dense"):
        TfDataset(tf.data.Dataset.from_tensors(tf.ragged.constant([[1, 2], [3]]))).load()
    with pytest.raises(ConfigError, match=r"never ends: give it an end with \.take"):
        TfDataset(single.repeat()).load()
    with pytest.raises(ConfigError, match="is empty"):
        TfDataset(single.take(0)).load()


def test_torch_dataset_is_any_indexed_collection():
    class Tensor:
        def __init__(self, array):
            self.array = array

        def numpy(self):
            return self.array

    items = [(Tensor(x), int(y)) for x, y in zip(X, Y, strict=True)]
    examples = TorchDataset(items).load()
    np.testing.assert_array_equal(examples.x, X)
    np.testing.assert_array_equal(examples.y, Y)
    with pytest.raises(ConfigError, match="list is empty"):
        TorchDataset([]).load()
    with pytest.raises(ConfigError, match="differ in shape"):
        TorchDataset([(X[0], 0), (X[0, :2], 1)]).load()
    with pytest.raises(ConfigError, match="expected dataset=int"):
        TorchDataset(3)


def test_digits_are_split_once_and_for_all():
    train, test = Digits("train").load(), Digits("test").load()
    assert (train.x.shape, test.x.shape) == ((1437, 64), (360, 64))
    assert (train.x.dtype, train.y.dtype) == (np.float32, np.int32)
    assert (train.x.min(), train.x.max()) == (0.0, 1.0)
    whole = np.bincount(np.concatenate([train.y, test.y]))
    assert (np.abs(np.bincount(test.y) - whole * 360 / 1797) < 1).all()
    from sklearn.datasets import load_digits

    both = np.concatenate([train.x, test.x]) * 16
    assert sorted(map(bytes, both.astype(np.uint8))) == sorted(map(bytes, load_digits().data.astype(np.uint8)))


@pytest.mark.parametrize(("kind", "file"), [(Mnist, "mnist.npz"), (FashionMnist, "fashion_mnist.npz")])
def test_images_in_keras_layout(monkeypatch, tmp_path, kind, file):
    pixels = np.arange(3 * 784, dtype=np.uint8).reshape(3, 28, 28)
    labels = np.array([5, 0, 4], np.uint8)
    np.savez(tmp_path / file, x_train=pixels, y_train=labels, x_test=pixels[:1], y_test=labels[:1])
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    x, y, _ = kind("train").load()
    assert (x.shape, x.dtype, y.dtype) == ((3, 28, 28, 1), np.float32, np.int32)
    np.testing.assert_array_equal(np.rint(x[..., 0] * 255), pixels)
    assert y.tolist() == [5, 0, 4]
    np.testing.assert_array_equal(kind("test", flat=True).load().x, x[:1].reshape(1, 784))


def test_keras_loader_is_asked_when_the_file_is_absent(monkeypatch, tmp_path):
    pixels, labels = np.full((2, 32, 32, 3), 255, np.uint8), np.array([[3], [8]])
    loader = types.SimpleNamespace(load_data=lambda: ((pixels, labels), (pixels[:1], labels[:1])))
    monkeypatch.setitem(sys.modules, "keras.datasets.cifar10", loader)
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    x, y, _ = Cifar10("train").load()
    assert x.shape == (2, 32, 32, 3)
    assert x.max() == 1.0
    assert y.tolist() == [3, 8]
    assert Cifar10("test").load().count == 1


@pytest.mark.parametrize("folder", ["", "somewhere"])
def test_absent_everywhere_says_what_to_put_where(monkeypatch, tmp_path, folder):
    monkeypatch.setitem(sys.modules, "keras.datasets.mnist", None)
    monkeypatch.setenv("UMBEL_DATA", folder and str(tmp_path))
    with pytest.raises(ConfigError, match=r"put mnist\.npz \(arrays x_train, .*\) into a folder and set UMBEL_DATA"):
        Mnist().load()
    with pytest.raises(ConfigError, match=r"put shakespeare\.txt .* into a folder and set UMBEL_DATA"):
        Shakespeare().load()


def test_another_data_set_under_the_name_is_refused(monkeypatch, tmp_path):
    np.savez(tmp_path / "mnist.npz", x_train=X, y_train=Y)
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"mnist\.npz is not mnist"):
        Mnist().load()


def test_an_unknown_split_is_refused():
    for kind in (Digits, Mnist, FashionMnist, Cifar10, Shakespeare):
        with pytest.raises(ConfigError, match="split='valid' in train, test"):
            kind("valid")


def play(speeches):
    return "\n\n".join(f"{speaker}:\n" + "\n".join(lines) for speaker, lines in speeches)


def test_shakespeare_is_a_client_per_speaker(monkeypatch, tmp_path):
    lines = [f"line {number} of a speech" for number in range(20)]
    speeches = [
        ("ROMEO", lines[:12]),
        ("JULIET", lines),
        ("ROMEO", lines[12:]),
        ("PAGE", ["one line only"]),
        ("GHOST", ["Oh.", "Oh!"]),
    ]
    (tmp_path / "shakespeare.txt").write_text(play(speeches))
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    train, test = Shakespeare("train", sequence_length=30), Shakespeare("test", sequence_length=30)
    assert set(train.groups()) == set(test.groups()) == {"JULIET", "ROMEO"}
    assert len(Partitioned(train, by=ByKey())) == len(Partitioned(test, by=ByKey())) == 2
    x, y, _ = train.load()
    assert x.dtype == y.dtype == np.int32
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])  # y is x, one character later
    romeo = "".join(decode(row) for row in x[train.groups() == "ROMEO"])
    spoken = "\n".join(lines[:16])  # the first 80 % of twenty lines
    assert spoken.startswith(romeo)
    assert len(spoken) - len(romeo) <= 30
    assert decode(test.load().x[0]) == "\n".join(lines[16:])[:30]


def test_characters_encode_and_decode():
    assert Shakespeare.vocabulary_size == 87
    assert encode("é\n").tolist() == [0, 1]
    assert decode(encode(Shakespeare.vocabulary)) == Shakespeare.vocabulary
    assert encode(Shakespeare.vocabulary).tolist() == list(range(1, 87))


def test_a_text_without_speeches_is_refused(monkeypatch, tmp_path):
    (tmp_path / "shakespeare.txt").write_text("To be, or not to be")
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"shakespeare\.txt has no speaker"):
        Shakespeare().load()


def test_the_real_mnist():
    given_data("mnist.npz")
    x, y, _ = Mnist("train").load()
    assert x.shape == (60_000, 28, 28, 1)
    assert np.bincount(y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert Mnist("test", flat=True).load().x.shape == (10_000, 784)


def test_the_real_shakespeare():
    given_data("shakespeare.txt")
    train, test = (Partitioned(Shakespeare(split), by=ByKey()) for split in ("train", "test"))
    assert len(train) == len(test) > 150
    assert 0 not in train.source.load().x  # every character is known
    assert 3 < train.sizes().sum() / test.sizes().sum() < 5


RAMP = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)


@pytest.mark.parametrize(
    ("pixels", "file"),
    [
        (RAMP, "a.png"),
        (RAMP, "a.tif"),
        (RAMP.astype(">u2"), "a.tif"),
        ((RAMP / 65535).astype(np.float32), "a.tif"),
        ((RAMP // 257).astype(np.uint8), "a.png"),
        (RAMP > 30000, "a.png"),
    ],
    ids=lambda value: getattr(value, "dtype", value),
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_any_depth_are_scaled_from_0_to_1(tmp_path, pixels, file, channels):
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "ct").mkdir()
    pillow.fromarray(pixels).save(tmp_path / "ct" / file)
    x = ImageFolder(tmp_path, (4, 4), channels).load().x[0]
    expected = RAMP > 30000 if pixels.dtype == bool else RAMP / 65535
    for channel in range(min(channels, 3)):
        np.testing.assert_allclose(x[..., channel], expected, atol=1 / 255)
    assert x.shape == (4, 4, channels)
    assert channels < 4 or (x[..., 3] == 1).all()


def test_pictures_without_a_scale_or_with_pages_are_refused(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "ct").mkdir()
    file = tmp_path / "ct" / "a.tif"
    source = ImageFolder(tmp_path, (4, 4))
    for pixels, message in ((RAMP.astype(np.float32), "floats from 0 to 65535"), (RAMP.astype(np.int32), "of 32 bits")):
        pillow.fromarray(pixels).save(file)
        with pytest.raises(ConfigError, match=rf"a\.tif has .*{message}.* as pixels"):
            source.load()
    pillow.new("L", (4, 4)).save(file, save_all=True, append_images=[pillow.new("L", (4, 4))])
    with pytest.raises(ConfigError, match=r"a\.tif holds 2 pictures: make each a file of its own"):
        source.load()


def test_tables_hold_numbers_or_say_which_column_does_not(tmp_path):
    pandas = pytest.importorskip("pandas")

    def load(values, label=(0, 1)):
        pandas.DataFrame({"w": values, "label": label}).to_parquet(tmp_path / "a.parquet")
        return ParquetTable(tmp_path / "a.parquet", "label").load()

    assert load([True, False]).x.tolist() == [[1], [0]]
    assert load([1, 2], [True, False]).y.tolist() == [1, 0]
    assert load([1, 2], [5_000_000_000, 1]).y.tolist() == [5_000_000_000, 1]  # not what is left of it in 32 bits
    for values in (["1", "nan"], pandas.to_datetime(["2020", "2021"]), pandas.Series(["a", "b"], dtype="category")):
        with pytest.raises(ConfigError, match="column 'w' is not numeric, but"):
            load(values)
    with pytest.raises(ConfigError, match="column 'w' has values that no float32 holds, in rows 1, 2"):
        load([np.inf, 1e300])


def test_rows_with_a_label_are_inputs_and_labels():
    rows = [{"image": x, "label": int(y)} for x, y in zip(X, Y, strict=True)]
    x, y, _ = TorchDataset(rows).load()
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)
    several = [{**row, "age": 3, "tokens": [1, 2]} for row in rows]
    assert {name: part.shape for name, part in TorchDataset(several).load().x.items()} == {
        "image": (6, 4),
        "age": (6,),
        "tokens": (6, 2),
    }
    assert TorchDataset([{"a": 1, "fine": 2}], label="fine").load().y.tolist() == [2]
    with pytest.raises(ConfigError, match="rows have no 'lable': did you mean 'label'"):
        TorchDataset(rows, label="lable").load()
