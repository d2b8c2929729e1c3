"""Drift: how far the states that a policy visits have moved from those of the base model.

Works on recorded rollouts, without a model and without torch. `measure_drift` is the way in; a distance is one function
in one file (see `comparison.Distance`) and one entry in `DISTANCES`.
"""

from statewise.drift.features import FeatureConfig
from statewise.drift.measure import DISTANCES, DriftConfig, DriftValue, measure_drift
from statewise.drift.rollout_records import rollouts_to_rows, rows_to_rollouts

__all__ = [
    "DISTANCES",
    "DriftConfig",
    "DriftValue",
    "FeatureConfig",
    "measure_drift",
    "rollouts_to_rows",
    "rows_to_rollouts",
]
