"""What an end-to-end recovery of private images costs: the cost model of Huang et al. (NeurIPS 2021), table 3.

Without an encoding, one inversion gives the images of a batch. Under MixUp and InstaHide it gives encodings, and an
image is mixed anew in every epoch, so the attacker inverts every batch of the training before anything can be decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedsim.errors import InputError
from fedsim.experiment import Experiment
from fedsim.sweeps.drafts import Draft
from fedsim.sweeps.words import Costs, Sweep

DEFENSES = (
    ("No defense", False),
    ("GradPrune", False),
    ("MixUp", True),
    ("Intra-InstaHide", True),
)
"""Defenses, and whether they encode images."""

DAYS_OF_A_YEAR = 365.25
PUBLISHED_DAYS = 356.0
"""By which the published table comes to its years; no doubt 365 was meant."""


def inversions(costs: Costs, encoded: bool) -> float:
    """How many batches have to be inverted: 1, or under an encoding n T / b (its fraction is a last, smaller batch)."""
    return costs.images * costs.epochs / costs.batch if encoded else 1.0


def hours(costs: Costs, encoded: bool) -> float:
    """Of all inversions one after another, and of the decoding, where there is any."""
    return inversions(costs, encoded) * costs.hours + (costs.decoding_hours if encoded else 0.0)


def rows(costs: Costs) -> list[dict[str, Any]]:
    """A row for each defense: how many inversions, the formula of the time, and the time in hours, days and years."""
    out = []
    for name, encoded in DEFENSES:
        total = hours(costs, encoded)
        out.append(
            {
                "defense": name,
                "inversions": inversions(costs, encoded),
                "time": ("n T / b · t + d" if costs.decoding_hours else "n T / b · t") if encoded else "t",
                "hours": total,
                "days": total / 24,
                "years": total / 24 / DAYS_OF_A_YEAR,
                "years of 356 days": total / 24 / PUBLISHED_DAYS,
            }
        )
    return out


def notes(costs: Costs, measured: str = "") -> list[str]:
    """What must be known to read the rows. measured: how t was, if it was."""
    t = f"t = {costs.hours:.4g} hours for the inversion of one batch ({measured or 'given, not measured here'})"
    out = [f"n = {costs.images:,} images, T = {costs.epochs:,} epochs, b = {costs.batch:,} images a batch, {t}."]
    if costs.decoding_hours:
        out.append(f"d = {costs.decoding_hours:.4g} hours for the decoding of all encodings.")
    else:
        out.append("Decoding the encodings comes on top and is not counted; costs.decoding_hours adds it.")
    out += [
        "Under an encoding all batches of the training have to be inverted, for one image as for all of them; the time "
        "is for one machine and divides by as many as work side by side.",
        "The published years come from days divided by 356. The printed hours are not repeated here: with n = 10,000, "
        "T = 50, b = 128 and t = 0.25 this formula is the one that gives them.",
    ]
    return out


def trial(sweep: Sweep) -> Experiment | None:
    """The experiment whose steps are timed, if the sweep asks for it. Raises InputError where it is no valid one."""
    costs = sweep.costs
    if costs is None or not costs.measure:
        return None
    draft = Draft({"rounds": 1}, sweep.source, sweep.lines, files=sweep.files)
    for key in ("data", "model"):
        draft.replace(key, getattr(costs, key), [((key,), ("costs", key))])
    draft.replace("clients", {"count": 1, "batch_size": costs.batch}, [(("clients", "batch_size"), ("costs", "batch"))])
    draft.replace("runtime", {"device": costs.device}, [(("runtime", "device"), ("costs", "device"))])
    experiment = draft.finish("costs", ())
    if experiment is None:
        raise InputError(*(fault.line("costs") for fault in draft.faults))
    return experiment


def measured(costs: Costs, experiment: Experiment) -> tuple[float, str]:
    """Hours that one inversion would take on this machine, and how that was found. Loads the data."""
    from fedsim.devices import choose_device
    from fedsim.sweeps.estimate import ATTACK_STEP, step_seconds

    a_pass = step_seconds(experiment, costs.batch)
    found = a_pass * ATTACK_STEP * costs.iterations / 3600
    where = choose_device(experiment.runtime.device)
    return found, (
        f"estimated: {costs.iterations:,} iterations at {ATTACK_STEP:g} times the {a_pass:.3g} s of a forward and "
        f"backward pass, which was measured here, of {experiment.model.name} with {costs.batch} images on {where}"
    )


def lines(settings: Costs, experiment: Experiment | None) -> tuple[Sequence[dict[str, Any]], Sequence[str]]:
    """Rows and notes, with t measured where an experiment for that is given."""
    how = ""
    if experiment is not None:
        found, how = measured(settings, experiment)
        settings = replace(settings, hours=found)
    return rows(settings), notes(settings, how)
