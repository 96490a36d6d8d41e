"""The engine that this session tests: that of Keras's backend. tests/tensorflow.txt names TensorFlow's alone."""

import importlib

from umbel.core.system.backend import require_backend

BACKEND = require_backend()
IS_JAX = BACKEND == "jax"
SOONEST = "auto" if IS_JAX else "graph"  # how a model is compiled in the least time
tf = None if IS_JAX else importlib.import_module("tensorflow")
