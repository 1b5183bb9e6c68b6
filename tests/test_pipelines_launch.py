"""How jobs start: which options are taken, and what is left on the terminal of what a worker raises."""

from __future__ import annotations

import inspect
import logging
import types

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import worker_handlers

from pipelines import launch
from trainer import storage
from trainer.command import ArgumentParser
from trainer.errors import UserError
from trainer.storage.claims import CLAIMS

BEAMS_CLOSE = worker_handlers.ControlConnection.close  # before any job has run here


def parse(*argv):
    parser = ArgumentParser(prog="job", description="A job.")
    parser.add_argument("--output", required=True)
    parser.add_argument("--num-shards", type=int)
    return launch.parse_options(parser, ["--output", "o", *argv])


def run(function, elements=(1,)):
    """A job that applies ``function`` to each element."""
    launch.run_pipeline(
        PipelineOptions([], runner="FnApiRunner"), lambda p: p | beam.Create(elements) | "Step" >> beam.Map(function)
    )


def test_without_a_runner_the_job_runs_in_the_process():
    ours, options = parse("--num-shards", "3")
    assert (ours.output, ours.num_shards) == ("o", 3)
    assert options.view_as(StandardOptions).runner == "FnApiRunner"


def test_options_of_beam_reach_beam():
    argv = ["--runner", "PrismRunner", "--direct_num_workers=2", "--region", "europe-west4", "--labels", "a=b"]
    ours, options = parse(*argv)
    assert vars(ours) == {"output": "o", "num_shards": None, "no_wait": False}
    assert options.view_as(StandardOptions).runner == "PrismRunner"
    assert options.view_as(DirectOptions).direct_num_workers == 2
    assert options.view_as(GoogleCloudOptions).region == "europe-west4"
    assert options.view_as(GoogleCloudOptions).labels == ["a=b"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num-shardz", "2"], "unknown option --num-shardz. Did you mean --num-shards?"),
        (["--num_shards=2"], "unknown option --num_shards=2. Did you mean --num-shards?"),
        (["--direct_num_worker", "2"], "unknown option --direct_num_worker. Did you mean --direct_num_workers?"),
        (["--num-sh", "2"], "unknown option --num-sh."),  # argparse would take it for --num-shards
        (["--xyzzy"], "unknown option --xyzzy. (job --help"),
        (["b.jpg"], "--output: expected one value. Received 2: o, b.jpg."),
        (["--num-shards", "2", "3"], "--num-shards: expected one value. Received 2: 2, 3."),
        (["--region", "a", "b"], "--region: expected one value. Received 2: a, b."),  # an option of Beam's
        (["--num-shards", "two"], "argument --num-shards: invalid int value: 'two' (job --help"),
        (["--num-shards"], "argument --num-shards: expected one argument"),
        (["--direct_num_workers", "two"], "argument --direct_num_workers: invalid int value: 'two'"),
        (["--runner"], "argument --runner: expected one argument"),
        (["--runner", "Speedy"], "--runner Speedy: Unexpected pipeline runner: Speedy. Valid values are"),
        (["--runner", "no.such.Runner"], "--runner no.such.Runner: No module named 'no'"),
        (["--runner", "DataflowRunner"], "Missing required option: project."),
    ],
)
def test_wrong_options_are_named(argv, message, capfd):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert message in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_required_option_is_asked_for():
    parser = ArgumentParser(prog="job")
    parser.add_argument("--output", required=True)
    with pytest.raises(UserError, match="required: --output"):
        launch.parse_options(parser, [])


def test_help_mentions_beam(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "--num-shards" in shown and "--runner" in shown


def raise_user_error(element):
    raise UserError(f"element {element} is 'wrong'; choose another")


def read_missing(element):
    storage.read("/no/such/file")


def divide_by_zero(element):
    return element / 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raise_user_error, "element 1 is 'wrong'; choose another"),
        (read_missing, "/no/such/file does not exist"),
    ],
)
def test_what_the_user_can_put_right_is_one_line_without_a_traceback(function, message, caplog):
    with pytest.raises(UserError) as caught:
        run(function)
    assert str(caught.value) == message
    assert caplog.records == []


def test_a_bug_keeps_its_traceback(caplog):
    with pytest.raises(Exception, match="division by zero") as caught:
        run(divide_by_zero)
    assert not isinstance(caught.value, UserError)
    assert "in divide_by_zero" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # What a runner in another process gives, with the worker's traceback in its text.
        (
            'Pipeline failed in state FAILED: Traceback (most recent call last):\n  File "x.py", line 1\n'
            "trainer.errors.UserError: o/a exists with other contents [while running 'Write/Shards']\n\nmore",
            "o/a exists with other contents",
        ),
        (r"Traceback:\n  raise\ntrainer.errors.Corrupt: a is corrupt: expected crc32c b.\nmore", "a is corrupt:"),
        ("Traceback:\nValueError: a UserError was expected", None),
    ],
)
def test_an_error_that_a_runner_made_text_of(text, expected, monkeypatch):
    def build(pipeline):
        raise RuntimeError(text)

    with pytest.raises(RuntimeError if expected is None else UserError) as caught:
        launch.run_pipeline(PipelineOptions([], runner="FnApiRunner"), build)
    assert str(caught.value).startswith(expected or text) and (expected is None or "\n" not in str(caught.value))


def test_other_messages_are_still_logged(caplog):
    run(str)
    with caplog.at_level(logging.WARNING):
        logging.getLogger("apache_beam").warning("Resource module is not available for current platform")
        logging.getLogger("apache_beam").warning("something else is not available")
    assert [record.getMessage() for record in caplog.records] == ["something else is not available"]


FILES = ["manifest.json", "train-00000-of-00001.tfrecord", "rejects/train.jsonl"]
OTHERS = [
    "README.txt",
    "rejects.txt",
    "mine.tfrecord",
    "rejects/mine.jsonl",
    "rejects/deep/a.jsonl",
    "other/manifest.json",
    "other/a.tfrecord",
]


def make_files(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_a_new_folder_is_claimed(tmp_path):
    assert launch.claim_dataset(str(tmp_path / "new" / "set"), overwrite=False)
    assert launch.claim_dataset(str(tmp_path / "newer"), overwrite=True)
    make_files(tmp_path / "died", FILES[1:])
    assert launch.claim_dataset(str(tmp_path / "died"), overwrite=False)
    assert (tmp_path / "died" / FILES[1]).exists()  # its shards are compared, not thrown away


def test_a_finished_dataset_is_left_alone(tmp_path, capsys):
    make_files(tmp_path, FILES)
    assert not launch.claim_dataset(str(tmp_path), overwrite=False)
    assert "is already complete, nothing to do (use --overwrite to rebuild)" in capsys.readouterr().err
    assert all((tmp_path / name).read_text() == name for name in FILES)


def test_overwrite_removes_the_dataset_and_nothing_else(tmp_path, monkeypatch):
    deleted, delete = [], storage.delete
    monkeypatch.setattr(storage, "delete", lambda address: (deleted.append(address), delete(address)))
    make_files(tmp_path, FILES + OTHERS)
    assert launch.claim_dataset(str(tmp_path), overwrite=True)
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert [name for name in left if not name.startswith(f"{CLAIMS}/")] == sorted(OTHERS)
    assert deleted[0] == str(tmp_path / "manifest.json")


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("a file")
    for name in ("file", "file/below"):
        with pytest.raises(UserError, match="cannot write to .*file"):
            launch.claim_dataset(str(tmp_path / name), overwrite=False)


def test_the_runner_flushes_no_stream_from_a_second_thread(monkeypatch):
    """Where it does, Beam's in-process runner loses elements: `launch.disable_flush_timer`.

    A version of Beam that takes the interval from elsewhere fails here.
    """
    from apache_beam.runners.worker import data_plane

    monkeypatch.setattr(worker_handlers, "DATA_BUFFER_TIME_LIMIT_MS", 1000)  # Beam's own
    run(str)
    assert "DATA_BUFFER_TIME_LIMIT_MS" in inspect.getsource(worker_handlers.GrpcServer.__init__)
    servicer = data_plane.BeamFnDataServicer(worker_handlers.DATA_BUFFER_TIME_LIMIT_MS)
    stream = servicer.get_conn_by_worker_id("worker").output_stream("instruction", "transform")
    assert type(stream) is data_plane.SizeBasedBufferingClosableOutputStream


def test_a_worker_that_starts_after_the_job_has_failed_is_sent_home(monkeypatch):
    """Beam's in-process runner would wait for it forever; a Beam that does not shows here."""
    monkeypatch.setattr(worker_handlers.ControlConnection, "close", BEAMS_CLOSE)
    control = worker_handlers.BeamFnControlServicer(None)
    connections = [control.get_conn_by_worker_id(name) for name in ("early", "late")]
    connections[0].close()
    assert connections[0]._push_queue.empty()
    launch.dismiss_late_workers()
    connections[1].close()
    assert connections[1]._push_queue.qsize() == 1
    context = types.SimpleNamespace(invocation_metadata=lambda: [("worker_id", "late")])
    assert list(control.Control(iter([]), context)) == []
