"""`umbel ui` and `umbel run --ui`: a link to a page that answers, ended by Ctrl-C without a word."""

import http.cookiejar
import json
import re
import signal
import urllib.request

import pytest

from umbel.cli.run import DEFAULT_STORE
from umbel.cli.ui import federation_of
from umbel.core.errors import ConfigError
from umbel.deploy import kits
from umbel.server.store import Store

LINK = re.compile(r"umbel: (http://127\.0\.0\.1:\d+)(/\S*\?token=\S+)")


def opener():
    """A browser that keeps cookies and asks no proxy."""
    jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), jar)


def test_the_link_opens_the_store_and_ctrl_c_ends_it_at_once(start, folder):
    Store.open("sqlite:///umbel.db").close()
    process = start("ui", "--port", "0", "--no-browser")
    base, path = LINK.search(process.stderr.readline()).groups()
    browser = opener()
    assert "<title>Umbel</title>" in browser.open(base + path, timeout=30).read().decode()
    events = browser.open(f"{base}/events?mark=", timeout=30)
    assert events.readline() == b"retry: 2000\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--store", "sqlite:///none.db"], "does not exist"),
        (["--port", "65536"], "expected 0 ≤ port=65536 ≤ 65535"),
        (["--host", "256.1.1.1"], "Name or service not known; choose another --host"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(here, folder, words, said):
    Store.open("sqlite:///umbel.db").close()
    status, output, errors = here("ui", "--no-browser", *words)
    assert (status, output) == (2, "")
    assert said in errors
    assert errors.count("\n") == 1


def test_a_run_says_where_its_page_is_and_its_output_is_what_it_was(here):
    status, output, errors = here("run", "tiny.py", "--ui", "--json", "--quiet")
    assert status == 0
    *rounds, final = map(json.loads, output.splitlines())
    _, path = LINK.search(errors).groups()
    assert path.startswith(f"/runs/{final['final']['run']}?")
    assert [one["round"] for one in rounds] == list(range(1, len(rounds) + 1))


def test_a_federation_that_is_down_is_said_to_be_and_its_store_is_looked_at(tmp_path):
    kits.make(tmp_path / "fed", "127.0.0.1", None, ["north", "south"], port=1)
    for folder in (tmp_path / "fed", tmp_path / "fed" / "operator"):
        store, status = federation_of(folder, DEFAULT_STORE)
        found = status()
        assert store.endswith("/fed/server/state/umbel.db")
        assert found["server"]["connected"] is False
        assert [(one["name"], one["state"]) for one in found["clients"]] == [("north", "unknown"), ("south", "unknown")]
    assert federation_of(folder, "sqlite:///other.db")[0] == "sqlite:///other.db"
    with pytest.raises(ConfigError, match="is no kit of an operator"):
        federation_of(tmp_path, DEFAULT_STORE)
