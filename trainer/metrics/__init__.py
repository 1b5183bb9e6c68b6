"""Image quality metrics: `METRICS` describes them, the modules of this folder compute them."""

from trainer.metrics.table import HOLES, IMAGE, METRICS, Metric, validation_metrics

__all__ = ["HOLES", "IMAGE", "METRICS", "Metric", "validation_metrics"]
