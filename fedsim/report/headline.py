"""What a run came to, in two or three sentences: who attacked whom, what was derived, and what was reconstructed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedsim.report.formats import counted, fixed, listed, numbered, percent, whole
from fedsim.report.reading import Attack, Run
from fedsim.report.values import tables, text
from fedsim.report.words import PLACES, defenses, id_of, labels_right, strength, victim, victims


def headline(run: Run) -> str:
    """The run in two or three sentences."""
    hits = victims(run.attacks)
    planned = tables(run.experiment.get("adversaries"))
    tried = [one for one in run.derived if one.nothing]
    if not hits and tried:
        return _tried(run)
    if not hits:
        if not planned:
            return "No adversary took part in this run." if run.experiment else "No attack is recorded."
        return f"{counted(len(planned), 'adversary', 'adversaries')} took part, but no attack is recorded."
    ids = {attack.entry for attack in run.attacks}
    everybody = ids | {one.adversary for one in run.derived} | {id_of(entry) for entry in planned}
    stand = {attack.vantage for attack in run.attacks} | {text(entry.get("vantage")) for entry in planned}
    places = sorted({PLACES[place] for place in stand if place in PLACES})
    who = f"{counted(len(everybody), 'adversary', 'adversaries')}{' ' + listed(places) if places else ''}"
    if len(ids) < len(everybody):
        who = f"{whole(len(ids))} of {who}"
    attacked = {client for whom in hits for client in whom}
    whom = counted(len(attacked), "client") if any(len(clients) == 1 for clients in hits) else "the clients' sum"
    rounds = sorted({number for attack in run.attacks for number in attack.rounds})
    when = f" in {numbered(rounds, 'round')}" if rounds else ""
    said = f"{who} attacked {whom}{when}{_derived_from(run, rounds)}."
    if tried:
        said += f" {_missed(run, len(everybody))}"
    rated = [attack for attack in run.attacks if attack.ssim is not None and math.isfinite(attack.ssim)]
    read = [attack for attack in run.attacks if attack.labels_alone]
    if not rated and read:
        most, fewest = max(read, key=strength), min(read, key=strength)
        if labels_right(most) == labels_right(fewest):
            return f"{said} No image was reconstructed; {labels_right(most)} were inferred."
        low = f"{percent(fewest.label_accuracy, 0)} ({_whose(fewest)})"
        return f"{said} No image was reconstructed; {low} to {labels_right(most)} ({_whose(most)}) were inferred."
    if not rated:
        return f"{said} No reconstruction could be scored."
    best, least = max(rated, key=strength), min(rated, key=strength)
    if best is least or fixed(best.ssim) == fixed(least.ssim):
        return f"{said} The reconstruction scores SSIM {fixed(best.ssim)}, where 1 is identical to the private images."
    whose = [_whose(least), _whose(best)]
    if whose[0] == whose[1]:
        key = "round" if least.round != best.round else "adversary"
        apart = (f"round {attack.round}" if key == "round" else attack.adversary for attack in (least, best))
        whose = [f"{which}, {one}" for which, one in zip(whose, apart, strict=True)]
    return (
        f"{said} SSIM of the reconstructions goes from {fixed(least.ssim)} ({whose[0]}) to "
        f"{fixed(best.ssim)} ({whose[1]}), where 1 is identical to the private images."
    )


def _derived_from(run: Run, attacked: Sequence[int]) -> str:
    """From which rounds the single updates were derived that were attacked, where that tells something."""
    found = [one for one in run.derived if not one.nothing]
    rounds = {number for one in found for number in one.rounds}
    if not rounds - set(attacked):
        return ""
    how = listed(sorted({one.derivation for one in found if one.derivation}))
    return f", through updates derived from what {numbered(list(rounds), 'round')} showed{f' ({how})' if how else ''}"


def _tried(run: Run) -> str:
    """Of a run without an attack, whom the adversaries tried to single out."""
    tried = [one for one in run.derived if one.nothing]
    who = {one.adversary for one in tried}
    whom = numbered([one.client for one in tried if one.client is not None], "client")
    everybody = {id_of(entry) for entry in tables(run.experiment.get("adversaries"))} | who
    some = f"{whole(len(who))} of " if len(who) < len(everybody) else ""
    none = "it did not succeed" if len(who) == 1 else "none succeeded"
    if any(not one.nothing for one in run.derived):
        none = "some updates were derived, but no attack on them is recorded"
    return f"{some}{counted(len(everybody), 'adversary', 'adversaries')} tried to single out {whom}; {none}."


def _missed(run: Run, adversaries: int) -> str:
    """Of which clients nothing was derived, beside attacks that took place."""
    tried = [one for one in run.derived if one.nothing]
    who = sorted({one.adversary for one in tried})
    whom = numbered([one.client for one in tried if one.client is not None], "client")
    if adversaries == 1:
        return f"It tried to single out {whom}, too, without success."
    if len(who) == 1:
        return f"'{who[0]}' tried to single out {whom}, without success."
    return f"{counted(len(who), 'adversary', 'adversaries')} tried to single out {whom}, without success."


def _whose(attack: Attack) -> str:
    knows = ", attacker knows it" if attack.informed else ""
    return f"{victim(attack).lower()}, {defenses(attack.defenses)}{knows}"
