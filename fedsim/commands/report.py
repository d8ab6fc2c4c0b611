"""`fedsim report RUN...`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedsim import report
from fedsim.runs import RunFolder


def run(options: argparse.Namespace) -> int:
    """Write each run's report.html again, from the files in its folder."""
    folders = [RunFolder.open(Path(folder)) for folder in options.folders]
    for folder in folders:
        page = report.write(folder.path)
        if options.json:
            from fedsim.screens import emit

            emit("report", run=str(folder.path), report=str(page))
        else:
            print(f"report: {page}")
    return 0
