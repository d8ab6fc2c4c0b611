"""The folder of a run: what is in it, and how it is written so that a crash leaves whole files.

experiment.toml (resolved), manifest.json, rounds.jsonl, attacks.jsonl, captures/ and jobs/ (content-addressed), truth/
(read by scoring alone), reconstructions/, checkpoints/ (the models that `save_rounds` asks for), report.html.

The same experiment gives the same bytes of rounds.jsonl and attacks.jsonl, wherever it runs and however often it was
broken off, but for what draws keys or noise from the operating system. What a clock has measured is in timings.jsonl.
resume/ is there until a run has ended: see `fedsim.states`.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError, InputError


@dataclass(frozen=True)
class Dropout:
    """A client that was asked in a round and gave no usable update."""

    client: int
    reason: str


@dataclass
class RoundRecord:
    """A line of rounds.jsonl. Round 0 is the initial model. None: not measured in this round.

    train_loss: the mean over the local losses of the clients that tell theirs, weighted by examples. test_accuracy: in
    [0, 1]. skipped: why the round left the model as it was, if it did.
    epsilons: by client, what private training has cost it so far, as it said with its last update that was used.
    epsilon: the largest of them, with its delta; infinite (null in the file) where a client adds no noise.
    secure: about the round's secure aggregation, if there was one: its mode, how many clients survived, how many
    examples and clipped coordinates are in the sum, and who sent its vector but did not help to open it (`unopened`,
    by client); of a round that was closed, how many vectors were `sent`, and who was `cut_off` while it went on.
    """

    round: int
    clients: tuple[int, ...] = ()
    dropouts: tuple[Dropout, ...] = ()
    train_loss: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    seconds: float = 0.0
    skipped: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    epsilons: dict[int, float] = field(default_factory=dict)
    secure: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """The line as data; `skipped`, and what is said of privacy besides epsilon, only where there is any."""
        data = asdict(self)
        for key in ("skipped", "delta", "epsilons", "secure"):
            if not data[key]:
                del data[key]
        return data

    @classmethod
    def of_json(cls, line: Mapping[str, Any]) -> RoundRecord:
        """The record that a line of rounds.jsonl was made of, but for its seconds, if the line has none."""
        known = {one.name for one in fields(cls)}
        record = cls(**{key: value for key, value in line.items() if key in known})
        record.clients = tuple(record.clients)
        record.dropouts = tuple(Dropout(**one) for one in line.get("dropouts", ()))
        record.epsilons = {int(client): epsilon for client, epsilon in record.epsilons.items()}
        return record

    def line(self) -> str:
        """The record in words."""
        parts = [f"round {self.round}"]
        if self.train_loss is not None:
            parts.append(f"train loss {self.train_loss:.3f}")
        if self.test_accuracy is not None and self.test_loss is not None:
            parts.append(f"test loss {self.test_loss:.3f}")
            parts.append(f"test accuracy {self.test_accuracy:.1%}")
        if self.epsilon is not None and self.delta is not None:
            parts.append(f"epsilon {self.epsilon:.2f} at delta {self.delta:g}")
        if self.dropouts:
            parts.append(f"{len(self.dropouts)} dropped out")
        if self.skipped:
            parts.append(f"skipped: {self.skipped}")
        return ", ".join(parts)


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run are."""

    path: Path
    experiment: Path = field(init=False)
    manifest: Path = field(init=False)
    rounds: Path = field(init=False)
    attacks: Path = field(init=False)
    captures: Path = field(init=False)
    jobs: Path = field(init=False)
    truth: Path = field(init=False)
    reconstructions: Path = field(init=False)
    checkpoints: Path = field(init=False)
    derived: Path = field(init=False)
    timings: Path = field(init=False)
    resume: Path = field(init=False)

    def __post_init__(self) -> None:
        for name, file in {
            "experiment": "experiment.toml",
            "manifest": "manifest.json",
            "rounds": "rounds.jsonl",
            "attacks": "attacks.jsonl",
            "captures": "captures",
            "jobs": "jobs",
            "truth": "truth",
            "reconstructions": "reconstructions",
            "checkpoints": "checkpoints",
            "derived": "derived.jsonl",
            "timings": "timings.jsonl",
            "resume": "resume",
        }.items():
            object.__setattr__(self, name, self.path / file)

    def checkpoint(self, round_: int) -> Path:
        """Where the model after a round is stored, if `save_rounds` asks for it."""
        return self.checkpoints / f"round-{round_}.safetensors"

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new, empty run folder. Raises InputError if the path is taken or cannot be written."""
        check_new(path)
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for part in (folder.captures, folder.jobs, folder.truth, folder.reconstructions):
                part.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {path}: cannot be made: {error.strerror}; choose another place") from None
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run folder that is there. Raises InputError if it is not one."""
        if not _exists(path):
            raise InputError(f"{path}: no such run folder; `fedsim run` prints where it put its run")
        if not (path / "experiment.toml").is_file():
            raise InputError(f"{path}: not a run folder (there is no experiment.toml in it)")
        return cls(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL byte
        return False


def _holds_nothing(path: Path) -> bool:
    """Whether a folder is empty, or what a run leaves that was killed before it had begun."""
    parts = {"captures", "jobs", "truth", "reconstructions"}
    return all(one.name == ".lock" or (one.name in parts and not any(one.iterdir())) for one in path.iterdir())


def check_new(path: Path) -> None:
    """InputError if a run may not be put here. An empty folder is fine; nothing is ever overwritten."""
    if any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise InputError(f"--out {str(path)[:60]}...: the name is too long; choose a shorter one")
    if _exists(path) and not path.is_dir():
        raise InputError(f"--out {path}: is a file; choose a folder that does not exist yet")
    if path.is_dir() and not _holds_nothing(path):
        raise InputError(f"--out {path}: exists and is not empty; choose another folder, or remove this one first")
    parent = path
    while not _exists(parent) and not parent.is_symlink():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"--out {path}: {parent} is not a folder; choose another place")
    if not os.access(parent, os.W_OK):
        raise InputError(f"--out {path}: {parent} cannot be written to; choose another place")


def new_path(parent: Path, name: str) -> Path:
    """`runs/quickstart-1`, `runs/quickstart-2`, ...: the first that is free."""
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either the old one or the whole new one, also after a crash."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101  # mkstemp makes files that only their owner can read
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_halves(folder: RunFolder) -> None:
    """Remove what `write_whole` was writing when a process was killed. Nobody else may be at work in the folder."""
    for place in (folder.path, folder.captures, folder.jobs, folder.truth, folder.reconstructions, folder.checkpoints):
        for path in place.glob(".*.*.*"):  # .NAME.SUFFIX.CHANCE
            if path.is_file():
                path.unlink(missing_ok=True)


def append_line(path: Path, data: Mapping[str, Any]) -> None:
    """Append one JSON line and see it to the disk. A last line that a crash cut off is ended first."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(finite(data), allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


SECONDS = "seconds"


def append_round(folder: RunFolder, record: RoundRecord) -> None:
    """A line of rounds.jsonl, and one of timings.jsonl."""
    _append_timed(folder.rounds, folder.timings, record.as_json(), {"round": record.round})


def append_attack(folder: RunFolder, line: Mapping[str, Any]) -> None:
    """A line of attacks.jsonl, and one of timings.jsonl."""
    _append_timed(folder.attacks, folder.timings, line, attack_key(line))


def attack_key(line: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a line of attacks.jsonl from all others of its run."""
    return {key: line.get(key) for key in ("adversary", "job")}


def _append_timed(path: Path, timings: Path, line: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    # The time first: a line that is there has one, and a time without its line is overlooked.
    append_line(timings, {**key, SECONDS: line.get(SECONDS)})
    append_line(path, {name: value for name, value in line.items() if name != SECONDS})


def timed(lines: Iterable[Mapping[str, Any]], timings: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of rounds.jsonl or attacks.jsonl with the seconds that timings.jsonl has for them; the latest counts."""

    def key(line: Mapping[str, Any]) -> str:
        return json.dumps({"round": line.get("round")} if "adversary" not in line else attack_key(line))

    found = {key(line): line.get(SECONDS) for line in timings if isinstance(line, Mapping)}
    return [{**({SECONDS: found[key(line)]} if key(line) in found else {}), **line} for line in lines]


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Keep other processes out of a folder, which must be there, until the block ends or this process does, however
    that ends. what: is at work in it, for the InputError where another one is. Raises InputError, too, where the folder
    cannot be written to.
    """
    try:
        file = (path / ".lock").open("a")
    except OSError as error:
        raise InputError(f"{path}: cannot be written to ({error.strerror}); let this user write into it") from None
    with file as lock:
        for patience in (0.1, 0.1, 0.0):  # whoever watches the folder tries for a moment whether somebody has it
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not patience:
                    raise InputError(
                        f"{path}: another `{what}` is at work in it; wait for it, or choose another folder"
                    ) from None
                time.sleep(patience)
        yield


def cut(path: Path, size: int) -> None:
    """Take back what was appended to a file beyond so many bytes. Raises FedsimError where it has less than these."""
    there = path.stat().st_size if path.exists() else 0
    if there < size:
        raise FedsimError(
            f"{path}: has {there} bytes, and had {size} when the checkpoint was written; it was cut short"
        )
    if there > size:
        with path.open("r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())


def whole_lines(path: Path) -> None:
    """Take back the last line of a file if a crash cut it off."""
    if path.exists():
        cut(path, path.read_bytes().rfind(b"\n") + 1)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file; [] if it is not there. A line that a crash cut off is left out."""
    if not path.exists():
        return []
    out = []
    for line in path.read_bytes().split(b"\n"):
        try:
            out.append(json.loads(line))
        except ValueError:  # not whole, not UTF-8, or empty
            continue
    return out


def finite(data: Any) -> Any:
    """The same data with NaN and infinities as null, which is all that JSON has for them."""
    if isinstance(data, float) and not math.isfinite(data):
        return None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(item) for item in data]
    return data
