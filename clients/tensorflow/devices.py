"""Devices that clients train on, and how TensorFlow is set up before its first use."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence

import tensorflow as tf

from ...core.errors import ConfigError
from ...core.system.processors import processors
from ...core.validation import suggest

log = logging.getLogger(__name__)


def configure_tensorflow() -> None:
    """Set TensorFlow up for many small clients, if nothing has used it yet; otherwise leave it as it is.

    One thread per operation: parallelism comes from clients side by side, which on two cores is 1.3 (CNN) to
    1.6 times (MLP) faster than both cores inside each operation, and keeps the order of float additions the same
    whatever the number of workers. GPU memory grows as needed instead of being taken whole.
    """
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        if tf.config.threading.get_intra_op_parallelism_threads() != 1:
            _warn_of_threads()


@functools.cache  # once is enough: it stays so while the process lives
def _warn_of_threads() -> None:
    log.warning(
        "TensorFlow was used before the first run, so its threads stay as they are: rounds are slower, and the last "
        "bits may differ from another process's. Begin with tf.config.threading.set_intra_op_parallelism_threads(1)."
    )


def pick_devices(names: Sequence[str] | None) -> list[str]:
    """Return logical devices by name ("GPU:0", "CPU:1"); without names every GPU, or else the first CPU.

    Errors: ConfigError for a device that is not there.
    """
    known = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices()]
    if names is None:
        return [name for name in known if name.startswith("GPU")] or ["CPU:0"]
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown device {name!r}: {suggest(name, known)}")
    return list(names)


def replica_devices(count: int) -> tuple[str, ...]:
    """Return the devices among which a host divides its client's batches: GPUs, or else parts of its CPU.

    Errors: ConfigError for fewer GPUs than that, and for a CPU that TensorFlow has used in one piece.
    """
    devices = pick_gpus() or divided_cpu(count)
    return shared_out(devices, count)[0]


def pick_gpus() -> list[str]:
    """Return every GPU's name; nothing of TensorFlow's is used for it."""
    return [f"GPU:{number}" for number, _ in enumerate(tf.config.list_physical_devices("GPU"))]


def divided_cpu(count: int) -> list[str]:
    """Return the parts of a CPU that is divided, if nothing has used it yet."""
    (cpu, *_), parts = tf.config.list_physical_devices("CPU"), [tf.config.LogicalDeviceConfiguration()] * count
    with contextlib.suppress(RuntimeError):  # it is used: as it is, then
        if tf.config.get_logical_device_configuration(cpu) is None:
            tf.config.set_logical_device_configuration(cpu, parts)
    return [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices("CPU")]


def shared_out(devices: Sequence[str], replicas: int) -> list[tuple[str, ...]]:
    """Divide the devices among workers, `replicas` for each; what is left over is not used.

    Errors: ConfigError for fewer devices than one worker needs.
    """
    if len(devices) < replicas:
        raise ConfigError(
            f"replicas={replicas} needs as many devices, got {', '.join(devices)}. Name them: devices=[…]; a CPU is "
            "divided before TensorFlow's first use, by tf.config.set_logical_device_configuration"
        )
    return [tuple(devices[i : i + replicas]) for i in range(0, len(devices) - replicas + 1, replicas)]


def default_workers(devices: Sequence[str]) -> int:
    """Return the number of workers: one per processor that this process may use; on accelerators one per device."""
    if all(device.startswith("CPU") for device in devices):
        return processors()
    return len(devices)
