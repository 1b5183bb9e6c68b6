"""``report.html``: one file with tables, curves and pictures that needs no network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from masks.coverage import RATIO_BUCKETS
from pipelines.evaluation import gallery, scoreboard
from pipelines.evaluation.charts import COLOURS, MARKS, Point, Series, line_chart, mark, ticks
from pipelines.evaluation.pairing import BORDERS
from pipelines.evaluation.scoreboard import ANY, BUCKETS, pairs_note, show
from pipelines.training_curves import Curve
from trainer.metrics import HOLES, IMAGE, METRICS
from trainer.metrics.intervals import interval_name

TEMPLATE = Path(__file__).parent / "report.html"
REGIONS = {"whole image": IMAGE, "holes": HOLES}  # by their name on the page's switch
X_TICKS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
DODGE = 0.006  # of hole ratio, between the error bars of two methods
_PUBLISHED = "paper"


def _names(report: dict, region: str) -> dict[str, str]:
    """Headings by name of the region's metrics that a report or a cell has."""
    shown = ((name, metric) for name, metric in METRICS.items() if metric.region == REGIONS[region])
    return {name: metric.heading for name, metric in shown if name in report["metrics"]}


def text(value: object) -> str:
    return html.escape(str(value))


def render_page(
    report: dict,
    rows: Sequence[dict],
    chosen: dict[int, tuple[int, str]],
    pictures: Sequence[tuple[int, str, bytes]],
    curves: dict[str, dict[str, Curve]],
    published: bool,
) -> str:
    """The page.

    Args:
        report: contents of metrics.json.
        rows: all rows.
        chosen: from `gallery.choose_pairs`.
        pictures: (pair, method or `gallery.TARGET` or `gallery.HOLES`, JPEG).
        curves: of each run by name, by tag.
        published: whether to show the paper's numbers.
    """
    methods = [method["name"] for method in report["methods"]]
    counts = report["counts"]
    first = report["methods"][0]
    lead = f"{counts['pairs']:,} pairs of {counts['masks']:,} masks · {first['name']} is {first['address']}"
    parts = {
        "lead": text(lead),
        "problems": _problems(counts),
        "switches": _switch("region", REGIONS) + _switch("border", (ANY, *reversed(BORDERS))),
        "legend": _legend(methods, published),
        "charts": _each_view(lambda region, border: _charts(report, methods, region, border, published)),
        "table": _each_view(lambda region, border: _table(report["cells"], _names(report, region), border)),
        "differences": _differences(report),
        "published": _published() if published else "",
        "notes": text(scoreboard.notes(report)),
        "choices": _choice("left", (gallery.HOLES, gallery.TARGET, *methods))
        + _choice("right", (*methods, gallery.TARGET)),
        "gallery": _gallery(report, rows, chosen, pictures, methods),
        "training-link": '<a href="#training">Training</a> ' if any(curves.values()) else "",
        "training": _all_training(curves),
        "details": _details(report),
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    for name, part in parts.items():
        page = page.replace(f"<!--{name}-->", part)
    return page


def _problems(counts: dict) -> str:
    if not counts["failed"]:
        return ""
    said = f"{counts['failed']:,} of {counts['rows']:,} pictures failed and enter no mean: see pairs.jsonl."
    return f'<p class="problem" role="note">{text(said)}</p>'


def _switch(name: str, values: Sequence[str]) -> str:
    inputs = "".join(
        f'<label><input type="radio" name="{name}" value="{text(value)}"{" checked" if i == 0 else ""}>'
        f"<span>{text(value)}</span></label>"
        for i, value in enumerate(values)
    )
    return f'<fieldset class="switch"><legend>{name}</legend>{inputs}</fieldset>'


def _choice(side: str, names: Sequence[str]) -> str:
    options = "".join(f"<option>{text(name)}</option>" for name in names)
    return f'<label>{side}<select name="{side}">{options}</select></label>'


def _each_view(draw: Callable[[str, str], str]) -> str:
    """What ``draw(region, border)`` gives for every combination, of which the page shows one."""
    views = []
    for region in REGIONS:
        for border in (ANY, *BORDERS):
            hidden = "" if (region, border) == (next(iter(REGIONS)), ANY) else " hidden"
            views.append(
                f'<div class="view" data-region="{region}" data-border="{border}"{hidden}>{draw(region, border)}</div>'
            )
    return "".join(views)


def _legend(methods: Sequence[str], published: bool) -> str:
    names = [(name, i, f"mark c{i % COLOURS}") for i, name in enumerate(methods)]
    if published:
        names.append(("paper (other data)", _published_number(methods), "mark hollow c7"))
    items = (
        f'<li><svg viewBox="0 0 12 12" aria-hidden="true">{mark(i, 6, 6, classes)}</svg>{text(name)}</li>'
        for name, i, classes in names
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _published_number(methods: Sequence[str]) -> int:
    """A number with the last colour and the marker after those of the methods."""
    return next(n for n in range(COLOURS - 1, 99 * COLOURS, COLOURS) if n % len(MARKS) == (COLOURS - 1) % len(MARKS))


def _charts(report: dict, methods: Sequence[str], region: str, border: str, published: bool) -> str:
    charts = []
    for name, title in _names(report, region).items():
        factor, decimals = METRICS[name].factor, METRICS[name].decimals
        series = []
        for i, method in enumerate(methods):
            points = []
            for cell in report["cells"]:
                if cell["method"] != method or cell["border"] != border or cell["bucket"] not in BUCKETS:
                    continue
                found = cell["metrics"][name]
                if found["mean"] is not None:
                    low, high = RATIO_BUCKETS[cell["bucket"]]
                    x = (low + high) / 2 + (i - (len(methods) - 1) / 2) * DODGE
                    error = None if found["error"] is None else factor * found["error"]
                    label = f"{cell['interval']}: {show(name, found)}, {found['count']} pairs"
                    points.append(Point(x, factor * found["mean"], error, label))
            series.append(Series(method, i, points))
        if published and name in scoreboard.PUBLISHED_METRICS and border == scoreboard.PUBLISHED_BORDER:
            values = [(sum(RATIO_BUCKETS[b]) / 2, v[name], b) for b, v in scoreboard.PUBLISHED.items()]
            points = [Point(x, y, None, f"{interval_name(b)}: {y:.{decimals}f}") for x, y, b in values]
            series.append(Series(_PUBLISHED, _published_number(methods), points, joined=False))
        chart = line_chart(title, series, "hole ratio, %", X_TICKS, lambda x: f"{100 * x:.0f}")
        charts.append(f"<figure><figcaption>{title}</figcaption>{chart}</figure>")
    return f'<div class="charts">{"".join(charts)}</div>'


def _value(name: str, found: dict, sign: bool, best: bool = False) -> str:
    mean, _, error = show(name, found, sign).replace("-", "−").partition(" ± ")
    mean = f"<b>{mean}</b>" if best else mean
    return f"<td>{mean}" + (f"<small> ±&#8239;{error}</small>" if error else "") + "</td>"


def _table(cells: Sequence[dict], names: dict[str, str], border: str, sign: bool = False) -> str:
    """One body per interval; the best mean of each is bold, but not among differences."""
    heads = "".join(f"<th>{text(title)}</th>" for title in names.values())
    bodies: dict[str, list[dict]] = {}
    for cell in cells:
        if cell["border"] == border:
            bodies.setdefault(cell["interval"], []).append(cell)
    # With more columns than fit on a phone, method names get lines of their own there.
    style = f' class="wide" style="--columns:{1 + len(names)}"' if len(names) > 3 else ""
    parts = [f"<table{style}><thead><tr><th>method</th><th>pairs</th>{heads}</tr></thead>"]
    for interval, members in bodies.items():
        label = "all hole ratios" if interval == ANY else f"hole ratio {interval}"
        parts.append(
            f'<tbody><tr class="interval"><th colspan="{2 + len(names)}" scope="rowgroup">{text(label)}</th></tr>'
        )
        best = {}
        for name in names:
            means = [cell["metrics"][name]["mean"] for cell in members]
            means = [mean for mean in means if mean is not None]
            best[name] = (max if METRICS[name].higher_is_better else min)(means, default=None)
        for cell in members:
            found = [(name, cell["metrics"][name]) for name in names]
            values = "".join(
                _value(n, f, sign, not sign and f["mean"] is not None and f["mean"] == best[n]) for n, f in found
            )
            method = f"{cell['method']} − {cell['minus']}" if sign else cell["method"]
            parts.append(f'<tr><th scope="row">{text(method)}</th><td>{text(pairs_note(cell))}</td>{values}</tr>')
        parts.append("</tbody>")
    return "".join([*parts, "</table>"])


def _differences(report: dict) -> str:
    if not report["differences"]:
        return ""
    heading = f"Differences to {report['reference']}"
    said = "Of the same pairs: mean and standard error of each method's value minus that of the first."
    cells = report["differences"]
    tables = _each_view(lambda region, border: _table(cells, _names(cells[0], region), border, True))
    return f"<details><summary>{text(heading)}</summary><p>{said}</p>{tables}</details>"


def _published() -> str:
    heads = "".join(f"<th>{text(METRICS[name].heading)}</th>" for name in scoreboard.PUBLISHED_METRICS)
    rows = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>' + "".join(f"<td>{value}</td>" for value in row[1:]) + "</tr>"
        for row in scoreboard.published_rows()
    )
    table = f'<table class="narrow"><thead><tr><th>hole ratio</th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return f"<h3>Published</h3><p>{text(scoreboard.PUBLISHED_NOTE)}</p>{table}"


def _gallery(report: dict, rows, chosen, pictures, methods: Sequence[str]) -> str:
    by_pair: dict[int, dict[str, bytes]] = {}
    for pair, name, data in pictures:
        by_pair.setdefault(pair, {})[name] = data
    of_pair: dict[int, dict[str, dict]] = {}
    for row in rows:
        if row["pair"] in chosen:
            of_pair.setdefault(row["pair"], {})[row["method"]] = row
    order = sorted(chosen, key=lambda pair: (chosen[pair][0], gallery.RANKS.index(chosen[pair][1])))
    parts, last = [], None
    for pair in order:
        bucket, rank = chosen[pair]
        if bucket != last:
            parts.append(("</div>" if parts else "") + f"<h3>hole ratio {interval_name(bucket)}</h3>")
            parts.append('<div class="cards">')
            last = bucket
        parts.append(_card(pair, rank, by_pair.get(pair, {}), of_pair[pair], methods))
    return "".join(parts) + "</div>" if parts else '<p class="nothing">No pair has scores.</p>'


def _card(pair: int, rank: str, found: dict[str, bytes], rows: dict[str, dict], methods: Sequence[str]) -> str:
    images = []
    for name in (gallery.HOLES, *methods, gallery.TARGET):
        if name in found:
            side = {gallery.HOLES: " left", methods[0]: " right"}.get(name, "")
            data = base64.b64encode(found[name]).decode()
            images.append(
                f'<img class="picture{side}" data-name="{text(name)}" alt="{text(name)}, pair {pair}" '
                f'src="data:image/jpeg;base64,{data}">'
            )
    row = rows[methods[0]]
    name = row["image"].rpartition("/")[2]
    values = {method: {"mean": rows[method].get("psnr_holes"), "error": None} for method in methods}
    scores = "".join(f"<div><dt>{text(m)}</dt><dd>{show('psnr_holes', values[m])}</dd></div>" for m in methods)
    return (
        f'<figure class="card"><div class="compare">{"".join(images)}'
        f'<span class="side at-left">{gallery.HOLES}</span><span class="side at-right">{text(methods[0])}</span>'
        f'<input type="range" min="0" max="100" value="50" step="1" aria-label="Compare, pair {pair}"></div>'
        f"<figcaption><p><b>{rank}</b> {100 * row['hole_ratio']:.0f} % holes · pair {pair}</p>"
        f"<p>{text(name)}</p><dl>{scores}</dl></figcaption></figure>"
    )


def _all_training(curves: dict[str, dict[str, Curve]]) -> str:
    parts = [_training(name, found) for name, found in curves.items() if found]
    return "<h2>Training</h2>" + "".join(parts) if parts else ""


def _training(name: str, curves: dict[str, Curve]) -> str:
    figures = []
    for tag, curve in curves.items():
        end = ticks(0, max(step for step, _ in curve), 4)
        points = [Point(step, value, None, f"step {step:,}: {value:.4g}") for step, value in curve]
        few = len(points) <= 20
        chart = line_chart(f"{name}: {tag}", [Series(tag, 0, points, marked=few)], "step", end, lambda x: f"{x:,.0f}")
        figures.append(f"<figure><figcaption>{text(tag)}</figcaption>{chart}</figure>")
    return f'<h3>{text(name)}</h3><div class="charts">{"".join(figures)}</div>'


def _details(report: dict) -> str:
    names = ("code_version", "parameters", "counts", "masks_found", "data", "methods", "lpips", "fid")
    blocks = (
        f"<details><summary>{text(key.replace('_', ' '))}</summary>"
        f"<pre>{text(json.dumps(value, indent=1, sort_keys=True))}</pre></details>"
        for key, value in ((name, report[name]) for name in names)
        if value is not None
    )
    return "".join(blocks)
