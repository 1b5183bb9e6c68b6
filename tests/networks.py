"""Networks that nobody trained, and runs of them: what a test can tell from a new network and from each other."""

from __future__ import annotations

import numpy as np

from trainer import checkpoints, presets, storage
from trainer.checkpoints import pointers
from trainer.config import PhaseConfig, TrainConfig, UNetConfig
from trainer.inference import export_formats
from trainer.model.unet import build_unet


def small_config(image_size: int) -> TrainConfig:
    """Three levels: sizes are multiples of 8."""
    unet = UNetConfig(image_size=image_size, filters=(4, 6, 8), kernels=(5, 3, 3))
    return TrainConfig(unet=unet, initial=PhaseConfig(steps=1))


def make_network(config: TrainConfig, seed: int):
    """A network whose BatchNorm statistics are far from those of any batch, and whose output is not clipped much."""
    network = build_unet(config.unet, seed=seed)
    rng = np.random.default_rng(seed)
    for variable in network.variables:
        if "/gamma" in variable.path or "/moving_variance" in variable.path:
            variable.assign(rng.uniform(0.5, 2, variable.shape))
        elif "/beta" in variable.path or "/moving_mean" in variable.path or "/bias" in variable.path:
            variable.assign(rng.normal(0, 0.3, variable.shape))
    last = network.get_layer("decoder_1_conv")
    last.kernel.assign(last.kernel * 0.05)
    last.bias.assign([0.5, 0.4, 0.6])
    return network


def save_network(run: str, network, step: int = 1):
    """Pin of a new checkpoint."""
    variables = {"model": checkpoints.read_variables(network.variables), "optimizer": {}}
    return checkpoints.save_checkpoint(run, variables, {"step": step, "phase": "initial", "examples": step}, keep=3)


def write_run(folder: str, config: TrainConfig) -> str:
    """A run with checkpoints of steps 1 and 2, of which the first is the best, and its export; returns the folder."""
    storage.create(f"{folder}/config.json", presets.to_json(config))
    for step in (1, 2):
        network, rng = build_unet(config.unet, seed=step), np.random.default_rng(step)
        for variable in network.variables:
            if not variable.path.endswith("kernel"):
                variable.assign(rng.uniform(0.2, 1.2, variable.shape))
        pin = save_network(folder, network, step)
        if step == 1:
            score = checkpoints.Score(metric="psnr", value=20.0, higher_is_better=True)
            pointers.move_best(folder, pin, 1, score, None)
            export_formats.export_model(folder, config, checkpoints.load_checkpoint(pin), {})
    return folder
