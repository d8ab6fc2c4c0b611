"""`fedsim report RUN|SWEEP... [--watch]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedsim import report, truth
from fedsim.commands import watch
from fedsim.commands.sweep import write_results
from fedsim.runs import RunFolder
from fedsim.sweeps.folder import is_sweep_folder


def run(options: argparse.Namespace) -> int:
    """Write each report.html again, from the files in the folder; of a sweep, its results and tables as well.

    watch: first look on until the run, or the sweep, has ended. 1, and no report, if it was broken off.
    """
    if options.watch:
        watch.check(options.folders, options.every)
    paths = [Path(folder) for folder in options.folders]
    for path in paths:
        # A run that begins has a lock before it has anything else.
        if not is_sweep_folder(path) and not (options.watch and (path / ".lock").is_file()):
            RunFolder.open(path)
    for path in paths:
        if options.watch:
            code = watch.until_over(path, options.every, options.json)
            if code:
                return code
        truth.recover(RunFolder(path), lambda text: print(f"warning: {text}", file=sys.stderr))
        page = write_results(path) if is_sweep_folder(path) else report.write(path)
        if options.json:
            from fedsim.screens import emit

            emit("report", run=str(path), report=str(page))
        else:
            print(f"report: {page}")
    return 0
