"""Mutated envelopes, rosters, sealed files, trees and key files: refused by an error of ours, or read as they were."""

import collections
import os

import numpy as np
import pytest

from umbel.core import serial
from umbel.core.errors import UmbelError
from umbel.privacy.keys import HYBRID, X25519, KeyFile
from umbel.privacy.keys.envelopes import Binding, ReplayGuard, seal, unseal
from umbel.privacy.keys.roster import Member, Roster
from umbel.privacy.keys.vault import Sealer, StorageVault

BINDING, CONTENT = Binding("run", 2, 3, "ch"), b"z" * 5000


def mutated(content, random):
    """One change of six kinds."""
    body, kind = bytearray(content), random.integers(0, 6)
    if kind == 0:
        body[random.integers(len(body))] ^= 1 << random.integers(8)
    elif kind == 1:
        body = body[: random.integers(len(body))]
    elif kind == 2:
        body += random.bytes(3)
    elif kind == 3:
        start = random.integers(len(body))
        body[start : start + 8] = random.bytes(8)
    elif kind == 4:
        start = random.integers(len(body))
        del body[start : start + int(random.integers(1, 20))]
    else:
        body = bytearray(random.bytes(int(random.integers(0, 300))))
    return bytes(body)


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    """{name: (its bytes, how they are read, what that has to give where it gives anything)}."""
    place = tmp_path_factory.mktemp("keys")
    node, operator = KeyFile.generate("node", 1), KeyFile.generate("operator", 1)
    roster = Roster((Member(3, node.public.raw, "x", node.expires),))
    storage = Sealer(StorageVault(KeyFile.generate("storage", 1)))
    node.save(place / "node.jwk")

    def load(content):
        (place / "mutated.jwk").unlink(missing_ok=True)
        os.close(os.open(place / "mutated.jwk", os.O_CREAT | os.O_WRONLY, 0o600))
        (place / "mutated.jwk").write_bytes(content)
        return KeyFile.load(place / "mutated.jwk").secret

    found = {
        "roster": (roster.signed(operator.signing), lambda body: Roster.open(body, operator.public.raw), roster),
        "sealed": (storage.seal(b"q" * 3000, b"of"), lambda body: bytes(storage.unseal(body, b"of")), b"q" * 3000),
        "tree": (serial.dumps({"a": (1, 2.5, np.arange(4)), "b": [None, True, "x"]}), serial.loads, None),
        "key file": ((place / "node.jwk").read_bytes(), load, node.secret),
    }
    for algorithm in (X25519, HYBRID):
        recipient = KeyFile.generate("recipient", 1, algorithm=algorithm)
        envelope = bytes(seal(CONTENT, recipient.public, node, BINDING))

        def open_it(body, recipient=recipient):
            return bytes(unseal(body, BINDING, recipient, roster, ReplayGuard()))

        found[f"envelope {algorithm}"] = envelope, open_it, CONTENT
    return found


@pytest.mark.parametrize("mutations", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_what_was_mutated_is_refused_or_read_as_it_was(artefacts, mutations):
    random, ends = np.random.default_rng(3), collections.Counter()
    for name, (content, read, wanted) in artefacts.items():
        assert wanted is None or read(content) == wanted
        for _ in range(mutations):
            try:
                found = read(mutated(content, random))
            except UmbelError:
                ends[name, "refused"] += 1
                continue
            # Of a key file's JSON, spaces may go; of a tree nothing is authenticated.
            assert wanted is None or found == wanted, name
            ends[name, "read"] += 1
    for name in artefacts:
        assert ends[name, "refused"] > mutations / 2, name
