"""The evaluation job: pair, fill, score, report."""
