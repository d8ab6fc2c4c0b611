"""Attacks as Ray tasks, on a real cluster of this machine: the same bits, and what is killed is tried again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from fedsim import plugins
from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.adversaries.storage import JobStore
from fedsim.attackers.base import Attacker, Expected, Failure, Found
from fedsim.attackers.choosing import attacker_for, device_on_ray
from fedsim.attackers.inline import InlineAttacker
from fedsim.attackers.on_ray import RayAttacker
from fedsim.attackers.process import ProcessAttacker
from fedsim.attackers.rebuilding import described
from fedsim.cluster import attacks
from fedsim.cluster.attacks import AttackTasks
from fedsim.cluster.connecting import Cluster, connected
from fedsim.errors import InputError
from fedsim.experiment import AdversaryEntry, Component, Runtime
from fedsim.testing.observations import trials

pytest.importorskip("ray")

MODULE = '''
from dataclasses import dataclass
import os, signal, time
from pathlib import Path
from typing import ClassVar

import torch

from fedsim import progress
from fedsim.adversaries.base import Job, Reconstruction


@dataclass(frozen=True)
class Tried:
    """Notes each try of an attack in a folder, and does to client 0 what `fault` says."""

    fault: str = ""
    notes_folder: str | None = None
    needs: ClassVar[frozenset[str]] = frozenset()
    powers: ClassVar[frozenset[str]] = frozenset()

    def capture(self, seen):
        yield Job((seen,), {"from": "capture"})

    def batches(self, device):
        return "together" in self.fault

    def attack_many(self, jobs, device, rngs):
        if "die together" in self.fault and len(jobs) > 1 and any(job.observations[0].client == 0 for job in jobs):
            raise MemoryError("too many")
        found = []
        for place, (job, rng) in enumerate(zip(jobs, rngs, strict=True)):
            progress.report(place, len(jobs), "together")
            found.append(self.attack(job, device, rng))
        return found

    def attack(self, job, device, rng):
        seen = job.observations[0]
        first = torch.rand(2, generator=rng)
        tries = 1
        if self.notes_folder:
            note = Path(self.notes_folder) / str(seen.client)
            with note.open("a") as file:
                file.write(f"{os.getpid()}\\n")
            tries = len(note.read_text().split())
        if seen.client == 0:
            if self.fault == "raises":
                raise TypeError("not this one")
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "hangs" or (self.fault == "hangs once" and tries == 1):
                time.sleep(600)
        if self.fault == "slow":
            for step in range(12):
                progress.report(step, 13, f"client {seen.client}")
                time.sleep(0.2)
        image = torch.rand((1, 1, 4, 4), generator=rng) + first.sum() + sum(v.sum() for v in seen.tensors.values())
        notes = {"number": os.getpid()}
        return Reconstruction(image, None, float(image.mean()), 1, raw=image.double() / 3, notes=notes)

    def combine(self, parts, device, rng):
        raw = sum(found.raw for _, found in parts) * torch.rand((), generator=rng)
        return {"a": Reconstruction(raw.float(), None, 0.5, 1, raw=raw), "b": Reconstruction(None, None, 0, 0)}
'''


def nobody(done: int, total: int, note: str) -> None:
    pass


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Ray on this machine, with the plugin `tried` installed where both sides find it."""
    folder = tmp_path_factory.mktemp("site")
    metadata = folder / "triers-1.0.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: triers\nVersion: 1.0\n")
    metadata.joinpath("entry_points.txt").write_text("[fedsim.adversaries]\ntried = triers_plugin:Tried\n")
    (folder / "triers_plugin.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        plugins._named.cache_clear()
        with connected("local", cpus=2) as there:
            yield there
    plugins._named.cache_clear()
    sys.modules.pop("triers_plugin", None)


class Place:
    """Jobs on some clients, and whoever attacks them."""

    def __init__(self, cluster: Cluster, folder: Path, cpus: float = 1.0) -> None:
        self.warned: list[str] = []
        self.folder = folder / "notes"
        self.folder.mkdir()
        self.store = JobStore(folder / "captures", folder / "jobs")
        for name in ("captures", "jobs"):
            (folder / name).mkdir()
        self.tasks = AttackTasks(cluster, cpus, 0.0, self.warned.append)

    def job(self, client: int, adversary: str = "one", round_: int = 1) -> str:
        tensors = {"update/weight": torch.arange(6.0) * (client + 1) * round_}
        seen = Observation(round_, client, "server", MappingProxyType(tensors), MappingProxyType({}))
        return self.store.put(Job((seen,), {"from": "capture"}), {"name": "tried"}, adversary)

    def attacker(self, kind: str = "ray", adversary: str = "one", **settings: Any) -> Attacker:
        settings = {"notes_folder": str(self.folder), **settings}
        component = Component("tried", plugins.load("adversaries", "tried")(**settings))
        entry = AdversaryEntry(adversary, component, "server", (0,), (1,))
        runtime = Runtime(device="cpu", isolation="none" if kind == "inline" else "process")
        tasks = self.tasks if kind == "ray" else None
        return attacker_for(entry, self.store, torch.device("cpu"), runtime, self.warned.append, tasks)

    def tries(self, client: int) -> list[int]:
        """The processes that tried an attack on a client."""
        note = self.folder / str(client)
        return [int(line) for line in note.read_text().split()] if note.exists() else []


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path) -> Iterator[Place]:
    made = Place(cluster, tmp_path)
    yield made
    made.tasks.close()


def plain(found: Found) -> Any:
    """An answer without its process's number, as something that can be compared to the last bit."""
    assert isinstance(found, Reconstruction), found
    fields = {**vars(found), "notes": {key: value for key, value in found.notes.items() if key != "number"}}
    return {
        key: (one.dtype, one.shape, one.numpy().tobytes()) if isinstance(one, torch.Tensor) else one
        for key, one in fields.items()
    }


def until(happened: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not (value := happened()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return value


def parent(number: int) -> int:
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_same_bits_wherever_it_runs(place: Place) -> None:
    """Alone, together, and put together; asked for in advance or not."""
    jobs = [place.job(client) for client in (1, 2, 3)]
    seeds = [11, 2**62, 13]
    found: dict[str, Any] = {}
    for kind in ("inline", "process", "ray"):
        attacker = place.attacker(kind)
        expected = [Expected(job, seed, nobody) for job, seed in zip(jobs[:2], seeds[:2], strict=True)]
        assert attacker.expect(expected) == (kind == "ray")
        alone = [attacker.attack(job, seed, nobody) for job, seed in zip(jobs, seeds, strict=True)]
        many = attacker.attack_many(jobs, seeds, nobody)
        parts = [(job, one) for job, one in zip(jobs, alone, strict=True) if isinstance(one, Reconstruction)]
        both = attacker.combine(parts, 5, nobody)
        assert not isinstance(many, Failure) and not isinstance(both, Failure)
        assert (attacker.took(jobs[0]) is None) == (attacker.took() is None) == (kind != "ray")
        attacker.close()
        found[kind] = [*map(plain, alone), *map(plain, many), *map(plain, both.values()), list(both)]
    assert found["inline"] == found["process"] == found["ray"]
    assert found["ray"][0] != found["ray"][1]
    assert place.warned == [] and place.tasks.retries == 0


def test_an_inversion_has_the_same_bits(place: Place) -> None:
    plugin = Component("geiping", plugins.load("adversaries", "geiping")(iterations=8))
    words, device = described(plugin), torch.device("cpu")
    assert words is not None
    (job,) = plugin.settings.capture(next(iter(trials(plugin.settings.needs))).shown[0])
    address = place.store.put(job, plugin.describe(), "inverter")
    entry = AdversaryEntry("inverter", plugin, "server", (0,), (1,))
    found = []
    for attacker in (
        InlineAttacker(plugin.settings, place.store, device),
        ProcessAttacker(words, place.store, device),
        attacker_for(entry, place.store, device, Runtime(device="cpu"), place.warned.append, place.tasks),
    ):
        found.append(plain(attacker.attack(address, 7, nobody)))
        attacker.close()
    assert isinstance(attacker, RayAttacker)
    assert found[0] == found[1] == found[2]


def test_a_worker_that_is_killed_costs_nothing_but_time(place: Place) -> None:
    jobs, attacker = [place.job(client) for client in range(3)], place.attacker(fault="hangs once")
    attacker.expect([Expected(job, 7, nobody) for job in jobs])
    (number,) = until(lambda: place.tries(0))
    worker = parent(parent(number))
    assert b"ray" in Path(f"/proc/{worker}/cmdline").read_bytes()
    os.kill(worker, signal.SIGKILL)
    found = [plain(attacker.attack(job, 7, nobody)) for job in jobs]
    assert len(place.tries(0)) == 2 and place.tasks.retries == 1
    (warned,) = place.warned
    assert warned == f"adversary 'one', job {jobs[0][:8]}: its Ray worker died; tried again, 1 of at most 3 times"
    until(lambda: not alive(number))
    attacker.close()
    process = place.attacker("process")
    assert found == [plain(process.attack(job, 7, nobody)) for job in jobs]
    process.close()


def test_what_kills_its_process_every_time_is_given_up_and_the_rest_goes_on(place: Place) -> None:
    jobs, attacker = [place.job(client) for client in range(3)], place.attacker(fault="killed")
    attacker.expect([Expected(job, 7, nobody) for job in jobs])
    first, *others = [attacker.attack(job, 7, nobody) for job in jobs]
    attacker.close()
    assert isinstance(first, Failure) and not first.kind
    assert first.text.startswith("quarantined, as it died 4 times: the attack's process ended with signal 9 (SIGKILL)")
    assert len(place.tries(0)) == 4 and place.tasks.retries == len(place.warned) == 3
    assert all(isinstance(one, Reconstruction) for one in others)


def test_what_a_plugin_says_is_final(place: Place) -> None:
    attacker = place.attacker(fault="raises")
    assert attacker.attack(place.job(0), 7, nobody) == Failure("TypeError", "not this one")
    assert len(place.tries(0)) == 1 and place.tasks.retries == 0
    (place.store._jobs / f"{place.job(1)}.json").write_text("{}")
    damaged = place.job(2)
    (place.store._jobs / f"{damaged}.json").write_text("{}")
    assert attacker.expect([Expected(damaged, 7, nobody)])
    found = attacker.attack(damaged, 7, nobody)
    assert isinstance(found, Failure) and found.kind == "FedsimError" and "damaged" in found.text
    attacker.close()


def test_jobs_together_are_split_and_a_batch_that_fails_runs_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [place.job(client) for client in range(5)]
    seeds, heard = [1, 2, 3, 4, 5], []
    attacker = place.attacker(fault="together")
    assert attacker.batches() is True
    monkeypatch.setattr(AttackTasks, "batches", 2)  # as on two GPUs
    attacker = place.attacker(fault="die together, together")
    works = [Expected(job, seed, nobody) for job, seed in zip(jobs, seeds, strict=True)]
    assert attacker.expect(works, together=lambda *said: heard.append(said))
    many = attacker.attack_many(jobs, seeds, nobody)
    assert not isinstance(many, Failure)
    assert place.warned == ["adversary 'one' failed on 2 jobs at once and runs them one by one: MemoryError: too many"]
    assert [len(place.tries(client)) for client in range(5)] == [1] * 5, "what was submitted was not done twice"
    alone = place.attacker("inline", notes_folder=None)
    assert [plain(one) for one in many] == [plain(alone.attack(*one, nobody)) for one in zip(jobs, seeds, strict=True)]
    monkeypatch.setattr(AttackTasks, "batches", 1)
    assert attacker.attack_many(jobs, seeds, nobody) == Failure("MemoryError", "too many")
    attacker.close()


def test_progress_of_all_arrives_while_one_is_waited_for(place: Place) -> None:
    jobs, heard = [place.job(client) for client in (1, 2)], {1: [], 2: []}  # type: ignore[var-annotated]
    attacker = place.attacker(fault="slow")
    attacker.expect(
        [
            Expected(job, 7, lambda *said, client=client: heard[client].append(said))  # type: ignore[misc]
            for client, job in zip((1, 2), jobs, strict=True)
        ]
    )
    for job in jobs:
        assert isinstance(attacker.attack(job, 7, nobody), Reconstruction)
        assert 2.4 < (attacker.took(job) or 0) < 10
    attacker.close()
    for client, said in heard.items():
        steps = [done for done, _, note in said if note == f"client {client}"]
        assert steps and steps == sorted(set(steps)) and len(said) <= 7, "twice a second at most"


def test_two_adversaries_never_share_a_process(cluster: Cluster, tmp_path: Path) -> None:
    """Not even with the same plugin, the same job, and a single worker that does all of it."""
    place = Place(cluster, tmp_path, cpus=2.0)
    job, other = place.job(1), place.job(2)
    numbers = []
    for adversary in ("one", "two"):
        attacker = place.attacker(adversary=adversary)
        for one in (job, other):
            found = attacker.attack(one, 7, nobody)
            assert isinstance(found, Reconstruction)
            numbers.append(found.notes["number"])
        attacker.close()
    assert numbers[0] == numbers[1] and numbers[2] == numbers[3], "kept for the next job"
    assert numbers[0] != numbers[2]
    assert parent(numbers[2]) and not alive(numbers[0])
    place.tasks.close()


def test_an_observation_is_stored_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        JobStore, "read", lambda self, kind, at, real=JobStore.read: read.append(kind) or real(self, kind, at)
    )
    attackers = [place.attacker(adversary=name) for name in ("one", "two")]
    for attacker, name in zip(attackers, ("one", "two"), strict=True):
        attacker.expect([Expected(place.job(1, name), 7, nobody)])
    assert sorted(read) == ["job", "job", "observation"]
    for attacker, name in zip(attackers, ("one", "two"), strict=True):
        assert isinstance(attacker.attack(place.job(1, name), 7, nobody), Reconstruction)
        attacker.close()
    assert not place.tasks._store, "and let go of"


def test_nothing_is_left_after_close(place: Place) -> None:
    attacker = place.attacker(fault="hangs")
    attacker.expect([Expected(place.job(client), 7, nobody) for client in (0, 0, 0, 1)])
    (number,) = until(lambda: place.tries(0))
    zygote, worker = parent(number), parent(parent(number))
    attacker.close()
    until(lambda: not any(map(alive, (number, zygote, worker))))
    assert not place.tasks._running and not place.tasks._waiting
    again = place.attacker()
    assert isinstance(again.attack(place.job(0), 7, nobody), Reconstruction), "others go on"
    again.close()


def test_a_user_is_told_what_attacks_wait_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "_LONG", 0.5)
    hanging, attacker = place.attacker(fault="hangs", adversary="two"), place.attacker()
    monkeypatch.setattr(place.tasks, "_slots", 1)
    other = AttackTasks(place.tasks._cluster, 2.0, 0.0, place.warned.append)
    hanging.expect([Expected(place.job(0), 7, nobody)])
    until(lambda: place.tries(0))
    place.tasks, first = other, place.tasks
    waiting = place.attacker()
    waiting.expect([Expected(place.job(1), 7, nobody)])
    until(lambda: other.look(0.1) or place.warned)
    assert place.warned[0].startswith("attacks wait for 2 CPUs each (runtime.cpus_per_attack")
    for one in (hanging, attacker, waiting):
        one.close()
    first.close()


def test_what_no_machine_can_hold_is_refused_at_once(cluster: Cluster) -> None:
    with pytest.raises(InputError, match=r"runtime.cpus_per_attack.*3 CPUs.*2 CPUs"):
        AttackTasks(cluster, 3.0, 0.0, print)


def test_the_device_is_what_ray_gives() -> None:
    runtime = Runtime()
    assert device_on_ray(runtime) == "cpu"
    assert device_on_ray(replace(runtime, gpus_per_attack=0.5)) == "cuda"
    assert device_on_ray(replace(runtime, device="cuda:1", gpus_per_attack=1)) == "cuda"
    assert device_on_ray(replace(runtime, device="cpu", gpus_per_attack=1)) == "cpu"
    with pytest.raises(InputError, match="gpus_per_attack"):
        device_on_ray(replace(runtime, device="cuda"))


def test_a_worker_needs_no_torch_to_have_work_done() -> None:
    """It would take seconds and memory in each of them, beside the attack's own process."""
    code = "import sys, fedsim.cluster.attack_worker; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
