"""Partitioners: the contract that all keep, and the law that each is named after."""

import numpy as np
import pytest

from umbel.core.errors import ConfigError
from umbel.core.random import derive
from umbel.data import (
    ALL_PARTITIONERS,
    Arrays,
    ByKey,
    ClassesPerClient,
    Dbscan,
    Digits,
    Dirichlet,
    FeatureSkew,
    Iid,
    KMeans,
    LogNormal,
    Partitioned,
    PowerLaw,
    Shards,
)

CONTRACT = [
    Iid(),
    Dirichlet(alpha=0.1),
    Dirichlet(alpha=10.0),
    Shards(per_client=2),
    ClassesPerClient(classes=2),
    LogNormal(sigma=1.5),
    PowerLaw(exponent=1.2),
    FeatureSkew(strength=0.5),
    ByKey(np.arange(1437) % 80),
    KMeans(clusters=8),
    Dbscan(eps=1.2),
]
ORDERED = (ByKey, Dbscan)  # no chance in them, as long as groups stay whole


def generator(seed=0):
    return derive(seed, "test").generator()


def balanced(labels=10, per_label=120):
    """A source with `per_label` examples of each label, in mixed order; x is the label."""
    y = np.tile(np.arange(labels), per_label)
    return Arrays(y[:, None].astype(np.float32), y)


def labels_by_client(population):
    """Label counts, shape (clients, labels)."""
    y = population.source.load().y
    counts = [np.bincount(y[population.indices(client)], minlength=y.max() + 1) for client in range(len(population))]
    return np.array(counts)


def mean_distance(counts):
    """Mean total-variation distance of the clients' labels from all labels."""
    overall = counts.sum(axis=0) / counts.sum()
    return (np.abs(counts / counts.sum(axis=1, keepdims=True) - overall).sum(axis=1) / 2).mean()


def test_the_contract_covers_every_partitioner():
    assert {type(by) for by in CONTRACT} == set(ALL_PARTITIONERS)


@pytest.mark.parametrize("by", CONTRACT, ids=repr)
@pytest.mark.parametrize("clients", [5, 20, 97])
def test_every_example_has_one_owner_and_every_client_an_example(by, clients):
    population = Partitioned(Digits(), by=by, clients=clients)
    rows = [population.indices(client) for client in range(clients)]
    assert sorted(np.concatenate(rows)) == list(range(1437))
    assert [len(own) for own in rows] == population.sizes().tolist()
    assert population.sizes().min() >= 1
    assert all((np.diff(own) > 0).all() for own in rows)


@pytest.mark.parametrize("by", CONTRACT, ids=repr)
def test_equal_seeds_give_equal_owners_and_others_do_not(by):
    owners = [by.partition(Digits(), 20, generator(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(owners[0], owners[1])
    assert isinstance(by, ORDERED) or (owners[0] != owners[2]).any()


@pytest.mark.parametrize("by", CONTRACT, ids=repr)
def test_more_clients_than_examples_are_refused(by):
    with pytest.raises(ConfigError, match=r"expected clients=2000 ≤ 1437 examples"):
        by.partition(Digits(), 2000, generator())


@pytest.mark.parametrize("by", [Dirichlet(1.0), Shards(), ClassesPerClient()], ids=repr)
def test_label_skew_needs_one_class_label(by):
    x = np.zeros((30, 2), np.float32)
    for y, found in [(np.zeros((30, 5)), r"shape \(30, 5\)"), (None, "NoneType"), (np.linspace(0, 1, 30), "fractions")]:
        with pytest.raises(ConfigError, match=rf"expected .*class label.*{found}"):
            by.partition(Arrays(x, y), 3, generator())


def test_one_hot_and_column_labels_are_labels():
    y = np.arange(60) % 5
    shapes = [y, y[:, None], np.eye(5)[y], y.astype(str), y.astype(np.float32)]
    owners = [Dirichlet(0.5).partition(Arrays(np.zeros((60, 1)), one), 6, generator()) for one in shapes]
    assert all((one == owners[0]).all() for one in owners)


@pytest.mark.parametrize("by", [Iid(), LogNormal(0.0), PowerLaw(0.0), Dirichlet(1.0), FeatureSkew()], ids=repr)
def test_sizes_are_equal_where_promised(by):
    sizes = Partitioned(Digits(), by=by, clients=100).sizes()
    assert sizes.max() - sizes.min() <= 1


def test_dirichlet_goes_from_one_label_to_iid():
    source = balanced(labels=10, per_label=1000)
    alphas = (1e-6, 0.1, 1.0, 10.0, 1e6)
    distances = [mean_distance(labels_by_client(Partitioned(source, Dirichlet(alpha), 50))) for alpha in alphas]
    assert distances == sorted(distances, reverse=True)
    iid = mean_distance(labels_by_client(Partitioned(source, Iid(), 50)))
    assert distances[0] > 0.85  # a single label would be 0.9, but the last clients take what is left
    assert distances[-1] == pytest.approx(iid, rel=0.2)


def test_dirichlet_has_the_variance_of_the_paper():
    alpha, size, clients = 3.0, 50, 2000
    population = Partitioned(balanced(labels=2, per_label=size * clients // 2), Dirichlet(alpha), clients)
    fractions = labels_by_client(population)[:, 0] / size
    p = 0.5
    of_mixture = p * (1 - p) / (alpha + 1)  # of q ~ Dir(α·p)
    expected = of_mixture + (p * (1 - p) - of_mixture) / size  # and of `size` draws from q
    assert fractions.var() == pytest.approx(expected, rel=0.08)
    assert fractions.var() != pytest.approx(p * (1 - p) / (2 * alpha + 1), rel=0.2)  # Dir(α) per label


def test_shards_limit_the_labels_of_a_client():
    exact = labels_by_client(Partitioned(balanced(), Shards(per_client=2), 50))  # 12 divides 120: no shard is mixed
    assert ((exact > 0).sum(axis=1) <= 2).all()
    assert (exact.sum(axis=1) == 24).all()
    uneven = labels_by_client(Partitioned(Digits(), Shards(per_client=2), 50))
    assert ((uneven > 0).sum(axis=1) <= 4).all()
    with pytest.raises(ConfigError, match=r"clients=1000 × per_client=2 ≤ 1437 examples"):
        Shards().partition(Digits(), 1000, generator())


@pytest.mark.parametrize(("clients", "classes"), [(3, 4), (10, 1), (40, 3), (20, 10)])
def test_classes_per_client_is_exact(clients, classes):
    counts = labels_by_client(Partitioned(Digits(), ClassesPerClient(classes), clients))
    assert ((counts > 0).sum(axis=1) == classes).all()
    shares = [column[column > 0] for column in counts.T]
    assert all(share.max() - share.min() <= 1 for share in shares)


@pytest.mark.parametrize(
    ("clients", "classes", "message"),
    [(10, 11, "classes=11 ≤ 10 labels"), (3, 2, "clients=3 × classes=2 ≥ 10 labels"), (1400, 9, "lower clients")],
)
def test_classes_per_client_says_what_cannot_be(clients, classes, message):
    with pytest.raises(ConfigError, match=message):
        ClassesPerClient(classes).partition(Digits(), clients, generator())


def test_log_normal_sizes_have_that_sigma():
    sizes = Partitioned(balanced(per_label=50_000), LogNormal(sigma=0.8), 1000).sizes()
    assert np.log(sizes - 1).std() == pytest.approx(0.8, rel=0.1)


def test_power_law_sizes_fall_with_that_exponent():
    sizes = np.sort(Partitioned(balanced(per_label=50_000), PowerLaw(exponent=1.1), 200).sizes())[::-1] - 1
    slope = np.polyfit(np.log(np.arange(1, 201)), np.log(sizes), 1)[0]
    assert slope == pytest.approx(-1.1, rel=0.01)


def test_feature_skew_orders_clients_along_the_widest_direction():
    x = generator().standard_normal((2000, 6)) * np.array([0.1, 0.1, 5.0, 0.1, 0.1, 0.1])
    source = Arrays(x.astype(np.float32))

    def spread_of_means(strength):
        population = Partitioned(source, FeatureSkew(strength), 20)
        return np.std([population.examples(client).x[:, 2].mean() for client in range(20)])

    spreads = [spread_of_means(strength) for strength in (0.0, 0.5, 1.0)]
    assert spreads[0] < 1.0 < spreads[1] < spreads[2]
    assert spreads[2] == pytest.approx(5.0, rel=0.1)  # nothing of the widest direction is left within a client


def test_constant_features_are_no_obstacle():
    assert Partitioned(Arrays(np.ones((40, 3))), FeatureSkew(), 8).sizes().tolist() == [5] * 8


def test_a_key_is_a_client():
    keys = np.array(["mercy", "alpine", "mercy", "coast", "mercy", "alpine"], object)
    population = Partitioned(Arrays(np.arange(6.0)), ByKey(keys))
    assert [population.indices(client).tolist() for client in range(len(population))] == [[1, 5], [3], [0, 2, 4]]
    assert ByKey(keys) == ByKey(keys.copy()) != ByKey(keys[::-1])


def test_keys_must_be_there_and_fit():
    with pytest.raises(ConfigError, match="has no groups of its own: give them, ByKey"):
        len(Partitioned(Digits(), ByKey()))
    with pytest.raises(ConfigError, match=r"expected keys of shape \(1437,\), one per example, got \(3,\)"):
        len(Partitioned(Digits(), ByKey(np.arange(3))))


def test_fewer_clients_than_groups_keep_groups_whole_and_loads_even():
    keys = np.repeat(np.arange(30), 1 + np.arange(30))
    owners = ByKey(keys).partition(Arrays(np.zeros(len(keys))), 7, generator())
    assert all(len(np.unique(owners[keys == key])) == 1 for key in range(30))
    loads = np.bincount(owners)
    assert loads.max() - loads.min() <= 30


@pytest.mark.parametrize("clients", [10, 60, 99, 100])
def test_more_clients_than_groups_share_no_group(clients):
    keys = np.repeat(np.arange(4), [1, 2, 7, 90])
    owners = ByKey(keys).partition(Arrays(np.zeros(100)), clients, generator())
    assert len(np.unique(owners)) == clients == owners.max() + 1
    assert all(len(np.unique(keys[owners == client])) == 1 for client in range(clients))


def blobs():
    """Three far groups of 40 points, and two stray points near the first and the last."""
    points = generator().standard_normal((120, 2)) * 0.2 + np.repeat([[0, 0], [10, 0], [20, 0]], 40, axis=0)
    return np.concatenate([points, [[-2.0, 0.0], [23.0, 0.0]]]), np.append(np.repeat(np.arange(3), 40), [0, 2])


@pytest.mark.parametrize("by", [KMeans(clusters=3), Dbscan(eps=0.5, min_samples=4)], ids=repr)
def test_clusters_find_the_groups_and_strays_go_to_the_nearest(by):
    points, expected = blobs()
    for dtype in (np.float64, np.float32):
        population = Partitioned(Arrays(points.astype(dtype)), by)
        assert len(population) == 3
        found = {tuple(population.indices(client)) for client in range(3)}
        assert found == {tuple(np.flatnonzero(expected == group)) for group in range(3)}


def test_clusters_that_cannot_be():
    with pytest.raises(ConfigError, match="finds no cluster in 122 examples: raise eps"):
        len(Partitioned(Arrays(blobs()[0]), Dbscan(eps=1e-6)))
    with pytest.raises(ConfigError, match="give the population clients="):
        len(Partitioned(Arrays(blobs()[0]), KMeans()))
    with pytest.raises(ConfigError, match="expected x of numbers"):
        len(Partitioned(Arrays(np.array(["a", "b"])), KMeans(clusters=1)))
    assert len(Partitioned(Arrays(blobs()[0]), KMeans(), clients=5)) == 5


@pytest.mark.parametrize(
    "build",
    [
        lambda: Dirichlet(alpha=0.0),
        lambda: Dirichlet(alpha=float("nan")),
        lambda: Shards(per_client=0),
        lambda: ClassesPerClient(classes=0),
        lambda: LogNormal(sigma=-1.0),
        lambda: PowerLaw(exponent=-1.0),
        lambda: FeatureSkew(strength=1.5),
        lambda: KMeans(clusters=0),
        lambda: Dbscan(eps=0.0),
        lambda: Dbscan(min_samples=0),
    ],
)
def test_values_out_of_bounds_are_refused_when_built(build):
    with pytest.raises(ConfigError, match=r"expected \w+="):
        build()
