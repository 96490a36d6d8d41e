"""Runs, checkpoints, clients' memory and model versions in SQLite or PostgreSQL. The only place for SQLAlchemy."""

from .audit import AuditEntry, AuditLog
from .memory import StoredMemory
from .models import AliasMove, ModelRegistry, ModelVersion
from .runs import RunSummary, StoredRun
from .store import Store
from .views import RunDetails, RunOverview, RunTotals, RunViews

__all__ = [
    "AliasMove",
    "AuditEntry",
    "AuditLog",
    "ModelRegistry",
    "ModelVersion",
    "RunDetails",
    "RunOverview",
    "RunSummary",
    "RunTotals",
    "RunViews",
    "Store",
    "StoredMemory",
    "StoredRun",
]
