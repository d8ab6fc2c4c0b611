"""What a decoder makes of perfect encodings: what MixUp and InstaHide hide from whoever inverts every gradient exactly.

    python experiments/benchmarks/decoding.py [--data mnist5k | --npz FILE] [--passes 20] [--batches 1 16 32]

Clients' own code encodes a private set (the first images of each class) in `passes` passes, in batches; each decoder
then gets the encodings as an inversion without error would give them. A Markdown table: mean and smallest PSNR in dB
over the private images (at most 100), and process CPU seconds. `published` is the published decoder with its fault in
indexing, `adam` without it. The floor is an even gray image in the place of each.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedsim import metrics
from fedsim.adversaries.base import Job, Observation, Reconstruction
from fedsim.adversaries.decoding.carlini import Carlini
from fedsim.clients.workbench import Workbench
from fedsim.errors import InputError
from fedsim.experiment import Experiment
from fedsim.experiment_file import from_table

CPU = torch.device("cpu")
DEFENSES: list[dict[str, Any]] = [{"name": name, "k": k} for name in ("mixup", "instahide") for k in (4, 6)]
DECODERS: dict[str, dict[str, Any]] = {
    "published": {"solver": "published"},
    "adam": {"solver": "adam"},
    "least squares": {"solver": "least_squares"},
    "least squares, coefficients from labels": {"solver": "least_squares", "coefficients": "labels"},
    "least squares, coefficients estimated": {"solver": "least_squares", "coefficients": "estimated"},
    "nothing granted": {"solver": "least_squares", "coefficients": "estimated", "indices": "inferred"},
}


@dataclass(frozen=True)
class Encoded:
    """A private set with its encodings, as parts for a decoder."""

    truth: torch.Tensor
    parts: list[tuple[Job, Reconstruction]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist5k", help="a data set of fedsim")
    parser.add_argument("--npz", type=Path, help="instead: a file of images")
    parser.add_argument("--per-class", type=int, default=5, help="private images of each class")
    parser.add_argument("--passes", type=int, default=20, help="encodings of each image")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 32], help="batch sizes")
    parser.add_argument("--decoders", nargs="+", default=list(DECODERS), choices=list(DECODERS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = {"name": "npz", "path": str(arguments.npz)} if arguments.npz else {"name": arguments.data}
    print("| defense | batch | decoder | mean | smallest | CPU s |\n|---|---|---|---|---|---|")
    for defense in DEFENSES:
        for batch in arguments.batches:
            made = encoded(experiment(data, defense, batch, arguments.per_class), arguments.passes, batch)
            if batch == arguments.batches[0]:
                print(f"| {defense['name']} {defense['k']} | - | floor: gray | {_scores(gray(made), made)} | - |")
            for name in arguments.decoders:
                print(f"| {defense['name']} {defense['k']} | {batch} | {name} | {_row(name, made)} |", flush=True)


def experiment(data: dict[str, Any], defense: dict[str, Any], batch: int, per_class: int) -> Experiment:
    """One client who walks through the private set in order, behind one defense."""
    return from_table(
        {
            "rounds": 1,
            "data": {**data, "partition": {"kind": "first_of_class", "per_class": per_class}},
            "model": {"name": "mlp", "hidden": []},
            "clients": {
                "count": 1,
                "algorithm": "fedsgd",
                "batch_size": batch,
                "batches": "in_order",
                "defenses": [defense],
            },
        }
    )


def encoded(of: Experiment, passes: int, batch: int) -> Encoded:
    """The client's encodings of all passes, round by round."""
    place = Workbench(of)
    size, data = len(place.federation.shares[0]), place.federation.data
    facts = {
        "mean": list(data.normalisation.mean),
        "std": list(data.normalisation.std),
        "batch_size": batch,
        "defenses": [one.describe() for one in of.clients.defenses],
    }
    parts = []
    for round_ in range(1, passes * -(-size // batch) + 1):
        private = place.replay(0, round_, {}, {}, statistics=False)
        assert private.indices is not None and private.coefficients is not None
        known = {
            "known/labels": private.labels,
            "known/mixing_indices": private.indices,
            "known/mixing_coefficients": private.coefficients,
        }
        found = Reconstruction(private.encoded, None, 0.0, 0, raw=data.normalisation(private.encoded))
        parts.append((Job((Observation(round_, 0, "server", known, facts),)), found))
    return Encoded(place.federation.batch(0, torch.arange(size)).images, parts)


def gray(made: Encoded) -> torch.Tensor:
    """An even image of the private ones' mean in each one's place."""
    return made.truth.mean().expand_as(made.truth)


def _row(name: str, made: Encoded) -> str:
    settings = dict(DECODERS[name])
    if settings.get("indices") == "inferred":
        settings["private_images"] = len(made.truth)
    start = time.process_time()
    try:
        found = Carlini(**settings).combine(made.parts, CPU, torch.Generator().manual_seed(0))
    except InputError as error:
        return f"refused: {str(error).split(':')[-1].strip()} | - | -"
    assert isinstance(found, Reconstruction) and found.images is not None
    images = found.images if found.ids is not None else found.images[metrics.match(found.images, made.truth)]
    return f"{_scores(images, made)} | {time.process_time() - start:.1f}"


def _scores(images: torch.Tensor, made: Encoded) -> str:
    values = metrics.psnr(images, made.truth)
    return f"{float(values.mean()):.1f} | {float(values.min()):.1f}"


if __name__ == "__main__":
    main()
