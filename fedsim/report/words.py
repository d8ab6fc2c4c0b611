"""The sentences of a report. They say what was measured; what is much or little is left to the reader."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fedsim.report import aggregation
from fedsim.report.formats import (
    counted,
    decibels,
    finite,
    fixed,
    listed,
    numbered,
    percent,
    plain,
    significant,
    whole,
)
from fedsim.report.reading import EARLY, PARTLY, Attack, Run, Sight
from fedsim.report.rounds import Round
from fedsim.report.values import Table, integer, integers, strings, table, tables, text

ROLES = {"link": "the eavesdropper", "server": "the server", "client": "the curious client"}
PLACES = {
    "link": "on the link between a client and the server",
    "server": "at the server",
    "client": "at one of the clients",
}
LABELS = "the labels of the private batch"
"""How a manifest begins to say that labels were granted."""
SINGLE = "any single client's update"
"""What a manifest says that an adversary does not see to which sums are shown."""
KNOWLEDGE = {
    "labels": LABELS,
    "batch_statistics": "the BatchNorm statistics of the private batch",
    "running_statistics": "the client's running BatchNorm statistics",
    "defenses": "which defenses the client uses, with their settings, but not their random draws",
}
POWERS = {
    "alter_update": "the update on its way",
    "alter_model": "the global model that a client is sent",
    "alter_requests": "what the server asks of the clients in a secure aggregation",
}
SIGHTS = {
    "sizes": "sizes and timing of the messages",
    "global_model": "the broadcast model",
    "update": "the client's update, as it leaves the client",
    "num_examples": "how many examples a client trained on",
    "own_data": "its own data",
}
EXITS = {
    0: "",
    1: "The run failed (exit code 1).",
    2: "The run was refused for its input (exit code 2).",
    3: "The run finished, with quarantined attack jobs (exit code 3).",
    130: "The run was interrupted from the keyboard (exit code 130).",
    143: "The run was told to end before it was done (exit code 143).",
}
NOISES = ("gaussian", "laplace", "laplacian", "uniform")


def defense(entry: Table) -> str:
    """One defense in a few words: `pruning 0.9`, `Gaussian noise 0.01`, `mixup (alpha 0.4, pairs 2)`."""
    name = text(entry.get("name")) or "unnamed defense"
    words = name.replace("_", " ").replace("-", " ").strip()
    # Every update here is one of gradients, so the first word of `gradient pruning` tells nothing.
    words = words.removeprefix("gradient ") or words
    settings = {key: value for key, value in entry.items() if key != "name" and value is not None}
    # Of a sum of clients, the defense of some of them.
    some = list(integers(settings.pop("clients", None)))
    whose = f" of {numbered(some, 'client')}" if some else ""
    for key, value in list(settings.items()):
        if isinstance(value, str) and value.lower() in NOISES:
            words = f"{value.capitalize()} {words}"
            del settings[key]
    if len(settings) == 1:
        return f"{words} {plain(next(iter(settings.values())))}{whose}"
    if settings:
        inside = ", ".join(f"{key.replace('_', ' ')} {plain(value)}" for key, value in settings.items())
        return f"{words} ({inside}){whose}"
    return words + whose


def defenses(entries: Sequence[Table] | None) -> str:
    """Defenses in the order in which they act; `no defense` without any."""
    if entries is None:
        return "defenses not recorded"
    return " + ".join(defense(entry) for entry in entries) or "no defense"


def configured_defenses(run: Run, client: int | None) -> Sequence[Table] | None:
    """The defenses that the experiment gives a client; None if there is no experiment file to tell."""
    clients = run.section("clients")
    if not clients:
        return None
    for group in tables(clients.get("groups")):
        if client in integers(group.get("members")) and "defenses" in group:
            return tables(group.get("defenses"))
    return tables(clients.get("defenses"))


def id_of(entry: Table) -> str:
    """What an adversary of the experiment file is called."""
    return text(entry.get("id")) or text(entry.get("name")) or "unnamed"


def role(attack: Attack, several: bool = False) -> str:
    """Who attacks, by its place; with its id where `several` adversaries stand in the same kind of place."""
    words = ROLES.get(attack.vantage, "the adversary")
    return f"{words} ({attack.adversary})" if several or attack.vantage not in ROLES else words


def victim(attack: Attack) -> str:
    """Whose data were attacked."""
    if len(attack.clients) > 1:
        return f"The sum of {numbered(list(attack.clients), 'client')}"
    return "No single client" if attack.client is None else f"Client {attack.client}"


def when(attack: Attack) -> str:
    """The round whose data were attacked."""
    return numbered(list(attack.rounds), "round") if attack.rounds else "unknown round"


def whose(attack: Attack) -> tuple[int, ...]:
    """The clients whose data were attacked, as far as they are named."""
    return attack.clients or (() if attack.client is None else (attack.client,))


def strength(attack: Attack) -> tuple[bool, float, float, float]:
    """An order of attacks by what they got: SSIM, then PSNR, then, of labels alone, how many were right.

    What got nothing comes last.
    """
    ssim = attack.ssim if attack.ssim is not None and not math.isnan(attack.ssim) else -math.inf
    psnr = attack.psnr if attack.psnr is not None and not math.isnan(attack.psnr) else -math.inf
    right = attack.label_accuracy if attack.labels_alone else None
    return attack.scored, ssim, psnr, -math.inf if right is None else right


def scores(attack: Attack, *, lpips: bool = False) -> str:
    """`SSIM 0.88, PSNR 26.4 dB`; what was not measured is left out."""
    parts = []
    if attack.ssim is not None and not math.isnan(attack.ssim):
        parts.append(f"SSIM {fixed(attack.ssim)}")
    if attack.psnr is not None and not math.isnan(attack.psnr):
        parts.append(f"PSNR {decibels(attack.psnr)}")
    if lpips and finite(attack.lpips):
        net = f" ({attack.lpips_net})" if attack.lpips_net else ""
        parts.append(f"LPIPS {fixed(attack.lpips)}{net}")
    return ", ".join(parts) or "no score"


def outcome(attacks: Sequence[Attack], several: bool = False) -> str:
    """What came of all attacks on one client, in a sentence without its subject.

    The strongest attack by an adversary that does not know the defense stands first, as a defense is judged by it most
    often; the strongest one that knows it follows, as that is the honest test of a defense.
    """
    naive, aware = (
        max((attack for attack in attacks if attack.scored and attack.informed is knows), key=strength, default=None)
        for knows in (False, True)
    )
    first = naive or aware
    read = max((attack for attack in attacks if attack.labels_alone), key=strength, default=None)
    told = f"{role(read, several)} inferred {labels_right(read)}" if read is not None else ""
    if first is None and read is not None:
        return f"{told}, and was after no images"
    if first is None:
        worst = attacks[0]
        return f"{role(worst, several)} attacked, but there is nothing to score: {failure(worst)}"
    who = role(first, several)
    if first is aware:
        who += ", which knows the defense,"
    said = f"{who} reconstructed {counted(first.images, 'image')}, {scores(first)}"
    tried = sum(attack.informed is first.informed and not attack.labels_alone for attack in attacks)
    if tried > 1:
        said += f" (the strongest of {counted(tried, 'attack')})"
    if naive and aware:
        said += f"; against an attacker who knows the defense, {scores(aware)}"
    return f"{said}; {told}" if told else said


def failure(attack: Attack) -> str:
    """Why an attack has no score, or not the one it should have."""
    if attack.error:
        return attack.error
    if attack.status == "nan":
        return "its objective became NaN; the last finite guess was kept"
    if attack.failed:
        return f"it ended as '{attack.status}'"
    return "no scores recorded"


def ending(attack: Attack) -> str:
    """How an attack that did not fail ended, where that is not simply being done."""
    return "" if attack.error else (EARLY | PARTLY).get(attack.status, "")


def victims(attacks: Iterable[Attack]) -> dict[tuple[int, ...], list[Attack]]:
    """The attacks by whom they hit; who lost most comes first, and so does the strongest attack on each.

    The key is empty where no client is named, and has several where only their sum was seen.
    """
    by_client: dict[tuple[int, ...], list[Attack]] = {}
    for attack in attacks:
        by_client.setdefault(whose(attack), []).append(attack)
    for hits in by_client.values():
        hits.sort(key=strength, reverse=True)
    return dict(sorted(by_client.items(), key=lambda item: strength(item[1][0]), reverse=True))


def ambiguous(attacks: Iterable[Attack]) -> bool:
    """Whether two adversaries stand in the same kind of place, so that a role alone does not name one."""
    seen: dict[tuple[str, bool], set[str]] = {}
    for attack in attacks:
        seen.setdefault((attack.vantage, attack.informed), set()).add(attack.adversary)
    return any(len(names) > 1 for names in seen.values())


def spread(attack: Attack) -> str:
    """What the mean hides: the best and the worst image of the batch."""
    values = [value for value in attack.per_image.get("ssim", ()) if value is not None and math.isfinite(value)]
    if len(values) < 2 or fixed(min(values)) == fixed(max(values)):
        return ""
    return f"SSIM image by image from {fixed(min(values))} to {fixed(max(values))}."


def pixel_error(attack: Attack) -> str:
    """PSNR in other words. With images in [0, 1], PSNR is -20 log10 of the root-mean-square error."""
    if not finite(attack.psnr):
        return ""
    assert attack.psnr is not None
    error = 10 ** (-min(max(attack.psnr, -100.0), 200.0) / 20)
    share = f"about {percent(error, 0 if error >= 0.1 else 1)}" if error >= 0.001 else "less than 0.1 %"
    return f"{decibels(attack.psnr)} is a typical pixel error of {share} of the range."


def labels_right(attack: Attack) -> str:
    """`88 % of the labels`."""
    return f"{percent(attack.label_accuracy, 0)} of the labels"


def labels(run: Run, attack: Attack) -> str:
    """How far the labels came out right; a score for them means nothing where they were granted."""
    if _given_labels(run, attack.entry):
        return "labels were given to the adversary"
    if attack.label_accuracy is None or not math.isfinite(attack.label_accuracy):
        return ""
    return f"{labels_right(attack)} right"


def given_labels(run: Run) -> frozenset[str]:
    """The adversaries that were granted the labels, of those that attacked."""
    return frozenset(entry for entry in {attack.entry for attack in run.attacks} if _given_labels(run, entry))


def _given_labels(run: Run, adversary: str) -> bool:
    entry = next(
        (e for e in tables(run.experiment.get("adversaries")) if adversary in (e.get("id"), e.get("name"))), {}
    )
    sight = next((sight for sight in run.sights if sight.adversary == adversary), Sight(adversary))
    return any(item == "labels" or item.startswith(LABELS) for item in (*strings(entry.get("knows")), *sight.knows))


def distinguishing(attack: Attack, among: Sequence[Attack]) -> str:
    """What sets an attack apart from the others on the same client, in a few words."""
    parts = []
    # An aware twin beside an unaware adversary is told apart by what it knows; its id would say the same again.
    if len({other.adversary for other in among if other.informed is attack.informed}) > 1:
        parts.append(attack.adversary)
    if len({other.round for other in among}) > 1:
        parts.append(f"round {attack.round}" if attack.round is not None else "unknown round")
    if attack.informed:
        parts.append("knows the defense")
    elif any(other.informed for other in among):
        parts.append("does not know the defense")
    return ", ".join(parts)


def start_to_end(rounds: Sequence[Round], field: str, style: str = "number") -> str:
    """`0.11 → 0.87`, from the first value that there is to the last; empty with none."""
    values = [(entry.round, getattr(entry, field)) for entry in rounds]
    known = [(number, value) for number, value in values if finite(value)]
    if not known:
        return ""
    (first_round, first), (last_round, last) = known[0], known[-1]
    written = [percent(value) if style == "percent" else fixed(value, 3) for value in (first, last)]
    if first_round == last_round:
        return f"{written[0]} in round {first_round}"
    return f"{written[0]} → {written[1]} (round {first_round} → {last_round})"


def privacy(rounds: Sequence[Round]) -> str:
    """What private training has cost at most, `epsilon 1.23 at delta 1e-05`; empty where no client trains so."""
    last = next((entry for entry in reversed(rounds) if entry.epsilon is not None or entry.delta is not None), None)
    if last is None:
        return ""
    at = "" if last.delta is None else f" at delta {significant(last.delta)}"
    if last.epsilon is None:
        return f"no bound on epsilon{at}, as a client adds no noise"
    return f"epsilon {significant(last.epsilon)}{at}"


def vantage(entry: Table, sight: Sight, run: Run) -> str:
    """Where an adversary stands and what it may do, in a sentence or two, from the experiment alone."""
    place = text(entry.get("vantage"))
    targets, rounds = list(integers(entry.get("targets"))), list(integers(entry.get("rounds")))
    aim = f" It attacks {numbered(targets, 'client')}" if targets else " It has no target"
    aim += f" in {numbered(rounds, 'round')}." if rounds else "."
    if entry.get("aggregate") is True and len(targets) > 1:
        aim += " It is shown the sum of their updates and no single one."
    member = integer(entry.get("member"))
    where = f"as client {member} among the clients" if member is not None else PLACES.get(place, "at an unknown place")
    can = [POWERS.get(word, word.replace("_", " ")) for word in strings(entry.get("powers")) or sight.powers]
    power = f" It may alter {listed(can)}." if can else " It only listens: it may alter nothing."
    server = run.section("server")
    guard = ""
    if server.get("tls") is True and place == "link":
        guard += " The links are encrypted (TLS), so it sees sizes and timing alone."
    secure = aggregation.mode(run)
    if secure:
        guard += f" Updates are summed by secure aggregation ({secure})."
    derive = sight.derive or text(entry.get("derive")) or text(table(entry.get("derive")).get("name"))
    if derive:
        guard += f" Single updates it tries to derive from what it sees ({derive})."
    colluders = list(integers(entry.get("colluders")) or sight.colluders)
    if colluders:
        guard += f" It works together with {numbered(colluders, 'client')}."
    return f"This adversary stands {where}.{aim}{power}{guard}"


def wordings(names: Iterable[str], glossary: Table) -> list[str]:
    """Names of the threat model in words; what is no such name is shown as it is."""
    return [str(glossary.get(name, name)) for name in names]


def unseen(items: Iterable[str], colluders: bool) -> list[str]:
    """What an adversary does not see. With colluders, it does see some single updates: theirs."""
    return [item.replace(SINGLE, SINGLE.replace("single", "other")) if colluders else item for item in items]


def setup(run: Run) -> str:
    """The experiment in one line."""
    clients, server = run.section("clients"), run.section("server")
    count = integer(clients.get("count"))
    count = count if count is not None else (len(run.clients) or None)
    last = integer(run.experiment.get("rounds"))
    data, model = text(run.section("data").get("name")), text(run.section("model").get("name"))
    strategy = server.get("strategy")
    combining = text(strategy) or text(table(strategy).get("name"))
    split = run.section("data").get("partition")
    settings = table(split)
    partition = text(split) or " ".join(
        [text(settings.get("name")) or text(settings.get("kind"))]
        + [f"({key} {plain(value)})" for key, value in settings.items() if key not in ("name", "kind")]
    )
    parameters = integer(run.manifest.get("parameters"))
    size = f" ({counted(parameters, 'parameter')})" if parameters is not None else ""
    parts = [
        f"{data}, split {partition}" if data and partition else data,
        f"{model}{size}" if model else "",
        f"{counted(count, 'client')}" if count is not None else "",
        counted(last, "round") if last is not None else "",
        " ".join(part for part in (text(clients.get("algorithm")), "clients,") if part) + f" {combining} at the server"
        if text(clients.get("algorithm")) and combining
        else "",
        f"secure aggregation {aggregation.mode(run)}" if aggregation.mode(run) else "",
    ]
    return " · ".join(part for part in parts if part)


def state(run: Run) -> list[str]:
    """What a reader must know before anything else: that the run is unfinished, or did not end well."""
    if not run.manifest:
        return []
    said = []
    status, code = text(run.manifest.get("status")), integer(run.manifest.get("exit"))
    if code is not None and EXITS.get(code, "x"):
        said.append(EXITS.get(code) or f"The run ended with exit code {code}.")
    elif code is None and status not in ("done",):
        said.append(
            f"The run has not recorded an end{f' (status: {status})' if status else ''}; this is what there is."
        )
    elif status not in ("", "done"):
        said.append(f"The run's status is '{status}'.")
    planned = integer(run.experiment.get("rounds"))
    reached = max((entry.round for entry in run.rounds), default=None)
    if planned is not None and reached is not None and reached < planned:
        said.append(f"Training is recorded up to round {whole(reached)} of {whole(planned)}.")
    return said
