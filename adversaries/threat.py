"""The threat model as data: which vantage sees what, and whether what an adversary needs is granted.

This table is the one place that says who sees what. `wiretap` hands over by it, `check` refuses by it, and
`fedsim check` and the report print it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.adversaries.base import Situation
from fedsim.experiment import KNOWLEDGE, POWERS, SIGHTS, AdversaryEntry, Experiment
from fedsim.experiment_checks import mixing
from fedsim.schema import Problems

if TYPE_CHECKING:
    from torch import nn

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
    "update": "each targeted client's update (after the client's defenses)",
    "num_examples": "how many examples the update was made from",
    "own_data": "its own data",
    "labels": "the labels of the private batch",
    "batch_statistics": "the BatchNorm statistics of the private batch",
    "running_statistics": "the running BatchNorm statistics",
    "defenses": "which defenses the client uses, with their settings",
    "mixing_indices": "which private images each encoded one was mixed from",
    "mixing_coefficients": "the coefficients of every mixture",
}

SUMMED = {
    "sizes": "the summed size of the targeted clients' messages",
    "update": "the sum of the targeted clients' updates (after their defenses)",
    "num_examples": "how many examples the sum was made from",
    "labels": "the labels of the private batches",
    "batch_statistics": "the mean of the private batches' BatchNorm statistics",
    "running_statistics": "the mean of the clients' running BatchNorm statistics",
    "defenses": "which defenses the clients use, with their settings",
    "mixing_indices": "which private images each encoded one was mixed from",
    "mixing_coefficients": "the coefficients of every mixture",
}
"""What is said otherwise of an adversary that is shown the sum of several clients' updates and no single one."""

MIXING = frozenset({"mixing_indices", "mixing_coefficients"})
"""What there is to know of an encoding that mixes images."""

SINGLE = "any single client's update"

_PLACES = {
    "link": "an eavesdropper on the link between the server and {targets}",
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


def words(item: str, summed: bool = False) -> str:
    """A sight or a piece of knowledge for a person; `summed` where it is of several clients' sum."""
    return SUMMED.get(item, WORDS[item]) if summed else WORDS[item]


def view(entry: AdversaryEntry, experiment: Experiment) -> View:
    """What an adversary sees from its vantage and knows besides.

    BatchNorm statistics that the policy puts on the wire are seen by whoever sees the message.
    """
    sees = set(SHOWS[entry.vantage, experiment.server.tls])
    policy = experiment.clients.batchnorm
    if has_batchnorm(experiment) is not False:
        if "global_model" in sees and policy in ("share_batch", "share_running", "freeze"):
            sees.add("running_statistics")
        if "update" in sees and policy == "share_batch":
            sees.add("batch_statistics")
    return View(entry.id, frozenset(sees), frozenset(entry.knows))


def check(experiment: Experiment, problems: Problems) -> None:
    """A rule for the reader of experiment files: refuse, before round 0 and by name, every adversary that needs more
    than its threat model grants, asks for a power, or does not fit the model.
    """
    for position, entry in enumerate(experiment.adversaries):
        for text in refusals(entry, experiment):
            problems.add(("adversaries", position), f"'{entry.id}': {text}")


def refusals(entry: AdversaryEntry, experiment: Experiment) -> list[str]:
    """Why this adversary cannot work under its threat model; nothing if it can."""
    plugin, name = entry.plugin.settings, f"plugin '{entry.plugin.name}'"
    lacking = lacks(plugin)
    if lacking:
        return [f"{name} {lacking}"]
    out = [
        f"the power '{power}' cannot be granted: adversaries of this version are passive; leave powers out"
        for power in entry.powers
    ]
    for power in sorted(plugin.powers):
        if power not in POWERS:
            out.append(f"{name} asks for '{power}', which is not a known power")
        elif power not in entry.powers:
            out.append(f"{name} needs the power '{power}', which is not granted; add it to powers")
    # A plugin may know more than its needs say about what it works on.
    against = objection(plugin, situation(entry, experiment))
    if against:
        return [*out, f"{name} does not fit this experiment (model '{experiment.model.name}'): {against}"]
    return [
        *out,
        *(f"{name} {_missing(item, entry, experiment)}" for item in sorted(plugin.needs - view(entry, experiment).has)),
    ]


def lacks(plugin: Any) -> str | None:
    """Which part of an adversary a plugin has not got, in words; None if it has them all."""
    lacking = [one for one in ("needs", "powers", "capture", "attack") if not hasattr(plugin, one)]
    return f"has no '{lacking[0]}', so it is no adversary" if lacking else None


def objection(plugin: Any, known: Situation, model: nn.Module | None = None) -> str | None:
    """Why an adversary cannot work in a situation, in its own words; None if it can. model: once there is one."""
    said = plugin.objection(known) if hasattr(plugin, "objection") else None
    if not said and model is not None and hasattr(plugin, "objection_to"):
        said = plugin.objection_to(model, known)
    return said or None


def situation(entry: AdversaryEntry, experiment: Experiment) -> Situation:
    """What is public, before round 0, of what an adversary is to attack."""
    clients = experiment.clients
    trainings = [clients.training(client) for client in entry.targets]
    return Situation(
        model=experiment.model.name,
        has_batchnorm=has_batchnorm(experiment),
        batchnorm=clients.batchnorm,
        algorithm=clients.algorithm,
        one_gradient=clients.algorithm == "fedsgd"
        or all(one.local_steps == 1 and not one.weight_decay for one in trainings),
        batch_sizes=tuple(one.batch_size for one in trainings),
        aggregate=entry.aggregate,
        defenses=tuple(tuple(one.name for one in training.defenses) for training in trainings),
    )


def has_batchnorm(experiment: Experiment) -> bool | None:
    """Whether the model that is trained has BatchNorm layers; None if only the built model can tell."""
    if experiment.clients.batchnorm == "group_norm":
        return False
    found: bool | None = getattr(experiment.model.settings, "batchnorm", None)
    return found


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
    return f'{words} it is not granted; add "{item}" to knows'


def describe(experiment: Experiment) -> list[dict[str, object]]:
    """Who sees what, for the manifest, the report and `fedsim check`."""
    out: list[dict[str, object]] = []
    for entry in experiment.adversaries:
        seen = view(entry, experiment)
        relevant = set(WORDS)
        if has_batchnorm(experiment) is False:
            relevant -= {"batch_statistics", "running_statistics"}
        if not any(mixing(experiment.clients.training(client).defenses) for client in entry.targets):
            relevant -= MIXING
        if entry.vantage != "client":  # who is no client has no data that it could fail to see
            relevant.discard("own_data")
        order = list(WORDS)
        sees = sorted(seen.sees, key=order.index)
        knows = sorted(seen.knows - seen.sees, key=order.index)
        hidden = sorted(relevant - seen.has, key=order.index)
        summed = entry.aggregate and len(entry.targets) > 1
        worded = [[words(item, summed) for item in items] for items in (sees, knows, hidden)]
        if summed:
            worded[2].insert(0, SINGLE)
        out.append(
            {
                "adversary": entry.id,
                "plugin": entry.plugin.name,
                "vantage": entry.vantage,
                "targets": list(entry.targets),
                "rounds": list(entry.rounds),
                "sees": worded[0],
                "knows": worded[1],
                "does_not_see": worded[2],
                "powers": list(entry.powers),
                "words": _sentence(entry, experiment, *worded),
            }
        )
    return out


def _sentence(
    entry: AdversaryEntry, experiment: Experiment, sees: list[str], knows: list[str], hidden: list[str]
) -> str:
    targets = f"client{'s' if len(entry.targets) > 1 else ''} {_listed(entry.targets)}"
    place = _PLACES[entry.vantage].format(targets=targets, member=entry.member)
    rounds = f"round{'s' if len(entry.rounds) > 1 else ''} {_listed(entry.rounds)}"
    tls = " The links are encrypted (TLS)." if experiment.server.tls else ""
    text = f"'{entry.id}' is {place}.{tls} In {rounds} it sees {_join(sees)}."
    if entry.aggregate:
        one = len(entry.targets) == 1
        text += " It is shown sums alone, but with one target the sum is that client's update." if one else ""
        text += "" if one else f" Of {targets} it is shown the sum alone."
    text += f" It is granted {_join(knows)}." if knows else " It is granted nothing else."
    text += f" It does not see {_join(hidden, 'or')}." if hidden else ""
    return text + " It changes no message."


def _listed(numbers: tuple[int, ...]) -> str:
    return " and ".join([", ".join(map(str, numbers[:-1])), str(numbers[-1])]).removeprefix(" and ")


def _join(items: list[str], joint: str = "and") -> str:
    return ", ".join(items[:-1]) + (f" {joint} " if len(items) > 1 else "") + items[-1]
