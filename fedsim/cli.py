"""The command line. Only words are parsed here; torch is imported by the commands that need it, after their checks."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from fedsim import __version__
from fedsim.errors import FedsimError, InputError

INTERRUPTED, TERMINATED = 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0 done, 1 failed, 2 bad input, 3 done with failed attacks, 130 and 143 interrupted."""
    options = parser().parse_args(arguments)
    # Read when torch is first imported. OpenMP's threads spin by default while they wait for one another, and beside
    # any other busy process they wait long: an attack's step was measured twenty times slower on two shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _terminate)
    # Imported by name, so that `--help` imports none of them.
    from importlib import import_module

    command = import_module(f"fedsim.commands.{options.command}")
    try:
        return int(command.run(options))
    except FedsimError as error:
        _say(error, options)
        return error.exit_code
    except KeyboardInterrupt:
        print("fedsim: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`fedsim list | head`); there is nobody left to tell.
        sys.stderr.close()
        return 1


def parser() -> argparse.ArgumentParser:
    """The words that the command line knows."""
    top = argparse.ArgumentParser(
        prog="fedsim",
        description="A federated-learning simulator with pluggable adversaries: "
        "who, standing where, can recover whose data.",
        epilog="Start with `fedsim run quickstart`. `fedsim COMMAND --help` says more about a command.",
    )
    top.add_argument("--version", action="version", version=f"fedsim {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run an experiment: train, attack, score, report")
    run.add_argument(
        "experiment",
        metavar="FILE|NAME",
        help="an experiment file, or one that ships with fedsim (`fedsim list experiments`)",
    )
    _settings(run, "an experiment setting, such as clients.count=20 or adversaries.0.iterations=100")
    run.add_argument("--out", metavar="DIR", help="the run's folder, new or empty (default: runs/NAME-N)")
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out (default: the last runs/NAME-N), if there is one",
    )
    _ray(run, "run clients and attacks on a Ray cluster")
    _json(run)

    resume = commands.add_parser("resume", help="go on with a run that was broken off, from its last checkpoint")
    resume.add_argument("folder", metavar="RUN", help="a run folder")
    _ray(resume, "go on on a Ray cluster, wherever the run began")
    _json(resume)

    sweep = commands.add_parser("sweep", help="run an experiment over a grid of values, in parallel")
    sweep.add_argument(
        "sweep", metavar="FILE|NAME", help="a sweep file, or one that ships with fedsim (`fedsim list sweeps`)"
    )
    sweep.add_argument("--scale", metavar="NAME", help="one of the file's scales (default: its first)")
    _settings(sweep, "a setting of all cells, such as seed=1; training.KEY of the training before them")
    sweep.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=POINT,...",
        help="run these cells alone, such as batch=1,16; the others wait until they are asked for",
    )
    sweep.add_argument("--out", metavar="DIR", help="the sweep's folder; one that is there is gone on with")
    sweep.add_argument("--jobs", type=int, metavar="N", help="processes at once (default: by cores; 1 on a GPU)")
    _ray(sweep, "run the cells as tasks of a Ray cluster")
    sweep.add_argument("--yes", action="store_true", help="run a scale that asks to be confirmed")
    sweep.add_argument("--plan", action="store_true", help="print what would be run and what it would cost")
    _json(sweep)

    attack = commands.add_parser("attack", help="run another adversary on what an earlier run captured")
    attack.add_argument("folder", metavar="RUN", help="a run folder")
    attack.add_argument(
        "--adversary", required=True, metavar="NAME", help="the adversary plugin (`fedsim list adversaries`)"
    )
    attack.add_argument("--id", metavar="ID", help="how to call it in tables (default: its name)")
    _settings(attack, "a setting of the adversary, such as iterations=1000")
    _ray(attack, "run the attacks as tasks of a Ray cluster")
    _json(attack)

    report = commands.add_parser("report", help="write report.html of finished or broken-off runs again")
    report.add_argument("folders", nargs="+", metavar="RUN", help="a run folder, or a sweep's")
    report.add_argument(
        "--watch", action="store_true", help="show how far it is until it has ended, then write the page"
    )
    report.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between two looks of --watch (default: 2)"
    )
    _json(report)

    listing = commands.add_parser("list", help="list what there is of a kind")
    listing.add_argument(
        "kind",
        nargs="?",
        metavar="KIND",
        help="experiments, sweeps, adversaries, defenses, models, datasets, partitions or strategies (default: all)",
    )
    _json(listing)

    check = commands.add_parser("check", help="validate an experiment and print who sees what, or validate a sweep")
    check.add_argument("experiment", metavar="FILE|NAME", help="an experiment or a sweep: a file, or one that ships")
    _settings(check, "an experiment setting, as for `fedsim run`")
    _json(check)

    doctor = commands.add_parser("doctor", help="look over the machine: versions, devices, weights, data")
    _ray(doctor, "look over the nodes of a Ray cluster, too")
    _json(doctor)
    return top


def _settings(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help=f"{what}; may be given more than once",
    )


def _ray(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        help=f"{what}: local (one of its own on this machine), auto, HOST:PORT, ray://HOST:PORT",
    )


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, a line an event")


def _say(error: FedsimError, options: argparse.Namespace) -> None:
    lines = error.problems if isinstance(error, InputError) else (str(error),)
    if getattr(options, "json", False):
        from fedsim.screens import emit

        emit("error", problems=list(lines), exit=error.exit_code)
    for line in lines:
        print(line, file=sys.stderr)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
