"""`fedsim report RUN|SWEEP...`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedsim import report
from fedsim.commands.sweep import write_results
from fedsim.runs import RunFolder
from fedsim.sweeps.folder import is_sweep_folder


def run(options: argparse.Namespace) -> int:
    """Write each report.html again, from the files in the folder; of a sweep, its results and tables as well."""
    paths = [Path(folder) for folder in options.folders]
    paths = [path if is_sweep_folder(path) else RunFolder.open(path).path for path in paths]
    for path in paths:
        page = write_results(path) if is_sweep_folder(path) else report.write(path)
        if options.json:
            from fedsim.screens import emit

            emit("report", run=str(path), report=str(page))
        else:
            print(f"report: {page}")
    return 0
