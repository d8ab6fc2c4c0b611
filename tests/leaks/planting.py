"""Canaries of all that is secret in a run, taken while it goes on. No test is in here.

What is wrapped is what every part calls, by its name in the contracts: the workbench's training and defenses, a mode's
client half, the codec, and the functions of fedsim.secagg that make keys, shares and masks.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from canaries import LENGTH, Canary, numbers, secret, sequence, words

from fedsim import batchnorm, plugins, seeding
from fedsim.clients.workbench import Workbench
from fedsim.experiment import Experiment
from fedsim.secagg import keys, masks, shamir
from fedsim.secagg.quantization import Codec


class Planted:
    """Collects canaries. `finish` when the run is over."""

    def __init__(self, experiment: Experiment, patch: pytest.MonkeyPatch) -> None:
        self.canaries: list[Canary] = []
        self._experiment = experiment
        self._done: set[tuple[Any, ...]] = set()
        self._began: dict[tuple[int, int], tuple[Any, Any]] = {}
        self._who = (-1, -1)
        """The client that works, and in which round."""
        self.sealed: set[tuple[int, int]] = set()
        """Clients and rounds whose update was sealed."""
        self.opened: set[tuple[int, int]] = set()
        """Those that helped to unmask the sum."""
        self._private: set[bytes] = set()
        self._watch_training(patch)
        patch.setattr(seeding, "derive", self._after(seeding.derive, self._seed))
        mode = experiment.server.secure_aggregation
        if mode is not None:
            self._watch_secrets(patch, mode.name)

    # --- training ---------------------------------------------------------------------------------------------------

    def _watch_training(self, patch: pytest.MonkeyPatch) -> None:
        train, perturb = Workbench.train, Workbench.perturb

        def trains(place: Workbench, client: int, round_: int, parameters: Any, buffers: Any, **kwargs: Any) -> Any:
            out = train(place, client, round_, parameters, buffers, **kwargs)
            if self._first("train", client, round_):
                self._began[client, round_] = parameters, buffers
                self._trained(place, client, round_, parameters, out[0], out[1])
            return out

        def perturbs(place: Workbench, update: Any, client: int, round_: int, *rest: Any) -> Any:
            out = perturb(place, update, client, round_, *rest)
            if self._first("perturb", client, round_):
                self._tensors("update", client, round_, out[0].tensors)
            return out

        patch.setattr(Workbench, "train", trains)
        patch.setattr(Workbench, "perturb", perturbs)

    def _trained(self, place: Workbench, client: int, round_: int, parameters: Any, out: Any, examples: int) -> None:
        # A client may be sent another model than the others.
        self._tensors("model", -1, round_, parameters)
        self._tensors("raw update", client, round_, out.update.tensors)
        if self._experiment.clients.algorithm == "fedavg":
            self._tensors("trained parameters", client, round_, dict(place.model.named_parameters()))
        self._tensors("running statistics", client, round_, batchnorm.statistics(place.model))
        if out.loss is not None:
            self.canaries.append(words("loss", client, repr(out.loss)))
        self.canaries.append(words("examples", client, f'"num_examples": {examples}'))

    def finish(self, place: Workbench) -> None:
        """Add what can be derived again: data, labels, statistics and mixtures; and settings."""
        data, normalise = place.federation.data, place.federation.data.normalisation
        for client, share in enumerate(place.federation.shares):
            for image in data.train.pixels[share]:
                self.canaries += self._image("images", client, image, normalise)
            self.canaries += sequence("all labels", client, -1, data.train.labels[share])
        for image in data.test.pixels[:8]:
            self.canaries += self._image("held-out images", -1, image, normalise)
        for (client, round_), (parameters, buffers) in sorted(self._began.items()):
            private = place.replay(client, round_, parameters, buffers, statistics=True)
            mixed = private.indices is not None
            self.canaries += sequence("hidden labels" if mixed else "labels", client, round_, private.batch.labels)
            if mixed:
                assert private.indices is not None and private.coefficients is not None
                for row in private.encoded:
                    self.canaries += numbers("encoded images", client, round_, row)
                self.canaries += numbers("labels", client, round_, private.labels, width=data.classes)
                self.canaries += sequence("mixing indices", client, round_, private.indices)
                # Over two rows: a row alone may be one of the mixed labels.
                across = private.coefficients.reshape(-1)[2:6]
                self.canaries += numbers("mixing coefficients", client, round_, across)
            for value in private.statistics.values():
                self.canaries += numbers("batch statistics", client, round_, value)
        for client in range(self._experiment.clients.count):
            training = self._experiment.clients.training(client)
            self.canaries.append(words("training details", client, f'"learning_rate": {training.learning_rate}'))
            self.canaries.append(words("training details", client, f'"batch_size": {training.batch_size}'))
            stds = [one.settings.std for one in training.defenses if hasattr(one.settings, "std")]
            self.canaries += [words("defenses", client, f'"std": {std}') for std in stds]
        self.canaries.append(words("protocol", -1, '"image_shape"'))
        self._number("experiment's seed", self._experiment.seed)
        path = self._experiment.data.dataset.describe()["path"]
        self.canaries.append(words("path of the data", -1, Path(path).name))
        unique: dict[tuple[str, int, int, int, bytes], Canary] = {}
        for one in self.canaries:
            # The model of a round is everybody's, and shares are split once.
            unique.setdefault((one.kind, one.client, one.round, one.peer, one.data), one)
        self.canaries = list(unique.values())

    def _image(self, kind: str, client: int, image: torch.Tensor, normalise: Any) -> list[Canary]:
        real = image.float().div(255)
        whole = image.reshape(-1)[8:24]  # 16 pixels of one byte
        out = [Canary(kind, client, -1, whole.numpy().tobytes(), "uint8"), *numbers(kind, client, -1, real)]
        return out + numbers(kind, client, -1, normalise(real[None])[0])

    # --- secure aggregation -----------------------------------------------------------------------------------------

    def _watch_secrets(self, patch: pytest.MonkeyPatch, mode: str) -> None:
        half = plugins.load("maskings", mode)
        begin, seal, answer, encode = half.__init__, half.seal, half.answer, Codec.encode

        def begins(one: Any, settings: Any, terms: Any, client: int, round_: int, memory: Any) -> None:
            self._who = (client, round_)
            begin(one, settings, terms, client, round_, memory)

        def seals(*args: Any) -> Any:
            out = seal(*args)
            self.sealed.add(self._who)
            if mode != "ideal":  # where nothing is masked, what is sent is the secret itself
                from fedsim.grids import flower_internals as flower

                for value in flower.tensors_in(out, "sealed").values():
                    self.canaries += self._sealed(value)
            return out

        def answers(one: Any, stage: str, query: Any) -> Any:
            out = answer(one, stage, query)
            self.opened |= {self._who} if stage == "unmask" else set()
            return out

        def encodes(codec: Codec, what: Any) -> Any:
            out = encode(codec, what)
            self.canaries += numbers("ring vector", *self._who, torch.from_numpy(out.view(f"i{out.itemsize}")), most=8)
            return out

        patch.setattr(half, "__init__", begins)
        patch.setattr(half, "seal", seals)
        patch.setattr(half, "answer", answers)
        patch.setattr(Codec, "encode", encodes)
        everywhere(patch, keys.new_pair, self._after(keys.new_pair, self._pair))
        everywhere(patch, keys.agree, self._after(keys.agree, self._kept("agreed secret")))
        everywhere(patch, keys.derive_key, self._after(keys.derive_key, self._kept("derived key")))
        everywhere(patch, keys.encrypt, self._after(keys.encrypt, self._encrypted))
        everywhere(patch, shamir.split, self._after(shamir.split, self._split))
        everywhere(patch, masks.add_mask, self._after(masks.add_mask, self._mask))
        if mode == "ckks":
            from fedsim.secagg import ciphertexts

            everywhere(patch, ciphertexts.fresh_key, self._after(ciphertexts.fresh_key, self._kept("round's key")))

    def _sealed(self, value: torch.Tensor) -> list[Canary]:
        if value.dtype != torch.uint8:
            return numbers("masked update", *self._who, value, most=8)
        places = torch.linspace(256, len(value) - LENGTH, 8).long().tolist()  # behind the head of the first ciphertext
        windows = [value[at : at + LENGTH].numpy().tobytes() for at in places]
        return [Canary("masked update", *self._who, data, "bytes") for data in windows]

    def _after(self, function: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            out = function(*args, **kwargs)
            note(out, *args)
            return out

        return wrapped

    def _kept(self, kind: str) -> Callable[..., None]:
        def note(out: bytes, *_: Any) -> None:
            self.canaries += secret(kind, *self._who, out)

        return note

    def _pair(self, out: keys.KeyPair) -> None:
        self._private.add(out.private)
        self.canaries += secret("private key", *self._who, out.private)

    def _encrypted(self, out: bytes, key: bytes, plaintext: bytes, header: bytes) -> None:
        # Any header says who sends it to whom, after what it is, the run and the round.
        to = int(header.decode().split("/")[4])
        self.canaries += secret("encrypted shares", *self._who, out, peer=to)[:1]

    def _split(self, out: dict[int, bytes], what: bytes, *_: Any) -> None:
        of_key = what in self._private
        if not of_key:
            self.canaries += secret("self-mask seed", *self._who, what)
        for holder, share in out.items():
            self.canaries += secret("share of a key" if of_key else "share of a seed", *self._who, share, peer=holder)

    def _mask(self, out: None, vector: Any, seed: bytes, sign: int) -> None:
        self.canaries += secret("seed of a mask", *self._who, seed)
        self.canaries += secret("mask", *self._who, masks.keystream(seed, 48))

    # --- small things -----------------------------------------------------------------------------------------------

    def _seed(self, out: int, seed: int, *purpose: str | int) -> None:
        if purpose[:1] != ("attack",) and self._first("seed", *purpose):
            self._number("a client's seed", out)

    def _number(self, kind: str, value: int) -> None:
        self.canaries.append(Canary(kind, -1, -1, str(value).encode(), "text"))
        for order in ("little", "big"):
            self.canaries.append(Canary(kind, -1, -1, value.to_bytes(8, order), order))

    def _tensors(self, kind: str, client: int, round_: int, tensors: Any) -> None:
        for value in tensors.values():
            self.canaries += numbers(kind, client, round_, value)

    def _first(self, *what: Any) -> bool:
        new = what not in self._done
        self._done.add(what)
        return new


def everywhere(patch: pytest.MonkeyPatch, function: Any, instead: Any) -> None:
    """Replace a function in every module of fedsim that has it by name."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "fedsim":
            for key, value in list(vars(module).items()):
                if value is function:
                    patch.setattr(module, key, instead)
