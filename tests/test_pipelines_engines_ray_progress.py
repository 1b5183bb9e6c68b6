"""What Prometheus is told of a job on Ray; tests/engines/test_ray_metrics.py reads Ray's endpoints."""

from __future__ import annotations

from types import SimpleNamespace

from pipelines.engines.on_ray.progress import METRICS, JobProgress


def test_gauges_tell_what_was_counted():
    told: dict[tuple[str, str], float] = {}

    def make(name, description, tag_keys):
        assert description and tag_keys == ("output",)
        return SimpleNamespace(set=lambda value, tags: told.update({(name, *tags.items()): value}))

    progress = JobProgress("images", "gs://b/out", make, total=10)
    progress.add(old=3, rejects=1)
    progress.add(2, rejects=1, lost=4)
    progress.close()
    label = ("output", "gs://b/out")
    assert told.keys() == {(f"pconv_job_{name}", label) for name in METRICS}
    assert told.pop(("pconv_job_per_second", label)) > 0
    assert told == {
        (f"pconv_job_{name}", label): value for name, value in {"done": 5, "total": 10, "rejects": 2, "lost": 4}.items()
    }
