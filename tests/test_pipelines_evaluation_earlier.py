"""A report is replaced by the same evaluation alone, unless it is said that another may."""

from __future__ import annotations

import json

import pytest

from networks import small_config, write_run
from picture_files import noise, save
from pipelines import build_imagenet, build_masks, evaluate
from trainer import storage
from trainer.errors import UserError

SIZE = 32


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with images, masks of two seeds, and a run of two checkpoints."""
    root = tmp_path_factory.mktemp("made")
    for number in range(2):
        save(f"{root}/photos/{number}.png", noise(SIZE, SIZE, 3, number))
    build_imagenet.main(["--input", f"{root}/photos", "--output", f"{root}/images", "--split", "val"])
    for seed in (0, 1):
        options = ["--count", "6", "--size", str(SIZE), "--split", "val", "--seed", str(seed)]
        build_masks.main(["--output", f"{root}/masks-{seed}", *options])
    write_run(f"{root}/run", small_config(SIZE))
    return root


def score(made, output, *options: str) -> int:
    """The options that come last count."""
    given = {"--images": f"{made}/images", "--masks": f"{made}/masks-0", "--run": f"{made}/run", "--baseline": "mean"}
    given |= {"--per-cell": "all", **dict(zip(options[::2], options[1::2], strict=True))}
    return evaluate.main([*(part for pair in given.items() for part in pair), "--output", str(output)])


@pytest.fixture(scope="module")
def report(made, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    assert score(made, output) == 0
    return output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--masks", "{0}/masks-1"], "masks.crc32c is .* and was"),
        (["--images", "{0}/photos/*"], "images.crc32c is null and was|images.address is .*/photos"),
        (["--seed", "1"], "seed is 1 and was 0"),
        (["--per-cell", "1"], 'per_cell is "1" and was "all"'),
        (["--run", "{0}/run@1"], "methods is .*network.* and was"),
        (["--run", "mine={0}/run"], "methods is .*mine.* and was .*network"),
        (["--baseline", "telea"], "methods is .*telea.* and was .*mean"),
    ],
)
def test_the_report_of_another_evaluation_is_kept(options, message, made, report):
    before = {name: storage.read(name) for name in storage.find(str(report))}
    with pytest.raises(
        UserError, match=f"holds the report of another evaluation, ({message}).*: --overwrite, or choose"
    ):
        score(made, report, *(option.format(made) for option in options))
    assert {name: storage.read(name) for name in storage.find(str(report))} == before


def test_the_same_evaluation_replaces_its_report(made, report, tmp_path):
    storage.delete(f"{report}/report.html")
    assert score(made, report) == 0 and storage.exists(f"{report}/report.html")
    moved = tmp_path / "masks"
    for address in storage.find(f"{made}/masks-0"):
        storage.create(f"{moved}/{storage.relative(address, f'{made}/masks-0')}", storage.read(address))
    assert score(made, report, "--masks", str(moved)) == 0  # the same masks elsewhere


def test_other_evaluations_may_replace_it_if_that_is_said(made, tmp_path):
    assert score(made, tmp_path) == 0
    data = ["--images", f"{made}/images", "--masks", f"{made}/masks-1", "--run", f"{made}/run", "--baseline", "mean"]
    assert evaluate.main([*data, "--per-cell", "all", "--output", str(tmp_path), "--overwrite"]) == 0
    assert score(made, tmp_path, "--masks", f"{made}/masks-1") == 0


def test_reports_that_were_cut_short_and_those_of_earlier_versions_are_replaced(made, tmp_path):
    assert score(made, tmp_path) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_bytes())
    for method in metrics["methods"]:
        method.pop("config", None)
    metrics["code_version"] = "0.0.1"
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert score(made, tmp_path) == 0
    (tmp_path / "metrics.json").write_bytes((tmp_path / "metrics.json").read_bytes()[:-50])
    assert score(made, tmp_path) == 0
    for names in (["metrics.json"], ["metrics.json", "table.md", "report.html"]):  # what killed jobs have left
        for name in names:
            (tmp_path / name).unlink()
        assert score(made, tmp_path) == 0
