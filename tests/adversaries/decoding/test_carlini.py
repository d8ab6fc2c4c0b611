from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from encoding import NORMALISE, Part, Private, decode, encoded, private, quality, without

from fedsim import progress
from fedsim.adversaries.base import Job, Observation, Situation
from fedsim.adversaries.decoding.carlini import Carlini
from fedsim.adversaries.decoding.encodings import published_rows
from fedsim.errors import InputError

IMAGES = private()
SITUATION = Situation("mlp", False, "local", "fedsgd", True, (8,))


@pytest.fixture(scope="module")
def mixed() -> list[Part]:
    return encoded(IMAGES)


@pytest.fixture(scope="module")
def hidden() -> list[Part]:
    return encoded(IMAGES, name="instahide")


# --- with all that the paper grants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 16, 32])
def test_mixup_is_decoded_at_every_batch_size(batch: int) -> None:
    """50 images in batches of 16 end in one of 2, in batches of 32 in one of 18."""
    parts = encoded(IMAGES, batch=batch)
    found = decode(parts)
    assert quality(found, IMAGES).mean() > 35
    assert found.ids is not None and found.ids.tolist() == list(range(50))
    assert torch.equal(found.labels, IMAGES.classes)  # type: ignore[arg-type]
    assert found.images.dtype == torch.float32 and found.images.clamp(0, 1).equal(found.images)  # type: ignore[union-attr]
    assert torch.equal(NORMALISE.inverse(found.raw).clamp(0, 1), found.images)  # type: ignore[arg-type]


def test_the_reward_for_magnitude_is_what_keeps_the_published_decoder_from_more(mixed: list[Part]) -> None:
    published, plain = decode(mixed), decode(mixed, decoding_prior=0.0)
    assert quality(published, IMAGES).mean() < 45 < 55 < quality(plain, IMAGES).mean()
    exact = decode(mixed, solver="least_squares")
    assert quality(exact, IMAGES).min() > 80
    assert exact.objective < 1e-9 < published.objective
    assert torch.allclose(exact.raw, plain.raw, atol=1e-2)  # type: ignore[arg-type]
    # With the reward it leans away from 0.
    assert published.raw.abs().mean() > exact.raw.abs().mean()  # type: ignore[union-attr]


def test_instahide_is_decoded_by_least_squares_where_the_published_decoder_gets_stuck(hidden: list[Part]) -> None:
    found = decode(hidden, solver="least_squares")
    assert quality(found, IMAGES).min() > 60
    published = decode(hidden, decoding_steps=300)
    assert quality(published, IMAGES).mean() < 20
    assert published.notes["signs"] and published.notes["unexplained"] > 50 * found.notes["unexplained"]


def test_encodings_that_are_not_perfect_give_images_that_are_not() -> None:
    for name in ("mixup", "instahide"):
        found = decode(encoded(IMAGES, name=name, noise=0.1), solver="least_squares")
        assert 25 < quality(found, IMAGES).mean() < 45


# --- the published fault --------------------------------------------------------------------------------------------


def test_published_rows_are_wrong_in_a_shorter_last_batch_alone() -> None:
    assert published_rows([2, 2, 2, 2], 2).tolist() == list(range(8))
    # Batch 1 of a pass, of 2 images, begins at row 1 * 2 instead of 3.
    assert published_rows([3, 2, 3, 2], 3).tolist() == [0, 1, 2, 2, 3, 5, 6, 7, 7, 8]
    assert published_rows([16, 16, 16, 2], 16).tolist()[48:] == [6, 7]
    assert published_rows([32, 18], 32).tolist()[32:] == list(range(18, 36))


@pytest.mark.parametrize(("batch", "least", "most"), [(1, 0.0, 0.0), (16, 0.2, 8.0), (32, 10.0, 25.0)])
def test_the_published_indexing_costs_what_the_last_batch_holds(batch: int, least: float, most: float) -> None:
    parts = encoded(IMAGES, batch=batch)
    lost = quality(decode(parts), IMAGES).mean() - quality(decode(parts, solver="published"), IMAGES).mean()
    assert least <= lost <= most


def test_the_published_indexing_counts_batches_and_so_needs_every_round(mixed: list[Part]) -> None:
    with pytest.raises(InputError, match="counts the batches of a pass"):
        decode(mixed[:3] + mixed[4:], solver="published")


# --- with less ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixup", "instahide"])
def test_who_knows_less_decodes_no_better(name: str) -> None:
    parts = encoded(IMAGES, name=name, noise=0.05)
    reached = []
    for coefficients, turns in (("known", {}), ("labels", {"alternations": 5}), ("estimated", {"alternations": 5})):
        hidden = {"known": (), "labels": ("mixing_coefficients",), "estimated": ("mixing_coefficients", "labels")}
        found = decode(
            without(parts, *hidden[coefficients]), solver="least_squares", coefficients=coefficients, **turns
        )
        reached.append(float(quality(found, IMAGES).mean()))
    assert reached[0] > reached[1] > reached[2] > 20, reached


@pytest.mark.parametrize("coefficients", ["labels", "estimated"])
def test_coefficients_are_found_given_time(mixed: list[Part], coefficients: str) -> None:
    parts = without(mixed, "mixing_coefficients")
    assert quality(decode(parts, solver="least_squares", coefficients=coefficients), IMAGES).mean() > 50
    # The published decoder then does as well as with the coefficients granted.
    assert quality(decode(parts, coefficients=coefficients), IMAGES).mean() > 35


def test_mixup_is_decoded_with_nothing_granted(mixed: list[Part]) -> None:
    parts = without(mixed, "mixing_indices", "mixing_coefficients", "labels")
    settings = {"indices": "inferred", "private_images": 50, "coefficients": "estimated", "solver": "least_squares"}
    found = decode(parts, **settings)
    assert found.ids is None and found.labels is None
    assert quality(found, IMAGES).mean() > 40
    assert torch.equal(decode(parts, **settings).images, found.images)  # type: ignore[arg-type]


def test_public_images_are_left_out_and_what_they_add_is_noise() -> None:
    parts = encoded(IMAGES, public=2)
    found = decode(parts, solver="least_squares")
    assert found.ids is not None and found.ids.tolist() == list(range(50))
    # Half of every encoding has nothing to do with the images; even so they are near.
    assert 15 < quality(found, IMAGES).mean() < 35
    assert found.notes["public images"]
    guessed = decode(without(parts, "mixing_coefficients"), solver="least_squares", coefficients="labels")
    assert quality(guessed, IMAGES).mean() > 12


# --- what belongs together ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixup", "instahide"])
def test_the_order_of_the_rounds_does_not_matter(name: str) -> None:
    images = private(20)
    parts = encoded(images, name=name, batch=8)
    order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(5)).tolist()
    settings = {"solver": "least_squares"} if name == "instahide" else {}
    straight, turned = (decode(which, **settings) for which in (parts, [parts[one] for one in order]))
    assert torch.equal(straight.ids, turned.ids)  # type: ignore[arg-type]
    assert torch.allclose(straight.images, turned.images, atol=2e-3)  # type: ignore[arg-type]


def test_images_that_were_never_mixed_have_no_place() -> None:
    found = decode(encoded(IMAGES, never=(0, 7, 49), batch=32))
    assert found.ids is not None
    assert found.ids.tolist() == [one for one in range(50) if one not in (0, 7, 49)]
    assert len(found.images) == len(found.labels) == 47  # type: ignore[arg-type]
    assert quality(found, IMAGES).mean() > 35
    assert torch.equal(found.labels, IMAGES.classes[found.ids])  # type: ignore[arg-type]


def test_too_few_encodings_give_the_nearest_that_can_be_said() -> None:
    found = decode(encoded(private(12), passes=1, batch=4)[:1], solver="least_squares")
    assert found.ids is not None and 4 <= len(found.ids) <= 12
    assert bool(found.images.isfinite().all())  # type: ignore[union-attr]


def test_images_stand_in_where_an_inversion_gives_nothing_raw(mixed: list[Part]) -> None:
    bare = [(job, type(found)(found.images, None, 0.0, 1)) for job, found in mixed]
    assert quality(decode(bare, solver="least_squares"), IMAGES).mean() > 35


def test_progress_is_reported(mixed: list[Part]) -> None:
    said: list[tuple[int, int, str]] = []
    with progress.listening(lambda done, total, note: said.append((done, total, note))):
        decode(mixed, coefficients="estimated", alternations=3, decoding_steps=100)
    turns = [(done, 3, "coefficients") for done in range(3)]
    assert said == [*turns, (0, 100, "decoding"), (50, 100, "decoding")]


# --- what is refused ------------------------------------------------------------------------------------------------


def test_what_it_needs_depends_on_what_it_does_not_infer() -> None:
    base = {"global_model", "update", "num_examples", "labels", "batch_statistics", "defenses"}
    assert Carlini().needs == base | {"mixing_indices", "mixing_coefficients"}
    assert Carlini(coefficients="labels").needs == base | {"mixing_indices"}
    joint = Carlini(labels="joint", batchnorm="none", coefficients="estimated")
    assert joint.needs == base - {"labels", "batch_statistics"} | {"mixing_indices"}
    assert Carlini(labels="joint", coefficients="labels").needs >= {"labels"}
    assert Carlini(indices="inferred", private_images=9, coefficients="estimated").needs == base


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"indices": "inferred"}, "says nothing of images"),
        ({"indices": "inferred", "coefficients": "estimated"}, "needs private_images"),
        ({"private_images": 50}, "private_images does nothing"),
        ({"alternations": 3}, "alternations does nothing"),
        ({"solver": "least_squares", "decoding_prior": 0.0}, "decoding_prior does nothing"),
        ({"solver": "published", "coefficients": "labels"}, "has a fault"),
        ({"batchnorm": "exact"}, "has no BatchNorm"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], words: str) -> None:
    assert words in (Carlini(**{"batchnorm": "none", **settings}).objection(SITUATION) or "")  # type: ignore[arg-type]
    assert Carlini(batchnorm="none").objection(SITUATION) is None


def test_a_sum_of_clients_is_refused() -> None:
    several = Situation("mlp", False, "local", "fedsgd", True, (8, 8), aggregate=True)
    assert "encodings of one client" in (Carlini(batchnorm="none").objection(several) or "")


def changed(parts: Sequence[Part], **facts: object) -> list[Part]:
    out = []
    for job, found in parts:
        seen = job.observations[0]
        other = Observation(seen.round, 0, "server", seen.tensors, {**seen.facts, **facts})
        out.append((Job((other,)), found))
    return out


def test_what_cannot_be_decoded_is_said(mixed: list[Part], hidden: list[Part]) -> None:
    with pytest.raises(InputError, match="no inversion came to an end"):
        decode([])
    with pytest.raises(InputError, match="has no defense"):
        decode(changed(mixed, defenses=[]))
    with pytest.raises(InputError, match="has gradient_noise"):
        decode(changed(mixed, defenses=[{"name": "gradient_noise"}]))
    for lacking in ("mixing_indices", "mixing_coefficients"):
        with pytest.raises(InputError, match=f"{lacking} is not granted"):
            decode(without(mixed, lacking))
    with pytest.raises(InputError, match="soft ones"):
        decode(without(mixed, "labels"), coefficients="labels")
    inferred = {"indices": "inferred", "coefficients": "estimated"}
    with pytest.raises(InputError, match="hides their signs"):
        decode(hidden, private_images=50, **inferred)
    with pytest.raises(InputError, match="attack more rounds"):
        decode(mixed[:2], private_images=50, **inferred)
    job, found = mixed[0]
    short = type(found)(found.images[:3], None, 0.0, 1)  # type: ignore[index]
    with pytest.raises(InputError, match="round 1: 3 images were found"):
        decode([(job, short)])


def test_nothing_but_public_images_is_nothing_to_decode() -> None:
    parts = encoded(Private(IMAGES.images[:8], IMAGES.classes[:8]), public=4, passes=2)
    with pytest.raises(InputError, match="no private image"):
        decode(parts)


@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        ((("gradient_pruning",),), {}, "a targeted client has gradient_pruning"),
        (((),), {}, "a targeted client has no defense"),
        ((("mixup",), ()), {}, "a targeted client has no defense"),
        (
            (("instahide",),),
            {"indices": "inferred", "coefficients": "estimated", "private_images": 9},
            "instahide hides signs",
        ),
        ((("mixup", "gradient_pruning"),), {}, None),
        (None, {}, None),
    ],
)
def test_what_cannot_be_decoded_is_refused_before_round_0(
    names: tuple[tuple[str, ...], ...] | None, settings: dict[str, Any], said: str | None
) -> None:
    situation = Situation("mlp", False, "freeze", "fedsgd", True, (4,), defenses=names)
    found = Carlini(batchnorm="none", **settings).objection(situation)
    assert found is None if said is None else said in str(found)
