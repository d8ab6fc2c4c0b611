"""`fedsim report RUN|SWEEP...`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedsim import report, truth
from fedsim.commands.sweep import write_results
from fedsim.runs import RunFolder
from fedsim.sweeps.folder import is_sweep_folder


def run(options: argparse.Namespace) -> int:
    """Write each report.html again, from the files in the folder; of a sweep, its results and tables as well."""
    paths = [Path(folder) for folder in options.folders]
    paths = [path if is_sweep_folder(path) else RunFolder.open(path).path for path in paths]
    for path in paths:
        truth.recover(RunFolder(path), lambda text: print(f"warning: {text}", file=sys.stderr))
        page = write_results(path) if is_sweep_folder(path) else report.write(path)
        if options.json:
            from fedsim.screens import emit

            emit("report", run=str(path), report=str(page))
        else:
            print(f"report: {page}")
    return 0
