"""The demo as a newcomer meets it, with fewer, smaller steps: six stages, report, contact sheet, and no noise."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from masks.codec import decode_mask
from trainer.images import rgb

# Lines that TensorFlow, Ray and Beam log of themselves, and Python's own warnings.
NOISE = re.compile(r"^[WIEF]\d{4} |WARNING|INFO|Warning|Traceback|pid=|absl|cuda", re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_ends_with_a_report(tmp_path, soak):
    # To beat the mean color takes no step at all: the network adds to holes that are interpolated.
    steps, batch = (60, 8) if soak else (12, 2)
    settings = ["--set", "unet.filters=16,32,64", "--set", "unet.kernels=5,3,3", "--set", f"initial.steps={steps}"]
    settings += ["--set", f"global_batch_size={batch}", "--set", "log_every=4"]
    command = [sys.executable, "-m", "pipelines.demo", "--output", str(tmp_path), *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^\[(\d)/6\]", done.stdout, re.MULTILINE) == list("123456")
    assert not NOISE.search(done.stdout + done.stderr), done.stdout + done.stderr

    page = (tmp_path / "report" / "report.html").read_text()
    assert f"Open {(tmp_path / 'report' / 'report.html').as_uri()} in a browser." in done.stdout
    assert page.count('class="card"') == 18 and page.count("data:image/jpeg;base64,") == 18 * 8
    assert "<h2>Training</h2>" in page and "loss/total" in page
    cells = json.loads((tmp_path / "report" / "metrics.json").read_text())["cells"]
    assert {c["pairs"] for c in cells if c["bucket"] != "all" and c["border"] != "all"} == {4}
    assert not any(cell["failed"] for cell in cells)

    sheet = Image.open(tmp_path / "report.png")
    assert sheet.width > 1000 and sheet.height > 600 and len(sheet.getcolors(sheet.width * sheet.height)) > 10_000
    lines = re.findall(r"^(\w+\.png)\s+(\d+)%" + r"\s+([\d.]+)" * 4 + "$", done.stdout, re.MULTILINE)
    assert len(lines) == 4
    for name, percent, network, starter, _, mean in lines:
        target, output, by_starter = (
            rgb.decode_rgb((tmp_path / folder / name).read_bytes()) / 255
            for folder in ("pictures", "inpainted", "inpainted-starter")
        )
        mask = decode_mask((tmp_path / "holes" / name).read_bytes())
        assert float(percent) == round(100 * (mask == 0).mean())
        np.testing.assert_array_equal(output[mask == 1], target[mask == 1])
        color = np.rint(255 * target[mask == 1].mean(axis=0)) / 255
        for image, printed in ((output, network), (by_starter, starter), (np.broadcast_to(color, target.shape), mean)):
            error = ((image - target)[mask == 0] ** 2).mean()
            assert abs(-10 * np.log10(error) - float(printed)) < 0.01
        assert float(network) > float(mean)
