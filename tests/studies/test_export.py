"""A trained model is written in each format, read back by that format's own runtime, and computes the same."""

import dataclasses
import importlib.util

import numpy as np
import pytest

from federations import blobs, dense, federation
from umbel import ConfigError, Simulation, run
from umbel.cli.main import execute

FILE = """
from federations import federation, normalised
experiment = federation(name="mine", model=normalised, rounds=1)
"""


def missing(*packages):
    return next((name for name in packages if importlib.util.find_spec(name) is None), None)


def needs(*packages):
    name = missing(*packages)
    return pytest.mark.skipif(name is not None, reason=f"{name} is not installed")


def normalised():
    return dense(normalised=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one round with BatchNorm, its store, and what its model answers on a few examples."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "mine.py").write_text(FILE)
    experiment = federation(name="mine", model=normalised, rounds=1)
    history = run(
        experiment, Simulation(workers=1, compile="graph"), store=f"sqlite:///{folder}/runs.db", progress=False
    )
    x = blobs(5, seed=7)[0]
    return folder, history, x, history.load_into(normalised())(x, training=False).numpy()


def by_keras(path, x):
    import keras

    return keras.saving.load_model(path)(x, training=False).numpy()


def by_saved_model(path, x):
    import tensorflow as tf

    model = tf.saved_model.load(path)
    return model.serve(x).numpy()


def by_onnx(path, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def by_litert(path, x):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter
    interpreter = Interpreter(path)
    place = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(place, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(place, x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def with_arrays(arrays, x):
    model = normalised()
    names = ("dense", "batch_normalization", "dense_1")  # a model that is built for a run counts its layers from zero
    for layer, name in zip([one for one in model.layers if one.weights], names, strict=True):
        for weight in layer.weights:
            weight.assign(arrays.pop(f"sequential/{name}/{weight.name}"))
    assert not arrays
    return model(x, training=False).numpy()


def by_safetensors(path, x):
    from safetensors.numpy import load_file

    return with_arrays(load_file(path), x)


def by_npz(path, x):
    with np.load(path) as arrays:
        return with_arrays(dict(arrays), x)


READERS = [
    ("keras", "mine-1.keras", by_keras),
    ("saved_model", "mine-1", by_saved_model),
    pytest.param("onnx", "mine-1.onnx", by_onnx, marks=needs("onnx", "tf2onnx", "onnxruntime")),
    ("litert", "mine-1.tflite", by_litert),
    pytest.param("safetensors", "mine-1.safetensors", by_safetensors, marks=needs("safetensors")),
    ("npz", "mine-1.npz", by_npz),
]


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter:UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("format", "name", "read"), READERS)
def test_what_is_exported_answers_as_the_trained_model(trained, format, name, read, monkeypatch, capsys):
    folder, _, x, expected = trained
    monkeypatch.chdir(folder)
    words = ["models", "export", "mine", "--to", format, "--experiment", "mine.py", "--store", "sqlite:///runs.db"]
    assert execute(words) == 0
    assert capsys.readouterr().out == f"{name}\n"
    np.testing.assert_allclose(read(str(folder / name), x), expected, atol=1e-5)


def test_a_history_saves_its_model_by_the_files_ending(trained, tmp_path):
    _, history, x, expected = trained
    history.save(tmp_path / "mine.keras")
    np.testing.assert_array_equal(by_keras(tmp_path / "mine.keras", x), expected)
    with pytest.raises(ConfigError, match=r"to end in \.npz, \.safetensors, \.keras, \.onnx, \.tflite"):
        history.save(tmp_path / "mine.h5")
    with pytest.raises(ConfigError, match="needs the model itself"):
        dataclasses.replace(history, played=None).save(tmp_path / "mine.onnx")


def test_a_model_of_which_a_part_stays_with_clients_is_not_exported_whole(tmp_path):
    experiment = federation(rounds=1, personal=("dense_1",))
    history = run(experiment, Simulation(workers=1, compile="graph"), progress=False)
    with pytest.raises(ConfigError, match="dense_1/kernel stays with each client"):
        history.save(tmp_path / "mine.keras")
    history.save(tmp_path / "mine.npz")
    with np.load(tmp_path / "mine.npz") as arrays:
        assert set(arrays) == {"sequential/dense/kernel", "sequential/dense/bias"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "keras"], "--experiment FILE.py"),
        (["--to", "keras", "--experiment", "other.py"], "the experiment's model changed since the run"),
        (["--to", "onnx", "-o", "mine.h5"], "to end in .onnx"),
        (["--to", "saved_model", "-o", "full", "--experiment", "mine.py"], "not an empty folder"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(trained, words, said, monkeypatch, capsys):
    monkeypatch.chdir(trained[0])
    (trained[0] / "other.py").write_text(
        "import functools\nfrom federations import dense, federation\n"
        'experiment = federation(name="mine", model=functools.partial(dense, normalised=True, learning_rate=0.2))\n'
    )
    (trained[0] / "full").mkdir(exist_ok=True)
    (trained[0] / "full" / "file").touch()
    assert execute(["models", "export", "mine", *words, "--store", "sqlite:///runs.db"]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert said in errors
    assert len(errors.splitlines()) == 1
