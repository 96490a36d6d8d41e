"""The walk of docs/architecture.md: the files that it names are those that one update goes through."""

import re
import sys
from pathlib import Path

import umbel
from federations import federation
from umbel import Simulation, run

ROOT = Path(umbel.__file__).parent
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def files(begins):
    """The files of the walk whose paragraph begins so, in order."""
    paragraph = next(part for part in PAGE.split("\n\n") if part.startswith(begins))
    return re.findall(r"`([a-z_/]+\.py)`", paragraph)


def test_a_walk_is_short_and_its_files_are_there():
    for begins, most in (("FedAvg in simulation, ten files", 10), ("Over Flower, fifteen", 15)):
        walk = files(begins)
        assert len(walk) == len(set(walk)) <= most
        assert [name for name in walk if not (ROOT / name).is_file()] == []


def test_an_update_goes_through_every_file_of_the_simulations_walk():
    seen = set()

    def note(frame, event, value):
        if event == "call":
            seen.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        run(federation(rounds=1), Simulation(workers=1, compile="graph"), watchers=())
    finally:
        sys.setprofile(None)
    assert [name for name in files("FedAvg in simulation") if str(ROOT / name) not in seen] == []
