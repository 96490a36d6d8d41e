import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from umbel.core.errors import ConfigError
from umbel.privacy.secagg import Member, Misbehaviour, Roster

AUTHORITY = Ed25519PrivateKey.from_private_bytes(bytes(32))
ROSTER = Roster(tuple(Member(node, bytes([node]) * 32, f"Klinik {node} ü", 100 + node) for node in (1, 2, 9)))


def public(key):
    return key.public_key().public_bytes_raw()


def test_a_signed_roster_reads_back():
    opened = Roster.open(ROSTER.signed(AUTHORITY), public(AUTHORITY))
    assert opened == ROSTER
    assert opened.digest == ROSTER.digest


def test_every_changed_bit_is_refused():
    data = ROSTER.signed(AUTHORITY)
    for place in range(len(data)):
        with pytest.raises(ConfigError, match="not signed"):
            Roster.open(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :], public(AUTHORITY))


def test_another_authority_is_refused():
    other = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
    with pytest.raises(ConfigError, match="pinned authority"):
        Roster.open(ROSTER.signed(other), public(AUTHORITY))


def test_strangers_and_expired_members_are_refused():
    assert ROSTER.member(2, now=101).owner == "Klinik 2 ü"
    with pytest.raises(Misbehaviour, match="not in the roster") as stopped:
        ROSTER.member(3, now=0)
    assert stopped.value.culprit == 3
    with pytest.raises(Misbehaviour, match="expired") as stopped:
        ROSTER.member(2, now=102)
    assert (stopped.value.reason, stopped.value.culprit) == ("expired", 2)


@pytest.mark.parametrize(
    "members",
    [
        [(2, b"a" * 32), (1, b"b" * 32)],
        [(1, b"a" * 32), (1, b"b" * 32)],
        [(1, b"a" * 32), (2, b"a" * 32)],
        [(1, b"a" * 31)],
    ],
)
def test_rosters_that_contradict_themselves(members):
    with pytest.raises(ConfigError):
        Roster(tuple(Member(node, key, "", 1) for node, key in members))
