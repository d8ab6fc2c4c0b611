"""Inconsistent models: gradients of the others vanish, and what is left of the sum is the target's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim import batchnorm, plugins
from fedsim.adversaries.base import Observation
from fedsim.adversaries.derivations.suppression import Suppression
from fedsim.models.building import build
from fedsim.models.loss import training_loss

SHAPE, CLASSES, CLIENTS, TARGET = (1, 8, 8), 5, 4, 2
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [12]},
    "convnet6": {"width": 4, "hidden": 16, "activation": "tanh", "pooling": "avg"},
    "lenet": {"width": 4},
    "vit": {"dim": 24, "heads": 3},
}


class Federation:
    """Four clients' gradients on random images, as the derivation's own models make them."""

    def __init__(self, name: str, settings: dict[str, Any], images: int, how: Suppression, policy: str) -> None:
        made = plugins.load("models", name)(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
        self.model = batchnorm.apply_policy(build(made, SHAPE, CLASSES, 1), policy)
        batchnorm.training_mode(self.model, policy)
        self.parameters = {key: value.detach().clone() for key, value in self.model.named_parameters()}
        self.buffers = batchnorm.statistics(self.model)
        self.updates: dict[int, dict[str, Tensor]] = {}
        self.statistics: dict[int, dict[str, Tensor]] = {}
        self.labels: dict[int, Tensor] = {}
        rng = torch.Generator().manual_seed(5)
        for client in range(CLIENTS):
            batch = torch.rand((images, *SHAPE), generator=rng)
            self.labels[client] = torch.randint(CLASSES, (images,), generator=rng)
            sent = how.alter_model(1, client, [TARGET], self.parameters)
            batchnorm.load_statistics(self.model, self.buffers)
            with batchnorm.recording(self.model) as passes:
                self.updates[client] = gradient(self.model, sent, (batch - 0.5) / 0.25, self.labels[client])
            self.statistics[client] = batchnorm.sent(policy, self.model, passes)
        self.facts = {
            "model": {"name": name, "settings": settings},
            "image_shape": list(SHAPE),
            "classes": CLASSES,
            "mean": [0.5],
            "std": [0.25],
            "batchnorm": policy,
            "algorithm": "fedsgd",
            "batch_size": images,
            "num_examples": CLIENTS * images,
            "num_steps": 1,
            "clients": list(range(CLIENTS)),
            "targets": [TARGET],
            "granted": ["global_model", "labels", "num_examples", "sizes", "update"],
        }

    def seen(self, **facts: Any) -> Observation:
        def mean(parts: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {key: torch.stack([one[key].double() for one in parts.values()]).mean(0) for key in parts[TARGET]}

        tensors = {
            **{f"model/{key}": value for key, value in self.parameters.items()},
            **{f"buffers/{key}": value for key, value in self.buffers.items()},
            **{f"update/{key}": value for key, value in mean(self.updates).items()},
            **{f"sent_buffers/{key}": value for key, value in mean(self.statistics).items()},
            "known/labels": torch.cat(list(self.labels.values())),
        }
        return Observation(1, 0, "server", tensors, {**self.facts, **facts})


def gradient(model: nn.Module, parameters: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    weights = {key: value.clone().requires_grad_() for key, value in parameters.items()}
    loss = training_loss(model, functional_call(model, weights, (images,)), labels)
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


@pytest.mark.parametrize(
    ("name", "silence", "policy"),
    [
        ("mlp", "zeros", "share_running"),
        ("mlp", "dead_units", "share_running"),
        ("convnet6", "zeros", "share_running"),
        ("lenet", "dead_units", "share_running"),
        ("vit", "zeros", "share_running"),
        ("resnet18", "zeros", "share_batch"),
        ("resnet18", "zeros", "share_running"),
        ("resnet18", "dead_units", "share_batch"),
        ("resnet18", "zeros", "group_norm"),
    ],
)
def test_all_but_the_last_bias_of_the_others_vanishes(name: str, silence: Any, policy: str) -> None:
    how = Suppression(silence=silence)
    count = 2 if name == "resnet18" else 1  # BatchNorm takes no single value for a batch
    made = Federation(name, SMALL.get(name, {}), count, how, policy)
    last = [key for key in made.parameters if key.endswith("bias")][-1]
    for client in set(range(CLIENTS)) - {TARGET}:
        left = {key for key, value in made.updates[client].items() if float(value.abs().max()) > 1e-20}
        assert left == {last}
    found = how.derive([made.seen()])
    (one,) = found.observations
    assert (one.client, one.facts["num_examples"], one.facts["derived"]["polluted"]) == (TARGET, count, [last])
    for key, value in made.updates[TARGET].items():
        torch.testing.assert_close(
            one.tensors[f"update/{key}"], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: k + m
        )
    for key, value in made.statistics[TARGET].items():
        # Dead units put -100 into the others' statistics, which is taken out again.
        torch.testing.assert_close(one.tensors[f"sent_buffers/{key}"], value, rtol=1e-4, atol=1e-4)
    assert one.tensors["known/labels"].tolist() == made.labels[TARGET].tolist()
    assert not {"clients", "targets"} & set(one.facts)
    (note,) = found.notes
    assert f"'{last}'" in note
    assert "worked out" in note or count > 1


def test_a_sigmoid_network_is_not_silenced_by_zeros_and_that_is_said() -> None:
    made = Federation("lenet", SMALL["lenet"], 1, Suppression(), "share_running")
    found = Suppression().derive([made.seen()])
    (one,) = found.observations
    assert one.facts["derived"]["polluted"] == ["fc.bias", "fc.weight"]
    assert "what the others sent is still in fc.bias, fc.weight" in found.notes[0]
    for key in ("conv1.weight", "conv3.bias"):
        torch.testing.assert_close(one.tensors[f"update/{key}"], made.updates[TARGET][key], rtol=1e-4, atol=1e-7)


def test_of_several_images_the_last_bias_is_nearer_than_in_the_sum() -> None:
    """Worked out where the whole numbers fit; estimated, or 0, where not; never worse than what the others left."""
    for name in ("mlp", "convnet6"):
        made = Federation(name, SMALL[name], 8, Suppression(), "share_running")
        (one,) = Suppression().derive([made.seen()]).observations
        last = [key for key in made.parameters if key.endswith("bias")][-1]
        truth = made.updates[TARGET][last]
        in_sum = CLIENTS * made.seen().tensors[f"update/{last}"].float()
        assert float((one.tensors[f"update/{last}"] - truth).norm()) < 0.7 * float((in_sum - truth).norm())


def test_a_deterministic_part_of_the_others_is_taken_out() -> None:
    """The penalty of a bottleneck pulls at its encoder whatever the images are."""
    settings = {"hidden": [12], "bottleneck": 4}
    how = Suppression()
    made = plugins.load("models", "mlp")(**{**settings, "hidden": (12,)})
    model = build(made, SHAPE, CLASSES, 1).eval()  # without the bottleneck's noise
    parameters = {key: value.detach().clone() for key, value in model.named_parameters()}
    images, labels = torch.rand((4, 1, *SHAPE), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3])
    updates = [
        gradient(model, how.alter_model(1, c, [TARGET], parameters), (images[c] - 0.5) / 0.25, labels[c : c + 1])
        for c in range(CLIENTS)
    ]
    assert float(updates[0]["bottleneck.encoder.bias"].abs().max()) > 1e-4
    frame = Federation("mlp", SMALL["mlp"], 1, how, "share_running")
    tensors = {f"model/{key}": value for key, value in parameters.items()}
    for key in parameters:
        tensors[f"update/{key}"] = torch.stack([one[key].double() for one in updates]).mean(0)
    facts = {**frame.facts, "model": {"name": "mlp", "settings": settings}}
    (one,) = how.derive([Observation(1, 0, "server", tensors, facts)]).observations
    assert one.facts["derived"]["polluted"] == ["fc2.bias"]
    for key, value in updates[TARGET].items():
        torch.testing.assert_close(one.tensors[f"update/{key}"], value, rtol=1e-4, atol=1e-6)


def test_without_equal_batches_the_direction_is_right_and_the_length_is_noted() -> None:
    made = Federation("mlp", SMALL["mlp"], 2, Suppression(), "share_running")
    seen = made.seen()
    facts = {key: value for key, value in seen.facts.items() if key != "batch_size"}
    found = Suppression().derive([Observation(1, 0, "server", seen.tensors, {**facts, "num_examples": 10})])
    (one,) = found.observations
    assert one.facts["num_examples"] == 2
    assert "known/labels" not in one.tensors and "labels" not in one.facts["granted"]
    assert "its number of examples is not known and taken for 2.5, the mean" in found.notes[0]
    mine, theirs = one.tensors["update/fc1.weight"].flatten(), made.updates[TARGET]["fc1.weight"].flatten()
    assert float(torch.cosine_similarity(mine, theirs, dim=0)) > 0.9999


def test_the_first_target_gets_the_true_model_and_everybody_else_a_silent_one() -> None:
    parameters = {"fc1.weight": torch.ones(2, 2), "fc1.bias": torch.ones(2), "fc2.weight": torch.ones(1, 2)}
    parameters["fc2.bias"] = torch.ones(1)
    how = Suppression(silence="dead_units")
    for round_ in (1, 2):
        for client in range(5):
            sent = how.alter_model(round_, client, [4, 1], parameters)
            if client == 1:
                assert all(torch.equal(sent[key], value) for key, value in parameters.items())
                assert all(sent[key] is not value for key, value in parameters.items())
            else:
                values = {key: sorted(set(value.flatten().tolist())) for key, value in sent.items()}
                assert values == {"fc1.weight": [0], "fc1.bias": [-100], "fc2.weight": [0], "fc2.bias": [0]}
    assert all(float(value.min()) == 1 for value in parameters.values()), "nothing is changed in place"


def test_without_its_target_a_sum_gives_nothing_nor_does_a_round_that_was_closed() -> None:
    made = Federation("mlp", SMALL["mlp"], 1, Suppression(), "share_running")
    found = Suppression().derive([made.seen(clients=[0, 1, 3], targets=[2])])
    assert (found.observations, found.notes) == ((), ("round 1: client 2 is not in the sum of clients 0, 1 and 3",))
    found = Suppression().derive([])
    assert not found.observations
    assert "no sum was released in any round" in found.notes[0]


def test_local_training_is_silenced_too() -> None:
    """After a step of a silent client its last bias is not 0, but its features still are."""
    rate, steps = 0.1, 3
    how = Suppression()
    frame = Federation("mlp", SMALL["mlp"], 2, how, "share_running")
    rng = torch.Generator().manual_seed(3)
    updates = []
    for client in range(CLIENTS):
        weights = dict(how.alter_model(1, client, [TARGET], frame.parameters))
        start = {key: value.clone() for key, value in weights.items()}
        images, labels = torch.rand((2, *SHAPE), generator=rng), torch.tensor([client, 0])
        for _ in range(steps):
            found = gradient(frame.model, weights, images, labels)
            weights = {key: value - rate * found[key] for key, value in weights.items()}
        updates.append({key: start[key] - value for key, value in weights.items()})
    tensors = {f"model/{key}": value for key, value in frame.parameters.items()}
    tensors |= {f"update/{key}": torch.stack([u[key].double() for u in updates]).mean(0) for key in frame.parameters}
    facts = {**frame.facts, "algorithm": "fedavg", "learning_rate": rate, "num_steps": steps}
    (one,) = how.derive([Observation(1, 0, "server", tensors, facts)]).observations
    for key in ("fc1.weight", "fc1.bias", "fc2.weight"):
        torch.testing.assert_close(one.tensors[f"update/{key}"], updates[TARGET][key], rtol=1e-4, atol=1e-6)
    truth = updates[TARGET]["fc2.bias"]
    in_sum = CLIENTS * tensors["update/fc2.bias"].float()
    assert float((one.tensors["update/fc2.bias"] - truth).norm()) < float((in_sum - truth).norm())
