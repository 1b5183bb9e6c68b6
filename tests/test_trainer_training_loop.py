"""Training as one program: interruption, phases, what a run leaves behind, losses that are not finite. In one process
apart, because TensorFlow's multi-worker strategy wants to be the first thing of its process."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from samples import write_noise
from trainer import storage
from trainer.metrics.intervals import ALL
from trainer.model.unet import build_unet  # noqa: F401 - exports are made of its layers

PROGRAM = """
import dataclasses, json, os, shutil, sys
import numpy as np
import tensorflow as tf
from trainer import presets
from trainer.data import batches as data
from trainer.errors import UserError
from trainer.training import loop, validation

root = sys.argv[1]
held = validation.HeldOut(images=f"{root}/images", masks=f"{root}/masks", pairs=7)

def train(run, *settings, **options):
    base = ["scaling.workers=1", "unet.image_size=32", "unet.filters=4,8", "unet.kernels=5,3", "log_every=1",
            "precision=float32", "global_batch_size=2", "finetune.steps=3", "finetune.learning_rate=0.01"]
    config = presets.override(presets.PRESETS["demo"], [*base, *settings])
    events, folders = [], (f"{root}/images", f"{root}/masks", f"{root}/{run}")
    try:
        report = lambda event: events.append({"event": type(event).__name__, **dataclasses.asdict(event)})
        loop.train(config, *folders, worker=0, workers=1, report=report, **options)
    except UserError as error:
        events.append({"event": "raised", "message": str(error)})
    return events

def steps(events):
    return [event for event in events if event["event"] == "StepDone"]

whole = steps(train("whole", "initial.steps=4", "checkpoint.every=2", "checkpoint.keep=9"))
train("parts", "initial.steps=4", "finetune.steps=1", "initial.schedule=cosine")   # interrupted in finetune
parts = steps(train("parts", "initial.steps=4"))
assert [event["step"] for event in parts] == [6, 7], parts
assert [event["phase"] for event in whole] == ["initial"] * 4 + ["finetune"] * 3, whole
for event, other in zip(whole[5:], parts):
    np.testing.assert_allclose(event["terms"]["total"], other["terms"]["total"], rtol=1e-5)

# Three parts of two examples a step, interrupted after a step.
settings = ["initial.steps=4", "finetune.steps=0", "accumulate=3", "checkpoint.every=2", "checkpoint.keep=9"]
saw = {"accumulated": train("accumulated", *settings)}
train("accumulated parts", *settings, "initial.steps=3")
saw["accumulated parts"] = train("accumulated parts", *settings)

# Everything at once; then a newest checkpoint that is broken.
settings = ["initial.steps=5", "finetune.steps=0", "clip_norm=0.5", "ema_decay=0.5", "validation.every=2",
            "validation.split=train", "checkpoint.every=4", "precision=mixed_float16"]
saw["full"] = train("full", *settings, held_out=held)
(last,) = [e["address"] for e in saw["full"] if e["event"] == "CheckpointSaved" and e["step"] == 5]
with open(last + "/ema.npz", "r+b") as file:
    file.write(b"broken")
saw["fallback"] = train("full", *settings, held_out=held)
saw["again"] = train("full", *settings, held_out=held)
shutil.copytree(f"{root}/full", f"{root}/killed")  # between its last checkpoint and the export
os.unlink(f"{root}/killed/summary.json")
shutil.rmtree(f"{root}/killed/exports")
saw["killed"] = train("killed", *settings, held_out=held)
saw["killed again"] = train("killed", *settings, held_out=held)

# The smallest number of minutes: nothing may be lost at all.
saw["timed"] = train("timed", "initial.steps=4", "finetune.steps=0", "checkpoint.every=99", "checkpoint.keep=9",
                     "checkpoint.every_minutes=1e-9")

from trainer.training import preemption
preemption._PATIENCE_S = 0.2  # nobody ends this process
notices = iter([None, None, 0.0, 0.0, 0.0])
saw["notice"] = train("notice", "initial.steps=5", "finetune.steps=0", "checkpoint.every=9",
                      get_notice=lambda: next(notices))

# The third batch holds a picture of nothing.
real = data.training_batches
def planted(*args, **kwargs):
    number = kwargs["start"] // 2
    for target, *rest in real(*args, **kwargs):
        number += 1
        yield (tf.tensor_scatter_nd_update(target, [[1, 3, 3, 0]], [np.nan]) if number == 3 else target, *rest)
data.training_batches = planted
saw["stops"] = train("stops", "initial.steps=5", "finetune.steps=0", "checkpoint.every=1")
saw["skips"] = train("skips", "initial.steps=5", "finetune.steps=0", "checkpoint.every=1", "checkpoint.keep=9",
                     "skip_nonfinite=1")
saw["timed skips"] = train("timed skips", "initial.steps=5", "finetune.steps=0", "checkpoint.every=99",
                           "checkpoint.every_minutes=1e-9", "skip_nonfinite=1", "log_every=2")
open(f"{root}/events.json", "w").write(json.dumps(saw))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("loop")
    write_noise(root, 32, num_images=5, num_masks=7)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(root)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return root


@pytest.fixture(scope="module")
def events(runs):
    return json.loads((runs / "events.json").read_text())


def of(events, kind):
    return [event for event in events if event["event"] == kind]


def variables(folder, part="model"):
    with np.load(folder / f"{part}.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def newest(run):
    return run / "checkpoints" / json.loads((run / "checkpoints" / "latest.json").read_text())["checkpoint"]


def checkpoint_at(run, step):
    (folder,) = (run / "checkpoints").glob(f"step-{step:08d}-*")
    return folder


def test_interrupted_training_ends_with_the_same_weights(runs):
    for part in ("model", "optimizer"):
        whole, parts = (variables(newest(runs / run), part) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        for name, array in whole.items():
            np.testing.assert_allclose(parts[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


def test_interrupted_training_with_steps_of_several_parts_ends_with_the_same_weights(runs, events):
    (resumed,) = of(events["accumulated parts"], "StepDone")
    assert resumed["step"] == 4
    assert resumed["terms"] == pytest.approx(of(events["accumulated"], "StepDone")[-1]["terms"], rel=1e-5)
    for part in ("model", "optimizer"):
        whole, parts = (variables(newest(runs / run), part) for run in ("accumulated", "accumulated parts"))
        for name, array in whole.items():
            np.testing.assert_allclose(parts[name], array, rtol=1e-4, atol=1e-6, err_msg=name)
    assert json.loads((newest(runs / "accumulated") / "state.json").read_text())["examples"] == 4 * 3 * 2


def test_finetune_freezes_the_encoders_batch_norm_and_nothing_else(runs):
    before, after = (variables(checkpoint_at(runs / "whole", step)) for step in (4, 7))
    frozen = {name for name in before if name.startswith("encoder_") and "_bn/" in name}
    assert len(frozen) == 4  # the level with BatchNorm: gamma, beta, mean, variance
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == frozen


def test_the_encoders_batch_norm_trains_in_the_initial_phase(runs):
    before, after = (variables(checkpoint_at(runs / "whole", step)) for step in (2, 4))
    assert not [name for name in before if np.array_equal(before[name], after[name])]


def test_checkpoints_and_the_export_are_where_the_run_keeps_them(runs):
    steps = sorted(path.name[:13] for path in (runs / "whole" / "checkpoints").glob("step-*"))
    assert steps == [f"step-{step:08d}" for step in (2, 4, 6, 7)]
    card = json.loads((runs / "whole" / "exports" / "step-00000007" / "card.json").read_text())
    assert card["step"] == 7 and card["examples"] == 14
    assert (runs / "whole" / "exports" / "step-00000007" / "model.keras").stat().st_size > 0


def test_a_run_says_what_it_does(events):
    full = events["full"]
    assert [e["step"] for e in of(full, "StepDone")] == [1, 2, 3, 4, 5]
    assert [e["step"] for e in of(full, "Validated")] == [2, 4, 5]
    assert [e["step"] for e in of(full, "CheckpointSaved")] == [2, 4, 5]  # what was validated is saved
    first, *later = of(full, "StepDone")
    assert first["speed"]["images_per_second"] is None and all(e["speed"]["images_per_second"] > 0 for e in later)
    assert later[-1]["speed"]["eta_seconds"] == 0 and later[0]["speed"]["eta_seconds"] > 0
    assert all(np.isfinite(list(e["terms"].values())).all() for e in of(full, "StepDone"))
    cells = of(full, "Validated")[-1]["cells"]
    assert cells[str(ALL)]["count"] == 7 == sum(cell["count"] for bucket, cell in cells.items() if int(bucket) >= 0)


def test_the_best_checkpoint_is_the_one_that_validated_best(runs, events):
    scored = {e["step"]: e["cells"][str(ALL)]["psnr"] for e in of(events["full"], "Validated")}
    best = json.loads((runs / "full" / "checkpoints" / "best.json").read_text())
    assert best["step"] == max(scored, key=scored.get) and best["value"] == max(scored.values())
    assert best["metric"] == "psnr"


def test_the_summary_names_what_the_run_left(runs, events):
    summary = json.loads((runs / "full" / "summary.json").read_text())
    assert (summary["step"], summary["steps_of_this_process"], summary["skipped_steps"]) == (5, 1, 0)
    assert summary["terms"] == of(events["fallback"], "StepDone")[-1]["terms"]
    assert summary["last_validation"]["cells"]["all"]["count"] == 7
    assert summary["last_validation"]["step"] == 5 and summary["best_validation"]["metric"] == "psnr"
    latest = summary["checkpoints"]["latest"]
    assert storage.crc32c(storage.read(f"{latest['address']}/manifest.json")) == latest["crc32c"]
    assert set(summary["export"]["crc32c"]) == {"model.keras", "card.json"}
    for name, crc in summary["export"]["crc32c"].items():
        storage.read(f"{summary['export']['address']}/{name}", crc)
    assert summary["images_per_second"] > 0 and summary["code_version"]


def test_logs_have_every_step_once_though_one_was_computed_twice(runs):
    scalars, pictures, began = {}, [], None
    for path in sorted((runs / "full" / "logs").iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            if event.session_log.status == tf.compat.v1.SessionLog.START:
                began = event.step  # TensorBoard forgets what is beyond
                scalars = {key: value for key, value in scalars.items() if key[1] <= began}
            for value in event.summary.value:
                if value.HasField("image"):
                    pictures.append(tf.io.decode_png(value.image.encoded_image_string).shape)
                else:
                    scalars[value.tag, event.step] = value.simple_value
    assert began == 5  # of the third process, which found nothing left to do
    for tag in ("loss/total", "loss/hole", "optimizer/learning_rate", "optimizer/gradient_norm"):
        assert [step for name, step in scalars if name == tag] == [1, 2, 3, 4, 5], tag
    assert [step for name, step in scalars if name == "validation/psnr"] == [2, 4, 5]
    assert any(name.startswith("validation_0.") for name, _ in scalars)
    assert scalars["optimizer/loss_scale", 1] == 2**15
    assert set(pictures) == {(4 * 32, 4 * 32, 3)}


def test_a_broken_newest_checkpoint_is_told_and_the_one_before_is_used(events):
    (told,) = of(events["fallback"], "CheckpointUnreadable")
    assert "step-00000005" in told["skipped"] and "step-00000004" in told["address"] and "ema.npz" in told["why"]
    assert of(events["fallback"], "Started")[0]["step"] == 4
    (again,) = of(events["fallback"], "StepDone")
    before = of(events["full"], "StepDone")[-1]
    assert again["step"] == 5 and again["terms"]["total"] == pytest.approx(before["terms"]["total"], rel=1e-3)


def test_a_finished_run_is_left_as_it_is(events):
    assert [e["event"] for e in events["again"]] == ["Started", "Exported"]


def test_a_run_killed_before_its_summary_gets_it_from_the_same_command(runs, events):
    """All that does not tell of the process is what the process that was killed would have written."""
    assert [e["event"] for e in events["killed"]] == ["Started", "Exported", "SummaryWritten"]
    full, killed = (json.loads((runs / run / "summary.json").read_text()) for run in ("full", "killed"))
    for name in ("step", "terms", "last_validation", "best_validation", "skipped_steps", "code_version"):
        assert killed[name] == full[name], name
    assert killed["steps_of_this_process"] == 0 and killed["images_per_second"] is None
    assert killed["checkpoints"]["latest"]["crc32c"] == full["checkpoints"]["latest"]["crc32c"]
    card = json.loads((runs / "killed" / "exports" / "step-00000005" / "card.json").read_text())
    assert card["metrics"] == full["terms"] and card["checkpoint_crc32c"] == full["checkpoints"]["latest"]["crc32c"]
    assert [e["event"] for e in events["killed again"]] == ["Started", "Exported"]


def test_the_export_has_the_averages(runs):
    """The export is of the averages, which one step of the recursion makes of those before: 0.4 = 6 / 15."""
    older, newer = (variables(checkpoint_at(runs / "full", 4), "ema"), variables(newest(runs / "full")))
    averages = variables(newest(runs / "full"), "ema")
    decay = min(0.5, (1 + 5) / (10 + 5))
    exported = keras.saving.load_model(runs / "full" / "exports" / "step-00000005" / "model.keras")
    assert {v.path for v in exported.variables} == averages.keys()
    for variable in exported.variables:
        name = variable.path
        expected = decay * older[name] + (1 - decay) * newer[name]
        np.testing.assert_allclose(averages[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(variable.numpy(), averages[name], err_msg=name)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_example(runs, events):
    *_, raised = events["stops"]
    assert raised["message"].startswith("step 3: non-finite loss (total nan, ")
    assert raised["message"].endswith(".jpg with mask " + raised["message"].rpartition(" ")[2])
    assert raised["message"].count(".jpg") == 1  # of two examples the one that has the NaN
    assert [e["step"] for e in of(events["stops"], "StepDone")] == [1, 2]
    assert newest(runs / "stops").name.startswith("step-00000002")


def test_a_step_that_is_not_finite_can_be_skipped(runs, events):
    (told,) = of(events["skips"], "StepSkipped")
    assert (told["step"], told["skipped"], told["allowed"]) == (3, 1, 1) and len(told["examples"]) == 1
    totals = [event["terms"]["total"] for event in of(events["skips"], "StepDone")]
    assert np.isfinite(totals).tolist() == [True, True, False, True, True]
    for part in ("model", "optimizer"):
        before, after = (variables(checkpoint_at(runs / "skips", step), part) for step in (2, 3))
        for name in before:
            if name != "adam/learning_rate":
                np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert before["adam/iteration"] == 2 and variables(newest(runs / "skips"), "optimizer")["adam/iteration"] == 4
    assert json.loads((newest(runs / "skips") / "state.json").read_text())["skipped"] == 1


def test_a_notice_is_saved_for_at_once_and_once(events):
    assert [event["step"] for event in of(events["notice"], "PreemptionNotice")] == [3]
    assert [event["step"] for event in of(events["notice"], "CheckpointSaved")] == [3, 5]


def test_nothing_is_learnt_between_the_checkpoint_for_a_notice_and_the_end(events):
    """It would be lost. The checkpoint is complete before the next step is taken: the process may be ended then."""
    told = [(event["event"], event.get("step")) for event in events["notice"]]
    assert told.index(("CheckpointSaved", 3)) < told.index(("StepDone", 4))


def test_checkpoints_come_by_time_and_only_after_sound_steps(events):
    assert [event["step"] for event in of(events["timed"], "CheckpointSaved")] == [1, 2, 3, 4]
    assert {event["minutes"] for event in of(events["timed"], "CheckpointAwaited")} <= {1e-9}
    # Of step 3 it is not known yet that it was skipped: the others read that a step later, all together.
    assert [event["step"] for event in of(events["timed skips"], "CheckpointSaved")] == [1, 2, 4, 5]
    assert not of(events["full"], "CheckpointAwaited")
