"""`umbel keys`: keys and rosters as files, refusals in one line, and never a secret on any stream."""

import csv
import json
import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import ServerState
from umbel.privacy.keys import KeyFile
from umbel.privacy.secagg import Roster
from umbel.server.store import Store

KINDS = ["node", "operator", "recipient", "storage"]
SPEC = ModelSpec((VariableSpec("w", (30000,), "float32", True, 0),))


def secrets_of(*names):
    """The secret members of key files."""
    members = [json.loads(Path(name).read_text()) for name in names]
    return [one[secret] for one in members for secret in ("d", "k", "priv") if secret in one]


def facts(output):
    """Names and values, a line each."""
    return {line[: line.index("  ")]: line.split("  ", 1)[1].strip() for line in output.splitlines()}


@pytest.fixture
def made(here):
    """Make keys: name=kind."""

    def make(**kinds):
        for name, kind in kinds.items():
            assert here("keys", "new", f"{name}.key", "--kind", kind)[0] == 0
        return [KeyFile.load(f"{name}.key") for name in kinds]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_key_is_made_and_shown_without_its_secret(here, kind):
    status, output, errors = here("keys", "new", "a.key", "--kind", kind, "--owner", "Klinik ü", "--days", "30")
    assert (status, errors) == (0, "")
    key, shown = KeyFile.load("a.key"), facts(output)
    assert (shown["kind"], shown["owner"], shown["id"]) == (kind, "Klinik ü", key.id)
    assert shown.get("key") == (None if kind == "storage" else key.public.text)
    assert key.expires - key.created == 30 * 86400
    assert stat.S_IMODE(os.stat("a.key").st_mode) == 0o600
    assert here("keys", "show", "a.key") == (0, output, "")
    as_json = here("keys", "show", "a.key", "--json")[1]
    assert json.loads(as_json) == key.public_jwk()
    assert not [secret for secret in secrets_of("a.key") if secret in output + as_json]


def test_a_post_quantum_key_is_for_recipients(here):
    assert here("keys", "new", "a.key", "--kind", "recipient", "--post-quantum")[0] == 0
    assert KeyFile.load("a.key").algorithm == "MLKEM768-X25519"
    status, output, errors = here("keys", "new", "b.key", "--kind", "node", "--post-quantum")
    assert (status, output) == (2, "")
    assert "a node key is Ed25519" in errors
    assert not Path("b.key").exists()


@pytest.fixture
def members(made):
    """Three nodes' keys, and what an operator writes down of them."""
    keys = made(operator="operator", a="node", b="node", c="node")[1:]
    rows = [
        {"node": node, "key": key.public.text, "owner": f"Klinik {node}, ü", "expiry": "2099-12-31"}
        for node, key in zip((2**64 - 1, 1, 7), keys, strict=True)
    ]
    Path("members.json").write_text(json.dumps(rows))
    Path("members.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open("members.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ("owner", "node", "expiry", "key"))
        writer.writeheader()
        writer.writerows(rows)
    return rows


SIGN = "keys roster sign {} --key operator.key -o roster.bin"


@pytest.mark.parametrize("file", ["members.json", "members.jsonl", "members.csv"])
def test_a_roster_is_signed_and_verified(here, members, file):
    status, output, errors = here(*SIGN.format(file).split(), "--json")
    assert (status, errors) == (0, "")
    operator = KeyFile.load("operator.key").public
    roster = Roster.open(Path("roster.bin").read_bytes(), operator.raw)
    assert json.loads(output) == {"members": 3, "digest": roster.digest.hex(), "operator": operator.text}
    assert [member.node for member in roster.members] == [1, 7, 2**64 - 1]
    Path("operator.json").write_text(here("keys", "show", "operator.key", "--json")[1])
    for pinned in (operator.text, "operator.json"):
        status, output, errors = here("keys", "roster", "verify", "roster.bin", "--operator", pinned, "--json")
        assert (status, errors) == (0, "")
        listed = [json.loads(line) for line in output.splitlines()]
        assert [(row["node"], row["key"], row["owner"], row["state"]) for row in listed] == [
            (row["node"], row["key"], row["owner"], "valid") for row in sorted(members, key=lambda row: row["node"])
        ]
    assert "2099-12-31 00:00 UTC" in here("keys", "roster", "verify", "roster.bin", "--operator", "operator.json")[1]


def test_a_roster_that_was_changed_or_signed_by_another_is_refused(here, members, made):
    (stranger,) = made(stranger="operator")
    here(*SIGN.format("members.csv").split())
    status, output, errors = here("keys", "roster", "verify", "roster.bin", "--operator", stranger.public.text)
    assert (status, output) == (2, "")
    assert "not signed by the pinned authority" in errors
    content = bytearray(Path("roster.bin").read_bytes())
    content[-1] ^= 1
    Path("changed.bin").write_bytes(content)
    pinned = KeyFile.load("operator.key").public.text
    assert here("keys", "roster", "verify", "changed.bin", "--operator", pinned)[:2] == (2, "")
    assert here("keys", "roster", "verify", "roster.bin", "--operator", pinned)[0] == 0


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"node": -1}, "entry 2: expected node=-1"),
        ({"node": 2**64}, "entry 2: expected node=18446744073709551616"),
        ({"node": 1.5}, "entry 2: expected node=1.5"),
        ({"node": True}, "entry 2: expected node=True"),
        ({"node": 7}, "distinct"),
        ({"key": "abc"}, "entry 2: expected an Ed25519 public key of 32 bytes, got 2"),
        ({"owner": "a\nb"}, "entry 2: expected owner='a\\nb'"),
        ({"owner": "\x1b[2J"}, "entry 2: expected owner="),
        ({"owner": "ü" * 128}, "entry 2: expected owner="),
        ({"owner": None}, "entry 2: expected owner=None"),
        ({"expiry": "2001-01-01"}, "entry 2: expiry='2001-01-01' is past"),
        ({"expiry": "soon"}, "entry 2: expected expiry='soon'"),
        ({"expiry": None}, "entry 2: expected expiry=None"),
        ({"expiry": 10**30}, "entry 2: expected expiry="),
        ({"email": "x"}, "entry 2: expected the fields node, key, owner, expiry and no others"),
    ],
)
def test_a_bad_entry_is_named_and_nothing_is_written(here, members, change, part):
    Path("members.json").write_text(json.dumps([members[0], members[1] | change, members[2]]))
    status, output, errors = here(*SIGN.format("members.json").split())
    assert (status, output) == (2, "")
    assert len(errors.splitlines()) == 1
    assert part in errors
    assert not Path("roster.bin").exists()


def test_bad_files_of_members_are_refused(here, members):
    for name, text in [
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.json", "[1]"),
        ("a.json", '"x"'),
        ("a.csv", "node,key\n"),
    ]:
        Path(name).write_text(text)
        status, output, errors = here(*SIGN.format(name).split())
        assert (status, output, len(errors.splitlines())) == (2, "", 1)
    assert "No such file" in here(*SIGN.format("none.json").split())[2]
    Path("a.csv").write_bytes(b"\xff\xfe\x00")
    assert here(*SIGN.format("a.csv").split())[0] == 2
    assert not Path("roster.bin").exists()


def test_only_a_valid_operators_key_signs_and_a_roster_is_not_overwritten(here, members, made):
    status, _, errors = here(*SIGN.replace("operator.key", "a.key").format("members.csv").split())
    assert status == 2
    assert "is of kind node; a key of kind operator is needed" in errors
    assert not Path("roster.bin").exists()
    Path("roster.bin").write_bytes(b"precious")
    status, _, errors = here(*SIGN.format("members.csv").split())
    assert status == 2
    assert "roster.bin cannot be written: File exists; name a new file" in errors
    assert Path("roster.bin").read_bytes() == b"precious"


def test_rotating_leaves_the_old_key_for_the_overlap(here, made):
    (old,) = made(old="node")
    status, output, errors = here("keys", "rotate", "old.key", "new.key", "--overlap-days", "3", "--json")
    assert (status, errors) == (0, "")
    new, shortened = KeyFile.load("new.key"), KeyFile.load("old.key")
    assert (new.kind, new.owner, new.algorithm) == (old.kind, old.owner, old.algorithm)
    assert new.id != old.id == shortened.id
    assert abs(shortened.expires - time.time() - 3 * 86400) < 60
    assert json.loads(output)["replaced_expires"] == shortened.expires
    assert not [secret for secret in secrets_of("old.key", "new.key") if secret in output]
    here("keys", "rotate", "old.key", "newer.key", "--overlap-days", "99")
    assert KeyFile.load("old.key").expires == shortened.expires  # an overlap does not lengthen a life
    here("keys", "rotate", "old.key", "newest.key", "--overlap-days", "0")
    assert ", expired" in here("keys", "show", "old.key")[1]
    assert "exists already" in here("keys", "rotate", "old.key", "new.key")[2]


@pytest.fixture
def encrypted(made):
    """The URL of a store under storage.key, with a run."""
    made(storage="storage")
    params = np.arange(30000, dtype=np.float32)
    with Store.open("sqlite:///runs.db", key="storage.key") as store:
        store.create_run("tiny", {}, 1, 0, {}, SPEC, ServerState(0, params, (), (), {}))
    return "sqlite:///runs.db"


def test_rotating_a_storage_key_puts_its_stores_under_the_new_one(here, encrypted):
    command = ["keys", "rotate", "storage.key", "new.key", "--store", encrypted]
    status, output, errors = here(*command)
    assert (status, errors) == (0, "")
    assert not [secret for secret in secrets_of("storage.key", "new.key") if secret in output]
    with Store.open(encrypted, key="new.key") as store:
        assert store.load_run("latest").server_state.params[-1] == 29999
    first = KeyFile.load("new.key")
    assert here(*command)[0] == 0  # interrupted after the store, repeated
    assert KeyFile.load("new.key") == first
    status, _, errors = here("runs", "--store", encrypted)
    assert status == 2
    assert f"is encrypted under key {first.id}" in errors


def test_a_rotation_that_fails_leaves_store_and_old_key(here, encrypted, made):
    before = KeyFile.load("storage.key")
    status, output, errors = here("keys", "rotate", "storage.key", "new.key", "--store", "sqlite:///none.db")
    assert (status, output) == (2, "")
    assert "none.db does not exist" in errors
    assert KeyFile.load("storage.key") == before
    with Store.open(encrypted, key="storage.key") as store:
        assert store.load_run("latest").server_state.round == 0
    assert here("keys", "rotate", "storage.key", "new.key", "--store", encrypted)[0] == 0  # the same command goes on


@pytest.mark.parametrize("is_expired", [False, True])
def test_runs_of_an_encrypted_store_are_listed_with_its_key_only(here, encrypted, monkeypatch, is_expired):
    assert here("runs", "--store", encrypted)[0] == 2
    if is_expired:
        here("keys", "rotate", "storage.key", "new.key", "--store", encrypted, "--overlap-days", "0")
    monkeypatch.setenv("UMBEL_STORE_KEY", "storage.key")
    status, output, errors = here("runs", "--store", encrypted, "--json")
    if is_expired:
        assert (status, output) == (2, "")
        assert "expired on" in errors
        monkeypatch.setenv("UMBEL_STORE_KEY", "new.key")
        status, output, errors = here("runs", "--store", encrypted, "--json")
    assert (status, errors) == (0, "")
    assert json.loads(output)["experiment"] == "tiny"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("keys new a.key --kind king", "'king' is not one of"),
        ("keys new a.key --days 0", "days=0"),
        ("keys new a.key --days never", "not a valid float"),
        ("keys new no/folder/a.key", "cannot be written: No such file"),
        ("keys new tiny.py", "exists already"),
        ("keys new a.key --owner a\tb", "owner='a\\tb'"),
        ("keys show none.key", "make one: umbel keys new"),
        ("keys show tiny.py", "open to others"),
        ("keys rotate none.key b.key", "make one: umbel keys new"),
        ("keys rotate node.key b.key --store sqlite:///a.db", "--store is for a storage key"),
        ("keys rotate storage.key b.key", "name the stores"),
        ("keys rotate storage.key storage.key --store sqlite:///a.db", "the same key"),
        ("keys rotate node.key node.key", "exists already"),
        ("keys rotate node.key b.key --overlap-days -1", "overlap_days=-1"),
        ("keys roster verify tiny.py --operator tiny.py", "is not a JSON Web Key"),
        ("keys roster verify none --operator 11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "No such file"),
        ("keys roster verify tiny.py --operator 11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "not signed"),
        ("keys roster verify tiny.py", "Missing option '--operator'"),
        ("keys spin", "No such command 'spin'"),
    ],
)
def test_bad_words_are_refused_in_one_line(here, made, words, part):
    made(node="node", storage="storage")
    os.chmod("tiny.py", 0o644)
    status, output, errors = here(*words.split(" "))
    assert (status, output) == (2, "")
    assert len(errors.splitlines()) == 1
    assert errors.startswith("umbel: ")
    assert part in errors
    assert not Path("b.key").exists()


def test_help_names_the_commands(here):
    for words in (["keys"], ["keys", "--help"]):
        status, output, _ = here(*words)
        assert status == 0
        assert [name for name in ("new", "show", "rotate", "roster") if name not in output] == []
    for words in (["keys", "roster"], ["keys", "roster", "--help"]):
        assert [name for name in ("sign", "verify") if name not in here(*words)[1]] == []
