"""infra/kuberay/inpaint.yaml in pods: workers that Ray's autoscaler makes from none, and that are lost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest

from engines import jobs
from engines.pods import Pods, name_of, wait_for
from masks.codec import encode_mask
from masks.sampling import MaskSpec, sample_mask
from networks import small_config, write_run
from picture_files import save, save_mask
from pipelines.inpaint import main
from trainer import storage
from trainer.command import SOME_REJECTED
from trainer.images import rgb
from trainer.storage import gcs

ENGINE = "Kubernetes"
IMAGES, BAD = 260, 40  # and 5 of these for each of the 8 ways to be bad
SIDE = 320  # pixels, at most: what is to be inpainted has to last until a worker is lost


def upload_inputs(bucket: str) -> None:
    """Parts of photographs, as files of many kinds, and their masks; files that are no inputs; and a network's run."""
    photos = [rgb.decode_rgb(path.read_bytes()) for path in sorted(jobs.PHOTOS.glob("*/*/*.jpg"))]
    for number in range(IMAGES):
        photo = photos[number % len(photos)]
        pixels = photo[: SIDE - number % 50, : SIDE - number % 70]
        height, width, _ = pixels.shape
        gray, alpha = pixels[..., :1], np.full((height, width, 1), 200, np.uint8)
        kinds = [(pixels, "png"), (pixels, "jpeg"), (pixels, "webp"), (gray, "png"), (gray, "jpeg")]
        kinds += [(np.dstack([pixels, alpha]), "png"), (pixels.astype(np.uint16) * 257, "png")]
        shown, kind = kinds[number % len(kinds)]
        save(f"{bucket}/in/{number % 3}/{number:03d}.{kind}", np.ascontiguousarray(shown), kind)
        spec = MaskSpec(generator="shapes", height=height, width=width, hole_ratio=(0.2, 0.3))
        storage.create(f"{bucket}/holes/{number % 3}/{number:03d}.png", encode_mask(sample_mask(spec, number)))
    good = cv2.imencode(".png", photos[0][:40, :50])[1].tobytes()
    for number in range(BAD // 8):
        ways = {"cut": good[:500], "empty": b"", "text": b"no image", "size": good, "broken": good[:60] + good[:60]}
        for way, data in (ways | {"alone": good, "full": good, "mask": good}).items():
            storage.create(f"{bucket}/in/bad/{way}{number}.png", data)
        for way in ("cut", "empty", "text", "size", "broken", "full"):
            mask = np.full((40, 51 if way == "size" else 50), way != "full", np.uint8)
            mask[10:20, 10:20] = 0
            save_mask(f"{bucket}/holes/bad/{way}{number}.png", mask)
        storage.create(f"{bucket}/holes/bad/mask{number}.png", b"no mask")
    write_run(f"{bucket}/runs/train", small_config(32))


@pytest.fixture(scope="module")
def bucket(pods) -> Iterator[str]:
    """gs://pconv of the pods, for this process, too: with inputs, and with what the job writes in one process."""
    kinds = ("Namespace", "ServiceAccount", "NetworkPolicy", "Deployment", "Service")
    pods.apply(*(found for found in pods.objects() if found["kind"] in kinds))
    pods.run("rollout", "status", "deployment/storage", "--timeout=600s")
    with pods.storage() as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        gcs.client.cache_clear()
        upload_inputs("gs://pconv")
        where = ["--images", "gs://pconv/in/**", "--masks", "gs://pconv/holes/**", "--hole", "black"]
        assert main([*where, "--run", "gs://pconv/runs/train", "--output", "gs://pconv/expected"]) == SOME_REJECTED
        yield "gs://pconv"
    gcs.client.cache_clear()


def contents(output: str) -> dict[str, object]:
    """All that a job has left, by name; the manifest without the version of the code, which is the image's in pods."""
    found: dict[str, object] = dict(jobs.contents(output))
    manifest = json.loads(found["manifest.json"])
    del manifest["code_version"]
    return found | {"manifest.json": manifest}


def written(output: str) -> dict[str, int]:
    """By name the generation of each image below an address: another one whenever it is written."""
    folder = output.removeprefix("gs://pconv/")
    found = gcs.client().list_blobs("pconv", prefix=f"{folder}/")
    return {blob.name.removeprefix(f"{folder}/"): blob.generation for blob in found if blob.name.endswith(".png")}


class Watch:
    """A RayJob that inpaints, and what is seen of it until it ends.

    Attributes:
        generations: of each output, the first.
        workers: names of all pods.
    """

    def __init__(self, pods: Pods, bucket: str, name: str):
        self._pods, self._name, self.output = pods, name, f"{bucket}/out/{name}"
        self.generations: dict[str, int] = {}
        self.workers: set[str] = set()
        self.began = time.monotonic()
        pods.inpaint(name)

    def look(self) -> None:
        for image, generation in written(self.output).items():
            assert self.generations.setdefault(image, generation) == generation, f"{image} was written twice"
        self.workers |= {name_of(pod) for pod in self._pods.of(self._name, "worker")}

    def wait_for(self, what: str, condition: Callable[[], object]) -> object:
        def look() -> object:
            self.look()
            return condition()

        return wait_for(what, look, lambda: self._pods.ended(self._name) and self._pods.printed(self._name))

    def wait_for_end(self) -> str:
        """Its status."""

        def look() -> str:
            self.look()
            return self._pods.ended(self._name)

        ended = wait_for("its end", look)
        self.look()
        return ended


def test_a_bucket_is_inpainted_by_workers_that_are_made_for_it(pods, bucket, figure):
    """300 files, 40 of them bad: all that the job writes is what it writes in one process."""
    watch = Watch(pods, bucket, "inpaint")
    (head,) = watch.wait_for("a worker", lambda: watch.workers and pods.of("inpaint", "head"))
    told = pods.run("exec", name_of(head), "--container=ray", "--", "sh", "-c", "ls /var/run/secrets || echo none")
    assert told == "none\n"  # the autoscaler alone has a token of Kubernetes
    assert watch.wait_for_end() == "Complete/SUCCEEDED", pods.printed("inpaint")
    seconds = time.monotonic() - watch.began
    expected, found = contents(f"{bucket}/expected"), contents(watch.output)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert len(watch.generations) == IMAGES and written(watch.output) == watch.generations
    job = pods.get("rayjob", "inpaint")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == 0 and watch.workers
    assert not job["status"].get("failed")  # rejects are none of KubeRay's failures
    assert f"{BAD} of {IMAGES + BAD} inputs rejected" in pods.printed("inpaint")
    pods.remove("inpaint")
    figure(
        f"{IMAGES + BAD} files, {BAD} of them bad, inpainted by {len(watch.workers)} workers made from none in "
        f"{seconds:.0f} s from apply to result, bytes of one process"
    )


def delete_a_worker(name: str, pods: Pods) -> int:
    """How many clusters KubeRay gives up for it."""
    pods.run("delete", "pod", name_of(pods.of(name, "worker")[0]), "--force", "--grace-period=0")
    return 0


def delete_the_head(name: str, pods: Pods) -> int:
    pods.run("delete", "pod", name_of(pods.of(name, "head")[0]), "--force", "--grace-period=0")
    return 1


def pytest_generate_tests(metafunc):
    if "lose" in metafunc.fixturenames:
        chosen = [delete_a_worker, delete_the_head] if metafunc.config.getoption("--soak") else [delete_a_worker]
        metafunc.parametrize("lose", chosen, ids=lambda lose: lose.__name__)


def test_what_is_lost_amid_the_job_is_made_again_and_nothing_else(pods, bucket, lose, figure):
    name = lose.__name__.replace("_", "-")
    watch = Watch(pods, bucket, name)
    watch.wait_for("some outputs", lambda: len(watch.generations) >= IMAGES // 10)
    failures = lose(name, pods)
    watch.look()
    before = len(watch.generations)
    assert before < IMAGES  # else nothing was shown
    assert watch.wait_for_end() == "Complete/SUCCEEDED", pods.printed(name)
    assert pods.get("rayjob", name)["status"].get("failed", 0) == failures
    assert len(watch.generations) == IMAGES and written(watch.output) == watch.generations
    expected, found = contents(f"{bucket}/expected"), contents(watch.output)
    assert found.keys() == expected.keys()
    assert [one for one in watch.generations if found[one] != expected[one]] == []
    assert found["rejects.jsonl"] == expected["rejects.jsonl"]
    lines = [data["items.jsonl"].count(b"\n") for data in (found, expected)]
    assert lines[0] == lines[1]
    said = re.findall(r"(\d+) of them from an earlier run", pods.printed(name))
    pods.remove(name)
    resumed = f", {said[-1]} known from the books" if said else ""
    figure(f"{name.replace('-', ' ')} after {before} of {IMAGES} images: none lost, none written twice{resumed}")
