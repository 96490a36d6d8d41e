"""An honest session: the sum is the integer sum, whoever drops out; below the threshold nothing leaves."""

import hashlib

import numpy as np
import pytest

from umbel.core.errors import ConfigError
from umbel.privacy.keys.errors import Misbehaviour
from umbel.privacy.secagg import (
    BelowThreshold,
    FixedPoint,
    MalformedMessage,
    RoundLog,
    SecAggAbort,
    Stage,
    add,
    simulate,
)
from umbel.privacy.secagg.client import RUNS

STAGES = (Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.CONSISTENCY, Stage.UNMASK)
IN_THE_SUM = (Stage.CONSISTENCY, Stage.UNMASK)  # who drops out only then has sent its vector
GOLDEN = "84d6075d3b6fa5b42bc4a965e494df8cef7b5b1b77d496f1265229adff39f492"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_sum_is_exact_under_the_dropouts_allowed(parties, stage, count):
    cohort = parties(7, minimum_clients=5)  # t = 5
    gone = cohort.nodes[1 : 1 + count]
    outcome = cohort.play(cohort.server(), drop={stage: gone})
    survivors = [node for node in cohort.nodes if node not in gone or stage in IN_THE_SUM]
    assert outcome.survivors == tuple(survivors)
    np.testing.assert_array_equal(outcome.total, cohort.sum_of(survivors))
    assert not outcome.bad_shares


@pytest.mark.parametrize("stage", STAGES)
def test_one_dropout_more_abandons_and_no_share_leaves(parties, stage):
    cohort = parties(7, minimum_clients=5)
    server = cohort.server()
    with pytest.raises(BelowThreshold):
        cohort.play(server, drop={stage: cohort.nodes[1:4]})
    assert server.stage is Stage.ABANDONED
    assert max(at for at, _ in cohort.sent) is stage  # nothing is sent beyond
    with pytest.raises(ConfigError, match="ABANDONED"):
        server.advance()
    # In the last stage clients answer without knowing who else will; four shares of five say nothing.
    assert len(cohort.revealed) == (4 if stage is Stage.UNMASK else 0)


def test_dropouts_at_every_stage_at_once(parties):
    cohort = parties(13)  # 12 advertise, t = 8
    drop = {stage: [node] for stage, node in zip(STAGES, cohort.nodes[2:], strict=False)}
    outcome = cohort.play(cohort.server(), drop=drop)
    left = [node for node in cohort.nodes if node not in cohort.nodes[2:5]]
    np.testing.assert_array_equal(outcome.total, cohort.sum_of(left))


def test_a_harary_graph_with_dropouts(parties):
    cohort = parties(70, length=5)
    drop = {Stage.SHARE: cohort.nodes[3:4], Stage.MASK: cohort.nodes[8:10], Stage.UNMASK: cohort.nodes[20:21]}
    outcome = cohort.play(cohort.server(), drop=drop)
    left = [node for node in cohort.nodes if node not in {cohort.nodes[i] for i in (3, 8, 9)}]
    np.testing.assert_array_equal(outcome.total, cohort.sum_of(left))
    assert all(len(message) < 17 * 224 for (stage, _), message in cohort.sent.items() if stage is Stage.MASK)


@pytest.mark.parametrize("encoding", [FixedPoint(1.0, 100), FixedPoint(1.0, 100, max_weight=1000, ring_bits=64)])
def test_protocol_and_arithmetic_give_the_same_integers(encoding):
    generator = np.random.default_rng(0)
    vectors = {node: generator.normal(0, 0.3, 50).astype(np.float32) for node in range(3, 9)}
    weights = {node: node * 7 if encoding.is_weighted else 1 for node in vectors}
    values = {node: encoding.encode(vectors[node], weights[node], bytes([node]) * 32).values for node in vectors}
    for drop in ({}, {Stage.SHARE: [4]}, {Stage.MASK: [4, 8]}, {Stage.MASK: [3], Stage.UNMASK: [7]}):
        masked, plain = simulate(values, encoding, drop), add(values, encoding, drop)
        np.testing.assert_array_equal(masked.total, plain.total)
        assert masked.survivors == plain.survivors
        decoded = encoding.decode(masked.total, len(masked.survivors))
        assert decoded.weight == sum(weights[node] for node in masked.survivors)
        expected = sum(weights[node] * vectors[node].clip(-1, 1) for node in masked.survivors)
        assert np.abs(decoded.vector - expected).max() <= decoded.weight * encoding.step * 1.001


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("count", range(5))
def test_protocol_and_arithmetic_stop_alike(stage, count):
    encoding = FixedPoint(1.0, 100)
    values = {node: np.full(3, node, "<u4") for node in range(5)}
    drop = {stage: range(count)}
    results = []
    for play in (simulate, add):
        try:
            results.append(play(values, encoding, drop).total.tolist())
        except BelowThreshold:
            results.append(None)
    assert results[0] == results[1]


def test_what_is_sent_is_masked(parties):
    cohort = parties(5, length=4000)
    cohort.play(cohort.server())
    for node in cohort.nodes:
        sent = np.frombuffer(cohort.replies[Stage.MASK, node][40:], "<u4", 4000)
        assert np.count_nonzero(sent == cohort.values[node]) < 5
        # Uniform over the ring, whatever the values: each bit is set half of the time.
        bits = np.unpackbits(sent.view(np.uint8)).mean()
        assert abs(bits - 0.5) < 5 * 0.5 / np.sqrt(32 * 4000)


def test_an_upload_is_hardly_larger_than_float32(parties):
    cohort = parties(5, length=10_000)
    cohort.play(cohort.server())
    sent = sum(len(cohort.replies[stage, cohort.nodes[0]]) for stage in STAGES)
    assert sent <= 1.05 * 4 * 10_000  # of which about 1.5 kB do not grow with the vector
    assert len(cohort.replies[Stage.MASK, cohort.nodes[0]]) == 40 + 4 * 10_000 + 4 + 5 * 41


def test_a_golden_transcript(parties):
    cohort = parties(5)
    outcome = cohort.play(cohort.server(), drop={Stage.MASK: cohort.nodes[1:2]})
    transcript = [cohort.sent[key] + cohort.replies.get(key, b"") for key in sorted(cohort.sent)]
    assert hashlib.sha256(b"".join(transcript) + outcome.total.tobytes()).hexdigest() == GOLDEN


@pytest.mark.parametrize("stage", STAGES)
def test_a_transcript_with_any_byte_changed_reveals_nothing_else(parties, stage):
    golden = parties(4)
    golden.play(golden.server())
    node = golden.nodes[1]
    size = len(golden.sent[stage, node])
    for place in range(0, size, max(1, size // 40)):
        cohort = parties(4)
        message = bytearray(golden.sent[stage, node])
        message[place] ^= 1 << place % 8
        client = cohort.clients[node]
        replies, stopped = {}, None
        for step in STAGES:
            try:
                replies[step] = client.answer(bytes(message) if step is stage else golden.sent[step, node])
            except SecAggAbort as error:
                stopped = error
                break
        assert stopped is None or stopped.culprit is not None or isinstance(stopped, BelowThreshold)
        assert Stage.UNMASK not in replies or replies == {step: golden.replies[step, node] for step in STAGES}


def test_sessions_do_not_repeat(parties):
    cohort = parties(4)
    cohort.play(cohort.server(attempt=1))
    first = dict(cohort.replies)
    other = parties(4)
    other.play(other.server(attempt=2))
    assert not set(first.values()) & set(other.replies.values())  # though the clients drew the same randomness


def test_nothing_secret_is_shown(parties):
    cohort = parties(4)
    client, server = cohort.clients[cohort.nodes[0]], cohort.server()
    assert repr(client) == f"Client(node={cohort.nodes[0]}, stage=ADVERTISE)"
    cohort.play(server)
    assert repr(server) == "Server(run='run', round=1, stage=DONE)"
    held = [client._seed.strip(b"\0"), client._mask_key, client._share_key, client._values, client._held]
    assert not any(held)


def test_a_bad_reply_costs_its_sender_only(parties):
    cohort = parties(5)
    server = cohort.server()
    for node, message in server.advance().items():
        reply = cohort.clients[node].answer(message)
        if node == cohort.nodes[2]:
            with pytest.raises(MalformedMessage) as stopped:
                server.receive(node, reply[:-1])
            assert stopped.value.culprit == node
            with pytest.raises(SecAggAbort, match="no reply was awaited"):
                server.receive(node, reply)
            continue
        server.receive(node, reply)
    assert sorted(server.advance()) == [node for node in cohort.nodes if node != cohort.nodes[2]]


def test_the_order_of_calls_is_fixed(parties):
    cohort = parties(4)
    server = cohort.server()
    with pytest.raises(ConfigError, match="ADVERTISE"):
        server.finish()
    cohort.play(server)
    for call in (server.finish, server.advance):
        with pytest.raises(ConfigError, match="DONE"):
            call()


@pytest.mark.parametrize("values", [np.zeros(32, "<u4"), np.zeros(33, "<u8"), np.zeros((33, 1), "<u4")])
def test_values_of_another_shape_are_refused(parties, values):
    cohort = parties(4)
    cohort.values[cohort.nodes[0]] = values
    with pytest.raises(ConfigError, match="expected"):
        cohort.enter()


def test_a_node_remembers_so_many_runs_and_the_one_that_it_is_in():
    """Names of runs are the server's, who could fill a client's disk with them."""
    log = RoundLog()
    for number in range(3 * RUNS):
        log.admit(f"run {number}", 1, 0)
        log.release(f"run {number}", 1)
        if number % 100 == 0:
            log.admit("mine", number, 0)
            log.release("mine", number)
    assert len(log.answered) == RUNS
    assert len(log.unmasked) == RUNS
    for run, round in (("mine", 100), (f"run {3 * RUNS - 1}", 1)):
        with pytest.raises(Misbehaviour, match="offered before"):
            log.check(run, round, 0)
