"""`umbel compare RUN RUN`, which runs nothing, and `umbel run --dry-run`, which keeps nothing."""

import json

from shown import begin, go_on
from umbel.server.store import Store


def test_stored_runs_are_compared_and_nothing_is_run(here, folder):
    with Store.open("sqlite:///umbel.db") as store:
        runs = [begin(store, description={"strategy.server_lr": rate}) for rate in ("1.0", "0.5")]
        for run in runs:
            go_on(store, run, [1, 2, 3])
    status, output, _ = here("compare", *runs)
    assert status == 0
    assert "strategy.server_lr" in output
    with Store.open("sqlite:///umbel.db") as store:
        assert len(store.views.overviews()) == 2
    status, output, errors = here("compare", *runs, "--seeds", "2")
    assert (status, output) == (2, "")
    assert "--seeds is of experiments that are run" in errors
    status, output, _ = here("compare", *runs, "--json")
    assert status == 0
    assert [json.loads(line)["name"] for line in output.splitlines()] == [f"digits_fedavg {run}" for run in runs]


def test_a_dry_run_says_what_the_run_then_takes_and_keeps_nothing(here, folder, whole):
    words = ["tiny.py", "--workers", "1", "--compile", "graph"]
    status, output, errors = here("run", *words, "--dry-run", "--json")
    said = json.loads(output)
    assert status == 0
    assert errors == ""
    assert not (folder / "umbel.db").exists()
    *rounds, _ = map(json.loads, whole[1].splitlines())
    assert said["bytes_up"] == sum(one["bytes_up"] for one in rounds)
    assert said["bytes_down"] == sum(one["bytes_down"] for one in rounds)
    assert (said["rounds"], said["clients"], said["expected_cohort"]) == (5, 10, 3)
    assert said["epsilon"] is None
    assert said["peak_bytes"] > 100e6
    status, _, errors = here("run", *words, "--dry-run", "--resume", "latest")
    assert status == 2
    assert "new simulation; drop --resume" in errors
