"""Observations and jobs as files, addressed by the hash of their content.

A job's file names the observations that it is made of by their hashes, so that jobs on the same capture share it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

from fedsim.adversaries.base import Job, Observation
from fedsim.errors import FedsimError
from fedsim.runs import write_whole
from fedsim.tensorfile import digest, pack, unpack


def observation_bytes(seen: Observation) -> bytes:
    """An observation as one safetensors file. The same observation gives the same bytes."""
    return pack(
        seen.tensors,
        {"round": seen.round, "client": seen.client, "vantage": seen.vantage, "facts": dict(seen.facts)},
    )


def observation_from(data: bytes) -> Observation:
    """The observation in such bytes."""
    tensors, facts = unpack(data)
    return Observation(facts["round"], facts["client"], facts["vantage"], tensors, facts["facts"])


P = TypeVar("P")
T = TypeVar("T")

Kind = Literal["job", "observation"]

Fetch = Callable[[Kind, str], bytes]
"""Gets the bytes at an address, from wherever they are kept."""


class Jobs:
    """Jobs and observations by their addresses, from wherever `fetch` gets the bytes."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def get(self, address: str) -> Job:
        """The job at an address. Raises FedsimError where its bytes, or those of its observations, are not to be had or
        are others.
        """
        content = json.loads(self._fetch("job", address))
        return Job(tuple(self.observation(one) for one in content["observations"]), content["notes"])

    def observation(self, address: str) -> Observation:
        """The observation at an address. Raises FedsimError as `get` does."""
        return observation_from(self._fetch("observation", address))


def observations_of(job: bytes) -> list[str]:
    """The addresses of the observations that a stored job is made of."""
    return list(json.loads(job)["observations"])


class JobStore(Jobs):
    """The `captures` and `jobs` folders of a run."""

    def __init__(self, captures: Path, jobs: Path) -> None:
        super().__init__(self.read)
        self._captures, self._jobs = captures, jobs

    def put(self, job: Job, plugin: Mapping[str, Any], adversary: str) -> str:
        """Write a job, and its observations where they are not there yet. Returns the job's address.

        plugin: the component's name and settings, which are part of what the job is.
        """
        observations = [self.put_observation(seen) for seen in job.observations]
        content = {
            "adversary": adversary,
            "plugin": dict(plugin),
            "observations": observations,
            "notes": dict(job.notes),
        }
        data = json.dumps(content, sort_keys=True, indent=1).encode()
        address = digest(data)
        write_whole(self._jobs / f"{address}.json", data)
        return address

    def put_observation(self, seen: Observation) -> str:
        """Write an observation once, and return its address."""
        data = observation_bytes(seen)
        address = digest(data)
        path = self._captures / f"{address}.safetensors"
        if not path.exists():
            write_whole(path, data)
        return address

    def captured(self) -> list[str]:
        """The addresses of all observations, in a fixed order."""
        return sorted(path.stem for path in self._captures.glob("*.safetensors"))

    def keep(self, jobs: Iterable[str], observations: Iterable[str]) -> None:
        """Remove all but these jobs, what they are made of, and these observations. Raises FedsimError, with nothing
        removed, where one of them is damaged or missing.
        """
        needed = {"job": set(jobs), "observation": set(observations)}
        for job in needed["job"]:
            needed["observation"].update(observations_of(self.read("job", job)))
        for one in needed["observation"]:
            self.read("observation", one)
        for folder, kept in ((self._jobs, needed["job"]), (self._captures, needed["observation"])):
            for path in [*folder.iterdir()]:
                if path.stem not in kept or path.name.startswith("."):
                    path.unlink()

    def read(self, kind: Kind, address: str) -> bytes:
        """The bytes of a job or an observation. Raises FedsimError where the file is damaged or missing."""
        path = self._jobs / f"{address}.json" if kind == "job" else self._captures / f"{address}.safetensors"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise FedsimError(f"{path}: cannot be read: {error.strerror}; the run folder is not whole") from None
        if digest(data) != address:
            raise FedsimError(
                f"{path}: the content does not match its name; the file is damaged, run the experiment again"
            )
        return data


class Lazy(Sequence[T], Generic[P, T]):
    """Things that are read anew whenever they are looked at, from what tells where each of them is."""

    def __init__(self, read: Callable[[P], T], where: Sequence[P], places: range | None = None) -> None:
        self._read, self._where = read, where
        self._places = range(len(where)) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Lazy[P, T]: ...
    def __getitem__(self, place: int | slice) -> T | Lazy[P, T]:
        if isinstance(place, slice):
            return Lazy(self._read, self._where, self._places[place])
        return self._read(self._where[self._places[place]])
