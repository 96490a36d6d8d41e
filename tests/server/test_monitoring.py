"""Logs, metrics and health: what they say of a run, and that nothing a client sends can make them grow or lie."""

import ast
import contextlib
import io
import json
import logging
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import parser

import umbel
from umbel.core.errors import BudgetSpent, ConfigError, RunStopped
from umbel.core.system.printable import is_printable, printable
from umbel.core.types import Failure, RoundRecord
from umbel.server.monitoring import (
    REASONS,
    Exporter,
    Inbox,
    JsonFormatter,
    Monitor,
    PlainFormatter,
    Registry,
    Relay,
    RoundFilter,
    certificate_check,
    check_certificate,
    configure_logs,
    database_check,
    exporter,
    relayed,
    validity,
    warn_of_expiry,
)
from umbel.server.store import Store

ROOT = Path(umbel.__file__).parent
EXPERIMENT = SimpleNamespace(name="tiny", rounds=3, population=range(10), secure_aggregation=None)
HIDDEN = SimpleNamespace(**vars(EXPERIMENT) | {"secure_aggregation": "SecureSum()"})


def record(round=1, clients=3, failures=0, metrics=None, **more):
    flat = {"seconds": 2.0, "eval_seconds": 0.5, "bytes_up": 100, "bytes_down": 200, "epsilon": None}
    return RoundRecord(round, clients, failures, metrics or {}, **flat | more)


def values(text):
    """Samples of a rendered registry: {'name{labels}': value}."""
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


@pytest.fixture
def monitor():
    monitor = Monitor()
    monitor.on_start(EXPERIMENT, None, "r1", ())
    return monitor


def test_a_run_is_counted_as_it_went(monitor):
    failures = [Failure(4, "timeout", "…"), Failure(5, "non_finite", "…"), Failure(6, "client_error", "…")]
    monitor.on_round(record(1, clients=4, metrics={"test_accuracy": 0.5}, epsilon=0.25), ())
    monitor.on_round(record(2, clients=3, failures=3, metrics={"train_loss": 1.5}, epsilon=0.75), failures)
    found = values(monitor.text())
    assert found['umbel_rounds_total{result="complete"}'] == found['umbel_rounds_total{result="partial"}'] == 1
    assert found['umbel_updates_total{reason="none",result="counted"}'] == 7
    assert found['umbel_updates_total{reason="timeout",result="lost"}'] == 1
    assert found['umbel_updates_total{reason="non_finite",result="rejected"}'] == 1
    assert [found[f'umbel_clients{{state="{state}"}}'] for state in ("counted", "left_out", "away", "idle")] == [
        3,
        2,
        1,
        4,
    ]
    assert found['umbel_bytes_total{direction="up"}'] == 200
    assert found["umbel_epsilon"] == 0.75
    assert found['umbel_quality{examples="test",measure="accuracy"}'] == 0.5
    assert found['umbel_quality{examples="train",measure="loss"}'] == 1.5
    assert found['umbel_phase_seconds_sum{phase="training"}'] == 4
    assert found['umbel_phase_seconds_bucket{le="1.0",phase="training"}'] == 0
    assert found['umbel_phase_seconds_bucket{le="3.0",phase="training"}'] == 2
    assert found['umbel_phase_seconds_bucket{le="+Inf",phase="training"}'] == 2
    assert (found["umbel_round"], found["umbel_rounds_planned"]) == (2, 3)


def test_ten_thousand_names_and_reasons_add_no_series(monitor):
    monitor.on_round(record(metrics={"train_loss": 1.0}, failures=1), [Failure(1, "timeout", "")])
    before = set(values(monitor.text()))
    for number in range(10_000):
        name = f'x{number}"}} 1\nforged_total 1'
        failures = [Failure(number, name, name)]
        monitor.on_round(record(metrics={"train_loss": 1.0, f"train_{name}": 1.0, name: 2.0}, failures=1), failures)
    after = values(monitor.text())
    assert set(after) == before
    assert after['umbel_updates_total{reason="other",result="rejected"}'] == 10_000


def test_every_reason_in_the_code_has_a_label():
    """A new code that is not listed would be counted as "other"."""
    found = set()
    for path in (
        path for folder in ("clients", "privacy", "server", "runtimes") for path in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("Failure", "Malformed")
            ):
                place = node.args[1 if node.func.id == "Failure" else 0 :][:1]
                found |= {one.value for one in place if isinstance(one, ast.Constant)}
    assert len(found) > 10
    assert found - set(REASONS) == set()


@pytest.mark.parametrize(
    ("error", "result", "state", "experiment", "aborts"),
    [
        (RunStopped("too few"), "abandoned", "stopped", EXPERIMENT, 0),
        (RunStopped("too few"), "abandoned", "stopped", HIDDEN, 1),
        (BudgetSpent("ε"), "abandoned", "stopped", HIDDEN, 0),
        (ZeroDivisionError(), "failed", "failed", HIDDEN, 0),
        (KeyboardInterrupt(), None, "paused", HIDDEN, 0),
    ],
)
def test_what_ends_a_run_is_counted_once(error, result, state, experiment, aborts):
    monitor = Monitor()
    with contextlib.suppress(type(error)), monitor:
        monitor.on_start(experiment, None, "r1", ())
        raise error
    found = values(monitor.text())
    assert [found[f'umbel_rounds_total{{result="{one}"}}'] for one in ("abandoned", "failed")] == [
        result == "abandoned",
        result == "failed",
    ]
    assert found[f'umbel_run_state{{state="{state}"}}'] == 1
    assert sum(value for name, value in found.items() if name.startswith("umbel_run_state")) == 1
    assert found["umbel_aggregation_aborts_total"] == aborts


def test_the_text_is_what_prometheus_reads(monitor):
    monitor.on_round(record(epsilon=0.5), ())
    text = monitor.text()
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    read = [sample for family in families.values() for sample in family.samples]
    assert len(read) == len(values(text)) > 60
    assert families["umbel_phase_seconds"].type == "histogram"
    assert families["umbel_rounds"].type == "counter"
    for family in families.values():
        assert family.documentation


@pytest.mark.parametrize("name", ["", "Upper", "a-b", 'a"b', "a\nb", "9a"])
def test_a_name_that_the_format_cannot_hold_is_refused(name):
    with pytest.raises(ValueError, match="lower-case"):
        Registry().counter(name, "help")
    with pytest.raises(ValueError, match="lower-case"):
        Registry().gauge("name", "help", label=[name])


def test_counters_do_not_shrink_and_labels_are_as_declared():
    registry = Registry()
    counter = registry.counter("a_total", "help", kind=("x", "y"))
    for amount, labels in [(-1, {"kind": "x"}), (float("nan"), {"kind": "x"}), (1, {"kind": "z"}), (1, {})]:
        with pytest.raises(ValueError, match="a_total"):
            counter.add(amount, **labels)
    assert values(registry.render()) == {'a_total{kind="x"}': 0, 'a_total{kind="y"}': 0}


def test_a_loop_that_hangs_is_not_alive():
    moment = [100.0]
    monitor = Monitor(stall_seconds=60, clock=lambda: moment[0])
    moment[0] += 1000
    monitor.check_loop()  # no run: nothing can hang
    monitor.on_start(EXPERIMENT, None, "r1", ())
    moment[0] += 59
    monitor.on_round(record(), ())
    moment[0] += 60
    monitor.check_loop()
    moment[0] += 1
    with pytest.raises(RunStopped, match="no round in 61 s"):
        monitor.check_loop()
    monitor.on_end(None)
    monitor.check_loop()


def test_a_run_in_another_process_is_counted_the_same(monkeypatch):
    monkeypatch.delenv("UMBEL_MONITOR_SOCKET", raising=False)
    failures = [Failure(n, "timeout" if n % 2 else f"made up {n}", "long " * 1000) for n in range(5000)]
    rounds = [
        (record(2, metrics={f"x{n}": 1.0 for n in range(10_000)} | {"test_accuracy": 0.5}, epsilon=0.5), ()),
        (record(3, failures=5000), failures),
    ]

    def play(watcher):
        watcher.on_start(HIDDEN, None, "r1", [record(1, epsilon=0.25)])
        for one, failed in rounds:
            watcher.on_round(one, failed)

    direct, far = Monitor(clock=lambda: 0.0), Monitor(clock=lambda: 0.0)
    with contextlib.suppress(RunStopped), direct:
        play(direct)
        raise RunStopped("too few")
    with relayed() as nobody:
        assert nobody == []
    with Inbox(far), contextlib.suppress(RunStopped), relayed() as (relay,):
        play(relay)
        raise RunStopped("too few")
    assert far.text() == direct.text()
    assert "UMBEL_MONITOR_SOCKET" not in os.environ


def test_a_run_does_not_wait_for_a_monitor_that_hangs_or_is_gone(tmp_path):
    path = str(tmp_path / "events")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf, Relay(path) as relay:
        relay.on_round(record(), ())  # not there yet
        deaf.bind(path)
        began = time.monotonic()
        for _ in range(2000):
            relay.on_round(record(), ())  # until its queue is full
        assert time.monotonic() - began < 5


def test_what_is_no_event_does_not_end_the_monitor():
    monitor = Monitor()
    with Inbox(monitor), Relay(os.environ["UMBEL_MONITOR_SOCKET"]) as relay:
        for content in (b"\xff", b"[]", b"{}", b'{"event": "round"}', b'{"event": "error", "kind": 1}'):
            relay._socket.sendto(content, os.environ["UMBEL_MONITOR_SOCKET"])
        relay.on_start(EXPERIMENT, None, "r1", ())
    assert values(monitor.text())["umbel_rounds_planned"] == 3


def get(address, path, method="GET"):
    request = urllib.request.Request(f"http://{address}{path}", method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as reply:
            return reply.status, reply.read().decode(), dict(reply.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


def test_the_pages_say_what_holds(monkeypatch, caplog):
    monkeypatch.setattr(exporter, "CHECK_SECONDS", 0)
    broken = []

    def database():
        if broken:
            raise ConfigError("store postgresql://secret-host/runs cannot be reached")

    with Exporter("127.0.0.1:0", lambda: "umbel_round 1\n", {"loop": lambda: None}, {"database": database}) as at:
        assert get(at.address, "/metrics")[1] == "umbel_round 1\n"
        assert get(at.address, "/metrics")[2]["Content-Type"].startswith("text/plain; version=0.0.4")
        assert json.loads(get(at.address, "/healthz")[1]) == {"status": "ok", "checks": {"loop": "ok"}}
        assert get(at.address, "/readyz")[0] == 200
        broken.append(True)
        status, text, _ = get(at.address, "/readyz")
        assert (status, json.loads(text)) == (503, {"status": "failed", "checks": {"database": "failed"}})
        assert get(at.address, "/healthz")[0] == 200  # a broken database does not restart the process
        get(at.address, "/readyz")
        assert sum("secret-host" in message for message in caplog.messages) == 1  # in the log, once
        broken.clear()
        assert get(at.address, "/readyz")[0] == 200
        assert get(at.address, "/")[0] == get(at.address, "/etc/passwd")[0] == 404
        assert get(at.address, "/metrics", "POST")[0] == 501
        assert get(at.address, "/metrics", "HEAD")[:2] == (200, "")
    with pytest.raises(OSError, match="refused"):
        get(at.address, "/healthz")


def test_a_check_is_not_made_for_every_request():
    calls = []
    with Exporter("127.0.0.1:0", str, ready={"database": lambda: calls.append(1)}) as at:
        assert {get(at.address, "/readyz")[0] for _ in range(20)} == {200}
    assert len(calls) == 1


def test_slow_connections_are_few_and_cut(monkeypatch):
    monkeypatch.setattr(exporter, "CONNECTIONS", 4)
    monkeypatch.setattr(exporter, "REQUEST_SECONDS", 0.25)
    before = threading.active_count()
    with Exporter("127.0.0.1:0", lambda: "fine\n") as at, contextlib.ExitStack() as stack:
        host, port = at.address.split(":")
        lines = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(20)]
        for line in lines:
            line.sendall(b"GET /metrics HT")
        assert threading.active_count() - before <= 1 + 2 * 4
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                for line in lines:
                    line.sendall(b"T")  # a byte now and then, for ever
            with contextlib.suppress(OSError):
                if get(at.address, "/metrics")[1] == "fine\n":
                    break
            time.sleep(0.05)
        else:
            pytest.fail("slow connections kept everybody out")


@pytest.mark.parametrize("address", ["9464", "127.0.0.1", "127.0.0.1:x", ":9464", "127.0.0.1:70000", "256.1.1.1:0"])
def test_an_address_that_cannot_be_listened_on_is_refused(address):
    with pytest.raises(ConfigError, match="monitor="):
        Exporter(address, str)


def test_a_taken_port_is_refused():
    with Exporter("127.0.0.1:0", str) as at, pytest.raises(ConfigError, match="cannot listen"):
        Exporter(at.address, str)


def pem(begins, ends):
    """A self-signed certificate."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(begins).not_valid_after(ends)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("begins", "ends", "is_ready", "is_warned"),
    [
        (-1, 15, True, False),
        (-1, 13.9, True, True),
        (-1, 1.1, True, True),
        (-1, 0.9, False, True),
        (-2, -1, False, True),
        (1, 100, False, False),
    ],
)
def test_a_certificate_is_warned_of_before_it_is_refused(begins, ends, is_ready, is_warned, caplog):
    content = pem(NOW + begins * DAY, NOW + ends * DAY)
    assert (warn_of_expiry(content, "server", NOW) is not None) == is_warned == bool(caplog.messages)
    if is_ready:
        check_certificate(content, NOW)
    else:
        with pytest.raises(ConfigError, match=r"valid from|expires|expired"):
            check_certificate(content, NOW)


def test_of_several_certificates_the_first_to_expire_counts():
    chain = pem(NOW - 3 * DAY, NOW + 50 * DAY) + pem(NOW - 2 * DAY, NOW + 60 * DAY)
    assert validity(chain) == (NOW - 2 * DAY, NOW + 50 * DAY)
    with pytest.raises(ConfigError, match="PEM"):
        validity(b"-----BEGIN PRIVATE KEY-----")


def test_a_replaced_certificate_is_seen_without_a_restart(tmp_path):
    path, now = tmp_path / "server.pem", datetime.now(UTC).replace(microsecond=0)
    path.write_bytes(pem(now - DAY, now + 3 * DAY))
    monitor, check = Monitor({"server": path}), certificate_check(path)
    name = 'umbel_certificate_expiry_timestamp_seconds{certificate="server"}'
    check()
    assert values(monitor.text())[name] == (now + 3 * DAY).timestamp()
    assert len(monitor.warn_of_certificates()) == 1
    path.write_bytes(pem(now - DAY, now + 90 * DAY))
    assert values(monitor.text())[name] == (now + 90 * DAY).timestamp()
    assert monitor.warn_of_certificates() == []
    path.unlink()
    assert "cannot read" in monitor.warn_of_certificates()[0]
    with pytest.raises(ConfigError, match="cannot read"):
        check()


def test_a_database_that_takes_no_writes_is_not_ready(tmp_path):
    path = tmp_path / "runs.db"
    check = database_check(f"sqlite:///{path}")
    with pytest.raises(umbel.core.errors.StoreError, match="does not exist"):
        check()
    Store.open(f"sqlite:///{path}").close()
    check()
    content = path.read_bytes()
    check()
    assert path.read_bytes()[:100] == content[:100]  # nothing was changed by writing it
    read_only = database_check(f"sqlite:///{path}?mode=ro&uri=true")
    with pytest.raises(umbel.core.errors.StoreError):
        read_only()


NASTY = 'node\n{"level": "error"}\r\x1b[2J\x1b]0;title\x07\x9b31m\u2028\u202egnp.\x00'


def test_nothing_unprintable_leaves_and_what_is_printable_stays():
    assert is_printable(printable(NASTY))
    assert is_printable(printable("\ud800"))  # not logged below: pytest could not hand it from process to process
    assert "\\n" in printable(NASTY)
    assert "title" not in printable(NASTY)
    assert printable("naïve 節点 → ok") == "naïve 節点 → ok"
    assert len(printable("x" * 10**6, 50)) == 50
    assert printable("\x1b]0;never closed") == ""


@pytest.fixture
def logs():
    """What is logged, as text, in the form asked for; the package's loggers as they were after."""
    logger = logging.getLogger("umbel")
    level, handlers = logger.level, list(logger.handlers)

    def begin(form):
        stream, context = io.StringIO(), RoundFilter()
        configure_logs(form, stream, context)
        return stream, context

    yield begin
    logger.setLevel(level)
    logger.handlers[:] = handlers


def test_a_json_log_is_a_parsable_line_per_event(logs):
    stream, context = logs("json")
    with contextlib.suppress(RunStopped), context:
        context.on_start(EXPERIMENT, None, "r1", ())
        logging.getLogger("umbel.runtimes.flower.nodes").warning("node %s joined", NASTY)
        context.on_round(record(1, failures=1), [Failure(7, "schema", NASTY)])
        try:
            raise ValueError(NASTY)
        except ValueError:
            logging.getLogger("umbel.server").exception("it broke")
        raise RunStopped("round 2: too few")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["info", "warning", "warning", "info", "error", "error"]
    assert all(line["run"] == "r1" and is_printable(line["message"]) for line in lines)
    assert [line.get("round") for line in lines] == [0, 1, 1, 1, 2, 2]
    assert [line.get("client") for line in lines] == [None, None, 7, None, None, None]
    assert "ValueError" in lines[4]["error"]
    assert datetime.fromisoformat(lines[0]["time"]).tzinfo is UTC


def test_a_plain_log_cannot_be_forged_either(logs):
    stream, context = logs("plain")
    context.on_start(EXPERIMENT, None, "r1", ())
    logging.getLogger("umbel.x").warning(NASTY, extra={"client": "evil\n2026-01-01 INFO all is well"})
    try:
        raise ValueError("a\n2026-01-01 INFO all is well")
    except ValueError:
        logging.getLogger("umbel.x").exception("it broke")
    lines = stream.getvalue().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z (INFO|WARNING|ERROR) |    ", line) for line in lines)
    assert all(map(is_printable, lines))
    assert "(run r1, round 1, client evil\\n2026" in lines[1]


def test_a_record_of_nobodys_run_has_no_fields():
    event = logging.LogRecord("umbel.x", logging.INFO, "f", 1, "plain", (), None)
    assert set(json.loads(JsonFormatter().format(event))) == {"time", "level", "logger", "message"}
    assert PlainFormatter().format(event).endswith("INFO    plain")


def test_configured_twice_an_event_is_written_once(logs):
    first, _ = logs("plain")
    second, _ = logs("json")
    logging.getLogger("umbel.x").info("once")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1


def test_a_cluster_is_counted_once_whatever_runs_are_on_it():
    """Machines as they are, what happened to them as it grows; also when one runtime plays another run."""

    figures = {"nodes": 2, "processes": 8, "lost": 0, "again": 0, "twice": 0, "bytes": 100}
    monitor, cluster = Monitor(), SimpleNamespace(figures=figures)
    monitor.on_start(EXPERIMENT, cluster, "r1", ())
    cluster.figures = figures | {"processes": 7, "lost": 1, "again": 3, "bytes": 250}
    monitor.on_round(record(1), ())
    monitor.on_end(None)
    monitor.on_start(EXPERIMENT, cluster, "r2", ())
    monitor.on_round(record(1), ())
    text = monitor.text()
    for line in ('cluster{what="nodes"} 2.0', 'cluster{what="processes"} 7.0', 'cluster_events_total{what="lost"} 1.0'):
        assert f"umbel_{line}\n" in text
    assert 'umbel_cluster_events_total{what="again"} 3.0\n' in text
    assert "umbel_cluster_bytes_total 250.0\n" in text
    cluster.figures = figures | {"bytes": 10}  # closed, and opened again
    monitor.on_round(record(2), ())
    assert "umbel_cluster_bytes_total 260.0\n" in monitor.text()
