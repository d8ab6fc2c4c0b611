"""Flower's FedAvg on tensors: the same arithmetic, bit for bit, without the way over npy bytes that its mean takes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

import fedsim.grids.flower_internals as flower
from fedsim import protocol


class TensorFedAvg(FedAvg):
    """FedAvg whose replies are those that `fedsim.server.edge.as_weights` makes: all usable, all of one layout."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The mean of the weights, weighted by examples, added up in the order of the replies; None of no replies."""
        contents = [reply.content for reply in replies]
        if not contents:
            return None, None
        counts = [content.metric_records[protocol.METRICS][protocol.NUM_EXAMPLES] for content in contents]
        total, mean, names = sum(counts), list[Tensor](), list[str]()  # type: ignore[arg-type]
        for content, count in zip(contents, counts, strict=True):
            held = flower.tensors_in(content, protocol.ARRAYS)
            part = list(torch._foreach_mul(list(held.values()), count / total))  # type: ignore[operator]
            if names:
                torch._foreach_add_(mean, part)
            else:
                mean, names = part, list(held)
        return flower.to_record(dict(zip(names, mean, strict=True))), None
