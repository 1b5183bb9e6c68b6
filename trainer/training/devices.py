"""The devices of one worker: threads, which of them compute, and the strategy that joins them.

A worker that is alone computes on all devices it was given, in one process: no server of TensorFlow's is started.
Several workers find each other through ``TF_CONFIG`` (see `tensorflow_cluster`), and each has one device.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.errors import no_gpu


def prepare_devices(device: str, devices: int, cpus: int) -> None:
    """Sets threads and visible devices; before TensorFlow is first used in the process.

    Args:
        device: ``cpu`` or ``gpu``.
        devices: how many of them compute.
        cpus: cores of each.
    """
    # A device of one core computes in the thread that calls it; without this there would be one for each of the
    # host's cores in every process.
    tf.config.threading.set_intra_op_parallelism_threads(cpus * devices if cpus > 1 else 1)
    tf.config.threading.set_inter_op_parallelism_threads(cpus * devices)
    if device == "gpu":
        return
    tf.config.set_visible_devices([], "GPU")
    if devices > 1:
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)


def make_strategy(device: str, devices: int, workers: int, collective: str = "ring") -> tf.distribute.Strategy:
    """Joins the ``devices`` of this process or, if there are more ``workers`` than this one, those of all processes.

    ``collective``, ``ring`` or ``nccl``, is what several workers use.

    Raises:
        DeviceError: this process sees fewer GPUs.
        ValueError: there are several workers of several devices.
    """
    if device == "gpu" and (found := len(tf.config.list_logical_devices("GPU"))) < devices:
        raise no_gpu("scaling.device=gpu", devices, found)
    if workers > 1:
        if devices > 1:
            raise ValueError(f"devices: expected 1 for each of {workers} workers. Received {devices}.")
        # Without a choice TensorFlow takes its ring also between GPUs (tensorflow/tensorflow#50178).
        implementation = tf.distribute.experimental.CommunicationImplementation[collective.upper()]
        options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    names = [f"{device}:{number}" for number in range(devices)]
    return tf.distribute.MirroredStrategy(names) if devices > 1 else tf.distribute.OneDeviceStrategy(names[0])


def num_devices(strategy: tf.distribute.Strategy) -> int:
    """Devices of this process that compute replicas."""
    return strategy.num_replicas_in_sync if isinstance(strategy, tf.distribute.MirroredStrategy) else 1


def divide_batch(strategy: tf.distribute.Strategy, *batch: tf.Tensor) -> tuple:
    """Each tensor's rows divided among this process's devices: d, d + n, ... for device d of n, as among workers."""
    if (count := num_devices(strategy)) == 1:
        return batch
    divide = strategy.experimental_distribute_values_from_function
    return tuple(divide(lambda context, x=x: x[context.replica_id_in_sync_group :: count]) for x in batch)
