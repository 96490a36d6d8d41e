"""Another backend of Keras is refused before Keras is imported, by whatever chose it."""

import sys
from types import SimpleNamespace

import pytest

from umbel import ConfigError
from umbel.core.system.backend import (
    keras_backend,
    require_backend,
    require_tensorflow,
    use_backend,
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A process that has not imported Keras, and a folder of Keras's settings."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("text", [None, "{}", "not JSON", '["jax"]', '{"backend": "tensorflow"}'])
def test_tensorflow_is_what_keras_has_by_itself(home, text):
    if text is not None:
        (home / "keras.json").write_text(text)
    require_backend()


def test_jax_is_a_backend_where_it_is_installed(home, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"JAX is not installed: pip install 'umbel\[jax\]'$"):
        require_backend()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert require_backend() == "jax"


def test_a_backend_is_chosen_before_keras_is_imported(home, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    use_backend("jax")
    assert keras_backend()[0] == "jax"
    with pytest.raises(ConfigError, match="expected backend='torch' to be one of tensorflow, jax"):
        use_backend("torch")
    monkeypatch.setitem(sys.modules, "keras", SimpleNamespace(config=SimpleNamespace(backend=lambda: "tensorflow")))
    with pytest.raises(ConfigError, match="imported with 'tensorflow' already: set KERAS_BACKEND=jax before"):
        use_backend("jax")
    use_backend("tensorflow")


def test_what_needs_tensorflow_says_so(home, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ConfigError, match=r"^An audit trains on TensorFlow alone, and KERAS_BACKEND says 'jax'"):
        require_tensorflow("An audit trains")


def test_the_variable_comes_before_the_file_and_the_imported_keras_before_both(home, monkeypatch):
    (home / "keras.json").write_text('{"backend": "jax"}')
    assert keras_backend() == ("jax", str(home / "keras.json"))
    monkeypatch.setenv("KERAS_BACKEND", "")
    assert keras_backend()[0] == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(ConfigError, match=r"KERAS_BACKEND says 'torch': set KERAS_BACKEND=tensorflow$"):
        require_backend()
    monkeypatch.setitem(sys.modules, "keras", SimpleNamespace(config=SimpleNamespace(backend=lambda: "numpy")))
    with pytest.raises(ConfigError, match=r"imported says 'numpy': .* restart the kernel"):
        require_backend()
    monkeypatch.setitem(sys.modules, "keras", SimpleNamespace(config=SimpleNamespace(backend=lambda: "tensorflow")))
    require_backend()
