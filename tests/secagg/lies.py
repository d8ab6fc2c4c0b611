"""What a malicious server says in the place of the truth: one function for each lie. No test is in here.

Each gets what the server knows, a copy of what an honest server would ask a client, that client and its own randomness,
and returns what is asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import ConfigRecord
from secagg.hostile_state import Server
from secagg.sequences import STAGES
from secagg.tampering import HUGE, STRANGE, spoiled

from fedsim.secagg import messages
from fedsim.secagg.base import ROUND
from fedsim.secagg.pairing import degree_of

Lie = Callable[[Server, ConfigRecord, int, random.Random], "ConfigRecord | None"]


def tampered(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    return spoiled(record, rng, server.ids)[0]


def other_round(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    record[ROUND] = rng.choice((server.number - 1, server.number + 1, 0, -1, HUGE))
    return record


def entries_of_another_message(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    record.update(rng.choice(server.sent)[1] if server.sent else {})
    record[ROUND] = server.number
    return record


def strangers_drawn(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    record["clients"] = [one if one == client or rng.random() < 0.5 else STRANGE + one for one in server.ids]
    return record


def another_draw(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    record["clients"] = rng.sample(server.ids, rng.randint(1, len(server.ids)))
    return record


def id_huge(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    record["clients"] = [*[one for one in server.ids if one != client][1:], client, HUGE]
    return record


def threshold_other(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    record["threshold"] = rng.choice((1, 2, server.agreed.threshold - 1, server.agreed.threshold + 1, len(server.ids)))
    return record


def degree_other(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    record["degree"] = rng.choice((0, 1, len(server.graph[client]) - 1, HUGE))
    return record


def graph_other(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    near = rng.sample([one for one in server.ids if one != client], rng.randint(1, len(server.ids) - 1))
    return _among(server, record, near, rng.random() < 0.5)


def fewer_said_to_be_there(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    there = rng.sample([one for one in server.ids if one != client], rng.randint(1, len(server.ids) - 1))
    record["clients"] = sorted((*there, client))
    degree = degree_of(server.agreed.neighbours, len(there) + 1)
    return _among(server, record, there[:degree], True)


def stranger_among_neighbours(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    record["neighbours"] = [rng.choice((STRANGE, client, -1, HUGE)), *record["neighbours"][1:]]  # type: ignore[index]
    return record


def servers_keys(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    for key, which in (("cipher_keys", 0), ("mask_keys", 1)):
        record[key] = [
            server.own[one][which].public if one in server.own and rng.random() < 0.3 else held
            for one, held in zip(record["neighbours"], record[key], strict=False)  # type: ignore[arg-type]
        ]
    return record


def keys_swapped(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    record["mask_keys"] = rng.sample(record["mask_keys"], len(record["mask_keys"]))  # type: ignore[arg-type]
    return record


def own_key_echoed(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    own, key = server.keys[client], rng.choice(("cipher_keys", "mask_keys"))
    record[key] = [rng.choice((own.cipher, own.mask)), *record[key][1:]]  # type: ignore[index]
    return record


def shares_held_back(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    kept = {one for one in _givers(record) if rng.random() < 0.7}
    said = ConfigRecord({key: value for key, value in record.items() if not key.startswith(messages.ENCRYPTED)})
    said["survivors"] = sorted(kept)
    said["total"] = record["total"] - len(_givers(record)) + len(kept)  # type: ignore[operator]
    for one in kept:
        said[f"{messages.ENCRYPTED}{one}"] = record[f"{messages.ENCRYPTED}{one}"]
    return said


def shares_swapped(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    if len(givers := _givers(record)) > 1:
        one, other = (f"{messages.ENCRYPTED}{giver}" for giver in rng.sample(givers, 2))
        record[one], record[other] = record[other], record[one]
    return record


def shares_of_another(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    return _with_shares(record, server.shares, lambda held: rng.choice(sorted(held)))


def shares_of_an_old_round(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    return _with_shares(record, server.old_shares, lambda held: client if client in held else min(held))


def no_shares(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord | None:
    return None if rng.random() < 0.5 else ConfigRecord({ROUND: server.number, "survivors": [], "total": 9})


def other_model(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    return record


def total_other(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    record["total"] = rng.choice((0, 1, 2, server.agreed.threshold, len(server.ids) + 1, HUGE))
    return record


def living_called_dead(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    return _claimed(record, {one for one in _alive(record) if one != client and rng.random() < 0.4})


def most_called_dead(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    return _claimed(record, {one for one in _alive(record) if one != client})


def asked_called_dead(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    return _claimed(record, {client})


def dead_called_living(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    record["survivors"], record["dropped"] = [*record["survivors"], *record["dropped"]], []  # type: ignore[misc]
    return record


def in_both_lists(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    alive = _alive(record)
    record["dropped"] = [*record["dropped"], *([one for one in alive if rng.random() < 0.4] or alive)]  # type: ignore[misc]
    return record


def left_out(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    record["survivors"] = [one for one in _alive(record) if rng.random() < 0.7]
    return record


def stranger_in_a_list(server: Server, record: ConfigRecord, client: int, rng: random.Random) -> ConfigRecord:
    key = rng.choice(("survivors", "dropped"))
    record[key] = [*record[key], rng.choice((STRANGE, -1, HUGE))]  # type: ignore[misc]
    return record


def _alive(record: ConfigRecord) -> list[int]:
    return list(record["survivors"])  # type: ignore[arg-type]


def _claimed(record: ConfigRecord, dead: Iterable[int]) -> ConfigRecord:
    """With some more called dead, and as many fewer said to have survived: another total would give the lie away."""
    gone = set(dead) & set(_alive(record))
    record["dropped"] = [*record["dropped"], *sorted(gone)]  # type: ignore[misc]
    record["total"] -= len(gone)  # type: ignore[operator]
    record["survivors"] = [one for one in _alive(record) if one not in gone]
    return record


def _among(server: Server, record: ConfigRecord, near: Sequence[int], told: bool) -> ConfigRecord:
    """With other neighbours. told: the degree says so."""
    record["neighbours"] = list(near)
    record["cipher_keys"] = [server.keys[one].cipher for one in near]
    record["mask_keys"] = [server.keys[one].mask for one in near]
    if told:
        record["degree"] = len(near)
    return record


def _givers(record: ConfigRecord) -> list[int]:
    """Whose shares are along."""
    start = messages.ENCRYPTED
    return [int(key.removeprefix(start)) for key in sorted(record) if key.startswith(start)]


def _with_shares(
    record: ConfigRecord, shares: Mapping[int, messages.SharesReply], which: Callable[[Mapping[int, bytes]], int]
) -> ConfigRecord:
    """With other ciphertexts of the same senders. which: the recipient whose they are, of those that there are."""
    for giver in _givers(record):
        if giver in shares and (held := shares[giver].encrypted):
            record[f"{messages.ENCRYPTED}{giver}"] = held[which(held)]
    return record


LIES: dict[str, tuple[tuple[str, ...], Lie]] = {
    "tampered": (STAGES, tampered),
    "other round": (STAGES, other_round),
    "entries of another message": (STAGES, entries_of_another_message),
    "strangers drawn": (("keys",), strangers_drawn),
    "another draw": (("keys",), another_draw),
    "id huge": (("keys",), id_huge),
    "threshold other": (("shares",), threshold_other),
    "degree other": (("shares",), degree_other),
    "graph other": (("shares",), graph_other),
    "fewer said to be there": (("shares",), fewer_said_to_be_there),
    "stranger among neighbours": (("shares",), stranger_among_neighbours),
    "server's keys": (("shares",), servers_keys),
    "keys swapped": (("shares",), keys_swapped),
    "own key echoed": (("shares",), own_key_echoed),
    "shares held back": (("train",), shares_held_back),
    "shares swapped": (("train",), shares_swapped),
    "shares of another": (("train",), shares_of_another),
    "shares of an old round": (("train",), shares_of_an_old_round),
    "no shares": (("train",), no_shares),
    "other model": (("train",), other_model),
    "total other": (("train", "unmask"), total_other),
    "living called dead": (("unmask",), living_called_dead),
    "most called dead": (("unmask",), most_called_dead),
    "asked called dead": (("unmask",), asked_called_dead),
    "dead called living": (("unmask",), dead_called_living),
    "in both lists": (("unmask",), in_both_lists),
    "left out": (("unmask",), left_out),
    "stranger in a list": (("unmask",), stranger_in_a_list),
}
"""Every lie, and the stages at which it can be told. In what another lie has spoiled, it may do nothing."""
