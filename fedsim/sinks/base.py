"""What a sink is, and what it is told: numbers by name and step.

A component of kind `sinks` is a frozen dataclass of settings with two methods: `check()`, which raises where the
package is missing, and `open(run)`, which gives a `Sink`. Only `open` may import the package.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from fedsim.errors import InputError
from fedsim.runs import RoundRecord, write_whole

LONGEST = 500
"""Characters of a setting that a log is told; what is longer is in the run's experiment.toml."""

ATTACK_SCORES = ("psnr", "ssim", "lpips", "lpips_paper", "label_accuracy", "objective", "iterations", "seconds")
ROUND_SCORES = ("train_loss", "test_loss", "test_accuracy", "epsilon", "seconds")


@dataclass(frozen=True)
class SinkRun:
    """What a sink is told of a run at its start.

    path: the run's folder. experiment: resolved, as plain data (`fedsim.experiment_file.as_table`). resumed: the first
    round that is run now, where the run was broken off and goes on, 0 without a checkpoint; None for a new run.
    """

    path: Path
    name: str
    experiment: Mapping[str, Any]
    resumed: int | None = None


class Sink(Protocol):
    """An open log. Its methods are called one after another, all in the same thread; what they raise ends the sink
    alone.

    Of a run that goes on, a sink is told again from the first round what the run's folder holds, and then what is new.
    It has to pass over what its log has already.
    """

    def round(self, record: RoundRecord) -> None:
        """A round is over."""
        ...

    def attack(self, line: Mapping[str, Any]) -> None:
        """A line of attacks.jsonl, `picture` relative to the run's folder."""
        ...

    def end(self, status: str, facts: Mapping[str, Any]) -> None:
        """The run ended: done, failed or interrupted; `facts` are the manifest's. Nothing is called after it."""
        ...


class SinkSettings(Protocol):
    """A component of kind `sinks`."""

    def check(self) -> None:
        """Raises InputError, with the remedy, where the package is missing."""
        ...

    def open(self, run: SinkRun) -> Sink:
        """The log of a run, made or gone on with."""
        ...


def require(*packages: str, extra: str) -> None:
    """InputError where one of some packages is not installed. Nothing is imported: folders that are called like a
    package, as wandb leaves them behind, are none.
    """
    for package in packages:
        try:
            version(package)
        except PackageNotFoundError:
            raise InputError(
                f"sink '{extra}' needs the package {package}, which is not installed; "
                f"pip install 'fedsim-adversarial[{extra}]', or leave '{extra}' out of logging.sinks"
            ) from None


def of_round(record: RoundRecord) -> dict[str, float]:
    """A round's numbers by the names of rounds.jsonl; clients and dropouts are counted. What was not measured is not
    among them.
    """
    out = {name: getattr(record, name) for name in ROUND_SCORES}
    out |= {"clients": len(record.clients), "dropouts": len(record.dropouts), "skipped": int(bool(record.skipped))}
    out |= {f"secure/{key}": value for key, value in (record.secure or {}).items()}
    return _numbers(out)


def of_attack(line: Mapping[str, Any]) -> dict[str, float]:
    """An attack's numbers: `attacks/ADVERSARY/client-0/psnr` and so on, with `failed`, which is 0 or 1."""
    numbers = _numbers({name: line.get(name) for name in ATTACK_SCORES})
    numbers["failed"] = float(line.get("status") == "failed")
    return {f"{place(line)}/{key}": value for key, value in numbers.items()}


def place(line: Mapping[str, Any]) -> str:
    """Under which name an attack is logged: the adversary's, then whose data it is after. Its step is its round."""
    clients = list(line.get("clients") or [line.get("client")])
    whom = f"client-{clients[0]}" if len(clients) == 1 else f"sum-of-{len(clients)}-from-{min(clients)}"
    adversary = re.sub(r"[^\w.-]", "_", str(line.get("adversary")))  # not every log takes every sign
    return f"attacks/{adversary}/{whom}"


def flat(data: Any, prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested data as one level: `clients.count`, `adversaries.0.vantage`; lists of plain values as text."""
    if isinstance(data, Mapping):
        items: Iterable[tuple[Any, Any]] = data.items()
    elif isinstance(data, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in data):
        items = enumerate(data)
    else:
        if not isinstance(data, str | int | float | bool):
            data = json.dumps(data, default=str)
        if isinstance(data, str) and len(data) > LONGEST:
            data = data[: LONGEST - 3] + "..."
        return {prefix: data}
    out: dict[str, str | int | float | bool] = {}
    for key, value in items:
        out |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return out


def facts_alone(facts: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Those facts of a manifest that are a single value: not its clients, warnings and versions."""
    return {key: value for key, value in facts.items() if isinstance(value, str | int | float | bool)}


def known_id(note: Path, where: str) -> str | None:
    """The id that a run has in a log, as a note in its folder says; None where there is none, as in a new run's.

    where: which log, as some have several; the id in another one says nothing.
    """
    try:
        data = json.loads(note.read_text(encoding="utf-8"))
        return str(data["id"]) if data["where"] == where else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note_id(note: Path, where: str, id_: str) -> str:
    """Keep it, and give it back."""
    write_whole(note, json.dumps({"id": id_, "where": where}) + "\n")
    return id_


class Held:
    """What a log that is gone on with holds already: how often each name at each step."""

    def __init__(self, entries: Iterable[tuple[str, int]] = ()) -> None:
        self._left = Counter(entries)

    def takes(self, name: str, step: int) -> bool:
        """Whether the log lacks this one. Where it has it, that is used up: told once more, it is another one."""
        if self._left[name, step]:
            self._left[name, step] -= 1
            return False
        return True


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What is a finite number: the others are null in the run's files."""
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
