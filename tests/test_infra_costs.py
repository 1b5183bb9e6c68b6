"""The table of costs, by hand, and the page that shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from trainer import presets
from trainer.config import UNetConfig

ROOT = Path(__file__).resolve().parents[1]


def test_the_printed_costs_are_what_the_script_prints():
    done = subprocess.run([sys.executable, ROOT / "infra/costs.py"], capture_output=True, text=True, check=True)
    assert done.stdout in (ROOT / "infra/README.md").read_text("utf-8")


def table(*options: str) -> str:
    command = [sys.executable, ROOT / "infra/costs.py", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_hand_computed_cost():
    """A million images at 1.19/s of a vCPU on 200: 1.167 h + 0.1 h, times 200 vCPU at $0.056 + 4 x $0.003557 = $17.80;
    1.02 M writes at $5 and 2.04 M reads at $0.40 a million: $5.92."""
    row = "| fill a million images, CPU | 1 M images of 512 x 512 | 200 vCPU | 1.3 h | $23.71 | vCPUs, 75% |"
    assert row in table()
    # At 8 / 0.027 = 296 images/s: 0.334 h on 4 machines at $0.67 + 8 x $0.0702 = $1.65, and the same requests.
    assert "| 4 L4 | 0.3 h | $7.56 | requests, 78% |" in table()


def test_each_assumption_counts():
    """Four L4s at 40/s and 80 %: 3.3 M images in 7.16 h; at 100 % 5.73 h. ImageNet is read once less."""
    assert "| train, preset paper | 137,500 steps of 24 images | 4 L4 | 7.3 h |" in table()
    assert "| train, preset paper | 137,500 steps of 24 images | 4 L4 | 5.8 h |" in table("--gpu-efficiency", "1")
    # 138 GB at 50 MB/s are 2,760 s of a vCPU: $0.05.
    costs = [float(re.search(r"ImageNet to records .*?[$]([\d.]+)", table(*o))[1]) for o in ([], ["--tar-reads", "1"])]
    assert 0.04 < costs[0] - costs[1] < 0.07


def test_the_work_of_an_image_is_that_of_the_networks_convolutions():
    """Two per multiplication and addition; backward is twice forward, once where weights are fixed (VGG-16)."""
    unet, side = UNetConfig(), 512
    widths = (3, *unet.filters)
    forward = 0.0
    for level, kernel in enumerate(unet.kernels):
        forward += 2 * kernel**2 * widths[level] * widths[level + 1] * (side / 2 ** (level + 1)) ** 2
        outputs = 3 if level == 0 else widths[level]  # the decoder sees the level below and the skip
        forward += 2 * 9 * (widths[level] + widths[level + 1]) * outputs * (side / 2**level) ** 2
    vgg = ((3, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 2), (128, 256, 4), (256, 256, 4), (256, 256, 4))
    features = sum(2 * 9 * a * b * (side / shrunk) ** 2 for a, b, shrunk in vgg)
    train, fill = (3 * forward + 5 * features) / 1e12, forward / 1e12
    assert (f"{train:.3f}", f"{fill:.3f}") == ("0.716", "0.076")
    assert (f"{40 * train / 121:.0%}", f"{300 * fill / 121:.0%}") == ("24%", "19%")
    page = (ROOT / "infra/README.md").read_text("utf-8")
    assert "24 % and 19 % of the 121 Tflop/s" in " ".join(page.split()) and "0.716 and 0.076 Tflop" in page


def test_the_printed_command_trains_what_the_table_counts():
    page = (ROOT / "infra/README.md").read_text("utf-8")
    (command,) = re.findall("^ray job submit .* trainer[.]train .*", page, re.MULTILINE)
    config = presets.override(presets.PRESETS["paper"], re.findall(r"--set (\S+)", command))
    steps, batch = config.initial.steps + config.finetune.steps, config.global_batch_size
    assert f"| train, preset paper | {steps:,} steps of {batch} images | {config.scaling.workers} L4 |" in page
    paper = presets.PRESETS["paper"]
    assert steps * batch == (paper.initial.steps + paper.finetune.steps) * paper.global_batch_size == 3_300_000
