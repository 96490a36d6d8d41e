"""Data that people bring: Hugging Face's data sets, partitions of flwr-datasets, MedMNIST's and LEAF's files."""

import json
import pickle

import numpy as np
import pytest

from umbel.core.errors import ConfigError
from umbel.data import Arrays, ByKey, Femnist, HuggingFace, MedMnist, Partitioned, PerClient

datasets = pytest.importorskip("datasets")

GENERATOR = np.random.default_rng(0)
PIXELS = GENERATOR.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


def pictures(mode="RGB", pixels=PIXELS):
    image = pytest.importorskip("PIL.Image")
    shown = [image.fromarray(one if mode == "RGB" else one[..., 0], mode) for one in pixels]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "owl"])})
    return datasets.Dataset.from_dict({"img": shown, "label": LABELS}, features=features)


def people():
    columns = {"age": [31, 45, 27, 60], "pulse": [61.5, 70.0, 66.0, 80.25], "verdict": ["well", "ill", "well", "ill"]}
    return datasets.Dataset.from_dict({**columns, "clinic": ["b", "a", "b", "c"]})


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
@pytest.mark.filterwarnings("ignore:'mode' parameter")
def test_pictures_are_read_as_other_sources_read_them(mode, channels):
    examples = HuggingFace(pictures(mode)).load()
    np.testing.assert_allclose(examples.x, PIXELS[..., :channels] / np.float32(255))
    assert (examples.x.dtype, examples.y.dtype, examples.y.tolist()) == (np.float32, np.int32, LABELS)
    population = Partitioned(pictures(mode), clients=2)
    assert population.encoding().classes == ("cat", "dog", "owl")
    assert population.sizes().sum() == 6


def test_columns_become_a_matrix_an_array_or_several_inputs():
    source = HuggingFace(people(), x=["pulse", "age"], y="verdict", group="clinic")
    assert source.columns() == ("pulse", "age")
    np.testing.assert_array_equal(source.load().x, np.array([[61.5, 31], [70, 45], [66, 27], [80.25, 60]], np.float32))
    everything = HuggingFace(people(), y="verdict", group="clinic")
    np.testing.assert_array_equal(everything.load().x, source.load().x[:, ::-1])
    assert HuggingFace(people(), x="age", y="verdict").load().x.shape == (4,)
    several = HuggingFace(people(), x={"first": "age", "second": "pulse"}, y="verdict").load()
    assert {name: one.shape for name, one in several.x.items()} == {"first": (4,), "second": (4,)}
    population = Partitioned(source, by=ByKey())
    assert population.sizes().tolist() == [1, 2, 1]  # clinics a, b, c
    assert population.examples(1).y.tolist() == [1, 1]
    assert population.encoding().columns == ("pulse", "age")
    assert population.encoding().classes == ("ill", "well")


def test_arrays_in_rows_keep_their_shape_and_indices_are_followed():
    x = GENERATOR.normal(size=(6, 2, 3)).astype(np.float32)
    features = datasets.Features({"x": datasets.Array2D((2, 3), "float32"), "label": datasets.Value("int64")})
    whole = datasets.Dataset.from_dict({"x": list(x), "label": LABELS}, features=features)
    np.testing.assert_array_equal(HuggingFace(whole).load().x, x)
    np.testing.assert_array_equal(HuggingFace(whole.select([4, 1])).load().x, x[[4, 1]])
    assert HuggingFace(whole.select([4, 1])).load().y.tolist() == [1, 1]


def test_a_data_set_is_loaded_by_the_name_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.DatasetDict({"train": people(), "test": people().select([3])}).save_to_disk(tmp_path / "people")
    source = HuggingFace(str(tmp_path / "people"), x="age", y="verdict", split="test")
    assert source.load().x.tolist() == [60]
    assert source == HuggingFace(str(tmp_path / "people"), x="age", y="verdict", split="test")
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    people().to_parquet(tmp_path / "other" / "train.parquet")
    assert HuggingFace(str(tmp_path / "other"), x="age", y="verdict").load().count == 4
    with pytest.raises(ConfigError, match="cannot load the data set"):
        HuggingFace(str(tmp_path / "nowhere")).load()


class IidPartitioner:
    """As flwr-datasets' own: it hands out shards of a data set, which are data sets."""

    def __init__(self, dataset, num_partitions):
        self.dataset, self.num_partitions = dataset, num_partitions

    def load_partition(self, partition_id):
        return self.dataset.shard(self.num_partitions, partition_id, contiguous=True)


def test_partitions_of_flwr_datasets_are_clients_as_they_are():
    partitioner = IidPartitioner(pictures(), 3)
    clients = PerClient([partitioner.load_partition(number) for number in range(3)])
    assert clients.sizes().tolist() == [2, 2, 2]
    np.testing.assert_array_equal(clients.examples(1).x, HuggingFace(pictures()).load().x[2:4])
    assert PerClient(partitioner).examples(2).y.tolist() == [1, 2]
    named = PerClient([HuggingFace(partitioner.load_partition(number), x="img", y="label") for number in range(3)])
    np.testing.assert_array_equal(named.examples(0).x, clients.examples(0).x)


def test_flwr_datasets_own_partitioner_is_taken():
    partitioners = pytest.importorskip("flwr_datasets.partitioner")
    partitioner = partitioners.IidPartitioner(num_partitions=3)
    partitioner.dataset = pictures()
    assert PerClient(partitioner).sizes().sum() == 6


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: HuggingFace(people()).load(), "has no column 'label': name that of the labels with y="),
        (lambda: HuggingFace(people(), x="agee", y="verdict").load(), "did you mean 'age'?"),
        (lambda: HuggingFace(people(), x=["age", "clinic"], y="verdict").load(), "columns of a matrix have numbers"),
        (lambda: HuggingFace(datasets.DatasetDict({"train": people()})), r"choose it, dataset\['train'\]"),
        (lambda: PerClient([people().to_iterable_dataset()]), "got a streamed one"),
        (lambda: HuggingFace(3), "to be a name, or a datasets.Dataset"),
        (lambda: HuggingFace(people().select([]), y="verdict").load(), "is empty"),
        (
            lambda: HuggingFace(datasets.Dataset.from_dict({"x": [1.0, None], "label": [0, 1]})).load(),
            "lacks values, in row 2",
        ),
        (lambda: HuggingFace(datasets.Dataset.from_dict({"x": [[1], [2, 3]], "label": [0, 1]})).load(), "pad"),
        (lambda: HuggingFace(pictures().map(lambda row: {"label": -1})).load(), "examples without a label"),
    ],
)
def test_what_is_missing_or_of_no_shape_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def published(folder, name, split="train", **changes):
    """Write a file in MedMNIST's format, two examples in each split but five in the one asked for."""
    arrays = {}
    for one in ("train", "val", "test"):
        count = 5 if one == split else 2
        arrays[f"{one}_images"] = GENERATOR.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{one}_labels"] = GENERATOR.integers(0, 2, (count, 1)).astype(np.uint8)
    arrays |= changes
    np.savez(folder / f"{name}.npz", **arrays)
    return arrays


def test_medmnist_is_read_as_it_is_published(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    arrays = published(tmp_path, "pneumoniamnist", "val")
    examples = MedMnist("pneumoniamnist", "val").load()
    np.testing.assert_array_equal(examples.x[..., 0], arrays["val_images"].astype(np.float32) / 255)
    assert examples.y.tolist() == arrays["val_labels"][:, 0].tolist()
    colours = GENERATOR.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    many = GENERATOR.integers(0, 2, (5, 14)).astype(np.uint8)
    published(tmp_path, "chestmnist_64", train_images=colours, train_labels=many)
    examples = MedMnist("chestmnist", size=64).load()
    assert (examples.x.shape, examples.y.shape, examples.y.dtype) == ((5, 64, 64, 3), (5, 14), np.int32)
    volumes = GENERATOR.integers(0, 256, (5, 28, 28, 28), dtype=np.uint8)
    published(tmp_path, "organmnist3d", train_images=volumes)
    assert MedMnist("organmnist3d").load().x.shape == (5, 28, 28, 28, 1)


def test_medmnist_that_is_not_there_or_not_itself_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"holds no pathmnist\.npz"):
        MedMnist("pathmnist").load()
    published(tmp_path, "pathmnist", train_images=np.zeros((5, 32, 32, 3), np.uint8))
    with pytest.raises(ConfigError, match="is not pathmnist"):
        MedMnist("pathmnist").load()
    with pytest.raises(ConfigError, match="in pathmnist, chestmnist"):
        MedMnist("mnist")


def leaf(users, seed=0):
    """Text of a file as LEAF's preprocess.sh writes it."""
    generator = np.random.default_rng(seed)
    held = {
        name: {"x": generator.random((count, 784)).round(3).tolist(), "y": generator.integers(0, 62, count).tolist()}
        for name, count in users.items()
    }
    return json.dumps({"users": list(users), "num_samples": list(users.values()), "user_data": held})


def test_femnist_has_a_client_for_each_writer(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    folder = tmp_path / "femnist" / "train"
    folder.mkdir(parents=True)
    (folder / "all_data_0_niid_0_keep_0_train_9.json").write_text(leaf({"f0001_41": 3, "f0000_14": 2}))
    (folder / "all_data_1_niid_0_keep_0_train_9.json").write_text(leaf({"f0100_30": 4}, seed=1))
    source = Femnist()
    examples = source.load()
    assert (examples.x.shape, examples.x.dtype, examples.y.dtype) == ((9, 28, 28, 1), np.float32, np.int32)
    clients = Partitioned(source, by=ByKey())
    assert clients.sizes().tolist() == [2, 3, 4]  # f0000_14, f0001_41, f0100_30
    held = json.loads(leaf({"f0100_30": 4}, seed=1))["user_data"]["f0100_30"]
    np.testing.assert_allclose(clients.examples(2).x.reshape(4, 784), np.array(held["x"], np.float32))
    assert clients.examples(2).y.tolist() == held["y"]
    with pytest.raises(ConfigError, match=r"holds no femnist/test/\*\.json"):
        Femnist("test").load()
    (folder / "all_data_2.json").write_text('{"users": ["a"]}')
    with pytest.raises(ConfigError, match="is not a file of LEAF's FEMNIST"):
        Partitioned(Femnist(), by=ByKey()).sizes()


def test_a_hugging_face_source_equals_the_same_arrays():
    source = HuggingFace(people(), x=["age", "pulse"], y="verdict")
    frame = people().to_pandas()
    same = Arrays(frame[["age", "pulse"]].to_numpy(np.float32), frame["verdict"].to_numpy().astype(str))
    np.testing.assert_array_equal(source.load().x, same.load().x)
    assert Partitioned(source, clients=2).examples(0).y.tolist() == Partitioned(same, clients=2).examples(0).y.tolist()
