"""The attack `carlini`: invert the encoded batches of many rounds, then decode the images that they were mixed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

from fedsim.adversaries.inversion.recipes.base import BatchNormMode, Inversion
from fedsim.settings import Count, NonNegative, Positive

if TYPE_CHECKING:
    import torch

    from fedsim.adversaries.base import Job, Reconstruction, Situation


Solver = Literal["adam", "least_squares", "published"]


@dataclass(frozen=True)
class Carlini(Inversion):
    """Against `mixup` and `instahide`: inverts each update toward the encoded batch, with its mixed labels, then
    regresses the private images of a client from its encodings of all attacked rounds.

    Source: Carlini et al., "Is Private Learning Possible with Instance Encoding?" (IEEE S&P 2021), section 5, the last
    step, as Huang et al., "Evaluating Gradient Inversion Attacks and Defenses in Federated Learning" (NeurIPS 2021)
    use it: with indices and coefficients granted, 20 encodings of each image, and tv 0.1 for mixup; for instahide, tv
    0.01 and tv_absolute = true. The inversion's settings are those of every such attack, with the defaults of `huang`;
    a model without BatchNorm takes batchnorm = "none".

    indices: which images were mixed: known (granted), or inferred from the encodings alone, for mixup only; that needs
        private_images, how many the client has, and at least some ten times as many encodings of good quality.
    coefficients: known (granted); labels: from the granted mixed labels, where they tell images apart, from pixels
        where not; estimated: from pixels alone. The latter two alternate with the images, `alternations` times.
    solver: what gives the images in the end.
        adam: the published decoder: decoding_steps of decoding_step_size from zeros, with a reward for magnitude of
            weight decoding_prior. For instahide it ends far from the images even on perfect encodings.
        least_squares: fedsim's own, stronger: in closed form for mixup; for instahide the same pixel by pixel up to
            signs, which are then chosen so that neighbouring pixels agree.
        published: adam with the fault of the published evaluation, whose last batch of a pass, where it is shorter than
            the others, is decoded by other mixtures' indices and coefficients. For comparison with its tables alone.
    also: more solvers, for answers besides on the same inversions, which are what takes the time.

    Public images of an encoding have no index; what they contribute is left in as noise.
    """

    iterations: Count = 10000
    tv: NonNegative = 0.1
    bn_prior: NonNegative = 0.001
    batchnorm: BatchNormMode = "exact"
    indices: Literal["known", "inferred"] = "known"
    private_images: Count | None = None
    coefficients: Literal["known", "labels", "estimated"] = "known"
    alternations: Count = 40
    solver: Solver = "adam"
    also: tuple[Solver, ...] = ()
    decoding_steps: Count = 1000
    decoding_step_size: Positive = 0.01
    decoding_prior: NonNegative = 0.05

    @property
    def needs(self) -> frozenset[str]:
        """What the inversion needs, which encoding it is, and what is not inferred."""
        needs = set(super().needs) | {"defenses"}
        if self.indices == "known":
            needs.add("mixing_indices")
        if self.coefficients == "known":
            needs.add("mixing_coefficients")
        if self.coefficients == "labels":
            needs.add("labels")
        if "published" in (self.solver, *self.also):  # it has to tell which batch of a pass is the short one
            needs.add("training_details")
        return frozenset(needs)

    def objection(self, situation: Situation) -> str | None:
        """Why these settings cannot work on what they are set on."""
        if situation.aggregate and len(situation.batch_sizes) > 1:
            return "it decodes the encodings of one client, but it is shown the sum of several; target one of them"
        return self._undecodable(situation) or self._at_odds() or super().objection(situation)

    def _undecodable(self, situation: Situation) -> str | None:
        for names in situation.defenses or ():
            if not {"mixup", "instahide"} & set(names):
                has = f"has {', '.join(names)}" if names else "has no defense"
                return (
                    f"it decodes mixup or instahide, but a targeted client {has}; use an inversion such as huang there"
                )
            if self.indices == "inferred" and "instahide" in names:
                return 'indices = "inferred" needs linear mixtures, but instahide hides signs; use indices = "known"'
        return None

    def _at_odds(self) -> str | None:
        if self.indices == "inferred" and self.coefficients != "estimated":
            return (
                f'coefficients = "{self.coefficients}" says nothing of images whose indices are inferred; '
                'use coefficients = "estimated"'
            )
        if self.indices == "inferred" and self.private_images is None:
            return 'indices = "inferred" needs private_images, how many images the client has'
        solvers = (self.solver, *self.also)
        if "published" in solvers and (self.indices, self.coefficients) != ("known", "known"):
            return 'the solver "published" has a fault in using known indices and coefficients; set both to "known"'
        if len(set(solvers)) < len(solvers):
            return "also names a solver twice, or the one that solver names already; leave it out"
        usual = {one.name: one.default for one in fields(self)}
        adam = "" if set(solvers) & {"adam", "published"} else 'solver = "adam"'
        lacking = {
            "private_images": "" if self.indices == "inferred" else 'indices = "inferred"',
            "alternations": "" if self.coefficients != "known" else 'coefficients = "labels" or "estimated"',
            **dict.fromkeys(("decoding_steps", "decoding_step_size", "decoding_prior"), adam),
        }
        for key, other in lacking.items():
            if other and getattr(self, key) != usual[key]:
                return f"{key} does nothing without {other}; set that too, or leave {key} out"
        return None

    def combine(
        self, parts: Sequence[tuple[Job, Reconstruction]], device: torch.device, rng: torch.Generator
    ) -> Reconstruction | dict[str, Reconstruction]:
        """The private images that the parts' encodings were mixed from; by the name of the solver if there are several.
        Raises InputError where parts and settings do not fit.
        """
        from fedsim.adversaries.decoding import decode, encodings

        gathered = encodings.gather(parts)
        found: dict[str, Reconstruction] = {
            solver: decode.decode(replace(self, solver=solver, also=()), gathered, device, rng)
            for solver in (self.solver, *self.also)
        }
        return found if self.also else found[self.solver]
