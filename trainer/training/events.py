"""What a run reports of itself, as lines for people.

Events are dicts with ``event``, their kind, and what else `describe` names; workers put them on a queue.
"""

from __future__ import annotations

from trainer.command import duration
from trainer.metrics import IMAGE, METRICS, validation_metrics
from trainer.metrics.intervals import ALL, interval_tag


class Describer:
    """Turns the events of one run into lines; it remembers how many steps there are."""

    def __init__(self):
        self._steps: int | str = "?"

    def __call__(self, event: dict) -> str:
        describe = getattr(self, f"_{event['event']}", None)
        return describe(event) if describe else f"{event['event']} {event['address']}"

    def _started(self, event: dict) -> str:
        self._steps = event["steps"]
        how = f"continues after step {event['step']}" if event["step"] else "starts"
        return f"training {how} of {self._steps} steps, {event['parameters']:,} parameters"

    def _step(self, event: dict) -> str:
        terms = "  ".join(f"{name} {value:.4f}" for name, value in event["terms"].items())
        speed = "compiled"
        if rate := event["images_per_second"]:
            left = duration(event["eta_seconds"])
            speed = f"{rate:.1f} images/s  waiting for data {event['data_wait']:.0%}  {left} left"
        return f"{event['phase']} step {event['step']}/{self._steps}  {terms}  {speed}"

    def _validation(self, event: dict) -> str:
        cells = event["cells"]
        every = cells[ALL]
        failed = f" ({every['failed']} failed: not finite)" if every["failed"] else ""
        first = validation_metrics(IMAGE)[0]  # the others stand without error and intervals: the line is long enough
        lead, error = METRICS[first], every[f"{first}_error"]
        scores = []
        for name in validation_metrics(IMAGE):
            metric = METRICS[name]
            value = metric.format(every[name]) + (f" +- {metric.format(error)}" if name == first else "")
            scores.append(f"{metric.title} {value} {metric.unit}".rstrip())
        by_interval = [f"{interval_tag(b)}: {lead.format(cell[first])}" for b, cell in cells.items() if b != ALL]
        return (
            f"validation step {event['step']}  {'  '.join(scores)}  of {every['count']} pairs{failed}  "
            f"({lead.title} by hole ratio  {'  '.join(by_interval)})"
        )

    def _checkpoint(self, event: dict) -> str:
        return f"checkpoint {event['address']}" + (" (best so far)" if event["best"] else "")

    def _notice(self, event: dict) -> str:
        return f"a machine will be taken away: saving step {event['step']} now"

    def _fallback(self, event: dict) -> str:
        return f"checkpoint {event['skipped']} cannot be read ({event['why']}): continuing from {event['address']}"

    def _skipped(self, event: dict) -> str:
        named = "; ".join(event["examples"])
        return (
            f"step {event['step']} left out, its loss is not finite ({event['skipped']} of {event['allowed']} allowed)"
            + (f"; examples of worker {event['worker']}: {named}" if named else "")
        )

    def _logs(self, event: dict) -> str:
        return f"logs could not be written, they will be with the next ones: {event['why']}"
