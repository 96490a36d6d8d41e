"""`umbel ui`: the page over a store; and the same page beside a run, for `umbel run --ui`."""

from __future__ import annotations

import contextlib
import os
import sys
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.protocols import Watcher
from ..core.runtime import Runtime
from ..core.types import Failure, RoundRecord
from .options import StoreKeyOption, StoreOption
from .run import DEFAULT_STORE

if TYPE_CHECKING:
    from ..core.experiment import Experiment
    from ..server.history import History
    from ..server.monitoring import Page as MonitorPage
    from ..server.ui import PageAddress


def ui(
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Beyond this machine, put a proxy with TLS before it.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(help="Port to listen at; 0 for any. [dim]\\[default: 8300, or the next that is free][/dim]"),
    ] = None,
    federation: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Show a federation too: its operator's kit, or the folder of all kits; and its store."
        ),
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser, where there is a display.")] = True,
) -> None:
    """Look at runs and models in a browser, live while runs go on, whichever process plays them.

    The page only reads. Its link holds a token, without which nothing is answered.
    """
    from ..server.store import Store
    from ..server.ui import Page, PageAddress
    from ..studies.importance import importance_of

    status: Callable[[], Mapping[str, Any]] | None = None
    if federation is not None:
        store, status = federation_of(federation, store)
    with Store.open(store, create=False, key=store_key) as opened:
        page = Page(opened, PageAddress(host, port), federation=status, importance=importance_of)
        say(page.url())
        open_browser(page.url(), browser)
        with contextlib.suppress(KeyboardInterrupt):
            page.serve()


def federation_of(folder: Path, store: str) -> tuple[str, Callable[[], Mapping[str, Any]]]:
    """Return the store of a federation, unless another is named, and what asks how the federation stands.

    Errors: ConfigError for a folder without an operator's kit.
    """
    from ..deploy import federation
    from ..deploy.kits import OperatorKit

    kit = OperatorKit.find(folder)
    return kit.store if store == DEFAULT_STORE else store, partial(federation.status, folder)


@contextlib.contextmanager
def shown_beside(wanted: bool, store: str, store_key: str | None) -> Iterator[list[Watcher]]:
    """Yield watchers that open the page of a run once it has begun; none unless wanted.

    On a terminal the page stays until Ctrl-C; otherwise it ends with the run. Errors: ConfigError where its packages
    are not installed.
    """
    if not wanted:
        yield []
        return
    from ..server.monitoring import Monitor, pages_of
    from ..server.ui import PageAddress, require_packages

    require_packages()
    with contextlib.ExitStack() as stack:
        monitor = Monitor()
        beside = Beside(stack, PageAddress(), store, store_key, pages_of(monitor.text, {"loop": monitor.check_loop}))
        with monitor:
            yield [monitor, beside]
        if beside.page is not None and sys.stderr.isatty():
            print("umbel: the page stays; Ctrl-C ends it", file=sys.stderr)
            with contextlib.suppress(KeyboardInterrupt):
                beside.page.wait()


class Beside:
    """Watches for the run to begin, and opens its page then: before, there may be no store."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        address: PageAddress,
        store: str,
        store_key: str | None,
        monitor: Mapping[str, MonitorPage],
    ):
        self._stack, self._address, self._monitor = stack, address, monitor
        self._store, self._key = store, store_key
        self.page: Any = None

    def on_start(
        self, experiment: Experiment, runtime: Runtime | None, run: str | None, records: Sequence[RoundRecord]
    ) -> None:
        """Open the run's page."""
        from ..server.store import Store
        from ..server.ui import Page
        from ..studies.importance import importance_of

        if self.page is not None:
            return
        opened = self._stack.enter_context(Store.open(self._store, create=False, key=self._key))
        figures = partial(figures_of, run, runtime)
        self.page = self._stack.enter_context(
            Page(opened, self._address, self._monitor, cluster=figures, importance=importance_of)
        )
        url = self.page.url(f"/runs/{run}")
        say(url)
        open_browser(url, True)

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Do nothing: the page hears of the round from the store."""

    def on_end(self, history: History) -> None:
        """Do nothing: the page hears of the end from the store."""


def figures_of(played: str | None, runtime: Runtime | None, run: str) -> Mapping[str, int] | None:
    """Return what a runtime counts of its cluster, for the run that it plays; None for another."""
    return runtime.figures if runtime is not None and run == played else None


def say(url: str) -> None:
    """Print the link on standard error: standard output may be read by a program."""
    print(f"umbel: {url}", file=sys.stderr, flush=True)


def open_browser(url: str, wanted: bool) -> None:
    """Open a link where there is a display; elsewhere a browser might take the terminal."""
    has_display = sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
    if wanted and has_display:
        webbrowser.open(url)
