"""Helpers that tests share, and commands about the project itself: `python -m tests.support.NAME`."""
