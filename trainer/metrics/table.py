"""The table of metrics: one row states how a metric is measured, compared and printed.

A new metric of single images takes two places: `image_quality.compare` computes it, a row of `METRICS` describes it.
Validation, its log line and TensorBoard tags, ``checkpoint.best``, the evaluation's table, charts and metrics.json
all read this table. Standard library only: the training configuration and light commands import it.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGE, HOLES = "image", "holes"  # regions: every pixel, or hole pixels alone


@dataclass(frozen=True)
class Metric:
    """How one metric is measured, compared and printed.

    Attributes:
        title: the name people know it by; the variants of one metric in several regions share it.
        unit: of the printed value; "" if it has none.
        factor: printed value / stored value.
        decimals: of the printed value.
        higher_is_better: whether larger values are better.
        region: which pixels it measures, `IMAGE` or `HOLES`.
        per_pair: whether each pair of output and target has a value of its own, whose mean is reported; otherwise it
            is a distance between two sets of images and has neither a standard error nor differences by pair.
        needs_weights: whether it is a network whose weights file the user must supply.
    """

    title: str
    unit: str
    factor: float
    decimals: int
    higher_is_better: bool
    region: str = IMAGE
    per_pair: bool = True
    needs_weights: bool = False

    @property
    def heading(self) -> str:
        """Title and unit, such as ``PSNR (dB)``; the region is for the reader to add."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def format(self, value: float, sign: str = "") -> str:
        """A stored value as it is printed, without the unit; ``sign`` "+" marks positive values too."""
        return f"{self.factor * value:{sign}.{self.decimals}f}"

    @property
    def validated(self) -> bool:
        """Whether validation computes it: it does so for all metrics of single pairs that need no weights."""
        return self.per_pair and not self.needs_weights


# By the name it has in rows, JSON files and TensorBoard tags. The order is that of tables; the first leads log lines.
METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR", "dB", 1, 2, True),
    "psnr_holes": Metric("PSNR", "dB", 1, 2, True, HOLES),
    "ssim": Metric("SSIM", "", 1, 3, True),
    "ssim_holes": Metric("SSIM", "", 1, 3, True, HOLES),
    "l1": Metric("l1", "%", 100, 2, False),
    "l1_holes": Metric("l1", "%", 100, 2, False, HOLES),
    "lpips": Metric("LPIPS", "", 1, 3, False, needs_weights=True),
    "fid": Metric("FID", "", 1, 2, False, per_pair=False, needs_weights=True),
}


def validation_metrics(region: str | None = None) -> tuple[str, ...]:
    """Names of the metrics that validation computes, in table order; of one region if given."""
    return tuple(name for name, row in METRICS.items() if row.validated and region in (None, row.region))
