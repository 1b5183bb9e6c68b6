"""Datasets and runs that lie: evaluate and inpaint refuse them in one line, or reject what they made of an input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from masks.sampling import MaskSpec, sample_mask
from pipelines import evaluate, inpaint
from pipelines.evaluation.job import Split
from samples import image_record, mask_record, write_dataset
from trainer import checkpoints, presets, storage
from trainer.config import PhaseConfig, TrainConfig, UNetConfig
from trainer.data import records
from trainer.errors import UserError
from trainer.images import rgb
from trainer.inference import predict
from trainer.model.unet import build_unet

CONFIG = TrainConfig(unet=UNetConfig(image_size=32, filters=(4,), kernels=(3,)), initial=PhaseConfig(steps=1))
SPEC = MaskSpec(generator="shapes", height=32, width=32, hole_ratio=(0.2, 0.3))
IMAGES = [image_record(np.full((40, 40, 3), value, np.uint8), f"{value}.jpg") for value in (10, 200)]
MASKS = [mask_record(sample_mask(SPEC, index), index) for index in range(2)]


def save_run(folder: Path, value: float, where: str = "bias") -> str:
    arrays = checkpoints.read_variables(build_unet(CONFIG.unet).variables)
    name = next(name for name in arrays if name.endswith(where))
    arrays[name] = np.full_like(arrays[name], value)
    checkpoints.save_checkpoint(str(folder), {"model": arrays, "optimizer": {}}, {"step": 1}, keep=1, config=CONFIG)
    storage.create(f"{folder}/config.json", presets.to_json(CONFIG))
    return str(folder)


def command(folder: Path, images: list[bytes] = IMAGES, masks: list[bytes] = MASKS, bias: float = 0.1) -> list[str]:
    write_dataset(folder / "images", "image", {"val": [images]})
    write_dataset(folder / "masks", "mask", {"val": [masks]}, 32)
    data = ["--images", f"{folder}/images", "--masks", f"{folder}/masks", "--baseline", "mean"]
    return [*data, "--run", save_run(folder / "run", bias), "--output", f"{folder}/out"]


def change_shard(folder: Path, data: bytes, **more) -> None:
    """Replaces the only shard of a dataset, and makes its manifest fit."""
    (shard,) = folder.glob("*.tfrecord")
    shard.write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0] |= {"bytes": len(data), "crc32c": storage.crc32c(data), **more}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_datasets_are_good_ones(tmp_path):
    assert evaluate.main(command(tmp_path)) == 0


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize("how", ["fewer records", "cut short"])
def test_a_shard_that_was_cut_is_refused_though_its_checksum_fits(tmp_path, kind, how):
    options = command(tmp_path)
    (shard,) = (tmp_path / kind).glob("*.tfrecord")
    first = records.frame_records([next(records.read_records(str(shard)))])
    change_shard(tmp_path / kind, first if how == "fewer records" else shard.read_bytes()[:-5])
    message = "2 records, as in the manifest. Received 1" if how == "fewer records" else "cut short at byte"
    with pytest.raises(UserError, match=message):
        evaluate.main(options)
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("images", b"\xff" * 200),
        ("images", b""),
        ("images", MASKS[0]),
        ("masks", b"\xff" * 200),
        ("masks", IMAGES[0]),
        ("masks", mask_record(sample_mask(SPEC, 1), -5)),
    ],
)
def test_a_record_that_is_none_is_named(tmp_path, kind, record):
    good = IMAGES if kind == "images" else MASKS
    with pytest.raises(UserError, match=f"record 1 of .*/{kind}/val-00000-of-00001.tfrecord: .*expected"):
        evaluate.main(command(tmp_path, **{kind: [good[0], record]}))
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_masks_of_one_number_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected a mask/index of its own for each"):
        evaluate.main(command(tmp_path, masks=[MASKS[0], MASKS[0]]))


def test_a_name_that_is_no_text_is_shown_with_escapes(tmp_path):
    values = dict(zip(records.IMAGE_FEATURES, records.decode_record(IMAGES[0], *records.IMAGE_FEATURES), strict=True))
    odd = records.encode_record(values | {"image/filename": b"a\xff.jpg"}, records.IMAGE_FEATURES)
    assert evaluate.main(command(tmp_path, images=[odd])) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert {row["image"] for row in rows} == {"a\\xff.jpg"}


@pytest.mark.parametrize("records_", [10**6, 10**18])
def test_more_records_than_the_shard_has_room_for_are_refused_at_launch(tmp_path, records_):
    command(tmp_path)
    path = tmp_path / "images" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0] |= {"records": records_, "bytes": 300 * records_}
    manifest["counts"] |= {"records": records_, "inputs": records_}
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="expected a shard of 300000000 bytes|or less. Received 1000000000000000000"):
        Split.find(f"{tmp_path}/images", "image", "val")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_run_whose_weights_are_not_finite_is_refused(tmp_path, value):
    run = save_run(tmp_path / "run", value)
    with pytest.raises(
        UserError, match=r"model.npz: expected finite weights. Received \d+ that are not, in encoder_1_c"
    ):
        predict.load_model(predict.find_model(run))
    options = command(tmp_path / "data")
    with pytest.raises(UserError, match="expected finite weights"):
        evaluate.main([*options, "--run", f"bad={run}"])


def test_an_output_that_is_not_finite_is_a_reject_with_its_reason(tmp_path):
    """Finite weights, with which every sum overflows."""
    run = save_run(tmp_path / "run", 3e38, "kernel")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(rgb.encode_jpeg(np.full((32, 32, 3), 200, np.uint8), 95))
    (tmp_path / "holes").mkdir()
    (tmp_path / "holes" / "a.png").write_bytes(records.decode_record(MASKS[0], "mask/encoded")[0])
    options = ["--images", f"{tmp_path}/in", "--masks", f"{tmp_path}/holes", "--hole", "black", "--run", run]
    assert inpaint.main([*options, "--output", f"{tmp_path}/out"]) == 3
    (line,) = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert "the network's output: expected finite numbers" in json.loads(line)["error"]
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_network_far_larger_than_its_weights_is_not_built(tmp_path):
    run = save_run(tmp_path / "run", 0.1)
    pin = predict.find_model(run)
    unet = UNetConfig(image_size=512, filters=(4096,) * 5, kernels=(3,) * 5)
    config = TrainConfig(unet=unet, initial=PhaseConfig(steps=1))
    with pytest.raises(UserError, match="does not fit its config: expected weights of a network with .* Received"):
        predict.load_model(predict.ModelPin(checkpoint=pin.checkpoint, config=config))
