"""The page in a real browser: a run is started, its curve grows, two runs are compared, an injected name stays text."""

import contextlib
import shutil
import threading
import time

import pytest

from shown import INJECTED, fill, standing, sweep
from umbel import Experiment, FedAvg, FixedCohort, Local, Simulation, data, run
from umbel.benchmarks.page import chromium
from umbel.server.ui import Page, PageAddress
from umbel.studies.importance import importance_of

WAIT_SECONDS = 60
POINTS = (
    "const plot = document.querySelector('[data-chart={}] .plot'); return (plot?.data ?? []).map(one => one.x.length)"
)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium chromium-driver")
    opened = chromium()
    yield opened
    opened.quit()


@pytest.fixture
def page(store):
    """The page over an empty store, with a federation beside it."""
    with Page(store, PageAddress(port=0), federation=standing, importance=importance_of) as served:
        yield served


def until(found, said):
    """Wait for what `found` returns to be true, and return it.

    A live page may replace an element between its being found and its being used: it is looked for again.
    """
    replaced = pytest.importorskip("selenium.common.exceptions").StaleElementReferenceException
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(replaced):
            if value := found():
                return value
        time.sleep(0.1)
    pytest.fail(f"not within {WAIT_SECONDS} s: {said}")


def texts(browser, place):
    """The text of every element at a place."""
    return browser.execute_script("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", place)


def press(browser, place, key):
    """Press a key on the element at a place, once it is there."""

    def pressed():
        for element in browser.find_elements("css selector", place)[:1]:
            element.send_keys(key)
            return True
        return False

    until(pressed, place)


class Gate:
    """Watches a run, and lets it go on by a round for each time it is opened: what is seen is no race."""

    def __init__(self):
        self.rounds = threading.Semaphore(0)

    def on_start(self, experiment, runtime, run, records):
        """The first round waits for nothing."""

    def on_round(self, record, failures):
        """Wait for the next one."""
        self.rounds.acquire(timeout=2 * WAIT_SECONDS)

    def on_end(self, history):
        """Nothing more."""


def build_model():
    import keras

    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def test_a_run_that_is_started_appears_and_its_curve_grows_without_a_reload(browser, page, tmp_path):
    browser.get(page.url())
    until(lambda: "No runs yet" in browser.page_source, "the empty list")
    clients = data.Partitioned(data.Digits("train"), by=data.Iid(), clients=10)
    experiment = Experiment(
        name="live", model=build_model, population=clients, strategy=FedAvg(), sampler=FixedCohort(2),
        local=Local(epochs=1, batch_size=32, learning_rate=0.1), rounds=4, test=data.Digits("test"),
    )  # fmt: skip
    gate = Gate()
    url = f"sqlite:///{tmp_path}/runs.db"
    # Another connection than the page's, as another process would have.
    playing = threading.Thread(target=run, args=(experiment, Simulation(1)), kwargs={"store": url, "watchers": [gate]})
    playing.start()
    try:
        until(lambda: texts(browser, "td.name a") == ["live"], "the run in the list")
        browser.execute_script("document.querySelector('td.name a').click()")
        until(lambda: texts(browser, "h1") == ["live"], "its page")
        browser.execute_script("window.isTheSamePage = true")
        for round in range(1, 5):
            until(lambda: set(browser.execute_script(POINTS.format("accuracy"))) == {round}, f"{round} rounds")  # noqa: B023
            gate.rounds.release()
        until(lambda: "finished" in "".join(texts(browser, ".heading .state")), "the end")
        assert browser.execute_script("return window.isTheSamePage")
    finally:
        gate.rounds.release(10)
        playing.join()


def test_two_runs_are_chosen_with_the_keyboard_and_compared(browser, page, store):
    runs = fill(store)
    browser.get(page.url())
    until(lambda: texts(browser, "tbody tr") and "…" not in "".join(texts(browser, "td.number")), "the totals")
    for kind in ("finished", "running"):
        press(browser, f"tr[data-run='{runs[kind]}'] input", " ")
    until(lambda: texts(browser, ".heading .button") == ["Compare 2 runs"], "the link")
    press(browser, ".heading .button", "\n")
    until(lambda: browser.execute_script(POINTS.format("compare")) == [20, 8], "two curves")
    text = "".join(texts(browser, "#page"))
    assert "strategy.server_lr" in text
    assert "rounds to target" in text


def test_an_injected_name_stays_text(browser, page, store):
    runs = fill(store)
    for path, place in (
        ("/", f"tr[data-run='{runs['injected']}'] a"),
        (f"/runs/{runs['injected']}", "h1"),
        ("/models", "h2"),
    ):
        browser.get(page.url(path))
        until(lambda: INJECTED in texts(browser, place), path)  # noqa: B023
        assert browser.title.endswith("Umbel")
    browser.get(page.url(f"/compare?run={runs['injected']}"))
    until(lambda: browser.execute_script(POINTS.format("compare")) == [5], "its curve")
    assert INJECTED[:20] in "".join(texts(browser, ".legendtext"))
    assert browser.find_elements("css selector", "main b, main script") == []


def test_no_page_is_wider_than_a_telephone(browser, page, store):
    runs = fill(store)
    sweep(store)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    )
    two = f"/compare?run={runs['private']}&run={runs['long']}"
    kinds = ("long", "injected", "nan", "empty", "private")
    for path in ("/", "/models", "/compare", "/sweeps", "/federation", two, *(f"/runs/{runs[kind]}" for kind in kinds)):
        browser.get(page.url(path))
        until(lambda: not browser.find_elements("css selector", "main[aria-busy]"), path)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, path
        assert not browser.find_elements("css selector", "[role=alert]"), path


def test_a_sweep_and_a_federation_are_drawn(browser, page, store):
    sweep(store)
    browser.get(page.url("/sweeps"))
    until(lambda: len(browser.execute_script(POINTS.format("sweep"))) == 9, "a line for each run with a number")
    until(lambda: browser.execute_script(POINTS.format("importance")) == [2], "what mattered")
    assert texts(browser, "tbody tr td:nth-child(3)")[0] == "0.2514"
    browser.get(page.url("/federation"))
    until(lambda: texts(browser, "[data-part=Clients] tbody th") == ["north", "south", INJECTED], "the clients")
    text = "".join(texts(browser, "#page"))
    assert "1 of 3" in text
    assert "soon: umbel deploy renew" in text
    assert "swept" in text
