"""What a step of gradient inversion costs: fedsim's engine, breaching, and the floor.

A step is the derivative, by the guessed images, of 1 - cosine(gradient of the guess, gradient seen) + tv * TV(guess),
and a step of signed Adam along it. Everybody attacks the same batch through the same CIFAR ResNet-18 with the same
weights. Each measurement is a fresh process, and contenders take turns. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from attack_contenders import (  # type: ignore[import-not-found]  # beside this script, as is peers
    BREACHING,
    COMPILED,
    CONTENDERS,
    CUDAGRAPH,
    DOUBLE,
    EAGER,
    ONCE,
    Absent,
    Clock,
    Outcome,
    Task,
    run,
    scene_for,
)
from peers import machine, peer_python  # type: ignore[import-not-found]
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-7
"""How far objectives and pixel gradients may be apart in float64, relative to the largest entry. Objectives are nearly
1e-8 apart, because breaching adds 1e-8 to every difference in total variation.

In float32 another order of summation can put a ReLU's input on the other side of zero, which moves the pixel gradient
by some hundredths, whoever computes it. So formulas are judged in float64, and float32 is only shown.
"""

GOALS = {(EAGER, 1): 1.0, (EAGER, 16): 1.0, (COMPILED, 1): 0.65}
"""The CPU time of a step, as a share of breaching's, that a contender is to stay below at a batch size."""

BREACHING_VERSION = "0.1.2"
PEER_PACKAGES = (
    f"breaching=={BREACHING_VERSION}",
    "hydra-core==1.3.2",
    "omegaconf==2.3.0",
    "antlr4-python3-runtime==4.9.3",
)
"""breaching and what it imports that fedsim does not bring along."""
PEER_IMPORTS = "import breaching, fedsim.models.resnet"


def work(task: Task, folder: Path) -> None:
    """In a process of its own: do the task, and leave the outcome in the folder."""
    torch.set_num_threads(task.threads)
    if task.check:
        # TF32 has 10 bits, and what it does to the numbers is not the question. Timed steps run with torch's defaults.
        torch.backends.cudnn.allow_tf32 = False
    report: dict[str, Any]
    try:
        outcome = run(task, [scene_for(task, victim) for victim in range(task.victims)])
    except Absent as reason:
        report = {"absent": str(reason)}
    else:
        report = {"steps": outcome.steps, "objective": outcome.objective}
        if outcome.slope is not None:
            save_file({"slope": outcome.slope.detach().cpu().contiguous()}, folder / "slope.safetensors")
    (folder / "report.json").write_text(json.dumps(report))


def launch(task: Task, folder: Path, peer: Path | None) -> Outcome:
    """Do the task in a fresh process. Raises Absent."""
    python = str(peer) if task.contender == BREACHING else sys.executable
    threads = str(task.threads)
    quiet = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    done = subprocess.run(
        [python, __file__, "--work", json.dumps(asdict(task)), str(folder)],
        env={**os.environ, **quiet, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{task.contender} failed:\n{done.stderr.strip()}")
    report = json.loads((folder / "report.json").read_text())
    if "absent" in report:
        raise Absent(report["absent"])
    slope = load_file(folder / "slope.safetensors")["slope"] if task.check else None
    return Outcome([Clock(*step) for step in report["steps"]], report["objective"], slope)


@dataclass(frozen=True)
class Row:
    """One line of the table. cpu, wall: seconds of the median step of each process.

    to_breaching, to_floor: ratios of CPU time, on a GPU of wall time; None without that contender.
    """

    contender: str
    batch: int
    device: str
    cpu: list[float]
    wall: list[float]
    to_breaching: float | None
    to_floor: float | None
    goal: float | None


def agreement(contenders: list[str], task: Task, folder: Path, peer: Path | None) -> dict[str, Any]:
    """The same objective and the same pixel gradient of the same guess? Relative distances to breaching, or without it
    to the double backward; and who is absent, and why.
    """
    looks: dict[tuple[str, str], Outcome] = {}
    absent = {}
    for name in contenders:
        try:
            for precision in ("float64", "float32") if name != ONCE else ():
                looks[name, precision] = launch(replace(task, contender=name, check=precision), folder, peer)
        except Absent as reason:
            absent[name] = str(reason)
    judge = BREACHING if (BREACHING, "float64") in looks else DOUBLE
    apart: dict[str, dict[str, dict[str, float]]] = {"float64": {}, "float32": {}}
    for (name, precision), look in looks.items():
        other = looks[judge, precision]
        if name != judge and name not in absent:
            apart[precision][name] = {
                "objective": abs(look.objective - other.objective) / abs(other.objective),
                "gradient": float((look.slope - other.slope).abs().max() / other.slope.abs().max()),
            }
    strict = [value for distance in apart["float64"].values() for value in distance.values()]
    return {
        "batch": task.batch,
        "device": task.device,
        "to": judge,
        "apart": apart,
        "absent": absent,
        "agree": all(value <= TOLERANCE for value in strict),
    }


def measure(contenders: list[str], task: Task, repeats: int, folder: Path, peer: Path | None) -> list[Row]:
    """The rows of one batch size on one device."""
    medians: dict[str, list[Clock]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        turn = repeat % len(contenders)
        for name in contenders[turn:] + contenders[:turn]:
            steps = launch(replace(task, contender=name), folder, peer).steps
            cpu, wall = zip(*steps, strict=True)
            medians[name].append(Clock(statistics.median(cpu), statistics.median(wall)))

    def ratio(name: str, other: str, times: int) -> float | None:
        # Within a repeat the machine was in one mood; the median is over repeats.
        if other not in medians:
            return None
        kind = "wall" if task.device == "cuda" else "cpu"
        pairs = zip(medians[name], medians[other], strict=True)
        return statistics.median(getattr(a, kind) / (times * getattr(b, kind)) for a, b in pairs)

    return [
        Row(
            name,
            task.batch,
            task.device,
            [one.cpu for one in medians[name]],
            [one.wall for one in medians[name]],
            ratio(name, BREACHING, 1),
            ratio(name, ONCE, 2),
            GOALS.get((name, task.batch)) if task.device == "cpu" else None,
        )
        for name in contenders
    ]


def victims_an_hour(
    rows: list[Row], task: Task, count: int, iterations: int, folder: Path, peer: Path | None
) -> list[dict[str, Any]]:
    """Reconstructions an hour of batches of one, on the GPU: of `count` victims at once, and of one after the other.

    Extrapolated from the speed of a few steps; no attack is run to its end.
    """
    out: list[dict[str, Any]] = []
    for row in rows:
        if row.device == "cuda" and row.batch == 1 and row.contender not in (DOUBLE, ONCE):
            seconds = statistics.median(row.wall)
            out.append({"contender": row.contender, "victims": 1, "an_hour": 3600 / (seconds * iterations)})
    for name in (EAGER, COMPILED, CUDAGRAPH):
        try:
            steps = launch(replace(task, contender=name, victims=count), folder, peer).steps
        except Absent as reason:
            out.append({"contender": name, "victims": count, "absent": str(reason)})
        else:
            seconds = statistics.median(step.wall for step in steps)
            out.append({"contender": name, "victims": count, "an_hour": count * 3600 / (seconds * iterations)})
    return out


def show(rows: list[Row]) -> None:
    """The table, as plain text."""
    print(
        f"{'contender':<17} {'device':<6} {'batch':>5} {'CPU ms/step':>11} {'min-max':>13} {'wall ms/step':>12} "
        f"{'steps/s':>8} {'to breaching':>12} {'goal':>7} {'to floor':>8}"
    )
    for row in rows:
        cpu, wall = statistics.median(row.cpu), statistics.median(row.wall)
        spread = f"{1000 * min(row.cpu):.1f}-{1000 * max(row.cpu):.1f}"
        ratios = [f"{value:.2f}" if value is not None else "-" for value in (row.to_breaching, row.to_floor)]
        goal = f"<= {row.goal:.2f}" if row.goal is not None else ""
        print(
            f"{row.contender:<17} {row.device:<6} {row.batch:>5} {1000 * cpu:>11.1f} {spread:>13} {1000 * wall:>12.1f} "
            f"{1 / wall:>8.2f} {ratios[0]:>12} {goal:>7} {ratios[1]:>8}"
        )


def main() -> int:
    """Measure and print. Returns 1 where contenders disagree about the objective or the pixel gradient."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="images in a batch (default: 1 16)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps in a process (default: 8)")
    parser.add_argument("--repeats", type=int, default=5, help="processes for each contender (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument(
        "--batchnorm",
        choices=("running", "own"),
        default="running",
        help="what BatchNorm layers normalise by: running statistics, or the batch's own (default: running)",
    )
    parser.add_argument("--victims", type=int, default=50, help="with CUDA: victims at once (default: 50)")
    parser.add_argument(
        "--iterations", type=int, default=4800, help="with CUDA: steps taken for a reconstruction (default: 4800)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path("build/bench"),
        help="where breaching's environment is made (default: build/bench)",
    )
    parser.add_argument("--work", nargs=2, metavar=("TASK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(Task(**json.loads(options.work[0])), Path(options.work[1]))
        return 0
    counts = (*options.batches, options.steps, options.repeats, options.threads, options.victims, options.iterations)
    if min(counts) < 1:
        parser.error("--batches, --steps, --repeats, --threads, --victims and --iterations must be at least 1")

    skipped: list[str] = []

    def skip(what: str, reason: str) -> None:
        skipped.append(f"{what}: skipped ({reason})")
        print(skipped[-1], file=sys.stderr if options.json else sys.stdout, flush=True)

    contenders, peer = list(CONTENDERS), None
    try:
        peer = peer_python(options.peers.absolute() / "breaching", PEER_PACKAGES, PEER_IMPORTS)
    except RuntimeError as error:
        contenders.remove(BREACHING)
        skip(f"{BREACHING} {BREACHING_VERSION}", str(error))
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if "cuda" not in devices:
        skip("CUDA", "torch sees no GPU")

    described = machine(options.threads)
    checks, rows, hourly = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for device in devices:
            task = Task(DOUBLE, 1, device, options.batchnorm, options.steps, options.threads)
            for batch in options.batches:
                sized = replace(task, batch=batch)
                check = agreement(contenders, sized, folder, peer)
                for contender, reason in check["absent"].items():
                    skip(f"{contender} on {device}, batch {batch}", reason)
                present = [contender for contender in contenders if contender not in check["absent"]]
                checks.append(check)
                rows += measure(present, sized, options.repeats, folder, peer)
        if "cuda" in devices:
            task = Task(EAGER, 1, "cuda", options.batchnorm, options.steps, options.threads)
            hourly = victims_an_hour(rows, task, options.victims, options.iterations, folder, peer)

    versions = {name: version(name) for name in ("torch", "numpy")} | {"python": platform.python_version()}
    versions |= {BREACHING: BREACHING_VERSION} if peer else {}
    agree = all(check["agree"] for check in checks)
    if options.json:
        report = {
            "rows": [{**asdict(row), "median_cpu": statistics.median(row.cpu)} for row in rows],
            "checks": checks,
            "victims": hourly,
            "batchnorm": options.batchnorm,
            "machine": described,
            "versions": versions,
            "skipped": skipped,
        }
        print(json.dumps(report, indent=2))
        return 0 if agree else 1
    show(rows)
    for check in checks:
        verdict = "the same" if check["agree"] else "NOT THE SAME, so the times do not compare"
        print(f"check, batch {check['batch']} on {check['device']}: {verdict} in float64; relative distances:")
        for precision, apart in check["apart"].items():
            for contender, distance in apart.items():
                print(
                    f"  {contender} to {check['to']}, {precision}: objective {distance['objective']:.1e}, "
                    f"pixel gradient {distance['gradient']:.1e}"
                )
    for line in hourly:
        how = "one after the other" if line["victims"] == 1 else f"{line['victims']} victims at once"
        number = f"skipped ({line['absent']})" if "absent" in line else f"{line['an_hour']:.1f} (extrapolated)"
        print(f"{line['contender']}, {how}: reconstructions an hour, {options.iterations} steps each: {number}")
    print("versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    print(f"machine: {described}")
    print(
        f"{options.repeats} processes for each line, {options.steps} timed steps in each; "
        f"BatchNorm by {options.batchnorm} statistics"
    )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
