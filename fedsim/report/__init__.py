"""From a finished run folder to something a person reads: one HTML file, or tables on the terminal.

Nothing here imports torch: reporting on a run needs the run's files and no more. The pictures that a run stores while
it runs are made by `fedsim.report.pictures`, the tables by `fedsim.report.table`, `round_table` and `derived`.
"""

from __future__ import annotations

from pathlib import Path


def write(run: Path) -> Path:
    """Write `report.html` into a run folder, whole or not at all, and return its path.

    The report loads nothing from anywhere: pictures, charts and styles are inside. Files that are missing, cut short or
    damaged are named in it and the rest is shown. The same run folder gives the same bytes.

    Raises:
        InputError: `run` is no run folder.
        FedsimError: the report cannot be written there.
    """
    from fedsim.report.page import write as write_page

    return write_page(Path(run))
