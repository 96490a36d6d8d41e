"""What a stranger does to a federation of real processes: nothing."""

import http.client
import re
import ssl
from pathlib import Path

import numpy as np
import pytest

from deployments import children
from umbel.deploy import federation
from umbel.deploy.kits import OperatorKit
from umbel.deploy.supervisor import process_of

pytestmark = pytest.mark.deployment

REQUESTS = 3000
PATHS = ("/v1/fleet/pull-messages", "/v1/fleet/push-object", "/v1/control/start-run", "/v1/runtime/acquire-task")


@pytest.fixture(scope="module")
def fed(running):
    return running


def megabytes(process):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text()).group(1)) / 1024


def garbage(random, number):
    """Random bytes; a message cut short; lengths that promise more than follows; a field nested very deep."""
    if number % 4 == 0:
        return random.bytes(int(random.integers(1, 300)))
    if number % 4 == 1:
        return b"\x0a\x20" + random.bytes(7)
    if number % 4 == 2:
        return b"\x0a\xff\xff\xff\xff\x7f" + random.bytes(20)
    nested = b""
    for _ in range(400):
        size = len(nested)
        nested = b"\x0a" + bytes([size & 127 | 128, size >> 7]) + nested
    return nested


def test_garbage_is_answered_with_an_error_and_costs_no_memory(fed):
    kit, random = OperatorKit.load(fed / "operator"), np.random.default_rng(0)
    host, port = kit.address.split(":")
    server = process_of(fed / "server/state")
    (superlink,) = (pid for line, pid in children(server).items() if "flower.link " in line)
    before, statuses, context = None, set(), ssl.create_default_context(cafile=str(kit.authority))
    to = http.client.HTTPSConnection(host, int(port), timeout=20, context=context)
    for number in range(REQUESTS):
        headers = {"Content-Type": "application/protobuf"}
        to.request("POST", PATHS[number // 4 % len(PATHS)], garbage(random, number), headers)
        reply = to.getresponse()
        body = reply.read()
        statuses.add(reply.status)
        assert 400 <= reply.status < 500, (reply.status, body)
        assert b"Traceback" not in body
        if number == REQUESTS // 5:  # once it is warm
            before = megabytes(superlink)
    to.close()
    assert megabytes(superlink) - before < 10
    assert federation.nodes(kit) is not None
