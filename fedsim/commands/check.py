"""`fedsim check FILE|NAME`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

from fedsim.adversaries import threat
from fedsim.commands import views
from fedsim.experiment import Experiment
from fedsim.experiment_file import as_table, read
from fedsim.report import aggregation
from fedsim.report.formats import counted
from fedsim.secagg.known import known_facts
from fedsim.secagg.rounds import drawn
from fedsim.sweeps import file as sweep_files
from fedsim.sweeps.cells import expand


def run(options: argparse.Namespace) -> int:
    """Validate, and print who sees what; of a sweep, every cell at every scale. Nothing is trained or written."""
    if sweep_files.is_sweep(options.experiment):
        return _sweep(options)
    experiment = read(options.experiment, options.settings, rules=[threat.check])
    seen = threat.describe(experiment)
    if options.json:
        facts = known_facts(experiment)
        summed = {"secure_aggregation": facts} if facts else {}
        told = {"experiment": as_table(experiment), **summed, "who_sees_what": seen, "notes": views.notes(experiment)}
        print(json.dumps(told, indent=2))
        return 0
    print(f"{options.experiment}: valid")
    print(f"  {_summary(experiment)}")
    notes = views.notes(experiment)
    for line in [*_summed(experiment), *_noted(notes, None), *_defended(experiment)]:
        print(f"  {line}")
    if not seen:
        print("\nNo adversary.")
    for entry, view in zip(experiment.adversaries, seen, strict=True):
        print(f"\n{views.sentence(entry)}")
        for title, item in views.items(view):
            print(f"  {title:12}  {item}")
        for line in _noted(notes, entry.id):
            print(f"  {line}")
    return 0


def _noted(notes: Sequence[Mapping[str, str | None]], adversary: str | None) -> list[str]:
    return [f"{'note':12}  {note['text']}" for note in notes if note["adversary"] == adversary]


def _sweep(options: argparse.Namespace) -> int:
    sweep = sweep_files.read(options.experiment)
    grids = [expand(sweep, scale, options.settings, [threat.check]) for scale in sweep.scales or (None,)]
    if options.json:
        scales = [{"scale": one.scale, "cells": len(one.cells), "trainings": len(one.trainings)} for one in grids]
        print(json.dumps({"sweep": sweep.name, "title": sweep.title, "scales": scales}, indent=2))
        return 0
    print(f"{options.experiment}: valid")
    for grid in grids:
        of = " x ".join(f"{len(axis.points)} {axis.name}" for axis in grid.axes)
        trained = f", {counted(len(grid.trainings), 'training')}" if grid.trainings else ""
        where = f"scale {grid.scale}: " if grid.scale else ""
        print(f"  {where}{counted(len(grid.cells), 'cell')}{f' ({of})' if of else ''}{trained}")
    return 0


def _summary(experiment: Experiment) -> str:
    clients = experiment.clients
    drawn = f", {clients.per_round} a round" if clients.per_round else ""
    return (
        f"{counted(experiment.rounds, 'round')} of {clients.algorithm} with {experiment.server.strategy.name}, "
        f"{clients.count} clients{drawn}, batches of {clients.batch_size}, "
        f"{experiment.model.name} on {experiment.data.dataset.name} ({experiment.data.partition.name}), "
        f"seed {experiment.seed}"
    )


def _summed(experiment: Experiment) -> list[str]:
    """How updates are summed securely, as far as the file tells."""
    facts = known_facts(experiment)
    if not facts:
        return []
    line = aggregation.line(facts["name"], facts, drawn(experiment))
    unknown = "" if "error_bound" in facts else "; by how much a mean is off depends on the data's split"
    mode = experiment.server.secure_aggregation
    promise = aggregation.withstands(mode.describe()) if mode else ""
    made_for = [f"  it withstands {promise}"] if promise else []
    return [line + unknown, *made_for, *(f"  but {item}" for item in facts.get("trust", ()))]


def _defended(experiment: Experiment) -> list[str]:
    out = []
    for client in range(experiment.clients.count):
        defenses = experiment.clients.training(client).defenses
        if defenses:
            out.append(f"client {client} defends itself with {', then '.join(d.name for d in defenses)}")
    if len(out) > 5 and len(out) == experiment.clients.count and not experiment.clients.groups:
        return [out[0].replace("client 0 defends itself", "every client defends itself")]
    return out
