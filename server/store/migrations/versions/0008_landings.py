"""Column for the updates that landed in each asynchronous round among real devices, in order."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("rounds", sa.Column("landings", sa.Text()))
