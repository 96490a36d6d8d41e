"""Which of Flower's failed calls are made again: those that a server, started again, would answer."""

import threading
import time

import httpx
import pytest
from flwr.supercore.retry import make_simple_http_retry_invoker

from umbel.runtimes.flower.private import RETRY_SECONDS, make_patient


def status(code):
    request = httpx.Request("POST", "https://127.0.0.1/v1/fleet/pull-messages")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(code, request=request))


TRANSIENT = [
    httpx.ConnectError("[Errno 111] Connection refused"),
    httpx.ReadError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)"),
    httpx.ReadError("[Errno 104] Connection reset by peer"),
    httpx.RemoteProtocolError("Server disconnected without sending a response; TLS connection closed"),
    *map(status, (429, 502, 503, 504)),
]
FINAL = [
    httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired"),
    httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"),
    *map(status, (400, 404, 413, 500)),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=str)
def test_a_server_that_is_gone_or_busy_is_called_again(error):
    """Soon after it has come back; what it did not do because it was gone is noted."""
    outages, failures = threading.Event(), [error, error]

    def call():
        if failures:
            raise failures.pop()
        return "done"

    began = time.monotonic()
    assert make_patient(make_simple_http_retry_invoker(), outages).invoke(call) == "done"
    assert time.monotonic() - began < 2 * RETRY_SECONDS + 0.5
    assert outages.is_set() is isinstance(error, httpx.TransportError)


@pytest.mark.parametrize("error", FINAL, ids=str)
def test_what_will_not_change_is_said_at_once(error):
    def call():
        raise error

    began = time.monotonic()
    with pytest.raises(type(error)):
        make_patient(make_simple_http_retry_invoker()).invoke(call)
    assert time.monotonic() - began < 0.5
