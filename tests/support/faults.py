"""Faults that the suite must notice, each with the test that does: `python -m tests.support.faults [WORD …]`.

Each is one line of the sources changed as a slip would change it. They are put, one at a time, into a copy of the tree,
where the test has to fail; WORDs choose by name. tests/test_house.py checks that each still fits the sources.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info", "out", ".*_cache", ".cache")


class Fault(NamedTuple):
    """A slip in the sources, and the test that notices it."""

    name: str
    file: str
    line: str  # text as it is: once in the file
    slip: str  # text that takes its place
    test: str  # pytest's id of the test that has to fail


FAULTS = [
    Fault(
        "a sign in FedAdam's second moment",
        "strategies/fedadam.py",
        "return self.beta_2 * v + (1 - self.beta_2) * squared",
        "return self.beta_2 * v - (1 - self.beta_2) * squared",
        "tests/strategies/test_server_optimizers.py::test_fedadam_without_bias_correction_is_algorithm_2",
    ),
    Fault(
        "FedAdam's bias correction is a round late",
        "strategies/fedadam.py",
        "rate = self._corrected_rate(state.rounds + 1)",
        "rate = self._corrected_rate(state.rounds + 2)",
        "tests/strategies/test_server_optimizers.py::test_fedadam_is_keras_adam_with_minus_delta_for_gradient",
    ),
    Fault(
        "SCAFFOLD's clients forget how many steps they took",
        "strategies/scaffold.py",
        "change = delta * np.float32(-1 / (steps * learning_rate))",
        "change = delta * np.float32(-1 / learning_rate)",
        "tests/strategies/test_scaffold.py::test_first_steps_are_the_closed_form",
    ),
    Fault(
        "SCAFFOLD takes a cohort for everybody",
        "strategies/scaffold.py",
        "c = state.c + np.float32(mean.participation) * mean.extra",
        "c = state.c + mean.extra",
        "tests/strategies/test_scaffold.py::test_sampled_cohorts_are_the_closed_form",
    ),
    Fault(
        "FedNova's deltas are not normalised",
        "strategies/fednova.py",
        "scaled = delta * np.float32(1 / norm) if norm else delta",
        "scaled = delta",
        "tests/strategies/test_fednova.py::test_first_steps_are_the_closed_form",
    ),
    Fault(
        "the proximal term pushes away",
        "clients/tensorflow/state.py",
        "gradient += tf.cast(proximal, gradient.dtype) * drift",
        "gradient -= tf.cast(proximal, gradient.dtype) * drift",
        "tests/strategies/test_fedprox.py::test_first_steps_are_the_closed_form",
    ),
    Fault(
        "a mean is divided by the number of clients",
        "core/types.py",
        "divisor = np.float32(self.weight)",
        "divisor = np.float32(self.clients)",
        "tests/strategies/test_fedprox.py::test_first_steps_are_the_closed_form",
    ),
    Fault(
        "what a codec left out is dropped",
        "clients/round.py",
        "delta = delta + residual",
        "delta = delta + 0 * residual",
        "tests/strategies/test_codecs.py::test_with_error_feedback_nothing_is_lost",
    ),
    Fault(
        "a client whose update failed keeps what it learnt",
        "server/collect.py",
        "        elif not self._take_update(arrival):\n            return\n",
        "        else:\n            self._take_update(arrival)\n",
        "tests/server/test_collect.py::test_what_a_client_learnt_is_kept_only_where_its_update_counts",
    ),
    Fault(
        "the median of an even number is the lower one",
        "strategies/aggregators/median.py",
        "len(vectors) // 2 + 1)",
        "(len(vectors) + 1) // 2)",
        "tests/strategies/test_aggregators.py::TestRules::test_median_is_numpys",
    ),
    Fault(
        "old updates count as new ones",
        "strategies/staleness.py",
        "return (1.0 + staleness) ** -self.exponent",
        "return (1.0 + 0 * staleness) ** -self.exponent",
        "tests/server/test_asynchronous.py::test_staleness_weights_are_those_of_the_papers",
    ),
    Fault(
        "a resumed run forgets who was at work",
        "server/live.py",
        "for flight in sorted(self._flights.values(), key=lambda one: one.number):",
        "for flight in []:",
        "tests/server/test_live.py::test_a_killed_run_neither_loses_nor_repeats_what_landed",
    ),
    Fault(
        "noise is half of what it claims",
        "privacy/noise.py",
        "length *= np.float32(scale)",
        "length *= np.float32(scale / 2)",
        "tests/privacy/test_noise.py::test_moments",
    ),
    Fault(
        "all noise streams of a seed are one",
        "privacy/noise.py",
        'return NoiseStream(keystream_of(key.derive("gaussian noise").digest))',
        "return NoiseStream(keystream_of(bytes(16)))",
        "tests/privacy/test_noise.py::test_equal_keys_give_equal_noise_and_other_keys_other_noise",
    ),
    Fault(
        "who takes part on real devices follows from the seed",
        "server/rounds.py",
        "server_key = Key.fresh() if experiment.plan is not None and runtime.is_live else key",
        "server_key = key",
        "tests/privacy/test_interrupted_runs.py::test_cohorts_of_real_devices_do_not_follow_from_the_seed",
    ),
    Fault(
        "a key is used in every round",
        "server/rounds.py",
        'key = derive(experiment.seed, "round", number)',
        'key = derive(experiment.seed, "round", 1)',
        "tests/privacy/test_interrupted_runs.py::"
        "test_a_killed_run_ends_with_the_ledger_and_the_bits_of_one_that_was_not[central-mid-training]",
    ),
    Fault(
        "a release is paid for after it",
        "server/rounds.py",
        "if plan is not None and not plan.clients_release:",
        "if plan is not None and not plan.clients_release and not table.runtime.is_live:",
        "tests/privacy/test_interrupted_runs.py::test_real_devices_pay_for_both_attempts_and_draw_fresh_noise",
    ),
    Fault(
        "clipping is off by the length of the vector",
        "privacy/clipping.py",
        "return vector * np.float32(within / norm)",
        "return vector * np.float32(within / norm * 1.001)",
        "tests/privacy/test_clipping.py::test_norm_is_bounded_and_direction_kept",
    ),
    Fault(
        "a cohort's coins are not fair",
        "core/parts/sampling.py",
        "count = generator.binomial(len(clients), self.rate)",
        "count = round(len(clients) * self.rate)",
        "tests/server/test_decisions.py::test_poisson_cohort_sizes_are_binomial",
    ),
    Fault(
        "a resumed run skips a round",
        "server/journal.py",
        "return (state._replace(ledger=dict(stored.ledger)) if runtime.is_live else state), opened",
        "return state._replace(round=state.round + 1), opened",
        "tests/server/test_loop.py::test_resumed_run_equals_uninterrupted_run",
    ),
    Fault(
        "what clients keep at home is not committed with the round",
        "server/journal.py",
        "self.store.commit_round(self.run, state, record, self.memory.written,",
        "self.store.commit_round(self.run, state, record, {},",
        "tests/server/test_loop.py::test_resumed_run_equals_uninterrupted_run",
    ),
    Fault(
        "a secure sum leaves out those who survived",
        "privacy/secagg/server.py",
        "        add_to(self._total, vector, self._terms.encoding.wide)\n        self._survivors.append(node)\n\n"
        "    def _survivor_lists",
        "        self._survivors.append(node)\n\n    def _survivor_lists",
        "tests/privacy/secagg/test_session.py::test_the_sum_is_exact_under_the_dropouts_allowed",
    ),
    Fault(
        "a model is described by what its workers do",
        "clients/tensorflow/engine.py",
        "return self.prototype.description",
        'return {"model.config": str(float(self.model.optimizer.learning_rate))}',
        "tests/server/test_loop.py::test_the_simulation_that_was_interrupted_resumes_the_run",
    ),
]


def misfits() -> list[str]:
    """List faults whose line is not there once, or whose test is nowhere."""
    wrong = []
    for fault in FAULTS:
        count = (ROOT / fault.file).read_text("utf-8").count(fault.line)
        path, *_, function = fault.test.split("::")
        tests = (ROOT / path).read_text("utf-8")
        if count != 1 or f"def {function.partition('[')[0]}" not in tests:
            wrong.append(fault.name)
    return wrong


def is_noticed(fault: Fault, tree: Path) -> bool:
    """Return whether the fault's test fails in a copy of the tree that has the fault; the copy is mended afterwards."""
    file = tree / fault.file
    text = file.read_text("utf-8")
    file.write_text(text.replace(fault.line, fault.slip), "utf-8")
    environment = os.environ | {"PYTHONPATH": str(tree.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", fault.test]
    try:
        status = subprocess.run(words, cwd=tree, env=environment, capture_output=True, check=False).returncode
    finally:
        file.write_text(text, "utf-8")
    return status == 1


def main(words: list[str]) -> int:
    """Try each fault; return the number of those that nobody noticed."""
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = shutil.copytree(ROOT, Path(folder) / "umbel", ignore=NOT_COPIED)
        for fault in chosen:
            noticed = is_noticed(fault, tree)
            missed += not noticed
            print("noticed  " if noticed else "MISSED   ", fault.name, f"({fault.test})", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
