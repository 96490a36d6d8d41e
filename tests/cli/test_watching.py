"""`umbel run --log … --monitor …`: a log that machines can read to the end, and figures while the run goes on."""

import json
import re
import time
import urllib.error
import urllib.request

import pytest

from umbel.server.monitoring.watching import holds, monitored_party


def events(text):
    """The log's events; every line has to be one, but for what libraries write."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def page(address, path):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{address}{path}") as reply:
        return reply.read().decode()


def test_a_running_run_is_watched_and_paused(start):
    process = start("run", "tiny.py", "--set", "rounds=5000", "--log", "json", "--monitor", "127.0.0.1:0")
    try:
        first = json.loads(process.stderr.readline())
        address = re.search(r"http://(\S+)/metrics", first["message"])[1]
        deadline = time.monotonic() + 120
        while not re.search(r"^umbel_round [1-9]", text := page(address, "/metrics"), re.M):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert 'umbel_run_state{state="running"} 1' in text
        assert json.loads(page(address, "/healthz")) == {"status": "ok", "checks": {"loop": "ok"}}
        assert json.loads(page(address, "/readyz")) == {"status": "ok", "checks": {"database": "ok"}}
        assert holds("healthz", address)
        assert not holds("nothing", address)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143  # ended by SIGTERM, as schedulers expect
    assert not holds("healthz", address)
    last = events(errors)[-1]
    assert last["level"] == "warning"
    assert last["run"] in last["message"]
    assert "umbel: " not in errors


@pytest.mark.parametrize("form", ["json", "plain"])
def test_an_error_is_said_once_in_the_logs_form(here, form):
    status, output, errors = here("run", "tiny.py", "--monitor", "nonsense", "--log", form)
    assert (status, output) == (2, "")
    (line,) = errors.splitlines()
    assert "monitor='nonsense'" in line
    assert line.startswith("{" if form == "json" else "20")


def test_without_a_log_an_error_is_said_as_ever(here):
    status, _, errors = here("run", "tiny.py", "--monitor", "nonsense")
    assert (status, errors.startswith("umbel: expected monitor='nonsense'")) == (2, True)


def test_a_party_is_watched_where_the_variable_says(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("UMBEL_MONITOR", "127.0.0.1:0")
    store = tmp_path / "new.db"
    with monitored_party(None, {"ca": tmp_path / "missing.crt"}, f"sqlite:///{store}"):
        address = re.search(r"http://(\S+)/metrics", caplog.text)[1]
        with pytest.raises(urllib.error.HTTPError) as refused:
            page(address, "/readyz")
        assert json.loads(refused.value.read())["checks"] == {"certificate_ca": "failed", "database": "ok"}
        assert store.exists()
        assert holds("healthz", address)
        assert "umbel_rounds_total" in page(address, "/metrics")
    monkeypatch.delenv("UMBEL_MONITOR")
    with monitored_party(None, {}, f"sqlite:///{tmp_path}/other.db"):
        assert not (tmp_path / "other.db").exists()
