"""Reports: tables, figures and HTML pages from the files of runs. No model is loaded.

`write_report(run)` is the entry; the other names are helpers that `tools/` uses too.
"""

from tfrobust.report.compare import Row, comparison, differences, measured, named
from tfrobust.report.compare_page import write_comparison
from tfrobust.report.figures import amplification
from tfrobust.report.html import ReportTable, write_page
from tfrobust.report.record import Probes, RunRecord, load_run
from tfrobust.report.run_page import write_report
from tfrobust.report.search import write_search_report
from tfrobust.report.summary import (
    AccuracyRow,
    TrainingSummary,
    accuracy_rows,
    attack_settings,
    best_epoch,
    headline,
    in_order,
    is_worst_case,
    method_name,
    missing_from_paper,
    summarise_training,
)
from tfrobust.report.text import (
    NOTHING,
    duration,
    interval,
    markdown_escape,
    markdown_table,
    milliseconds,
    number,
    percent,
    points,
    threat_text,
)
from tfrobust.report.trials import (
    SearchTrial,
    best_trial,
    completed,
    read_trials,
    unbeaten,
    write_trials,
)

__all__ = [
    "NOTHING",
    "AccuracyRow",
    "Row",
    "Probes",
    "RunRecord",
    "SearchTrial",
    "ReportTable",
    "TrainingSummary",
    "accuracy_rows",
    "amplification",
    "attack_settings",
    "best_epoch",
    "best_trial",
    "comparison",
    "completed",
    "differences",
    "duration",
    "headline",
    "in_order",
    "interval",
    "is_worst_case",
    "load_run",
    "markdown_escape",
    "markdown_table",
    "measured",
    "method_name",
    "named",
    "milliseconds",
    "missing_from_paper",
    "number",
    "percent",
    "points",
    "read_trials",
    "summarise_training",
    "threat_text",
    "unbeaten",
    "write_comparison",
    "write_page",
    "write_report",
    "write_search_report",
    "write_trials",
]
