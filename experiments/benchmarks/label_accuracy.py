"""How many labels of a batch leak from one gradient, by batch size and method (Huang et al., NeurIPS 2021, figure 2a).

    python experiments/benchmarks/label_accuracy.py [--data mnist5k] [--model convnet6] [--steps 0 20] [--trials 20]

A Markdown table each for a model trained on its own data for so many steps of SGD, in batches of 32: the mean share of
labels that are right, counted with multiplicity, over random batches. `-` is a method that refuses the batch. The same
arguments give the same table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import metrics, plugins
from fedsim.adversaries.base import Observation
from fedsim.adversaries.inversion import labels
from fedsim.adversaries.inversion.victim import rebuild
from fedsim.data.dataset import ImageData, Images, measure
from fedsim.errors import InputError
from fedsim.models.building import build
from fedsim.models.loss import cross_entropy
from fedsim.protocol import Batch

SIZES = (1, 2, 4, 8, 16, 32, 64)
CPU = torch.device("cpu")
RATE = 0.05
FIRST = 10**6
"""The number of the first batch under attack: those below are for training."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist5k", help="a data set of fedsim")
    parser.add_argument("--npz", type=Path, help="instead: a file of x_train (uint8, NHWC) and y_train")
    parser.add_argument("--model", default="convnet6")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 20], help="of training before the attack")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of the batch")
    parser.add_argument("--trials", type=int, default=20, help="batches of each size")
    arguments = parser.parse_args()
    data = _load(arguments.data, arguments.npz)
    model = build(plugins.load("models", arguments.model)(), data.shape, data.classes, seed=0)
    done = 0
    for steps in sorted(arguments.steps):
        _train(model, data, range(done, steps))
        done = steps
        print(f"\n{data.name}, {arguments.model}, {steps} steps of training, {arguments.trials} batches of each size\n")
        print("| batch | " + " | ".join(methods()) + " |\n|---|" + "---|" * len(methods()))
        for size in arguments.sizes:
            cells = _row(arguments.model, model, data, size, arguments.trials)
            print(f"| {size} | " + " | ".join(cells) + " |", flush=True)


def methods() -> list[str]:
    """Those that read labels off the gradient."""
    return [method for method in labels.METHODS if method != "known"]


def _load(name: str, file: Path | None) -> ImageData:
    if file is None:
        found: ImageData = plugins.load("datasets", name)().load()
        return found
    with np.load(file) as stored:
        pixels = torch.from_numpy(stored["x_train"]).permute(0, 3, 1, 2).contiguous()
        images = Images(pixels, torch.from_numpy(stored["y_train"].astype("int64")).flatten())
    names = tuple(str(label) for label in range(int(images.labels.max()) + 1))
    return ImageData(file.stem, images, images, names, measure(pixels))


def _batches(data: ImageData, size: int, numbers: range) -> Iterator[Batch]:
    for number in numbers:
        rng = torch.Generator().manual_seed(1000 * size + number)
        yield data.train.batch(torch.randperm(len(data.train), generator=rng)[:size])


def _gradient(model: nn.Module, data: ImageData, batch: Batch) -> dict[str, Tensor]:
    own = dict(model.named_parameters())
    loss = cross_entropy(model(data.normalisation(batch.images)), batch.labels)
    return dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))


def _train(model: nn.Module, data: ImageData, steps: range) -> None:
    model.train()
    for batch in _batches(data, 32, steps):
        gradient = _gradient(model, data, batch)
        with torch.no_grad():
            for key, value in model.named_parameters():
                value.sub_(RATE * gradient[key])


def _row(name: str, model: nn.Module, data: ImageData, size: int, trials: int) -> list[str]:
    """The accuracy of each method as a cell."""
    found: dict[str, list[float]] = {method: [] for method in methods()}
    for number, batch in enumerate(_batches(data, size, range(FIRST, FIRST + trials))):
        seen = _observation(name, model, data, _gradient(model, data, batch), size)
        victim = rebuild(seen, CPU)
        for method, accuracies in found.items():
            try:
                guess = labels.infer(method, seen, victim, torch.Generator().manual_seed(number))
            except InputError:
                continue
            accuracies.append(metrics.label_accuracy(guess, batch.labels))
    return [f"{100 * sum(one) / len(one):.1f} %" if one else "-" for one in found.values()]


def _observation(name: str, model: nn.Module, data: ImageData, gradient: dict[str, Tensor], size: int) -> Observation:
    """What a link shows of one step of FedSGD."""
    tensors = {f"model/{key}": value.detach() for key, value in model.named_parameters()}
    facts = {
        "model": {"name": name, "settings": {}},
        "image_shape": list(data.shape),
        "classes": data.classes,
        "mean": list(data.normalisation.mean),
        "std": list(data.normalisation.std),
        "batchnorm": "local",
        "algorithm": "fedsgd",
        "num_examples": size,
        "num_steps": 1,
        "learning_rate": RATE,
    }
    return Observation(1, 0, "link", tensors | {f"update/{key}": value for key, value in gradient.items()}, facts)


if __name__ == "__main__":
    main()
