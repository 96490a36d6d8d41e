"""`umbel new`: a small project that runs: an experiment, its test, and how to go on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import ConfigError
from ..core.validation import require

EXPERIMENT = '''"""{name}: federated averaging of handwritten digits. Put data and a model of your own in place."""

from umbel import Experiment, FedAvg, FixedCohort, Local, data


def build_model():
    import keras

    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    return model


# Arrays of your own: data.Partitioned((x, y), …). A file per client: data.PerClient.
clients = data.Partitioned(data.Digits("train"), by=data.Dirichlet(alpha=0.3), clients=100)

experiment = Experiment(
    name="{name}",
    model=build_model,
    population=clients,
    strategy=FedAvg(),
    sampler=FixedCohort(20),
    local=Local(epochs=5, batch_size=8, learning_rate=0.2),
    rounds=30,
    test=data.Digits("test"),
)
'''
TEST = '''"""The experiment learns, and a run of it repeats."""

import umbel
from experiment import experiment


def test_ten_rounds_are_better_than_one_and_repeat():
    history = umbel.run(umbel.override(experiment, ["rounds=10"]), progress=False)
    accuracy = history.column("test_accuracy")
    assert accuracy[-1] > accuracy[0]
    again = umbel.run(umbel.override(experiment, ["rounds=10"]), progress=False)
    assert again.params_sha256 == history.params_sha256
'''
README = """# {name}

    umbel run experiment.py                 # every round is kept in umbel.db
    umbel run experiment.py --dry-run       # what it would take
    umbel run experiment.py --set rounds=50 --set local.learning_rate=0.1
    umbel ui                                # runs in a browser
    umbel report latest                     # one file for reviewers
    pytest                                  # needs pip install pytest
"""
FILES = {"experiment.py": EXPERIMENT, "test_experiment.py": TEST, "README.md": README}


def new(
    name: Annotated[str, typer.Argument(help="Name of the project, its folder and its experiment.")],
    folder: Annotated[
        Path, typer.Option("--in", metavar="FOLDER", help="Folder in which the project's own is made.")
    ] = Path(),
) -> None:
    """Make a folder with an experiment that runs, its test, and how to go on.

    Nothing that is there already is written over.
    """
    require(re.fullmatch(r"[\w-]{1,64}", name) is not None, f"expected NAME={name[:80]!r} of letters, digits, - and _")
    made = folder / name
    try:
        made.mkdir(parents=True)
        for file, text in FILES.items():
            (made / file).write_text(text.format(name=name), encoding="utf-8")
    except FileExistsError:
        raise ConfigError(f"{str(made)!r} is there already; choose another name") from None
    except OSError as error:
        raise ConfigError(f"cannot write {str(made)!r}: {error.strerror or error}") from error
    print(f"{made}: {', '.join(FILES)}\nGo on with: cd {made} && umbel run experiment.py")
