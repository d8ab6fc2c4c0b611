"""What `fedsim check` says of each adversary, and what is worth knowing of an experiment although nothing is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsim.adversaries import threat
from fedsim.experiment import AdversaryEntry, Experiment
from fedsim.report.formats import counted, listed, numbered, percent
from fedsim.report.words import unseen
from fedsim.secagg.rounds import drawn

PLACES = {
    "link": "an eavesdropper on the link between the server and {targets}",
    "server": "the {manner} server",
    "client": "the honest-but-curious client {member}",
}


def sentence(entry: AdversaryEntry) -> str:
    """Who an adversary is, and what it does when, to whom, with whose help."""
    targets = numbered(list(entry.targets), "client")
    manner = "malicious" if entry.powers else "honest-but-curious"
    place = PLACES[entry.vantage].format(targets=targets, manner=manner, member=entry.member)
    does = [f"attacks {targets} in {numbered(list(entry.rounds), 'round')}"]
    altered = [threat.ALTERS[power] for power in entry.powers]
    does.append(f"may alter {listed(altered)}" if altered else "changes no message")
    if entry.colluders:
        does.append(f"works together with {numbered(list(entry.colluders), 'client')}")
    if entry.derive is not None:
        does.append(f"derives single updates by {entry.derive.name}")
    model = f", under the threat model '{entry.threat_model}'" if entry.threat_model else ""
    return f"'{entry.id}' is {place}{model}: it {listed(does)}."


def items(view: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it sees, is granted and does not see, an item a line."""
    hidden = unseen(view["does_not_see"], bool(view["colluders"]))
    columns = (("sees", view["sees"]), ("is granted", view["knows"]), ("does not see", hidden))
    return [(title, item) for title, among in columns for item in among]


def notes(experiment: Experiment) -> list[dict[str, str | None]]:
    """What is valid, but may not be what was meant: {adversary: an id, or None of the whole experiment; text}."""
    found = [{"adversary": None, "text": text} for text in _of_rounds(experiment)]
    for entry in experiment.adversaries:
        found += [{"adversary": entry.id, "text": text} for text in _of(entry, experiment)]
    return found


def _of_rounds(experiment: Experiment) -> list[str]:
    mode = experiment.server.secure_aggregation
    made_for = getattr(mode.settings, "dropout", None) if mode else None
    dropout = experiment.clients.dropout
    if made_for is None or dropout <= made_for:
        return []
    return [
        f"clients.dropout = {dropout:g} is more than the dropout = {made_for:g} that the parameters are derived for: "
        "rounds may close without a sum"
    ]


def _of(entry: AdversaryEntry, experiment: Experiment) -> list[str]:
    out = []
    mode, clients = experiment.server.secure_aggregation, experiment.clients
    targets = numbered(list(entry.targets), "client")
    if mode is not None and entry.vantage == "server" and entry.derive is None:
        everybody = set(entry.targets) == set(range(clients.count))
        if not everybody and "masked_update" not in entry.plugin.settings.needs:
            out.append(f"what is attacked is the sum of all clients of the round, not {targets} alone")
    elif entry.aggregate and len(entry.targets) == 1:
        out.append(f"it is shown sums alone, but with one target the sum is the update of {targets}")
    corrupt = getattr(mode.settings, "corrupt", None) if mode else None
    present = drawn(experiment)
    if corrupt is not None and len(entry.colluders) > corrupt * present:
        out.append(
            f"{counted(len(entry.colluders), 'colluder')} in rounds of {counted(present, 'client')}: more than the "
            f"{percent(corrupt, 0)} that secure aggregation is made to withstand"
        )
    if entry.derive is not None and "colluders" in entry.derive.settings.needs:
        out.append(_honest(entry, experiment))
    return out


def _honest(entry: AdversaryEntry, experiment: Experiment) -> str:
    """How many clients a derivation by collusion leaves, and so whether it can work."""
    others = sorted(set(range(experiment.clients.count)) - set(entry.colluders))
    most = min(len(others), drawn(experiment))
    least = max(drawn(experiment) - len(entry.colluders), 0)
    if not others:
        return "no honest client: there is nothing to derive"
    if most == 1:
        return (
            f"1 honest client: what is left of the sum is the update of client {others[0]}"
            if least
            else (f"at most 1 honest client in a round: what is left of the sum is the update of client {others[0]}")
        )
    if least > 1:
        unless = ", unless all but one drop out" if experiment.clients.dropout else ""
        number = str(most) if least == most else f"{least} to {most}"
        return f"{number} honest clients: only their sum is known{unless}"
    return f"up to {most} honest clients in a round: only their sum is known, unless there is just one"
