"""From rows of scores to cells: count, mean and standard error by interval, border class and method.

A row is a dict of one pair and one method: ``pair``, ``bucket``, ``border``, ``method`` and metrics of `SHOWN`, of
which those that are no finite number are None; a pair that a method gave no picture for has ``error`` instead.
Sums are exact (`trainer.metrics.intervals.Sum`), so they are the same however the rows were split and in which
order they came.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import apache_beam as beam

from masks.coverage import RATIO_BUCKETS
from pipelines.evaluation.pairing import BORDERS, OTHER
from trainer.metrics.intervals import METRICS, Cell, Sum

ANY = "all"  # in place of an interval or of a border class
BUCKETS = tuple(range(len(RATIO_BUCKETS)))
LPIPS, FID = "lpips", "fid"  # where their weights are given; rows hold no FID, which is of many pictures
# Every metric, and how it is shown: heading, factor, decimals, whether more is better.
SHOWN = {
    "psnr": ("PSNR", 1, 2, True),
    "psnr_holes": ("PSNR holes", 1, 2, True),
    "ssim": ("SSIM", 1, 3, True),
    "ssim_holes": ("SSIM holes", 1, 3, True),
    "l1": ("l1 %", 100, 2, False),
    "l1_holes": ("l1 % holes", 100, 2, False),
    LPIPS: ("LPIPS", 1, 3, False),
    FID: ("FID", 1, 2, False),
}


def interval_name(bucket: int | str) -> str:
    """An interval as the paper writes it."""
    if bucket in (ANY, OTHER):
        return ANY if bucket == ANY else "other"
    return "({:g}, {:g}]".format(*RATIO_BUCKETS[bucket])


# By method, the method that is subtracted from it ("": none), interval, border class.
Board = dict[tuple[str, str, int, int], Cell]


def board_of(rows: Iterable[Mapping], reference: str) -> Board:
    """Sums of one pair's rows, and of their differences to the row of the method ``reference``."""
    rows, board = list(rows), {}
    by_method = {row["method"]: row for row in rows}
    against = by_method.get(reference)
    for row in rows:
        board[row["method"], "", row["bucket"], row["border"]] = Cell.of(row, SHOWN)
        if against is not None and row is not against:
            both = [name for name in SHOWN if row.get(name) is not None and against.get(name) is not None]
            # No pair of differences is exact: a difference of 0 is one like any other.
            sums = {name: Sum.of(row[name] - against[name]) for name in both}
            board[row["method"], reference, row["bucket"], row["border"]] = Cell(1, int("l1" not in sums), 0, sums)
    return board


def merge_into(board: Board, other: Board) -> Board:
    """Adds ``other`` to ``board``, which is returned."""
    for key, cell in other.items():
        board[key] = board[key] + cell if key in board else cell
    return board


class TallyRows(beam.CombineFn):
    """Merges `board_of` every pair's rows."""

    def __init__(self, reference: str):
        self._reference = reference

    def create_accumulator(self) -> Board:
        return {}

    def add_input(self, board: Board, rows: Iterable[Mapping]) -> Board:
        return merge_into(board, board_of(rows, self._reference))

    def merge_accumulators(self, boards: Iterable[Board]) -> Board:
        total: Board = {}
        for board in boards:
            merge_into(total, board)
        return total

    def extract_output(self, board: Board) -> Board:
        return board


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _describe(cell: Cell, names: Sequence[str]) -> dict:
    sums = {name: cell.sums.get(name, Sum()) for name in names}
    metrics = {n: {"count": s.count, "mean": _finite(s.mean), "error": _finite(s.error)} for n, s in sums.items()}
    return {"pairs": cell.pairs, "failed": cell.failed, "exact": cell.exact, "metrics": metrics}


def summarize(
    board: Board, methods: Sequence[str], reference: str, distances: Mapping[str, Mapping] | None = None
) -> tuple[list[dict], list[dict]]:
    """Cells of every method, and those of the differences to ``reference``: JSON values, every interval x border class.

    Cells without pairs are there too; their means are None. Masks outside of all intervals have cells if there are any.

    Args:
        distances: FID by method, and there by interval and border class: (pairs, distance). It stands as ``mean``
            although it is none; it has no error, and no differences.
    """
    outside = any(bucket == OTHER for _, _, bucket, _ in board)
    names = [name for name in SHOWN if name in METRICS or any(name in cell.sums for cell in board.values())]
    places = [(b, c) for b in (*BUCKETS, *([OTHER] if outside else []), ANY) for c in (*range(len(BORDERS)), ANY)]
    parts: tuple[list[dict], list[dict]] = ([], [])
    for against, cells in zip(("", reference), parts, strict=True):
        for bucket, border in places:
            for method in methods:
                if method == against:
                    continue
                total = Cell()
                for (name, other, in_bucket, in_border), cell in board.items():
                    fits = bucket in (ANY, in_bucket) and border in (ANY, in_border)
                    if (name, other) == (method, against) and fits:
                        total = total + cell
                border_name = ANY if border == ANY else BORDERS[border]
                place = {"bucket": bucket, "interval": interval_name(bucket), "border": border_name}
                against_name = {"minus": against} if against else {}
                described = _describe(total, names)
                if distances is not None and not against:
                    count, distance = distances.get(method, {}).get((bucket, border), (0, None))
                    described["metrics"][FID] = {"count": count, "mean": distance, "error": None}
                cells.append({**place, "method": method, **against_name, **described})
    return parts


def show(name: str, found: Mapping, sign: bool = False) -> str:
    """``mean ± standard error``, the mean alone of one value, a dash of none."""
    _, factor, decimals, _ = SHOWN[name]
    if found["mean"] is None:
        return "–"
    text = f"{factor * found['mean']:{'+' if sign else ''}.{decimals}f}"
    return text if found["error"] is None else f"{text} ± {factor * found['error']:.{decimals}f}"


def pairs_note(cell: Mapping) -> str:
    """How many pairs the means are of, and how many they are not of."""
    if not cell["pairs"]:
        return "none"
    notes = [f"{cell[name]} {name}" for name in ("failed", "exact") if cell[name]]
    return str(cell["pairs"]) + (f" ({', '.join(notes)})" if notes else "")


def format_table(cells: Sequence[dict], differences: bool = False) -> str:
    """Markdown of `summarize`'s cells."""
    names = list(cells[0]["metrics"])
    heads = ["hole ratio", "border", "method", "pairs", *(SHOWN[name][0] for name in names)]
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|--:|" + "--:|" * len(names)]
    for cell in cells:
        method = f"{cell['method']} − {cell['minus']}" if differences else cell["method"]
        values = [show(name, cell["metrics"][name], differences) for name in names]
        lines.append(f"| {' | '.join([cell['interval'], cell['border'], method, pairs_note(cell), *values])} |")
    return "\n".join(lines) + "\n"
