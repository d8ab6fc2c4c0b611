"""Rounds of secure aggregation as an adversary sees them, without a federation. No test is in here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedsim.adversaries.base import Observation
from fedsim.secagg.base import Contribution, Layout, Terms
from fedsim.secagg.quantization import Codec

LAYOUT = Layout({"w": (4, 3), "b": (3,)}, {"bn.mean": (2,)})
MODEL = {"model/w": torch.full((4, 3), 0.5), "model/b": torch.zeros(3)}


def contribution(client: int, examples: int = 4, steps: int = 1, size: float = 1.0) -> Contribution:
    """A client's, always the same."""
    rng = torch.Generator().manual_seed(client)

    def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        return {name: size * torch.randn(shape, generator=rng) for name, shape in shapes.items()}

    return Contribution(drawn(LAYOUT.update), drawn(LAYOUT.statistics), examples, steps)


def codec_for(clients: int, bits: int = 32, most: int = 8) -> Codec:
    return Codec(Terms(1, clients, most, 9, LAYOUT), bits, 4.0, 64.0)


def summed(
    given: Mapping[int, Contribution],
    codec: Codec,
    round_: int = 1,
    tensors: Mapping[str, Tensor] | None = None,
    **facts: Any,
) -> Observation:
    """What a server sees of a round: the sum as the codec makes it of the clients' own vectors."""
    ring = sum(codec.encode(one) for one in given.values())
    total = codec.decode(ring, given)  # type: ignore[arg-type]
    public = {
        "bits": codec.bits,
        "scale": codec.scale,
        "statistics_scale": codec.statistics_scale,
        "clip": codec.clip,
        "statistics_clip": codec.statistics_clip,
        "most_examples": codec.terms.most_examples,
        "layout": {
            "update": {name: list(shape) for name, shape in LAYOUT.update.items()},
            "statistics": {name: list(shape) for name, shape in LAYOUT.statistics.items()},
        },
    }
    seen = {
        "algorithm": "fedsgd",
        "batchnorm": "share_batch",
        "clients": sorted(given),
        "num_examples": total.examples,
        "num_steps": max(1, round(total.steps)),
        "bytes_up": 100,
        "bytes_down": 100,
        "secure_aggregation": public,
        "granted": ["colluders", "global_model", "labels", "num_examples", "sizes", "update"],
    }
    shown = {
        **MODEL,
        **{f"update/{name}": value.float() for name, value in total.update.items()},
        **{f"sent_buffers/{name}": value.float() for name, value in total.statistics.items()},
        **{f"sum/update/{name}": value for name, value in total.update.items()},
        **{f"sum/sent_buffers/{name}": value for name, value in total.statistics.items()},
        **(tensors or {}),
    }
    return Observation(round_, min(given), "server", shown, {**seen, **facts})


def colluding(given: Mapping[int, Contribution], colluders: Iterable[int]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What colluders add to an observation: tensors, and the fact."""
    tensors, facts = {}, {}
    for client in colluders:
        one = given[client]
        facts[str(client)] = {"num_examples": one.examples, "num_steps": one.steps}
        tensors |= {f"colluder/{client}/update/{name}": value for name, value in one.update.items()}
        tensors |= {f"colluder/{client}/sent_buffers/{name}": value for name, value in one.statistics.items()}
    return tensors, facts


def bound(values: Tensor, scale: float) -> Tensor:
    """By how much each recovered coordinate may be off: 1 / (2 scale), and the rounding to float32."""
    return 1 / (2 * scale) + values.abs() * 2.0**-24
