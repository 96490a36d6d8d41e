"""Runs, checkpoints, clients' memory and model versions in SQLite or PostgreSQL. The only place for SQLAlchemy."""

from .audit import AuditEntry, AuditLog
from .memory import StoredMemory
from .models import AliasMove, ModelRegistry, ModelVersion
from .runs import RunSummary, StoredRun
from .store import Store

__all__ = [
    "AliasMove",
    "AuditEntry",
    "AuditLog",
    "ModelRegistry",
    "ModelVersion",
    "RunSummary",
    "Store",
    "StoredMemory",
    "StoredRun",
]
