"""`fedsim run FILE|NAME`."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from fedsim import manifest as manifests
from fedsim.adversaries import threat
from fedsim.errors import DataUnavailable, FedsimError, InputError
from fedsim.experiment import Experiment
from fedsim.experiment_file import as_toml, read
from fedsim.runs import RunFolder, check_new, new_path, write_whole


def run(options: argparse.Namespace) -> int:
    """Validate everything, then train, attack, score and report."""
    experiment = read(options.experiment, options.settings, rules=[threat.check])
    if options.out == "":
        raise InputError("--out: is empty; name a folder, or leave --out away")
    path = Path(options.out) if options.out else new_path(Path("runs"), experiment.name)
    check_new(path)
    return _run(experiment, path, options.json)


def _run(experiment: Experiment, path: Path, json_lines: bool) -> int:
    # Here, not above: what is wrong with the input is said before torch is imported.
    from fedsim import screens
    from fedsim.commands.ending import QUARANTINED, conclude
    from fedsim.simulation import simulate

    folder = RunFolder.create(path)
    text = as_toml(experiment)
    write_whole(folder.experiment, text)
    manifest: dict[str, Any] = manifests.start(experiment.seed, text, threat.describe(experiment))
    manifests.write(folder, manifest)
    started = time.perf_counter()
    if not json_lines:
        print(f"running '{experiment.name}' in {path}", flush=True)

    def end(status: str, code: int, **facts: Any) -> None:
        manifests.write(folder, manifests.finish(manifest, status, code, time.perf_counter() - started, **facts))

    try:
        with screens.choose_screen(json_lines) as screen:
            outcome = simulate(experiment, folder, screen)
    except (InputError, DataUnavailable):
        # What only the built model or the data could show. Nothing was run, so the name stays free for the next try.
        shutil.rmtree(path)
        raise
    except FedsimError as error:
        end("failed", error.exit_code, error=str(error))
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        end("interrupted", 130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0))
        print(f"stopped; what there is of the run is in {path}")
        raise
    except Exception as error:
        end("failed", 1, error=f"{type(error).__name__}: {error}")
        raise
    code = QUARANTINED if outcome.quarantined else 0
    end("done", code, warnings=outcome.warnings, **outcome.facts)
    return conclude(folder, code, json_lines)
