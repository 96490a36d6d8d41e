"""Every notebook says what it shows, runs from top to bottom, and comes to what it was saved with.

With UMBEL_SAVE_NOTEBOOKS=1 what was run is saved.
"""

import base64
import io
import os
import re
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

import umbel
from optional import needs_tenseal

FOLDER = Path(umbel.__file__).parent / "experiments" / "notebooks"
FIRST = "quickstart"  # `make test` runs this one
NAMES = sorted((path.stem for path in FOLDER.glob("*.ipynb")), key=lambda name: (name != FIRST, name))
NUMBER = re.compile(r"\d+\.?\d*(?:e[-+]?\d+)?")
PROGRESS = re.compile(r"^(\w+, round 0 of \d+ done|round \d+/\d+ .*)\n", re.M)  # tells the time
HASH = re.compile(r"params [0-9a-f]{8}…")  # another processor may have other bits
NOISE = {"privacy"}  # draws keys and noise from the operating system: what it prints differs a little each time
LINKED = [Path(umbel.__file__).parent / page for page in ("docs/index.md", "README.md")]


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def run(name, folder):
    """Return the notebook as it looks once it was run."""
    notebook = read(name)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(
        notebook, timeout=300, resources=resources, record_timing=False, coalesce_streams=True
    ).execute()
    if os.environ.get("UMBEL_SAVE_NOTEBOOKS"):
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
    return notebook


def shown_by(notebook):
    """Return a notebook's pictures, and what it says but for progress."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [picture(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]
    texts = [output.data["text/plain"] if "data" in output else output.text for output in outputs]
    return pictures, HASH.sub("", PROGRESS.sub("", "\n".join(texts)))


def picture(encoded):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("L"), float)


def assert_same(fresh, saved, tolerance):
    """The same words, numbers that another processor may round otherwise, and pictures of the same size and ink."""
    assert NUMBER.sub("", fresh[1]).split() == NUMBER.sub("", saved[1]).split()
    numbers = [np.array(NUMBER.findall(text), float) for text in (fresh[1], saved[1])]
    np.testing.assert_allclose(*numbers, rtol=tolerance, atol=tolerance)
    assert [one.shape for one in fresh[0]] == [one.shape for one in saved[0]]
    for one, other in zip(fresh[0], saved[0], strict=True):
        assert abs(one.mean() - other.mean()) < 1.0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_tenseal if name == "privacy" else ()) for name in NAMES]
)
def test_a_notebook_comes_to_what_it_was_saved_with(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    saved, fresh = shown_by(read(name)), shown_by(run(name, tmp_path))
    if name not in NOISE:
        assert_same(fresh, saved, tolerance=0.02)
    CHECKS.get(name, lambda text: None)(fresh[1])


def check_quickstart(text):
    assert "'skewed': None" not in text  # both federations reach 90 %


def check_privacy(text):
    arithmetic, protocol = (
        re.search(rf"secure sum, {mode} .*?([0-9a-f]{{8}}) ", text)[1] for mode in ("arithmetic", "protocol")
    )
    assert arithmetic == protocol
    assert "the privacy budget is spent: 25 rounds" in text
    assert "exceeds the claim" not in text
    assert re.search(r"inversion .*1\.00", text)


def check_fleet(text):
    assert "the same model: True" in text
    assert "the same rounds: True" in text


CHECKS = {"quickstart": check_quickstart, "privacy": check_privacy, "notebook_to_fleet": check_fleet}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_saved_as_a_reader_wants_it(name):
    """A title, a first line that says what it shows, outputs without errors or warnings, and a picture at the end."""
    notebook = read(name)
    title, first = notebook.cells[0].source.split("\n\n")[:2]
    assert title.startswith("# ")
    assert first.startswith("This page shows ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    for output in (output for cell in code for output in cell.outputs):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
    pictures, text = shown_by(notebook)
    assert pictures
    assert not re.search(r"/(tmp|home|root|work)/", text)


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_a_page_leads_to_every_notebook(page):
    text = page.read_text("utf-8")
    assert [name for name in NAMES if f"notebooks/{name}" not in text] == []
