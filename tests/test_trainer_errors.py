"""Errors that cross the border of a process come back as what they were: through Beam, Ray and TensorFlow."""

from __future__ import annotations

import ast
import errno
import functools
import os
import pickle
import time
import traceback
from pathlib import Path

import apache_beam as beam
import psutil
import pytest
import ray
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions
from ray._private import services
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipelines import launch
from trainer import errors
from trainer.errors import UserError, user_error_in

# Of the processes of a node that did not come up, see `cluster`.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
ROOT = Path(__file__).resolve().parents[1]
MESSAGE = "gs://b/x: expected 'a'. Received 'b'"
TWO_PROCESSES = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]


def derived(base: type) -> list[type]:
    return [base, *(kind for child in base.__subclasses__() for kind in derived(child))]


USER_ERRORS = [kind for kind in derived(UserError) if kind.__module__ == errors.__name__]  # not those that Ray makes
each_user_error = pytest.mark.parametrize("kind", USER_ERRORS)


def run_pipeline(kind: type, *options: str) -> None:
    """A job that raises ``kind`` in all its workers. They get its functions by value: the tests are not importable."""

    def fail(element):
        raise kind(MESSAGE)

    launch.run_pipeline(
        PipelineOptions(list(options), runner="FnApiRunner"),
        lambda pipeline: pipeline | beam.Create([1]) | "Step" >> beam.Map(fail),
    )


def has_raylet() -> bool:
    """Whether Ray's process that a node consists of lives, as a child of this one."""
    children = psutil.Process().children()
    return any(child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE for child in children)


def wait_for_node(get_node, *node):
    """Ray gives its own processes 30 seconds, which is nothing on a busy machine: ten minutes, while they live."""
    deadline = time.monotonic() + 600
    while True:
        try:
            return get_node(*node)
        except RuntimeError:
            if time.monotonic() > deadline or not has_raylet():
                raise
            time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster():
    def start():
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "get_node", functools.partial(wait_for_node, services.get_node))
        try:
            start()
        except Exception:  # once, beside two other workers of pytest, a raylet ended before its first line
            if has_raylet():
                raise
            start()
    yield
    ray.shutdown()


@pytest.fixture
def remote_error(cluster):
    """What `ray.get` raises for a task or an actor that raises."""

    def run(kind: type, in_actor: bool) -> BaseException:
        class Actor:
            def fail(self):
                raise kind(MESSAGE)

        actor = ray.remote(Actor).remote() if in_actor else None
        result = actor.fail.remote() if actor else ray.remote(lambda: Actor().fail()).remote()
        with pytest.raises(Exception) as caught:
            ray.get(result)
        return caught.value

    return run


def assert_found(error: BaseException) -> None:
    found = user_error_in(error)
    assert isinstance(found, UserError) and str(found) == MESSAGE


def test_classes_that_the_user_can_do_something_about():
    assert {kind.__name__ for kind in USER_ERRORS} >= {"UserError", "NotFound", "Corrupt"}
    assert not issubclass(errors.Conflict, UserError) and not issubclass(errors.ImageError, UserError)


def test_user_errors_are_defined_in_one_module():
    """Where an engine has made text of an error, classes are only known that the reader of the text has imported."""
    names = {kind.__name__ for kind in USER_ERRORS}
    for package in ("masks", "trainer", "pipelines"):
        for path in (ROOT / package).rglob("*.py"):
            classes = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.ClassDef)]
            bases = {ast.unparse(base).rpartition(".")[2] for n in classes for base in n.bases}
            assert path == ROOT / "trainer" / "errors.py" or not bases & names, path


def kind_after_a_job(kind: type) -> type:
    """What was allowed at launch and then is not is no wrong use."""
    return errors.Outage if kind in (errors.Outage, errors.Denied) else UserError


@pytest.mark.parametrize("kind", [*USER_ERRORS, errors.Outage])
def test_through_a_job_in_the_process(kind, caplog):
    with pytest.raises(kind_after_a_job(kind)) as caught:
        run_pipeline(kind)
    assert str(caught.value) == MESSAGE and caplog.records == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*USER_ERRORS, errors.Outage])
def test_through_a_job_in_two_processes(kind):
    with pytest.raises(kind_after_a_job(kind)) as caught:
        run_pipeline(kind, *TWO_PROCESSES)
    assert str(caught.value) == MESSAGE


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EDQUOT, errno.ESTALE, errno.EROFS])
def test_what_a_disk_reports_is_an_outage(number):
    error = OSError(number, os.strerror(number), "/data/x")
    assert errors.is_outage(error)
    assert isinstance(errors.outage_in(caught_from(lambda: raise_chain(RuntimeError("b"), error))), errors.Outage)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG])
def test_what_is_said_of_one_file_is_none(number):
    error = OSError(number, os.strerror(number), "/data/x")
    assert not errors.is_outage(error) and errors.outage_in(error) is None


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (errors.Outage("a"), True),
        (errors.Denied("a"), True),
        (ConnectionResetError("a"), True),
        (TimeoutError("a"), True),
        (UserError("a"), False),
        (errors.NotFound("a"), False),
        (errors.Corrupt("a"), False),
        (OSError("image file is truncated"), False),  # as Pillow says it
        (ValueError("a"), False),
        (MemoryError(), False),
    ],
)
def test_outages(error, outage):
    assert errors.is_outage(error) == outage


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], TWO_PROCESSES], ids=["in-process", "two-processes"])
def test_a_bug_in_a_job_is_none(options):
    with pytest.raises(Exception, match="Received 'b'") as caught:
        run_pipeline(ValueError, *options)
    assert not isinstance(caught.value, UserError) and user_error_in(caught.value) is None


@pytest.mark.parametrize("in_actor", [False, True], ids=["task", "actor"])
@each_user_error
def test_through_ray(kind, in_actor, remote_error):
    error = remote_error(kind, in_actor)
    assert_found(error)
    assert_found(pickle.loads(pickle.dumps(RuntimeError(str(error)))))  # and if only the text of it is left


@each_user_error
def test_through_ray_train(kind, remote_error):
    error = remote_error(kind, False)
    assert_found(WorkerGroupError("worker 1 failed", {1: error}))
    assert_found(ControllerError(error))
    wrapped = RuntimeError("the run failed")
    wrapped.__cause__ = WorkerGroupError("worker 1 failed", {1: error})
    assert_found(wrapped)


def test_a_bug_in_ray_is_none(remote_error):
    error = remote_error(ValueError, False)
    assert user_error_in(error) is None
    assert user_error_in(WorkerGroupError("worker 1 failed", {0: error, 1: error})) is None
    assert user_error_in(ControllerError(error)) is None


def tensorflow_error(kind: type) -> BaseException:
    def fail(number):
        raise kind(MESSAGE)

    data = tf.data.Dataset.range(1).map(lambda number: tf.numpy_function(fail, [number], tf.int64))
    with pytest.raises(Exception) as caught:
        list(data)
    return caught.value


@each_user_error
def test_through_tensorflow(kind):
    error = tensorflow_error(kind)
    assert not isinstance(error, UserError)
    assert_found(error)


def test_a_bug_in_tensorflow_is_none():
    assert user_error_in(tensorflow_error(ValueError)) is None


def caught_from(function) -> BaseException:
    with pytest.raises(Exception) as caught:
        function()
    return caught.value


def raise_chain(outer: Exception, *inner: Exception, explicit: bool = True) -> None:
    """Raises ``outer`` because of the first of ``inner``, that because of the second, and so on."""
    try:
        if inner:
            raise_chain(*inner, explicit=explicit)
    except Exception as error:
        if explicit:
            raise outer from error
        raise outer  # noqa: B904
    raise outer


@pytest.mark.parametrize("explicit", [False, True])
def test_pythons_own_chain(explicit):
    inner = (KeyError("a"), errors.Corrupt(MESSAGE), UserError("the inner one"))
    assert_found(caught_from(lambda: raise_chain(RuntimeError("b"), *inner, explicit=explicit)))
    assert user_error_in(caught_from(lambda: raise_chain(RuntimeError("b"), KeyError("a"), explicit=explicit))) is None


def test_what_is_suppressed_does_not_count():
    def run():
        try:
            raise UserError(MESSAGE)
        except UserError:
            raise KeyError("a") from None

    assert user_error_in(caught_from(run)) is None


def test_a_chain_that_ends_in_itself_ends():
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert user_error_in(first) is None


@pytest.mark.parametrize(
    "text",
    [
        "ValueError: a UserError: was expected",
        "google.api_core.exceptions.NotFound: 404 POST https://example.org",
        "my.trainer.errors.UserError: of another project",
        "trainer.errors.ImageError: the file is empty",
        "",
    ],
)
def test_texts_without_a_user_error(text):
    assert user_error_in(RuntimeError(text)) is None


def test_of_a_traceback_as_text_the_last_error_counts():
    error = caught_from(lambda: raise_chain(UserError(f"{MESSAGE}\nmore of it"), errors.NotFound("the inner one")))
    text = "".join(traceback.format_exception(error))
    assert text.count("trainer.errors.") == 2
    assert_found(RuntimeError(f"instruction failed: {text}\nat org.apache.beam"))
    assert_found(RuntimeError(text.replace("\n", "\\n")))
