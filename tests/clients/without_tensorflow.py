"""A program for tests/clients/test_both_engines.py: Umbel on JAX where TensorFlow is not installed. python … FOLDER"""

import importlib.abc
import os
import sys
from pathlib import Path


class NotInstalled(importlib.abc.MetaPathFinder):
    """Finds no TensorFlow, whatever this machine has."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tf_keras", "tensorboard"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())
os.environ["KERAS_BACKEND"] = "jax"
folder = Path(sys.argv[1])

import umbel  # noqa: E402

for name in umbel.__all__:
    getattr(umbel, name)

from umbel.cli.main import main  # noqa: E402

store = f"sqlite:///{folder}/runs.db"
for command in (
    ["run", "digits_fedavg", "--set", "rounds=1", "--store", store],
    ["run", "digits_fedavg", "--set", "rounds=2", "--store", store, "--resume", "latest"],
    ["replay", "latest", "--round", "1", "--client", "2", "--store", store],
    ["runs", "--store", store],
    ["audit", "latest", "--store", store],  # refused
    ["report", "latest", "-o", str(folder / "report.html"), "--store", store],
):
    sys.argv = ["umbel", *command]
    try:
        main()
    except SystemExit as done:
        if done.code and command[0] != "audit":
            print(f"{' '.join(command)} ended with {done.code}")
            raise
print("done", "tensorflow" in sys.modules)
