"""How well the attacks that ship do, inside the federation: named experiments over several seeds, beside their peers.

    python experiments/benchmarks/attack_quality.py [--data FILE.npz] [--seeds 0 1 2] [--only NAME ...] [--long]
                                                    [--iterations 1000 ...] [--set KEY=VALUE ...] [--out DIR] [--json]

Every number comes from `fedsim run NAME`, in a process of its own: clients train, an adversary at its place captures,
and the reconstruction is scored. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import operator
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peers import machine  # type: ignore[import-not-found]  # beside this script

SIGNS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclass(frozen=True)
class Goal:
    """What a row's number has to be. score: a field of Row: psnr, lpips, iterations, ..."""

    score: str
    sign: str
    value: float


@dataclass(frozen=True)
class Claim:
    """One adversary of an experiment, by its id; the record of others in words; and what it is to reach."""

    adversary: str
    peer: str = "-"
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class Order:
    """Adversaries of one experiment from best to worst, as published. score: a field of Row."""

    what: str
    score: str
    best_first: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """An experiment that ships with fedsim.

    settings: changes to the file, as of `--set`. takes_data: whether `--data` replaces its data set. long: only with
    `--long`. swept: the key that `--iterations` sets, once for each of its values.
    """

    experiment: str
    setting: str
    claims: tuple[Claim, ...]
    orders: tuple[Order, ...] = ()
    settings: tuple[str, ...] = ()
    takes_data: bool = True
    long: bool = False
    swept: str | None = None


DLG_PEER = "breaching, ConvNet: 23.4 dB in 1,200 iterations"
BENCHES = (
    Bench(
        "dlg-cifar",
        "sigmoid LeNet, batch 1, labels unknown",
        (
            Claim("dlg", DLG_PEER, (Goal("psnr", ">", 23.4), Goal("iterations", "<=", 1200))),
            Claim("idlg", DLG_PEER, (Goal("psnr", ">", 23.4), Goal("iterations", "<=", 1200))),
        ),
    ),
    Bench(
        "rgap-cifar",
        "CNN6, batch 1, labels unknown",
        (Claim("r_gap", "breaching: 49.0 dB", (Goal("psnr", ">=", 49.0),)),),
    ),
    Bench(
        "spear-cifar",
        "MLP with ReLU, batch 8, labels unknown",
        (
            Claim("spear", "SPEAR: exact, up to 25 images", (Goal("psnr", ">", 60.0),)),
            Claim("phong"),
        ),
    ),
    Bench("april-cifar", "vision transformer, batch 1, labels unknown", (Claim("april"),)),
    Bench(
        "cocktail-party-cifar",
        "MLP with ReLU, batch 16, labels unknown",
        (Claim("cocktail_party"),),
    ),
    Bench(
        "fedavg-cifar",
        "small tanh network, 4 local steps, 4 images, labels known",
        (
            Claim("geiping_fedavg", "breaching, ImageNet, 4 steps: 20.8 dB", (Goal("psnr", ">", 20.0),)),
            Claim("geiping"),
        ),
        orders=(Order("unrolled beats taken for one gradient", "psnr", ("geiping_fedavg", "geiping")),),
    ),
    Bench(
        "labels-mnist",
        "tanh ConvNet, batch 16",
        (
            Claim("labels-known"),
            Claim("labels-ilrg"),
            Claim("labels-bias"),
            Claim("labels-llg"),
            Claim("labels-alone"),
        ),
        orders=tuple(
            Order(
                f"worse with labels by {method} than with labels known", "lpips", ("labels-known", f"labels-{method}")
            )
            for method in ("ilrg", "bias", "llg")
        ),
        takes_data=False,
    ),
    Bench(
        "aggregate-mnist",
        "tanh ConvNet, sum of 1, 2 and 4 clients of batch 2, labels known",
        (Claim("sum-of-1"), Claim("sum-of-2"), Claim("sum-of-4")),
        orders=(Order("worse the more clients are summed", "psnr", ("sum-of-1", "sum-of-2", "sum-of-4")),),
        takes_data=False,
    ),
    Bench(
        "cifar10",
        "ResNet-18, batch 1, BatchNorm exact, labels known",
        (
            Claim(
                "geiping",
                "Huang et al. 2021: LPIPS (VGG) .19, mean of 50 images at 10,000 iterations",
                (Goal("lpips", "<=", 0.19),),
            ),
        ),
        settings=("rounds=1",),
        long=True,
        swept="adversaries.0.iterations",
    ),
    Bench(
        "batchnorm-cifar",
        "ResNet-18 after 20 rounds, batch 16, labels known",
        (Claim("exact"), Claim("own_statistics"), Claim("infer"), Claim("proxy")),
        orders=(Order("Huang et al. 2021, figure 1", "lpips", ("exact", "infer", "proxy")),),
        long=True,
    ),
)


@dataclass(frozen=True)
class Row:
    """One line of the table, over all seeds, targets and images.

    images: scored. psnr, ssim, lpips: means over images; psnr_min: of the worst. psnr_before, lpips_before: means of
    the first guess, None where the attack makes none. lpips_net: by which network. label_accuracy: mean over the
    batches. iterations, seconds: means over reconstructions, the latter wall time. failed: reconstructions that ended
    in an error. peer, goals, verdict: of the claim; the last is "reached", "missed" or None.
    """

    experiment: str
    attack: str
    setting: str
    runs: int
    reconstructions: int
    failed: int
    images: int
    psnr: float | None
    psnr_min: float | None
    psnr_before: float | None
    ssim: float | None
    lpips: float | None
    lpips_before: float | None
    lpips_net: str | None
    label_accuracy: float | None
    labels_known: bool
    iterations: float | None
    seconds: float | None
    peer: str
    goals: list[str]
    verdict: str | None


@dataclass(frozen=True)
class Outcome:
    """What an order came to, with the numbers. verdict: "kept", "not kept" or "not measured"."""

    experiment: str
    what: str
    numbers: str
    verdict: str


class Absent(Exception):
    """An experiment cannot be run here. The message is one line."""


def run(name: str, settings: Sequence[str], folder: Path, threads: int) -> list[dict[str, Any]]:
    """The lines of a run's attacks.jsonl. Raises Absent with what fedsim said, where it did not run."""
    given = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "fedsim", "run", name, *given, "--json", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            _follow(process.stdout)
        if process.returncode not in (0, 3):  # 3: it ran, but an attack failed, which its line tells
            errors.seek(0)
            said = [line for line in errors.read().splitlines() if line.strip()]
            raise Absent(said[-1] if said else f"`fedsim run {name}` ended with {process.returncode}")
    return [json.loads(line) for line in (folder / "attacks.jsonl").read_text().splitlines()]


def _follow(events: Iterator[str]) -> None:
    """Tell how far a run is, every half minute."""
    last = time.monotonic()
    for text in events:
        if time.monotonic() - last < 30:
            continue
        try:
            event = json.loads(text)
        except ValueError:
            continue
        if event.get("event") == "attack":
            say(f"  {event['name']}: {event['done']} of {event['total']} {event['note']}")
            last = time.monotonic()
        elif event.get("event") == "round":
            say(f"  round {event['round']}")
            last = time.monotonic()


def measure(
    bench: Bench, suffix: str, settings: Sequence[str], seeds: Sequence[int], folder: Path, threads: int
) -> tuple[list[Row], str | None]:
    """A row for each claim of an experiment, over the seeds up to the first that cannot be run; and why that cannot."""
    lines: dict[str, list[dict[str, Any]]] = {claim.adversary: [] for claim in bench.claims}
    done, reason = 0, None
    for seed in seeds:
        start = time.monotonic()
        where = folder / f"{bench.experiment}{suffix.replace(' ', '-')}-{seed}"
        try:
            found = run(bench.experiment, [*settings, f"seed={seed}"], where, threads)
        except Absent as error:
            reason = f"seed {seed}: {error}"
            break
        for line in found:
            lines.setdefault(line["adversary"], []).append(line)
        done += 1
        say(f"{bench.experiment}{suffix}, seed {seed}: {time.monotonic() - start:.0f} s")
    rows = [summarise(bench, suffix, claim, lines[claim.adversary], done) for claim in bench.claims] if done else []
    return rows, reason


def summarise(bench: Bench, suffix: str, claim: Claim, lines: Sequence[Mapping[str, Any]], runs: int) -> Row:
    """Means over what came back, and whether the goals are reached."""
    good = [line for line in lines if line["status"] != "failed"]

    def images(score: str) -> list[float]:
        return [value for line in good for value in line["per_image"][score] or []]

    def each(field: str) -> list[float]:
        return [line[field] for line in good if line.get(field) is not None]

    row = Row(
        experiment=bench.experiment,
        attack=claim.adversary + suffix,
        setting=bench.setting,
        runs=runs,
        reconstructions=len(good),
        failed=len(lines) - len(good),
        images=len(images("psnr")),
        psnr=_mean(images("psnr")),
        psnr_min=min(images("psnr"), default=None),
        psnr_before=_mean(each("psnr_before")),
        ssim=_mean(images("ssim")),
        lpips=_mean(images("lpips")),
        lpips_before=_mean(each("lpips_before")),
        lpips_net=next((line["lpips_net"] for line in good if line["lpips"] is not None), None),
        label_accuracy=_mean(each("label_accuracy")),
        labels_known=any("labels" in line["knows"] for line in good),
        iterations=_mean(each("iterations")),
        seconds=_mean(each("seconds")),
        peer=claim.peer,
        goals=[f"{goal.score} {goal.sign} {goal.value:g}" for goal in claim.goals],
        verdict=None,
    )
    found = [(getattr(row, goal.score), goal) for goal in claim.goals]
    if not found or any(value is None for value, _ in found):
        return row
    # An attack that failed on one target has not reached a goal by the mean over the others.
    reached = not row.failed and all(SIGNS[goal.sign](value, goal.value) for value, goal in found)
    return Row(**{**asdict(row), "verdict": "reached" if reached else "missed"})


def judge(bench: Bench, order: Order, rows: Sequence[Row]) -> Outcome:
    """Whether the rows come in the order that was published."""
    by_id = {row.attack: getattr(row, order.score) for row in rows}
    values = [by_id[adversary] for adversary in order.best_first]
    numbers = ", ".join(
        f"{adversary} {_number(value, 3)}" for adversary, value in zip(order.best_first, values, strict=True)
    )
    numbers = f"{order.score}: {numbers}"
    if any(value is None for value in values):
        return Outcome(bench.experiment, order.what, numbers, "not measured")
    better = operator.lt if order.score == "lpips" else operator.gt
    kept = all(better(one, next_) for one, next_ in itertools.pairwise(values))
    return Outcome(bench.experiment, order.what, numbers, "kept" if kept else "not kept")


def markdown(rows: Sequence[Row], orders: Sequence[Outcome], absent: Mapping[str, str], about: Sequence[str]) -> str:
    """The tables, and what could not be run."""
    scores = ("PSNR, dB: mean / min", "before", "SSIM", "LPIPS", "before", "labels", "iterations", "s")
    heads = ("attack", "setting", "images", *scores, "peer", "goal", "verdict")
    out = [*about]
    if rows:
        out += ["", _line(heads), "|" + "---|" * len(heads)]
    for row in rows:
        known = "known" if row.labels_known else _percent(row.label_accuracy)
        failed = f", {row.failed} failed" if row.failed else ""
        cells = (
            row.attack,
            row.setting,
            f"{row.images or '-'}{failed}",
            "-" if row.psnr is None else f"{_number(row.psnr, 1)} / {_number(row.psnr_min, 1)}",
            _number(row.psnr_before, 1),
            _number(row.ssim, 3),
            _number(row.lpips, 3),
            _number(row.lpips_before, 3),
            known,
            "-" if not row.iterations else f"{row.iterations:,.0f}",
            _number(row.seconds, 1),
            row.peer,
            ", ".join(row.goals) or "-",
            row.verdict or "-",
        )
        out.append(_line(cells))
    if orders:
        out += ["", _line(("experiment", "expected", "measured", "verdict")), "|---|---|---|---|"]
        out += [_line((one.experiment, one.what, one.numbers, one.verdict)) for one in orders]
    if absent:
        out += ["", *(f"not run: {name}: {why}" for name, why in absent.items())]
    return "\n".join(out)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def chosen(only: Sequence[str] | None, long: bool) -> list[Bench]:
    """The experiments to run: those named, or all but the long ones."""
    if only:
        return [bench for bench in BENCHES if bench.experiment in only]
    return [bench for bench in BENCHES if long or not bench.long]


def variants(bench: Bench, iterations: Sequence[int]) -> list[tuple[str, list[str]]]:
    """(suffix of its name in the table, settings) of each way in which an experiment is run."""
    if bench.swept is None:
        return [("", list(bench.settings))]
    return [(f" at {count}", [*bench.settings, f"{bench.swept}={count}"]) for count in iterations]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [bench.experiment for bench in BENCHES]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--long", action="store_true", help="also those that take many minutes a seed")
    parser.add_argument(
        "--data", type=Path, metavar="FILE.npz", help="CIFAR-10 images in place of the data set cifar10"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, nargs="+", default=[1000], help="of cifar10, each in turn")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="of every run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the runs there (default: they are thrown away)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args()


def main() -> int:
    """Run, and print the tables. Returns 1 if nothing could be run; a missed goal changes nothing."""
    given = options()
    rows: list[Row] = []
    orders: list[Outcome] = []
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="attack-quality-") as temporary:
        folder = given.out or Path(temporary)
        for bench in chosen(given.only, given.long):
            common = [f"runtime.threads={given.threads}", *given.settings]
            if given.data is not None and bench.takes_data:
                common += ["data.name=npz", f"data.path={given.data.resolve()}"]
            for suffix, settings in variants(bench, given.iterations):
                found, reason = measure(bench, suffix, [*common, *settings], given.seeds, folder, given.threads)
                if reason is not None:
                    absent[bench.experiment + suffix] = reason
                    say(f"not run: {bench.experiment}{suffix}: {reason}")
                rows += found
                orders += [judge(bench, order, found) for order in bench.orders if found]
    nets = sorted({row.lpips_net for row in rows if row.lpips_net})
    about = [f"seeds {', '.join(map(str, given.seeds))}; {machine(given.threads)}"]
    if rows:
        about[0] += f"; LPIPS by {', '.join(nets)}" if nets else "; no LPIPS, for lack of its network's weights"
    if given.json:
        print(json.dumps({
            "about": about,
            "rows": [asdict(row) for row in rows],
            "orders": [asdict(one) for one in orders],
            "absent": absent,
        }, indent=2))  # fmt: skip
    else:
        print(markdown(rows, orders, absent, about))
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
