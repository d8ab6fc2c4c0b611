"""The derivation `suppression`: a model for each client, so that the sum of all updates is that of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fedsim.adversaries.derivations.sums import GIVES, named, no_sum, sums_in

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.adversaries.base import Derived, Observation, Situation

DEAD = -100.0
"""The bias of a dead unit: sigmoid(-100) is 4e-44, and relu(-100) is 0."""


@dataclass(frozen=True)
class Suppression:
    """Sends the true model to one target, and to everybody else one with which gradients vanish.

    Source: Pasquini, Francati, Ateniese, "Eluding Secure Aggregation in Federated Learning via Model Inconsistency"
    (CCS 2022), gradient suppression; there the last layer but one is made of dead ReLU units.

    With several targets, the first of them is meant. silence: what the others are sent.
        zeros: zeros alone. Enough where an activation maps 0 to 0 (relu, leaky_relu, elu, gelu, tanh), with any
            normalisation.
        dead_units: zeros, and -100 for all biases but the last, with which the units of relu, gelu, sigmoid and
            softplus are dead.
    With either, no gradient passes the last layer, whose weights are 0, and that of its weights is 0 because its input
    is. What is left of the others is the gradient of the last bias, 1 / classes minus the share of each label, which
    depends on their labels: the target's own is worked out instead (see `silenced`). What else is left with a model is
    found by trying it on random images; the notes name it.

    The sum is scaled by examples over the target's examples. In fedsgd with equal batches that is known; elsewhere all
    are taken to have as many, which makes the update's length wrong, but not its direction. Granted labels are cut out
    in the first case, and left out in the second.

    Works against the ideal functionality. Where masks depend on the model that a client was sent (`secagg+`), those of
    the target and of the others do not cancel: the round closes, and there is no sum.
    """

    silence: Literal["zeros", "dead_units"] = "zeros"

    needs: ClassVar[frozenset[str]] = frozenset({"global_model", "update", "num_examples"})
    powers: ClassVar[frozenset[str]] = frozenset({"alter_model"})
    gives: ClassVar[frozenset[str]] = GIVES

    def objection(self, situation: Situation) -> str | None:
        """Only of sums there is anything to derive, and one client at a time can be the one that is not silenced."""
        # Without secure aggregation the targets of an adversary are the clients whose updates are summed for it.
        if len(situation.batch_sizes) > 1 and situation.secure_aggregation != "off":
            return f"it singles out one client, but has {len(situation.batch_sizes)} targets; give one"
        return no_sum(situation)

    def alter_model(
        self, round_: int, client: int, targets: Sequence[int], parameters: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """The true parameters for the target, silent ones for everybody else."""
        if client == min(targets):
            return {name: value.clone() for name, value in parameters.items()}
        return self.silent(parameters)

    def silent(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters with which the gradients of a model vanish."""
        import torch

        out = {name: torch.zeros_like(value) for name, value in parameters.items()}
        if self.silence == "dead_units":
            for name in [name for name in out if name.endswith("bias")][:-1]:
                out[name].fill_(DEAD)
        return out

    def derive(self, seen: Sequence[Observation]) -> Derived:
        """The target's update of each round."""
        from fedsim.adversaries.base import Derived
        from fedsim.adversaries.derivations import silenced

        found, notes = [], []
        for place in sums_in(seen):
            one = seen[place]
            clients, target = one.facts["clients"], min(one.facts["targets"])
            if target not in clients:
                notes.append(f"round {one.round}: client {target} is not in the sum of {named(clients)}")
                continue
            outcome = silenced.remaining(one, target, self.silent(one.part("model")))
            found.append(outcome.observation)
            notes += [f"round {one.round}, client {target}: {words}" for words in outcome.notes]
        if not notes and not found:
            notes.append(
                "no sum was released in any round, as where masks depend on the model that a client was sent and "
                "so do not cancel between clients that were sent different ones"
            )
        return Derived(tuple(found), tuple(notes))
