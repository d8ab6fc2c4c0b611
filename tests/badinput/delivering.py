"""Cases of changed messages: drawn from a number, delivered, and judged. No test is in here."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from badinput.federation import CLIENTS, ROUND, Ended, Federation, Tampering, copied
from badinput.judging import Unclear, told_of
from badinput.messages import OF_ARRAYS, OF_NUMBERS, OF_RECORDS, OF_SETTINGS, changed, with_metadata
from flwr.app import ConfigRecord, Error, Message, RecordDict
from secagg.tampering import misshapen, spoiled

from fedsim.grids.answering import answered
from fedsim.secagg.base import RECORD, SEALED

SECONDS = 10.0
"""Of work for one round, at most."""

HUGE = 2**63 + 5

PYTHON = re.compile(
    r"^(?!ProtocolError|Refused|InputError|ValueError: No \w+ function registered)\w+(Error|Iteration): "
)
"""A reason that is an exception's own. (What it has no function for Flower says in words.)"""


@dataclass
class Verdict:
    """kind: of the change. how: `refused`, `refused by Python` (with the words of an exception that nobody foresaw),
    `closed` (a secure aggregation without a sum) or `harmless` (nothing else came of it than without it).
    """

    kind: str
    how: str
    reasons: tuple[str, ...] = ()


@functools.cache
def federation(mode: str) -> Federation:
    return Federation(mode)


def deliver(number: int) -> Verdict:
    """Case `number`, played. Raises Unclear for what must not come of it."""
    rng = random.Random(f"message {number}")
    way: Callable[[random.Random], Verdict] = rng.choices((replies, requests, secured), (6, 2, 2))[0]
    with told_of(SECONDS):
        return way(rng)


# --- replies to train requests -------------------------------------------------------------------------------------


def replies(rng: random.Random) -> Verdict:
    """One to three replies are changed on their way to the server."""
    whole = federation("off")
    victims = set(rng.sample(range(CLIENTS), rng.choice((1, 1, 2, 3))))
    kinds: list[str] = []

    def arrive(client: int, reply: Message) -> list[Message]:
        if client not in victims:
            return [reply]
        if rng.random() < 0.25:
            kind, out = _misdelivered(client, reply, rng)
        else:
            kind, out = changed(reply.content, (OF_ARRAYS, OF_RECORDS, OF_NUMBERS), rng), [reply]
        kinds.append(kind)
        return out

    return _judged(whole, whole.played(arrive), victims, f"reply: {' + '.join(kinds)}")


def _misdelivered(client: int, reply: Message, rng: random.Random) -> tuple[str, list[Message]]:
    """The reply is as it was, and comes twice, from another, as an answer to something else or not at all."""
    whole = federation("off")
    other = (client + rng.randrange(1, CLIENTS)) % CLIENTS

    def again(who: int, round_: int) -> Message:
        message = Message(copied(whole.replies[round_, who, "train"]), reply_to=reply)
        return with_metadata(message, src_node_id=who + 1, dst_node_id=0, group_id=str(round_), message_type="train")

    ways: dict[str, Callable[[], list[Message]]] = {
        "lost": lambda: [],
        "twice": lambda: [reply, again(client, ROUND)],
        "replayed": lambda: [again(client, 1)],
        "replayed beside the true one": lambda: rng.sample([reply, again(client, 1)], 2),
        "of another client": lambda: [again(other, ROUND)],
        "of a stranger": lambda: [reply, with_metadata(again(client, ROUND), src_node_id=rng.choice((77, HUGE, 0)))],
        "wrong message type": lambda: [with_metadata(reply, message_type=rng.choice(("evaluate", "query.keys")))],
        "wrong round": lambda: [with_metadata(reply, group_id=rng.choice(("", "3", "x", "-2", "2 ")))],
        "an error": lambda: [_error(reply, rng)],
    }
    kind = rng.choice(sorted(ways))
    return kind, ways[kind]()


def _error(reply: Message, rng: random.Random) -> Message:
    reason = rng.choice(("", None, "no memory", "x" * 100_000, "a\nb\x1b[2J\0", "🙂"))
    message = Message(Error(rng.choice((0, 1, 2**40)), reason), reply_to=reply)
    return with_metadata(message, src_node_id=reply.metadata.src_node_id, dst_node_id=0, group_id=str(ROUND))


# --- train requests ------------------------------------------------------------------------------------------------


def requests(rng: random.Random) -> Verdict:
    """The request of one client is changed on its way, and the client's answer reaches the server."""
    whole, victim = federation("off"), rng.randrange(CLIENTS)
    content, kind = copied(whole.requests[ROUND, victim, "train"]), "wrong message type"
    message_type, round_ = "train", str(ROUND)
    way = rng.random()
    if way < 0.08:
        message_type = rng.choice(
            ("evaluate", "query", "query.keys", "query.unmask", "train.other", "query." + "x" * 500)
        )
    elif way < 0.16:
        kind, round_ = "replayed", "1"
        content = copied(whole.requests[1, victim, "train"])
    else:
        kind = changed(content, (OF_ARRAYS, OF_RECORDS, OF_SETTINGS), rng)

    def arrive(client: int, reply: Message) -> list[Message]:
        if client != victim:
            return [reply]
        request = Message(content, dst_node_id=client + 1, message_type="train", group_id=round_)
        with_metadata(request, message_type=message_type, message_id="9")
        return [answered(whole.app, request, whole.context(client))]

    return _judged(whole, whole.played(arrive), {victim}, f"request: {kind}")


def _judged(whole: Federation, ended: Ended, victims: set[int], kind: str) -> Verdict:
    """Clients that sent what they should are in the mean, which is, to the bit, that of those that are in it; each of
    the others is in it with its honest reply, or a dropout that has a reason.
    """
    record = ended.record
    inside, out = set(record.clients), {one.client: one.reason for one in record.dropouts}
    if not set(range(CLIENTS)) - victims <= inside:
        raise Unclear(f"{kind}: an honest client is left out: {record}")
    if inside & set(out) or not set(range(CLIENTS)) <= inside | set(out):
        raise Unclear(f"{kind}: a client is in twice, or neither in nor out: {record}")
    if not all(reason.strip() and reason.isprintable() for reason in out.values()):
        raise Unclear(f"{kind}: no reason that can be read: {record}")
    if not ended.same_model(whole.expected(record.clients)):
        raise Unclear(f"{kind}: another model than that of clients {record.clients}, and nothing said: {record}")
    return Verdict(kind, _how(set(out) & victims, out), tuple(out.values()))


def _how(gone: set[int], out: dict[int, str]) -> str:
    if not gone:
        return "harmless"
    return "refused by Python" if any(PYTHON.match(out[client]) for client in gone) else "refused"


# --- secure aggregation --------------------------------------------------------------------------------------------


def secured(rng: random.Random) -> Verdict:
    """One message of `secagg+` is changed: a query or its reply, a train request or the sealed update."""
    whole, victim = federation("secagg+"), rng.randrange(CLIENTS)
    stage = rng.choice(("query.keys", "query.shares", "train", "train", "query.unmask"))
    asked = rng.random() < 0.5
    kinds: list[str] = []

    def change(client: int, message: Message) -> None:
        if client == victim and message.metadata.message_type == stage and not kinds and not message.has_error():
            kinds.append(_spoil(whole, message, asked, stage, client, rng))

    grid = Tampering(whole, outgoing=change) if asked else Tampering(whole, incoming=change)
    ended = whole.play(grid)
    name = stage.removeprefix("query.")
    return _judged_sum(whole, ended, victim, f"secagg+ {name} {'query' if asked else 'reply'}: {''.join(kinds)}")


def _spoil(whole: Federation, message: Message, asked: bool, stage: str, client: int, rng: random.Random) -> str:
    content = copied(message.content)
    held = content.get(RECORD)
    way, told = rng.random(), ""
    if way < 0.1:
        earlier = (whole.requests if asked else whole.replies)[1, client, stage]
        content, told = copied(earlier), "replayed"
    elif way < 0.2:
        other = (client + rng.randrange(1, CLIENTS)) % CLIENTS
        content, told = copied((whole.requests if asked else whole.replies)[ROUND, other, stage]), "of another run"
        if stage == "train" and not asked:  # a vector is as good as any other, see `secagg.faulty_network`
            content, told = copied(whole.replies[1, client, stage]), "emptied"
            all_of = list(content)
            for key in all_of:
                del content[key]
    elif way < 0.3 and asked:
        with_metadata(message, message_type=rng.choice(("evaluate", "query.decrypt", "query.x", "query")))
        return "wrong message type"
    elif SEALED in content and way < 0.7:
        content, told = misshapen(content, rng)
    elif isinstance(held, ConfigRecord) and way < 0.7:
        content[RECORD], _ = spoiled(held, rng, range(CLIENTS))
        told = "entry changed"
    else:
        told = changed(content, (OF_ARRAYS, OF_RECORDS) if SEALED in content else (OF_RECORDS, OF_SETTINGS), rng)
    message.content = content
    return "vector misshapen" if told.startswith("vector") else told


def _judged_sum(whole: Federation, ended: Ended, victim: int, kind: str) -> Verdict:
    """The sum of those that are said to be in it, to the bit, or none and the model as it was."""
    record = ended.record
    out = {one.client: one.reason for one in record.dropouts}
    if not all(reason.strip() for reason in out.values()):
        raise Unclear(f"{kind}: no reason: {record}")
    if record.skipped:
        if not ended.same_model(whole.start):
            raise Unclear(f"{kind}: closed, and the model is another: {record}")
        return Verdict(kind, "closed", (record.skipped, *out.values()))
    if set(record.clients) | set(out) != set(range(CLIENTS)) or set(record.clients) & set(out):
        raise Unclear(f"{kind}: a client is in twice, or neither in nor out: {record}")
    if not ended.same_model(_sum_of(record.clients)):
        raise Unclear(f"{kind}: another model than that of clients {record.clients}, and nothing said: {record}")
    return Verdict(kind, _how({victim} & set(out), out), tuple(out.values()))


@functools.cache
def _sum_of(clients: tuple[int, ...]) -> Ended:
    """What the sum of these clients' updates makes, as a trusted party would add them up."""

    def drop(client: int, message: Message) -> None:
        if client not in clients:
            message.content = RecordDict()

    plain = federation("ideal")
    ended = plain.play(Tampering(plain, incoming=drop))
    assert ended.record.clients == clients
    return ended
