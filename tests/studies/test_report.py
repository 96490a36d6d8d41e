"""The report: one file, of nothing from elsewhere, in which names stay text and numbers are the store's."""

import html.parser
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import umbel
from shown import INJECTED, LONG, begin, fill, go_on
from umbel import Experiment, FixedCohort, Local, PrivacyPlan, Simulation, data
from umbel.core.errors import ConfigError
from umbel.privacy import statement
from umbel.privacy.per_example import PerExample
from umbel.server.store import Store
from umbel.studies import report

ROOT = Path(umbel.__file__).parent
EMPTY = {"meta", "br", "hr", "img", "link"}


class Page(html.parser.HTMLParser):
    """What a browser makes of a file: its elements, their attributes and its text. Elements that do not close fail."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.said = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "style" not in self.open:
            self.said.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.said).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report of every kind of run, by kind; and one of three."""
    folder = tmp_path_factory.mktemp("reports")
    with Store.open(f"sqlite:///{folder}/runs.db") as store:
        runs = fill(store)
        found = {kind: report.of_run(store, run) for kind, run in runs.items()}
    pages = {}
    for kind, contents in [*((kind, [one]) for kind, one in found.items()), ("several", list(found.values()))]:
        report.write(contents, folder / f"{kind}.html")
        pages[kind] = (folder / f"{kind}.html").read_text("utf-8")
    return pages


KINDS = ("long", "injected", "one", "empty", "nan", "private", "finished", "running", "several")


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_needs_nothing_from_elsewhere_and_has_no_script(written, kind):
    page = Page(written[kind])
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert "default-src 'none'" in dict(page.attributes)["content"]
    loaded = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "data")]
    assert [value for value in loaded if not value.startswith(("#", "data:"))] == []
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"@import|url\((?!['\"]?#)", written[kind])


def test_names_stay_text(written):
    page = Page(written["injected"])
    assert INJECTED in page.text
    assert "<script" not in written["injected"]
    assert LONG in Page(written["long"]).text


def test_numbers_are_those_of_the_store(written):
    text = Page(written["finished"]).text
    assert "20 / 20" in text
    assert "340 kB" in text  # 20 rounds of 8,000 and 9,000 bytes
    assert "strategy.server_lr 0.5 1.0" in text  # this run, and as shipped
    assert "validation_accuracy" in text
    assert "worst tenth of clients" in text
    assert len(re.findall(r"version \d, params \(SHA-256\) [0-9a-f]{64}", text)) == 2


def test_what_is_not_finite_is_said_and_a_failed_run_says_why(written):
    assert "test_loss is not a finite number from round 7 on" in Page(written["nan"]).text
    empty = Page(written["empty"]).text
    assert "No round was finished" in empty
    assert "failed: ClientError: client 3: the batch holds text" in empty


def test_a_metric_that_never_was_a_number_is_drawn_as_nothing(tmp_path):
    with Store.open(f"sqlite:///{tmp_path}/runs.db") as store:
        run = begin(store, "lost", 2)
        go_on(store, run, [1, 2], metrics={"test_loss": math.nan, "train_loss": math.nan, "validation_loss": math.inf})
        report.write([report.of_run(store, run)], tmp_path / "r.html")
    assert "test_loss is not a finite number from round 1 on" in Page((tmp_path / "r.html").read_text("utf-8")).text


def test_a_private_run_says_of_whom_against_whom_and_shows_no_clients_data(written):
    text = Page(written["private"]).text
    for said in ("ε spent 1.732", "ε at most, by the plan 2", "δ 1e-05", "a client, with all its examples",
                 "one lacks one client", "whoever knows the seed can subtract it", "It is withheld"):  # fmt: skip
        assert said in text
    assert "nothing bounds what its models tell" in Page(written["finished"]).text


def test_several_runs_are_beside_one_another(written):
    text = Page(written["several"]).text
    assert text.startswith("Made") or "8 runs" in text
    assert "Settings that differ" in text


def test_the_statement_is_the_page_about_threats():
    """One wording: a cell that changes there changes here."""
    lines = (ROOT / "docs" / "threat-model.md").read_text("utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head = cells[0][1:]
    assert head == list(statement.PARTIES)
    rows = {cell[0].replace("`", ""): [bare(text) for text in cell[1:]] for cell in cells if len(cell) == 6}
    for name, row in statement.ROWS.items():
        (theirs,) = [texts for title, texts in rows.items() if name == title or name in title.split(", ")]
        assert theirs == list(row.values()), name


def bare(text):
    """A cell without its tests and links."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", lambda link: link[1], text)
    return re.sub(r"\s*\(`tests/[^)]*`\)", "", text)


def test_no_cell_of_a_statement_needs_the_one_before_it():
    for row in statement.ROWS:
        names = row.split(" with ")
        for promises in statement.statement_of(
            *((names * 2)[:2] if len(names) > 1 else (names[0], None))
        ).promises.values():
            assert not [said for said in promises.values() if said.startswith("the same")]
    assert statement.statement_of("MyPlan", None).promises == {}


def build_model():
    import keras

    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def small(**more):
    clients = data.Partitioned(data.Digits("train"), by=data.Dirichlet(0.3), clients=10)
    fields = {"local": Local(epochs=1, batch_size=32, learning_rate=0.1), "rounds": 2, "test": data.Digits("test")}
    return Experiment(name="small", model=build_model, population=clients, **fields | more)


def test_a_history_reports_itself_with_the_populations_picture(tmp_path):
    history = umbel.run(small(strategy=umbel.FedAvg(), sampler=FixedCohort(4)), Simulation(1), watchers=())
    history.report(tmp_path / "report.html")
    text = Page((tmp_path / "report.html").read_text("utf-8")).text
    assert history.params_sha256 in text
    assert "1,437 examples, 10 clients" in text
    assert f"{history.rounds[-1].metrics['test_accuracy']:.4f}" in text
    for path in (tmp_path / "report.pdf", tmp_path / "none" / "report.html"):
        with pytest.raises(ConfigError, match=r"path="):
            history.report(path)


def test_a_private_historys_report_shows_no_clients_data(tmp_path):
    plan = PrivacyPlan(epsilon=8.0, delta=1e-2, rounds=2, population=10, sampling_rate=0.5, clip_norm=1.0)
    history = umbel.run(small(strategy=umbel.FedAvg(), plan=plan), Simulation(1), watchers=())
    history.report(tmp_path / "report.html")
    text = Page((tmp_path / "report.html").read_text("utf-8")).text
    assert "It is withheld" in text
    assert "examples, 10 clients" not in text
    assert "trusted with every update, the noise and the cohort's secrecy" in text


def test_a_report_of_dp_sgd_without_a_plan_shows_no_clients_data_either(tmp_path):
    local = umbel.Local(batch_size=50, steps=1, learning_rate=0.1, per_example=PerExample(1.0, 1.0))
    history = umbel.run(small(strategy=umbel.FedAvg(), local=local, rounds=1), Simulation(1), watchers=())
    history.report(tmp_path / "report.html")
    text = Page((tmp_path / "report.html").read_text("utf-8")).text
    assert "It is withheld" in text
    assert "examples, 10 clients" not in text


def test_the_command_takes_an_audits_findings(tmp_path, monkeypatch, capsys):
    from umbel.cli.main import execute

    monkeypatch.chdir(tmp_path)
    with Store.open("sqlite:///umbel.db") as store:
        runs = fill(store)
    finding = {"attack": "membership", "adversary": "whoever has the released model", "found": {"auc": 0.51},
               "control": {"auc": 0.97}, "verdict": "resisted", "why": "", "run": runs["finished"]}  # fmt: skip
    Path("audit.jsonl").write_text(json.dumps(finding) + "\n")
    assert execute(["report", runs["finished"], "-o", "r.html", "--audit", "audit.jsonl"]) == 0
    assert capsys.readouterr().out == "r.html\n"
    text = Page(Path("r.html").read_text("utf-8")).text
    assert "membership whoever has the released model auc 0.51 auc 0.97 resisted" in text
    Path("audit.jsonl").write_text("[]")
    assert execute(["report", runs["finished"], "--audit", "audit.jsonl"]) == 2
    assert execute(["report", runs["finished"], "-o", "r.pdf"]) == 2
    assert execute(["report", "nobody"]) == 2
    assert "no run 'nobody'" in capsys.readouterr().err


def test_a_history_pickles_without_its_experiment(tmp_path):
    import pickle

    history = umbel.run(small(strategy=umbel.FedAvg(), sampler=FixedCohort(2)), Simulation(1), watchers=())
    again = pickle.loads(pickle.dumps(history))
    assert again.played is None
    assert np.array_equal(again.params, history.params)
    again.report(tmp_path / "again.html")
    assert "They are not at hand" in (tmp_path / "again.html").read_text("utf-8")
