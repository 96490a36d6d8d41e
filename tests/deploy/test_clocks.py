"""Clocks that are wrong are said in seconds, with the host and what to do."""

import contextlib
import ssl
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from umbel import ConfigError, UmbelError
from umbel.deploy import clocks, parties
from umbel.deploy.clocks import clock_skew, complaint, described
from umbel.deploy.kits import ServerKit

NOW = time.time


@pytest.fixture
def server(fed):
    """Something that speaks TLS with the kit's certificate, and says what time it is."""
    kit = fed / "server"

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response_only(200)
            self.send_header("Date", formatdate(NOW(), usegmt=True))
            self.end_headers()

        def log_message(self, *_):
            """Nothing."""

    port = ServerKit.load(kit).port
    with HTTPServer(("127.0.0.1", port), Answer) as served:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(kit / "server.crt", kit / "server.key")
        served.socket = context.wrap_socket(served.socket, server_side=True)
        thread = threading.Thread(target=served.serve_forever, args=(0.05,))
        thread.start()
        yield port, kit / "ca.crt"
        served.shutdown()
        thread.join()


@pytest.mark.parametrize("ahead", [0, 60, -400, 4e8])
def test_it_is_measured_whatever_certificates_say(server, monkeypatch, ahead):
    real = clocks.time.time
    monkeypatch.setattr(clocks.time, "time", lambda: real() + ahead)
    assert clock_skew("127.0.0.1", *server) == pytest.approx(ahead, abs=2)


def test_what_the_server_would_refuse_is_said_with_what_to_do():
    assert complaint(60.2, "fed.org") == (
        "this host's clock is 60 seconds ahead of that of the server at fed.org; the server lets nobody in who is more "
        "than 5 seconds ahead, or 300 behind: set the clock that is wrong, as by ntp"
    )
    assert "301 seconds behind that of" in complaint(-301.0, "fed.org")
    assert [complaint(skew, "fed.org") for skew in (None, 0.0, 4.0, -299.0)] == [None] * 4
    assert described(-98.4, "x") == "this host's clock is 98 seconds behind that of the server at x"


def test_a_server_that_cannot_be_asked_says_nothing(fed, tmp_path):
    assert clock_skew("127.0.0.1", ServerKit.load(fed / "server").port, fed / "server/ca.crt") is None
    (tmp_path / "ca.crt").write_text("nothing")
    with pytest.raises(ConfigError, match=r"ca\.crt does not hold the federation's certificate"):
        clock_skew("127.0.0.1", 1, tmp_path / "ca.crt")


def test_a_superlink_that_hangs_is_not_healthy(fed, server, monkeypatch):
    """It takes connections, and answers none: the kernel does the first for a process that is stopped."""
    kit = ServerKit.load(fed / "server")
    check = parties.superlink_check(kit)
    monkeypatch.setattr(parties, "CHECK_SECONDS", 0.3)
    check()
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler))
        hung = ServerKit(kit.folder, kit.host, kit.public_port, silent.server_port, kit.store, kit.token_sha256)
        check = parties.superlink_check(hung)
        check()  # it may still be starting
        monkeypatch.setattr(parties, "START_SECONDS", 0.0)
        with pytest.raises(UmbelError, match=r"the SuperLink does not answer on port \d+: .*timed out"):
            check()


def test_a_port_that_is_taken_is_said_at_once(fed, server):
    from umbel.deploy import federation

    with pytest.raises(ConfigError, match=r"port \d+ cannot be used: Address already in use"):
        federation.up(fed, lambda text: None)
