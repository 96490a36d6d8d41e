"""Alembic's migrations of the store. To add one:

1. change `schema.py` and its `HEAD`;
2. write `versions/NNNN_what.py`, numbered in text order, with `upgrade()`; there is no way down: restore the backup;
3. run `tests/server/store`: they compare the migrated schema with `schema.py`.
"""
