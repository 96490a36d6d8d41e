"""Key files: their owner's alone, one standard format, and no secret in any message."""

import dataclasses
import json
import os
import stat
import time

import pytest

from umbel.core.errors import ConfigError
from umbel.privacy.keys import AES256, ED25519, HYBRID, KINDS, KeyFile, PublicKey, load_public
from umbel.privacy.keys import files as keys

ALL = [(kind, algorithm) for kind, algorithms in KINDS.items() for algorithm in algorithms]


@pytest.fixture(params=ALL, ids=" ".join)
def key(request):
    kind, algorithm = request.param
    return KeyFile.generate(kind, 30, owner="Klinik ü", algorithm=algorithm)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "one.key"


def test_a_key_comes_back_from_its_file(key, path):
    key.save(path)
    assert KeyFile.load(path) == key
    assert key.expires - key.created == 30 * 86400


def test_rfc_8037_gives_this_key_this_public_half_and_this_thumbprint():
    secret = keys.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
    key = KeyFile("node", ED25519, 0, 1, "", secret)
    assert key.public.text == "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert key.id == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    # RFC 8032, 7.1, test 1: the same key, the empty message.
    assert key.signing.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_new_file_is_its_owners_alone_whatever_the_umask(key, path, umask):
    before = os.umask(umask)
    try:
        key.save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_uid == os.geteuid()


def test_a_file_is_never_overwritten_nor_a_link_followed(key, path, tmp_path):
    path.write_text("precious")
    (tmp_path / "link.key").symlink_to(tmp_path / "elsewhere")
    for taken in (path, tmp_path / "link.key"):
        with pytest.raises(ConfigError, match="exists already, and keys are never overwritten"):
            key.save(taken)
    assert path.read_text() == "precious"
    assert not (tmp_path / "elsewhere").exists()


def test_replacing_leaves_one_file_of_its_owners_alone(path, tmp_path):
    key = KeyFile.generate("node", 30)
    key.save(path)
    later = dataclasses.replace(key, expires=key.expires - 1)
    later.save(path, replace=True)
    assert KeyFile.load(path) == later
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o601, 0o602, 0o604, 0o610, 0o620, 0o640, 0o644, 0o660, 0o666, 0o777])
def test_a_file_that_others_can_reach_is_refused(path, mode):
    KeyFile.generate("node", 30).save(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"open to others than its owner .mode {mode:04o}.*chmod 600"):
        KeyFile.load(path)
    path.chmod(0o400)
    KeyFile.load(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_file_is_refused(path):
    KeyFile.generate("node", 30).save(path)
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to user 65534"):
        KeyFile.load(path)


def test_the_owner_is_that_of_the_file_and_not_any(path, monkeypatch):
    KeyFile.generate("node", 30).save(path)
    os.chown(path, os.geteuid(), -1)
    real = os.fstat
    changed = lambda descriptor: os.stat_result([*real(descriptor)[:4], 4242, *real(descriptor)[5:]])  # noqa: E731
    monkeypatch.setattr(keys.os, "fstat", changed)
    with pytest.raises(ConfigError, match="belongs to user 4242"):
        KeyFile.load(path)


@pytest.mark.parametrize("made", ["mkdir", "mkfifo"])
def test_what_is_no_file_is_refused_without_waiting(path, made):
    getattr(os, made)(path, 0o600)
    with pytest.raises(ConfigError, match=r"cannot be read|not a regular file"):
        KeyFile.load(path)


def test_what_is_not_there_names_the_remedy(path):
    with pytest.raises(ConfigError, match="No such file or directory; make one: umbel keys new"):
        KeyFile.load(path)


def test_an_expired_key_or_one_of_another_kind_is_refused(key):
    key.check(key.kind)
    key.check(key.kind, key.expires - 1)
    for moment in (key.expires, key.expires + 1e6):
        with pytest.raises(ConfigError, match=f"key {key.id} expired on .* UTC; replace it: umbel keys rotate"):
            key.check(key.kind, moment)
    other = next(kind for kind in KINDS if kind != key.kind)
    with pytest.raises(ConfigError, match=f"is of kind {key.kind}; a key of kind {other} is needed"):
        key.check(other)


def secrets_of(key, path):
    """Everything in the file that must not be seen."""
    members = json.loads(path.read_text())
    return [members[name] for name in ("d", "k", "priv") if name in members] + [key.secret.hex(), str(key.secret)]


def test_every_change_of_a_file_is_refused_and_no_message_shows_a_secret(key, path):
    key.save(path)
    members, secrets = json.loads(path.read_text()), secrets_of(key, path)
    private = next(name for name in ("d", "k", "priv") if name in members)
    changes = [{name: None} for name in members]
    changes += [{private: "A" + members[private][1:-1] + "A"}, {private: members[private][:-4]}, {"kid": "x"}]
    changes += [{"kind": "king"}, {"exp": "tomorrow"}, {"exp": 1.5}, {"kty": []}, {"crv": "P-256", "alg": "RS256"}]
    changes += [{name: "A" * len(members[name])} for name in ("x", "pub") if name in members]
    for change in changes:
        if key.algorithm == AES256 and set(change) == {"crv", "alg"}:
            continue  # a storage key has neither
        path.write_text(json.dumps(members | change))
        with pytest.raises(ConfigError) as caught:
            KeyFile.load(path)
        assert not [secret for secret in secrets if secret in str(caught.value)]
        assert caught.value.__suppress_context__ or caught.value.__cause__ is None
    for text in ("", "[]", "{", "null", "[" * 60000, '{"d": "' + "A" * 70000 + '"}', '{"kty": "OKP"}'):
        path.write_text(text)
        with pytest.raises(ConfigError):
            KeyFile.load(path)


def test_no_secret_in_what_may_be_shown(key, path):
    key.save(path)
    shown = [repr(key), str(key), f"{key}", json.dumps(key.public_jwk()), repr([key]), repr({"key": key}), key.id]
    for secret in secrets_of(key, path):
        assert not [one for one in shown if secret in one]
    assert secrets_of(key, path)[0] in path.read_text()  # the probe finds it where it is


def test_an_id_tells_keys_apart(key):
    again = KeyFile.generate(key.kind, 30, algorithm=key.algorithm)
    assert again.id != key.id
    assert dataclasses.replace(key, expires=1, owner="another").id == key.id


def test_what_cannot_be_made_is_refused():
    for arguments, part in [
        (("king", 1), "no kind of key 'king'"),
        (("node", 0), "days=0"),
        (("node", -1), "days=-1"),
        (("node", 1e9), "days=1000000000"),
    ]:
        with pytest.raises(ConfigError, match=part):
            KeyFile.generate(*arguments)
    with pytest.raises(ConfigError, match="a node key is Ed25519, not 'X25519'"):
        KeyFile.generate("node", 1, algorithm="X25519")


def test_keys_do_only_what_they_are_for():
    node, recipient, storage = (KeyFile.generate(kind, 1) for kind in ("node", "recipient", "storage"))
    for refused in (
        lambda: recipient.signing,
        lambda: node.opening,
        lambda: storage.opening,
        lambda: storage.public,
        lambda: node.public.sealing,
    ):
        with pytest.raises(ConfigError):
            refused()


@pytest.mark.parametrize("algorithm", [ED25519, "X25519", HYBRID])
def test_public_keys_are_given_as_text_or_in_a_file(path, algorithm):
    kind = "node" if algorithm == ED25519 else "recipient"
    key = KeyFile.generate(kind, 1, algorithm=algorithm)
    path.write_text(json.dumps(key.public_jwk()))
    assert load_public(str(path), algorithm) == load_public(key.public.text, algorithm) == key.public
    for wrong in ("", "abc", key.public.text[:-1], key.public.text + "A", key.public.text + "=", "*" * 43, "no/such"):
        with pytest.raises(ConfigError):
            load_public(wrong, algorithm)
    with pytest.raises(ConfigError, match="does not hold"):
        load_public(str(path), next(one for one in (ED25519, "X25519") if one != algorithm))


def test_base64url_has_one_form():
    for raw in (b"", b"\xfb\xff", os.urandom(32)):
        assert keys.decode(keys.encode(raw)) == raw
    for wrong in ("A", "AB", "+/+/", "AA==", "A A="):
        with pytest.raises(ValueError, match=r".*"):
            keys.decode(wrong)


def test_times_are_seconds_of_now():
    key = KeyFile.generate("node", 0.5)
    assert abs(key.created - time.time()) < 60
    assert key.expires == key.created + 43200
    assert PublicKey(ED25519, key.public.raw) == key.public
