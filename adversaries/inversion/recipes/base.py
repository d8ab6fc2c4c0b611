"""The settings that all attacks by optimisation share. A recipe is a set of defaults for them, with its citation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from fedsim.adversaries.inversion.recipes.common import GRADIENT, one_job, several_images, several_steps
from fedsim.settings import Count, Index, NonNegative, Positive

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedsim.adversaries.base import Job, Observation, Reconstruction, Situation

BatchNormMode = Literal["none", "exact", "own_statistics", "infer", "proxy"]
Labels = Literal["known", "joint", "idlg", "yin", "bias", "llg", "llg_model", "ilrg"]


@dataclass(frozen=True)
class Inversion:
    """Minimises a distance between the guess's gradient and the one seen, plus priors.

    iterations: steps of each trial. optimiser: adam, sgd or lbfgs. signed: go by the sign of the derivative alone (adam
        and sgd). step_size: in units of the normalised image. schedule: constant, three_drops (to a tenth at 3/8, 5/8
        and 7/8), cosine or linear (both to 0). warm_up: steps over which the step size rises at the start.
    langevin: noise added to each step, its standard deviation in units of the step size. box: keep to valid pixels.
    objective: cosine, angular, squared_l2, l1 or tag (squared_l2 + tag_scale * l1). layers: how much the tensors of the
        gradient count (of tag, in its l1), from the input's side: equal, linear or exponential (falling).
    tv: the weight of total variation, mean (|dx|^tv_p + |dy|^tv_p)^tv_q; tv_absolute: of |image|, for InstaHide.
    l2, orthogonality: weights of mean x^2 and of the images' mean squared inner product.
    bn_prior: the weight of R_BN, in the modes that have it. batchnorm: what the attack does at BatchNorm layers.
        none: the model has none.
        exact: normalise the guess by the private batch's statistics, which are also the prior's.
        own_statistics: normalise the guess by its own statistics; the private batch's are the prior's (so GradAttack).
        infer: normalise the guess by its own statistics; the running ones are the prior's.
        proxy: normalise the guess by the running statistics; there is no prior.
    features: the weight of the prior on what goes into the last layer, read off its gradient. task: the weight of the
        prior that the guess be classified as its label, by cross_entropy or squared error of the probabilities
        (task_kind). group: the weight of consistency between restarts.
    labels: known (granted), joint (sought together with the images), or inferred first: idlg, yin, bias, llg,
        llg_model, ilrg (see labels).
    local_steps: what an update of FedAvg is taken for: one_gradient (its direction), or unrolled (the client's local
        training, differentiated through). separate_epochs: unrolled, with a guess for every local epoch; then
        order_invariance is the weight of their agreement whatever the order within them.
    initial: the first guess: normal, uniform, zeros, patterned (a square of `patch` pixels repeated) or given
        (`initial_file`, an .npy of images). restarts: trials; the one with the smallest objective is returned.
    aware: make use of knowing the client's defenses, each by its rule (see awareness/): what was zeroed is left out,
        the guess's gradient is clipped or brought to signs like the client's, under noise the objective is that of the
        noise's likelihood (squared_l2 or l1, whatever `objective` says), and so on. The result's notes say what was
        made of each. A bottleneck of the model (PRECODE) is left out too. Needs "defenses".
    precision: float32 or float64. engine: auto, eager, compiled or cudagraph. together: trials run as one batch
        (absent: all that fit on a GPU, one on a CPU). patience: looks, 20 steps apart, without progress of any trial
        after which all that run beside one another end (0: never). time_limit: seconds after which they end.
    """

    iterations: Count = 4800
    optimiser: Literal["adam", "sgd", "lbfgs"] = "adam"
    signed: bool = True
    step_size: Positive = 0.1
    schedule: Literal["constant", "three_drops", "cosine", "linear"] = "three_drops"
    warm_up: Index = 0
    langevin: NonNegative = 0.0
    box: bool = True
    objective: Literal["cosine", "angular", "squared_l2", "l1", "tag"] = "cosine"
    layers: Literal["equal", "linear", "exponential"] = "equal"
    tag_scale: NonNegative = 0.1
    tv: NonNegative = 0.0
    tv_p: Positive = 1.0
    tv_q: Positive = 1.0
    tv_absolute: bool = False
    l2: NonNegative = 0.0
    orthogonality: NonNegative = 0.0
    bn_prior: NonNegative = 0.0
    batchnorm: BatchNormMode = "none"
    features: NonNegative = 0.0
    task: NonNegative = 0.0
    task_kind: Literal["cross_entropy", "squared"] = "cross_entropy"
    group: NonNegative = 0.0
    labels: Labels = "known"
    local_steps: Literal["one_gradient", "unrolled"] = "one_gradient"
    separate_epochs: bool = False
    order_invariance: NonNegative = 0.0
    initial: Literal["normal", "uniform", "zeros", "patterned", "given"] = "normal"
    initial_file: str | None = None
    patch: Count = 4
    restarts: Count = 1
    aware: bool = False
    precision: Literal["float32", "float64"] = "float32"
    engine: Literal["auto", "eager", "compiled", "cudagraph"] = "auto"
    together: Count | None = None
    patience: Index = 0
    time_limit: Positive | None = None

    powers: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs(self) -> frozenset[str]:
        """The gradient and the model, and whatever the settings call for."""
        needs = set(GRADIENT)
        if self.labels == "known":
            needs.add("labels")
        if self.batchnorm in ("exact", "own_statistics"):
            needs.add("batch_statistics")
        if self.batchnorm in ("infer", "proxy"):
            needs.add("running_statistics")
        if self.aware:
            needs.add("defenses")
        if self.local_steps == "unrolled":
            needs.add("training_details")
        return frozenset(needs)

    @property
    def presumes(self) -> dict[str, str]:
        """What it takes for granted of any image, and the setting without which it would not."""
        priors = {
            "neighbouring pixels are alike": ("tv = 0", self.tv),
            "pixels are near their mean": ("l2 = 0", self.l2),
            "a batch's images have little in common": ("orthogonality = 0", self.orthogonality),
            "pixels lie in the valid range": ("box = false", self.box),
        }
        return {what: remedy for what, (remedy, weight) in priors.items() if weight}

    def objection(self, situation: Situation) -> str | None:
        """Why these settings cannot work on what they are set on."""
        if situation.has_batchnorm is False and self.batchnorm != "none":
            statistics = next(item for item in self.needs if item.endswith("_statistics"))
            return (
                f'batchnorm = "{self.batchnorm}" works with {statistics}, but the model has no BatchNorm; '
                'use batchnorm = "none"'
            )
        if situation.has_batchnorm and self.batchnorm == "none":
            return 'batchnorm = "none", but the model has BatchNorm; choose exact, own_statistics, infer or proxy'
        if self.initial == "given" and self.initial_file is None:
            return 'initial = "given" needs initial_file, an .npy file of images (N, C, H, W) in [0, 1]'
        if self.initial_file is not None and not Path(self.initial_file).is_file():
            return f"initial_file: {self.initial_file}: there is no such file; give the path of an .npy file of images"
        if self.features and self.local_steps == "unrolled" and not situation.one_gradient:
            return (
                "features are read off one gradient, but the clients take several local steps, which are unrolled; "
                'leave features out, or use local_steps = "one_gradient"'
            )
        if self.local_steps == "unrolled" and situation.aggregate and len(situation.batch_sizes) > 1:
            return (
                'local_steps = "unrolled" follows the training of one client, but it is shown the sum of several; '
                'use local_steps = "one_gradient"'
            )
        if self.labels == "idlg":
            reason = several_images(situation) or several_steps(situation)
            if reason:
                return f'labels = "idlg": {reason}; or infer them by "bias", "llg" or "ilrg"'
        return self._contradiction() or self._idle()

    def _contradiction(self) -> str | None:
        if self.separate_epochs and self.local_steps != "unrolled":
            return 'separate_epochs needs local_steps = "unrolled"'
        if self.group and self.restarts == 1:
            return "group compares restarts with one another; set restarts to 2 or more"
        if self.restarts > 1 and self.initial in ("zeros", "given") and self.labels != "joint" and not self.langevin:
            return f'restarts would all be the same with initial = "{self.initial}"; set restarts to 1, or use "normal"'
        if self.features and self.labels == "joint":
            return 'features are read off by label, but labels = "joint" seeks these; infer them instead, as by "ilrg"'
        if self.optimiser == "lbfgs":
            if self.langevin or self.group or self.warm_up or self.signed or self.schedule != "constant":
                return (
                    'lbfgs finds its own steps; use schedule = "constant" and signed = false, '
                    "and no warm_up, langevin or group"
                )
            if (self.together or 1) > 1 or self.engine == "cudagraph":
                return (
                    "lbfgs runs one trial at a time and asks for values within a step; leave together out, "
                    'and use engine = "auto", "eager" or "compiled"'
                )
        return None

    def _idle(self) -> str | None:
        """A setting that somebody chose, but that nothing looks at. One that the recipe itself sets is no mistake."""
        usual = {one.name: one.default for one in fields(self)}
        lacking = {
            "tag_scale": "" if self.objective == "tag" else 'objective = "tag"',
            "task_kind": "" if self.task else "a task above 0",
            "order_invariance": "" if self.separate_epochs else "separate_epochs = true",
            "patch": "" if self.initial == "patterned" else 'initial = "patterned"',
            "initial_file": "" if self.initial == "given" else 'initial = "given"',
        }
        for key, other in lacking.items():
            if other and getattr(self, key) != usual[key]:
                return f"{key} does nothing without {other}; set that too, or leave {key} out"
        return None

    def objection_to(self, model: nn.Module, situation: Situation) -> str | None:
        """Why these settings cannot work on this model, or on this machine."""
        import torch

        from fedsim.adversaries.inversion import labels, last_layer

        if self.engine == "cudagraph" and not torch.cuda.is_available():
            return 'engine = "cudagraph" needs a CUDA device, and there is none; use "auto", "eager" or "compiled"'
        if self.labels not in ("known", "joint"):
            against = labels.refusal(self.labels, model, situation)
            if against:
                return against
        return last_layer.features_refusal(model) if self.features else None

    def capture(self, seen: Observation) -> Iterable[Job]:
        """A job for each observation."""
        return one_job(seen)

    def attack(self, job: Job, device: torch.device, rng: torch.Generator) -> Reconstruction:
        """The batch, as well as it can be found. Raises InputError where the settings and the observation do not
        fit.
        """
        return self.attack_many([job], device, [rng])[0]

    def batches(self, device: torch.device) -> bool:
        """Whether several jobs are better run by one call of `attack_many` than one by one."""
        return self.optimiser != "lbfgs" and (device.type == "cuda" if self.together is None else self.together > 1)

    def attack_many(
        self, jobs: Sequence[Job], device: torch.device, rngs: Sequence[torch.Generator]
    ) -> list[Reconstruction]:
        """As `attack`, for several jobs as one batch."""
        # Here, not above: the settings are checked before torch is imported.
        from fedsim.adversaries.inversion import matching

        return matching.invert(self, [job.observations[0] for job in jobs], device, rngs)
