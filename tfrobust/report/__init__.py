"""Reports: tables, figures and HTML pages from the files of runs. No model is loaded.

`write_report(folder)` writes the page of a run; `pipelines` and `tools` use the other names.
"""

from tfrobust.report.before_after import before_after_table as before_after_table
from tfrobust.report.before_after import before_and_after as before_and_after
from tfrobust.report.compare import Row as Row
from tfrobust.report.compare import comparison as comparison
from tfrobust.report.compare import differences as differences
from tfrobust.report.compare import read_runs as read_runs
from tfrobust.report.compare import rows_of as rows_of
from tfrobust.report.compare_page import require_own as require_own
from tfrobust.report.compare_page import unfinished as unfinished
from tfrobust.report.compare_page import write_comparison as write_comparison
from tfrobust.report.figures import amplification as amplification
from tfrobust.report.html import ReportTable as ReportTable
from tfrobust.report.record import Probes as Probes
from tfrobust.report.record import RunRecord as RunRecord
from tfrobust.report.record import disagreement as disagreement
from tfrobust.report.record import load_run as load_run
from tfrobust.report.run_page import write_report as write_report
from tfrobust.report.search import write_search_report as write_search_report
from tfrobust.report.summary import AccuracyRow as AccuracyRow
from tfrobust.report.summary import accuracy_rows as accuracy_rows
from tfrobust.report.summary import attack_settings as attack_settings
from tfrobust.report.summary import best_epoch as best_epoch
from tfrobust.report.summary import data_of as data_of
from tfrobust.report.summary import headline as headline
from tfrobust.report.summary import in_order as in_order
from tfrobust.report.summary import is_worst_case as is_worst_case
from tfrobust.report.summary import method_name as method_name
from tfrobust.report.summary import missing_from_paper as missing_from_paper
from tfrobust.report.summary import series_over_time as series_over_time
from tfrobust.report.summary import summarise_training as summarise_training
from tfrobust.report.text import NOTHING as NOTHING
from tfrobust.report.text import between as between
from tfrobust.report.text import duration as duration
from tfrobust.report.text import interval as interval
from tfrobust.report.text import markdown_escape as markdown_escape
from tfrobust.report.text import markdown_table as markdown_table
from tfrobust.report.text import milliseconds as milliseconds
from tfrobust.report.text import number as number
from tfrobust.report.text import percent as percent
from tfrobust.report.text import points as points
from tfrobust.report.text import threat_text as threat_text
from tfrobust.report.trials import SearchTrial as SearchTrial
from tfrobust.report.trials import best_trial as best_trial
from tfrobust.report.trials import completed as completed
from tfrobust.report.trials import read_trials as read_trials
from tfrobust.report.trials import unbeaten as unbeaten
from tfrobust.report.trials import write_trials as write_trials
