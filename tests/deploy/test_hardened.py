"""Umbel where its containers run it: nothing can be written but /kit/state and /tmp, uid 10001, no capabilities."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import umbel
from umbel.deploy.kits import make

pytestmark = pytest.mark.deployment

HARDENED = Path(__file__).with_name("hardened.sh")
NAMESPACES = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "bash", str(HARDENED)]
UMBEL = "from umbel.cli.main import main; main()"
PROBE = """
import os, pathlib
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
assert os.getuid() == os.getgid() == 10001 and os.getgroups() == []
assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0 and status["NoNewPrivs"] == "1"
for folder in ("/", "/usr", "/kit", "/etc", "/dev", {prefix!r}, {package!r}):
    try:
        open(os.path.join(folder, "canary"), "w")
    except OSError:
        continue
    raise SystemExit(folder + " can be written")
for folder in ("/kit/state", "/tmp"):
    pathlib.Path(folder, "canary").touch()
"""

SERVE = """
import ssl, subprocess, sys, time, urllib.request
proxy = ["nginx", "-e", "stderr", "-c", "/kit/nginx.conf", "-p", "/kit/state", "-g", "daemon off;"]
server = [sys.executable, "-c", "from umbel.cli.main import main; main()", "server", "start", "/kit"]
parts = [subprocess.Popen(server), subprocess.Popen(proxy)]
https = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile="/kit/ca.crt"))
opener, deadline = urllib.request.build_opener(urllib.request.ProxyHandler({}), https), time.monotonic() + 120
while time.monotonic() < deadline and all(part.poll() is None for part in parts):
    try:
        status = opener.open("https://127.0.0.1:443/health", timeout=5).status
        break
    except OSError as error:
        status = error
        time.sleep(0.2)
for part in reversed(parts):
    part.terminate()
print("health", status, *(part.wait(40) for part in parts))
"""


@pytest.fixture
def hardened(tmp_path):
    """Runs Python as a container would: (exit status, standard output, standard error)."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "setpriv", "ip"))):
        pytest.skip("needs root, unshare, setpriv and ip")
    if subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make namespaces")
    paths = " ".join({str(Path(umbel.__file__).parent), sys.prefix, sys.base_prefix} - {"/usr"})

    def run(*words, **variables):
        (root := tmp_path / "root").mkdir()
        command = [*NAMESPACES, str(root), paths, sys.executable, *words]
        environment = os.environ | variables
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        return done.returncode, done.stdout, done.stderr

    return run


def test_the_container_is_as_closed_as_the_manifests_say(hardened):
    status, _, errors = hardened("-c", PROBE.format(prefix=sys.prefix, package=str(Path(umbel.__file__).parent)))
    assert status == 0, errors


def test_a_run_needs_no_more_than_that(hardened):
    words = ["run", "--set", "rounds=2", "--json", "--log", "json", "--monitor", "127.0.0.1:0"]
    status, output, errors = hardened("-c", UMBEL, *words)
    assert status == 0, errors
    *rounds, final = [json.loads(line) for line in output.splitlines()]
    assert [one["round"] for one in rounds] == [1, 2]
    assert final["final"]["run"]
    events = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert [event["round"] for event in events if event["logger"] == "umbel.run"] == [0, 1, 2, 2]


def test_the_server_and_its_proxy_start_from_a_kit_that_cannot_be_written(hardened, tmp_path):
    if shutil.which("nginx") is None:
        pytest.skip("no nginx on this machine: apt-get install nginx-light")
    make(tmp_path / "kits", "fleet.example.org", None, ["a", "b"])
    status, output, errors = hardened("-c", SERVE, KIT=str(tmp_path / "kits/server"))
    assert (status, output.splitlines()[-1:]) == (0, ["health 200 0 0"]), errors
