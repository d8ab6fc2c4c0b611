"""Draws depend on the seed and on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedsim import seeding


def test_the_numbers_stay_what_they_are() -> None:
    """They are part of the promise: with others, an old file would give another run."""
    assert seeding.derive(0) == 3696793467068528757
    assert seeding.derive(0, "batch", 3, 7) == 4154321102523604375
    assert torch.randint(2**31, (2,), generator=seeding.generator(0, "batch", 3, 7)).tolist() == [1756064359, 454823697]
    assert seeding.numpy_generator(0, "batch", 3, 7).integers(2**31, size=2).tolist() == [56025915, 2056989173]


def test_a_number_is_the_start_of_a_hash_that_anybody_can_work_out() -> None:
    text = b"int:0\x1fstr:batch\x1fint:3\x1fint:7"
    assert seeding.derive(0, "batch", 3, 7) == int(hashlib.sha256(text).hexdigest()[:16], 16) // 2


def test_different_purposes_give_different_numbers() -> None:
    purposes: list[tuple[str | int, ...]] = [
        (),
        ("a",),
        ("b",),
        ("a", 1),
        ("a", "1"),
        ("a1",),
        ("a", 1, 2),
        ("a", 12),
        ("a", 2, 1),
        (1, "a"),
        ("1", "a"),
        ("a", ""),
        ("", "a"),
    ]
    found = {seeding.derive(seed, *purpose) for seed in (0, 1, -1, 2**63 - 1) for purpose in purposes}
    assert len(found) == 4 * len(purposes)


def test_numbers_fit_every_generator_and_spread_over_all_bits() -> None:
    numbers = [seeding.derive(0, "x", i) for i in range(2000)]
    assert all(0 <= number < 2**63 for number in numbers)
    for bit in range(63):
        ones = sum(number >> bit & 1 for number in numbers)
        assert 850 < ones < 1150, bit  # 6.7 standard deviations
    torch.Generator().manual_seed(2**63 - 1)
    np.random.default_rng(2**63 - 1)


def test_the_state_of_others_does_not_matter_and_is_left_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    first = torch.rand(3, generator=seeding.generator(5, "x")), seeding.numpy_generator(5, "x").random(3)
    untouched = torch.rand(1).item(), np.random.random(), random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    assert untouched == (torch.rand(1).item(), np.random.random(), random.random())
    torch.manual_seed(99)
    second = torch.rand(3, generator=seeding.generator(5, "x")), seeding.numpy_generator(5, "x").random(3)
    assert torch.equal(first[0], second[0])
    assert (first[1] == second[1]).all()


def test_each_generator_is_new() -> None:
    assert torch.equal(
        torch.rand(3, generator=seeding.generator(5, "x")), torch.rand(3, generator=seeding.generator(5, "x"))
    )
    assert not torch.equal(
        torch.rand(3, generator=seeding.generator(5, "x")), torch.rand(3, generator=seeding.generator(5, "y"))
    )


def test_generators_are_on_the_processor() -> None:
    assert seeding.generator(0).device == torch.device("cpu")


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_another_process_derives_the_same(hash_seed: str) -> None:
    code = "import sys; from fedsim.seeding import derive; print(derive(3, 'client', 5), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hash_seed}
    )
    assert done.stdout.split() == [str(seeding.derive(3, "client", 5)), "False"]


def test_layers_that_draw_from_the_global_generator_draw_the_same_for_the_same_purpose() -> None:
    layer, ones, cpu = torch.nn.Dropout(0.5), torch.ones(50), torch.device("cpu")
    state = torch.get_rng_state()

    def drawn(*purpose: str | int) -> torch.Tensor:
        with seeding.global_draws(cpu, 3, *purpose):
            return layer(ones)

    first = drawn("training", 1, 0)
    layer(ones)  # whatever is drawn between
    assert torch.equal(drawn("training", 1, 0), first)
    assert not torch.equal(drawn("training", 2, 0), first)
    torch.set_rng_state(state)
    drawn("training", 1, 0)
    assert torch.equal(torch.get_rng_state(), state)
