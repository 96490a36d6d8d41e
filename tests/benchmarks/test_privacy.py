"""The privacy benchmark's plumbing, and that what it times is the protocol; timings are `make bench-privacy`'s."""

import numpy as np
import pytest
from rich.console import Console

from umbel.benchmarks import privacy, privacy_parties, report
from umbel.benchmarks.privacy_rows import Row, medians
from umbel.privacy.secagg.messages import client_bytes


@pytest.mark.parametrize(
    ("row", "is_met", "shown"),
    [
        (Row("a", 0.68, 0.7, "×", at_least=True), False, ("a", "0.68 ×", "≥ 0.7 ×", "no")),
        (Row("b", 1.003, 1.02, "×"), True, ("b", "1.003 ×", "≤ 1.02 ×", "yes")),
        (Row("c", 12.34, None, "ms"), None, ("c", "12.3 ms", "–", "–")),
    ],
)
def test_a_row_says_whether_its_target_is_met(row, is_met, shown):
    assert row.is_met is is_met
    assert privacy.cells(row) == shown


def test_what_cannot_be_measured_leaves_the_rest():
    def sound():
        yield Row("sound", 1.0, 2.0, "s")

    def broken():
        raise ImportError("no such package")

    rows, failures = privacy.play([broken, sound], Console(quiet=True))
    assert [row.what for row in rows] == ["sound"]
    assert failures == ["broken was not measured: ImportError: no such package"]


def test_the_document_holds_every_row(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(report, "ROOT", tmp_path)
    privacy.write([Row("one", 1.5, 2.0, "×"), Row("two", 3.0, None, "ms")])
    text = (tmp_path / "docs" / "benchmarks-privacy.md").read_text()
    assert "| one | 1.50 × | ≤ 2 × | yes |" in text
    assert "| two | 3.00 ms | – | – |" in text


def test_works_take_turns():
    order = []
    medians(lambda: order.append("a"), lambda: order.append("b"), passes=2)
    assert order == ["a", "b", "a", "b"]


def test_the_server_that_is_timed_takes_all_masks_off():
    seconds, masks = privacy_parties.server_unmask(8, dropped=3)  # it checks that the sum is what it should be
    assert seconds > 0
    assert 97 + 3 * 14 <= masks <= 97 + 3 * 16


def test_the_client_that_is_timed_goes_through_every_stage():
    before, masked, after = client_bytes(99, 4 * 1000)
    assert privacy_parties.umbel_client(np.zeros(1000, np.float32)).sent_bytes == before + masked + after


def test_flowers_client_that_is_timed_masks_and_shares():
    pytest.importorskip("flwr")
    assert privacy_parties.flower_client(np.zeros(1000, np.float32)).sent_bytes > 8 * 1000 + 99 * 100
