"""Cluster: one that was named, or one of this process's own on this machine, which leaves nothing behind."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import ConfigError
from ...core.system.backend import VARIABLE, keras_backend
from ...core.system.processors import processors
from ...core.validation import require

log = logging.getLogger(__name__)

MODE_VARIABLE, TOKEN_VARIABLE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
NICENESS_VARIABLE = "RAY_worker_niceness"
CONNECT_SECONDS = 5.0
PRIVATE = {"RAY_USAGE_STATS_ENABLED": "0"}  # Ray tells its makers of a cluster, else
FOLDER = Path("/tmp/umbel-ray-")  # beginning of the name of a folder of a cluster of one's own
_token = secrets.token_hex(32)  # of clusters of this process's own; Ray's core reads it once


class Machine(NamedTuple):
    """A machine of the cluster that is alive."""

    id: str
    name: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Places:
    """The places on a cluster at which clients train.

    Parameters
    ----------
    threads
        The number of a process's threads, which each train clients.
    workers
        The most clients that train side by side; None: as there is room for.
    gpus
        The most GPUs; None: all that there are; 0: none.
    """

    threads: int
    workers: int | None
    gpus: int | None
    address: str | None  # address of the cluster; None: of this process's own

    def __str__(self) -> str:
        return named(self.address)

    @property
    def most(self) -> int | None:
        """The most processes; None: as many as there is room for."""
        counts = [] if self.workers is None else [-(-self.workers // self.threads)]
        counts += [self.gpus] if self.gpus else []
        return min(counts) if counts else None

    def on_gpus(self, nodes: Sequence[Machine]) -> bool:
        """Return whether clients train on GPUs. Errors: ConfigError where some are asked for, and there are none."""
        are_there = any(node.gpus for node in nodes)
        if self.gpus and not are_there:
            raise ConfigError(f"gpus={self.gpus}, and Ray knows of no GPU on {self}; ray status lists what it knows of")
        return are_there and self.gpus != 0

    def shared_out(self, nodes: Sequence[Machine], on_gpus: bool) -> list[tuple[Machine, int]]:
        """Return how many processes each node has room for: one for each GPU, else for so many processors."""
        if on_gpus:
            return [(node, node.gpus) for node in nodes if node.gpus]
        return [(node, node.cpus // self.threads) for node in nodes if node.cpus >= self.threads]


@dataclass
class Joined:
    """The one cluster that this process is part of."""

    address: str | None
    folder: str | None  # of a cluster of this process's own
    users: int = 1
    is_guest: bool = False  # whether somebody else joined before, and will leave after


_joined: Joined | None = None


def join(address: str | None, places: Places) -> None:
    """Be part of the cluster at an address; None: of one of this process's own, which is started if need be.

    Errors: ConfigError where Ray is missing, where nobody answers there, or this process is part of another cluster.
    """
    global _joined
    require_ray()
    if _joined is not None:
        if _joined.address != address:
            raise ConfigError(
                f"this process is part of {named(_joined.address)}, and not of {named(address)}: "
                "close() the other Ray first"
            )
        _joined.users += 1
        return
    import ray

    if ray.is_initialized():
        if address is None or ray.get_runtime_context().gcs_address != address:
            raise ConfigError(
                f"this process is part of the Ray cluster at {ray.get_runtime_context().gcs_address}: say so with "
                "address=…, or leave it with ray.shutdown()"
            )
        _joined = Joined(address, None, is_guest=True)
        return
    if address is None:
        _joined = Joined(None, _start(places))
    else:
        _warn_of_strangers(address)
        _connect(address)
        _joined = Joined(address, None)
    _let_ray_be_silent()


def leave() -> None:
    """Be part of the cluster no longer, if nobody else here is; end one of this process's own."""
    global _joined
    if _joined is None:
        return
    _joined.users -= 1
    if _joined.users > 0:
        return
    was, _joined = _joined, None
    if not was.is_guest:
        import ray

        ray.shutdown()
    if was.folder is not None:
        _read_again()
        shutil.rmtree(was.folder, ignore_errors=True)


def require_ray() -> None:
    """Raise ConfigError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("a cluster needs Ray, which is not installed: pip install 'umbel[ray]'")


def alive_nodes() -> list[Machine]:
    """List the nodes of the cluster that are alive, in an order that does not change."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    return sorted(
        (
            Machine(
                node["NodeID"],
                f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:6]})",
                int(node["Resources"].get("CPU", 0)),
                int(node["Resources"].get("GPU", 0)),
            )
            for node in nodes
        ),
        key=lambda node: node.id,
    )


def check_address(address: str) -> None:
    """Raise ConfigError for what is not HOST:PORT."""
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise ConfigError(
            f"expected address={address!r} to be HOST:PORT; Ray's client protocol is not used: start this program on a "
            "node of the cluster"
        )
    require(bool(host) and port.isdecimal(), f"expected address={address!r} to be HOST:PORT, such as 10.0.0.1:6379")


def named(address: str | None) -> str:
    """Return a cluster's name, for messages."""
    return "a Ray cluster of its own" if address is None else f"the Ray cluster at {address}"


def _start(places: Places) -> str:
    """Start a cluster on this machine; return the folder that it lives in."""
    import ray

    most = places.most
    here = processors()
    _sweep()
    # Short: a socket's path has at most 107 bytes.
    folder = tempfile.mkdtemp(prefix=f"{FOLDER.name}{os.getpid()}-", dir=FOLDER.parent)
    # Ray listens on every interface, and runs what it is sent: only who has the token is heard.
    settings = {MODE_VARIABLE: "token", TOKEN_VARIABLE: _token, NICENESS_VARIABLE: "0"} | PRIVATE
    try:
        with _environment(settings), _quietly():
            _read_again()
            ray.init(
                address="local",  # never a cluster that happens to be there, whatever RAY_ADDRESS says
                num_cpus=max(here, places.threads * (most or 1)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
    except Exception as error:
        _read_again()
        shutil.rmtree(folder, ignore_errors=True)
        raise ConfigError(f"Ray does not start on this machine: {first_line(error)}") from error
    return folder


def _sweep() -> None:
    """Remove the folders of processes that were killed, and could not remove them."""
    for folder in FOLDER.parent.glob(f"{FOLDER.name}*"):
        process = folder.name.removeprefix(FOLDER.name).partition("-")[0]
        if process.isdecimal() and not _is_alive(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _connect(address: str) -> None:
    """Join a cluster that runs. Errors: ConfigError, in a sentence, for whatever Ray says in a page."""
    import ray
    from ray.exceptions import AuthenticationError

    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {address} ({error}); ray start --head starts one") from error
    try:
        with _quietly():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (Exception, AuthenticationError) as error:
        with contextlib.suppress(Exception):
            ray.shutdown()
        text = str(error) + str(error.__cause__ or "")
        if "Version mismatch" in text:
            raise ConfigError(f"the Ray cluster at {address} has other versions: {first_line(error, 6)}") from error
        if "InvalidAuthToken" in text or isinstance(error, AuthenticationError):
            raise ConfigError(
                f"the Ray cluster at {address} asks for its token: set {MODE_VARIABLE}=token and {TOKEN_VARIABLE}"
            ) from error
        raise ConfigError(
            f"cannot join the Ray cluster at {address} ({first_line(error)}); this machine has to be one of its nodes: "
            f"ray start --address={address}"
        ) from error


def _warn_of_strangers(address: str) -> None:
    """Warn of a cluster that others than this machine reach, and that asks nobody who they are."""
    host = address.rpartition(":")[0].strip("[]")
    if os.environ.get(MODE_VARIABLE) == "token" or is_loopback(host):
        return
    log.warning(
        "the Ray cluster at %s has no authentication: whoever reaches it runs code on its nodes. Set %s=token on all "
        "of them (docs/ray.md), or keep its network to yourself",
        address,
        MODE_VARIABLE,
    )


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is this machine's own loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def first_line(error: BaseException, lines: int = 1) -> str:
    """Return the beginning of an error's text, in one line."""
    text = " ".join(str(error).strip().splitlines()[:lines]) or type(error).__name__
    return " ".join(text.split())[:300].rstrip(".")


def last_line(error: BaseException) -> str:
    """Return the end of an error's text, where a traceback says what it was."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:300].rstrip(".")


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Have variables in the environment that are not there, for a while."""
    new = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _let_ray_be_silent() -> None:
    """Keep what raylets report off standard output, where it goes even without log_to_driver: the crew says it."""
    from ray._private import worker

    def note(lines: dict[str, Any], *arguments: Any, **settings: Any) -> None:
        log.debug("%s: %s", lines.get("pid"), " ".join(lines.get("lines", ())))

    worker.print_to_stdstream = note  # type: ignore[assignment]


def _read_again() -> None:
    """Let Ray's core, which read the environment when it was imported, read who may join once more."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep Ray's tips off the screen, and what this process does when it is asked to end, where it does something."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
    if is_main and callable(before):  # Ray has put its own in the place
        signal.signal(signal.SIGTERM, before)


def actor_options(places: Places, node: Machine, on_gpu: bool) -> dict[str, Any]:
    """Return the options of an actor on a node: there and nowhere else, and never restarted by Ray."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    variables[VARIABLE] = keras_backend()[0]  # the one in use, whatever was set after Keras was imported
    # TensorFlow's pool of threads is as large as the machine in every process, else.
    variables |= {"TF_NUM_INTEROP_THREADS": str(places.threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
    if not on_gpu:
        variables["CUDA_VISIBLE_DEVICES"] = ""  # as Ray has it today: who did not ask for a GPU takes none
    cpus = min(places.threads, node.cpus // node.gpus) if on_gpu else places.threads
    return {
        "num_cpus": 0 if places.address is None else cpus,  # nobody shares a cluster of one's own
        "num_gpus": int(on_gpu),
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": 2,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False),
        "runtime_env": {"env_vars": variables},
    }


# Variables of this process that change what clients find or compute, and that a node would not have by itself.
PASSED_ON = ("UMBEL_DATA", "KERAS_HOME", "TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "XLA_FLAGS")
