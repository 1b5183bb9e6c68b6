"""Every command refuses the folder of another kind of job, and leaves it as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from networks import small_config, write_run
from picture_files import block, noise, save, save_mask
from pipelines import build_imagenet, build_masks, evaluate, inpaint
from trainer import storage, train
from trainer.data import folders
from trainer.errors import UserError

SIZE = 32
EARLIER = Path(__file__).parent / "written_by_383277e"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of each kind, made by its own command, and the files that they were made from."""
    root = tmp_path_factory.mktemp("made")
    for name in ("a", "b"):
        save(f"{root}/photos/{name}.png", noise(40, 40, 3, ord(name)))
        save_mask(f"{root}/holes/{name}.png", block(40, 40))
    assert build_masks.main(["--output", f"{root}/masks", *MASKS]) == 0
    assert build_imagenet.main(["--input", f"{root}/photos", "--output", f"{root}/images", "--split", "val"]) == 0
    write_run(f"{root}/run", small_config(SIZE))
    for job in (fill, score):
        assert job(root, f"{root}/{job.__name__}") == 0
    shutil.copytree(root / "run" / "exports" / "step-00000001", root / "export")
    return root


MASKS = ["--count", "6", "--size", str(SIZE), "--split", "val"]


def fill(root, output, *options):
    where = ["--images", f"{root}/photos", "--masks", f"{root}/holes", "--hole", "black", "--run", f"{root}/run"]
    return inpaint.main([*where, "--output", output, *options])


def score(root, output, *options):
    data = ["--images", f"{root}/images", "--masks", f"{root}/masks", "--run", f"{root}/run", "--baseline", ""]
    return evaluate.main([*data, "--per-cell", "all", "--output", output, *options])


def learn(root, output, *options):
    data = ["--images", f"{root}/images", "--masks", f"{root}/masks", "--set", "data.split=val"]
    config = ["--preset", "demo", "--set", f"unet.image_size={SIZE}", "--set", "unet.filters=4,6,8"]
    return train.main([*data, *config, "--set", "unet.kernels=5,3,3", "--run", output, "--dry-run"])


COMMANDS = {
    "masks": lambda root, output, *options: build_masks.main(["--output", output, *MASKS, *options]),
    "images": lambda root, output, *options: build_imagenet.main(
        ["--input", f"{root}/photos", "--output", output, "--split", "val", *options]
    ),
    "fill": fill,
    "score": score,
    "run": learn,
}
KINDS = {
    "masks": folders.MASKS,
    "images": folders.IMAGES,
    "fill": folders.OUTPUTS,
    "score": folders.REPORT,
    "run": folders.RUN,
    "export": folders.EXPORT,
}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_folders_of_other_kinds_are_refused(command, made):
    for name, kind in KINDS.items():
        if name == command:
            continue
        before = contents(made / name)
        for options in ([], ["--overwrite"])[: 1 if command == "run" else 2]:
            told = f"{made}/{name} holds {kind} .*choose another folder|--run: expected a new folder"
            with pytest.raises(UserError, match=told):
                COMMANDS[command](made, f"{made}/{name}", *options)
        assert contents(made / name) == before


@pytest.mark.parametrize("name", KINDS)
def test_what_commands_make_is_of_their_kind(name, made):
    assert folders.kinds_of(f"{made}/{name}") == {KINDS[name]}
    folders.require_kind(f"{made}/{name}", KINDS[name])


def test_what_an_earlier_version_made_is_of_its_kind():
    found = {name: folders.kinds_of(str(EARLIER / name)) for name in ("images", "masks", "run")}
    assert found == {"images": {folders.IMAGES}, "masks": {folders.MASKS}, "run": {folders.RUN}}
    assert folders.kinds_of(str(EARLIER / "run" / "exports" / "step-00000004")) == {folders.EXPORT}


def test_folders_that_jobs_have_not_finished_are_of_their_kind(made, tmp_path):
    storage.create(f"{tmp_path}/out/.items/job.json", b"{}")
    storage.create(f"{tmp_path}/run/checkpoints/latest.json", b"{}")
    with pytest.raises(UserError, match=r"out holds inpainted images \(.items/job.json\). Expected a dataset of mask"):
        COMMANDS["masks"](made, f"{tmp_path}/out")
    with pytest.raises(
        UserError, match=r"run holds a training run \(checkpoints/latest.json\). Expected inpainted images"
    ):
        fill(made, f"{tmp_path}/run")


@pytest.mark.parametrize(
    ("name", "data", "commands"),
    [
        ("manifest.json", {"name": "app", "icons": []}, ("masks", "images", "fill")),
        ("metrics.json", {"accuracy": 0.5}, ("score",)),
        ("config.json", {"model": "gpt"}, ("run",)),
        ("items.jsonl", {"id": 1}, ("fill",)),
        ("report.html", {}, ("score",)),
        ("pairs.jsonl", {"image": "a.png", "mask": "b.png"}, ("score",)),
    ],
)
def test_files_of_others_with_our_names_are_kept(name, data, commands, made, tmp_path):
    for command in commands:
        storage.create(f"{tmp_path}/{command}/{name}", json.dumps(data).encode())
        with pytest.raises(UserError, match=f"{command} holds .*{name}.*choose another folder"):
            COMMANDS[command](made, f"{tmp_path}/{command}")
        assert contents(tmp_path / command) == {name: json.dumps(data).encode()}


def test_files_of_others_that_a_job_does_not_write_do_not_matter(made, tmp_path):
    for name in ("metrics.json", "config.json", "card.json"):
        storage.create(f"{tmp_path}/{name}", b'{"model": "gpt"}')
    with pytest.raises(UserError, match=r"holds files of another program \(metrics.json\)"):
        score(made, str(tmp_path))
    assert COMMANDS["masks"](made, str(tmp_path)) == 0
    assert contents(tmp_path)["config.json"] == b'{"model": "gpt"}'


def test_a_folder_that_holds_several_kinds_is_of_each(made, tmp_path):
    """Earlier versions let reports be written beside anything."""
    shutil.copytree(made / "score", tmp_path / "both")
    shutil.copytree(made / "run", tmp_path / "both", dirs_exist_ok=True)
    for kind in (folders.RUN, folders.REPORT):
        folders.require_kind(f"{tmp_path}/both", kind)
    with pytest.raises(UserError, match="both holds"):
        folders.require_kind(f"{tmp_path}/both", folders.OUTPUTS)
