"""Trains the starter model, the small one that comes with the package, from photographs; scores and installs it.

    python tests/benchmarks/starter.py --photos FOLDER --output OUT
    python tests/benchmarks/starter.py --photos FOLDER --output OUT --set initial.steps=2000   # a try
    python tests/benchmarks/starter.py --photos FOLDER --output OUT --finetune 2000            # with VGG-16's terms
    python tests/benchmarks/starter.py --photos FOLDER --output OUT --prepare                  # no training, but ...
    python tests/benchmarks/starter.py --photos FOLDER --output OUT --weights WEIGHTS          # ... starter_gpu.py's;
                                                    # --finetune trains on from these, --tuned WEIGHTS takes others

Trains on the photographs of all folders and on the bundled ones, for hours; the same command goes on where an earlier
one was interrupted, and does again what is not finished. Every fourth photograph of the first folder by name, ten at
most, is held out, as tests/benchmarks/learning.py does, and so are those that the demo shows; whatever shows one of
these, or a part of it, is left out of the training, and so is what --without names.
tests/benchmarks/_starter_photos.py fills a folder with photographs. All stages are this project's commands:

    OUT/photos, images          photographs by split, and their dataset (pipelines.build_imagenet)
    OUT/masks, val-masks-SIZE   masks of all intervals and border classes (pipelines.build_masks)
    OUT/run                     the training on pixel losses (trainer.train)
    OUT/finetuned               with --finetune STEPS its continuation, or that of WEIGHTS: the paper's perceptual and
                                style terms, too
    trainer/assets/starter.*    weights in float16, half-way to the finetune's, config and figures, and the card, of
                                this checkout
    OUT/report-SIZE             the scores of those weights beside Telea and Navier-Stokes (pipelines.evaluate)
"""

import argparse
import datetime
import fnmatch
import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from _lookalikes import find_copies, hash_bits
from _starter_card import card_of, table
from _timing import SMALL, progress
from learning import HELD_OUT, PHOTOS, call

ASSETS = Path(__file__).resolve().parents[2] / "trainer" / "assets"
SIZE, SIZES, PAIRS, MASKS = (64, (64,), 12, 12) if SMALL else (128, (128, 256), 120, 12_000)
MAX_BYTES = 8_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# What won on a GPU (starter_gpu.py says among what); there 1,756,400 examples took 395 s.
RECIPE = [
    "initial.learning_rate=3e-3",
    "ema_decay=0.999",
    "data.crop_scale=0.35,1.0",
    "loss.hole=0",
    "loss.hole_log=1",
    "loss.valid=0",
    "unet.filters=32,64,128,256,256",
    "unet.refine=32",
    "unet.residual=true",
]
SETTINGS = [
    *RECIPE,
    "initial.steps=200000",
    "initial.warmup_steps=100",
    "global_batch_size=8",
    "precision=float32",
    "scaling.workers=1",
    "scaling.cpus_per_worker=2",
    "checkpoint.every=250",
    "validation.every=2000",
    f"validation.examples={PAIRS}",
]
# Pixels as before, with the paper's perceptual and style terms, each as strong: of the gradients in the holes of 8
# squares that the starter model fills, hole_log's norm is 0.146, perceptual's 0.486, style's 0.0044 and 0.0050.
FINETUNE = ["loss.perceptual=0.3", "loss.style_output=30", "loss.style_composite=30"]
FINETUNE_RATE = "3e-4"
# How far to go from the weights before the finetune to those after it. 2,000 steps of 40 on an H100; 60 pairs of
# held-out photographs at each size: the paper's perceptual term of the composites, the sum of the absolute differences
# of neighbors in the holes as a part of the original's, and PSNR there, at 128 x 128 and at 256 x 256:
#
#     0      3.918  0.790  22.04     3.157  0.724  22.15
#     0.25   3.875  0.801  22.00     3.134  0.736  22.10
#     0.5    3.846  0.820  21.88     3.128  0.757  21.97
#     0.75   3.886  0.853  21.64     3.177  0.793  21.74
#     1      4.083  0.903  21.28     3.348  0.851  21.39
#
# Half of the way narrow holes look sharper, and wide ones as before; all the way these get textures that belong to
# nothing. With perceptual 0.1 alone, all the way: 3.871  0.797  21.95     3.122  0.732  22.08; nobody would see that.
PART = 0.5


# Photographs


def read(path):
    """uint8 [height, width, 3] in RGB."""
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def list_photos(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)


def split_photos(folders, without):
    """Paths of held-out photographs, and of those to train on by the name of their copy."""
    first = list_photos(folders[0])
    held_out = first[::4][:HELD_OUT]
    unseen = [*held_out, *list_photos(PHOTOS / "val")]
    chosen = {
        f"photos-{number}/{path.relative_to(folder).as_posix().replace('/', '-')}": path
        for number, folder in enumerate(folders)
        for path in list_photos(folder)
        if path not in unseen and not any(fnmatch.fnmatch(path.name, pattern) for pattern in without)
    }
    copies = find_copies(
        ((name, read(path)) for name, path in chosen.items()), [(path.name, read(path)) for path in unseen]
    )
    for name, original in copies.items():
        progress(f"{name} shows the held-out {original}, or a part of it: left out")
    once = {hash_of(path): (name, path) for name, path in reversed(chosen.items()) if name not in copies}
    return held_out, dict(sorted(once.values()))


def copy_photos(root, folders, without):
    """Fills OUT/photos and OUT/photos.json, once; returns what that says."""
    said = root / "photos.json"
    if not said.exists():
        shutil.rmtree(root / "photos", ignore_errors=True)  # of an interrupted copy
        held_out, chosen = split_photos(folders, without)
        listed = {"train": chosen, "val": {f"photo/{path.name}": path for path in held_out}}
        for split, photos in listed.items():
            for name, path in photos.items():
                copy = root / "photos" / split / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        hashes = {split: {name: hash_of(path) for name, path in photos.items()} for split, photos in listed.items()}
        said.write_text(json.dumps(hashes, indent=1, sort_keys=True))
    return json.loads(said.read_text())


def hash_of(path):
    """The perceptual hash of a photograph: 16 hexadecimal digits."""
    return np.packbits(hash_bits(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))).tobytes().hex()


# Stages


def build_datasets(root):
    call("pipelines.build_imagenet", "--input", root / "photos", "--output", root / "images")
    masks = ["--stratify", "--size"]
    call("pipelines.build_masks", "--output", root / "masks", "--count", MASKS, *masks, SIZE)
    for size in SIZES:
        held_out = ["--count", PAIRS, *masks, size, "--split", "val", "--seed", 1]
        call("pipelines.build_masks", "--output", root / f"val-masks-{size}", *held_out)


def train(root, name, settings, changed=()):
    """Trains or continues OUT/name; ``changed``: keys of which its config has other values so far."""
    sets = [part for assignment in settings for part in ("--set", assignment)]
    allowed = [part for key in changed for part in ("--allow-config-change", key)]
    data = ["--images", root / "images", "--masks", root / "masks", "--val-masks", root / f"val-masks-{SIZE}"]
    call("trainer.train", "--preset", "demo", *data, "--run", root / name, *sets, *allowed)


def finetune(root, settings, steps, installed):
    """Continues a copy of OUT/run, or the weights that are ``installed``."""
    if not (root / "finetuned").exists():
        shutil.rmtree(root / "finetuned.part", ignore_errors=True)
        if installed:
            call("trainer.import_weights", "--from", "starter", "--run", root / "finetuned.part")
        else:
            shutil.copytree(root / "run", root / "finetuned.part")
        (root / "finetuned.part").rename(root / "finetuned")
    settings = [*settings, f"finetune.steps={steps}", f"finetune.learning_rate={FINETUNE_RATE}", *FINETUNE]
    settings += ["initial.steps=0"] if installed else []
    keys = [assignment.partition("=")[0] for assignment in settings]
    train(root, "finetuned", settings, [key for key in keys if not key.startswith("unet.")])


def trained_here(run, begins=0):
    """The averaged weights of a run's newest checkpoint by name, its config, and what is known of its training.

    ``begins``: the step that what is told begins after.
    """
    from trainer import checkpoints
    from trainer.tensorboard import read_curves

    checkpoint = checkpoints.load_for_inference(checkpoints.find(str(run)))
    speeds = read_curves(str(run), ["speed/images_per_second"]).get("speed/images_per_second", [])
    steps = checkpoint.state["step"] - begins
    examples = steps * checkpoint.config.examples_per_step
    facts = {
        "step": steps,
        "examples": examples,
        "seconds": round(examples / np.mean([value for _, value in speeds])) if speeds else None,
        "device": "two CPU cores",
        "sides": [SIZE],
        "probes": 0,
    }
    return checkpoints.inference_weights(checkpoint).arrays, checkpoint.config, facts


def trained_elsewhere(weights):
    """As `trained_here`, of what tests/benchmarks/starter_gpu.py saved."""
    from trainer import presets

    facts = json.loads(weights.with_suffix(".json").read_text())
    with np.load(weights) as arrays:
        return dict(arrays), presets.from_json(json.dumps(facts.pop("config")).encode()), facts


def blend(trained, tuned):
    """What lies `PART` of the way from a network to its finetune, with the config of the first and the facts of both.

    Source:
        Wang et al. 2018 (ESRGAN), arXiv 1809.00219, section 3.4: network interpolation.
    """
    from trainer import presets

    (before, config, facts), (after, changed, more) = trained, tuned
    arrays = {path: (1 - PART) * array + PART * after[path] for path, array in before.items()}
    spent = {key: more[key] for key in ("step", "examples", "seconds", "device")}
    loss = json.loads(presets.to_json(changed))["loss"]
    return arrays, config, facts | {"finetune": {**spent, "loss": loss, "part": PART}}


def install(arrays, config, facts, photos):
    """Writes the weights, and the config and figures that belong to them; returns the latter."""
    from trainer import presets, storage

    packed = io.BytesIO()
    # Kernels are nearly all of it; statistics may be of any magnitude.
    np.savez_compressed(packed, **{k: v.astype(np.float16) if v.ndim > 1 else v for k, v in sorted(arrays.items())})
    data = packed.getvalue()
    if len(data) > MAX_BYTES:
        raise SystemExit(f"starter.npz: expected at most {MAX_BYTES:,} bytes. Received {len(data):,}.")
    config = presets.override(config, ["precision=float32"])  # in which the card's scores are measured
    card = {
        **facts,
        "config": json.loads(presets.to_json(config)),
        "weights": "ema",
        "files": {"starter.npz": storage.crc32c(data)},
        "photographs": photos,
        "bytes": len(data),
        "date": datetime.date.today().isoformat(),
    }
    (ASSETS / "starter.npz").write_bytes(data)
    (ASSETS / "starter.json").write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    return card


def evaluate(root, size):
    """Mean scores in holes of the installed model and of the others: {interval: {method: (PSNR, SSIM)}}."""
    report = root / f"report-{size}"
    data = ["--images", root / "images", "--masks", root / f"val-masks-{size}", "--per-cell", "all"]
    methods = ["--model", "starter", "--baseline", "telea,ns,interpolation"]
    call("pipelines.evaluate", *data, *methods, "--output", report, "--overwrite")
    found = {}
    for cell in json.loads((report / "metrics.json").read_text())["cells"]:
        if cell["border"] == "all":
            means = [cell["metrics"][name]["mean"] for name in ("psnr_holes", "ssim_holes")]
            found.setdefault(cell["interval"], {})[cell["method"]] = [round(mean, 4) for mean in means]
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--photos", type=Path, action="append", default=[], help="folder of photographs; repeatable (default: bundled)")
    add("--without", action="append", default=[], metavar="GLOB", help="names not to train on; repeatable")
    add("--output", type=Path, help="folder to keep; without it nothing is done: the training takes hours")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to trainer.train; repeatable")
    add("--note", action="append", default=[], metavar="TEXT", help="a sentence for the card; repeatable")
    add("--finetune", type=int, default=0, metavar="STEPS", help="steps with the paper's perceptual and style terms")
    add("--weights", type=Path, help="install these, of tests/benchmarks/starter_gpu.py, in place of training")
    add("--tuned", type=Path, metavar="WEIGHTS", help="take these, of starter_gpu.py --begins, as the finetune's")
    add("--prepare", action="store_true", help="only fill OUT/photos, for tests/benchmarks/starter_gpu.py")
    options = parser.parse_args(argv)
    if not options.output:
        print("skipped: --output OUT trains for hours")
        return
    root, settings = options.output, [*SETTINGS, *options.set]
    photos = copy_photos(root, [*options.photos, PHOTOS], options.without)
    if options.prepare:
        return
    build_datasets(root)
    if options.weights:
        trained = trained_elsewhere(options.weights)
    else:
        train(root, "run", settings)
        trained = trained_here(root / "run")
    card = install(*trained, photos)
    if options.tuned:
        card = install(*blend(trained, trained_elsewhere(options.tuned)), photos)
    elif options.finetune:
        finetune(root, settings, options.finetune, installed=options.weights)
        tuned = trained_here(root / "finetuned", begins=0 if options.weights else trained[2]["step"])
        card = install(*blend(trained, tuned), photos)
    card["notes"] = options.note
    card["pairs"] = PAIRS
    card["scores"] = {size: evaluate(root, size) for size in SIZES}
    (ASSETS / "starter.json").write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    (ASSETS / "starter.md").write_text(card_of(card))
    print("\n\n".join(table(scores, size) for size, scores in card["scores"].items()))


if __name__ == "__main__":
    main()
