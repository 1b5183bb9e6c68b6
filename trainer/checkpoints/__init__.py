"""Checkpoints in a run's folder: immutable, verified when read, found through pointers.

Who trains saves with `saver.Saver`; who computes with a run's weights takes `inference_weights`.
"""

from trainer.checkpoints.files import EMA, MODEL, OPTIMIZER, PARTS, Checkpoint, load_checkpoint
from trainer.checkpoints.pointers import BEST, LATEST, Pin, Score
from trainer.checkpoints.restore import (
    assign_variables,
    find,
    find_latest,
    inference_part,
    inference_weights,
    load_for_inference,
    load_newest,
    read_variables,
    require_finite,
    require_fit,
    restore_variables,
)
from trainer.checkpoints.saver import save_checkpoint

__all__ = ["BEST", "EMA", "LATEST", "MODEL", "OPTIMIZER", "PARTS", "Checkpoint", "Pin", "Score"]
__all__ += ["assign_variables", "find", "find_latest", "inference_part", "inference_weights", "load_checkpoint"]
__all__ += [
    "load_for_inference",
    "load_newest",
    "read_variables",
    "require_finite",
    "require_fit",
    "restore_variables",
    "save_checkpoint",
]
