"""Make umbel-0.1.0.sqlite.xz: a store as version 0.1.0 wrote it, by that version's own code.

python tests/server/store/first/make.py     from the repository's root, in an environment of the tests

It checks the old commit out beside this one, runs old.py with it, and puts what it wrote in this folder.
"""

import lzma
import os
import subprocess
import sys
import tempfile
from pathlib import Path

COMMIT = "1fc8a18"  # the last one of version 0.1.0
NAME = "umbel-0.1.0.sqlite"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]


def main() -> None:
    """Check out, run, compact, and keep."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "umbel"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", checkout, COMMIT], cwd=ROOT, check=True)
        try:
            environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
            subprocess.run([sys.executable, HERE / "old.py"], cwd=folder, env=environment, check=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", checkout], cwd=ROOT, check=True)
        written = (Path(folder) / NAME).read_bytes()
    (HERE / f"{NAME}.xz").write_bytes(lzma.compress(written, preset=9))


if __name__ == "__main__":
    main()
