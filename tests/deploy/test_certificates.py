"""A client that meets the wrong server says what is wrong with it: real handshakes on loopback."""

import contextlib
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest

from umbel import ConfigError
from umbel.deploy.certificates import Authority, check_dates, host_and_port, joined, pem, probe


@pytest.fixture(scope="module")
def authority():
    return Authority.new("test")


@pytest.fixture
def ca(authority, tmp_path):
    path = tmp_path / "ca.crt"
    path.write_bytes(pem(authority.certificate))
    return path


@contextlib.contextmanager
def served(folder, issued):
    """A TLS server with this certificate, or one of plaintext; its port."""
    context = None
    if issued is not None:
        (folder / "crt").write_bytes(issued.certificate)
        (folder / "key").write_bytes(issued.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "crt", folder / "key")

    def answer():
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                if context is None:
                    connection.recv(1)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                else:
                    context.wrap_socket(connection, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
    thread.join()


def test_the_right_server_is_let_through(authority, ca, tmp_path):
    with served(tmp_path, authority.issue(["127.0.0.1"])) as port:
        probe("127.0.0.1", port, ca)


@pytest.mark.parametrize(
    ("hosts", "days", "begins", "complaint"),
    [
        (["127.0.0.1"], 1, datetime.now(UTC) - timedelta(days=2), "its certificate has expired"),
        (["127.0.0.1"], 9, datetime.now(UTC) + timedelta(days=2), "its certificate is not valid yet; set this host's"),
        (["fed.example.org", "10.0.0.1"], 9, None, "is for another host name or address than 127.0.0.1"),
    ],
)
def test_a_wrong_certificate_is_named(authority, ca, tmp_path, hosts, days, begins, complaint):
    with (
        served(tmp_path, authority.issue(hosts, days, begins=begins)) as port,
        pytest.raises(ConfigError, match=complaint),
    ):
        probe("127.0.0.1", port, ca)


def test_another_authority_is_refused_even_under_the_same_name(authority, ca, tmp_path):
    with (
        served(tmp_path, Authority.new("test").issue(["127.0.0.1"])) as port,
        pytest.raises(ConfigError, match=r"is not of this federation's authority \(ca\.crt\)"),
    ):
        probe("127.0.0.1", port, ca)


def test_plaintext_is_refused(ca, tmp_path):
    with (
        served(tmp_path, None) as port,
        pytest.raises(ConfigError, match="does not speak TLS, and plaintext is refused"),
    ):
        probe("127.0.0.1", port, ca)


def test_a_forwarder_whose_server_is_not_there_yet_is_no_stranger(ca):
    """It takes the connection and hangs up: the client goes on trying, as with nobody there."""

    def hang_up():
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(OSError, match="cut in the TLS handshake"):
            probe("127.0.0.1", listener.getsockname()[1], ca)
    thread.join()


def test_a_server_with_an_expired_certificate_does_not_start(authority, tmp_path):
    path = tmp_path / "server.crt"
    path.write_bytes(authority.issue(["a.org"], 1, begins=datetime.now(UTC) - timedelta(days=2)).certificate)
    with pytest.raises(ConfigError, match=r"server\.crt expired on .* UTC; renew it"):
        check_dates(path, "renew it")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.org:1", ("a.org", 1)),
        ("a.org", ("a.org", 443)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("[::1]:8443", ("::1", 8443)),
        ("::1", ("::1", 443)),
    ],
)
def test_addresses_are_read_and_written_back(text, expected):
    assert host_and_port(text, 443) == expected
    assert host_and_port(joined(*expected)) == expected
