"""`umbel privacy`: figures on standard output, refusals in one line."""

import json
import sys

import pytest

EPSILON = "privacy epsilon --noise-multiplier 1.3 --sampling-rate 0.0025 --rounds 6000 --delta 1e-5"
CALIBRATE = "privacy calibrate --epsilon 1 --sampling-rate 1 --rounds 10 --delta 1e-5"


def test_epsilon_is_printed_by_both_accountants(here):
    status, output, errors = here(*EPSILON.split())
    assert (status, errors) == (0, "")
    assert [line.split() for line in output.splitlines()] == [["epsilon_pld", "0.640111"], ["epsilon_rdp", "0.724223"]]


def test_epsilon_as_json_is_one_object_and_nothing_else(here):
    status, output, errors = here(*EPSILON.split(), "--population", "60000", "--json")
    assert (status, errors) == (0, "")
    assert output.endswith("}\n")
    assert json.loads(output) == pytest.approx({"epsilon_pld": 0.6401, "epsilon_rdp": 0.72422}, abs=1e-4)


def test_calibrated_noise_keeps_the_budget_that_it_was_asked_for(here):
    status, output, _ = here(*CALIBRATE.split(), "--json")
    noise = json.loads(output)["noise_multiplier"]
    assert (status, json.loads(output)) == (0, {"noise_multiplier": noise})
    assert here(*CALIBRATE.split())[1].split() == ["noise_multiplier", f"{noise:.6g}"]
    for multiplier, is_within in ((noise, True), (noise - 0.001, False)):
        words = EPSILON.replace("1.3", f"{multiplier:.3f}").replace("0.0025", "1").replace("6000", "10").split()
        assert (json.loads(here(*words, "--json")[1])["epsilon_pld"] <= 1) == is_within


def test_what_is_infinite_is_a_word_in_json(here):
    words = EPSILON.replace("1.3", "0.01").replace("0.0025", "1").split()
    assert json.loads(here(*words, "--json")[1])["epsilon_pld"] == "Infinity"
    assert here(*words)[1].split()[:2] == ["epsilon_pld", "inf"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (EPSILON.replace("1.3", "0"), "noise_multiplier=0"),
        (EPSILON.replace("1.3", "-1"), "noise_multiplier=-1"),
        (EPSILON.replace("1.3", "nan"), "noise_multiplier=nan"),
        (EPSILON.replace("1.3", "much"), "'much' is not a valid float"),
        (EPSILON.replace("0.0025", "1.5"), "sampling_rate=1.5"),
        (EPSILON.replace("0.0025", "0"), "sampling_rate=0"),
        (EPSILON.replace("6000", "0"), "rounds=0"),
        (EPSILON.replace("6000", "10000000"), "10000000"),
        (EPSILON.replace("1e-5", "1"), "delta=1.0"),
        (EPSILON + " --population 1000000", "1/population"),
        (EPSILON + " --population 0", "population=0"),
        (EPSILON.replace("--delta 1e-5", ""), "Missing option '--delta'"),
        (CALIBRATE.replace("--epsilon 1", "--epsilon 0"), "epsilon=0"),
        (CALIBRATE.replace("--epsilon 1", "--epsilon 1e-9").replace("1e-5", "1e-10"), "no noise multiplier"),
        (CALIBRATE + " --population 1000000", "1/population"),
        ("privacy spend", "No such command 'spend'"),
    ],
)
def test_bad_words_are_refused_in_one_line(here, words, part):
    status, output, errors = here(*words.split(), "--json") if "spend" not in words else here(*words.split())
    assert (status, output) == (2, "")
    assert len(errors.splitlines()) == 1
    assert errors.startswith("umbel: ")
    assert part in errors


@pytest.mark.parametrize("words", [EPSILON, CALIBRATE])
def test_without_dp_accounting_the_remedy_is_one_line(here, monkeypatch, words):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    status, output, errors = here(*words.split(), "--json")
    assert (status, output) == (2, "")
    assert errors == "umbel: accounting for privacy needs dp-accounting: pip install dp-accounting\n"


def test_help_names_the_commands(here):
    for words in (["privacy"], ["privacy", "--help"]):
        status, output, _ = here(*words)
        assert status == 0
        assert "epsilon" in output
        assert "calibrate" in output
