"""What clients keep in a folder of a cluster: versions by round and content, found again or missed in a sentence."""

import numpy as np
import pytest

from umbel import ConfigError
from umbel.core.errors import StoreError
from umbel.runtimes.ray.shelf import SENTINEL, Shelf, round_of


@pytest.fixture
def shelf(tmp_path):
    made = Shelf(tmp_path / "run")
    made.set_up(is_new=True)
    return made


def files(shelf):
    return sorted(path.name for path in shelf.folder.rglob("*.*.*"))


def test_what_is_written_is_read(shelf):
    arrays = [np.arange(3, dtype="f4"), np.zeros(0, "f4"), np.array(7)]
    for client in (0, 999, 123_456):
        note = shelf.write(client, 4, arrays)
        assert round_of(note) == 4
        for read, written in zip(shelf.read(client, note), arrays, strict=True):
            np.testing.assert_array_equal(read, written)
            assert read.dtype == written.dtype


def test_a_round_that_is_done_again_changes_nothing(shelf):
    note = shelf.write(1, 2, [np.ones(2)])
    assert all(map(np.array_equal, shelf.write(1, 2, [np.ones(2)]), note))
    assert len(files(shelf)) == 1
    other = shelf.write(1, 2, [np.zeros(2)])  # of the same round, by a client who trains twice in it: both are there
    assert shelf.read(1, note)[0][0] == 1
    assert shelf.read(1, other)[0][0] == 0


def test_only_what_was_before_a_committed_note_goes(shelf):
    notes = [shelf.write(1, round, [np.full(2, round)]) for round in (1, 5, 9)]
    others = shelf.write(11, 1, [np.ones(2)])
    shelf.forget_before(1, notes[1])
    assert [name.split(".")[1] for name in files(shelf) if name.startswith("1.")] == ["5", "9"]
    assert shelf.read(11, others)[0][0] == 1


def test_what_is_missing_or_mangled_is_said(shelf):
    note = shelf.write(3, 2, [np.ones(2)])
    (path,) = shelf.folder.rglob("3.2.*")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    with pytest.raises(StoreError, match="is not what client 3 wrote"):
        shelf.read(3, note)
    path.unlink()
    with pytest.raises(
        StoreError, match=r"client 3's memory of round 2 is not in .*: No such file or directory; put it back"
    ):
        shelf.read(3, note)


def test_a_machine_that_does_not_see_the_folder_is_named(shelf, tmp_path):
    shelf.check_shared("here")
    (shelf.folder / SENTINEL).write_text("another's")
    for elsewhere in (shelf, Shelf(tmp_path / "nothing")):
        with pytest.raises(ConfigError, match=r"node there does not see .* all nodes share"):
            elsewhere.check_shared("there")


def test_a_folder_that_is_gone_or_cannot_be_made(tmp_path):
    with pytest.raises(ConfigError, match="give memory= the folder that the run began with, or put it back"):
        Shelf(tmp_path / "gone").set_up(is_new=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot keep what clients remember in .*: Not a directory"):
        Shelf(tmp_path / "file" / "run").set_up(is_new=True)
