"""Frozen variables of a model, stored once for its versions; and the size of the others, for each round."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "model_bases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_model_bases"),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name="fk_model_bases_digest"),
        sa.ForeignKeyConstraint(
            ["name", "version"],
            ["model_versions.name", "model_versions.version"],
            name="fk_model_bases_name_version",
        ),
    )
    op.create_index("ix_model_bases_digest", "model_bases", ["digest"])
    _make_append_only("model_bases")
    op.add_column("rounds", sa.Column("trainable_bytes", sa.BigInteger()))


def _make_append_only(table: str) -> None:
    """Let the database itself refuse UPDATE and DELETE; the function is revision 0002's."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION umbel_append_only()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
