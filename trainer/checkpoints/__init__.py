"""Checkpoints in a run's folder: immutable, verified when read, found through pointers."""

from trainer.checkpoints.files import PARTS, Checkpoint, load_checkpoint
from trainer.checkpoints.pointers import BEST, LATEST, Pin, Score
from trainer.checkpoints.restore import (
    Found,
    assign_variables,
    find,
    find_latest,
    load_newest,
    read_variables,
    restore_variables,
    save_checkpoint,
)

__all__ = [
    "BEST",
    "LATEST",
    "PARTS",
    "Checkpoint",
    "Found",
    "Pin",
    "Score",
    "assign_variables",
    "find",
    "find_latest",
    "load_checkpoint",
    "load_newest",
    "read_variables",
    "restore_variables",
    "save_checkpoint",
]
