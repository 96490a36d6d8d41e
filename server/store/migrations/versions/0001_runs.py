"""Runs, rounds, ledger, checkpoints, clients' memory, and the blobs behind them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _run() -> sa.Column:
    return sa.Column("run", sa.String(32), nullable=False)


def _of_run(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["run"], ["runs.run"], name=f"fk_{table}_run", ondelete="CASCADE")


def upgrade() -> None:
    _create_runs()
    _create_rounds()
    _create_blobs()
    _create_checkpoints()
    op.create_table(
        "memory",
        _run(),
        sa.Column("client", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("run", "client", name="pk_memory"),
        _of_run("memory"),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name="fk_memory_digest"),
    )
    op.create_index("ix_memory_digest", "memory", ["digest"])


def _create_runs() -> None:
    op.create_table(
        "runs",
        _run(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("choices", sa.Text(), nullable=False),
        sa.Column("seed", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("planned", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("updated", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("run", name="pk_runs"),
    )
    op.create_index("ix_runs_created", "runs", ["created"])


def _create_rounds() -> None:
    op.create_table(
        "rounds",
        _run(),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("clients", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("eval_seconds", sa.Double()),
        sa.Column("bytes_up", sa.BigInteger()),
        sa.Column("bytes_down", sa.BigInteger()),
        sa.Column("epsilon", sa.Double()),
        sa.Column("committed", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("run", "round", name="pk_rounds"),
        _of_run("rounds"),
    )
    op.create_table(
        "ledger",
        _run(),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run", "event", name="pk_ledger"),
        _of_run("ledger"),
    )


def _create_blobs() -> None:
    op.create_table(
        "blobs",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_blobs"),
    )
    op.create_table(
        "blob_parts",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "part", name="pk_blob_parts"),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name="fk_blob_parts_digest", ondelete="CASCADE"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Weights do not compress; PostgreSQL would try on every commit.
        op.execute("ALTER TABLE blob_parts ALTER COLUMN bytes SET STORAGE EXTERNAL")


def _create_checkpoints() -> None:
    op.create_table(
        "checkpoints",
        _run(),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("best", sa.Boolean(), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("run", "round", name="pk_checkpoints"),
        _of_run("checkpoints"),
    )
    op.create_table(
        "checkpoint_blobs",
        _run(),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("run", "round", "position", name="pk_checkpoint_blobs"),
        sa.ForeignKeyConstraint(
            ["run", "round"],
            ["checkpoints.run", "checkpoints.round"],
            name="fk_checkpoint_blobs_run_round",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name="fk_checkpoint_blobs_digest"),
    )
    op.create_index("ix_checkpoint_blobs_digest", "checkpoint_blobs", ["digest"])
