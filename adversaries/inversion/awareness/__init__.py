"""What an attack makes of knowing the client's defenses.

A defense that is measured against an attacker who is unaware of it alone is not measured. Each rule here takes the
settings of one defense, which the threat model grants as "defenses", and changes what is matched (see base.py). As far
as a defense is a function that can be differentiated, the exact attacker applies it to the gradient of its guess too
(see maps.py); of what is random, the rules take the likelihood. What was made of each defense goes to the notes.

Source of the frame: Balunovic, Dimitrov, Staab, Vechev, "Bayesian Framework for Gradient Leakage" (ICLR 2022): the best
attack maximises log p(gradient seen | guess) + log p(guess), and the first term is the defense's own law.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedsim.adversaries.base import Observation
from fedsim.adversaries.inversion.awareness import clipping, coarse, encodings, hidden, noise, outpost
from fedsim.adversaries.inversion.awareness.base import Matched, Place, Rule
from fedsim.adversaries.inversion.awareness.bottleneck import without_bottleneck
from fedsim.adversaries.inversion.victim import Victim
from fedsim.models.layers import last_linear

RULES: Mapping[str, Rule] = {
    "gradient_pruning": hidden.pruning,
    "random_sparsification": hidden.sparsification,
    "soteria": hidden.soteria,
    "gradient_noise": noise.gradient_noise,
    "dp_sgd": noise.dp_sgd,
    "gradient_clipping": clipping.gradient_clipping,
    "sign_compression": coarse.sign_compression,
    "quantisation": coarse.quantisation,
    "outpost": outpost.outpost,
    "mixup": encodings.mixup,
    "instahide": encodings.instahide,
}
"""The rule about each defense, by its name in an experiment."""

SUMMED = frozenset({"gradient_pruning", "random_sparsification", "soteria", "gradient_noise", "mixup", "instahide"})
"""Those whose rules have something to say about a sum of several clients' updates."""


def read(seen: Observation, victim: Victim, objective: str, tv_absolute: bool, aware: bool) -> Matched:
    """What to match: the gradient that was seen, in the units of one gradient whatever the rate and the number of local
    steps, and if `aware` with what the observation says of the client's defenses.

    objective, tv_absolute: as the attack is set.
    """
    facts, steps = victim.facts, int(victim.facts["num_steps"])
    target = [value / steps for value in victim.gradient.values()]
    matched = Matched(target, objective=objective, tv_absolute=tv_absolute)
    if not aware:
        return matched
    place = Place(
        unit=steps * (float(facts["learning_rate"]) if facts["algorithm"] == "fedavg" else 1.0),
        steps=steps,
        images=victim.shape[0],
        round=seen.round,
        names=list(victim.parameters),
        parameters=list(victim.parameters.values()),
        last=last_linear(victim.model),
        clients=max(1, len(facts.get("clients", []))),
    )
    if "defenses" in facts:
        matched = match(matched, facts["defenses"], place)
    else:
        matched = matched.saying("the clients whose sum is seen have different defenses: nothing is changed")
    matched = without_bottleneck(matched, victim.model, place)
    return matched if matched.said else matched.saying("the client has no defense")


def match(matched: Matched, defenses: Sequence[Mapping[str, Any]], place: Place) -> Matched:
    """What to match, knowing the defenses in their order. One that no rule is about changes nothing, and is named in
    what is said.
    """
    for number, settings in enumerate(defenses):
        name = settings["name"]
        before = len(matched.said)
        rule = RULES.get(name)
        if rule is None:
            matched = matched.saying("no rule is about it, and it changes nothing")
        elif place.clients > 1 and name not in SUMMED:
            matched = matched.saying("what it made of each client's update cannot be told from their sum: no change")
        else:
            matched = rule(matched, settings, replace(place, later=[one["name"] for one in defenses[number + 1 :]]))
        said = [f"{name}: {text}" for text in matched.said[before:]]
        matched = replace(matched, said=(*matched.said[:before], *said))
    return matched


__all__ = ["RULES", "Matched", "Place", "Rule", "match", "read"]
