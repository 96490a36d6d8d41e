"""Marks of tests that skip without an optional package."""

import importlib.util

import pytest

# Not by importing it (`pytest.importorskip`): bound otherwise than `privacy.contexts` binds it, after TensorFlow, it
# crashes the process.
HAS_TENSEAL = importlib.util.find_spec("tenseal") is not None
needs_tenseal = pytest.mark.skipif(not HAS_TENSEAL, reason="needs tenseal: pip install 'umbel[he]'")
