"""The devices of a run: one device, the GPUs of a machine, or several machines."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.errors import UserError

CLUSTER = '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'


@functools.cache
def strategy() -> tf.distribute.Strategy:
    """Return the distribution strategy of this process.

    - Several workers in TF_CONFIG: MultiWorkerMirroredStrategy. The first call waits for all of
      them, and must come before TensorFlow computes anything.
    - Several visible GPUs: MirroredStrategy.
    - One GPU: OneDeviceStrategy, which copies batches to it ahead of time.
    - Else the default strategy.

    Raises:
        UserError: TF_CONFIG is not valid.
    """
    if worker()[1] > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = len(tf.config.list_logical_devices("GPU"))
    if gpus > 1:
        return tf.distribute.MirroredStrategy()
    if gpus:
        return tf.distribute.OneDeviceStrategy("GPU:0")
    return tf.distribute.get_strategy()


@functools.cache
def worker() -> tuple[int, int]:
    """Return (number of this worker from 0, number of workers) by TF_CONFIG; (0, 1) without it.

    Raises UserError if TF_CONFIG is not valid.
    """
    if not os.environ.get("TF_CONFIG"):
        return 0, 1
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        cluster, kind, index = resolver.cluster_spec(), resolver.task_type, resolver.task_id
        sizes = {job: cluster.num_tasks(job) for job in cluster.jobs}
        has_valid_jobs = sizes.keys() <= {"chief", "worker"}
        has_valid_task = kind in sizes and 0 <= index < sizes[kind]
        if not (has_valid_jobs and has_valid_task):
            raise ValueError(f"task {kind} {index} of {sizes}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"TF_CONFIG: expected {CLUSTER}, received {error}") from None
    chiefs = sizes.get("chief", 0)
    return (index + chiefs if kind == "worker" else index), sum(sizes.values())


def local_replicas() -> int:
    """Return the number of devices of this process."""
    return strategy().num_replicas_in_sync // worker()[1]


def sum_over_workers(values: np.ndarray) -> np.ndarray:
    """Return the sum of the workers' arrays. All workers must call it, with arrays of one shape."""
    if worker()[1] == 1:
        return values
    total = _sum(tf.as_dtype(values.dtype))(tf.constant(values.ravel()))
    return strategy().experimental_local_results(total)[0].numpy().reshape(values.shape)


@functools.cache
def _sum(dtype: tf.DType) -> Any:
    """Return the function that sums the workers' vectors [N], counting each worker once."""

    def replica(values: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        first = tf.equal(context.replica_id_in_sync_group % local_replicas(), 0)
        return context.all_reduce("SUM", tf.where(first, values, tf.zeros_like(values)))

    @tf.function(input_signature=[tf.TensorSpec([None], dtype)], autograph=False)
    def total(values: tf.Tensor) -> tf.Tensor:
        return strategy().run(replica, args=(values,))

    return total


def stack_workers(values: np.ndarray) -> np.ndarray:
    """Return the arrays of all workers, [workers, ...], in order.

    All workers must call it, with arrays of one shape.
    """
    number, workers = worker()
    rows = np.zeros((workers, *values.shape), values.dtype)
    rows[number] = values
    return sum_over_workers(rows)


def on_all_workers(condition: bool) -> bool:
    """Return whether a condition holds on every worker. All workers must call it."""
    return bool(stack_workers(np.array(int(condition))).all())


def count_shared(entries: Sequence[bytes], most: int) -> int:
    """Return how many of the first entries are the same on all workers.

    All workers must call it, with up to `most` entries.
    """
    codes = np.zeros(most, np.int64)
    codes[: len(entries)] = [1 + zlib.crc32(entry) for entry in entries]
    shared = (stack_workers(codes) == codes).all(axis=0) & (codes > 0)
    return int(np.append(shared, False).argmin())
