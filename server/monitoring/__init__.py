"""Seeing a server from outside: logs, metrics, health. Nothing here changes a run.

A label takes only values that were listed when its metric was made: what clients send cannot make a metric grow.
"""

from .certificates import Validity, check_certificate, validity, warn_of_expiry
from .exporter import Exporter, Page, pages_of
from .health import certificate_check, database_check
from .logs import JsonFormatter, PlainFormatter, RoundFilter, configure_logs
from .metrics import Registry
from .monitor import REASONS, Monitor
from .relay import Inbox, Relay, relayed

__all__ = [
    "REASONS",
    "Exporter",
    "Inbox",
    "JsonFormatter",
    "Monitor",
    "Page",
    "PlainFormatter",
    "Registry",
    "Relay",
    "RoundFilter",
    "Validity",
    "certificate_check",
    "check_certificate",
    "configure_logs",
    "database_check",
    "pages_of",
    "relayed",
    "validity",
    "warn_of_expiry",
]
