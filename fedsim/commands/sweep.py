"""`fedsim sweep FILE|NAME`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.adversaries import threat
from fedsim.commands import parts
from fedsim.errors import InputError
from fedsim.report.formats import counted
from fedsim.runs import alone, finite, new_path, write_whole
from fedsim.sweeps import collect
from fedsim.sweeps import file as sweep_files
from fedsim.sweeps.cells import Grid, expand, narrow, with_threads
from fedsim.sweeps.estimate import HERE
from fedsim.sweeps.folder import SweepFolder, begin, now, open_folder, read_json, write_record
from fedsim.sweeps.pool import Pool, ProcessPool
from fedsim.sweeps.runner import Runner, Tally, default_jobs, pending

THREADS = 1
"""Of each run that does not name a number itself: another one rounds otherwise, and what a cell gives must not depend
on how many run beside it, nor where."""


@dataclass(frozen=True)
class _Hands:
    """Who does the work: so many pieces at once, where in words, and a pool of them."""

    jobs: int
    where: str
    pool: Callable[[], Pool]


def run(options: argparse.Namespace) -> int:
    """Validate the whole grid, then train, attack and collect, as far as it has not been done yet."""
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: must be at least 1")
    if options.out == "":
        raise InputError("--out: is empty; name a folder, or leave --out away")
    whole = expand(sweep_files.read(options.sweep), options.scale, options.settings, [threat.check])
    grid = narrow(whole, options.only)
    path = Path(options.out) if options.out else new_path(Path("runs"), grid.sweep.name.replace("/", "-"))
    say = _silent if options.json else print
    with _hands(grid, SweepFolder(path), options.jobs, getattr(options, "ray", None), say) as hands:
        if options.plan:
            _show_plan(grid, SweepFolder(path), hands, options.json)
            return 0
        if grid.confirm and not options.yes and any(pending(grid, SweepFolder(path))):
            _show_plan(grid, SweepFolder(path), hands, options.json)
            raise InputError(f"scale '{grid.scale}' of {grid.sweep.name} takes that long; give --yes to run it")
        folder = open_folder(path, whole)
        with alone(folder.path, "fedsim sweep"):
            begin(folder, whole)
            if not options.json and grid.cells:
                _announce(grid, folder, hands)
            write_whole(folder.parts, json.dumps(finite(parts.work_out(grid)), indent=1, allow_nan=False) + "\n")
            return _run(grid, folder, hands, options.json)


def write_results(path: Path) -> Path:
    """Collect what the cells of a sweep's folder hold, and write results.json, the tables and the page; its path."""
    from fedsim.report import sweep_page, sweep_tables

    results = collect.write(path, read_json(SweepFolder(path).parts))
    write_whole(path / "table.md", sweep_tables.markdown(results))
    write_whole(path / "table.csv", sweep_tables.csv(results))
    write_whole(path / "cells.csv", sweep_tables.cells_csv(results))
    return sweep_page.write(path)


def _run(grid: Grid, folder: SweepFolder, hands: _Hands, json_lines: bool) -> int:
    from fedsim.sweeps import screens

    record = read_json(folder.record) | {"jobs": hands.jobs, "threads": THREADS, "where": hands.where}
    started = time.perf_counter()

    def end(status: str, code: int, tally: Tally | None = None) -> Path:
        facts: dict[str, Any] = {"status": status, "exit": code, "finished": now()}
        if tally:
            facts |= {"ran": len(tally.ran), "found": len(tally.found), "failed": tally.failed}
        facts["seconds"] = record.get("seconds", 0.0) + time.perf_counter() - started
        write_record(folder, {**record, **facts})
        return write_results(folder.path)

    screen = screens.choose(json_lines)
    runner = Runner(grid, folder, hands.pool(), THREADS, screen)
    try:
        with screen:
            tally = runner.run()
    except (KeyboardInterrupt, SystemExit) as stop:
        end("interrupted", 130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0), runner.tally)
        if not json_lines:
            print(f"stopped; what is done is in {folder.path}, and `--out {folder.path}` goes on from there")
        raise
    except Exception:
        end("failed", 1)
        raise
    page = end("done", tally.code, tally)
    return _conclude(folder, page, tally, json_lines)


def _conclude(folder: SweepFolder, page: Path, tally: Tally, json_lines: bool) -> int:
    if json_lines:
        from fedsim.screens import emit

        emit(
            "done",
            run=str(folder.path),
            report=str(page),
            results=str(folder.results),
            ran=len(tally.ran),
            found=len(tally.found),
            failed=tally.failed,
            quarantined=tally.quarantined,
            exit=tally.code,
        )
        return tally.code
    _show_tables(read_json(folder.results))
    for name, error in tally.failed.items():
        print(f"failed: {name}: {error}")
    for name in tally.quarantined:
        print(f"an attack failed: {name}")
    print(f"\nreport: {page}")
    return tally.code


def _show_tables(results: Mapping[str, Any]) -> None:
    from rich.console import Console

    from fedsim.report.sweep_console import console

    screen = Console()
    if not screen.is_terminal:
        screen = Console(width=200)
    for part in console(results):
        screen.print(part)


def _silent(text: str) -> None:
    """Says nothing."""


@contextmanager
def _hands(
    grid: Grid, folder: SweepFolder, asked: int | None, address: str | None, say: Callable[[str], None]
) -> Iterator[_Hands]:
    """Processes of this machine, or tasks of a Ray cluster. asked: how many at once, at most.

    Raises InputError where there is no such cluster, or no room for a run in it.
    """
    from fedsim.commands import work

    trainings, cells = pending(grid, folder)
    most = max(1, len(trainings) + len(cells))
    if address is None or not (trainings or cells):  # nobody waits for a cluster that has nothing to do
        jobs = min(asked or default_jobs(grid, _on_gpu(grid)), most)
        yield _Hands(jobs, HERE, lambda: ProcessPool(work.do, jobs))
        return
    from fedsim.cluster import sweeping
    from fedsim.cluster.connecting import connected

    with connected(address, say) as cluster:
        experiments = [*(one.experiment for one in trainings), *(one.experiment for one in cells)]
        room = sweeping.at_once(cluster, [with_threads(one, THREADS) for one in experiments])
        jobs = min(asked or room, room, most)
        where = f"on the Ray cluster '{cluster.address}' ({cluster.words()})"
        yield _Hands(jobs, where, lambda: sweeping.RayPool(work.do, jobs, cluster))


def _on_gpu(grid: Grid) -> bool:
    wanted = {one.runtime.device for one in grid.experiments}
    if any(device.startswith(("cuda", "mps")) for device in wanted):
        return True
    if "auto" not in wanted or not Path("/dev/nvidiactl").exists():  # which spares most machines to import torch
        return False
    import torch

    return torch.cuda.is_available()


def _announce(grid: Grid, folder: SweepFolder, hands: _Hands) -> None:
    scale = f" at scale '{grid.scale}'" if grid.scale else ""
    print(f"sweeping '{grid.sweep.name}'{scale} in {folder.path}: {_counts(grid)}", flush=True)
    each = "a thread each where runtime.threads does not say otherwise"
    if hands.where != HERE:
        print(f"{counted(hands.jobs, 'run')} at once {hands.where}, {each}", flush=True)
    elif hands.jobs > 1:
        print(f"{hands.jobs} processes, {each}", flush=True)


def _counts(grid: Grid) -> str:
    trained = f", {counted(len(grid.trainings), 'training')}" if grid.trainings else ""
    return counted(len(grid.cells), "cell") + trained


def _show_plan(grid: Grid, folder: SweepFolder, hands: _Hands, json_lines: bool) -> None:
    """What would be run, and what it would cost."""
    from fedsim.sweeps import estimate

    trainings, cells = pending(grid, folder)
    cost = estimate.estimate(trainings, cells, hands.jobs, THREADS)
    if json_lines:
        from fedsim.screens import emit

        todo = {cell.folder for cell in cells}
        planned = [{"at": dict(cell.at), "folder": cell.folder, "done": cell.folder not in todo} for cell in grid.cells]
        facts = {"sweep": grid.sweep.name, "scale": grid.scale, "jobs": hands.jobs, "where": hands.where}
        emit("plan", **facts, cells=planned, **cost.as_json())
        return
    scale = f" at scale '{grid.scale}'" if grid.scale else ""
    print(f"{grid.sweep.name}{scale}: {_counts(grid)}")
    for one in grid.trainings:
        print(f"  training {one.hash[:8]}{'' if one in trainings else ' (done)'}")
    for cell in grid.cells:
        print(f"  {cell.label}{'' if cell in cells else ' (done)'}")
    print()
    for line in cost.lines(hands.where):
        print(line)
