"""Seconds until `umbel ui` shows something, with a store of many runs and a real Chromium.

    python benchmarks/page.py [--runs 1000] [--rounds 200] [--json]

One run is trained; the others are its rows under other names, so that filling the store takes seconds. Printed are the
slowest of five loads: the browser's first paint, and when the first hundred runs, and all their durations, were there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from umbel import run
from umbel.core.reading.loading import load_experiment
from umbel.server.store import Store
from umbel.server.ui import Page, PageAddress

LOADS = 5
PATIENCE = 60.0
ROWS = "return document.querySelectorAll('table tbody tr').length"
WAITING = (
    "return [...document.querySelectorAll('table tbody td')].filter(cell => cell.textContent.trim() === '…').length"
)
PAINT = "return performance.getEntriesByName('first-paint')[0]?.startTime"


def fill(file: Path, runs: int, rounds: int) -> None:
    """Train one run, and copy its rows until there are so many."""
    run(load_experiment("digits_fedavg", [f"rounds={rounds}"]), store=f"sqlite:///{file}", watchers=())
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        (first,) = connection.execute("SELECT run FROM runs").fetchone()
        for table in ("runs", "rounds"):
            columns = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})") if name != "run"]
            rest = ", ".join(columns)
            copied = f"INSERT INTO {table} (run, {rest}) SELECT ?, {rest} FROM {table} WHERE run = ?"
            connection.executemany(copied, [(f"20260101-{number:06d}", first) for number in range(1, runs)])


def chromium() -> Any:
    """Open a headless Chromium."""
    from selenium import webdriver

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        sys.exit("no Chromium on this machine: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(word)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def seconds_until(found: Callable[[], bool], began: float) -> float:
    """Return the seconds from `began` until something is found."""
    while not found():
        if time.perf_counter() - began > PATIENCE:
            sys.exit(f"the page showed nothing within {PATIENCE:g} s")
        time.sleep(0.01)
    return time.perf_counter() - began


def load(browser: Any, url: str) -> tuple[float, float, float]:
    """Return the seconds of one load: to the first paint, to the first runs, to the last of their figures."""
    browser.get("about:blank")
    began = time.perf_counter()
    browser.get(url)
    listed = seconds_until(lambda: browser.execute_script(ROWS) > 0, began)
    whole = seconds_until(lambda: browser.execute_script(WAITING) == 0, began)
    return browser.execute_script(PAINT) / 1000, listed, whole


def measure(runs: int, rounds: int) -> dict[str, float]:
    """Fill a store, and load its page."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "runs.db"
        fill(file, runs, rounds)
        browser = chromium()
        try:
            with Store.open(f"sqlite:///{file}") as store, Page(store, PageAddress(port=0)) as page:
                loads = [load(browser, page.url()) for _ in range(LOADS)]
        finally:
            browser.quit()
        paint, listed, whole = map(max, zip(*loads, strict=True))
        return {"mib": file.stat().st_size / 2**20, "first_paint": paint, "first_runs": listed, "whole": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description="How soon umbel ui shows something.")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on standard output")
    options = parser.parse_args()
    found = measure(options.runs, options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{options.runs:,} runs of {options.rounds} rounds, a store of {found['mib']:.0f} MiB")
    print(
        f"first paint {found['first_paint']:.2f} s, first runs {found['first_runs']:.2f} s, all {found['whole']:.2f} s"
    )


if __name__ == "__main__":
    main()
