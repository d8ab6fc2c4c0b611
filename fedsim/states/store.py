"""Checkpoints in a folder: written whole, hashed, the last two kept; one that is damaged is found, and not taken.

`parts/HASH.safetensors` hold tensors, each named by the SHA-256 of its bytes, so that what has not changed since the
last checkpoint is not written again. `round-000012.json` says which parts make up the checkpoint, and holds the rest as
JSON data with a hash over itself; it is written last, and makes the checkpoint valid. No pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsim.errors import FedsimError
from fedsim.failpoints import reach
from fedsim.runs import write_whole
from fedsim.states.words import meant, told
from fedsim.tensorfile import digest, pack, unpack

FORMAT = 1
KEPT = 2
"""Checkpoints that stay when a newer one is there, this one among them."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole. state: by name, what was put into it."""

    round: int
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run, in a folder of theirs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unchanged: dict[str, str] = {}
        """By name, the addresses of parts that are in the newest checkpoint."""

    def write(self, round_: int, state: Mapping[str, Any], *, kept: int = KEPT, same: tuple[str, ...] = ()) -> None:
        """Write a checkpoint, and remove those before it but for the `kept` newest.

        state: by name, values that `fedsim.states.words` has words for. same: names that are not in `state` and are as
        they were in the checkpoint before. Raises FedsimError where a value cannot be held, or nothing can be written;
        the checkpoints of before are as they were then.
        """
        reach("checkpoint.begun")
        parts = {name: self._unchanged[name] for name in same}
        try:
            (self._path / "parts").mkdir(parents=True, exist_ok=True)
            for name, value in state.items():
                tensors: dict[str, Tensor] = {}
                words = told(value, tensors, name)
                parts[name] = self._part(pack(tensors, {"words": words}))
                reach("checkpoint.part")
            _settle(self._path / "parts")
            reach("checkpoint.parts")
            body = {"format": FORMAT, "round": round_, "parts": parts}
            text = json.dumps({**body, "sha256": _seal(body)}, indent=1)
            path = self._path / f"round-{round_:06}.json"
            write_whole(path, text + "\n")
            _settle(self._path)
        except OSError as error:
            raise FedsimError(
                f"{self._path}: the checkpoint of round {round_} cannot be written ({error.strerror or error}); the "
                "one before is as it was. Make room, then `fedsim resume` goes on from there"
            ) from None
        self._unchanged = parts
        reach("checkpoint.written")
        self._prune(path, kept)
        reach("checkpoint.pruned")

    def latest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there is none. say: hears of each that is damaged."""
        found = self._rounds()
        for place, path in enumerate(found):
            try:
                checkpoint, parts = self._read(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
                after = "the one before it is taken" if place + 1 < len(found) else "the run begins anew"
                reason = str(error) if isinstance(error, ValueError) else f"it cannot be read ({type(error).__name__})"
                say(f"checkpoint {path.name} is damaged: {reason}; {after}")
                continue
            self._unchanged = parts
            return checkpoint
        return None

    def remove(self) -> None:
        """Remove them all."""
        self._unchanged = {}
        for path in [*self._rounds(), *self._parts()]:
            path.unlink(missing_ok=True)
        for folder in (self._path / "parts", self._path):
            with suppress(OSError):
                folder.rmdir()

    def _part(self, data: bytes) -> str:
        address = digest(data)
        path = self._path / "parts" / f"{address}.safetensors"
        # A file of that name which this process has neither written nor read may be a damaged one.
        if address not in self._unchanged.values():
            write_whole(path, data)
        return address

    def _read(self, path: Path) -> tuple[Checkpoint, dict[str, str]]:
        body = json.loads(path.read_bytes())
        seal = body.pop("sha256")
        if seal != _seal(body):
            raise ValueError("its content has another hash than it says")
        if body["format"] != FORMAT:
            raise ValueError(f"it is of format {body['format']}, and this version of fedsim reads {FORMAT}")
        state = {}
        for name, address in body["parts"].items():
            data = (self._path / "parts" / f"{address}.safetensors").read_bytes()
            if digest(data) != address:
                raise ValueError(f"its part '{name}' has another hash than it says")
            tensors, facts = unpack(data)
            state[name] = meant(facts["words"], tensors)
        return Checkpoint(body["round"], state), body["parts"]

    def _prune(self, newest: Path, kept: int) -> None:
        for path in self._rounds():
            if path.name > newest.name:  # found damaged, or they would have been gone on from
                path.unlink(missing_ok=True)
        rounds = self._rounds()
        used: set[str] = set()
        for path in rounds[:kept]:
            with suppress(OSError, ValueError, KeyError, AttributeError):  # a damaged one needs nothing
                used.update(json.loads(path.read_bytes())["parts"].values())
        for path in rounds[kept:]:
            path.unlink(missing_ok=True)
        for path in self._parts():
            if path.stem not in used:
                path.unlink(missing_ok=True)

    def _rounds(self) -> list[Path]:
        """The newest first."""
        return sorted(self._path.glob("round-*.json"), reverse=True)

    def _parts(self) -> list[Path]:
        # And what a crash left of one that was being written.
        return [*self._path.glob("parts/*"), *self._path.glob("parts/.*.safetensors.*"), *self._path.glob(".round-*")]


def _seal(body: Mapping[str, Any]) -> str:
    return digest(json.dumps(body, sort_keys=True).encode())


def _settle(folder: Path) -> None:
    """See a folder's list of files to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
