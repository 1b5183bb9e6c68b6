"""Beam's Prism runs jobs, with workers that Beam's boot program starts in the project's image.

Prism and the workers are on a machine of their own network; each worker is a container there, which starts as Dataflow
starts it: as root, with a folder that root owns. What they read and write is in buckets of a server.
"""

from __future__ import annotations

import pytest
from running import Running

from engines import jobs, tools

ENGINE = f"Prism {tools.BEAM}, boot, the image beam"

# As infra/beam's scripts have it.
NOTHING_STAGED = ["--no_save_main_session", "--experiments", "disable_logging_submission_environment"]


def launch(cloud, job: str, output: str, *options: str) -> Running:
    command = [*jobs.options_of(job, cloud.bucket, output), *cloud.options, *options]
    return Running("-m", f"pipelines.{job}", *command, cwd=cloud.folder)


@pytest.mark.parametrize("job", ["build_masks", "build_imagenet"])
def test_a_job_writes_the_same_bytes_as_in_process(cloud, expected, figure, job):
    wanted, started = expected(job), len(cloud.pool.workers)
    # A session is what jobs of others stage, and Dataflow's client if it is not told to.
    staging = ["--save_main_session"] if job == "build_masks" else []
    with launch(cloud, job, f"prism/{job}", *(staging or NOTHING_STAGED)) as running:
        code, _ = running.wait()
    logs = [worker.log.read_text(errors="replace")[-4000:] for worker in cloud.pool.workers[started:]]
    assert code == (3 if job == "build_imagenet" else 0), (running.told, *logs)
    found = jobs.contents(f"{cloud.bucket}/prism/{job}")
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []
    if staging:
        (worker,) = cloud.pool.workers[started:]
        session = worker.folder / "staged/pickled_main_session"
        assert session.stat().st_uid == worker.folder.stat().st_uid == 1000
    figure(f"{job}: {len(found)} objects")
