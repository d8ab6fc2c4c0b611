"""How the updates of a run are summed securely, in words: what was chosen, what follows, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.report.formats import counted, finite, listed, numbered, percent, plain, significant, whole
from fedsim.report.values import Table, integer, integers, real, strings, table, tables, text

if TYPE_CHECKING:
    from fedsim.report.reading import Run

OFF = "off"
HOW = {
    "ideal": "A trusted party, which needs no cryptography, adds the clients' updates as integers and tells the server "
    "the sum alone.",
    "secagg+": "Clients add random masks to their updates, as integers, before they send them. The masks cancel in the "
    "sum, which is all that the server can read.",
    "ckks": "Clients encrypt their updates under one key that all of them have and the server has not. The server adds "
    "the ciphertexts, and one client decrypts the sum.",
}
"""What each mode does. Of a mode that is not known here, its name is told."""

SENT = {"ckks": "ciphertext"}
"""What leaves a client, where that is not a masked update."""


@dataclass(frozen=True)
class Aggregation:
    """What the page shows of a secure aggregation.

    caveats: what it does not protect from, or takes on trust. facts: what was derived from its settings.
    """

    mode: str
    sentences: tuple[str, ...]
    caveats: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def mode(run: Run) -> str:
    """The name of the secure aggregation of a run; empty without any."""
    chosen = run.section("server").get("secure_aggregation")
    name = text(chosen) or text(table(chosen).get("name"))
    if not name and "secure_aggregation" not in run.section("server"):  # no experiment file: the manifest may tell
        name = text(_facts(run).get("name"))
    return "" if name == OFF else name


def sent(run: Run) -> str:
    """What leaves a client: `update`, or what a secure aggregation makes of it."""
    return SENT.get(mode(run), "masked update") if mode(run) else "update"


def describe(run: Run) -> Aggregation | None:
    """All that the page shows; None where updates are not summed securely."""
    name = mode(run)
    if not name:
        return None
    facts, clients = _facts(run), _drawn(run)
    said = [HOW.get(name, f"Updates are summed by '{name}', and the server is told the sum alone."), *_promised(run)]
    said += [sentence[:1].upper() + sentence[1:] + "." for sentence in derived(facts, clients)]
    settings = [(key, value) for key, value in facts.items() if key not in ("name", "trust")]
    return Aggregation(
        mode=name,
        sentences=(*said, *_cut_off(run), *_happened(run)),
        caveats=strings(facts.get("trust")),
        facts=tuple(
            (key.replace("_", " "), plain(value)) for key, value in settings if not isinstance(value, Mapping | list)
        ),
    )


def line(name: str, facts: Table, clients: int | None) -> str:
    """One line for a terminal: the mode, and what was derived for it. clients: of a round."""
    return f"secure aggregation {name}: {'; '.join(derived(facts, clients)) or 'nothing is recorded of it'}"


def in_a_line(run: Run) -> str:
    """The line for a run that is over; empty where nothing was summed securely, or nothing is recorded of it."""
    return line(mode(run), _facts(run), _drawn(run)) if mode(run) and _facts(run) else ""


def derived(facts: Table, clients: int | None) -> list[str]:
    """What follows from the settings, each a sentence without its capital and its full stop."""
    neighbours, threshold = integer(facts.get("neighbours")), integer(facts.get("threshold"))
    least, bound, bits = (
        integer(facts.get("min_survivors")),
        real(facts.get("error_bound")),
        integer(facts.get("bits")),
    )
    out = []
    if neighbours is not None and clients is not None and neighbours >= clients - 1:
        out.append(f"every pair of {counted(clients, 'client')} shares a mask")
    elif neighbours is not None:
        of = f" of the {counted(clients, 'client')} of a round" if clients is not None else " client"
        out.append(f"each{of} shares masks with {whole(neighbours)} others, drawn at random for every round")
    if threshold is not None:
        holders = f" of the {whole(neighbours + 1)}" if neighbours is not None else ""
        out.append(f"threshold {whole(threshold)}: so many{holders} shares open a client's secret")
    if least is not None:
        among = f"{whole(least)} of {counted(clients, 'client')}" if clients is not None else counted(least, "client")
        out.append(f"a round with fewer than {among} left is closed: no sum is released")
    if finite(bound):
        within = significant(bound, 2)
        if bits is not None:
            out.append(
                f"sums are exact, in integers of {bits} bits; rounding to these puts a mean off by {within} at most"
            )
        else:
            out.append(f"a mean is off by up to {within} where all clients weigh the most that they may")
    return out


def _facts(run: Run) -> Table:
    return table(run.manifest.get("secure_aggregation"))


def _drawn(run: Run) -> int | None:
    return _clients(run.section("clients")) or (len(run.clients) or None)


def _clients(clients: Table) -> int | None:
    """Clients of a round."""
    count, drawn = integer(clients.get("count")), integer(clients.get("per_round"))
    return min(drawn, count) if drawn and count else count


def _promised(run: Run) -> list[str]:
    """What the parameters were derived for, and whether an adversary exceeds it."""
    settings: Mapping[str, Any] = table(run.section("server").get("secure_aggregation"))
    corrupt, dropout = real(settings.get("corrupt")), real(settings.get("dropout"))
    out = []
    if finite(corrupt) and finite(dropout):
        kind = text(settings.get("server")).replace("_", " ")
        server = f" with a {kind} server" if kind else " with the server"
        out.append(
            f"It is made to withstand up to {percent(corrupt, 0)} of the clients working together{server}, and "
            f"{percent(dropout, 0)} dropping out."
        )
    clients = _drawn(run)
    for entry in tables(run.experiment.get("adversaries")):
        colluders = set(integers(entry.get("colluders")))
        if corrupt is not None and clients and len(colluders) > corrupt * clients:
            who = text(entry.get("id")) or text(entry.get("name")) or "an adversary"
            out.append(f"'{who}' goes beyond that: {len(colluders)} of the clients work together with it.")
    return out


def _cut_off(run: Run) -> list[str]:
    """What was clipped before it was summed."""
    clip = real(_facts(run).get("clip") or table(run.section("server").get("secure_aggregation")).get("clip"))
    counts = {entry.round: entry.secure.clipped for entry in run.rounds if entry.secure and entry.secure.clipped}
    beyond = f" beyond ±{significant(clip)}" if finite(clip) else " that were too large"
    if not counts:
        if not finite(clip) or not any(entry.secure and entry.secure.clipped == 0 for entry in run.rounds):
            return []
        return [f"Values{beyond} would be cut off before they are summed; there were none."]
    total = sum(count for count in counts.values() if count)
    were = "was" if total == 1 else "were"
    return [f"{counted(total, 'value')}{beyond} {were} cut off before the sum, in {numbered(list(counts), 'round')}."]


def _happened(run: Run) -> list[str]:
    """How many rounds gave a sum, and which did not."""
    summed = [entry.round for entry in run.rounds if entry.secure and not entry.closed]
    closed = [entry.round for entry in run.rounds if entry.closed]
    if not summed and not closed:
        return []
    total = len(summed) + len(closed)
    if not closed:
        return ["Every round gave a sum."]
    what = listed([numbered(closed, "round")])
    return [
        f"{whole(len(summed))} of {counted(total, 'round')} gave a sum; {what} {'was' if len(closed) == 1 else 'were'} "
        "closed."
    ]
