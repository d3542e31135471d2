"""Tables of measures that are made up."""

import numpy as np

from analysis.table import join_config, to_frame


def table_of_runs(rows, configs, *, step=1):
    """The long table of {run: rows} with the runs' settings; made at once, a table a run takes longer than its test."""
    long = to_frame([r for of_run in rows.values() for r in of_run], run_id="", step=step, epoch=1)
    runs = np.repeat(list(rows), [len(of_run) for of_run in rows.values()])
    return join_config(long.assign(run_id=runs).astype({"run_id": long["run_id"].dtype}), configs)
