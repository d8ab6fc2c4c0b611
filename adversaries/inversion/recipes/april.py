"""The attack `april`: an image in closed form from the first self-attention of a vision transformer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fedsim.adversaries.inversion.recipes.common import GRADIENT, one_job, several_images, several_steps

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedsim.adversaries.base import Job, Observation, Reconstruction, Situation


@dataclass(frozen=True)
class April:
    """Solves linear equations for the patches of a single image that a vision transformer was trained on; no guess, no
    iterations, no labels. For the model `vit`.

    Source: Lu et al., "APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers" (CVPR 2022), the
    closed-form attack; for the derivations see `fedsim.adversaries.inversion.closed_form.april`. That paper's second
    attack, gradient matching with a term for the position embedding, is not here.

    solve: which equations.
        embedding: the paper's, from the gradients of query, key, value and position embedding. Exact only where the
            first attention reads the embedding itself and nothing else does: the model's `norm = "post"` and
            `first_skip = false`, and `dim` at least the number of tokens and the number of a patch's pixel values.
        span: derived for fedsim, from the span of the gradients of query, key and value. Takes any `vit`, the standard
            one too, whose `dim` is at least the sum of the two numbers (and one more with `norm = "pre"`).
    Both need `depth` 2 or more (or half as many heads as patches).

    How exact it is depends on how independent the gradients of the tokens are, in float32: `condition` in the notes;
    above some 1e6 the image gets noisy. Fewer tokens (a larger patch), a deeper model, and a position embedding that
    is not tiny make it better, and so do more heads. `objective` is the relative residual of the equations: about 0
    without a defense.
    """

    solve: Literal["embedding", "span"] = "embedding"

    needs: ClassVar[frozenset[str]] = GRADIENT
    powers: ClassVar[frozenset[str]] = frozenset()

    def objection(self, situation: Situation) -> str | None:
        """Why it does not fit: several steps or several images."""
        return several_steps(situation) or several_images(situation)

    def objection_to(self, model: nn.Module, situation: Situation) -> str | None:
        """Why it does not fit the built model, naming the layer."""
        return self._unfit(model)

    def _unfit(self, model: nn.Module) -> str | None:
        from fedsim.models.vit import VisionTransformer

        if not isinstance(model, VisionTransformer):
            return (
                'it reads the first self-attention of a vision transformer, which this is not; use model.name = "vit"'
            )
        first = model.first
        dim, pixels = model.embed.weight.shape
        tokens, heads = model.position.shape[1], first.attention.heads
        if len(model.blocks) == 1 and 2 * heads < tokens - 1:
            return (
                f"with one block, the gradients at blocks.0.attention have {2 * heads} independent directions "
                f"(2 a head) for {tokens - 1} patches; set model.depth = 2 or more"
            )
        if self.solve == "span":
            least = pixels + tokens + (1 if first.pre_norm else 0)
            if dim >= least:
                return None
            return (
                f"embed makes tokens of {dim} numbers, and solve = 'span' needs {least} for {tokens} tokens and "
                f"{pixels} values a patch; set model.dim = {-(-least // heads) * heads} or more"
            )
        if first.pre_norm:
            return (
                "blocks.0.norm1 (LayerNorm) stands between the embedding and blocks.0.attention; "
                'set model.norm = "post" and model.first_skip = false, or solve = "span"'
            )
        if first.skip:
            return (
                "the residual connection around blocks.0.attention reads the embedding too; "
                'set model.first_skip = false, or solve = "span"'
            )
        if dim < max(tokens, pixels):
            return (
                f"embed makes tokens of {dim} numbers, fewer than its {tokens} tokens or {pixels} values a patch; "
                f"set model.dim = {-(-max(tokens, pixels) // heads) * heads} or more"
            )
        return None

    def capture(self, seen: Observation) -> Iterable[Job]:
        """A job for each observation."""
        return one_job(seen)

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        """Solve, on the CPU in float64. Draws nothing. Raises InputError for another model or several images."""
        import torch

        from fedsim.adversaries.base import Reconstruction
        from fedsim.adversaries.inversion.closed_form import april
        from fedsim.adversaries.inversion.victim import rebuild
        from fedsim.errors import InputError
        from fedsim.models.vit import VisionTransformer, unpatch

        # float64 by LAPACK: the matrices are small, and a GPU's solvers are less exact where rank is nearly lost.
        victim = rebuild(job.observations[0], torch.device("cpu"))
        if victim.shape[0] != 1:
            raise InputError(f"april works on one image, but the update is of {victim.shape[0]}; set batch_size to 1")
        model = victim.model
        unfit = self._unfit(model)
        if unfit:
            raise InputError(f"april does not fit model '{victim.facts['model']['name']}': {unfit}")
        assert isinstance(model, VisionTransformer)  # else it is unfit
        gradient, parameters = victim.gradient, victim.parameters
        layers = [f"blocks.0.attention.{part}.weight" for part in ("query", "key", "value")]
        slopes = [gradient[layer] for layer in layers]
        known = april.embedding(parameters)
        if self.solve == "embedding":
            weights = [parameters[layer] for layer in layers]
            solution = april.from_embedding_gradient(gradient["position"][0], weights, slopes, known)
        else:
            given = known.first[None]
            if model.first.pre_norm:
                norm = model.first.norm1
                weight, bias = parameters["blocks.0.norm1.weight"], parameters["blocks.0.norm1.bias"]
                known, given = april.through_layer_norm(known, weight, bias, norm.eps)
            solution = april.from_span(slopes, known, given)
        images = unpatch(solution.patches[None].float(), victim.shape[1:], model.patch)
        return Reconstruction(
            images=victim.normalise.inverse(images).clamp(0, 1),
            labels=None,
            objective=solution.residual,
            iterations=1,
            notes={"condition": solution.condition, "residual": solution.residual},
        )
