"""What a report says of classifiers besides their scores: fidelity to the teacher, and calibration."""

from collections.abc import Sequence, Set

import pandas as pd

from distillery.results.layout import CALIBRATION as PICTURE
from distillery.results.report.collect import Run
from distillery.results.report.formats import cells, class_fidelity_columns
from distillery.results.report.markdown import section, table_of

DEFINITIONS = """
Means over the {rows} of the test split, and over seeds. **KL**: KL(teacher ‖ student) of the class probabilities, in
nats. **CKA**: linear centered kernel alignment of what the heads of teacher and student read, for up to 1,024 of them:
1 where the features are alike, about 0 where they have nothing in common (Kornblith et al. 2019; unbiased estimates of
Nguyen et al. 2021). **ECE**: expected calibration error of the likeliest class in 15 bins of equal width (Guo et al.
2017); **adaptive**: of equally many {rows}. **Brier**: Σ (p − y)² over the classes. **NLL**: −log p of the right class,
in nats."""
CAPTION = """
Left: share of the predictions that are right by the probability they are made with, over all seeds; a calibrated
network is on the grey line, an overconfident one below it. Larger dots stand for more {rows}. Right: score against
divergence from the teacher; small dots are seeds. A student may score well and still differ from its teacher (Stanton
et al. 2021)."""


def calibration_section(table: pd.DataFrame, students: Sequence[Run], pictures: Set[str]) -> str:
    """Table, definitions and picture (if there is one); empty where nothing is known."""
    shown = class_fidelity_columns(table)
    if not shown:
        return ""
    counted = next((run.record.fidelity["student"] for run in students if "student" in run.record.fidelity), {})
    rows = "tokens" if "tokens" in counted else "samples"
    picture = f"![Reliability of the predictions, and score by divergence from the teacher]({PICTURE})"
    return section(
        "Fidelity and calibration",
        table_of(["method", *(column.heading for column in shown)], cells(table, shown)),
        DEFINITIONS.format(rows=rows),
        f"{picture}\n{CAPTION.format(rows=rows)}" if PICTURE in pictures else "",
    )
