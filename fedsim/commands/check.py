"""`fedsim check FILE|NAME`."""

from __future__ import annotations

import argparse
import json

from fedsim.adversaries import threat
from fedsim.experiment import Experiment
from fedsim.experiment_file import as_table, read


def run(options: argparse.Namespace) -> int:
    """Validate, and print who sees what. Nothing is trained and nothing is written."""
    experiment = read(options.experiment, options.settings, rules=[threat.check])
    views = threat.describe(experiment)
    if options.json:
        print(json.dumps({"experiment": as_table(experiment), "who_sees_what": views}, indent=2))
        return 0
    print(f"{options.experiment}: valid")
    print(f"  {_summary(experiment)}")
    for line in _defended(experiment):
        print(f"  {line}")
    if not views:
        print("\nNo adversary.")
    for view in views:
        print(f"\n{view['words']}")
        for title, key in (("sees", "sees"), ("is granted", "knows"), ("does not see", "does_not_see")):
            for item in view[key]:  # type: ignore[attr-defined]
                print(f"  {title:12}  {item}")
    return 0


def _summary(experiment: Experiment) -> str:
    clients = experiment.clients
    drawn = f", {clients.per_round} a round" if clients.per_round else ""
    return (
        f"{experiment.rounds} rounds of {clients.algorithm} with {experiment.server.strategy.name}, "
        f"{clients.count} clients{drawn}, batches of {clients.batch_size}, "
        f"{experiment.model.name} on {experiment.data.dataset.name} ({experiment.data.partition.name}), "
        f"seed {experiment.seed}"
    )


def _defended(experiment: Experiment) -> list[str]:
    out = []
    for client in range(experiment.clients.count):
        defenses = experiment.clients.training(client).defenses
        if defenses:
            out.append(f"client {client} defends itself with {', then '.join(d.name for d in defenses)}")
    if len(out) > 5 and len(out) == experiment.clients.count and not experiment.clients.groups:
        return [out[0].replace("client 0 defends itself", "every client defends itself")]
    return out
