"""``report.html``: scores, curves and images in one file that needs no network. ``report.html.j2`` is its markup."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from masks.coverage import RATIO_BUCKETS
from pipelines.evaluation import charts, gallery, scoreboard
from pipelines.evaluation.charts import Chart, Point, Series, line_chart, marker, ticks
from pipelines.evaluation.pairing import BORDERS
from pipelines.evaluation.scoreboard import ANY, BUCKETS, pairs_note, show
from trainer.metrics import HOLES, IMAGE, METRICS
from trainer.metrics.intervals import interval_name
from trainer.tensorboard import Curve

TEMPLATE = Path(__file__).with_name("report.html.j2")
REGIONS = {"whole image": IMAGE, "holes": HOLES}  # by their name on the page's switch
X_TICKS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
DODGE = 0.006  # hole ratio between the error bars of neighboring methods
PUBLISHED_NUMBER = charts.COLORS - 1  # color and marker of the published scores
# Control characters, lone surrogates and overrides of the writing direction, written as in Python: a browser drops the
# first, UTF-8 has no second, and the last reorder the text around them.
_HIDDEN = (*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: repr(chr(code))[1:-1] for code in _HIDDEN if chr(code) not in "\n\t"}


@dataclass(frozen=True)
class Score:
    """A cell of a table: the mean and its standard error (empty: none) as texts."""

    mean: str
    error: str
    best: bool


@dataclass(frozen=True)
class Row:
    method: str
    pairs: str
    scores: list[Score]


@dataclass(frozen=True)
class Table:
    """Titles of the metrics, and the rows by interval."""

    heads: list[str]
    bodies: dict[str, list[Row]]


@dataclass(frozen=True)
class View:
    """What the page shows of one region and one border class."""

    region: str
    border: str
    charts: list[Chart]
    scores: Table
    differences: Table | None


@dataclass(frozen=True)
class Card:
    """One pair of the gallery: JPEGs in base64 by name, left to right, and PSNR inside the holes by method."""

    pair: int
    rank: str
    name: str
    hole_ratio: float
    images: dict[str, str]
    scores: dict[str, str]


def render_page(
    report: dict,
    rows: Sequence[dict],
    chosen: dict[int, tuple[int, str]],
    images: Sequence[tuple[int, str, bytes]],
    curves: dict[str, dict[str, Curve]],
    published: bool,
) -> str:
    """The page as HTML.

    Args:
        report: contents of metrics.json.
        rows: all rows.
        chosen: from `gallery.choose_pairs`.
        images: (pair, method or `gallery.TARGET` or `gallery.HOLES`, JPEG).
        curves: by run and tag.
        published: whether to show the paper's scores.
    """
    methods = [method["name"] for method in report["methods"]]
    legend = [(name, marker(number, 6, 6)) for number, name in enumerate(methods)]
    if published:
        legend.append(("paper (other data)", marker(PUBLISHED_NUMBER, 6, 6, hollow=True)))
    return _template().render(
        report=report,
        methods=methods,
        holes=gallery.HOLES,
        target=gallery.TARGET,
        regions=list(REGIONS),
        borders=(ANY, *reversed(BORDERS)),
        legend=legend,
        views=[_view(report, region, border, published) for region in REGIONS for border in (ANY, *BORDERS)],
        notes=scoreboard.notes(report),
        published=_published() if published else None,
        gallery=_gallery(rows, chosen, images, methods),
        training={run: _training(run, found) for run, found in curves.items() if found},
        details=_details(report),
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_show_hidden,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"px": "{:.1f}".format, "thousands": "{:,}".format}
    environment.globals["frame"] = (charts.WIDTH, charts.HEIGHT, charts.LEFT, charts.RIGHT, charts.BOTTOM)
    return environment.get_template(TEMPLATE.name)


def _show_hidden(value: object) -> object:
    """Characters that others must not slip into the page become escapes; markup of the template stays as it is."""
    return value.translate(_ESCAPES) if isinstance(value, str) and not isinstance(value, Markup) else value


def _names(report: Mapping, region: str) -> list[str]:
    """The region's metrics that a report or a cell has."""
    return [name for name, metric in METRICS.items() if metric.region == REGIONS[region] and name in report["metrics"]]


def _view(report: dict, region: str, border: str, published: bool) -> View:
    differences = report["differences"]
    return View(
        region,
        border,
        [_chart(report, name, border, published) for name in _names(report, region)],
        _table(report["cells"], _names(report, region), border),
        _table(differences, _names(differences[0], region), border, sign=True) if differences else None,
    )


def _chart(report: dict, name: str, border: str, published: bool) -> Chart:
    """A metric over the hole ratio, one series per method."""
    metric = METRICS[name]
    methods = [method["name"] for method in report["methods"]]
    series = []
    for number, method in enumerate(methods):
        points = []
        for cell in report["cells"]:
            found = cell["metrics"][name]
            if (cell["method"], cell["border"]) != (method, border) or cell["bucket"] not in BUCKETS:
                continue
            if found["mean"] is not None:
                x = _middle(cell["bucket"]) + (number - (len(methods) - 1) / 2) * DODGE
                error = None if found["error"] is None else metric.factor * found["error"]
                label = f"{cell['interval']}: {show(name, found)}, {found['count']} pairs"
                points.append(Point(x, metric.factor * found["mean"], error, label))
        series.append(Series(method, number, points))
    if published and name in scoreboard.PUBLISHED_METRICS and border == scoreboard.PUBLISHED_BORDER:
        printed = {bucket: values[name] for bucket, values in scoreboard.PUBLISHED.items()}
        points = [
            Point(_middle(bucket), value, None, f"{interval_name(bucket)}: {value:.{metric.decimals}f}")
            for bucket, value in printed.items()
        ]
        series.append(Series("paper", PUBLISHED_NUMBER, points, joined=False))
    return line_chart(metric.heading, series, "hole ratio, %", X_TICKS, lambda x: f"{100 * x:.0f}")


def _middle(bucket: int) -> float:
    return sum(RATIO_BUCKETS[bucket]) / 2


def _table(cells: Iterable[dict], names: Sequence[str], border: str, sign: bool = False) -> Table:
    """The best mean of each interval is marked, but not among differences, which have a ``sign``."""
    intervals: dict[str, list[dict]] = {}
    for cell in cells:
        if cell["border"] == border:
            intervals.setdefault(cell["interval"], []).append(cell)
    bodies = {}
    for interval, members in intervals.items():
        best = {} if sign else {name: _best(name, members) for name in names}
        bodies["all hole ratios" if interval == ANY else f"hole ratio {interval}"] = [
            Row(
                f"{cell['method']} − {cell['minus']}" if sign else cell["method"],
                pairs_note(cell),
                [_score(name, cell["metrics"][name], sign, best.get(name)) for name in names],
            )
            for cell in members
        ]
    return Table([METRICS[name].heading for name in names], bodies)


def _best(name: str, cells: Sequence[dict]) -> float | None:
    means = [cell["metrics"][name]["mean"] for cell in cells]
    return (max if METRICS[name].higher_is_better else min)((mean for mean in means if mean is not None), default=None)


def _score(name: str, found: dict, sign: bool, best: float | None) -> Score:
    mean, _, error = show(name, found, sign).replace("-", "−").partition(" ± ")
    return Score(mean, error, best is not None and found["mean"] == best)


def _published() -> dict:
    heads = ["hole ratio", *(METRICS[name].heading for name in scoreboard.PUBLISHED_METRICS)]
    return {"note": scoreboard.PUBLISHED_NOTE, "heads": heads, "rows": scoreboard.published_rows()}


def _gallery(rows: Sequence[dict], chosen: dict, images: Sequence, methods: Sequence[str]) -> dict[str, list[Card]]:
    """Cards by interval; in each the best pair first."""
    encoded = {(pair, name): base64.b64encode(data).decode() for pair, name, data in images}
    found = {(row["pair"], row["method"]): row for row in rows if row["pair"] in chosen}
    cards: dict[str, list[Card]] = {}
    for pair in sorted(chosen, key=lambda pair: (chosen[pair][0], gallery.RANKS.index(chosen[pair][1]))):
        bucket, rank = chosen[pair]
        row = found[pair, methods[0]]
        psnr = {method: found[pair, method].get("psnr_holes") for method in methods}
        names = [name for name in (gallery.HOLES, *methods, gallery.TARGET) if (pair, name) in encoded]
        card = Card(
            pair,
            rank,
            row["image"].rpartition("/")[2],
            row["hole_ratio"],
            images={name: encoded[pair, name] for name in names},
            scores={method: show("psnr_holes", {"mean": psnr[method], "error": None}) for method in methods},
        )
        cards.setdefault(interval_name(bucket), []).append(card)
    return cards


def _training(run: str, curves: dict[str, Curve]) -> dict[str, Chart]:
    """Charts of one run by tag; short curves have markers."""
    drawn = {}
    for tag, curve in curves.items():
        points = [Point(step, value, None, f"step {step:,}: {value:.4g}") for step, value in curve]
        series = [Series(tag, 0, points, marked=len(points) <= 20)]
        x_ticks = ticks(0, max(step for step, _ in curve), 4)
        drawn[tag] = line_chart(f"{run}: {tag}", series, "step", x_ticks, lambda x: f"{x:,.0f}")
    return drawn


def _details(report: dict) -> dict[str, str]:
    names = ("code_version", "parameters", "counts", "masks_found", "data", "methods", "lpips", "fid")
    values = {name.replace("_", " "): report[name] for name in names if report[name] is not None}
    return {name: json.dumps(value, indent=1, sort_keys=True) for name, value in values.items()}
