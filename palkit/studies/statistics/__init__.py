"""Statistics of a table of rounds: areas under budget curves, intervals, paired comparisons, labels saved.

Intervals are Student's t over seeds (Welch's over several data sets, each with its own spread): with other seeds, on
these data sets and test images, 95 % of them hold the true value. They are not about other data sets.

Every function takes the table of rounds, one row per run and round, and changes nothing. Columns: `run`
(hash of the config), what was run (`dataset`, `backbone`, `adapter`, `strategy`, `balance`, `seed`), `round`,
`labels` (bought so far), the metrics and the timings. Runs of one seed share their initial set, so
differences between configurations are taken seed by seed.

Functions that group rows expect one run per seed in each group: averaging over data sets, or over runs that
differ in something the table does not show, would be a number about nothing. They say so and name the runs.
"""

from palkit.studies.statistics.aggregate import area_table, iqm, iqm_curves, iqm_interval
from palkit.studies.statistics.costs import area_costs, pareto_front
from palkit.studies.statistics.crossing import Crossing, crossing, crossings, gain_curves
from palkit.studies.statistics.intervals import (
    Estimate,
    area_under_curve,
    curves,
    estimate,
    holm,
    mean_interval,
    paired_difference,
    summarise,
)
from palkit.studies.statistics.pairs import against, gains, penalty_matrix, selection_overlap
from palkit.studies.statistics.ranks import Ranking, block_areas, rank_strategies
from palkit.studies.statistics.saving import label_saving
from palkit.studies.statistics.tables import GROUP, REFERENCE, SETTING, TIE, sign_of

__all__ = [
    "GROUP", "REFERENCE", "SETTING", "TIE", "Crossing", "Estimate", "Ranking", "against", "area_costs", "area_table",
    "area_under_curve", "block_areas", "crossing", "crossings", "curves", "estimate", "gain_curves", "gains", "holm",
    "iqm", "iqm_curves", "iqm_interval", "label_saving", "mean_interval", "paired_difference", "pareto_front",
    "penalty_matrix", "rank_strategies", "selection_overlap", "sign_of", "summarise",
]  # fmt: skip
