"""A kit holds all that a party needs and nothing of another's; what is odd is refused, and nothing is left behind."""

import contextlib
import itertools
import re
import shutil
import stat
import subprocess
import tomllib

import pytest
import yaml

from umbel import ConfigError
from umbel.deploy import kits, texts
from umbel.deploy.kits import ClientKit, OperatorKit, ServerKit

SECRETS = (
    "ca.key",
    "server.key",
    "node.key",
    "identity.jwk",
    "storage.jwk",
    "recipient.jwk",
    "operator.jwk",
    "control.token",
    "runtime.secret",
)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_every_kit_loads_and_names_the_same_federation(fed):
    server, operator = ServerKit.load(fed / "server"), OperatorKit.load(fed / "operator")
    clients = [ClientKit.load(fed / "clients" / name) for name in operator.clients]
    assert [(client.name, client.number, client.clients) for client in clients] == [("north", 0, 2), ("south", 1, 2)]
    assert {client.server for client in clients} == {operator.address} == {f"127.0.0.1:{server.port}"}
    assert list(server.node_keys) == ["north", "south"]
    assert server.store == operator.store == f"sqlite:///{fed.resolve()}/server/state/umbel.db"
    assert {client.roster().digest for client in clients} == {clients[0].roster().digest}


def test_secrets_are_private_and_in_one_kit_only(fed):
    found = {path: path.read_bytes() for path in files(fed) if path.name in SECRETS}
    assert {path.name for path in found} == set(SECRETS)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in found)
    for (one, content), (other, also) in itertools.combinations(found.items(), 2):
        assert content != also, (one, other)
    kit_of = {path: path.relative_to(fed).parts[:2] if "clients" in path.parts else path.parent for path in files(fed)}
    for secret, content in found.items():
        for path in files(fed):
            assert path == secret or content.strip() not in path.read_bytes(), (secret, path, kit_of[path])
    assert all((folder.stat().st_mode & 0o077) == 0 for folder in (fed, *(fed / "clients").iterdir()))


def test_the_server_knows_only_the_hash_of_the_token(fed):
    import hashlib

    token = OperatorKit.load(fed / "operator").token
    assert ServerKit.load(fed / "server").token_sha256 == hashlib.sha256(token.encode()).hexdigest()


def test_nothing_secret_is_printed(tmp_path, command):
    done = command(tmp_path, "deploy", "init", "fed", "--clients", "a,b", "--port", 18000)
    assert (done.returncode, done.stdout) == (0, "fed: kits of the server, of 2 clients, and of the operator\n")
    assert done.stderr == ""
    again = command(tmp_path, "deploy", "init", "fed", "--clients", "a,b")
    assert again.returncode == 2
    assert "fed is not an empty folder, and kits are never overwritten" in again.stderr


@pytest.mark.parametrize(
    ("clients", "complaint"),
    [
        (["a", "b/../c"], r"expected client 'b/../c' of at most 32 letters"),
        (["a b"], "expected client 'a b'"),
        (["-a"], "expected client '-a'"),
        ([""], "expected client ''"),
        (["a\n"], "expected client"),
        (["x" * 33], "expected client"),
        (["North", "north"], "'North' and 'north' have the same name"),
        ([], "expected 1 to 10000 clients, got 0"),
    ],
)
def test_odd_names_are_refused_and_leave_nothing(tmp_path, clients, complaint):
    with pytest.raises(ConfigError, match=complaint):
        kits.make(tmp_path / "fed", "127.0.0.1", None, clients)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["a_b.org", "-a.org", "a..b", "999.1.1.1", "a b", "", "x.org:70000", "x.org:", "x:y"])
def test_odd_hosts_are_refused(tmp_path, command, host):
    done = command(tmp_path, "deploy", "init", "fed", "--clients", "a", "--server", host)
    assert done.returncode == 2
    assert "to be a host name or address" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_secret_that_others_can_read_is_refused(fed):
    (fed / "clients/north/node.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"node\.key is open to others than its owner \(mode 0640\)"):
        ClientKit.load(fed / "clients/north")


def test_a_roster_of_another_operator_is_refused(fed, tmp_path):
    kits.make(tmp_path / "other", "127.0.0.1", None, ["north", "south"])
    shutil.copy(tmp_path / "other/clients/north/roster.bin", fed / "clients/north/roster.bin")
    with pytest.raises(ConfigError, match="the roster is not signed by the pinned authority"):
        ClientKit.load(fed / "clients/north")


def test_a_misspelt_setting_and_another_partys_kit_are_refused(fed):
    path = fed / "server/server.toml"
    path.write_text(path.read_text() + "hots = 1\n")
    with pytest.raises(ConfigError, match="no setting 'hots'; did you mean 'host'"):
        ServerKit.load(fed / "server")
    with pytest.raises(ConfigError, match="is no kit of a client: that is the kit of operator"):
        ClientKit.load(fed / "operator")


def test_the_control_api_is_reached_on_loopback_alone(fed):
    path = fed / "operator/operator.toml"
    path.write_text(path.read_text().replace("127.0.0.1", "fed.example.org"))
    with pytest.raises(ConfigError, match="on loopback: the control API is not published"):
        OperatorKit.load(fed / "operator")


def test_a_kit_can_be_moved(fed, tmp_path):
    moved = (fed / "server").rename(tmp_path / "elsewhere")
    assert ServerKit.load(moved).store == f"sqlite:///{moved.resolve()}/state/umbel.db"


def test_a_renewed_certificate_is_of_the_same_authority_and_hosts(fed):
    from umbel.deploy.authority import renew
    from umbel.deploy.certificates import hosts_of

    server = fed / "server"
    before = (server / "server.crt").read_bytes(), (server / "server.key").read_bytes(), hosts_of(server / "server.crt")
    renew(fed)
    after = (server / "server.crt").read_bytes(), (server / "server.key").read_bytes(), hosts_of(server / "server.crt")
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert before[2] == after[2] == ["127.0.0.1", "localhost", "::1"]
    verified = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", server / "ca.crt", server / "server.crt"], capture_output=True
    )
    assert verified.returncode == 0, verified.stdout


def test_texts_parse_and_keep_their_promises(fed):
    for party, kit in (("server", fed / "server"), ("client", fed / "clients/north")):
        service = yaml.safe_load((kit / "compose.yaml").read_text())["services"][party]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["command"] == ["umbel", party, "start", "/kit"]
        unit = (kit / f"umbel-{party}.service").read_text()
        assert re.search(rf"^ExecStart=/opt/umbel/bin/umbel {party} start /etc/umbel/{party}$", unit, re.M)
        assert subprocess.run(["sh", "-n", kit / "start.sh"]).returncode == 0
    assert tomllib.loads(texts.POLICY_TOML)["experiments"]["allow"] == ["*"]


CHECKED = {
    "server": "server.toml server.crt server.key identity.jwk recipient.jwk runtime.secret clients/north.pub",
    "clients/north": "client.toml policy.toml node.key identity.jwk storage.jwk",
    "operator": "operator.toml control.token ca.crt",
}
DAMAGES = {
    "gone": lambda content: None,
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "garbled": lambda content: bytes(byte ^ 0x15 for byte in content),
    "binary": lambda content: bytes(range(256)) * 4,
    "another's": lambda content: b"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
}


LOADS = {"server": ServerKit.load, "clients/north": ClientKit.load, "operator": OperatorKit.load}


@pytest.mark.parametrize("party", CHECKED)
def test_a_kit_with_any_file_damaged_is_refused_in_one_line(fed, party):
    """Each file, each kind of damage, one after another: no party starts anyway, and retries for ever."""
    shared, accepted = "ca.crt roster.bin server.bin operator.pub", []
    for name in f"{CHECKED[party]} {shared if party != 'operator' else ''}".split():
        path = fed / party / name
        content, mode = path.read_bytes(), path.stat().st_mode
        for damage, change in DAMAGES.items():
            path.unlink(missing_ok=True)
            changed = change(content)
            if name.endswith(".toml") and damage == "cut short":
                changed = content[: re.search(rb"(?m)^\w+ = ", content).end()]  # within a setting
            if changed is not None:
                path.write_bytes(changed)
                path.chmod(mode)
            with contextlib.suppress(ConfigError), refused_in_one_line(fed / party, path):
                LOADS[party](fed / party)
                accepted.append((name, damage))
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    LOADS[party](fed / party)
    assert accepted == ([("clients/north.pub", "gone")] if party == "server" else [])  # it is not let in


@contextlib.contextmanager
def refused_in_one_line(kit, path):
    try:
        yield
    except ConfigError as error:
        text = str(error)
        if "\n" in text or not (path.stem in text or str(kit) in text):
            raise AssertionError(f"{path}: {text}") from error
        raise


def test_a_kit_that_is_half_another_clients_is_refused(fed):
    north, south = fed / "clients/north", fed / "clients/south"
    for name in ("identity.jwk", "client.toml"):
        content = (north / name).read_bytes()
        (north / name).write_bytes((south / name).read_bytes())
        with pytest.raises(ConfigError, match=r"is not in the roster of .* under its key"):
            ClientKit.load(north)
        (north / name).write_bytes(content)
    (fed / "server/clients/stranger.pub").write_bytes((fed / "server/clients/north.pub").read_bytes())
    with pytest.raises(ConfigError, match=r"clients/stranger.pub is of nobody in the roster"):
        ServerKit.load(fed / "server")


def test_nginx_writes_no_body_to_disk_and_listens_where_clients_come_from():
    """Workers of an nginx that root started may not write into the kit, which is another user's."""
    conf = texts.nginx("fed.example.org", 443, 8443)
    for line in ("proxy_request_buffering off;", "proxy_max_temp_file_size 0;", "listen 443 ssl;"):
        assert f"\n    {line}" in conf.replace("\n      ", "\n    ")
    assert "    listen [::]:443 ipv6only=off ssl;\n" in texts.nginx("2001:db8::1", 443, 8443)
