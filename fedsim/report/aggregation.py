"""How the updates of a run are summed securely, in words: what was chosen, what follows, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.report.formats import counted, finite, listed, numbered, percent, plain, share, significant, whole
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

MUCH = 0.01
"""With a larger share of a sum's values cut off, the bound of its error is qualified."""


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
    said += [sentence[:1].upper() + sentence[1:] + "." for sentence in derived(facts, clients, _most_cut_off(run))]
    settings = [(key, value) for key, value in facts.items() if key not in ("name", "trust")]
    return Aggregation(
        mode=name,
        sentences=(*said, *_cut_off(run), *_happened(run)),
        caveats=strings(facts.get("trust")),
        facts=tuple(
            (key.replace("_", " "), plain(value)) for key, value in settings if not isinstance(value, Mapping | list)
        ),
    )


def line(name: str, facts: Table, clients: int | None, cut_off: float | None = None) -> str:
    """One line for a terminal: the mode, and what was derived for it. clients: of a round. cut_off: see `derived`."""
    return f"secure aggregation {name}: {'; '.join(derived(facts, clients, cut_off)) or 'nothing is recorded of it'}"


def in_a_line(run: Run) -> str:
    """The line for a run that is over; empty where nothing was summed securely, or nothing is recorded of it."""
    if not mode(run) or not _facts(run):
        return ""
    lost = [sentence.removesuffix(".") for sentence in _cut_off(run) if _most_cut_off(run)]
    return "; ".join([line(mode(run), _facts(run), _drawn(run), _most_cut_off(run)), *lost])


def entries(run: Run) -> int | None:
    """How many values a client sends to a secure aggregation."""
    return integer(_facts(run).get("entries"))


def derived(facts: Table, clients: int | None, cut_off: float | None = None) -> list[str]:
    """What follows from the settings, each a sentence without its capital and its full stop.

    cut_off: the largest share of a sum's values that were cut off before. With much of it, no bound of the error holds.
    """
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
                + _but(cut_off)
            )
        else:
            out.append(f"a mean is off by up to {within} where all clients weigh the most that they may{_but(cut_off)}")
    return out


def _but(cut_off: float | None) -> str:
    if cut_off is None or cut_off <= MUCH:
        return ""
    return (
        f", except where values were cut off (up to {share(cut_off)} of those in a sum): the bound does not hold there"
    )


def withstands(settings: Mapping[str, Any]) -> str:
    """What the parameters of a secure aggregation were derived for; empty where it has no such settings."""
    corrupt, dropout = real(settings.get("corrupt")), real(settings.get("dropout"))
    if not finite(corrupt) or not finite(dropout):
        return ""
    kind = text(settings.get("server")).replace("_", " ")
    server = f" with {'an' if kind[:1] in 'aeiou' else 'a'} {kind} server" if kind else " with the server"
    return (
        f"up to {percent(corrupt, 0)} of the clients working together{server}, and {percent(dropout, 0)} dropping out"
    )


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
    corrupt, promise = real(settings.get("corrupt")), withstands(settings)
    out = [f"It is made to withstand {promise}."] if promise else []
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
    said = f"{counted(total, 'value')}{beyond} {were} cut off before the sum, in {numbered(list(counts), 'round')}"
    size = entries(run)
    sent_in = sum(entry.secure.survivors or 0 for entry in run.rounds if entry.secure and entry.round in counts)
    if size is not None and size > 0 and sent_in > 0:
        every = sent_in * size
        said += f": {share(min(total / every, 1.0))} of the {whole(every)} in {'it' if len(counts) == 1 else 'them'}"
    return [f"{said}."]


def _most_cut_off(run: Run) -> float | None:
    """Of all rounds, the largest share of a sum's values that were cut off; None where nothing was, or is known."""
    shares = [entry.secure.clipped_share(entries(run)) for entry in run.rounds if entry.secure]
    return max((one for one in shares if one), default=None)


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
