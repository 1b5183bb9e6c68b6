"""The mask dataset job: plan, sources, sampling."""
