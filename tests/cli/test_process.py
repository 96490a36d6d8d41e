"""What can only be said of a real process: its exit status, its streams, how it dies, how fast it starts."""

import hashlib
import json
import resource
import signal
from pathlib import Path

import pytest

from interruptions import Killed, kill_at
from umbel.privacy.keys import KeyFile
from umbel.server.store import Store

FIELDS = {"round", "clients", "failures", "train_loss", "test_loss", "test_accuracy", "seconds"}
FIELDS |= {"eval_seconds", "bytes_up", "bytes_down", "epsilon"}


def test_json_is_all_there_is_on_standard_output(whole):
    status, output, errors, folder = whole
    *rounds, last = [json.loads(line) for line in output.splitlines()]
    assert status == 0
    assert [row["round"] for row in rounds] == [1, 2, 3, 4, 5]
    assert all(row.keys() >= FIELDS and row["epsilon"] is None and row["clients"] == 3 for row in rounds)
    assert last["final"].keys() == {"run", "params_sha256", "model_version", "rounds", "seconds"}
    assert (folder / "out" / "rounds.png").read_bytes().startswith(b"\x89PNG")
    one, other, begun, *lines = errors.splitlines()  # and nothing of TensorFlow's own
    assert {one, other} == {"from the file", "from a library"}
    assert begun.startswith("tiny as run ")
    assert [line.split()[:2] for line in lines] == [["round", f"{number}/5"] for number in (1, 2, 3, 4, 5)]


def test_a_run_killed_again_and_again_ends_with_the_bits_of_one_that_was_not(finish, here, monkeypatch, whole):
    """By SIGKILL once; at later instructions it ends in this process, with nothing tidied up either."""
    resume = ("--resume", "latest")
    status, _, _ = finish("run", "tiny.py", "--json", UMBEL_CRASH_AT="mid-training:1")
    assert status == -signal.SIGKILL  # before its first commit: it is a run all the same
    for point, round in (("after-aggregation", 2), ("before-commit", 3), ("after-commit", 4)):
        kill_at(monkeypatch, point, round)
        with pytest.raises(Killed):
            here("run", "tiny.py", "-q", *resume)
    status, output, errors = here("run", "tiny.py", "--json", *resume)
    *rounds, last = [json.loads(line) for line in output.splitlines()]
    assert status == 0, errors
    assert [row["round"] for row in rounds] == [5]  # round 4 was committed, so it is not redone
    assert last["final"]["params_sha256"] == json.loads(whole[1].splitlines()[-1])["final"]["params_sha256"]
    with Store.open("sqlite:///umbel.db") as store:
        assert [(run.state, run.rounds_done) for run in store.runs()] == [("finished", 5)]
        assert store.check() == []


def test_an_encrypted_run_that_is_killed_ends_with_the_bits_of_one_in_the_clear(finish, here, whole):
    KeyFile.generate("storage", 1).save("store.key")
    key = ("--store-key", "store.key")
    status, _, _ = finish("run", "tiny.py", "--json", *key, UMBEL_CRASH_AT="before-commit:3")
    assert status == -signal.SIGKILL
    status, output, errors = here("run", "tiny.py", "--json", "--resume", "latest")
    assert (status, output) == (2, "")
    assert "is encrypted under key" in errors
    status, output, errors = finish("run", "tiny.py", "--json", "--resume", "latest", *key)
    *rounds, last = [json.loads(line) for line in output.splitlines()]
    assert status == 0, errors
    assert [row["round"] for row in rounds] == [3, 4, 5]
    assert last["final"]["params_sha256"] == json.loads(whole[1].splitlines()[-1])["final"]["params_sha256"]
    with Store.open("sqlite:///umbel.db", key="store.key") as store:
        params = store.models.get("tiny")[1].tobytes()
    assert hashlib.sha256(params).hexdigest() == last["final"]["params_sha256"]
    assert params[:64] in (whole[3] / "runs.db").read_bytes()
    assert params[:64] not in Path("umbel.db").read_bytes()


def test_ctrl_c_pauses_the_run_and_says_how_to_resume(start):
    process = start("run", "tiny.py", "--set", "rounds=100000")
    for line in process.stderr:
        if line.startswith("round 2/"):
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    with Store.open("sqlite:///umbel.db") as store:
        (run,) = store.runs()
    assert process.returncode == 130
    assert output == ""
    said = errors.splitlines()[-1]
    assert said == (
        f"umbel: paused. {run.rounds_done} rounds are kept; "
        f"resume with: umbel run tiny.py --set rounds=100000 --resume {run.run}"
    )
    assert run.state == "paused"


def test_a_closed_pipe_pauses_the_run_without_a_traceback(start):
    process = start("run", "tiny.py", "--json", "--set", "rounds=100000")
    assert json.loads(process.stdout.readline())["round"] == 1
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(60) == 141  # as a process that dies of SIGPIPE
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("umbel: paused, nobody reads its output. ")


def test_help_starts_fast_and_reads_well(finish):
    def cpu_seconds():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    seconds = []
    for _ in range(3):  # the first may have to compile
        before = cpu_seconds()
        status, output, errors = finish("--help", COLUMNS="100")
        seconds.append(cpu_seconds() - before)
        assert (status, errors) == (0, "")
    assert min(seconds) < 0.7
    for expected in ("run", "experiments", "runs", "plot", "umbel run --resume latest"):
        assert expected in output


def test_another_backend_of_keras_is_refused_in_one_line(finish):
    for words in (("run", "tiny.py"), ("compare", "digits_fedavg")):
        status, output, errors = finish(*words, KERAS_BACKEND="torch")
        assert (status, output) == (2, "")
        assert errors.splitlines() == [
            "umbel: Umbel trains with Keras on TensorFlow or JAX, and KERAS_BACKEND says 'torch': set "
            "KERAS_BACKEND=tensorflow"
        ]
        assert not Path("umbel.db").exists()
