"""The published attacks by optimisation: what each of them sets, and whose it is. All other settings are in base.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsim.adversaries.inversion.recipes.base import BatchNormMode, Inversion, Labels
from fedsim.settings import Count, Index, NonNegative, Positive

Objective = Literal["cosine", "angular", "squared_l2", "l1", "tag"]
Optimiser = Literal["adam", "sgd", "lbfgs"]
Initial = Literal["normal", "uniform", "zeros", "patterned", "given"]
Schedule = Literal["constant", "three_drops", "cosine", "linear"]


@dataclass(frozen=True)
class Dlg(Inversion):
    """Deep Leakage from Gradients: squared distance by L-BFGS, images and soft labels sought together.

    Source: Zhu, Liu, Han, "Deep Leakage from Gradients" (NeurIPS 2019), algorithm 1.
    """

    iterations: Count = 1200
    optimiser: Optimiser = "lbfgs"
    signed: bool = False
    step_size: Positive = 1.0
    schedule: Schedule = "constant"
    box: bool = False
    objective: Objective = "squared_l2"
    labels: Labels = "joint"


@dataclass(frozen=True)
class Idlg(Inversion):
    """Improved DLG: the label of a single image is read off the sign of the last layer's gradient first.

    Source: Zhao, Mopuri, Bilen, "iDLG: Improved Deep Leakage from Gradients" (2020), section 3.
    """

    iterations: Count = 1200
    optimiser: Optimiser = "lbfgs"
    signed: bool = False
    step_size: Positive = 1.0
    schedule: Schedule = "constant"
    box: bool = False
    objective: Objective = "squared_l2"
    labels: Labels = "idlg"


@dataclass(frozen=True)
class Cpl(Inversion):
    """Client Privacy Leakage: DLG from a patterned start, with the prior that the guess be classified as its label.

    Source: Wei et al., "A Framework for Evaluating Client Privacy Leakages in Federated Learning" (ESORICS 2020),
    equation 5: the prior is the squared error of the predicted probabilities. Its weight is chosen here: at 1 the prior
    alone sets how near an untrained model's guess can come.
    """

    iterations: Count = 1200
    optimiser: Optimiser = "lbfgs"
    signed: bool = False
    step_size: Positive = 1.0
    schedule: Schedule = "constant"
    box: bool = False
    objective: Objective = "squared_l2"
    labels: Labels = "idlg"
    task: NonNegative = 1e-3
    task_kind: Literal["cross_entropy", "squared"] = "squared"
    initial: Initial = "patterned"


@dataclass(frozen=True)
class Wei(Inversion):
    """Client Privacy Leakage as breaching 0.1.2 runs it: the prior as cross-entropy, coarser squares, valid pixels.

    Source: as `cpl`; 300 iterations, squares of 16 pixels, a box.
    """

    iterations: Count = 300
    optimiser: Optimiser = "lbfgs"
    signed: bool = False
    step_size: Positive = 1.0
    schedule: Schedule = "constant"
    objective: Objective = "squared_l2"
    labels: Labels = "idlg"
    task: NonNegative = 1.0
    initial: Initial = "patterned"
    patch: Count = 16


@dataclass(frozen=True)
class Tag(Inversion):
    """TAG: squared and absolute distance, the latter weighted by layer; made for transformers.

    Source: Deng et al., "TAG: Gradient Attack on Transformer-based Language Models" (EMNLP 2021), equation 5. Weights
    that fall evenly, warm-up and a falling step size are breaching's reading of it.
    """

    iterations: Count = 1000
    signed: bool = False
    step_size: Positive = 0.05
    schedule: Schedule = "linear"
    warm_up: Index = 50
    box: bool = False
    objective: Objective = "tag"
    layers: Literal["equal", "linear", "exponential"] = "linear"
    labels: Labels = "joint"


@dataclass(frozen=True)
class Geiping(Inversion):
    """Inverting Gradients: cosine similarity by signed Adam, with total variation.

    Source: Geiping et al., "Inverting Gradients - How easy is it to break privacy in federated learning?" (NeurIPS
    2020), equation 4. The default `tv` suits photographs; on digits without a defense 0 does better.
    """

    tv: NonNegative = 0.01
    bn_prior: NonNegative = 0.001


@dataclass(frozen=True)
class GeipingFedAvg(Inversion):
    """Inverting Gradients on an update of several local steps, which are unrolled and differentiated through.

    Source: Geiping et al. (NeurIPS 2020), section 6, federated averaging.
    """

    tv: NonNegative = 0.01
    bn_prior: NonNegative = 0.001
    local_steps: Literal["one_gradient", "unrolled"] = "unrolled"


@dataclass(frozen=True)
class Dimitrov(Inversion):
    """Data leakage in FedAvg: a guess for every local epoch, which have to agree whatever the order within them.

    Source: Dimitrov et al., "Data Leakage in Federated Averaging" (TMLR 2022), sections 4.2 and 4.3.
    """

    tv: NonNegative = 0.01
    bn_prior: NonNegative = 0.001
    local_steps: Literal["one_gradient", "unrolled"] = "unrolled"
    separate_epochs: bool = True
    order_invariance: NonNegative = 0.1


@dataclass(frozen=True)
class Yin(Inversion):
    """See through Gradients (GradInversion): squared distance, BatchNorm statistics, and agreement of several trials.

    Source: Yin et al., "See through Gradients: Image Batch Recovery via GradInversion" (CVPR 2021), equations 8 to 11.
    The weights are breaching's, relative to an objective of weight 1, but for `group`, which it leaves out. So does
    this recipe leave out the alignment of the trials before their mean.
    """

    iterations: Count = 20000
    signed: bool = False
    schedule: Schedule = "cosine"
    warm_up: Index = 50
    langevin: NonNegative = 0.01
    objective: Objective = "squared_l2"
    tv: NonNegative = 1.0
    l2: NonNegative = 0.01
    bn_prior: NonNegative = 1000.0
    batchnorm: BatchNormMode = "infer"
    group: NonNegative = 1.0
    restarts: Count = 4
    labels: Labels = "yin"


@dataclass(frozen=True)
class Huang(Inversion):
    """Inverting Gradients as the paper re-evaluates it: with the BatchNorm prior, in one of its three modes.

    Source: Huang et al., "Evaluating Gradient Inversion Attacks and Defenses in Federated Learning" (NeurIPS 2021),
    sections 3 and 5. batchnorm: exact is its BN_exact as written, own_statistics as its code has it; infer and proxy
    are BN_infer and BN_proxy.
    """

    iterations: Count = 10000
    tv: NonNegative = 0.05
    bn_prior: NonNegative = 0.001
    batchnorm: BatchNormMode = "exact"
