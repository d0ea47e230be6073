"""What a table of rounds says: areas under budget curves, intervals, paired comparisons, labels saved.

Every function takes the table of rounds, one row per run and round, and changes nothing. Columns: `run`
(hash of the config), what was run (`dataset`, `backbone`, `adapter`, `strategy`, `balance`, `seed`), `round`,
`labels` (bought so far), the metrics and the timings. Runs of one seed share their initial set, so
differences between configurations are taken seed by seed.

Functions that group rows expect one run per seed in each group: averaging over data sets, or over runs that
differ in something the table does not show, would be a number about nothing. They say so and name the runs.
"""

from palkit.statistics.aggregate import (
    area_table,
    iqm,
    iqm_areas,
    iqm_curves,
    iqm_interval,
    probability_of_improvement,
)
from palkit.statistics.costs import area_costs, pareto_front
from palkit.statistics.intervals import area_under_curve, bootstrap_interval, curves, paired_difference, summarise
from palkit.statistics.pairs import against, gains, penalty_matrix, selection_overlap
from palkit.statistics.ranks import Ranking, block_areas, rank_strategies
from palkit.statistics.saving import label_saving, label_saving_intervals
from palkit.statistics.tables import GROUP, LOWER_IS_BETTER, REFERENCE, SETTING, TIE, sign_of

__all__ = [
    "GROUP",
    "LOWER_IS_BETTER",
    "REFERENCE",
    "SETTING",
    "TIE",
    "Ranking",
    "against",
    "area_costs",
    "area_table",
    "area_under_curve",
    "block_areas",
    "bootstrap_interval",
    "curves",
    "gains",
    "iqm",
    "iqm_areas",
    "iqm_curves",
    "iqm_interval",
    "label_saving",
    "label_saving_intervals",
    "paired_difference",
    "pareto_front",
    "penalty_matrix",
    "probability_of_improvement",
    "rank_strategies",
    "selection_overlap",
    "sign_of",
    "summarise",
]
