"""Threat models by name, so that results of different people compare: those of Carletti et al., and what they are here.

Source: Carletti, Foggia, Mazzocca, Parrella, Vento, "SoK: Gradient Inversion Attacks in Federated Learning" (USENIX
Security 2025), and the table "Threat Models" that its authors keep at github.com/gparrella12/sok_gias_fl: eight models,
by which of seven capabilities each has. Names, letters and which model has what are theirs. That table does not define
the capabilities: what each means in the words of an experiment file (`CAPABILITIES`) is OUR reading, kept to how the
same authors class published attacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsim.errors import suggestion
from fedsim.schema import Problems
from fedsim.toml_lines import Path


@dataclass(frozen=True)
class Capability:
    """One column of the authors' table.

    words: our reading of it. sees, knows, powers: what it is in the words of an experiment file. priors: whether an
    attack may presume something of any image. absent: what fedsim has no word for, where it has none.
    """

    title: str
    words: str
    sees: tuple[str, ...] = ()
    knows: tuple[str, ...] = ()
    powers: tuple[str, ...] = ()
    priors: bool = False
    absent: str | None = None


CAPABILITIES: dict[str, Capability] = {
    "model_updates": Capability(
        "Model Updates",
        "whatever the server and the clients send each other: the model with its architecture and input format, the "
        "updates and how many examples they were made from (without which DLG, put under A by the authors, cannot "
        "work), and BatchNorm statistics where the policy sends them",
        sees=(
            "sizes",
            "global_model",
            "update",
            "num_examples",
            "masked_update",
            "encrypted_shares",
            "opened_shares",
        ),
    ),
    "basic_knowledge": Capability(
        "Basic Knowledge",
        "what can be presumed of any image: that it is smooth, that its pixels lie in the valid range, that the images "
        "of a batch are independent. Nothing to hand over: it is the attack's own prior, which the attack declares",
        priors=True,
    ),
    "training_details": Capability(
        "Training Details",
        "learning rate, batch size, momentum, weight decay and number of the client's local steps. FedSGD has none",
        sees=("training_details",),
    ),
    "surrogate_data": Capability(
        "Surrogate Data",
        "data of the adversary's own that resemble the clients'",
        absent="surrogate data",
    ),
    "client_data_distribution": Capability(
        "Client Data Distribution",
        "the BatchNorm statistics of the private batch and the client's running ones, also where they are not sent "
        "(Yin et al., who make use of such statistics, are put under E by the authors). Not the labels",
        knows=("batch_statistics", "running_statistics"),
    ),
    "active_manipulation": Capability(
        "Active Manipulation",
        "to send targets other parameters than those of the global model. Not another architecture: in fedsim the "
        "experiment sets that for all",
        powers=("alter_model",),
    ),
    "client_selection": Capability(
        "Client Selection",
        "to choose which clients take part in a round",
        absent="a choice of the clients that take part",
    ),
}
"""The seven columns of the authors' table, in their order, as we read them."""

FILLED = ("knows", "powers", "hides")
"""The keys of an adversary that a threat model determines."""

_EAVESDROPS = ("link", "server")
_MANIPULATES = ("server",)


@dataclass(frozen=True)
class ThreatModel:
    """One row of the authors' table. vantages: where such an adversary can stand (our reading). has: its columns."""

    letter: str
    title: str
    words: str
    vantages: tuple[str, ...]
    has: tuple[str, ...]

    @property
    def name(self) -> str:
        """As a file names it: the title in lower case with hyphens."""
        return self.title.lower().replace(" ", "-")

    @property
    def sees(self) -> frozenset[str]:
        """The most that it is shown: a vantage may show less."""
        return frozenset(item for key in self.has for item in CAPABILITIES[key].sees)

    @property
    def hides(self) -> tuple[str, ...]:
        """What a vantage would show but it is not shown: the sights of the capabilities that it has not."""
        return tuple(item for key, one in CAPABILITIES.items() if key not in self.has for item in one.sees)

    @property
    def knows(self) -> tuple[str, ...]:
        """What it is granted besides."""
        return tuple(item for key in self.has for item in CAPABILITIES[key].knows)

    @property
    def powers(self) -> tuple[str, ...]:
        """What it may alter."""
        return tuple(item for key in self.has for item in CAPABILITIES[key].powers)

    @property
    def priors(self) -> bool:
        """Whether its attack may presume something of any image."""
        return any(CAPABILITIES[key].priors for key in self.has)

    @property
    def absent(self) -> tuple[str, ...]:
        """What of it fedsim has no word for, so that nobody can be granted it."""
        return tuple(words for key in self.has if (words := CAPABILITIES[key].absent) is not None)

    @property
    def instead(self) -> ThreatModel | None:
        """The model of the table that is left of this one without what is absent, if there is such a one."""
        left = {key for key in self.has if CAPABILITIES[key].absent is None}
        return next((one for one in THREAT_MODELS if one is not self and set(one.has) == left), None)

    @property
    def refused(self) -> str | None:
        """Why an experiment cannot have it, and what can be used; None if it can.

        A model without what is absent is offered if it still differs from all others. Otherwise its name would stand
        for something that has another name.
        """
        if self.instead is None:
            return None
        return (
            f"it is defined by {' and '.join(self.absent)}, which fedsim cannot grant so far; what is left of it is "
            f"'{self.instead.name}' ({self.instead.letter})"
        )


_C = ("model_updates", "basic_knowledge", "training_details")

THREAT_MODELS: tuple[ThreatModel, ...] = (
    ThreatModel("A", "Eavesdropper", "sees what is sent and presumes nothing", _EAVESDROPS, _C[:1]),
    ThreatModel("B", "Informed Eavesdropper", "presumes besides what holds of any image", _EAVESDROPS, _C[:2]),
    ThreatModel("C", "Parameter-Aware Eavesdropper", "knows besides how the clients train", _EAVESDROPS, _C),
    ThreatModel(
        "D", "Data-Enhanced Eavesdropper", "has data like the clients' besides", _EAVESDROPS, (*_C, "surrogate_data")
    ),
    ThreatModel(
        "E",
        "Statistical-Informed Eavesdropper",
        "knows besides how a client's data are distributed",
        _EAVESDROPS,
        (*_C, "surrogate_data", "client_data_distribution"),
    ),
    ThreatModel(
        "F",
        "Active Manipulator",
        "knows what C knows, and changes the model that it sends",
        _MANIPULATES,
        (*_C, "active_manipulation"),
    ),
    ThreatModel(
        "G",
        "Data-Enhanced Manipulator",
        "has data like the clients' besides",
        _MANIPULATES,
        (*_C, "surrogate_data", "active_manipulation"),
    ),
    ThreatModel(
        "H",
        "Active Client Manipulator",
        "chooses besides which clients take part",
        _MANIPULATES,
        (*_C, "surrogate_data", "active_manipulation", "client_selection"),
    ),
)
"""The eight rows of the authors' table, in their order."""


def find(word: str) -> ThreatModel | None:
    """The model of a name (`informed-eavesdropper`) or letter (`B`); None if there is none."""
    return next((one for one in THREAT_MODELS if word in (one.name, one.letter)), None)


def expand(entry: Mapping[str, Any], path: Path, problems: Problems) -> dict[str, Any]:
    """An adversary's table with what its `threat_model` stands for written out: `knows`, `powers`, `hides`, and its
    full name. A table without one comes back as it is.

    entry: the table as in the file; path: where it stands. What the file says of these keys must agree with the model:
    nothing is overruled in silence. Conflicts are noted in `problems`, each at its own key, and the table then holds
    what the model says, so that no second message follows from the first.
    """
    table = dict(entry)
    if "threat_model" not in table:
        return table
    word = table["threat_model"]
    if not isinstance(word, str):
        return table  # whoever fills the entry says that it must be text
    model = find(word)
    if model is None:
        # Names alone: a single letter is near to anything.
        known = [one.name for one in THREAT_MODELS]
        problems.add((*path, "threat_model"), f"there is no threat model '{word}'{suggestion(word, known)}")
        return table
    said = f'threat_model = "{model.name}" ({model.letter})'
    if model.refused:
        problems.add((*path, "threat_model"), f"'{model.name}' ({model.letter}): {model.refused}")
    vantage = table.get("vantage")
    if isinstance(vantage, str) and vantage not in model.vantages:
        places = " or ".join(f'"{one}"' for one in model.vantages)
        problems.add(
            (*path, "vantage"),
            f'"{vantage}" does not agree with {said}, which stands at {places}; use that, or another threat model',
        )
    if table.get("colluders"):
        problems.add(
            (*path, "colluders"),
            f"does not agree with {said}: none of these models has clients that work together with the adversary; "
            "leave colluders out, or leave threat_model out and say what it has key by key",
        )
    table["threat_model"] = model.name
    for key in FILLED:
        ours = list(getattr(model, key))
        given = table.get(key)
        if given is not None and not _words(given):
            continue  # whoever fills the entry says what is wrong with it
        if given is not None and set(given) != set(ours):
            problems.add((*path, key), _conflict(key, given, ours, said))
        table[key] = ours
    return table


def objection(name: str | None, settings: Any) -> str | None:
    """Why an adversary of these settings goes beyond its threat model in what it takes for granted; None if it does
    not. What it needs to see, to know and to alter is not looked at here: an entry's grants say that.
    """
    model = find(name) if name else None
    if model is None or model.priors:
        return None
    presumed = presumes(settings)
    if not presumed:
        return None
    remedies = [remedy for remedy in presumed.values() if remedy]
    remedy = f"set {', '.join(remedies)}, or use" if len(remedies) == len(presumed) else "use"
    return (
        f"presumes that {' and that '.join(presumed)}, which is basic knowledge, and '{model.name}' "
        f"({model.letter}) has none; {remedy} 'informed-eavesdropper' (B)"
    )


def presumes(settings: Any) -> Mapping[str, str]:
    """What an adversary takes for granted of any image, and the settings by which it would not ("" if there are none).

    It declares that itself, in an attribute or property `presumes`; one without it presumes nothing.
    """
    found: Mapping[str, str] = getattr(settings, "presumes", {})
    return found


def _words(given: Any) -> bool:
    return isinstance(given, list | tuple) and all(isinstance(one, str) for one in given)


def _conflict(key: str, given: Any, ours: list[str], said: str) -> str:
    verb = {"knows": "grants", "powers": "gives", "hides": "hides"}[key]
    text = f"{_listed(given)} does not agree with {said}, which {verb} {_listed(ours)}; leave {key} out"
    if key == "knows" and "labels" in given:
        text += ' and let the attack infer labels, as with labels = "ilrg"'
    return text + ", or leave threat_model out and say what it has key by key"


def _listed(items: Any) -> str:
    return "[" + ", ".join(f'"{one}"' for one in items) + "]"
