"""The mask dataset job. `plan` says what to draw, `sources` reads what masks start from, `sampling` draws them.

Only `plan` is re-exported: the others import Beam.
"""

from pipelines.mask_dataset.plan import SPLITS, TEST_SETS, Plan, make_plan, parameters_of, places_of

__all__ = ["SPLITS", "TEST_SETS", "Plan", "make_plan", "parameters_of", "places_of"]
