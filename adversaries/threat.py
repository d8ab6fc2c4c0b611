"""The threat model as data: which vantage sees what, and whether what an adversary needs is granted.

This table is the one place that says who sees what. `wiretap` hands over by it, `check` refuses by it, and
`fedsim check` and the report print it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedsim import threat_models
from fedsim.adversaries.base import Situation
from fedsim.experiment import KNOWLEDGE, OFF, POWERS, SIGHTS, AdversaryEntry, Experiment
from fedsim.experiment_checks import mixing
from fedsim.schema import Problems

if TYPE_CHECKING:
    from torch import nn

_MODEL = frozenset({"sizes", "global_model", "training_details"})
_UPDATE = _MODEL | {"update", "num_examples"}
_MASKED = {"masked_update", "encrypted_shares"}

SHOWS: dict[tuple[str, bool, str], frozenset[str]] = {
    # (vantage, TLS, secure aggregation): what it shows; of a server under secure aggregation, the update of the sum
    ("link", False, "off"): _UPDATE,
    ("link", False, "ideal"): _MODEL,
    ("link", False, "secagg+"): _MODEL | _MASKED,
    ("link", False, "ckks"): _MODEL | _MASKED,
    **{("link", True, mode): frozenset({"sizes"}) for mode in ("off", "ideal", "secagg+", "ckks")},
    **{
        ("server", tls, mode): shown
        for tls in (False, True)
        for mode, shown in (
            ("off", _UPDATE),
            ("ideal", _UPDATE),
            ("secagg+", _UPDATE | _MASKED | {"opened_shares"}),
            ("ckks", _UPDATE | _MASKED),
        )
    },
    **{
        ("client", tls, mode): _MODEL | {"own_data"}
        for tls in (False, True)
        for mode in ("off", "ideal", "secagg+", "ckks")
    },
}

WORDS = {
    "sizes": "the sizes and times of messages",
    "global_model": "the global model of every round",
    "update": "each targeted client's update (after the client's defenses)",
    "num_examples": "how many examples the update was made from",
    "training_details": "the learning rate, batch size and other settings of the clients' local steps",
    "masked_update": "each targeted client's masked or encrypted update",
    "encrypted_shares": "public keys and encrypted shares",
    "opened_shares": "the shares that clients open to unmask the sum",
    "colluders": "the updates and example counts of the clients that work together with it",
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

SECURED = {
    **SUMMED,
    "sizes": "the summed size of the messages of the clients in the sum",
    "update": "the sum of the updates of all clients of a round (after their defenses)",
}
"""The same where a secure aggregation makes the sum, of all clients that are left in a round."""

SINGLE = "any single client's update"

IRRELEVANT = {
    "off": frozenset({"masked_update", "encrypted_shares", "opened_shares", "colluders"}),
    "ideal": frozenset({"masked_update", "encrypted_shares", "opened_shares", "colluders"}),
    "secagg+": frozenset({"colluders"}),
    "ckks": frozenset({"opened_shares", "colluders"}),
}
"""What need not be said that an adversary does not see, as there is no such thing under a mode of aggregation."""

ALTERS = {
    "alter_update": "the updates of clients",
    "alter_model": "the global model that a client is sent",
    "alter_requests": "what the server asks of the clients in a secure aggregation",
}
"""The powers in words."""

GRANTED = ("alter_model", "alter_requests")
"""Those that can be granted so far."""

_PLACES = {
    "link": "an eavesdropper on the link between the server and {targets}",
    "server": "the {manner} server",
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


def words(item: str, summed: bool = False, secured: bool = False) -> str:
    """A sight or a piece of knowledge for a person; `summed` where it is of several clients' sum, `secured` where a
    secure aggregation made it.
    """
    special = SECURED if secured else SUMMED if summed else {}
    return special.get(item, WORDS[item])


def mode_of(experiment: Experiment) -> str:
    """The secure aggregation's name, or "off"."""
    mode = experiment.server.secure_aggregation
    return mode.name if mode else OFF


def is_summed(entry: AdversaryEntry, experiment: Experiment) -> bool:
    """Whether an adversary is shown the sum of several clients' updates and no single one."""
    return entry.aggregate or (entry.vantage == "server" and mode_of(experiment) != OFF)


def view(entry: AdversaryEntry, experiment: Experiment) -> View:
    """What an adversary sees from its vantage and knows besides.

    BatchNorm statistics that the policy puts on the wire are seen by whoever sees the message.
    """
    # A mode that the table does not know shows as little as one can.
    sees = set(SHOWS.get((entry.vantage, experiment.server.tls, mode_of(experiment)), {"sizes"}))
    if entry.colluders:
        sees.add("colluders")
    policy = experiment.clients.batchnorm
    if has_batchnorm(experiment) is not False:
        if "global_model" in sees and policy in ("share_batch", "share_running", "freeze"):
            sees.add("running_statistics")
        if "update" in sees and policy == "share_batch":
            sees.add("batch_statistics")
    return View(entry.id, frozenset(sees) - set(entry.hides), frozenset(entry.knows))


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
    out = []
    for power in entry.powers:
        if power not in GRANTED:
            out.append(f"the power '{power}' cannot be granted in this version; leave it out of powers")
        elif entry.vantage != "server":
            out.append(f'the power \'{power}\' belongs to the vantage "server", but this one is "{entry.vantage}"')
        elif power == "alter_requests" and mode_of(experiment) == OFF:
            out.append(f"the power '{power}' is about secure aggregation, and there is none; leave it out")
    has, steps = view(entry, experiment).has, [(name, plugin)]
    if entry.derive is not None:
        steps.insert(0, (f"derivation '{entry.derive.name}'", entry.derive.settings))
        against = objection(steps[0][1], replace(situation(entry, experiment), aggregate=is_summed(entry, experiment)))
        # Where it is not even shown what it works on, that says more.
        if against and steps[0][1].needs <= has:
            return [f"{steps[0][0]} does not fit this experiment (model '{experiment.model.name}'): {against}"]
    for whose, step in steps:
        for power in sorted(step.powers):
            if power not in POWERS:
                out.append(f"{whose} asks for '{power}', which is not a known power")
            elif power not in entry.powers:
                out.append(f"{whose} needs the power '{power}', which is not granted; add it to powers")
    presumed = threat_models.objection(entry.threat_model, plugin)
    if presumed:
        out.append(f"{name} {presumed}")
    if (
        experiment.clients.algorithm == "fedavg"
        and "update" in plugin.needs
        and "training_details" in entry.hides
        and "training_details" not in plugin.needs
    ):
        out.append(
            f"{name} needs 'training_details' to make use of an update of local steps, which its threat model hides; "
            'use algorithm = "fedsgd", or a threat model that has them, such as "parameter-aware-eavesdropper"'
        )
    # A plugin may know more than its needs say about what it works on.
    against = objection(plugin, situation(entry, experiment))
    if against:
        return [*out, f"{name} does not fit this experiment (model '{experiment.model.name}'): {against}"]
    for whose, step in steps:
        out += [f"{whose} {_missing(item, entry, experiment)}" for item in sorted(step.needs - has)]
        has |= getattr(step, "gives", frozenset())
    return out


def lacks(plugin: Any) -> str | None:
    """Which part of an adversary a plugin has not got, in words; None if it has them all."""
    lacking = [one for one in ("needs", "powers", "capture", "attack") if not hasattr(plugin, one)]
    return f"has no '{lacking[0]}', so it is no adversary" if lacking else None


def objection(plugin: Any, known: Situation, model: nn.Module | None = None) -> str | None:
    """Why an adversary, or a derivation, cannot work in a situation, in its own words; None if it can. model: once
    there is one.
    """
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
        aggregate=is_summed(entry, experiment) and entry.derive is None,
        defenses=tuple(tuple(one.name for one in training.defenses) for training in trainings),
        secure_aggregation=mode_of(experiment),
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
    if item == "colluders":
        return f"{words} it has none of; name them, as in colluders = [1, 2]"
    if item in entry.hides:
        return f"{words} its threat model hides; give another threat_model, or leave hides out"
    if item in SIGHTS:
        tls = " with TLS" if entry.vantage == "link" and experiment.server.tls else ""
        places = sorted(
            {
                vantage
                for (vantage, encrypted, mode), shown in SHOWS.items()
                if item in shown and encrypted == experiment.server.tls and mode == mode_of(experiment)
            }
        )
        mode = mode_of(experiment)
        secure = f" under secure aggregation ({mode})" if mode != OFF else ""
        seen_from = ", ".join(places) or ("nowhere" if secure else "nowhere without secure aggregation")
        if item == "update" and secure:
            seen_from += " (of the sum of all clients alone; a derivation may get at single ones)"
        return f"{words} the vantage '{entry.vantage}'{tls}{secure} does not show; it is seen from: {seen_from}"
    if entry.threat_model is not None:
        return (
            f"{words} its threat model '{entry.threat_model}' does not grant; give knows in the place of threat_model"
        )
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
        relevant -= IRRELEVANT.get(mode_of(experiment), frozenset())
        if entry.vantage != "client":  # who is no client has no data that it could fail to see
            relevant.discard("own_data")
        order = list(WORDS)
        sees = sorted(seen.sees, key=order.index)
        knows = sorted(seen.knows - seen.sees, key=order.index)
        hidden = sorted(relevant - seen.has, key=order.index)
        secured = is_summed(entry, experiment) and mode_of(experiment) != OFF
        summed = secured or (entry.aggregate and len(entry.targets) > 1)
        worded = [[words(item, summed, secured) for item in items] for items in (sees, knows, hidden)]
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
                "colluders": list(entry.colluders),
                "derive": entry.derive.name if entry.derive else None,
                "threat_model": entry.threat_model,
                "words": _sentence(entry, experiment, *worded),
            }
        )
    return out


def _sentence(
    entry: AdversaryEntry, experiment: Experiment, sees: list[str], knows: list[str], hidden: list[str]
) -> str:
    targets = f"client{'s' if len(entry.targets) > 1 else ''} {_listed(entry.targets)}"
    manner = "malicious" if entry.powers else "honest-but-curious"
    place = _PLACES[entry.vantage].format(targets=targets, member=entry.member, manner=manner)
    rounds = f"round{'s' if len(entry.rounds) > 1 else ''} {_listed(entry.rounds)}"
    tls = " The links are encrypted (TLS)." if experiment.server.tls else ""
    mode = mode_of(experiment)
    secure = f" The updates are summed by secure aggregation ({mode})." if mode != OFF else ""
    text = f"'{entry.id}' is {place}.{tls}{secure} In {rounds} it sees {_join(sees)}."
    if mode != OFF and entry.vantage == "server":
        if entry.derive is not None:
            text += f" Single updates it tries to derive from that ({entry.derive.name})."
    elif entry.aggregate:
        one = len(entry.targets) == 1
        text += " It is shown sums alone, but with one target the sum is that client's update." if one else ""
        text += "" if one else f" Of {targets} it is shown the sum alone."
    text += f" It is granted {_join(knows)}." if knows else " It is granted nothing else."
    text += f" It does not see {_join(hidden, 'or')}." if hidden else ""
    if entry.colluders:
        whom = f"client{'s' if len(entry.colluders) > 1 else ''} {_listed(entry.colluders)}"
        text += f" It works together with {whom}."
    altered = [ALTERS[power] for power in entry.powers]
    return text + (f" It may alter {_join(altered)}." if altered else " It changes no message.")


def _listed(numbers: tuple[int, ...]) -> str:
    return " and ".join([", ".join(map(str, numbers[:-1])), str(numbers[-1])]).removeprefix(" and ")


def _join(items: list[str], joint: str = "and") -> str:
    return ", ".join(items[:-1]) + (f" {joint} " if len(items) > 1 else "") + items[-1]
