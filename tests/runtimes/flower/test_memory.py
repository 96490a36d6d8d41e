"""A client's disk: versions come back bit for bit, whole or not at all, and only where they belong."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from umbel import StoreError
from umbel.privacy.keys import frames
from umbel.runtimes.flower.memory import HOME_VARIABLE, KEPT_RUNS, MOST_RUNS, Disk, client_home

RUN, OTHER = "0123456789abcdef" * 2, "f" * 32
ARRAYS = [np.array([0.1, -0.0, np.nan, np.inf], np.float32), np.arange(6, dtype=np.int64).reshape(2, 3), np.zeros(0)]


def assert_same(found, expected=ARRAYS):
    assert [(array.dtype, array.shape, array.tobytes()) for array in found] == [
        (array.dtype, array.shape, array.tobytes()) for array in expected
    ]


def sealed(folder):
    """A disk whose versions are AES-GCM frames under keys derived from what they are versions of."""
    import hashlib

    def key(context):
        return hashlib.sha256(b"a test's key" + context).digest()

    return Disk(
        folder,
        seal=lambda content, context: frames.seal(key(context), content, context),
        unseal=lambda content, context: frames.unseal(key(context), content, context),
    )


@pytest.mark.parametrize("make", [Disk, sealed])
def test_versions_round_trip_and_are_forgotten_when_told(make, tmp_path):
    disk = make(tmp_path)
    for round in (1, 4, 5):
        disk.write(RUN, 3, round, [*ARRAYS, np.array(round)])
    disk.write(RUN, 30, 4, [])
    disk.write(OTHER, 3, 4, [])
    assert_same(disk.read(RUN, 3, 4)[:-1])
    assert disk.rounds(RUN, 3) == [1, 4, 5]
    disk.keep_only(RUN, 3, 4)
    assert (disk.rounds(RUN, 3), disk.rounds(RUN, 30), disk.rounds(OTHER, 3)) == ([4], [4], [4])
    assert disk.read(RUN, 3, 4)[-1] == 4
    assert disk.read(RUN, 30, 4) == []
    with pytest.raises(StoreError, match="client 3 has no memory of round 5"):
        disk.read(RUN, 3, 5)


def test_nothing_of_a_sealed_version_can_be_read_or_moved(tmp_path):
    disk, marked = sealed(tmp_path), [np.full(100, 1.2345, np.float32)]
    disk.write(RUN, 3, 1, marked)
    disk.write(RUN, 4, 1, ARRAYS)
    of = {client: tmp_path / RUN / f"{client}.1" for client in (3, 4)}
    assert marked[0].tobytes()[:16] not in of[3].read_bytes()
    assert (of[3].stat().st_mode & 0o777, of[3].parent.stat().st_mode & 0o777) == (0o600, 0o700)
    os.replace(of[4], of[3])
    with pytest.raises(StoreError, match=r"memory of round 1 does not open .* put the key back .*storage\.jwk"):
        disk.read(RUN, 3, 1)
    with pytest.raises(StoreError, match="both seal and unseal"):
        Disk(tmp_path, seal=lambda content, context: content)


def test_a_kits_key_opens_what_it_sealed_and_no_other_does(tmp_path, monkeypatch):
    """The same text, twice, gives other bytes; another key, and a version that lay there in the clear, are refused."""
    from umbel.privacy.keys import KeyFile
    from umbel.runtimes.flower.identity import KIT_VARIABLE, sealer_of_this_process

    def disk_of(kit):
        monkeypatch.setenv(KIT_VARIABLE, str(kit))
        sealer = sealer_of_this_process()
        return Disk(tmp_path / "memory", sealer.seal, sealer.unseal)

    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        KeyFile.generate("storage", 3650).save(tmp_path / name / "storage.jwk")
    disk = disk_of(tmp_path / "one")
    for client in (3, 4):
        disk.write(RUN, client, 1, ARRAYS)
        assert_same(disk.read(RUN, client, 1))
    sealed_versions = [path.read_bytes() for path in sorted((tmp_path / "memory" / RUN).iterdir())]
    assert sealed_versions[0] != sealed_versions[1]
    assert not [one for one in sealed_versions if ARRAYS[1].tobytes()[:24] in one]
    with pytest.raises(StoreError, match=r"client 3's memory of round 1 does not open .*put the key back"):
        disk_of(tmp_path / "other").read(RUN, 3, 1)
    Disk(tmp_path / "memory").write(RUN, 5, 1, ARRAYS)
    with pytest.raises(StoreError, match="does not open"):
        disk.read(RUN, 5, 1)
    assert_same(disk.read(RUN, 4, 1))


def test_old_runs_are_forgotten_and_the_newest_are_not(tmp_path):
    """By when they were last written to: a run that goes on stays, however early it began."""
    disk, runs = Disk(tmp_path), [f"{number:032x}" for number in range(KEPT_RUNS + 3)]
    (tmp_path / "another.json").write_text("{}")
    for number, run in enumerate(runs):
        disk.write(run, 0, 1, ARRAYS)
        os.utime(tmp_path / run, (number, number))
        disk.write(runs[0], 0, number + 2, ARRAYS)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"another.json", runs[0], *runs[-KEPT_RUNS + 1 :]}
    assert_same(disk.read(runs[0], 0, 2))


def test_runs_that_are_under_way_at_once_do_not_forget_one_another(tmp_path):
    disk, runs = Disk(tmp_path), [f"{number:032x}" for number in range(MOST_RUNS + 2)]
    for run in runs[:MOST_RUNS]:
        disk.write(run, 0, 1, ARRAYS)
    assert all(disk.rounds(run, 0) == [1] for run in runs[:MOST_RUNS])
    for run in runs[MOST_RUNS:]:  # a server that begins ever new ones does not fill the disk
        disk.write(run, 0, 1, ARRAYS)
    assert len(list(tmp_path.iterdir())) == MOST_RUNS


def test_a_version_that_was_cut_short_is_refused(tmp_path):
    disk = Disk(tmp_path)
    disk.write(RUN, 3, 1, ARRAYS)
    path = tmp_path / RUN / "3.1"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(StoreError, match="does not read back"):
        disk.read(RUN, 3, 1)


@pytest.mark.parametrize("name", ["", "../" * 5 + "etc", "A" * 32, RUN + "/x", RUN + "\n"])
def test_a_run_has_no_name_that_leads_elsewhere(tmp_path, name):
    with pytest.raises(StoreError, match="32 hexadecimal digits"):
        Disk(tmp_path).write(name, 0, 1, ARRAYS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", ["os.fsync", "os.replace"])
def test_a_process_that_is_killed_while_it_writes_leaves_the_old_version(tmp_path, at):
    disk = Disk(tmp_path)
    disk.write(RUN, 3, 1, ARRAYS)
    script = f"""
import os, signal, sys
import numpy as np
from umbel.runtimes.flower.memory import Disk
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
{at} = die
Disk(sys.argv[1]).write("{RUN}", 3, 1, [np.ones(10**6)])
"""
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert_same(disk.read(RUN, 3, 1))
    assert disk.rounds(RUN, 3) == [1]
    disk.keep_only(RUN, 3, 1)
    assert [path.name for path in (tmp_path / RUN).iterdir()] == ["3.1"]


def test_a_disk_that_refuses_is_named(tmp_path):
    (tmp_path / RUN).write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot keep client 3's memory in .*3\.1: .* \([\d,]+ bytes free\)"):
        Disk(tmp_path).write(RUN, 3, 1, ARRAYS)


def test_where_clients_keep_it(tmp_path, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    assert client_home() == tmp_path
    monkeypatch.delenv(HOME_VARIABLE)
    assert client_home().parts[-2:] == (".umbel", "clients")
