"""Calls of a SuperLink from Umbel's own processes: over TLS that follows its files, and patient with outages."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# httpx: Flower's clients raise its errors.
import httpx

from .certificates import trusting
from .compat import RetryInvoker, RuntimeHttpClient, RuntimeVersionHttpInterceptor, make_simple_http_retry_invoker

RETRY_SECONDS = 1.0  # longest time between two tries to reach a server that is gone
TOO_MANY = 429  # a proxy's answer to who calls too often; Flower retries 502, 503 and 504
CUT = ("eof", "reset", "closed", "broken pipe")  # words in the error of a handshake that was cut


def make_patient(invoker: RetryInvoker, noted: Callable[[], None] | None = None) -> RetryInvoker:
    """Make what lets Flower's calls wait for a server that is started again, and come back soon after it has.

    Its own give up whatever has TLS in the words of its error, and wait up to 20 seconds between tries. Here only a
    handshake that was refused is final. invoker: Flower's own. noted: called whenever the server could not be reached,
    by the thread that wanted to.
    """
    gives_up, waits, notes = invoker.should_giveup, invoker.wait_function, invoker.on_backoff

    def is_final(error: Exception) -> bool:
        is_cut = isinstance(error, httpx.TransportError) and (
            not isinstance(error, httpx.ConnectError) or any(word in str(error).lower() for word in CUT)
        )
        is_busy = isinstance(error, httpx.HTTPStatusError) and error.response.status_code == TOO_MANY
        return not (is_cut or is_busy) and gives_up is not None and gives_up(error)

    def note(state: Any) -> None:
        if noted is not None and isinstance(state.exception, httpx.TransportError):
            noted()
        if notes is not None:
            notes(state)

    return RetryInvoker(
        wait_gen_factory=invoker.wait_gen_factory,
        recoverable_exceptions=invoker.recoverable_exceptions,
        max_tries=None,
        max_time=None,
        on_success=invoker.on_success,
        on_backoff=note,
        on_giveup=invoker.on_giveup,
        should_giveup=is_final,
        wait_function=lambda seconds: waits(min(seconds, RETRY_SECONDS)),
    )


def runtime_client(
    address: str,
    authority: Path | None,
    name: str,
    interceptors: Sequence[Any],
    noted: Callable[[], None] | None = None,
    is_patient: bool = True,
) -> RuntimeHttpClient:
    """Make a client of a SuperLink's Runtime API.

    authority: certificates of those that are trusted, PEM, which may be replaced; None: the calls are in the clear.
    name: what the caller is called in Flower. noted: see `make_patient`. is_patient: whether a call waits for a server
    that is away.
    """
    verify: ssl.SSLContext | bool = False if authority is None else trusting(authority)
    return RuntimeHttpClient(
        f"{'http' if authority is None else 'https'}://{address}",
        interceptors=[RuntimeVersionHttpInterceptor(component_name=name), *interceptors],
        verify=verify,
        retry_invoker=make_patient(make_simple_http_retry_invoker(), noted) if is_patient else None,
    )
