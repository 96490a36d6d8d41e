"""Every kind of round on a cluster of three nodes; drivers that are killed at every step, and resumed in process."""

import pytest

from clusters import cluster
from interruptions import CRASH_POINTS, Killed, kill_at
from optional import needs_tenseal
from seam import CASES, experiment, same
from simulations import play
from umbel import Ray, run, strategies
from umbel.runtimes.ray import crew, division

pytest.importorskip("ray", reason="pip install 'umbel[ray]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def three():
    """Three nodes of a processor each, and a runtime on them; sums travel from 12 clients on."""
    with cluster(3) as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(division, "FEW", 4)
        patch.setattr(crew, "OTHERS_SECONDS", 90.0)  # all are waited for
        ray = Ray(made.address, compile="graph")
        yield made, ray
        ray.close()


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_tenseal if "Homo" in name else ()) for name in CASES])
def test_it_has_the_bits_of_a_simulation(three, name):
    asked = experiment(**CASES[name])
    same(run(asked, three[1], watchers=()), play(asked, watchers=()))
    assert three[1].figures["processes"] == 3


@pytest.mark.parametrize("strategy", [strategies.Scaffold(), strategies.FedBuff(18)], ids=repr)
@pytest.mark.parametrize("point", CRASH_POINTS)
def test_a_driver_that_is_killed_anywhere(three, strategy, point, monkeypatch, tmp_path):
    asked = experiment(strategy=strategy, rounds=3)
    store = f"sqlite:///{tmp_path}/runs.db"
    with monkeypatch.context() as patch:
        kill_at(patch, point, 2)
        with pytest.raises(Killed):
            run(asked, three[1], store=store, watchers=())
    same(play(asked, store=store, resume="latest", watchers=()), play(asked, watchers=()))
