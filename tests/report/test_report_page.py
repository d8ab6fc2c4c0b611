"""The page: what it says, what it survives, and that it stands alone."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outline import Outline
from PIL import Image

import fedsim.report
from fedsim.errors import FedsimError, InputError
from fedsim.report.page import render
from fedsim.report.pictures import BLOCK_GAP, comparison
from fedsim.report.reading import EARLY, PARTLY, read


def page_of(run: Path) -> str:
    path = fedsim.report.write(run)
    assert path == run / "report.html"
    page = path.read_text(encoding="utf-8")
    Outline(page)
    return page


def words_of(page: str) -> str:
    body = re.sub(r"<(style|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def rewrite(run: Path, name: str, *lines: Any) -> None:
    (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_headline_says_who_lost_what(run: Path) -> None:
    words = words_of(page_of(run))
    assert "Client 0 (no defense): the eavesdropper reconstructed 8 images, SSIM 0.88, PSNR 26.4 dB." in words
    assert (
        "Client 1 (pruning 0.9 + Gaussian noise 0.01): the eavesdropper reconstructed 8 images, "
        "SSIM 0.12, PSNR 9.1 dB; against an attacker who knows the defense, SSIM 0.14, PSNR 9.6 dB." in words
    )
    assert "Client 3 (no defense): the eavesdropper attacked, but there is nothing to score" in words
    assert "SSIM of the reconstructions goes from 0.12" in words
    assert "11.0 % → 91.5 % (round 0 → 20)" in words


def test_threats_trouble_and_facts_are_told(run: Path) -> None:
    words = words_of(page_of(run))
    assert "An eavesdropper on the link of clients 0, 1 and 3 reads every message" in words
    assert "which defenses the client uses" in words
    assert "client 4 : loss became NaN" in words
    assert "quarantined after 3 tries" in words
    assert "client 5 holds images of 3 classes only" in words
    assert "fedsim run pruning.toml --set seed=7" in words
    assert "version of flwr 1.41.0" in words
    assert "not available: the weights of squeezenet" in words
    assert "with quarantined attack jobs" in words
    assert "labels were given to the adversary" in words


def test_label_accuracy_is_told_where_labels_were_not_granted(run: Path, make_attack: Callable[..., Any]) -> None:
    rewrite(run, "attacks.jsonl", make_attack(adversary="blind", label_accuracy=0.75))
    assert "75 % of the labels right" in words_of(page_of(run))


def test_nothing_is_loaded_from_outside(run: Path) -> None:
    page = page_of(run)
    outline = Outline(page)
    for tag, name, value in outline.attributes:
        if name in ("src", "href", "action", "data", "srcset", "poster", "xlink:href"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:60])
        assert not name.startswith("on")
    assert not outline.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "default-src 'none'" in html.unescape(page)
    assert page.count("data:image/png;base64,") == 3


def test_pictures_and_drawings_have_names_and_tables_have_scopes(run: Path) -> None:
    page = page_of(run)
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in re.findall(r"<img[^>]*>", page))
    drawings = re.findall(r"<svg[^>]*>", page)
    assert drawings
    assert all('role="img"' in drawing and "aria-label=" in drawing for drawing in drawings)
    assert all("scope=" in cell for cell in re.findall(r"<th\b[^>]*>", page))
    assert page.count("<h1>") == 1


def test_the_same_run_gives_the_same_bytes_and_no_litter(run: Path) -> None:
    before = sorted(path.name for path in run.iterdir())
    first = fedsim.report.write(run).read_bytes()
    assert fedsim.report.write(run).read_bytes() == first
    assert sorted(path.name for path in run.iterdir()) == sorted([*before, "report.html"])


@pytest.mark.parametrize("name", ["experiment.toml", "manifest.json", "rounds.jsonl", "attacks.jsonl"])
def test_a_file_that_is_missing_empty_or_garbage_is_named(run: Path, name: str) -> None:
    (run / name).write_bytes(b"\xff\x00{[ nothing of the kind")
    assert name in words_of(page_of(run))
    (run / name).write_text("")
    # A run that made no attack has an empty file of them.
    assert (f"{name} is empty" in words_of(page_of(run))) == (name != "attacks.jsonl")
    (run / name).unlink()
    assert f"{name} is missing" in words_of(page_of(run))


def test_attacks_are_missing_only_where_there_should_have_been_some(run: Path) -> None:
    (run / "attacks.jsonl").unlink()
    manifest = json.loads((run / "manifest.json").read_text()) | {"exit": 0}
    said = "attacks.jsonl is missing"
    (run / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    assert said in words_of(page_of(run))
    (run / "manifest.json").write_text(json.dumps(manifest | {"status": "done"}))
    assert said not in words_of(page_of(run))
    (run / "jobs").mkdir(exist_ok=True)
    (run / "jobs" / "a.json").write_text("{}")
    assert said in words_of(page_of(run))
    text = (run / "experiment.toml").read_text()
    (run / "experiment.toml").write_text(text.partition("[[adversaries]]")[0])
    (run / "manifest.json").write_text(json.dumps(manifest | {"status": "running", "who_sees_what": []}))
    assert said not in words_of(page_of(run))


def test_without_an_attack_there_is_neither_a_table_of_scores_nor_an_objective(run: Path) -> None:
    (run / "attacks.jsonl").write_text("")
    page = page_of(run)
    for words in ('id="scores"', 'href="#scores"', 'id="objective"', "No scores are recorded"):
        assert words not in page
    assert "There is no reconstruction to show" in page


def test_hundreds_of_images_are_folded_behind_the_first(run: Path, make_attack: Callable[..., Any]) -> None:
    """48 images are three pairs of rows: two of them open, the third in a fold, and nothing lost between."""
    truth = np.arange(48, dtype=np.uint8)[:, None, None, None] + np.zeros((48, 1, 28, 28), dtype=np.uint8)
    comparison(truth, 255 - truth, run / "reconstructions" / "many.png")
    one = make_attack(images=48, batch=48, picture="reconstructions/many.png", per_image={})
    rewrite(run, "attacks.jsonl", one)
    page = page_of(run)
    assert "16 more images" in words_of(page)
    parts = []
    for source in re.findall(r"data:image/png;base64,([^\"]+)", page):
        with Image.open(io.BytesIO(base64.b64decode(source))) as image:
            parts.append(np.asarray(image))
    whole = np.asarray(Image.open(run / "reconstructions" / "many.png"))
    first, second = parts
    gap = len(whole) - len(first) - len(second)
    assert gap == BLOCK_GAP
    assert (whole[: len(first)] == first).all() and (whole[len(first) + gap :] == second).all()
    assert (whole[len(first) : len(first) + gap, :, 1] == 0).all()
    rewrite(run, "attacks.jsonl", one | {"images": 32, "batch": 32})
    assert "more images" not in words_of(page_of(run))


@pytest.mark.parametrize("kept", ["experiment.toml", "manifest.json", "rounds.jsonl", "attacks.jsonl"])
def test_one_file_is_enough(run: Path, kept: str) -> None:
    for path in list(run.glob("*.*")):
        if path.name != kept:
            path.unlink()
    assert words_of(page_of(run)).count("is missing") >= 3


def test_what_privacy_cost_is_told(run: Path) -> None:
    assert "Private training" not in page_of(run)
    rewrite(run, "rounds.jsonl", {"round": 1, "epsilon": 1.234, "delta": 1e-5, "epsilons": {"0": 1.234}})
    assert "has cost the client that spent most epsilon 1.23 at delta 1e-05" in words_of(page_of(run))
    rewrite(run, "rounds.jsonl", {"round": 1, "epsilon": None, "delta": 1e-5})
    assert "no bound on epsilon at delta 1e-05" in words_of(page_of(run))


def test_a_line_cut_short_is_left_out(run: Path) -> None:
    for name in ("rounds.jsonl", "attacks.jsonl"):
        content = (run / name).read_text().rstrip("\n")
        (run / name).write_text(content[:-20])
    words = words_of(page_of(run))
    assert "rounds.jsonl ends in the middle of a line" in words
    assert "attacks.jsonl ends in the middle of a line" in words
    assert "Client 0 (no defense): the eavesdropper" in words
    assert "Client 3 (no defense): the eavesdropper" not in words


def test_a_run_that_never_ended_says_so(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"exit": None, "status": "running"}))
    (run / "rounds.jsonl").write_text('{"round": 0, "test_accuracy": 0.1}\n{"round": 4}\n')
    words = words_of(page_of(run))
    assert "has not recorded an end (status: running)" in words
    assert "up to round 4 of 20" in words


def test_a_round_and_a_job_told_twice_count_once(run: Path, make_attack: Callable[..., Any]) -> None:
    rewrite(run, "attacks.jsonl", make_attack(ssim=0.1, status="failed", error="x"), make_attack(ssim=0.77))
    rewrite(run, "rounds.jsonl", {"round": 1, "test_loss": 5}, {"round": 1, "test_loss": 3})
    words = words_of(page_of(run))
    assert "SSIM 0.77" in words
    assert "the strongest of" not in words
    assert "3.000 in round 1" in words


ODD: list[Any] = [
    float("nan"),
    float("inf"),
    -float("inf"),
    None,
    True,
    "x",
    "",
    -1,
    0,
    1e308,
    10**400,
    [],
    {},
    [[]],
    [None],
]


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
def test_no_value_in_the_manifest_breaks_the_page(run: Path, value: Any) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    for name in ("rounds.jsonl", "attacks.jsonl"):
        (run / name).unlink()
    for key in manifest:
        (run / "manifest.json").write_text(json.dumps(manifest | {key: value}))
        assert render(read(run))


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
def test_no_value_of_any_key_breaks_the_page(run: Path, make_attack: Callable[..., Any], value: Any) -> None:
    base = json.loads((run / "rounds.jsonl").read_text().splitlines()[4])
    manifest = json.loads((run / "manifest.json").read_text())
    attacks = [make_attack(**{key: value, "job": f"{number}"}) for number, key in enumerate(make_attack())]
    attacks.append(dict.fromkeys(make_attack(), value))
    history = [[0, value], [value, 1.0], [2, 0.5], value]
    attacks.append(make_attack(history=history, per_image={"psnr": [value], "ssim": [0.5, value], "lpips": value}))
    rewrite(run, "attacks.jsonl", value, *attacks)
    rewrite(run, "rounds.jsonl", value, *[base | {key: value} for key in base], dict.fromkeys(base, value))
    clients = [{"client": 0, "examples": value, "labels": [value, 3]}, {"client": value, "labels": value}, value]
    whole = dict.fromkeys(manifest, value) | {"clients": clients}
    (run / "manifest.json").write_text(json.dumps(whole | {"who_sees_what": [{"adversary": value, "sees": value}]}))
    page = page_of(run)
    drawn = re.findall(r' (?:x|y|cx|cy|r|x1|y1|x2|y2|width|height|points|d)="([^"]*)"', page)
    assert not [number for number in drawn if re.search(r"nan|inf", number)]


def test_odd_experiment_files_are_borne(run: Path) -> None:
    for content in (
        "clients = 3\nserver = []\nadversaries = 'x'\ndata = {name = 3}\nrounds = 'many'",
        "[[adversaries]]\nvantage = 3\ntargets = 'all'\n[[adversaries]]\n[clients]\ncount = -4\ngroups = [{}]\n",
        f"seed = {'9' * 5000}\nrounds = inf\n[server]\ntls = true\nsecure_aggregation = 'ideal'",
        "[clients]\ncount = 0xffffffffffffffffffff\ndefenses = [{}, {name = 'x', a = [1, 2], b = true}]",
    ):
        (run / "experiment.toml").write_text(content)
        page_of(run)


def test_strings_are_shown_and_never_obeyed(run: Path, make_attack: Callable[..., Any]) -> None:
    evil = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=y>{{ 7*7 }}"
    keys = [key for key, value in make_attack().items() if isinstance(value, str) or value is None]
    rewrite(
        run,
        "attacks.jsonl",
        make_attack(**dict.fromkeys(keys, evil), defenses=[{"name": evil, evil: evil}]),
        make_attack(adversary=evil, job="2", defenses=[{"name": evil}]),
    )
    rewrite(run, "rounds.jsonl", {"round": 1, "dropouts": [{"client": 1, "reason": evil}], "train_loss": 1})
    manifest = json.loads((run / "manifest.json").read_text())
    manifest |= {"warnings": [evil], "command": evil, "versions": {evil: evil}, "status": evil, "device": evil}
    manifest["who_sees_what"] = [{"adversary": evil, "words": evil, "sees": [evil], "knows": [evil]}]
    (run / "manifest.json").write_text(json.dumps(manifest))
    quoted = json.dumps(evil)
    text = (
        f"name = {quoted}\n[data]\nname = {quoted}\n[[adversaries]]\nid = {quoted}\nvantage = {quoted}\n{quoted} = 1\n"
    )
    (run / "experiment.toml").write_text(text)
    page = page_of(run)
    outline = Outline(page)
    assert "script" not in outline.tags
    assert not [name for _, name, _ in outline.attributes if name.startswith("on")]
    assert not [value for _, name, value in outline.attributes if name == "src" and not value.startswith("data:")]
    assert "&lt;script&gt;" in page
    assert "{{ 7*7 }}" in html.unescape(page)


def test_half_a_surrogate_pair_can_be_written(run: Path, make_attack: Callable[..., Any]) -> None:
    rewrite(run, "attacks.jsonl", make_attack(error="\ud800", status="failed"))
    page_of(run)


@pytest.mark.parametrize(
    "picture", ["../secret.png", "/etc/hostname", "missing.png", "reconstructions", "bad.png", "a\0b"]
)
def test_a_picture_from_outside_or_none_at_all_is_not_taken(
    run: Path, make_attack: Callable[..., Any], picture: str
) -> None:
    (run.parent / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40)
    (run / "bad.png").write_bytes(b"<svg onload=alert(1)>")
    rewrite(run, "attacks.jsonl", make_attack(picture=picture))
    page = page_of(run)
    assert "data:image" not in page
    assert re.search(r"lies outside|is missing or cannot be read|is not a PNG", page)


def test_no_defense_is_not_the_same_as_no_record(run: Path, make_attack: Callable[..., Any]) -> None:
    (run / "experiment.toml").unlink()
    rewrite(run, "attacks.jsonl", make_attack(), make_attack(client=5, defenses=None, job="5"))
    words = words_of(page_of(run))
    assert "Client 0 (no defense):" in words
    assert "Client 5 (defenses not recorded):" in words


def test_scores_stand_below_their_images_only_where_the_picture_has_these_columns(
    run: Path, make_attack: Callable[..., Any]
) -> None:
    assert page_of(run).count('class="per-image"') == 3
    rewrite(run, "attacks.jsonl", make_attack(images=5))
    assert 'class="per-image"' not in page_of(run)


def test_a_defense_known_to_be_absent_is_no_defense(run: Path, make_attack: Callable[..., Any]) -> None:
    rewrite(run, "attacks.jsonl", make_attack(aware=True))
    assert "knows the defense, reconstructed" not in words_of(page_of(run))


def test_an_attack_after_labels_alone_is_told_in_a_sentence(run: Path, labels_alone: dict[str, Any]) -> None:
    rewrite(run, "attacks.jsonl", labels_alone)
    page = page_of(run)
    words = words_of(page)
    assert "No image was reconstructed; 88 % of the labels were inferred." in words
    assert "Client 0 (no defense): the eavesdropper inferred 88 % of the labels, and was after no images." in words
    assert "<img" not in page
    assert "no score" not in words
    assert "Attacks that failed" not in words
    other = labels_alone | {"client": 1, "label_accuracy": 0.25, "job": "f" * 64}
    rewrite(run, "attacks.jsonl", other, labels_alone)
    words = words_of(page_of(run))
    assert "25 % (client 1, no defense) to 88 % of the labels (client 0, no defense) were inferred." in words


def test_labels_alone_stand_beside_a_reconstruction_and_do_not_hide_it(
    run: Path, make_attack: Callable[..., Any], labels_alone: dict[str, Any]
) -> None:
    nothing = {"psnr": None, "ssim": None, "picture": None}
    failed = make_attack(status="failed", error="out of memory", adversary="z", job="0" * 64, **nothing)
    rewrite(run, "attacks.jsonl", failed, labels_alone, make_attack())
    words = words_of(page_of(run))
    assert "reconstructed 8 images, SSIM 0.88" in words
    assert "; the eavesdropper (labels) inferred 88 % of the labels." in words
    assert "there is no picture" not in words


def test_an_attack_on_a_sum_is_told_as_one(run: Path, summed: dict[str, Any], make_attack: Callable[..., Any]) -> None:
    rewrite(run, "attacks.jsonl", summed, make_attack(ssim=0.5))
    page = page_of(run)
    words = words_of(page)
    assert "The sum of clients 0, 2 and 3 (no defense): the server reconstructed 8 images" in words
    assert "attacked 3 clients in round 1" in words
    assert "round 1: clients 0, 2 and 3 attacked" in page
    # Client 0 was attacked alone too.
    assert "2 attacks, 1 in a sum" in words
    assert words.count("1 attack, in a sum") == 2
    rewrite(run, "attacks.jsonl", summed, summed | {"round": 2, "job": "2"})
    assert words_of(page_of(run)).count("2 attacks, all in sums") == 3


def test_a_threat_that_sees_a_sum_is_drawn_and_told_so(run: Path, summed: dict[str, Any]) -> None:
    rewrite(run, "attacks.jsonl", summed)
    for name in ("manifest.json", "experiment.toml"):
        (run / name).unlink()
    page = page_of(run)
    assert "It is shown the sum of their updates and no single one." in words_of(page)
    assert "and is shown a sum of updates" in page
    assert page.count("Σ") == 1


@pytest.mark.parametrize("status", ["plateau", "time", "mixtures", "incomplete", "underdetermined"])
def test_an_attack_that_ended_otherwise_than_at_its_end_has_not_failed(
    run: Path, make_attack: Callable[..., Any], status: str
) -> None:
    rewrite(run, "attacks.jsonl", make_attack(status=status))
    words = words_of(page_of(run))
    assert "Attacks that failed" not in words
    assert "it ended as" not in words
    assert words.count((EARLY | PARTLY)[status]) == 2, "below the picture, and below the scores"


def test_an_attack_that_found_nothing_finite_has_failed(run: Path, make_attack: Callable[..., Any]) -> None:
    rewrite(run, "attacks.jsonl", make_attack(status="nan"), make_attack(status="own word", job="2"))
    words = words_of(page_of(run))
    assert "Attacks that failed" in words
    assert "its objective became NaN; the last finite guess was kept" in words
    assert "it ended as 'own word'" in words


def test_a_defense_of_some_of_a_sum_says_whose_it_is(run: Path, summed: dict[str, Any]) -> None:
    noise = {"name": "gradient_noise", "std": 0.01, "clients": [2, 3]}
    clipped = {"name": "gradient_clipping", "max_norm": 1.0, "kind": "all"}
    rewrite(run, "attacks.jsonl", summed | {"defenses": [noise, clipped]})
    assert "(noise 0.01 of clients 2 and 3 + clipping (max norm 1, kind all))" in words_of(page_of(run))


def test_an_exact_reconstruction_is_told_without_noughts(run: Path, make_attack: Callable[..., Any]) -> None:
    exact = {"psnr": [100.0] * 8, "ssim": [1.0] * 8, "lpips": None}
    rewrite(run, "attacks.jsonl", make_attack(psnr=100.0, ssim=1.0, per_image=exact))
    words = words_of(page_of(run))
    assert "100.0 dB is a typical pixel error of less than 0.1 % of the range." in words
    assert "image by image from" not in words


def test_notes_are_told_once_for_all_attacks_that_made_them(run: Path, make_attack: Callable[..., Any]) -> None:
    first, second = make_attack(), make_attack(client=1, job="2")
    other = make_attack(client=2, job="3", notes={"engine": "compiled", "rank_index": -3})
    rewrite(run, "attacks.jsonl", first, second, other)
    words = words_of(page_of(run))
    assert "What the attacks noted" in words
    assert "geiping, client 0, round 1; client 1, round 1 : engine: eager" in words
    assert "geiping, client 2, round 1 : engine: compiled; rank index: -3" in words


def test_two_attacks_on_one_client_in_one_round_are_told_apart_by_name(
    run: Path, make_attack: Callable[..., Any]
) -> None:
    rewrite(run, "attacks.jsonl", make_attack(ssim=0.1, adversary="a"), make_attack(ssim=0.7, adversary="b", job="2"))
    words = words_of(page_of(run))
    assert "goes from 0.10 (client 0, no defense, a) to 0.70 (client 0, no defense, b)" in words


def test_labels_alone_are_not_counted_among_the_reconstructions(
    run: Path, make_attack: Callable[..., Any], labels_alone: dict[str, Any]
) -> None:
    lines = [make_attack(adversary=name, job=name) for name in "abcde"]
    rewrite(run, "attacks.jsonl", *lines, labels_alone)
    words = words_of(page_of(run))
    assert "the strongest of 5 attacks" in words
    assert "1 more reconstruction " in words


def test_many_of_everything_stays_readable(run: Path, make_attack: Callable[..., Any]) -> None:
    rewrite(
        run, "attacks.jsonl", *[make_attack(client=c, round=r, job=f"{c}-{r}") for c in range(20) for r in range(1, 7)]
    )
    rewrite(run, "rounds.jsonl", *[{"round": r, "test_accuracy": 0.5, "train_loss": 1.0} for r in range(3000)])
    page = page_of(run)
    words = words_of(page)
    assert "the strongest of 6 attacks" in words
    assert "8 more clients that were attacked" in words
    charts = re.search(r'<div class="pair">.*?</div>', page, re.DOTALL)
    assert charts
    assert len(charts[0]) < 200_000


@pytest.mark.parametrize("make", [False, True])
def test_what_is_no_run_folder_is_refused(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
        (folder / "notes.txt").write_text("x")
    with pytest.raises(InputError) as refusal:
        fedsim.report.write(folder)
    place, _, problem = str(refusal.value).partition(": ")
    assert place == str(folder)
    assert "; give the folder" in problem
    assert not (folder / "report.html").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        fedsim.report.write(tmp_path / "x")


def test_a_report_that_cannot_be_written_says_why(run: Path) -> None:
    (run / "report.html").mkdir()
    with pytest.raises(FedsimError, match=r"report\.html: cannot be written"):
        fedsim.report.write(run)
    assert not list(run.glob(".report*"))


def test_nothing_heavy_is_imported(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import fedsim.report; fedsim.report.write(Path(sys.argv[1])); "
        "import fedsim.report.table, fedsim.report.pictures; "
        "print([m for m in ('torch', 'ray', 'flwr', 'scipy', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
