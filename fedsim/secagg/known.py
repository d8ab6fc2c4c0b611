"""What is known of a secure aggregation before any data are there, or torch is imported: for `fedsim check`."""

from __future__ import annotations

from typing import Any

from fedsim.experiment import Experiment
from fedsim.secagg import limits
from fedsim.secagg.base import Layout, Terms
from fedsim.secagg.rounds import drawn, most_examples, most_steps

OF_THE_LAYOUT = ("entries", "ciphertexts", "bytes_per_update", "plain_bytes_per_update")
"""Facts that depend on the model."""


def known_facts(experiment: Experiment) -> dict[str, Any]:
    """Facts as a run's manifest has them, as far as an experiment file tells; empty without secure aggregation.

    `error_bound` is absent where it depends on how many examples the largest client has.
    """
    mode = experiment.server.secure_aggregation
    if mode is None:
        return {}
    settings, clients, examples = mode.settings, drawn(experiment), most_examples(experiment)
    found: dict[str, Any] = {"name": mode.name}
    if hasattr(settings, "min_survivors"):
        found["min_survivors"] = settings.min_survivors
    if hasattr(settings, "parameters"):
        derived = settings.parameters(clients)
        found |= {key: getattr(derived, key) for key in ("neighbours", "threshold", "min_survivors")}
    if hasattr(settings, "clip"):  # integer sums, whose facts need torch; see `quantization.Codec`
        found["bits"] = settings.bits
        if examples is not None:
            found["scale"] = limits.scale(settings.bits, settings.clip, clients * examples)
            found |= {"error_bound": 1 / (2 * found["scale"]), "most_examples": examples}
    elif examples is not None:
        terms = Terms(0, clients, examples, most_steps(experiment) or 1, Layout({}))
        found |= {key: value for key, value in settings.facts(terms).items() if key not in OF_THE_LAYOUT}
    return found
