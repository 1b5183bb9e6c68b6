"""The evaluation's scores: from rows to cells (count, mean, standard error), and from cells to ``table.md``.

A row is a dict of one pair and one method: ``pair``, ``bucket``, ``border``, ``method`` and metrics of single pairs of
`METRICS`, None where the value is not finite; a pair that a method gave no image for has ``error`` instead. A cell is
one hole-ratio interval, border class and method. Sums are exact (`trainer.metrics.intervals.Sum`), hence independent
of the order of the rows and of how they were split.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from masks.coverage import RATIO_BUCKETS
from pipelines.evaluation.pairing import BORDERS, OTHER
from trainer.metrics import HOLES, METRICS
from trainer.metrics.intervals import ALL, Cell, Sum, interval_name

ANY = "all"  # in place of an interval or of a border class
BUCKETS = tuple(range(len(RATIO_BUCKETS)))
LPIPS, FID = "lpips", "fid"  # in reports whose job was given their weights; rows hold no FID, which is of image sets

# Liu et al. 2018, PConv on Places2, holes that touch the border: printed values by interval and metric.
PUBLISHED = {
    1: {"psnr": 28.32, "ssim": 0.870, "l1": 1.09},
    2: {"psnr": 25.25, "ssim": 0.779, "l1": 1.88},
    3: {"psnr": 22.89, "ssim": 0.689, "l1": 2.84},
}
PUBLISHED_METRICS = tuple(PUBLISHED[1])
PUBLISHED_BORDER = BORDERS[1]
PUBLISHED_NOTE = (
    "Published by Liu et al. (ECCV 2018) for partial convolutions on Places2 and their own masks that touch the "
    "border: other data, so not to be compared digit by digit."
)
NOTES = (
    "Mean ± standard error over pairs. A dash means that no pair has a value. Failed pairs (no image, or one with "
    "values that are not finite) enter no mean. Exact pairs (the image equals the target) have no finite PSNR and "
    "enter no mean of it. “Holes” metrics measure hole pixels only. l1 is the mean absolute difference of values in "
    "[0, 1], in percent."
)
FID_NOTE = (
    "FID is measured over all pairs of a cell together; it is not a mean over them. With fewer than 2,048 pairs it is "
    "too large, so it compares methods within a cell, not cells; and only values computed with the same weights (named "
    "under “fid” in metrics.json) can be compared at all."
)

# Sums by method, the method subtracted from it ("" for none), interval and border class.
Board = dict[tuple[str, str, int, int], Cell]


def board_of(rows: Iterable[Mapping], reference: str) -> Board:
    """Sums of one pair's rows, and of their differences to the row of the method ``reference``."""
    board: Board = {}
    by_method = {row["method"]: row for row in rows}
    against = by_method.get(reference)
    for method, row in by_method.items():
        board[method, "", row["bucket"], row["border"]] = Cell.of(row, METRICS)
        if against is not None and row is not against:
            both = [name for name in METRICS if row.get(name) is not None and against.get(name) is not None]
            # No pair of differences is exact: a difference of 0 is one like any other.
            sums = {name: Sum.of(row[name] - against[name]) for name in both}
            board[method, reference, row["bucket"], row["border"]] = Cell(1, int("l1" not in sums), 0, sums)
    return board


def merge_into(board: Board, other: Board) -> Board:
    """Adds ``other`` to ``board``, which is returned."""
    for key, cell in other.items():
        board[key] = board[key] + cell if key in board else cell
    return board


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _describe(cell: Cell, names: Sequence[str]) -> dict:
    sums = {name: cell.sums.get(name, Sum()) for name in names}
    metrics = {n: {"count": s.count, "mean": _finite(s.mean), "error": _finite(s.error)} for n, s in sums.items()}
    return {"pairs": cell.pairs, "failed": cell.failed, "exact": cell.exact, "metrics": metrics}


def _total(board: Board, method: str, against: str, bucket: int | str, border: int | str) -> Cell:
    """The cell of a place, where `ANY` stands for every interval or border class."""
    total = Cell()
    for (name, minus, in_bucket, in_border), cell in board.items():
        if (name, minus) == (method, against) and bucket in (ANY, in_bucket) and border in (ANY, in_border):
            total = total + cell
    return total


def summarize(
    board: Board, methods: Sequence[str], reference: str, distances: Mapping[str, Mapping] | None = None
) -> tuple[list[dict], list[dict]]:
    """Cells of every method, and those of the differences to ``reference``: JSON values, every interval x border class.

    Cells without pairs are included; their means are None. Masks outside all intervals have cells if there are any.

    Args:
        distances: FID by method, and there by interval and border class: (pairs, distance). It is stored as ``mean``,
            though it is not one, without an error; differences have none.
    """
    outside = [OTHER] if any(bucket == OTHER for _, _, bucket, _ in board) else []
    measured = {name for cell in board.values() for name in cell.sums}
    names = [name for name, metric in METRICS.items() if metric.validated or name in measured]
    buckets: list[int | str] = [*BUCKETS, *outside, ANY]
    borders: list[int | str] = [*range(len(BORDERS)), ANY]
    parts: tuple[list[dict], list[dict]] = ([], [])
    for against, cells in zip(("", reference), parts, strict=True):
        for bucket, border in itertools.product(buckets, borders):
            interval = interval_name(ALL if isinstance(bucket, str) else bucket)
            border_name = ANY if isinstance(border, str) else BORDERS[border]
            place = {"bucket": bucket, "interval": interval, "border": border_name}
            for method in methods:
                if method == against:
                    continue
                described = _describe(_total(board, method, against, bucket, border), names)
                if distances is not None and not against:
                    count, distance = distances.get(method, {}).get((bucket, border), (0, None))
                    described["metrics"][FID] = {"count": count, "mean": distance, "error": None}
                cells.append({**place, "method": method, **({"minus": against} if against else {}), **described})
    return parts


def show(name: str, found: Mapping, sign: bool = False) -> str:
    """``mean ± standard error``; the mean alone if it has no error, a dash if there is no mean."""
    if found["mean"] is None:
        return "–"
    text = METRICS[name].format(found["mean"], "+" if sign else "")
    return text if found["error"] is None else f"{text} ± {METRICS[name].format(found['error'])}"


def _heading(name: str) -> str:
    metric = METRICS[name]
    return f"{metric.heading}, holes" if metric.region == HOLES else metric.heading


def pairs_note(cell: Mapping) -> str:
    """Number of pairs, and how many of them are missing from means."""
    if not cell["pairs"]:
        return "none"
    notes = [f"{cell[name]} {name}" for name in ("failed", "exact") if cell[name]]
    return str(cell["pairs"]) + (f" ({', '.join(notes)})" if notes else "")


def format_table(cells: Sequence[dict], differences: bool = False) -> str:
    """Markdown of `summarize`'s cells."""
    names = list(cells[0]["metrics"])
    heads = ["hole ratio", "border", "method", "pairs", *map(_heading, names)]
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|--:|" + "--:|" * len(names)]
    for cell in cells:
        method = f"{cell['method']} − {cell['minus']}" if differences else cell["method"]
        values = [show(name, cell["metrics"][name], differences) for name in names]
        lines.append(f"| {' | '.join([cell['interval'], cell['border'], method, pairs_note(cell), *values])} |")
    return "\n".join(lines) + "\n"


def notes(report: dict) -> str:
    """How to read the scores: the text below them."""
    return f"{NOTES} {FID_NOTE}" if FID in report["metrics"] else NOTES


def published_rows() -> list[list[str]]:
    """Interval and the values of `PUBLISHED_METRICS`, printed."""
    return [
        [interval_name(bucket), *(f"{value:.{METRICS[name].decimals}f}" for name, value in values.items())]
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
        heads = ["hole ratio", *map(_heading, PUBLISHED_METRICS)]
        lines = [heads, ["---", *["--:"] * len(PUBLISHED_METRICS)], *published_rows()]
        parts += ["## Published\n", PUBLISHED_NOTE + "\n", "".join(f"| {' | '.join(line)} |\n" for line in lines)]
    return "\n".join(parts)
