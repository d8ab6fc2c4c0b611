"""`fedsim resume RUN`: go on with a run that was broken off."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedsim.adversaries import threat
from fedsim.commands.run import go_on, on_ray
from fedsim.errors import InputError
from fedsim.experiment_file import read
from fedsim.runs import RunFolder
from fedsim.sweeps.folder import is_sweep_folder


def run(options: argparse.Namespace) -> int:
    """Go on from the newest whole checkpoint, or from the start where there is none."""
    path = Path(options.folder)
    if not options.folder:  # a variable of the shell that is not set, and not the folder that the shell is in
        raise InputError("RUN: is empty; name a run folder")
    if is_sweep_folder(path):
        raise InputError(f"{path}: is a sweep's folder; `fedsim sweep ... --out {path}` goes on with it")
    folder = RunFolder.open(path)
    return go_on(folder, read(str(folder.experiment), on_ray(options.ray), rules=[threat.check]), options.json)
