"""What was seen in a line, for where there is no terminal."""

from __future__ import annotations

from fedsim.pace import about
from fedsim.report.formats import counted, duration, fixed, percent
from fedsim.report.reading import Attack
from fedsim.watcher.runs import BROKEN, RunSeen
from fedsim.watcher.sweeps import DONE, FAILED, SweepSeen


def line(seen: RunSeen | SweepSeen) -> str:
    """All that is worth saying, in one line."""
    parts = _of_run(seen) if isinstance(seen, RunSeen) else _of_sweep(seen)
    return f"{seen.name}: {', '.join(part for part in parts if part)}"


def remedy(seen: RunSeen | SweepSeen) -> str:
    """What to do about a run or a sweep that did not come to its end; nothing of one that did, or failed."""
    if isinstance(seen, SweepSeen):
        again = f"the same `fedsim sweep` command with --out {seen.path} goes on with it"
        return f"the sweep was broken off: its process is gone; {again}" if seen.status == BROKEN else ""
    again = f"`fedsim resume {seen.path}` goes on with it"
    if seen.status == BROKEN:
        return f"the run was broken off: its process is gone; {again}"
    return f"the run was interrupted; {again}" if seen.status == "interrupted" else ""


def progress(seen: RunSeen) -> str:
    """`round 3/10`."""
    if seen.done is None:
        return "no round yet"
    return f"round {seen.done}/{seen.rounds}" if seen.rounds else f"round {seen.done}"


def left(seconds: float | None) -> str:
    """`about 40 s left`; nothing where there is nothing left, or no telling."""
    return f"{about(seconds)} left" if seconds else ""


def attacks(seen: RunSeen) -> str:
    """`3 of 8 attacks done, 1 of them failed`."""
    if not seen.attacking and not seen.jobs:
        return ""
    failed = f", {seen.failed} of them failed" if seen.failed else ""
    # Before its last round it is not known how many there will be.
    known = seen.jobs if seen.done is not None and seen.done >= seen.rounds else seen.attacked
    if known == seen.attacked:
        return f"{counted(known, 'attack')} done{failed}"
    return f"{seen.attacked} of {counted(known, 'attack')} done{failed}"


def age(seconds: float | None) -> str:
    """How old the last line is."""
    return "nothing recorded yet" if seconds is None else f"last line {duration(float(round(seconds)))} ago"


def _of_run(seen: RunSeen) -> list[str]:
    last = seen.recent[-1] if seen.recent else None
    scores = []
    if last is not None:
        if last.train_loss is not None:
            scores.append(f"train loss {fixed(last.train_loss, 3)}")
        if last.test_accuracy is not None:
            scores.append(f"test accuracy {percent(last.test_accuracy)}")
        if last.epsilon is not None:
            scores.append(f"epsilon {fixed(last.epsilon)}")
    waiting = [] if seen.over else [left(seen.left)]
    dropped = counted(seen.dropouts, "dropout") if seen.dropouts else ""
    return [seen.status, progress(seen), *waiting, *scores, dropped, attacks(seen), _last(seen)]


def _last(seen: RunSeen) -> str:
    if not seen.attacks:
        return ""
    attack: Attack = seen.attacks[-1]
    came = "failed" if attack.failed else f"SSIM {fixed(attack.ssim)}, PSNR {fixed(attack.psnr, 1)} dB"
    return f"last {attack.adversary} on round {attack.when}: {came}"


def _of_sweep(seen: SweepSeen) -> list[str]:
    waiting = [] if seen.over else [left(seen.left)]
    failed = f"{seen.states[FAILED]} failed" if seen.states[FAILED] else ""
    working = [f"{run.name} at {progress(run)}" for run in seen.working[:3]]
    more = f"and {len(seen.working) - 3} more" if len(seen.working) > 3 else ""
    return [seen.status, f"{seen.states[DONE]}/{counted(seen.total, 'cell')} done", failed, *waiting, *working, more]
