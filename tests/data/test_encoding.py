"""One meaning of the numbers for a population: whoever lacks a class or orders columns otherwise shifts nothing."""

import numpy as np
import pytest

from umbel.core.errors import ConfigError
from umbel.core.examples import Examples
from umbel.core.experiment import Experiment
from umbel.core.parts.sampling import FixedCohort
from umbel.data import (
    Arrays,
    ByKey,
    CsvTable,
    Encoding,
    FeatureStatistics,
    Generated,
    ImageFolder,
    LabelFlip,
    NpzFile,
    OnDevice,
    Partitioned,
    PerClient,
    Selected,
    Shards,
    Standardised,
    TorchDataset,
    kfold_clients,
    split_clients,
)
from umbel.strategies import FedAvg

CLASSES = ("cat", "dog", "owl")


def experiment(population, **changes):
    return Experiment(name="a", model=dict, population=population, strategy=FedAvg(), sampler=FixedCohort(1), **changes)


def labelled(*labels, dtype=None):
    """(x, y) with these labels, and x that counts."""
    return np.arange(len(labels), dtype=np.float32)[:, None], np.array(labels, dtype)


@pytest.fixture
def write(tmp_path):
    """A CSV file of these lines."""
    pytest.importorskip("pandas")

    def write(name, *lines):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return CsvTable(tmp_path / name, label="label")

    return write


@pytest.fixture
def tables(write):
    """Two clients' tables; the second has no cat, and its columns in another order."""
    first = write("first.csv", "f,g,label", "1,10,dog", "2,20,cat", "3,30,owl")
    return [first, write("second.csv", "label,g,f", "owl,40,4", "dog,50,5")]


def names_of(population, client):
    """What the population calls each label of a client, by its encoding."""
    return [population.encoding().classes[number] for number in population.examples(client).y]


@pytest.mark.parametrize("classes", [None, ("owl", "dog", "cat")])
def test_a_table_per_client_means_the_same_on_every_client(tables, classes):
    population = PerClient(tables, classes)
    assert population.encoding() == Encoding(classes or CLASSES, ("f", "g"))
    assert names_of(population, 0) == ["dog", "cat", "owl"]
    assert names_of(population, 1) == ["owl", "dog"]
    np.testing.assert_array_equal(population.examples(1).x, [[4, 40], [5, 50]])
    assert population.examples(1).y.dtype == np.int32
    assert population.sizes().tolist() == [3, 2]


def test_numbers_do_not_depend_on_the_order_of_clients(tables):
    forth, back = PerClient(tables), PerClient(tables[::-1])
    assert forth.encoding().classes == back.encoding().classes
    np.testing.assert_array_equal(forth.examples(0).y, back.examples(1).y)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["dog", "owl"]),
        np.array([b"dog", b"owl"]),
        np.array(["dog", "owl"], object),
        np.array([b"dog", b"owl"], object),
        np.array([["dog"], ["owl"]]),
    ],
    ids=lambda labels: f"{labels.dtype}{list(labels.shape)}",
)
def test_text_of_any_kind_is_a_label(labels):
    population = PerClient([labelled("cat", "dog"), (np.zeros((2, 1), np.float32), labels)][:: labels.ndim])
    encoded = PerClient([(np.zeros((2, 1)), labels)], CLASSES).examples(0).y
    np.testing.assert_array_equal(encoded.ravel(), [1, 2])
    assert encoded.shape == labels.shape
    assert set(population.encoding().classes) <= set(CLASSES)


def test_folders_of_pictures_share_their_classes(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    for client, classes in (("one", ("covid", "viral")), ("two", ("healthy", "viral")), ("test", ("viral",))):
        for name in classes:
            (tmp_path / client / name).mkdir(parents=True)
            pillow.new("L", (4, 4)).save(tmp_path / client / name / "a.png")
    (tmp_path / "one" / "rare").mkdir()  # a class that nobody has a picture of keeps its number
    one, two, test = (ImageFolder(tmp_path / name, (4, 4)) for name in ("one", "two", "test"))
    population = PerClient([one, two])
    assert population.encoding().classes == ("covid", "healthy", "rare", "viral")
    assert [population.examples(client).y.tolist() for client in (0, 1)] == [[0, 3], [1, 3]]
    assert experiment(population, test=test).resolved.test_examples().y.tolist() == [3]


def test_test_and_validation_are_read_as_the_training_data(tables, write):
    held_out = write("held_out.csv", "g,f,label", "60,6,owl")
    one = experiment(PerClient(tables), test=held_out, validation=PerClient([held_out, held_out]))
    for examples in (one.resolved.test_examples(), one.resolved.validation_clients().examples(1)):
        np.testing.assert_array_equal(examples.x, [[6, 60]])
        assert examples.y.tolist() == [2]
    assert experiment(PerClient(tables), test=labelled("owl", "cat")).resolved.test_examples().y.tolist() == [2, 0]
    standardised = FeatureStatistics(np.array([6.0, 0.0]), np.ones(2)).standardise(held_out)
    np.testing.assert_array_equal(
        experiment(PerClient(tables), test=standardised).resolved.test_examples().x, [[0, 60]]
    )


def test_frames_keep_the_names_of_their_columns():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"f": [1.0, 2.0], "g": [10, 20]})
    y = np.array([0, 1])
    for population in (PerClient([(frame, y), (frame[["g", "f"]], y)]), Partitioned((frame, y), clients=1)):
        np.testing.assert_array_equal(population.examples(len(population) - 1).x, frame)
        test = experiment(population, test=(frame[["g", "f"]], y)).resolved.test_examples()
        np.testing.assert_array_equal(test.x, frame)
    made = Generated(2, lambda client: ((frame, frame[["g", "f"]])[client], y), size=2)
    np.testing.assert_array_equal(made.examples(1).x, frame)
    with pytest.raises(ConfigError, match="client 1 lacks the column 'g' of the first client"):
        PerClient([(frame, y), (frame.rename(columns={"g": "h"}), y)]).sizes()


def test_columns_of_labels_are_classes_too():
    pandas = pytest.importorskip("pandas")

    def client(*labels):
        return np.zeros((len(labels), 1)), pandas.get_dummies(pandas.Series(labels))

    population = PerClient([client("a", "b"), client("b", "a")])
    assert population.encoding().classes == ("a", "b")
    assert experiment(population, test=(np.zeros((1, 1)), np.array([[0, 1]]))).resolved.test_examples().y.tolist() == [
        [0, 1]
    ]
    with pytest.raises(ConfigError, match="client 0 numbers the classes a, b, client 1 b, c"):
        PerClient([client("a", "b"), client("b", "c")]).sizes()
    with pytest.raises(ConfigError, match="test numbers the classes b, c, the population a, b"):
        experiment(population, test=client("b", "c")).resolved.test_examples()
    with pytest.raises(ConfigError, match="client 0 has a matrix of labels for the classes b, c"):
        experiment(population, validation=PerClient([client("b", "c")])).resolved.validation_clients()


def test_populations_around_a_population_have_its_encoding(tables):
    population = PerClient(tables)
    train, validation = split_clients(population, 0.4)
    statistics = FeatureStatistics(np.zeros(2), np.ones(2))
    around = (
        train,
        validation,
        next(kfold_clients(population, 2))[0],
        Selected(population, [1]),
        Standardised(population, statistics),
        LabelFlip(population, (0,), classes=3),
    )
    assert {one.encoding() for one in around} == {population.encoding()}
    assert (
        experiment(train, validation=validation).resolved.validation_clients() is validation
    )  # nothing has to be translated
    assert LabelFlip(population, (0,), classes=3).examples(0).y.tolist() == [1, 2, 0]


def test_labels_that_are_numbers_stay_or_are_meant_by_value():
    numbers = labelled(7, 3)
    assert PerClient([numbers]).examples(0).y is numbers[1]
    for dtype in (np.int64, np.float32, str):
        assert PerClient([labelled(7, 3, dtype=dtype)], classes=(3, 7, 9)).examples(0).y.tolist() == [1, 0]
    with pytest.raises(ConfigError, match="labels from 3 to 7, which are no numbers of the 2 classes a, b"):
        PerClient([numbers], classes=("a", "b")).examples(0)


@pytest.mark.parametrize(
    ("clients", "classes", "message"),
    [
        (
            [labelled("cat"), labelled("dog", "elk")],
            ("cat", "dog"),
            "client 1 has the label 'elk' in row 2, which is n",
        ),
        ([labelled("cat"), labelled(0)], None, r"client 1 has .*int64\[1\].*, client 0 .*<U3"),
        ([labelled("cat", " cat")], None, r"labels \[' cat'\] and \['cat'\] differ by spaces only"),
        ([labelled("cat", "")], None, r"client 0 lacks labels \(1\), in row 2"),
        ([labelled("cat")], "cat", "expected classes='cat' to be a list of names"),
        ([labelled("cat")], ("cat", "cat"), "that differ, got one twice"),
        ([(np.ones((1, 1)), {"a": np.array(["cat"])})], None, "client 0 has several arrays of labels"),
    ],
)
def test_what_has_no_one_meaning_is_refused(clients, classes, message):
    with pytest.raises(ConfigError, match=message):
        PerClient(clients, classes).sizes()


def test_tables_that_mix_text_and_numbers_are_refused(tables, write):
    with pytest.raises(ConfigError, match="client 0 has labels with names, and client 2 plain numbers"):
        PerClient([*tables, write("numbers.csv", "f,g,label", "1,2,0")]).sizes()


def test_sources_that_number_their_classes_must_agree(tables):
    first, second = tables
    given = [CsvTable(one.path, "label", classes=CLASSES) for one in tables]
    assert PerClient(given).encoding().classes == CLASSES
    assert experiment(PerClient(given), test=second).resolved.test_examples().y.tolist() == [2, 1]
    other = CsvTable(second.path, "label", classes=("owl", "dog"))
    with pytest.raises(ConfigError, match="client 0 numbers the classes cat, dog, owl, client 1 owl, dog: give"):
        PerClient([given[0], other]).sizes()
    with pytest.raises(ConfigError, match="test numbers the classes owl, dog, the population cat, dog, owl"):
        experiment(PerClient([first, second]), test=other).resolved.test_examples()


def test_text_that_a_model_takes_stays_text():
    population = PerClient([labelled("one", "two"), labelled("three")], classes=())
    assert population.examples(1).y.tolist() == ["three"]


def test_where_no_client_sees_the_others_classes_must_be_given(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"make\(0\) has labels of text, .* give classes="):
        Generated(2, lambda client: labelled("dog"), 1).examples(0)
    assert Generated(2, lambda client: labelled("dog"), 1, classes=CLASSES).examples(1).y.tolist() == [1]
    by_value = Generated(2, lambda client: Arrays(*labelled(7, 3)), 2, classes=(3, 7))
    assert by_value.examples(1).y.tolist() == [1, 0]
    with pytest.raises(ConfigError, match="like has labels of text"):
        OnDevice(2, labelled("dog"), most=3)
    devices = OnDevice(2, labelled("dog"), most=3, classes=CLASSES)
    x, y = labelled("owl", "cat")
    np.savez(tmp_path / "own.npz", x=x, y=y)
    monkeypatch.setenv("UMBEL_CLIENT_DATA", str(tmp_path / "own.npz"))
    assert devices.examples(1).y.tolist() == [2, 0]
    assert devices.sample().y.tolist() == [1]


def test_a_file_that_changed_is_read_again(write):
    table = write("own.csv", "f,label", "1,dog", "2,owl")
    before = PerClient([table])
    assert before.encoding().classes == ("dog", "owl")
    write("own.csv", "f,label", "1,ant", "2,dog", "3,owl")
    assert PerClient([CsvTable(table.path, "label")]).encoding().classes == ("ant", "dog", "owl")


def test_any_source_is_a_client(tmp_path):
    np.savez(tmp_path / "set.npz", x=np.zeros((1, 1), np.float32), y=np.array(["dog"]))
    rows = TorchDataset([{"x": np.zeros(1, np.float32), "label": "owl"}])
    population = PerClient([labelled("cat"), Arrays(*labelled("a")), NpzFile(tmp_path / "set.npz"), rows])
    assert [names_of(population, client) for client in range(4)] == [["cat"], ["a"], ["dog"], ["owl"]]
    with pytest.raises(ConfigError, match="expected clients in a list, got a dictionary"):
        PerClient({"a": labelled("cat")})
    with pytest.raises(ConfigError, match="expected one client's examples, got a population"):
        PerClient([population])


@pytest.mark.parametrize(
    "keys", [np.array(["b", None, "a"], object), np.array(["b", " ", "a"]), np.array([2.0, np.nan, 1.0])], ids=str
)
def test_examples_without_a_key_are_refused_or_a_client_of_their_own(keys):
    arrays = (np.arange(3.0), np.arange(3))
    with pytest.raises(ConfigError, match=r"1 examples have no key, in row 2: leave them out, or .*missing='client'"):
        Partitioned(arrays, ByKey(keys)).sizes()
    population = Partitioned(arrays, ByKey(keys, missing="client"))
    assert [population.examples(client).y.tolist() for client in range(3)] == [[2], [0], [1]]


def test_partitions_by_label_are_those_of_numbers():
    labels = np.array(["b", "a", "c"] * 8)
    text = Partitioned((np.arange(24.0), labels), Shards(1), clients=3)
    numbers = Partitioned((np.arange(24.0), np.unique(labels, return_inverse=True)[1].astype(np.int32)), Shards(1), 3)
    for client in range(3):
        np.testing.assert_array_equal(text.examples(client).y, numbers.examples(client).y)
        np.testing.assert_array_equal(text.examples(client).x, numbers.examples(client).x)


def test_examples_in_place_of_tuples_are_not_copied():
    own = Examples(*labelled(0, 1))
    assert PerClient([own]).examples(0).x is own.x
