"""Routes of the page: pages, which are one file, and what their scripts ask for."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ...core.errors import ConfigError, StoreError
from ...core.validation import require
from ..monitoring import Page as MonitorPage
from ..store import Store
from . import comparing, live, registry, runs, sweeping
from .address import PageAddress
from .federation import FederationView, Status
from .guard import Guard
from .sweeping import Importance

STATIC = Path(__file__).parent / "static"
PAGES = ("/", "/runs/{run}", "/compare", "/sweeps", "/models", "/federation")
LINK = '<a href="/federation">Federation</a>'
Cluster = Callable[[str], Mapping[str, int] | None]
LONG = {"Cache-Control": "private, max-age=604800"}


def create_app(
    store: Store,
    address: PageAddress,
    is_ending: Callable[[], bool] = lambda: False,
    monitor: Mapping[str, MonitorPage] | None = None,
    federation: Status | None = None,
    cluster: Cluster | None = None,
    importance: Importance | None = None,
) -> Starlette:
    """Make the page over a store, which stays the caller's to close.

    is_ending: whether the server is about to end, and waits for its connections. monitor: pages for Prometheus and
    probes by path, as `monitoring.pages_of` makes them, of a run that this process plays. federation: says how a
    federation stands, as `deploy.federation.status` does; None: there is no page of one. cluster: counts of the
    machines that a run is played on, by the run; None of a run that another process plays. importance: finds how much
    each setting of a sweep mattered.
    """
    shown = None if federation is None else FederationView(federation)
    page = _Pages(store, is_ending, shown, cluster or _elsewhere, importance or _unknown)
    answers = {
        "/api/runs": page.runs,
        "/api/totals": page.totals,
        "/api/runs/{run}": page.run,
        "/api/compare": page.compare,
        "/api/target": page.target,
        "/api/sweeps": page.sweeps,
        "/api/sweep": page.sweep,
        "/api/importance": page.importance,
        "/api/models": page.models,
        "/api/federation": page.federation,
        "/api/models/{name:path}/verify": page.verify,
    }
    return Starlette(
        routes=[
            *(Route(path, page.shell) for path in PAGES),
            *(Route(path, partial(_answer, view)) for path, view in answers.items()),
            Route("/api/models/{name:path}/{version:int}.npz", page.download),
            Route("/events", page.changed_runs),
            Route("/events/{run}", page.new_rounds),
            *(Route(path, partial(_monitored, view)) for path, view in (monitor or {}).items()),
            Route("/plotly.js", _plotly),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, address=address)],
        exception_handlers={StoreError: _refuse, ConfigError: _refuse},
    )


def _unknown(*_: object) -> Mapping[str, float]:
    """Return nothing: whoever made the page did not say how importance is found."""
    return {}


def _elsewhere(run: str) -> None:
    """Return None: the run is played by another process, or on no cluster."""


async def _plotly(request: Request) -> Response:
    return FileResponse(plotly_path(), media_type="text/javascript", headers=LONG)


def plotly_path() -> Path:
    """Return the path of the script that the package plotly carries: nothing is fetched from elsewhere."""
    return Path(str(importlib.resources.files("plotly") / "package_data" / "plotly.min.js"))


async def _answer(view: Callable[[Request], Any], request: Request) -> Response:
    """Answer with what a view returns, as JSON. Views read the store, so they run in a thread."""
    return JSONResponse(await run_in_threadpool(view, request))


async def _monitored(view: MonitorPage, request: Request) -> Response:
    """Answer with a page of the monitor, which may wait for a database."""
    status, kind, text = await run_in_threadpool(view)
    return Response(text, status, media_type=kind)


async def _refuse(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 404 if isinstance(error, StoreError) else 400)


class _Pages:
    """Answers of all addresses: a method for each."""

    def __init__(
        self,
        store: Store,
        is_ending: Callable[[], bool],
        federation: FederationView | None,
        cluster: Cluster,
        importance: Importance,
    ):
        self._store, self._is_ending = store, is_ending
        self._federation, self._cluster, self._importance = federation, cluster, importance
        shell = (STATIC / "index.html").read_text("utf-8")
        self._shell = shell if federation else shell.replace(LINK, "")

    async def shell(self, request: Request) -> Response:
        """Send the file that every page is; it links to the federation where there is one."""
        return HTMLResponse(self._shell, headers={"Cache-Control": "no-cache"})

    def runs(self, request: Request) -> Any:
        """Return every run."""
        return {"runs": runs.every(self._store), "store": self._store.address}

    def totals(self, request: Request) -> Any:
        """Return the totals of every run, which takes reading every round."""
        return {"totals": runs.totals(self._store)}

    def run(self, request: Request) -> Any:
        """Return one run."""
        found = runs.details(self._store, request.path_params["run"])
        return {**found, "cluster": self._cluster(found["run"]["run"]), "store": self._store.address}

    def compare(self, request: Request) -> Any:
        """Return several runs beside one another."""
        return {**comparing.compare(self._store, request.query_params.getlist("run")), "store": self._store.address}

    def target(self, request: Request) -> Any:
        """Return what each of several runs took to reach a target."""
        query = request.query_params
        mode, metric = query.get("mode", "max"), query.get("metric", "")
        require(mode in ("min", "max"), f"expected mode={mode[:20]!r} to be 'min' or 'max'")
        try:
            target = float(query.get("target", ""))
        except ValueError:
            raise ConfigError(f"expected target={query.get('target', '')[:40]!r} to be a number") from None
        return {"reached": comparing.targets(self._store, query.getlist("run"), metric, target, mode)}

    def sweeps(self, request: Request) -> Any:
        """Return the experiments that were tried with different settings."""
        return {"experiments": sweeping.experiments(self._store), "store": self._store.address}

    def sweep(self, request: Request) -> Any:
        """Return the runs of an experiment over the settings in which they differ."""
        query = request.query_params
        return sweeping.sweep(self._store, query.get("experiment", ""), query.get("metric"))

    def importance(self, request: Request) -> Any:
        """Return how much each setting of these runs mattered."""
        query = request.query_params
        found = sweeping.shares(self._store, query.get("experiment", ""), query.get("metric"), self._importance)
        return {"importance": dict(found)}

    def models(self, request: Request) -> Any:
        """Return the registry of models."""
        return {"models": registry.models(self._store), "store": self._store.address}

    def federation(self, request: Request) -> Any:
        """Return how the federation stands. Errors: ConfigError where the page was given none."""
        if self._federation is None:
            raise ConfigError("this page was given no federation: umbel ui --federation KIT")
        return {**self._federation(self._store), "store": self._store.address}

    def verify(self, request: Request) -> Any:
        """Check that the weights of a model are those that were registered."""
        return registry.verify(self._store, request.path_params["name"])

    async def download(self, request: Request) -> Response:
        """Send a version's weights."""
        name, version = request.path_params["name"], request.path_params["version"]
        file, content = await run_in_threadpool(registry.arrays, self._store, name, version)
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.replace('/', '-'), safe='')}"}
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def changed_runs(self, request: Request) -> Response:
        """Send events: runs that begin, go on or end."""
        return live.stream(live.ChangedRuns(self._store, request.query_params.get("mark", "")), self._is_ending)

    async def new_rounds(self, request: Request) -> Response:
        """Send events: the rounds of one run."""
        after = request.query_params.get("after", "0")
        require(after.isdecimal() and len(after) < 10, f"expected after={after[:20]!r} to be a number of a round")
        run = request.path_params["run"]
        rounds = live.NewRounds(self._store, run, int(after))

        def poll() -> Mapping[str, Any] | None:
            news = rounds()
            return None if news is None else {**news, "cluster": self._cluster(run)}

        return live.stream(poll, self._is_ending)
