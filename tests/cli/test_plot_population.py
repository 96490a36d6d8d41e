"""`umbel plot` of an experiment draws who has what data."""

from pathlib import Path


def test_an_experiments_clients_are_drawn(here):
    status, output, _ = here("plot", "tiny.py", "--set", "population.clients=4", "-o", "out/clients.svg")
    assert (status, output) == (0, "out/clients.svg\n")
    assert Path("out/clients.svg").read_text("utf-8").count("<path") > 4 * 10  # a bar for each label of each client
    assert here("plot", "digits_fedavg", "--clients", "5")[:2] == (0, "digits_fedavg-clients.png\n")
    status, _, errors = here("plot", "latest", "--set", "rounds=2")
    assert status == 2
    assert "--set is of an experiment" in errors
