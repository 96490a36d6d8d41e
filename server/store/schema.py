"""The store's tables. A change here needs a revision in `migrations/versions`; a test compares the two.

Times are UTC, ISO 8601 text with microseconds. Structured text is strict JSON, in which NaN and infinities are the
strings "NaN", "Infinity" and "-Infinity" (in older stores "nan", "inf" and "-inf"): SQLite turns a NaN of its own into
NULL.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

VERSION_TABLE = "umbel_schema"  # Alembic's; a name of our own tells our databases from other programs'
HEAD = "0008"  # the newest revision, known here so that opening an up-to-date store need not import Alembic

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _run() -> Column:
    return Column("run", String(32), ForeignKey("runs.run", ondelete="CASCADE"), primary_key=True)


def _digest(name: str = "digest") -> Column:
    """Make a reference that keeps its blob from being deleted; indexed, since orphans are looked for by digest."""
    return Column(name, String(64), ForeignKey("blobs.digest"), nullable=False, index=True)


runs = Table(
    "runs",
    metadata,
    Column("run", String(32), primary_key=True),
    Column("name", Text, nullable=False),  # name of the experiment
    Column("state", String(16), nullable=False),
    Column("reason", Text),
    Column("description", Text, nullable=False),  # JSON object
    Column("choices", Text, nullable=False),  # JSON object
    Column("seed", Text, nullable=False),  # decimal: a seed may exceed 64 bits
    Column("spec", Text, nullable=False),  # ModelSpec.to_json
    Column("planned", Integer, nullable=False),  # number of rounds planned
    Column("done", Integer, nullable=False),  # rounds done; the guard against two processes that commit one round
    Column("created", String(32), nullable=False, index=True),
    Column("updated", String(32), nullable=False),
    Column("directions", Text),  # JSON object: "min" or "max" or null by metric; NULL for runs of an older schema
)

rounds = Table(
    "rounds",
    metadata,
    _run(),
    Column("round", Integer, primary_key=True),
    Column("clients", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("metrics", Text, nullable=False),  # JSON object
    Column("seconds", Double, nullable=False),
    Column("eval_seconds", Double),
    Column("bytes_up", BigInteger),
    Column("bytes_down", BigInteger),
    Column("epsilon", Double),
    Column("trainable_bytes", BigInteger),  # size of the vector, where the model has frozen variables besides
    Column("landings", Text),  # JSON array: who landed in an asynchronous round among real devices; else NULL
    Column("committed", String(32), nullable=False),
)

ledger = Table(
    "ledger",
    metadata,
    _run(),
    Column("event", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
)

leases = Table(  # a row while a process plays the run, or until one that died is missed
    "leases",
    metadata,
    _run(),
    Column("token", String(32), nullable=False),  # drawn by whoever holds it
    Column("place", Text, nullable=False),  # host, boot and process namespace
    Column("process", BigInteger, nullable=False),
    Column("born", Text, nullable=False),  # when the process began, as its system counts
    Column("beats", BigInteger, nullable=False),  # how often it was renewed
    Column("since", String(32), nullable=False),
)

blobs = Table(
    "blobs",
    metadata,
    Column("digest", String(64), primary_key=True),  # hex: SHA-256 of the whole; HMAC-SHA256 in an encrypted store
    Column("size", BigInteger, nullable=False),
)

blob_parts = Table(
    "blob_parts",
    metadata,
    Column("digest", String(64), ForeignKey("blobs.digest", ondelete="CASCADE"), primary_key=True),
    Column("part", Integer, primary_key=True),
    Column("bytes", LargeBinary, nullable=False),
)

store_key = Table(  # one row in an encrypted store, none in another
    "store_key",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1
    Column("key", String(64), nullable=False),  # id of the storage key
    Column("naming", LargeBinary, nullable=False),  # the key that names blobs, wrapped
    Column("changed", String(32), nullable=False),
)

blob_keys = Table(  # filled in an encrypted store alone
    "blob_keys",
    metadata,
    Column("digest", String(64), ForeignKey("blobs.digest", ondelete="CASCADE"), primary_key=True),
    Column("wrapped", LargeBinary, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _run(),
    Column("round", Integer, primary_key=True),
    Column("best", Boolean, nullable=False),
    Column("created", String(32), nullable=False),
)

checkpoint_blobs = Table(
    "checkpoint_blobs",
    metadata,
    Column("run", String(32), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("position", Integer, primary_key=True),
    _digest(),
    ForeignKeyConstraint(["run", "round"], ["checkpoints.run", "checkpoints.round"], ondelete="CASCADE"),
)

memory = Table(
    "memory",
    metadata,
    _run(),
    Column("client", BigInteger, primary_key=True, autoincrement=False),
    _digest(),
)

model_versions = Table(  # append-only: triggers refuse UPDATE and DELETE
    "model_versions",
    metadata,
    Column("name", Text, primary_key=True),  # name of the experiment
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("header", Text, nullable=False),  # canonical JSON: exactly the bytes that are hashed
    Column("hash", String(64), nullable=False),
    _digest("params"),
)

model_bases = Table(  # append-only; of versions whose model has frozen variables
    "model_bases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    _digest(),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"]),
)

model_signatures = Table(  # append-only
    "model_signatures",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("key", String(64), nullable=False),  # id of the key that signed
    Column("signature", LargeBinary, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"]),
)

model_labels = Table(
    "model_labels",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("label", Text, primary_key=True),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"]),
)

alias_moves = Table(  # append-only; an alias points where its last move put it
    "alias_moves",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("alias", Text, nullable=False),
    Column("version", Integer),  # NULL: the alias was removed
    Column("moved", String(32), nullable=False),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"]),
    Index("ix_alias_moves_name_alias", "name", "alias"),
)

audit = Table(  # append-only
    "audit",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("entry", Text, nullable=False),  # canonical JSON: exactly the bytes that are hashed
    Column("hash", String(64), nullable=False),
)


def now() -> str:
    """Return this moment, as the tables keep it; text order is time order."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
