"""The page: what `template.html` needs, worked out from a run, and the writing of it."""

from __future__ import annotations

import base64
import math
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedsim.errors import FedsimError
from fedsim.report import aggregation, charts, words
from fedsim.report.derived import NOTHING, derived_cells, meaning
from fedsim.report.formats import MISSING, counted, duration, finite, fixed, numbered, plain, significant, whole
from fedsim.report.headline import headline
from fedsim.report.leaving import closing, grouped, named
from fedsim.report.noting import noted
from fedsim.report.pictures import COLUMNS, layout, parted
from fedsim.report.reading import Attack, Run, read
from fedsim.report.round_table import round_cells
from fedsim.report.rounds import Dropout
from fedsim.report.table import attack_cells
from fedsim.report.templates import template
from fedsim.report.threats import threats
from fedsim.report.values import integer, integers, real, strings, table, text
from fedsim.runs import write_whole

HERE = Path(__file__).parent
PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_PICTURE = 16 * 2**20
SHOWN = {"victims": 12, "pictures": 4, "objectives": 18, "clients": 24, "reasons": 40}
"""How many of each are open to view; the others wait in a fold, or in the table of scores."""
OPEN_BLOCKS = 2
"""Of a picture of many images, how many pairs of rows, of 16 images each, are open to view."""


@dataclass(frozen=True)
class Finding:
    """What happened to one client."""

    client: str
    defenses: str
    sentence: str
    details: str
    scored: bool
    scale: Markup | None
    images: Sequence[Figure]


@dataclass(frozen=True)
class Figure:
    """One picture of a reconstruction, or why there is none. rest: of many images, those that wait in a fold; more: how
    many these are."""

    title: str
    caption: str
    alt: str
    source: str
    rest: str
    more: int
    problem: str
    columns: int
    labelled: bool
    scores: Sequence[str]


@dataclass(frozen=True)
class Objective:
    """One attack's objective."""

    title: str
    span: str
    chart: Markup | None


@dataclass(frozen=True)
class Person:
    """One client."""

    client: int
    examples: str
    bar: Markup | None
    classes: str
    defenses: str
    attacked: str
    hit: bool
    dropouts: str


@dataclass(frozen=True)
class PerImage:
    """The scores of one reconstruction, image by image."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def write(run: Path) -> Path:
    """See `fedsim.report.write`."""
    page = render(read(run))
    path = run / "report.html"
    try:
        # Strings from a run may hold half a surrogate pair, which UTF-8 has no bytes for.
        write_whole(path, page.encode("utf-8", errors="replace"))
    except OSError as error:
        raise FedsimError(
            f"{path}: cannot be written: {error.strerror or error}; is there room, and a right to?"
        ) from error
    return path


def render(run: Run) -> str:
    """The page as text. The same run gives the same text: nothing depends on when or where this is called."""
    return template("template.html").render(context(run))


def context(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    findings = _findings(run)
    scored = [found for found in findings if found.scored]
    return {
        "style": Markup((HERE / "style.css").read_text(encoding="utf-8")),
        "name": run.name,
        "setup": words.setup(run),
        "headline": headline(run),
        "stamp": _stamp(run),
        "state": words.state(run),
        "gaps": run.gaps,
        "attacked": bool(findings),
        "findings": scored[: SHOWN["victims"]],
        "further": scored[SHOWN["victims"] :],
        "unscored": [found for found in findings if not found.scored],
        "nets": sorted({attack.lpips_net for attack in run.attacks if attack.lpips_net}),
        "lpips_used": any(finite(attack.lpips) for attack in run.attacks),
        "pictures_open": SHOWN["pictures"],
        "aggregation": aggregation.describe(run),
        "derived": derived_cells(run.derived),
        "derived_means": meaning(run.derived),
        "derived_notes": [(note.whose, note.text) for note in run.notes],
        "threats": threats(run),
        **_training(run),
        "objectives": _objectives(run),
        "objectives_open": SHOWN["objectives"],
        "scores": attack_cells(run.attacks, words.given_labels(run)),
        "per_image": _per_image(run),
        "noted": noted(run.attacks),
        **_people(run),
        "dropouts": _left(run, unopened=False),
        "unopened": _left(run, unopened=True),
        "closed": [(f"Round {entry.round}", closing(entry)) for entry in run.rounds if entry.skipped],
        "reasons_open": SHOWN["reasons"],
        "failures": [
            (f"{attack.adversary}, {words.victim(attack).lower()}, {words.when(attack)}", words.failure(attack))
            for attack in run.attacks
            if attack.failed
        ],
        "warnings": run.warnings,
        "experiment": run.experiment_text.strip(),
        "command": _command(run),
        "facts": _facts(run),
        "version": text(run.manifest.get("fedsim")),
    }


def _findings(run: Run) -> list[Finding]:
    several = words.ambiguous(run.attacks)
    found = []
    for clients, attacks in words.victims(run.attacks).items():
        lanes = [
            charts.Lane(
                words.distinguishing(attack, attacks),
                attack.ssim,
                [value for value in attack.per_image.get("ssim", ()) if value is not None],
                attack.informed,
            )
            for attack in attacks
            if attack.ssim is not None
        ]
        best = attacks[0]
        details = [words.spread(best), words.pixel_error(best)]
        defended = words.defenses(
            best.defenses
            if best.defenses is not None
            else words.configured_defenses(run, clients[0] if clients else None)
        )
        who = words.victim(best)
        found.append(
            Finding(
                client=who,
                defenses=defended,
                sentence=words.outcome(attacks, several).rstrip(".") + ".",
                details=" ".join(part for part in details if part),
                # A picture without a score is still worth a look; a failure without either is told in a line.
                scored=any(attack.scored or attack.picture for attack in attacks),
                scale=charts.scale(lanes[:4], name=f"{who}: SSIM of each image and their mean, from 0 to 1"),
                images=[_figure(run, attack, attacks) for attack in _to_look_at(attacks)],
            )
        )
    return found


def _to_look_at(attacks: Sequence[Attack]) -> Sequence[Attack]:
    """Attacks that were after images; only where there is none, the others, of which there is no picture."""
    return [attack for attack in attacks if not attack.labels_alone] or attacks


def _figure(run: Run, attack: Attack, among: Sequence[Attack]) -> Figure:
    content, size, problem = _embedded(run.folder, attack)
    count = attack.images or attack.batch or 0
    shape = integers(run.manifest.get("image_shape"))
    # Row names and scores are laid over the picture's own columns, so only where it is known to have these.
    plan = layout(count, *shape[1:]) if len(shape) == 3 and min(shape) > 0 and count > 0 else None
    known = plan is not None and _alike(size, plan.size)
    fits = known and plan is not None and plan.blocks == 1
    shown = [content]
    if plan is not None and known and plan.blocks > OPEN_BLOCKS:
        shown = parted(content, plan, OPEN_BLOCKS)
    source, rest = [_uri(part) for part in (*shown, b"")][:2]
    values = attack.per_image.get("ssim", ())
    title = words.distinguishing(attack, among) or words.when(attack)
    if not title.startswith(attack.adversary):
        title = title[:1].upper() + title[1:]
    parts = [
        "" if attack.labels_alone else words.scores(attack, lpips=True),
        words.labels(run, attack),
        words.failure(attack) if attack.failed else words.ending(attack),
    ]
    return Figure(
        title=title,
        caption="; ".join(part for part in parts if part).rstrip("."),
        alt=f"{counted(count or None, 'private image')} of {words.victim(attack).lower()} above, "
        f"what {words.role(attack)} made of them below: {words.scores(attack)}",
        source=source,
        rest=rest,
        more=count - OPEN_BLOCKS * COLUMNS if rest else 0,
        problem=problem,
        columns=plan.columns if plan and known else 8,
        labelled=fits,
        scores=[fixed(value) for value in values] if fits and len(values) == count else [],
    )


def _uri(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}" if picture else ""


def _embedded(folder: Path, attack: Attack) -> tuple[bytes, tuple[int, int], str]:
    """A picture's PNG with its height and width, or else why it cannot be shown."""
    nothing = (0, 0)
    if attack.labels_alone:
        return b"", nothing, "It was after the labels alone: there is no picture."
    if not attack.picture:
        return b"", nothing, "No picture was stored."
    try:
        path = (folder / attack.picture).resolve()
        # The file may come from elsewhere: a report must not carry away what lies outside the run.
        if not path.is_relative_to(folder.resolve()):
            return b"", nothing, f"{attack.picture} lies outside the run folder and is not shown."
        if path.stat().st_size > LARGEST_PICTURE:
            return b"", nothing, f"{attack.picture} is too large to be put into a page."
        content = path.read_bytes()
    except (OSError, ValueError):
        return b"", nothing, f"{attack.picture} is missing or cannot be read."
    if not content.startswith(PNG) or len(content) < 24:
        return b"", nothing, f"{attack.picture} is not a PNG."
    width, height = struct.unpack(">II", content[16:24])
    return content, (height, width), ""


def _alike(size: tuple[int, int], expected: tuple[int, int]) -> bool:
    """Whether a picture has the expected proportions, whatever its scale."""
    if min(*size, *expected) <= 0:
        return False
    return abs(math.log(size[0] / size[1] * expected[1] / expected[0])) < 0.04


def _training(run: Run) -> dict[str, Any]:
    attacked: dict[int, list[int]] = {}
    for attack in run.attacks:
        for number in attack.rounds:
            attacked.setdefault(number, []).extend(words.whose(attack))
    attacked = {number: sorted(set(hit)) for number, hit in attacked.items() if hit}
    marks = {number: f"round {number}: {numbered(hit, 'client')} attacked" for number, hit in attacked.items()}

    def series(name: str, style: str, field: str) -> charts.Series:
        values = [(float(entry.round), getattr(entry, field)) for entry in run.rounds]
        # Rounds without an evaluation are not a gap in the line; a value that is not finite is one.
        return charts.Series(name, style, [(x, y) for x, y in values if y is not None])

    accuracy, test, train = (
        words.start_to_end(run.rounds, field, style)
        for field, style in (("test_accuracy", "percent"), ("test_loss", "number"), ("train_loss", "number"))
    )
    return {
        "accuracy": accuracy,
        "test_loss": test,
        "train_loss": train,
        "accuracy_chart": charts.lines(
            [series("test", "s-test", "test_accuracy")],
            name=f"Test accuracy over rounds: {accuracy}",
            percent=True,
            marks=marks,
        ),
        "loss_chart": charts.lines(
            [series("test", "s-test", "test_loss"), series("train", "s-train", "train_loss")],
            name=f"Loss over rounds. Test: {test or 'not recorded'}. Train: {train or 'not recorded'}",
            marks=marks,
        ),
        "attacked_rounds": numbered(list(attacked), "round") if attacked else "",
        "privacy": words.privacy(run.rounds),
        "rounds": round_cells(run.rounds, aggregation.entries(run)),
    }


def _objectives(run: Run) -> list[Objective]:
    by_plugin: dict[str, list[Attack]] = {}
    for attack in run.attacks:
        if attack.history:
            by_plugin.setdefault(attack.plugin or attack.adversary, []).append(attack)
    # Values of one plugin share a scale and can be compared; those of different plugins mean different things.
    scales = {plugin: charts.scale_of(attack.history for attack in group) for plugin, group in by_plugin.items()}
    shown = []
    for attack in run.attacks:
        if not attack.history:
            continue
        low, high = scales[attack.plugin or attack.adversary]
        values = [value for _, value in attack.history if math.isfinite(value)]
        span = f"{significant(values[0])} → {significant(values[-1])}" if values else "never finite"
        linear = "" if low > 0 or not values else ", linear scale"
        name = f"{words.victim(attack)}, {words.when(attack)}"
        chart = charts.objective(attack.history, name=f"{name}: objective {span}", low=low, high=high)
        shown.append(Objective(f"{name} · {attack.adversary}", span + linear, chart))
    return shown


def _per_image(run: Run) -> list[PerImage]:
    shown = []
    for attack in run.attacks:
        names = [name for name, values in attack.per_image.items() if values]
        if not names:
            continue
        count = max(len(attack.per_image[name]) for name in names)
        digits = {"psnr": 1}
        rows = [
            [str(index)]
            + [
                fixed(values[index], digits.get(name, 2)) if index < len(values) else MISSING
                for name in names
                for values in (attack.per_image[name],)
            ]
            for index in range(count)
        ]
        header = ["image", *({"psnr": "PSNR dB"}.get(name, name.upper()) for name in names)]
        shown.append(PerImage(f"{words.victim(attack)}, {words.when(attack)}, {attack.adversary}", header, rows))
    return shown


def _people(run: Run) -> dict[str, Any]:
    known = {client.client: client for client in run.clients}
    count = integer(run.section("clients").get("count")) or 0
    dropped: dict[int | None, list[int]] = {}
    for dropout in _dropouts(run):
        dropped.setdefault(dropout.client, []).append(dropout.round if dropout.round is not None else -1)
    attacks: dict[int, list[Attack]] = {}
    for attack in run.attacks:
        for hit in words.whose(attack):
            attacks.setdefault(hit, []).append(attack)
    missed = Counter(one.client for one in run.derived if one.nothing)
    longest = max((sum(client.labels) for client in run.clients), default=0)
    people = []
    for number in sorted({*known, *range(min(count, 10_000))}):
        client = known.get(number)
        labels = client.labels if client else ()
        examples = client.examples if client else None
        present = [index for index, held in enumerate(labels) if held]
        people.append(
            Person(
                client=number,
                examples=whole(examples if examples is not None else sum(labels) if labels else None),
                bar=charts.stack(labels, longest=longest, name=f"Client {number}: examples of each class"),
                classes=f"{len(present)} of {len(labels)} classes" if labels else "",
                defenses=words.defenses(words.configured_defenses(run, number)),
                attacked=_attacked(attacks.get(number, ()), missed[number]),
                hit=number in attacks,
                dropouts=numbered(dropped[number], "round") if number in dropped else "",
            )
        )
    people.sort(key=lambda person: (not person.hit, not person.attacked, person.client))
    classes = max((len(client.labels) for client in run.clients), default=0)
    return {
        "people": people[: SHOWN["clients"]],
        "more_people": people[SHOWN["clients"] :],
        "classes": classes,
        "any_dropouts": bool(dropped),
    }


def _attacked(attacks: Sequence[Attack], missed: int) -> str:
    """How often a client was attacked. missed: how many adversaries tried to derive its update, and derived nothing."""
    sums = sum(len(attack.clients) > 1 for attack in attacks)
    tried = f"{counted(missed, 'attempt')}, {NOTHING}" if missed else ""
    if not attacks:
        return tried
    share = "" if sums == len(attacks) == 1 else "all " if sums == len(attacks) else f"{sums} "
    summed = f", {share}in {'a sum' if sums == 1 else 'sums'}" if sums else ""
    return "; ".join(part for part in (counted(len(attacks), "attack") + summed, tried) if part)


def _dropouts(run: Run) -> list[Dropout]:
    return [dropout for entry in run.rounds for dropout in entry.dropouts]


def _left(run: Run, *, unopened: bool) -> list[tuple[str, str]]:
    """`Round 2, clients 1, 6 and 9`, and why they left it; or, if unopened, why they did not help to open its sum."""
    out = []
    for entry in run.rounds:
        those = (entry.secure.unopened if entry.secure else ()) if unopened else entry.dropouts
        out += [(f"Round {entry.round}, {named(group)}", why) for group, why in grouped(those)]
    return out


def _stamp(run: Run) -> str:
    started = text(run.manifest.get("started"))
    seconds = real(run.manifest.get("seconds"))
    seed = integer(run.manifest.get("seed"))
    seed = seed if seed is not None else integer(run.experiment.get("seed"))
    device = text(run.manifest.get("device"))
    parts = [
        started[:16].replace("T", " "),
        f"took {duration(seconds)}" if finite(seconds) else "",
        f"on {device}" if device else "",
        f"seed {seed}" if seed is not None else "",
    ]
    return " · ".join(part for part in parts if part)


def _command(run: Run) -> str:
    command = run.manifest.get("command")
    return " ".join(strings(command))


def _facts(run: Run) -> list[tuple[str, str]]:
    """Versions, hashes and the machine, as far as the manifest tells."""
    manifest = run.manifest
    simple = ("fedsim", "python", "platform", "device", "threads", "seed", "experiment_sha256", "started", "finished")
    facts = [(key.replace("_", " "), plain(manifest[key])) for key in simple if manifest.get(key) is not None]
    if finite(real(manifest.get("seconds"))):
        facts.append(("took", duration(real(manifest.get("seconds")))))
    if manifest.get("exit") is not None:
        facts.append(("exit code", plain(manifest["exit"])))
    if integer(manifest.get("parameters")) is not None:
        facts.append(("model parameters", whole(real(manifest.get("parameters")))))
    facts += [(f"version of {key}", plain(value)) for key, value in table(manifest.get("versions")).items()]
    return facts
