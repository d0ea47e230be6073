"""Every figure of the notebooks: data in, a matplotlib Figure out; and the tables for a page.

Figures use the object-oriented interface, so nothing is registered with pyplot, shown or leaked; a notebook
displays a figure by returning it (after `%matplotlib inline`). They are 7 inches wide or less, the text width
of a page, in 8 point type. A strategy has the same colour and marker in every figure, and an adapter has its
own panel or its own filling, so that figures stay readable without colour.
"""

from palkit.studies.plots.calibration import calibration_curves, reliability_diagrams
from palkit.studies.plots.comparison import class_recalls, critical_difference, regret_strips
from palkit.studies.plots.costs import cost_areas, cost_quality
from palkit.studies.plots.labelling import session_curve, test_savings
from palkit.studies.plots.pool import class_counts, confusion, depth_curves, image_grid, projection
from palkit.studies.plots.selection import pick_maps, pick_strips, selection_times
from palkit.studies.plots.study import (
    area_under_curves,
    budget_curves,
    gain_curves,
    iqm_budget_curves,
    label_savings,
    overlaps,
    pairwise,
    picks_by_class,
    round_costs,
)
from palkit.studies.plots.style import (
    configuration_columns,
    configuration_name,
    entitle,
    run_digest,
    save_figure,
    strategy_style,
)
from palkit.studies.plots.tables import table_files, wide_areas

__all__ = [
    "area_under_curves", "budget_curves", "calibration_curves", "class_counts", "class_recalls",
    "configuration_columns", "configuration_name", "confusion", "cost_areas", "cost_quality", "critical_difference",
    "depth_curves", "entitle", "gain_curves", "image_grid", "iqm_budget_curves", "label_savings", "overlaps",
    "pairwise", "pick_maps", "pick_strips", "picks_by_class", "projection", "regret_strips", "reliability_diagrams",
    "round_costs", "run_digest", "save_figure", "selection_times", "session_curve", "strategy_style", "table_files",
    "test_savings", "wide_areas",
]  # fmt: skip
