"""The model registry: versions in a hash chain, labels, and the moves of aliases."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "model_versions",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("header", sa.Text(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("params", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_model_versions"),
        sa.ForeignKeyConstraint(["params"], ["blobs.digest"], name="fk_model_versions_params"),
    )
    op.create_index("ix_model_versions_params", "model_versions", ["params"])
    op.create_table(
        "model_labels",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", "label", name="pk_model_labels"),
        _of_version("model_labels"),
    )
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer()),
        sa.Column("moved", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alias_moves"),
        _of_version("alias_moves"),
    )
    op.create_index("ix_alias_moves_name_alias", "alias_moves", ["name", "alias"])
    _make_append_only("model_versions", "alias_moves")


def _of_version(table: str) -> sa.ForeignKeyConstraint:
    columns = ["model_versions.name", "model_versions.version"]
    return sa.ForeignKeyConstraint(["name", "version"], columns, name=f"fk_{table}_name_version")


def _make_append_only(*tables: str) -> None:
    """Let the database itself refuse UPDATE and DELETE."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION umbel_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
        )
        for table in tables:
            op.execute(
                f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
                "FOR EACH ROW EXECUTE FUNCTION umbel_append_only()"
            )
        return
    for table in tables:
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
