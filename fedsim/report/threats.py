"""The adversaries of a run, each with its place in words and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedsim.report import aggregation, diagram, words
from fedsim.report.formats import numbered, plain
from fedsim.report.reading import Run, Sight
from fedsim.report.values import Table, integer, integers, strings, table, tables, text

KNOWN_SETTINGS = {
    *("id", "name", "vantage", "targets", "rounds", "knows", "powers", "member", "aggregate"),
    *("colluders", "derive", "threat_model", "hides"),
}
"""Keys of an adversary that are no settings of its attack."""


@dataclass(frozen=True)
class Threat:
    """One adversary: its place, in words and drawn."""

    id: str
    place: str
    words: str
    sees: Sequence[str]
    knows: Sequence[str]
    does_not_see: Sequence[str]
    powers: Sequence[str]
    colluders: str
    derive: str
    model: str
    settings: Sequence[tuple[str, str]]
    drawing: Markup


def threats(run: Run) -> list[Threat]:
    """All that took part, as far as any file tells."""
    sights = {sight.adversary: sight for sight in run.sights}
    entries = {words.id_of(entry): entry for entry in tables(run.experiment.get("adversaries"))}
    for attack in run.attacks:  # Without an experiment file, the attacks still tell who stood where.
        if attack.entry not in entries:
            hits = [other for other in run.attacks if other.entry == attack.entry]
            entries[attack.entry] = {
                "id": attack.entry,
                "name": attack.plugin,
                "vantage": attack.vantage,
                "targets": sorted({client for hit in hits for client in words.whose(hit)}),
                "aggregate": any(len(hit.clients) > 1 for hit in hits),
                "rounds": sorted({number for hit in hits for number in hit.rounds}),
            }
    for name in sights:
        entries.setdefault(name, {"id": name})
    return [_threat(run, name, entry, sights.get(name, Sight(name))) for name, entry in entries.items()]


def _threat(run: Run, name: str, entry: Table, sight: Sight) -> Threat:
    place, targets = text(entry.get("vantage")), integers(entry.get("targets"))
    count = integer(run.section("clients").get("count"))
    clients = range(min(count, 10_000)) if count and count > 0 else [client.client for client in run.clients]
    powers = strings(entry.get("powers")) or sight.powers
    colluders = integers(entry.get("colluders")) or sight.colluders
    shown = entry.get("aggregate") is True and len(targets) > 1
    return Threat(
        id=name,
        place=words.PLACES.get(place, "place unknown"),
        words=words.unseen([sight.words], bool(colluders))[0] or words.vantage(entry, sight, run),
        sees=words.wordings(sight.sees, words.SIGHTS),
        knows=words.wordings(sight.knows or strings(entry.get("knows")), words.KNOWLEDGE),
        does_not_see=words.unseen(words.wordings(sight.does_not_see, words.SIGHTS), bool(colluders)),
        powers=words.wordings(powers, words.POWERS),
        colluders=numbered(list(colluders), "client") if colluders else "",
        derive=_component(entry.get("derive")) or sight.derive,
        model=text(entry.get("threat_model")) or sight.threat_model,
        settings=[("attack", text(entry.get("name")) or "not recorded")]
        + [(key, plain(value)) for key, value in entry.items() if key not in KNOWN_SETTINGS],
        drawing=diagram.threat(
            place,
            targets=targets,
            clients=list(clients),
            member=integer(entry.get("member")),
            colluders=colluders,
            active=bool(powers),
            tls=run.section("server").get("tls") is True,
            sent=aggregation.sent(run),
            summed=shown or (place == "server" and bool(aggregation.mode(run))),
        ),
    )


def _component(value: object) -> str:
    """A component by its name, and its settings if it has any: `suppression (silence zeros)`."""
    settings = {key: one for key, one in table(value).items() if key != "name"}
    name = text(value) or text(table(value).get("name"))
    return f"{name} ({plain(settings)})" if name and settings else name
