"""What the page answers, to whom, and that it only reads."""

import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

import umbel
from shown import INJECTED, PLAN, SPEC, begin, go_on, record, standing, state, sweep
from umbel.core.reading.loading import load_experiment
from umbel.server.monitoring import Monitor, pages_of
from umbel.server.ui import PageAddress, create_app
from umbel.server.ui.comparing import MOST
from umbel.studies.importance import importance_of

ADDRESS = PageAddress(port=8300, token="correct")
AT = "http://127.0.0.1:8300"
STATIC = Path(umbel.__file__).parent / "server/ui/static"


def client(store, admitted=True, **more):
    """A browser; one that has the token's cookie, unless it is not admitted."""
    browser = TestClient(create_app(store, ADDRESS), base_url=AT, **more)
    if admitted:
        browser.cookies.set("umbel-8300", ADDRESS.token)
    return browser


@pytest.fixture
def page(seen):
    """A browser that is admitted, before every kind of run; their ids."""
    return client(seen[0]), seen[1]


ADDRESSES = ("/", "/runs/x", "/compare", "/sweeps", "/models", "/federation", "/api/runs", "/api/totals", "/api/models")


@pytest.mark.parametrize(
    "address", [*ADDRESSES, "/api/federation", "/static/app.js", "/plotly.js", "/events", "/nowhere"]
)
def test_nothing_is_answered_without_the_token(seen, address):
    browser = client(seen[0], admitted=False)
    assert browser.get(address).status_code == 403
    assert browser.get(f"{address}?token=wrong").status_code == 403
    browser.cookies.set("umbel-8300", "wrong")
    assert browser.get(address).status_code == 403


def test_a_token_becomes_a_cookie_that_scripts_do_not_see_and_leaves_the_address(seen):
    browser = client(seen[0], admitted=False, follow_redirects=False)
    reply = browser.get("/compare?run=a&token=correct&run=b")
    assert (reply.status_code, reply.headers["location"]) == (303, "/compare?run=a&run=b")
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert browser.get("/api/runs").status_code == 200


def test_a_link_with_a_token_leads_nowhere_else(seen):
    browser = client(seen[0], admitted=False, follow_redirects=False)
    reply = browser.get("http://127.0.0.1:8300//evil.example/?token=correct")
    assert reply.headers["location"].startswith("/")
    assert not reply.headers["location"].startswith("//")


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8300", "", "10.0.0.9"]
)
def test_a_name_that_is_not_this_machines_is_refused(page, host):
    assert page[0].get("/api/runs", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:9", "127.0.0.1", "[::1]:8300", "LOCALHOST"])
def test_names_of_this_machine_are_taken_at_any_port(seen, host):
    reply = client(seen[0], admitted=False, follow_redirects=False).get("/?token=correct", headers={"host": host})
    assert reply.status_code == 303


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_reading_is_answered(page, method):
    assert page[0].request(method, "/api/runs").status_code == 405


@pytest.mark.parametrize("address", [*ADDRESSES, "/nowhere", "/api/runs/none"])
def test_every_answer_has_a_policy_that_runs_no_script_of_the_page(page, address):
    headers = page[0].get(address).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_page_fetches_nothing_from_elsewhere_and_reads_no_text_as_html():
    files = {path.name: path.read_text("utf-8") for path in STATIC.iterdir()}
    for name, text in files.items():
        assert not re.findall(r"(?:src|href|from|url\()\W{0,2}(?:https?:)?//", text), name
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", files["index.html"])


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fguard.py", "/runs/../../etc"]
)
def test_no_path_leads_out_of_the_static_files(page, path):
    reply = page[0].get(path)
    assert reply.status_code in (200, 404)
    assert "starlette" not in reply.text


@pytest.mark.parametrize("run", ["' OR 1=1 --", "%", "_", "x'; DROP TABLE runs; --"])
def test_a_run_that_is_asked_for_is_never_read_as_sql(page, run):
    browser, runs = page
    assert browser.get(f"/api/runs/{run}").status_code == 404
    assert len(browser.get("/api/runs").json()["runs"]) == len(runs)


def test_every_run_is_listed_newest_first_with_what_it_reached(page):
    browser, runs = page
    listed = browser.get("/api/runs").json()["runs"]
    assert [one["run"] for one in listed] == list(runs.values())[::-1]
    by_run = {one["run"]: one for one in listed}
    last = record(8, top=0.9).metrics
    running = by_run[runs["running"]]
    assert (running["state"], running["rounds_done"], running["rounds_planned"]) == ("running", 8, 20)
    assert (running["accuracy"], running["accuracy_of"]) == (last["test_accuracy"], "test_accuracy")
    assert by_run[runs["nan"]]["loss"] == "NaN"
    assert by_run[runs["empty"]]["accuracy"] is None
    assert by_run[runs["private"]]["epsilon"] == pytest.approx(2 * math.sqrt(30 / 40))
    assert by_run[runs["injected"]]["experiment"] == INJECTED


def test_totals_are_the_sums_over_rounds(page):
    browser, runs = page
    totals = browser.get("/api/totals").json()["totals"]
    records = [record(round) for round in range(1, 21)]
    finished = totals[runs["finished"]]
    assert finished["seconds"] == pytest.approx(sum(one.seconds + one.eval_seconds for one in records))
    assert finished["bytes"] == sum(one.bytes_up + one.bytes_down for one in records)
    assert finished["failures"] == sum(one.failures for one in records)
    assert totals[runs["empty"]] == {"seconds": 0.0, "bytes": None, "failures": 0}


def test_a_run_between_two_evaluations_shows_the_last_one(store):
    run = begin(store)
    go_on(store, run, [1])
    store.commit_round(run, state(2), record(2)._replace(metrics={"train_loss": 1.0}, eval_seconds=None), {})
    browser = client(store)
    assert browser.get("/api/totals").json()["totals"][run]["accuracy"] == record(1).metrics["test_accuracy"]


def test_rounds_are_columns_in_which_what_was_not_measured_is_null(page):
    browser, runs = page
    columns = browser.get(f"/api/runs/{runs['nan']}").json()["rounds"]
    assert columns["round"] == list(range(1, 13))
    assert columns["metrics"]["train_loss"][6:] == ["Infinity"] * 6
    assert columns["metrics"]["test_loss"][5:7] == [record(6).metrics["test_loss"], "NaN"]
    assert columns["epsilon"] == [None] * 12


def test_a_vector_has_a_column_for_each_component(store):
    run = begin(store)
    go_on(store, run, [1], metrics={"test_f1": (0.25, math.nan)})
    browser = client(store)
    columns = browser.get(f"/api/runs/{run}").json()["rounds"]["metrics"]
    assert (columns["test_f1_0"], columns["test_f1_1"]) == ([0.25], ["NaN"])
    assert browser.get("/api/runs").status_code == browser.get("/api/totals").status_code == 200


def test_settings_stand_beside_those_of_the_shipped_experiment(store):
    shipped = load_experiment("digits_fedavg")
    described = {**shipped.describe(), "local.epochs": "3"}
    run = begin(store, "digits_fedavg", 9, described)
    found = client(store).get(f"/api/runs/{run}").json()
    differing = [one for one in found["settings"] if one["value"] != one["shipped"]]
    assert differing == [{"path": "local.epochs", "value": "3", "shipped": str(shipped.local.epochs)}]
    assert found["command"] == "umbel run digits_fedavg --set local.epochs=3 --set rounds=9"


def test_another_experiment_of_a_shipped_ones_name_has_no_command(store):
    described = {**load_experiment("digits_fedavg").describe(), "model": "another_model"}
    run = begin(store, "digits_fedavg", 9, described)
    assert client(store).get(f"/api/runs/{run}").json()["command"] is None


def test_which_way_a_metric_goes_is_what_the_run_says(page):
    browser, runs = page
    directions = browser.get(f"/api/runs/{runs['injected']}").json()["directions"]
    assert (directions["test_loss"], directions["validation_accuracy_p10"], directions[INJECTED]) == (
        "min",
        "max",
        None,
    )


def test_an_experiment_of_a_users_own_has_no_command_and_nothing_to_differ_from(page):
    browser, runs = page
    found = browser.get(f"/api/runs/{runs['private']}").json()
    assert (found["command"], found["is_shipped"]) == (None, False)


def test_a_budget_says_for_how_many_rounds_it_is_calibrated(page):
    browser, runs = page
    budget = browser.get(f"/api/runs/{runs['private']}").json()["budget"]
    assert (budget["epsilon"], budget["rounds"]) == (float(PLAN["plan.epsilon"]), float(PLAN["plan.rounds"]))
    assert browser.get(f"/api/runs/{runs['finished']}").json()["budget"] is None


def test_of_a_noise_of_the_users_own_nobody_says_for_how_many_rounds_it_is(store):
    run = begin(store, "own", 9, PLAN | {"plan.noise_multiplier": "1.5"})
    assert client(store).get(f"/api/runs/{run}").json()["budget"]["rounds"] is None


def test_runs_are_compared_in_the_settings_that_differ(page):
    browser, runs = page
    found = browser.get("/api/compare", params={"run": [runs["running"], runs["finished"]]}).json()
    assert found["differences"] == [{"path": "strategy.server_lr", "values": ["1.0", "0.5"]}]
    assert [one["run"]["run"] for one in found["runs"]] == [runs["running"], runs["finished"]]


@pytest.mark.parametrize(("metric", "mode", "target"), [("test_accuracy", "max", 0.5), ("test_loss", "min", 1.0)])
def test_a_target_is_reached_in_the_first_round_that_meets_it(page, metric, mode, target):
    browser, runs = page
    asked = {"run": runs["finished"], "metric": metric, "mode": mode, "target": target}
    (reached,) = browser.get("/api/target", params=asked).json()["reached"]
    records = [record(round) for round in range(1, 21)]
    is_met = {"max": lambda value: value >= target, "min": lambda value: value <= target}[mode]
    count = next(one.round for one in records if is_met(one.metrics[metric]))
    assert reached["round"] == count
    assert reached["seconds"] == pytest.approx(sum(one.seconds + one.eval_seconds for one in records[:count]))
    assert reached["bytes"] == sum(one.bytes_up + one.bytes_down for one in records[:count])


def test_a_target_that_was_not_reached_and_nan_are_not_reached(page):
    browser, runs = page
    asked = {"run": [runs["nan"], runs["empty"]], "metric": "test_loss", "mode": "min", "target": -1}
    assert browser.get("/api/target", params=asked).json()["reached"] == [None, None]


@pytest.mark.parametrize(
    "asked", [{"target": "x"}, {"target": "1", "mode": "up"}, {"run": ["a"] * (MOST + 1), "target": 1}]
)
def test_what_cannot_be_asked_is_refused_in_one_line(page, asked):
    reply = page[0].get("/api/target", params=asked)
    assert reply.status_code == 400
    assert "\n" not in reply.json()["error"]


def test_models_say_that_they_verify_where_aliases_pointed_and_give_their_weights(page):
    browser, _ = page
    found = {one["name"]: one for one in browser.get("/api/models").json()["models"]}
    model = found["digits_fedavg"]
    assert model["problem"] is None
    assert [one["version"] for one in model["versions"]] == [2, 1]
    assert model["versions"][0]["labels"] == ["reviewed"]
    assert (model["aliases"], [move["version"] for move in model["moves"]]) == ({"production": 2}, [2, 1])
    assert browser.get("/api/models/digits_fedavg/verify").json() == {"verified": 2, "problem": None}
    reply = browser.get("/api/models/digits_fedavg/2.npz")
    with np.load(io.BytesIO(reply.content)) as arrays:
        assert arrays["dense/kernel"].tolist() == np.full((20, 10), 0.9, np.float32).tolist()
    assert "digits_fedavg-2.npz" in reply.headers["content-disposition"]
    assert browser.get("/api/models/digits_fedavg/3.npz").status_code == 404


def test_a_model_whose_chain_is_broken_is_said_and_its_weights_are_not_given(store, tmp_path):
    run = begin(store)
    go_on(store, run, [1])
    store.models.register(run, state(1).params, SPEC, {})
    engine = sa.create_engine(f"sqlite:///{tmp_path}/runs.db")
    with engine.begin() as connection:
        for (trigger,) in connection.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            connection.execute(sa.text(f"DROP TRIGGER {trigger}"))
        changed = "replace(header, 'digits_fedavg', 'another')"
        connection.exec_driver_sql(f"UPDATE model_versions SET header = {changed}")
    engine.dispose()
    browser = client(store)
    (model,) = browser.get("/api/models").json()["models"]
    assert "does not verify" in model["problem"]
    assert model["versions"] == []
    assert browser.get("/api/models/digits_fedavg/1.npz").status_code == 404
    assert browser.get(f"/api/runs/{run}").json()["models"] == []


def test_looking_changes_nothing(store, tmp_path):
    run = begin(store)
    go_on(store, run, [1])
    engine = sa.create_engine(f"sqlite:///{tmp_path}/runs.db")
    with engine.connect() as connection:
        before = list(connection.connection.iterdump())
    browser = client(store)
    for address in (*ADDRESSES, f"/api/runs/{run}", f"/api/compare?run={run}"):
        browser.get(address)
    with engine.connect() as connection:
        assert list(connection.connection.iterdump()) == before
    engine.dispose()


def test_the_metrics_of_a_run_that_is_played_here_are_on_the_same_port(store):
    monitor = Monitor()
    browser = TestClient(create_app(store, ADDRESS, monitor=pages_of(monitor.text)), base_url=AT)
    assert browser.get("/metrics").status_code == 403
    wrong = {"Authorization": "Bearer wrong"}
    assert browser.get("/metrics", headers=wrong).status_code == 403
    right = {"Authorization": f"Bearer {ADDRESS.token}"}
    reply = browser.get("/metrics", headers=right)
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert reply.text == monitor.text()
    assert browser.get("/healthz", headers=right).json()["status"] == "ok"
    assert client(store).get("/metrics").status_code == 404  # a page that plays no run counts none


def served(store, **more):
    """A browser that is admitted to a page with more beside its store."""
    browser = TestClient(create_app(store, ADDRESS, **more), base_url=AT)
    browser.cookies.set("umbel-8300", ADDRESS.token)
    return browser


def test_a_federation_is_shown_with_its_last_round_and_no_path_of_this_machine(store):
    asked = []
    browser = served(store, federation=lambda: asked.append(1) or standing())
    assert browser.get("/api/federation").json()["last"] is None
    begin(store, "older")
    run = begin(store, planned=20)
    go_on(store, run, range(1, 4))
    reply = browser.get("/api/federation")
    found = reply.json()
    assert [one["trusts"] for one in found["clients"]] == [True, None, None]
    assert [one["file"] for one in found["certificates"]] == ["ca.crt", "server.crt"]
    assert "/kits" not in reply.text
    assert (found["last"]["run"]["run"], found["last"]["rounds"]["round"]) == (run, [3])
    assert len(asked) == 1  # a moment ago: whoever looks, the server is asked once
    assert 'href="/federation"' in browser.get("/").text


def test_a_page_without_a_federation_does_not_speak_of_one(page):
    assert 'href="/federation"' not in page[0].get("/").text
    reply = page[0].get("/api/federation")
    assert (reply.status_code, reply.json()) == (
        400,
        {"error": "this page was given no federation: umbel ui --federation KIT"},
    )


def test_what_a_cluster_counts_is_shown_of_the_run_that_is_played_on_it(store):
    first, second = begin(store), begin(store)
    figures = {"nodes": 2, "processes": 8, "lost": 1, "again": 3, "twice": 0, "bytes": 16_000_000}
    browser = served(store, cluster=lambda run: figures if run == first else None)
    assert browser.get(f"/api/runs/{first}").json()["cluster"] == figures
    assert browser.get(f"/api/runs/{second}").json()["cluster"] is None


def test_a_sweep_is_the_runs_of_an_experiment_over_what_differs(store):
    assert client(store).get("/api/sweeps").json()["experiments"] == []
    sweep(store)
    begin(store, "alone")
    browser = served(store, importance=importance_of)
    assert browser.get("/api/sweeps").json()["experiments"] == [{"name": "swept", "runs": 10}]
    found = browser.get("/api/sweep?experiment=swept").json()
    rate, strategy = sorted(found["axes"], key=lambda axis: axis["path"])
    assert rate == {"path": "local.learning_rate", "low": 0.01, "high": 1.0, "log": True}
    assert strategy == {"path": "strategy", "values": ["FedAdam", "FedAvg"]}
    assert (found["metric"], found["mode"]) == ("test_accuracy", "max")
    best = max((run for run in found["runs"] if isinstance(run["value"], float)), key=lambda run: run["value"])
    assert "0.2" in best["settings"]
    assert found["runs"][0]["value"] == "NaN"
    shares = browser.get("/api/importance?experiment=swept&metric=test_accuracy").json()["importance"]
    assert shares["local.learning_rate"] > shares["strategy"] > 0
    assert browser.get("/api/sweep?experiment=alone").status_code == 400
    assert client(store).get("/api/importance?experiment=swept").json() == {"importance": {}}
