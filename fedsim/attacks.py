"""Run the jobs of adversaries, one after another, and score what comes back. A failing plugin fails alone."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch

from fedsim import answers, progress, scoring, seeding
from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.adversaries.storage import JobStore
from fedsim.data.dataset import Normalisation
from fedsim.data.federation import load_data, load_federation
from fedsim.experiment import AdversaryEntry, Experiment
from fedsim.progress import Screen
from fedsim.report.formats import counted, numbered
from fedsim.report.pictures import comparison
from fedsim.runs import RunFolder, append_line
from fedsim.scoring import Truth


@dataclass(frozen=True)
class Attack:
    """A job waiting to be run: whose it is, its address, and whose data of which round it is after.

    clients: one, or several where only the sum of their updates was shown. rounds: one, or several where the answers
    of several jobs were put together (`combined`); `job` is then the address of all of them. answer: its name, where a
    plugin gives several.
    """

    entry: AdversaryEntry
    job: str
    clients: tuple[int, ...]
    rounds: tuple[int, ...]
    combined: bool = False
    answer: str = ""

    @property
    def title(self) -> str:
        """The adversary's id, with the answer's name behind it."""
        return f"{self.entry.id}-{self.answer}" if self.answer else self.entry.id

    @property
    def round(self) -> int:
        """The last one."""
        return self.rounds[-1]

    @property
    def name(self) -> str:
        """For a screen."""
        return f"{self.title}, {self.whom}"

    @property
    def whom(self) -> str:
        """Whose data of which round."""
        return f"{numbered(list(self.clients), 'client')}, {numbered(list(self.rounds), 'round')}"


def clients_of(seen: Observation) -> tuple[int, ...]:
    """Whose data an observation is about."""
    return tuple(seen.facts.get("clients", (seen.client,)))


def attacks_on(seen: Observation, entry: AdversaryEntry, store: JobStore, warn: Callable[[str], None]) -> list[Attack]:
    """What an adversary would attack of an observation, its jobs stored. A plugin's fault is a warning and ends
    nothing.
    """
    try:
        jobs = [store.put(job, entry.plugin.describe(), entry.id) for job in list(entry.plugin.settings.capture(seen))]
    except Exception as error:
        whom = f"{numbered(list(clients_of(seen)), 'client')} in round {seen.round}"
        warn(f"adversary '{entry.id}': capture of {whom} failed: {type(error).__name__}: {error}")
        return []
    return [Attack(entry, job, clients_of(seen), (seen.round,)) for job in jobs]


@dataclass(frozen=True)
class _Answer:
    """What came of a job: the reconstruction or the plugin's error, and the wall time of its share."""

    found: Reconstruction | Exception
    seconds: float


def run_attacks(
    attacks: Sequence[Attack],
    experiment: Experiment,
    folder: RunFolder,
    device: torch.device,
    screen: Screen,
    warn: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Run and score every job; a line of attacks.jsonl each, in the order of the experiment file.

    An attack draws from a generator that its job's content alone determines: the same job gives the same result in
    whatever company it runs, up to rounding where a plugin runs several jobs as one batch, and but for limits of time.
    """
    position = {entry.id: place for place, entry in enumerate(experiment.adversaries)}
    ordered = sorted(attacks, key=lambda one: (position.get(one.entry.id, 0), one.round, one.clients))
    lines = []
    for _, grouped in itertools.groupby(ordered, key=lambda one: one.entry.id):
        group = list(grouped)
        given = _answers(group, experiment, folder, device, screen, warn)
        if hasattr(group[0].entry.plugin.settings, "combine"):
            given = _combined(list(given), experiment, folder, device, screen, warn)
        for attack, answer in given:
            line = _line(attack, answer, experiment, folder)
            failed = line["status"] == "failed"
            screen.attack(attack.name, 1, 1, "failed" if failed else f"objective {line['objective']:.4g}")
            if failed:
                warn(f"adversary '{attack.title}' failed on {attack.whom}: {line['error']}")
            append_line(folder.attacks, line)
            lines.append(line)
    return lines


def _answers(
    group: Sequence[Attack],
    experiment: Experiment,
    folder: RunFolder,
    device: torch.device,
    screen: Screen,
    warn: Callable[[str], None],
) -> Iterator[tuple[Attack, _Answer]]:
    """Run the attacks of one adversary: one by one, or as one batch where its plugin says that this is better."""
    plugin = group[0].entry.plugin.settings
    together: dict[str, _Answer] = {}
    if len(group) > 1 and hasattr(plugin, "batches"):
        together = _together(group, experiment, folder, device, screen, warn)
    for attack in group:
        yield attack, together.get(attack.job) or _alone(attack, experiment, folder, device, screen)


def _alone(attack: Attack, experiment: Experiment, folder: RunFolder, device: torch.device, screen: Screen) -> _Answer:
    start = time.perf_counter()
    screen.attack(attack.name, 0, 1, "")
    try:
        job = JobStore(folder.captures, folder.jobs).get(attack.job)
        with progress.listening(_teller(screen, attack.name)):
            found: Reconstruction | Exception = attack.entry.plugin.settings.attack(
                job, device, seeding.generator(experiment.seed, "attack", attack.job)
            )
    except Exception as error:
        found = error
    return _Answer(found, time.perf_counter() - start)


def _teller(screen: Screen, name: str) -> Callable[[int, int, str], None]:
    """Shows how far an attack is. That it has ended is for whoever started it to say, with what came of it."""

    def tell(done: int, total: int, note: str) -> None:
        if done < total:
            screen.attack(name, done, total, note)

    return tell


def _together(
    group: Sequence[Attack],
    experiment: Experiment,
    folder: RunFolder,
    device: torch.device,
    screen: Screen,
    warn: Callable[[str], None],
) -> dict[str, _Answer]:
    """The answers by job; nothing if the plugin would rather have them one by one, or fails on the batch."""
    plugin, name = group[0].entry.plugin.settings, f"{group[0].entry.id}, {len(group)} jobs at once"
    start = time.perf_counter()
    try:
        if not plugin.batches(device):
            return {}
        store = JobStore(folder.captures, folder.jobs)
        jobs = [store.get(attack.job) for attack in group]
        screen.attack(name, 0, 1, "")
        with progress.listening(_teller(screen, name)):
            rngs = [seeding.generator(experiment.seed, "attack", attack.job) for attack in group]
            found = list(plugin.attack_many(jobs, device, rngs))
        if len(found) != len(jobs):
            raise ValueError(f"attack_many returned {counted(len(found), 'answer')} to {len(jobs)} jobs")
    except Exception as error:  # one by one shows which of them it is
        warn(
            f"adversary '{group[0].entry.id}' failed on {len(group)} jobs at once and runs them one by one: "
            f"{type(error).__name__}: {error}"
        )
        return {}
    screen.attack(name, 1, 1, "")
    seconds = (time.perf_counter() - start) / len(group)
    return {attack.job: _Answer(one, seconds) for attack, one in zip(group, found, strict=True)}


class _Parts(Sequence[tuple[Job, Reconstruction]]):
    """Jobs with their answers. A job holds a model and an update, so each is read anew whenever it is looked at."""

    def __init__(self, store: JobStore, found: Sequence[tuple[str, Reconstruction]]) -> None:
        self._store, self._found = store, found

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, place: int) -> tuple[Job, Reconstruction]: ...
    @overload
    def __getitem__(self, place: slice) -> _Parts: ...
    def __getitem__(self, place: int | slice) -> tuple[Job, Reconstruction] | _Parts:
        if isinstance(place, slice):
            return _Parts(self._store, self._found[place])
        job, found = self._found[place]
        return self._store.get(job), found


def _combined(
    given: Sequence[tuple[Attack, _Answer]],
    experiment: Experiment,
    folder: RunFolder,
    device: torch.device,
    screen: Screen,
    warn: Callable[[str], None],
) -> Iterator[tuple[Attack, _Answer]]:
    """One answer for all jobs on the same clients, put together by the plugin, or several by name, which stands behind
    the adversary's then. Jobs that failed are left out.
    """
    store = JobStore(folder.captures, folder.jobs)
    for _, grouped in itertools.groupby(sorted(given, key=lambda one: one[0].clients), key=lambda one: one[0].clients):
        group = sorted(grouped, key=lambda one: one[0].rounds)
        address = hashlib.sha256("".join(attack.job for attack, _ in group).encode()).hexdigest()
        rounds = tuple(dict.fromkeys(round_ for attack, _ in group for round_ in attack.rounds))
        whole = replace(group[0][0], job=address, rounds=rounds, combined=True)
        start, seconds = time.perf_counter(), sum(answer.seconds for _, answer in group)
        parts = []
        for attack, answer in group:
            if isinstance(answer.found, Exception):
                warn(f"adversary '{attack.entry.id}' failed on {attack.whom}, which is left out: {answer.found}")
            else:
                parts.append((attack.job, answer.found))
        screen.attack(whole.name, 0, 1, "")
        try:
            if not parts:
                raise next(answer.found for _, answer in group if isinstance(answer.found, Exception))
            with progress.listening(_teller(screen, whole.name)):
                rng = seeding.generator(experiment.seed, "attack", address)
                found = whole.entry.plugin.settings.combine(_Parts(store, parts), device, rng)
            if isinstance(found, Mapping):
                answers.check_names(found)
        except Exception as error:
            found = error
        seconds += time.perf_counter() - start
        for name, one in found.items() if isinstance(found, Mapping) else [("", found)]:
            failed = len(group) - len(parts)
            if failed and isinstance(one, Reconstruction) and one.status == "done" and isinstance(one.notes, Mapping):
                one = replace(one, status="partial", notes={**one.notes, "jobs that failed": failed})
            yield replace(whole, answer=name), _Answer(one, seconds)


def _line(attack: Attack, answer: _Answer, experiment: Experiment, folder: RunFolder) -> dict[str, Any]:
    """What attacks.jsonl says of an attack: its answer, scored."""
    entry, found = attack.entry, answer.found
    line: dict[str, Any] = {
        "adversary": attack.title,
        "entry": entry.id,
        "plugin": entry.plugin.name,
        "client": attack.clients[0] if len(attack.clients) == 1 else None,
        "clients": list(attack.clients),
        "round": attack.round,
        "rounds": list(attack.rounds),
        "vantage": entry.vantage,
        "knows": list(entry.knows),
        "aware": "defenses" in entry.knows,
        "defenses": _defenses(attack.clients, experiment),
        "job": attack.job,
        "combined": attack.combined,
    }
    try:
        if isinstance(found, Exception):
            raise found
        truth = scoring.read_truth(folder.truth, attack.clients, attack.rounds)
        answers.check(found, tuple(truth.images.shape[1:]), max(len(truth), _announced(attack.clients, experiment)))
        scores = _scores(attack, found, truth, experiment, folder)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return {**line, "status": "failed", "error": text, "seconds": answer.seconds}
    return {
        **line,
        **scores,
        "status": found.status,
        "error": None,
        "iterations": int(found.iterations),
        "seconds": answer.seconds,
        "objective": float(found.objective),
        "history": [[int(step), float(value)] for step, value in found.history],
        "notes": dict(found.notes),
    }


def _announced(clients: Sequence[int], experiment: Experiment) -> int:
    """How many images the clients say that they have used, where defenses draw their number by chance."""
    trainings = [experiment.clients.training(client) for client in clients]
    if not any(hasattr(defense.settings, "gradient") for one in trainings for defense in one.defenses):
        return 0
    if experiment.clients.algorithm == "fedavg" and not all(one.local_steps for one in trainings):
        # Epochs: at most all that the clients have.
        data, count = experiment.data, experiment.clients.count
        shares = load_federation(data.dataset.settings, data.partition.settings, count, experiment.seed).shares
        return sum(len(shares[client]) for client in clients)
    return sum(one.batch_size * (one.local_steps or 1) for one in trainings)


def _defenses(clients: Sequence[int], experiment: Experiment) -> list[dict[str, Any]]:
    """The defenses of a client, or of all whose updates were summed; one that not all of them have says whose it is.
    A bottleneck in the model is one of everybody's.
    """
    units = getattr(experiment.model.settings, "bottleneck", 0)
    model = [{"name": "precode", "bottleneck": units}] if units else []
    own = {client: experiment.clients.training(client).defenses for client in clients}
    if len(set(own.values())) == 1:
        return model + [defense.describe() for defense in own[clients[0]]]
    out: list[dict[str, Any]] = model
    for defense in dict.fromkeys(itertools.chain(*own.values())):
        whose = [client for client in clients if defense in own[client]]
        out.append(defense.describe() | ({"clients": whose} if len(whose) < len(own) else {}))
    return out


def _scores(
    attack: Attack, found: Reconstruction, truth: Truth, experiment: Experiment, folder: RunFolder
) -> dict[str, Any]:
    before = {}
    if found.initial is not None:
        floor = scoring.score(found.initial.cpu(), None, truth, experiment.scores.lpips).fields
        before = {f"{key}_before": floor[key] for key in ("psnr", "ssim", "lpips")}
    if found.images is None:
        assert found.labels is not None
        return {**scoring.score_labels(found.labels, truth, experiment.scores.lpips), "picture": None}
    images = found.images.cpu().to(torch.float32).clamp(0, 1)
    ids, labels = None if found.ids is None else found.ids.cpu(), found.labels
    order = scoring.pairing(images, ids, truth)
    if ids is not None and labels is not None:
        # With ids there may be more images than in the truth; the labels of those would score for their number.
        labels = labels.cpu()[order[order >= 0]]
    result = scoring.score(images, labels, truth, experiment.scores.lpips, order)
    fields = result.fields
    if "paper" in experiment.scores.protocols:
        values = scoring.as_published(images, ids, truth, experiment.scores.lpips, _normalisation(experiment))
        fields["per_image"]["lpips_paper"] = values
        fields["lpips_paper"] = None if values is None else sum(values) / len(values)
    # A file's name has an end; the job's address tells such sums apart.
    clients = "-".join(map(str, attack.clients)) if len(attack.clients) < 9 else f"sum{len(attack.clients)}"
    picture = folder.reconstructions / f"{attack.title}-c{clients}-r{attack.round}-{attack.job[:8]}.png"
    comparison(result.truth.numpy(), result.guess.numpy(), picture)
    return {**fields, **before, "picture": str(picture.relative_to(folder.path))}


def _normalisation(experiment: Experiment) -> Normalisation:
    return load_data(experiment.data.dataset.settings).normalisation
