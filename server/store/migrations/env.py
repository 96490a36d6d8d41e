"""Script that Alembic runs: the migrations, inside the transaction of the connection it was handed."""

from alembic import context

handed = context.config.attributes
context.configure(
    connection=handed["connection"],
    target_metadata=handed["metadata"],
    version_table=handed["version_table"],
    transactional_ddl=True,  # SQLite's too, since the store begins its transactions itself
)
with context.begin_transaction():
    context.run_migrations()
