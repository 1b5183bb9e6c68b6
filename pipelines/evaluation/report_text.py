"""``table.md``, and what the paper published."""

from __future__ import annotations

from pipelines.evaluation.pairing import BORDERS
from pipelines.evaluation.scoreboard import ANY, FID, SHOWN, format_table, interval_name

# Liu et al. 2018, PConv on Places2, holes that touch the border: by interval, (PSNR, SSIM, l1 %).
PUBLISHED = {1: (28.32, 0.870, 1.09), 2: (25.25, 0.779, 1.88), 3: (22.89, 0.689, 2.84)}
PUBLISHED_METRICS = ("psnr", "ssim", "l1")
PUBLISHED_BORDER = BORDERS[1]
PUBLISHED_NOTE = (
    "Published by Liu et al. (ECCV 2018) for partial convolutions on Places2 and their own masks that touch the "
    "border: other data, so not to be compared digit by digit."
)
NOTES = (
    "Mean ± standard error over pairs. A dash stands where no pair has a value. Failed pairs (no picture, or one with "
    "values that are not finite) enter no mean. Exact pairs (the picture equals the target) have no finite PSNR and "
    "enter no mean of it. “Holes” metrics look at hole pixels alone. PSNR in dB; l1 % is 100 times the mean absolute "
    "difference of values in [0, 1]."
)
FID_NOTE = (
    "FID is of all pairs of a cell together, not a mean over them. With fewer than 2,048 pairs it is too large, so it "
    "compares methods within a cell, not cells; and only values of the same weights, which are named under “fid” in "
    "metrics.json, can be compared at all."
)


def notes(report: dict) -> str:
    """What has to be said below the scores."""
    return f"{NOTES} {FID_NOTE}" if FID in report["metrics"] else NOTES


def published_rows() -> list[list[str]]:
    """Interval, PSNR, SSIM, l1 % as texts."""
    decimals = [SHOWN[name][2] for name in PUBLISHED_METRICS]
    return [
        [interval_name(bucket), *(f"{value:.{places}f}" for value, places in zip(values, decimals, strict=True))]
        for bucket, values in PUBLISHED.items()
    ]


def format_report(report: dict, published: bool) -> str:
    """Markdown: the scores of all border classes, then by border class, then differences."""
    every, classes = ([cell for cell in report["cells"] if (cell["border"] == ANY) == all_] for all_ in (True, False))
    parts = ["# Scores by hole ratio\n", format_table(every), f"{notes(report)}\n"]
    parts += ["## By border\n", format_table(classes)]
    if report["differences"]:
        parts += [f"## Differences to {report['reference']} on the same pairs\n"]
        parts += [format_table(report["differences"], differences=True)]
    if published:
        heads = ["hole ratio", *(SHOWN[name][0] for name in PUBLISHED_METRICS)]
        lines = [heads, ["---", *["--:"] * len(PUBLISHED_METRICS)], *published_rows()]
        parts += ["## Published\n", PUBLISHED_NOTE + "\n", "".join(f"| {' | '.join(line)} |\n" for line in lines)]
    return "\n".join(parts)
