"""How few may form a hidden sum is a client's own experiment's to say, whatever roll a server proposes."""

import numpy as np
import pytest

from umbel import AllClients, FixedCohort, PoissonCohort
from umbel.core.bases import Sampler
from umbel.core.parts.sampling import WeightedCohort, least_cohort
from umbel.core.random import Key
from umbel.core.reading.adapted import adapted
from umbel.core.sums import Meeting
from umbel.core.types import NOTHING, ClientUpdate, Failure, Shape
from umbel.privacy import SecureSum

MEMBERS = 12
HIDDEN = SecureSum(limit=1.0, metrics=())


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kits")
    HIDDEN.provision(folder / "server", {number: folder / f"c{number}" for number in range(MEMBERS)})
    return folder


def lied_to(kits, home, cohort, least):
    """What an honest client of the cohort answers a server that says no more than it must, stage by stage."""
    honest, lying = (Meeting("run", 1, len(cohort), Shape(5, 0), bytes(32), floor) for floor in (least, 0))
    clients = {c: HIDDEN.client(honest if c == cohort[0] else lying, c, kits / f"c{c}", home / f"{c}") for c in cohort}
    session = HIDDEN.server(lying, cohort, kits / "server")
    said = []
    while messages := session.advance():
        for client, message in messages.items():
            if session._server.stage.name == "ADVERTISE":
                assert clients[client].check(message) is None
                clients[client].provide(ClientUpdate(np.ones(5, np.float32), NOTHING, 1.0, {}), Key.fresh())
            reply = clients[client].answer(message)
            if client == cohort[0]:
                said.append(reply)
                if isinstance(reply, Failure):
                    return said
            session.receive(client, reply)
    return said


@pytest.mark.parametrize(
    ("cohort", "least", "refused"),
    [(3, 8, True), (7, 8, True), (8, 8, False), (3, None, True), (7, None, True), (8, None, False), (3, 0, False)],
)
def test_a_roll_below_the_floor_is_refused_before_any_secret_is_shared(cohort, least, refused, kits, tmp_path):
    """None: by a client that does not know its experiment's sampler, and insists on two thirds of the roster."""
    said = lied_to(kits, tmp_path, list(range(cohort)), least)
    if refused:
        assert len(said) == 2  # its advert; then, of the roll: no share of anything
        assert "clients take part; at least 8 are needed" in said[-1].detail
    else:
        assert not any(isinstance(reply, Failure) for reply in said)


@pytest.mark.parametrize(
    ("sampler", "clients", "least"),
    [
        (FixedCohort(100), 1000, 67),
        (FixedCohort(100), 3, 67),  # whatever population a server says that there is
        (FixedCohort(3), 1000, 2),
        (WeightedCohort(10), 1000, 7),
        (AllClients(), 12, 8),
        (PoissonCohort(0.1), 10_000, 778),
        (PoissonCohort(0.5), 8, 0),
    ],
)
def test_the_floor_follows_from_the_sampler(sampler, clients, least):
    assert least_cohort(sampler, clients) == least


def test_a_sampler_of_somebodys_own_has_no_floor():
    class Own:
        def sample(self, clients, sizes, key):
            return []

    assert least_cohort(adapted(Own(), Sampler), 100) is None


def test_poisson_cohorts_fall_short_of_their_floor_never():
    sampler, clients = PoissonCohort(0.2), range(2000)
    least = least_cohort(sampler, len(clients))
    sizes = [len(sampler.sample(clients, None, Key(bytes([n]) * 16))) for n in range(200)]
    assert 0 < least < min(sizes)
