"""The threat model as data: which vantage sees what, and whether what an adversary needs is granted.

This table is the one place that says who sees what. `wiretap` hands over by it, `check` refuses by it, and
`fedsim check` and the report print it.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.errors import InputError
from fedsim.experiment import KNOWLEDGE, POWERS, SIGHTS, AdversaryEntry, Experiment

SHOWS: dict[tuple[str, bool], frozenset[str]] = {
    # (vantage, TLS): what it shows
    ("link", False): frozenset({"sizes", "global_model", "update", "num_examples"}),
    ("link", True): frozenset({"sizes"}),
    ("server", False): frozenset({"sizes", "global_model", "update", "num_examples"}),
    ("server", True): frozenset({"sizes", "global_model", "update", "num_examples"}),
    ("client", False): frozenset({"sizes", "global_model", "own_data"}),
    ("client", True): frozenset({"sizes", "global_model", "own_data"}),
}

WORDS = {
    "sizes": "the sizes and times of messages",
    "global_model": "the global model of every round",
    "update": "each targeted client's update, after the client's defenses",
    "num_examples": "how many examples the update was made from",
    "own_data": "its own data",
    "labels": "the labels of the private batch",
    "batch_statistics": "the BatchNorm statistics of the private batch",
    "running_statistics": "the running BatchNorm statistics",
    "defenses": "which defenses the client uses, with their settings",
}

_PLACES = {
    "link": "an eavesdropper on the link between the server and client {targets}",
    "server": "the honest-but-curious server",
    "client": "the honest-but-curious client {member}",
}


@dataclass(frozen=True)
class View:
    """What one adversary has, in the words of the table."""

    adversary: str
    sees: frozenset[str]
    knows: frozenset[str]

    @property
    def has(self) -> frozenset[str]:
        """Everything it may work with."""
        return self.sees | self.knows


def view(entry: AdversaryEntry, experiment: Experiment) -> View:
    """What an adversary sees from its vantage and knows besides.

    BatchNorm statistics that the policy puts on the wire are seen by whoever sees the message.
    """
    sees = set(SHOWS[entry.vantage, experiment.server.tls])
    policy = experiment.clients.batchnorm
    if getattr(experiment.model.settings, "batchnorm", None) is not False:
        if "global_model" in sees and policy in ("share_batch", "share_running", "freeze"):
            sees.add("running_statistics")
        if "update" in sees and policy == "share_batch":
            sees.add("batch_statistics")
    return View(entry.id, frozenset(sees), frozenset(entry.knows))


def check(experiment: Experiment, source: str = "experiment") -> None:
    """Refuse, before round 0 and by name, every adversary that needs more than its threat model grants.

    Raises InputError with one line for each adversary and item.
    """
    problems = []
    for position, entry in enumerate(experiment.adversaries):
        place = f"{source}: adversaries[{position}]: '{entry.id}'"
        plugin = entry.plugin.settings
        for attribute in ("needs", "powers", "capture", "attack"):
            if not hasattr(plugin, attribute):
                problems.append(f"{place}: plugin '{entry.plugin.name}' has no '{attribute}', so it is no adversary")
        if problems:
            continue
        for item in sorted(plugin.needs - view(entry, experiment).has):
            problems.append(f"{place}: plugin '{entry.plugin.name}' {_missing(item, entry, experiment)}")
        for power in sorted(plugin.powers):
            if power not in POWERS:
                problems.append(f"{place}: plugin '{entry.plugin.name}' asks for '{power}', which is not a known power")
            elif power not in entry.powers:
                problems.append(
                    f"{place}: plugin '{entry.plugin.name}' needs the power '{power}', which is not granted; "
                    f"add it to powers"
                )
        for power in entry.powers:
            problems.append(
                f"{place}: the power '{power}' cannot be granted: "
                f"adversaries of this version are passive; leave powers out"
            )
    if problems:
        raise InputError(*problems)


def _missing(item: str, entry: AdversaryEntry, experiment: Experiment) -> str:
    if item not in SIGHTS and item not in KNOWLEDGE:
        return f"asks for '{item}', which no threat model has; known: {', '.join([*SIGHTS, *KNOWLEDGE])}"
    words = f"needs '{item}' ({WORDS[item]}), which"
    if item in SIGHTS:
        tls = " with TLS" if entry.vantage == "link" and experiment.server.tls else ""
        places = sorted(
            {
                vantage
                for (vantage, encrypted), shown in SHOWS.items()
                if item in shown and encrypted == experiment.server.tls
            }
        )
        seen_from = ", ".join(places) or "nowhere"
        return f"{words} the vantage '{entry.vantage}'{tls} does not show; it is seen from: {seen_from}"
    if item in ("batch_statistics", "running_statistics") and experiment.model.settings.batchnorm is False:
        model = experiment.model.name
        return f"{words} model '{model}' does not have: it has no BatchNorm; choose another mode of the attack"
    return f'{words} it is not granted; add "{item}" to knows'


def describe(experiment: Experiment) -> list[dict[str, object]]:
    """Who sees what, for the manifest, the report and `fedsim check`."""
    out: list[dict[str, object]] = []
    for entry in experiment.adversaries:
        seen = view(entry, experiment)
        relevant = set(WORDS)
        if getattr(experiment.model.settings, "batchnorm", None) is False:
            relevant -= {"batch_statistics", "running_statistics"}
        order = list(WORDS)
        sees = sorted(seen.sees, key=order.index)
        knows = sorted(seen.knows - seen.sees, key=order.index)
        hidden = sorted(relevant - seen.has, key=order.index)
        out.append(
            {
                "adversary": entry.id,
                "plugin": entry.plugin.name,
                "vantage": entry.vantage,
                "targets": list(entry.targets),
                "rounds": list(entry.rounds),
                "sees": [WORDS[item] for item in sees],
                "knows": [WORDS[item] for item in knows],
                "does_not_see": [WORDS[item] for item in hidden],
                "powers": list(entry.powers),
                "words": _sentence(entry, experiment, sees, knows, hidden),
            }
        )
    return out


def _sentence(
    entry: AdversaryEntry, experiment: Experiment, sees: list[str], knows: list[str], hidden: list[str]
) -> str:
    targets = " and ".join([", ".join(map(str, entry.targets[:-1])), str(entry.targets[-1])]).removeprefix(" and ")
    place = _PLACES[entry.vantage].format(targets=targets, member=entry.member)
    rounds = ", ".join(map(str, entry.rounds))
    tls = " The links are encrypted (TLS)." if experiment.server.tls else ""
    text = f"'{entry.id}' is {place}.{tls} In round {rounds} it sees {_join(sees)}."
    text += f" It is granted {_join(knows)}." if knows else " It is granted nothing else."
    text += f" It does not see {_join(hidden)}." if hidden else ""
    return text + " It changes no message."


def _join(items: list[str]) -> str:
    words = [WORDS[item] for item in items]
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]
