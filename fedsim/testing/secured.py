"""What a derivation is shown, made up: sums of several rounds and of different clients, and masked messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedsim import seeding
from fedsim.adversaries.base import Observation, Situation
from fedsim.secagg.base import Contribution, Layout, Terms
from fedsim.secagg.quantization import Codec
from fedsim.testing.observations import narrowed, shown, situation
from fedsim.testing.situations import Scene, play

SCENE = Scene("sums of rounds with different clients, mlp", batch=2, still=True)
TOOK_PART = ((0, 1, 2, 3), (0, 1, 2), (0, 1, 3), (0, 2, 3))
"""Who is in the sum of each round: every client can be told apart by it."""
TARGETS = (0, 1)
COLLUDERS = (1, 2, 3)
MOST_EXAMPLES = 8


@dataclass(frozen=True, eq=False)
class Seen:
    """What a derivation is tried on. situation: None where the observations are the user's own. withheld: by the path
    or the fact that is left out, the word that would grant it.
    """

    name: str
    observations: tuple[Observation, ...] = field(repr=False)
    situation: Situation | None
    withheld: dict[str, str] = field(repr=False)


def everything_seen(needs: Set[str], own: Sequence[Observation] | None = None) -> Iterator[Seen]:
    """All that grants what is needed; of the user's own observations, all of them together."""
    if own is not None:
        yield _seen("observations", own, None, needs)
        return
    everybody = replace(situation(SCENE), batch_sizes=(SCENE.batch,) * len(TARGETS))
    secured = replace(everybody, secure_aggregation="secagg+")
    # After one of them: not every derivation can be after several at a time.
    summed = replace(secured, aggregate=True, batch_sizes=(SCENE.batch,))
    plain = [shown(SCENE, "server", round_, [client]) for round_ in (1, 2) for client in TARGETS]
    sums = [_sum(round_) for round_ in range(1, len(TOOK_PART) + 1)]
    masked = [_masked(round_, client, "link") for round_ in (1, 2) for client in TARGETS]
    both = [one for seen in sums for one in (*(_masked(seen.round, client, "server") for client in TARGETS), seen)]
    for name, observations, known in (
        ("server: single updates", plain, everybody),
        ("server: sums of rounds with different clients", sums, summed),
        ("link: masked messages", masked, secured),
        ("server: sums and masked messages", both, summed),
    ):
        if needs <= {word for one in observations for word in one.facts["granted"]}:
            yield _seen(name, observations, known, needs)


def _seen(name: str, observations: Sequence[Observation], known: Situation | None, needs: Set[str]) -> Seen:
    withheld: dict[str, str] = {}
    kept = []
    for one in observations:
        # Of a sum no masked vector is granted, and the other way round.
        seen, without = narrowed(one, needs & set(one.facts["granted"]))
        withheld |= {key: word for key, word in without.items() if word not in needs}
        kept.append(seen)
    return Seen(name, tuple(kept), known, withheld)


def _codec() -> Codec:
    parameters = play(SCENE, 0, 1).parameters
    layout = Layout({name: tuple(value.shape) for name, value in parameters.items()})
    return Codec(Terms(1, len(TOOK_PART[0]), MOST_EXAMPLES, 1, layout), 32, 4.0, 64.0)


def _public(codec: Codec) -> dict[str, Any]:
    shapes = codec.terms.layout.update
    return {
        "name": "secagg+",
        "bits": codec.bits,
        "scale": codec.scale,
        "statistics_scale": codec.statistics_scale,
        "clip": codec.clip,
        "statistics_clip": codec.statistics_clip,
        "most_examples": codec.terms.most_examples,
        "layout": {"update": {name: list(shape) for name, shape in shapes.items()}, "statistics": {}},
    }


def _sum(round_: int) -> Observation:
    """What a server is shown of a round, with colluders."""
    codec, clients = _codec(), TOOK_PART[round_ - 1]
    ring = None
    for client in clients:
        played = play(SCENE, client, round_)
        vector = codec.encode(Contribution(played.update, {}, len(played.private), SCENE.steps))
        ring = vector if ring is None else ring + vector
    assert ring is not None
    total = codec.decode(ring, clients)
    seen = shown(SCENE, "server", round_, clients)
    tensors: dict[str, Tensor] = {
        path: value for path, value in seen.tensors.items() if not path.startswith(("update/", "sent_buffers/"))
    }
    tensors |= {f"update/{name}": value.float() for name, value in total.update.items()}
    tensors |= {f"sum/update/{name}": value for name, value in total.update.items()}
    told = [client for client in COLLUDERS if client in clients]
    for client in told:
        tensors |= {f"colluder/{client}/update/{name}": v for name, v in play(SCENE, client, round_).update.items()}
    facts = {
        **seen.facts,
        "targets": list(TARGETS),
        "secure_aggregation": _public(codec),
        "colluders": {str(client): {"num_examples": SCENE.batch, "num_steps": SCENE.steps} for client in told},
    }
    facts["granted"] = sorted({*facts["granted"], "colluders"})
    return replace(seen, tensors=tensors, facts=facts)


def _masked(round_: int, client: int, vantage: str) -> Observation:
    """What one client's own messages show: random bytes, as those of a real round look to who has no key."""
    codec, seen = _codec(), shown(SCENE, vantage, round_, [client])
    rng = seeding.generator(0, "masked", round_, client)
    half = 2 ** (codec.bits - 1)
    tensors = {path: v for path, v in seen.tensors.items() if path.startswith(("model/", "buffers/", "known/"))}
    tensors["masked/vector"] = torch.randint(-half, half, (codec.size,), generator=rng).to(torch.int32)
    paths = {"keys/public": 32, "encrypted/2": 96, "encrypted/3": 96}
    if vantage == "server":
        paths |= {"opened/self/0": 33, "opened/self/1": 33}
    for path, length in paths.items():
        tensors[path] = torch.randint(0, 256, (length,), generator=rng, dtype=torch.uint8)
    facts = {key: value for key, value in seen.facts.items() if key not in ("num_examples", "num_steps")}
    facts |= {"targets": list(TARGETS), "secure_aggregation": _public(codec)}
    words = set(facts["granted"]) - {"update", "num_examples"} | {"masked_update", "encrypted_shares"}
    facts["granted"] = sorted(words | ({"opened_shares"} if vantage == "server" else set()))
    return replace(seen, tensors=tensors, facts=facts)
