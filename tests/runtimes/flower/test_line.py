"""Runs of one federation, one after another, in the order in which they came."""

import os
import signal
import subprocess
import sys
import threading
import time

from umbel.runtimes.flower.line import turn

HOLD = """
import sys, pathlib
from umbel.runtimes.flower.line import turn
with turn(pathlib.Path(sys.argv[1]), "run a of b", print) as ticket:
    print("mine", flush=True)
    input()
"""


def test_each_waits_for_those_before_it_and_says_for_whom(tmp_path):
    order, said, ready = [], {}, threading.Event()

    def play(name):
        with turn(tmp_path / "line", name, said.setdefault(name, []).append) as ticket:
            order.append(name)
            if name == "first":
                ready.wait(20)
                ticket.name("run 1 of first\x1b[2J\n")
                time.sleep(0.5)

    threads = []
    for name in ("first", "second", "third"):
        threads.append(threading.Thread(target=play, args=(name,)))
        threads[-1].start()
        until = time.monotonic() + 20
        while len([*(tmp_path / "line").glob("[0-9]*")]) < len(threads) and time.monotonic() < until:
            time.sleep(0.01)
    time.sleep(0.5)
    ready.set()
    for thread in threads:
        thread.join(20)
    rest = "; a federation plays one run at a time"
    assert order == ["first", "second", "third"]
    assert said["first"] == []
    assert said["second"][:2] == [f"waiting behind first{rest}", f"waiting behind run 1 of first\\n{rest}"]
    assert said["third"][0] == f"waiting behind first, and 1 more{rest}"
    assert [*(tmp_path / "line").iterdir()] == []


def test_who_is_killed_is_waited_for_no_longer(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path / "line")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "mine\n"
        said = []

        def kill(text):
            said.append(text)
            os.kill(process.pid, signal.SIGKILL)

        with turn(tmp_path / "line", "mine", kill):
            assert said == ["waiting behind run a of b; a federation plays one run at a time"]
            assert len([*(tmp_path / "line").iterdir()]) == 1


def test_without_a_line_nobody_waits(tmp_path):
    with turn(None, "one", print), turn(None, "two", print) as ticket:
        assert ticket is None
