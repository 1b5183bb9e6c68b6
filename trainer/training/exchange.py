"""The sum of gradients over all replicas: in packs, so that the exchange begins while gradients are still computed.

Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", arXiv 2006.15704, section 3.2.2,
call the packs buckets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.config import ScalingConfig
from trainer.training.devices import num_devices

Sum = Callable[[tf.Tensor, Sequence[tf.Tensor]], list[tf.Tensor]]

# Numbers by which TensorFlow's collectives know the group of workers and each tensor; its own count from 1. All workers
# make their steps in the same order, so they draw the same numbers.
_GROUP, _INSTANCES = 1 << 20, itertools.count(1 << 20)


def divide_into_packs(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Indices of neighbors, last first: backpropagation computes the gradients of the last layers first.

    Args:
        sizes: bytes of each tensor.
        limit: bytes of a pack; one tensor that is larger is a pack by itself.
    """
    packs: list[list[int]] = []
    room = 0
    for index in reversed(range(len(sizes))):
        if not packs or sizes[index] > room:
            packs.append([])
            room = limit
        packs[-1].append(index)
        room -= sizes[index]
    return packs


def make_sum(strategy: tf.distribute.Strategy, scaling: ScalingConfig, variables: Sequence[tf.Variable]) -> Sum:
    """A function for use in a replica: sums ``values`` (float32 [N]) and the gradients of ``variables`` over replicas.

    It returns ``[values, *gradients]`` in float32. On one worker the devices' own sums are used, as fast as memory.
    """
    if strategy.num_replicas_in_sync == num_devices(strategy):
        return lambda values, gradients: _reduce([values, *gradients])
    dtype = tf.as_dtype(scaling.exchange_dtype)
    packs = divide_into_packs([v.shape.num_elements() * dtype.size for v in variables], round(scaling.pack_mb * 1e6))
    if scaling.resolved_collective == "nccl":
        add = _reduce_by_nccl
    else:
        add = _Ring(strategy.num_replicas_in_sync, len(packs) + 1).reduce

    def sum_up(values: tf.Tensor, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        flat = [tf.concat([tf.reshape(tf.cast(gradients[i], dtype), [-1]) for i in pack], 0) for pack in packs]
        values, *flat = add([values, *flat])
        result: list[tf.Tensor] = [values] * len(gradients)
        for pack, tensor in zip(packs, flat, strict=True):
            parts = tf.split(tf.cast(tensor, tf.float32), [gradients[i].shape.num_elements() for i in pack])
            for i, part in zip(pack, parts, strict=True):
                result[i] = tf.reshape(part, gradients[i].shape)
        return [values, *result]

    return sum_up


def _reduce(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def _reduce_by_nccl(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    # One call for each, in the same order on all workers, as NCCL needs it.
    return [_reduce([tensor])[0] for tensor in tensors]


class _Ring:
    """TensorFlow's ring of gRPC connections, with a token of its own for each tensor.

    ``ReplicaContext.all_reduce`` has one for all, which BatchNorm's sums use, too: TensorFlow then runs all of them one
    after the other in the order in which Python made them, hence the gradients' after the last of the backward pass.
    """

    def __init__(self, workers: int, count: int):
        self._workers = workers
        self._tokens = [tf.Variable(0.0, trainable=False) for _ in range(count)]
        self._instances = [next(_INSTANCES) for _ in range(count)]

    def reduce(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return [self._add(*each) for each in zip(tensors, self._instances, self._tokens, strict=True)]

    def _add(self, tensor: tf.Tensor, instance: int, token: tf.Variable) -> tf.Tensor:
        return tf.raw_ops.CollectiveReduceV2(
            input=tensor,
            group_size=self._workers,
            group_key=_GROUP,
            instance_key=instance,
            ordering_token=[token.handle],
            merge_op="Add",
            final_op="Id",
            communication_hint="ring",
        )
