"""The notebooks run from top to bottom, show what they say, and are saved as they look.

With UMBEL_SAVE_NOTEBOOKS=1 what was run is saved.
"""

import os
import re
from pathlib import Path

import nbclient
import nbformat

import umbel
from optional import needs_tenseal

FOLDER = Path(umbel.__file__).parent / "experiments" / "notebooks"
MODES = ("arithmetic", "protocol")


def shown_by(notebook):
    """A notebook's pictures, and all of its text."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    texts = [output.data["text/plain"] if "data" in output else output.get("text", "") for output in outputs]
    return pictures, "".join(texts)


def executed(name, folder):
    """What the notebook shows once it is run; as many pictures as it was saved with."""
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    saved, _ = shown_by(notebook)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(
        notebook, timeout=300, resources=resources, record_timing=False, coalesce_streams=True
    ).execute()
    pictures, text = shown_by(notebook)
    if os.environ.get("UMBEL_SAVE_NOTEBOOKS"):
        nbformat.write(notebook, path)
    else:
        assert len(saved) == len(pictures)
    return pictures, text


def test_the_quickstart_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    pictures, text = executed("quickstart", tmp_path)
    assert len(pictures) == 2
    assert "test_accuracy" in text
    assert "'skewed': None" not in text  # both federations reach 90 %


@needs_tenseal
def test_the_walk_through_privacy_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    pictures, text = executed("privacy", tmp_path)
    assert len(pictures) == 2
    arithmetic, protocol = (re.search(rf"secure sum, {mode} .*?([0-9a-f]{{8}}) ", text)[1] for mode in MODES)
    assert arithmetic == protocol
    assert "the privacy budget is spent: 25 rounds" in text
    assert "exceeds the claim" not in text
    assert re.search(r"inversion .*1\.00", text)


def test_no_notebook_is_left_out():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {"quickstart", "privacy"}
