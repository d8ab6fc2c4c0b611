"""`fedsim run FILE|NAME`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import manifest as manifests
from fedsim.adversaries import threat
from fedsim.attackers import launching
from fedsim.commands.joining import cluster_of
from fedsim.errors import QUARANTINED, DataUnavailable, FedsimError, InputError
from fedsim.experiment import Experiment
from fedsim.experiment_file import as_table, as_toml, read
from fedsim.failpoints import reach
from fedsim.runs import RunFolder, alone, check_new, new_path, write_whole
from fedsim.sweeps import file as sweep_files

if TYPE_CHECKING:
    from fedsim.progress import Screen


def run(options: argparse.Namespace) -> int:
    """Validate everything, then train, attack, score and report."""
    sweep_files.refuse(options.experiment, "sweep")
    experiment = read(options.experiment, [*options.settings, *on_ray(options.ray)], rules=[threat.check])
    if options.out == "":
        raise InputError("--out: is empty; name a folder, or leave --out away")
    if options.resume:
        earlier = Path(options.out) if options.out else _last(Path("runs"), experiment.name)
        if earlier is not None and (earlier / "experiment.toml").is_file():
            refuse_other(experiment, RunFolder.open(earlier))
            return go_on(RunFolder.open(earlier), experiment, options.json)
    path = Path(options.out) if options.out else new_path(Path("runs"), experiment.name)
    check_new(path)
    return _run(experiment, path, options.json)


def go_on(folder: RunFolder, experiment: Experiment, json_lines: bool) -> int:
    """Go on with a run that was broken off; the exit code of one that is over."""
    with alone(folder.path, "fedsim run"):
        manifest = manifests.read(folder)
        if manifest.get("status") == "done":
            said = manifest.get("exit")
            code = said if isinstance(said, int) else 0
            if not (folder.path / "report.html").exists():  # it was killed between its last word and its page
                from fedsim.commands.ending import conclude

                shutil.rmtree(folder.resume, ignore_errors=True)
                return conclude(folder, code, json_lines)
            if not json_lines:
                print(f"{folder.path} is done; there is nothing to go on with")
            return code
        _say_other_rounding(read(str(folder.experiment)), experiment)
        if not json_lines:
            print(f"going on with '{experiment.name}' in {folder.path}", flush=True)
        return _play(experiment, folder, json_lines, resume=True)


def _say_other_rounding(before: Experiment, now: Experiment) -> None:
    """Where a run goes on with other threads or on another device, its bits are no longer those of one in one go."""

    def rounding(experiment: Experiment) -> tuple[object, ...]:
        runtime = experiment.runtime
        return runtime.threads or (1 if runtime.grid == "ray" else None), runtime.device, runtime.vectorized

    if rounding(before) != rounding(now):
        print(
            "warning: the run began with other runtime.threads, device or vectorized (on Ray, threads are 1 if none "
            "are given), so that what follows is rounded otherwise",
            file=sys.stderr,
        )


def on_ray(address: str | None) -> list[str]:
    """What `--ray ADDRESS` says, as settings."""
    if address is None:
        return []
    return ['runtime.grid="ray"', f"runtime.ray={json.dumps(address)}"]


def refuse_other(experiment: Experiment, folder: RunFolder) -> None:
    """InputError where a run's folder holds another experiment. Where it runs, and who is told, may differ."""
    there = read(str(folder.experiment))
    other = replace(there, name=experiment.name, runtime=experiment.runtime, logging=experiment.logging)
    if other != experiment:
        mine, its = as_table(experiment), as_table(other)
        keys = sorted(key for key in {*mine, *its} if mine.get(key) != its.get(key))
        raise InputError(
            f"--resume: {folder.path} holds another experiment (it differs in {', '.join(keys)}); "
            f"`fedsim resume {folder.path}` goes on with that one, and --out takes a new folder for this one"
        )


def _last(parent: Path, name: str) -> Path | None:
    """The newest of runs/NAME-1, runs/NAME-2, ...; None where there is none."""
    number = 0
    while (parent / f"{name}-{number + 1}").exists():
        number += 1
    return parent / f"{name}-{number}" if number else None


def execute(
    experiment: Experiment,
    folder: RunFolder,
    screen: Screen,
    facts: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
) -> int:
    """Run an experiment in a run folder that is new, or, to `resume`, one that was broken off, and record in its
    manifest how it began and ended. 0, or 3 if attacks failed. facts: for the manifest besides.

    Raises whatever ends the run early. Where nothing was run, because of what only the built model or the data could
    show, a new folder is gone then.
    """
    inline = experiment.runtime.grid == "inline"
    if experiment.adversaries and experiment.runtime.isolation == "process" and inline:
        launching.start_early()
    text = as_toml(experiment)
    before = manifests.read(folder) if resume else {}
    manifest = {**manifests.start(experiment.seed, text, threat.describe(experiment)), **(facts or {})}
    if resume:
        manifest = manifests.resumed(before, manifest)
    started, worked = time.perf_counter(), time.process_time()

    def end(status: str, code: int, **facts: Any) -> None:
        facts["cpu_seconds"] = time.process_time() - worked
        manifests.write(folder, manifests.finish(manifest, status, code, time.perf_counter() - started, **facts))

    def end_early(status: str, code: int, **facts: Any) -> None:
        with suppress(OSError):  # a full disk, which may be why, has no room for this, either
            end(status, code, **facts)

    try:
        if not resume:
            write_whole(folder.experiment, text)
        manifests.write(folder, manifest)
        with cluster_of(experiment) as cluster:
            # Here, not above: what is wrong with the input is said before torch is imported.
            from fedsim.simulation import simulate

            outcome = simulate(experiment, folder, screen, resume=resume, cluster=cluster)
        reach("run.ending")
        code = QUARANTINED if outcome.quarantined else 0
        end("done", code, warnings=outcome.warnings, **outcome.facts)
    except (InputError, DataUnavailable) as error:
        # Where nothing was run, the name stays free for the next try.
        if resume or folder.rounds.exists():
            end_early("failed", error.exit_code, error=str(error))
        else:
            shutil.rmtree(folder.path)
        raise
    except FedsimError as error:
        end_early("failed", error.exit_code, error=str(error))
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        end_early("interrupted", 130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0))
        raise
    except OSError as error:
        if not folder.experiment.exists():
            raise _not_begun(folder, error) from error
        place = f"{error.filename or folder.path}: {error.strerror or error}"
        failure = FedsimError(f"{place}; `fedsim resume {folder.path}` goes on from there")
        end_early("failed", 1, error=str(failure))
        raise failure from error
    except Exception as error:
        end_early("failed", 1, error=f"{type(error).__name__}: {error}")
        raise
    from fedsim.states.store import Checkpoints

    with suppress(OSError):  # what is left of them is in nobody's way
        Checkpoints(folder.resume).remove()
    return code


def _not_begun(folder: RunFolder, error: OSError) -> FedsimError:
    """What to say where not even the experiment could be written down; its folder is gone then."""
    shutil.rmtree(folder.path, ignore_errors=True)
    return FedsimError(f"{error.filename or folder.path}: {error.strerror or error}; nothing was run")


def _run(experiment: Experiment, path: Path, json_lines: bool) -> int:
    folder = RunFolder.create(path)
    if not json_lines:
        print(f"running '{experiment.name}' in {path}", flush=True)
    with alone(path, "fedsim run"):
        try:
            write_whole(folder.experiment, as_toml(experiment))  # from here on it can be resumed
        except OSError as error:
            raise _not_begun(folder, error) from error
        return _play(experiment, folder, json_lines)


def _play(experiment: Experiment, folder: RunFolder, json_lines: bool, *, resume: bool = False) -> int:
    from fedsim import screens
    from fedsim.commands.ending import conclude

    try:
        with screens.choose_screen(json_lines) as screen:
            code = execute(experiment, folder, screen, resume=resume)
    except (KeyboardInterrupt, SystemExit):
        if not json_lines:
            print(f"stopped; `fedsim resume {folder.path}` goes on from there")
        raise
    return conclude(folder, code, json_lines)
