"""Who may see which canary, written out from the table of positions and knowledge, not read from the code under test.
No test is in here.

| vantage         | plain                                      | under secure aggregation                         |
|-----------------|--------------------------------------------|--------------------------------------------------|
| link            | global model, the target's update          | model; its masked vector and encrypted shares    |
| link, TLS       | sizes                                      | sizes                                            |
| server          | model, every target's update and its count | masked vectors, opened shares, and the sum alone |
| client          | models, its own data                       | models, its own data                             |

`ideal` has neither masks nor shares. Whatever stands nowhere in this file is seen by nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from canaries import Canary


class Verdict(Enum):
    """MUST: the search is blind if it is not there. MAY: it can be there."""

    NEVER = "never"
    MAY = "may"
    MUST = "must"


@dataclass(frozen=True)
class Cell:
    """One adversary in one experiment, in words. rounds: at which it looks. survivors: (client, round) whose update is
    in a round's sum. opened: of those that helped to unmask it.
    """

    mode: str
    tls: bool
    vantage: str
    policy: str
    knows: tuple[str, ...] = ()
    hides: tuple[str, ...] = ()
    targets: tuple[int, ...] = (0, 1)
    member: int | None = None
    colluders: tuple[int, ...] = ()
    aggregate: bool = False
    rounds: tuple[int, ...] = (1,)
    survivors: frozenset[tuple[int, int]] = field(default=frozenset(), compare=False)
    opened: frozenset[tuple[int, int]] = field(default=frozenset(), compare=False)

    @property
    def name(self) -> str:
        """For a person."""
        rest = [
            f"{key}={','.join(map(str, value))}"
            for key, value in (("knows", self.knows), ("hides", self.hides))
            if value
        ]
        rest += ["colluders"] if self.colluders else []
        rest += ["aggregate"] if self.aggregate else []
        return " ".join([self.vantage + ("+TLS" if self.tls else ""), self.mode, self.policy, *rest])

    @property
    def subjects(self) -> tuple[int, ...]:
        """The clients that it looks at."""
        return (self.member,) if self.member is not None else self.targets

    @property
    def reads(self) -> bool:
        """Whether it reads messages."""
        return self.vantage == "server" or (self.vantage == "link" and not self.tls)

    def verdict(self, canary: Canary) -> Verdict:
        """Whether it may see a canary."""
        if canary.round not in (-1, *self.rounds):
            return Verdict.NEVER
        rule = {
            "model": self._model,
            "protocol": self._model,
            "training details": self._training,
            "update": self._update,
            "examples": self._examples,
            "running statistics": self._running,
            "batch statistics": self._batch,
            "labels": self._labels,
            "hidden labels": self._own,
            "images": self._own,
            "defenses": self._defenses,
            "mixing indices": self._mixing,
            "mixing coefficients": self._mixing,
            "masked update": self._masked,
            "encrypted shares": self._encrypted,
            "share of a seed": self._opened,
            "share of a key": self._opened,
        }.get(canary.kind)
        return rule(canary) if rule is not None else Verdict.NEVER

    def _model(self, canary: Canary) -> Verdict:
        visible = (self.reads or self.vantage == "client") and "global_model" not in self.hides
        return _if(visible, canary.form != "torch.float64")

    def _training(self, canary: Canary) -> Verdict:
        # What is not the same for all is left out of what is said of a sum.
        said = self._model(canary) is not Verdict.NEVER and "training_details" not in self.hides
        return _if(said and canary.client in self.subjects, not self._sums)

    def _update(self, canary: Canary) -> Verdict:
        if self.vantage == "server" and canary.client in self.colluders:
            return _if(True, canary.form == "torch.float32" and self.mode != "off")
        alone = not self.aggregate or len(self.targets) == 1
        seen = self.mode == "off" and self.reads and canary.client in self.targets and "update" not in self.hides
        return _if(seen and alone, canary.form == "torch.float32")

    def _examples(self, canary: Canary) -> Verdict:
        # It is a word of its own, and stays where the update is hidden.
        if "num_examples" in self.hides and canary.client not in self.colluders:
            return Verdict.NEVER
        return replace(self, hides=())._update(replace(canary, form="torch.float32"))

    def _running(self, canary: Canary) -> Verdict:
        sent = self.policy == "share_running" and self._update(canary) is not Verdict.NEVER
        told = "running_statistics" in self.knows and self.policy == "local" and canary.client in self.subjects
        return _if(sent or (told and not self.aggregate), canary.form == "torch.float32" and not self._sums)

    def _batch(self, canary: Canary) -> Verdict:
        sent = self.policy == "share_batch" and self._update(canary) is not Verdict.NEVER
        told = "batch_statistics" in self.knows and canary.client in self.subjects
        return _if(sent or (told and not self.aggregate), canary.form == "torch.float32" and not self._sums)

    def _labels(self, canary: Canary) -> Verdict:
        if self._own(canary) is not Verdict.NEVER:
            return Verdict.MAY
        whom = {client for client, round_ in self.survivors if round_ == canary.round} if self._secured else set()
        told = "labels" in self.knows and canary.client in {*self.subjects, *whom}
        return _if(told, canary.form == "torch.int64")

    def _own(self, canary: Canary) -> Verdict:
        # Of a client's images those of its batch are shown; which these are is not said here.
        return _if(self.vantage == "client" and canary.client == self.member, False)

    def _defenses(self, canary: Canary) -> Verdict:
        return _if("defenses" in self.knows and canary.client in self.subjects, not self._sums)

    def _mixing(self, canary: Canary) -> Verdict:
        known = canary.kind.replace(" ", "_") in self.knows and canary.client in self.subjects and not self.aggregate
        written = "torch.int64" if canary.kind == "mixing indices" else "torch.float32"
        return _if(known, canary.form == written and not self._sums)

    def _masked(self, canary: Canary) -> Verdict:
        hidden = "masked_update" in self.hides
        return _if(self.reads and canary.client in self.targets and not hidden, True)

    def _encrypted(self, canary: Canary) -> Verdict:
        seen = (
            self.reads
            and bool({canary.client, canary.peer} & set(self.targets))
            and "encrypted_shares" not in self.hides
        )
        # What the target sends is shown for certain; what is sent on to it is the same link's.
        sends = canary.client in self.targets and (canary.client, canary.round) in self.survivors
        return _if(seen, sends and self.mode == "secagg+")

    def _opened(self, canary: Canary) -> Verdict:
        """A share is opened by its holder: of a survivor's seed, or of the key of one that dropped out."""
        survives = (canary.client, canary.round) in self.survivors
        fits = survives == (canary.kind == "share of a seed")
        opens = canary.peer in self.targets and (canary.peer, canary.round) in self.opened
        seen = self.vantage == "server" and self.mode == "secagg+" and "opened_shares" not in self.hides
        return _if(seen and fits and opens, canary.form == "bytes")

    @property
    def _secured(self) -> bool:
        return self.vantage == "server" and self.mode != "off"

    @property
    def _sums(self) -> bool:
        """Whether what is shown of single clients is averaged away; of `secagg+` and `ckks` messages are shown too."""
        return self.aggregate or self._secured


def _if(seen: bool, certain: bool) -> Verdict:
    return (Verdict.MUST if certain else Verdict.MAY) if seen else Verdict.NEVER
