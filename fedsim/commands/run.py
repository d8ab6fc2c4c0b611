"""`fedsim run FILE|NAME`."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import manifest as manifests
from fedsim.adversaries import threat
from fedsim.attackers import launching
from fedsim.errors import QUARANTINED, DataUnavailable, FedsimError, InputError
from fedsim.experiment import Experiment
from fedsim.experiment_file import as_toml, read
from fedsim.runs import RunFolder, check_new, new_path, write_whole
from fedsim.sweeps import file as sweep_files

if TYPE_CHECKING:
    from fedsim.progress import Screen


def run(options: argparse.Namespace) -> int:
    """Validate everything, then train, attack, score and report."""
    sweep_files.refuse(options.experiment, "sweep")
    experiment = read(options.experiment, options.settings, rules=[threat.check])
    if options.out == "":
        raise InputError("--out: is empty; name a folder, or leave --out away")
    path = Path(options.out) if options.out else new_path(Path("runs"), experiment.name)
    check_new(path)
    return _run(experiment, path, options.json)


def execute(experiment: Experiment, folder: RunFolder, screen: Screen, facts: Mapping[str, Any] | None = None) -> int:
    """Run an experiment in a new run folder, and record in its manifest how it began and ended. 0, or 3 if attacks
    failed. facts: for the manifest besides.

    Raises whatever ends the run early. Where nothing was run, because of what only the built model or the data could
    show, the folder is gone then.
    """
    if experiment.adversaries and experiment.runtime.isolation == "process":
        launching.start_early()
    # Here, not above: what is wrong with the input is said before torch is imported.
    from fedsim.simulation import simulate

    text = as_toml(experiment)
    write_whole(folder.experiment, text)
    manifest = {**manifests.start(experiment.seed, text, threat.describe(experiment)), **(facts or {})}
    manifests.write(folder, manifest)
    started, worked = time.perf_counter(), time.process_time()

    def end(status: str, code: int, **facts: Any) -> None:
        facts["cpu_seconds"] = time.process_time() - worked
        manifests.write(folder, manifests.finish(manifest, status, code, time.perf_counter() - started, **facts))

    try:
        outcome = simulate(experiment, folder, screen)
    except (InputError, DataUnavailable):
        # Nothing was run, so the name stays free for the next try.
        shutil.rmtree(folder.path)
        raise
    except FedsimError as error:
        end("failed", error.exit_code, error=str(error))
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        end("interrupted", 130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0))
        raise
    except Exception as error:
        end("failed", 1, error=f"{type(error).__name__}: {error}")
        raise
    code = QUARANTINED if outcome.quarantined else 0
    end("done", code, warnings=outcome.warnings, **outcome.facts)
    return code


def _run(experiment: Experiment, path: Path, json_lines: bool) -> int:
    from fedsim import screens
    from fedsim.commands.ending import conclude

    folder = RunFolder.create(path)
    if not json_lines:
        print(f"running '{experiment.name}' in {path}", flush=True)
    try:
        with screens.choose_screen(json_lines) as screen:
            code = execute(experiment, folder, screen)
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped; what there is of the run is in {path}")
        raise
    return conclude(folder, code, json_lines)
