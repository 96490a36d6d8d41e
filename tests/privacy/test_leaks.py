"""Nothing of a single client, and no key, in logs, store or history: what must not be there is planted, and looked for.

The probe is shown to find each kind of it where somebody does put it there.
"""

import base64
import contextlib
import dataclasses
import json
import logging

import numpy as np
import pytest

from federations import federation
from optional import HAS_TENSEAL
from umbel import Chain, Homomorphic, PrivacyPlan, SecureSum, Simulation, run
from umbel.privacy import LocalPlan, noise
from umbel.privacy.budget import step_of
from umbel.privacy.contexts import ClientContext
from umbel.privacy.encoder import Encoder
from umbel.privacy.remote import SecureClient
from umbel.runtimes import simulation as simulating
from umbel.server.store import Store

BASE = federation()
NUMBERS = {"epsilon": 500.0, "delta": 1e-3, "rounds": 3, "population": 8, "clip_norm": 0.5, "noise_multiplier": 1.0}
SUMS = {"secure sum": SecureSum(4.0, metrics=()), "homomorphic": Homomorphic(0.5, metrics=())}
PLANS = {
    "secure sum": {
        "plan": PrivacyPlan(**NUMBERS, sampling_rate=0.7, rounding=step_of(SUMS["secure sum"]), secret_cohort=False)
    },
    "homomorphic": {"plan": LocalPlan(**NUMBERS)},
}
PLANS = {name: fields | {"secure_aggregation": SUMS[name]} for name, fields in PLANS.items()}
PLANS |= {"local": {"plan": LocalPlan(**NUMBERS)}, "sum alone": {"secure_aggregation": SecureSum(4.0)}}
WINDOW = 24  # bytes of a planted value that are looked for


def forms_of_bytes(secret):
    """A window of bytes, raw and as text might show it."""
    shown = [secret.hex(), secret.hex().upper(), repr(secret)[2:-1], str(int.from_bytes(secret, "big"))]
    shifted = [base64.b64encode(secret[start : start + 21]).decode() for start in range(3)]
    return [secret, *(form.encode() for form in (*shown, *shifted))]


def forms_of(secret):
    """What to look for: windows of bytes; of a vector also its largest numbers as text."""
    if isinstance(secret, bytes):
        starts = {0, len(secret) // 2 // 4 * 4, max(0, len(secret) - WINDOW)}
        windows = [secret[start : start + WINDOW] for start in starts]
        return [form for window in windows if len(set(window)) > 8 for form in forms_of_bytes(window)]
    largest = secret[np.argsort(np.abs(secret))[-3:]]
    numbers = [str(abs(number))[:8].encode() for number in largest if abs(number) > 0.01]
    return forms_of(np.ascontiguousarray(secret).tobytes()) + numbers


def found(secrets, text):
    """Which of the secrets show in text."""
    return [form for secret in secrets for form in forms_of(secret) if form in text]


class Planted:
    """What a run has of secrets, collected where they are."""

    def __init__(self, monkeypatch):
        self.secrets = [BASE.population.examples(client).x[0] for client in range(8)]
        train, answer, encode = simulating.train_client, SecureClient.answer, Encoder.encode
        keystream, make = noise.keystream_of, ClientContext.create

        def spy_train(*arguments):
            played = train(*arguments)
            self.secrets.append(played.content.delta)
            return played

        def spy_answer(half, message):
            reply, client = answer(half, message), half._client
            if client._mask_key is not None:
                keys = client._mask_key.private_bytes_raw(), client._share_key.private_bytes_raw(), bytes(client._seed)
                shares = [share.to_bytes(33, "big") for pair in client._held.values() for share in pair]
                self.secrets += [*keys, client._identity.private_bytes_raw(), *shares]
            return reply

        def spy_encode(*arguments):
            values = encode(*arguments)
            self.secrets.append(values.tobytes())
            return values

        def spy_keystream(secret):
            self.secrets.append(bytes(secret) * 2)
            return keystream(secret)

        def spy_make(scheme):
            made = make(scheme)
            self.secrets.append(made._secret[-2000:])
            return made

        monkeypatch.setattr(simulating, "train_client", spy_train)
        monkeypatch.setattr(SecureClient, "answer", spy_answer)
        monkeypatch.setattr(Encoder, "encode", spy_encode)
        monkeypatch.setattr(noise, "keystream_of", spy_keystream)
        monkeypatch.setattr(ClientContext, "create", staticmethod(spy_make))


def everything(folder, history, caplog):
    """Logs, all files beside the store, and all that a history shows."""
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    shown = [repr(history), repr(history.rounds), json.dumps(history.final()), str(vars(history)), caplog.text]
    with Store.open(f"sqlite:///{folder}/runs.db") as store:
        stored = store.load_run("latest")
        shown += [json.dumps(dict(stored.description)), repr(stored.records), repr(stored.ledger)]
    return b"\n".join([*files, "\n".join(shown).encode()])


@pytest.mark.parametrize("name", PLANS)
def test_nothing_of_a_client_is_in_logs_store_or_history(name, tmp_path, caplog, monkeypatch):
    if name == "homomorphic" and not HAS_TENSEAL:
        pytest.skip("needs tenseal")
    planted = Planted(monkeypatch)
    caplog.set_level(logging.DEBUG)  # of every library too: SQLAlchemy writes each row
    for logger in ("sqlalchemy.engine", "umbel", "tensorflow", "absl"):
        caplog.set_level(logging.DEBUG, logger)
    sampler = None if "plan" in PLANS[name] else BASE.sampler
    experiment = dataclasses.replace(BASE, sampler=sampler, weighting="uniform", **PLANS[name])
    with contextlib.closing(Simulation(1, "graph", aggregation="protocol")) as simulation:
        history = run(experiment, simulation, store=f"sqlite:///{tmp_path}/runs.db")
    text = everything(tmp_path, history, caplog)
    assert found(planted.secrets, text) == []
    # The same search finds what is there: the released params, in the store, and what the log was given of them.
    assert history.params.tobytes()[:WINDOW] in text
    assert len(planted.secrets) > 12
    assert "INSERT INTO" in caplog.text


@pytest.mark.parametrize("leak", [repr, str, bytes.hex, lambda secret: base64.b64encode(secret).decode()])
def test_the_search_finds_what_is_leaked_into_the_log(leak, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    secret = bytes(range(40, 72))
    logging.getLogger("umbel.runtimes").debug("sharing %s", leak(secret))
    assert found([secret], caplog.text.encode())
    assert not found([secret[::-1]], caplog.text.encode())


@dataclasses.dataclass(frozen=True)
class Leaky:
    """Logs each client's update, as somebody debugging might."""

    def init(self, spec):
        return ()

    def encode(self, state, update, key):
        logging.getLogger("umbel.clients").debug("sending %s, %s", update.delta, dict(update.metrics))
        return update

    def decode(self, state, total, key):
        return state, total


def test_the_search_finds_an_update_that_a_transform_logs_and_one_that_is_stored(tmp_path, caplog, monkeypatch):
    planted = Planted(monkeypatch)
    caplog.set_level(logging.DEBUG)
    experiment = dataclasses.replace(BASE, transforms=Chain(Leaky()), rounds=1)
    with contextlib.closing(Simulation(1, "graph")) as simulation:
        history = run(experiment, simulation, store=f"sqlite:///{tmp_path}/runs.db")
    assert found(planted.secrets, everything(tmp_path, history, caplog))
    (tmp_path / "dump.npy").write_bytes(planted.secrets[-1].tobytes())
    assert found(planted.secrets[-1:], (tmp_path / "dump.npy").read_bytes())
