"""The precision a network is computed in: that of its config, unless this machine's processor would only emulate it.

Without instructions for bfloat16 TensorFlow computes a convolution in loops of its own: on two cores of an AMD EPYC
with AVX2 alone, a training step of the preset demo took 3.5 s, and 0.57 s in float32.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux calls them, of x86 and, the last, of Arm


def find_policy(precision: str, device: str) -> str:
    """The Keras dtype policy for a network.

    Args:
        precision: as in `trainer.config.TrainConfig`.
        device: ``gpu`` or ``cpu``.

    Returns:
        ``float32`` in place of ``mixed_bfloat16`` on a CPU that does not compute bfloat16; else ``precision``. The two
        have the same variables, in float32, so a run may continue where the other is computed.
    """
    emulated = precision == "mixed_bfloat16" and device == "cpu" and not computes_bfloat16()
    return "float32" if emulated else precision


@functools.cache
def computes_bfloat16() -> bool:
    """Whether this machine's processor has instructions for bfloat16; False where that cannot be told."""
    try:
        text = _CPUINFO.read_text()
    except OSError:  # no Linux
        return False
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return flags is not None and not _FLAGS.isdisjoint(flags[1].split())
