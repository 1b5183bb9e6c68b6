"""Which precision a machine computes in."""

from __future__ import annotations

import pytest

from trainer.model import precision

# Lines of /proc/cpuinfo, shortened.
ZEN_3 = "model name\t: AMD EPYC 7763\nflags\t\t: fpu sse2 fma avx2 f16c\nbugs\t\t: sysret_ss_attrs\n"
SKYLAKE = "flags\t\t: fpu avx2 avx512f avx512bw avx512vl\n"
ZEN_4 = "processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\npower management:\n\nprocessor\t: 1\nflags\t\t: fpu\n"
SAPPHIRE_RAPIDS = "flags\t\t: fpu avx512_fp16 amx_bf16 amx_tile\n"
GRAVITON_3 = "BogoMIPS\t: 2100.00\nFeatures\t: fp asimd i8mm bf16 dgh rng\n"
GRAVITON_2 = "Features\t: fp asimd evtstrm crc32 atomics\n"


@pytest.mark.parametrize(
    ("text", "computes"),
    [(ZEN_3, False), (SKYLAKE, False), (ZEN_4, True), (SAPPHIRE_RAPIDS, True), (GRAVITON_3, True), (GRAVITON_2, False)]
    + [("", False), (None, False)],
)
def test_bfloat16_is_computed_where_the_processor_can(tmp_path, monkeypatch, text, computes):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
    precision.computes_bfloat16.cache_clear()
    try:
        assert precision.computes_bfloat16() is computes
        found = {device: precision.find_policy("mixed_bfloat16", device) for device in ("cpu", "gpu")}
        assert found == {"cpu": "mixed_bfloat16" if computes else "float32", "gpu": "mixed_bfloat16"}
        assert {precision.find_policy(other, "cpu") for other in ("float32", "mixed_float16")} == {
            "float32",
            "mixed_float16",
        }
    finally:
        precision.computes_bfloat16.cache_clear()
