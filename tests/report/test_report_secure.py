"""What a run's page and tables say about secure aggregation, about who left it, and about updates derived from it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from outline import Outline

import fedsim.report
from fedsim.adversaries import threat
from fedsim.commands.ending import show
from fedsim.report import aggregation, diagram, words
from fedsim.report.derived import derived_text
from fedsim.report.leaving import grouped, named, said
from fedsim.report.page import render
from fedsim.report.reading import read
from fedsim.report.round_table import rounds_text
from fedsim.report.rounds import Dropout
from fedsim.runs import RunFolder

LEFT = "left the round at 'shares', as clients.dropout = 0.2 has it"
HELD = "it is asked for both shares of client 0"
CLOSED = "5 shares of client 0's secret are left, and 6 are needed; the model stays as it was"
FACTS = {"name": "secagg+", "bits": 32, "scale": 26843545, "error_bound": 1.8626451908643214e-08, "most_examples": 2}
FACTS |= {"min_survivors": 6, "entries": 2413, "neighbours": 9, "threshold": 6}
SETTINGS = '{ name = "secagg+", clip = 4.0, corrupt = 0.1, dropout = 0.3, server = "malicious" }'
EXPERIMENT = """\
name = "masked"
rounds = 2
[clients]
count = 10
[server]
secure_aggregation = {mode}
[[adversaries]]
id = "cabal"
name = "geiping"
vantage = "server"
targets = [0]
rounds = [1]
colluders = [3, 4]
derive = {{ name = "collusion", steps = 2 }}
threat_model = "eavesdropper"
powers = ["alter_model"]
hides = ["training_details"]
iterations = 60
"""
OPENED = {"mode": "secagg+", "survivors": 9, "examples": 18, "clipped": 0, "error_bound": 1.8626451908643214e-08}
ROUNDS: list[dict[str, Any]] = [
    {"round": 0, "clients": [], "test_loss": 2.3},
    {
        "round": 1,
        "clients": [0, 1, 2, 3, 5, 6, 7, 8, 9],
        "dropouts": [{"client": 4, "reason": "no reply"}],
        "test_loss": 2.2,
        "secure": OPENED | {"late": {"2": f"unmask: Refused: client 2 refuses in round 1: {HELD}"}},
    },
    {
        "round": 2,
        "clients": [0, 2, 3, 5, 7, 8],
        "dropouts": [{"client": client, "reason": f"shares: DroppedOut: {LEFT}"} for client in (1, 6, 9)],
        "test_loss": 2.2,
        "skipped": f"secagg+: round 2: {CLOSED}",
        "secure": {"mode": "secagg+", "sent": 6},
    },
]
DERIVED = {
    "adversary": "cabal",
    "derivation": "collusion",
    "client": 0,
    "round": 1,
    "error_bound": 1.1e-8,
    "largest_error": 1.49e-8,
    "relative_error": 9.38e-8,
    "cosine": 0.9999999999999974,
    "facts": {"by": "collusion", "rounds": [1], "colluders": [3, 4]},
}


@pytest.fixture
def secure(run: Path) -> Path:
    """The folder of a run under secure aggregation, with a malicious server and two colluders."""
    (run / "experiment.toml").write_text(EXPERIMENT.format(mode=SETTINGS))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest |= {"secure_aggregation": FACTS, "who_sees_what": []}
    (run / "manifest.json").write_text(json.dumps(manifest))
    write_lines(run / "rounds.jsonl", ROUNDS)
    write_lines(run / "derived.jsonl", [DERIVED])
    return run


def write_lines(path: Path, lines: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def words_of(run: Path) -> str:
    page = render(read(run))
    Outline(page)
    body = re.sub(r"<(style|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


# --- reasons -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (f"shares: DroppedOut: {LEFT}", LEFT),
        (f"DroppedOut: {LEFT}", LEFT),
        (f"unmask: Refused: client 3 refuses in round 1: {HELD}", f"refused at 'unmask': {HELD}"),
        (f"Refused: client 12: {HELD}", f"refused: {HELD}"),
        ("Refused: round 2 is over for this client", "refused: round 2 is over for this client"),
        ("shares: no reply", "shares: no reply"),
        ("ProtocolError: client 3: a DroppedOut: b", "ProtocolError: client 3: a DroppedOut: b"),
        ("", ""),
    ],
)
def test_a_reason_loses_the_name_of_its_exception_and_nothing_else(reason: str, words: str) -> None:
    assert said(reason) == words


def test_equal_reasons_are_one_group_whoever_tells_of_himself() -> None:
    refusals = [Dropout(c, f"unmask: Refused: client {c} refuses in round 1: {HELD}") for c in (1, 6, 9)]
    groups = grouped([*refusals, Dropout(None, "no reply"), Dropout(None, "no reply"), Dropout(2, "no reply")])
    told = {named(group): why for group, why in groups}
    assert told == {"clients 1, 6 and 9": f"refused at 'unmask': {HELD}", "client 2 and 2 clients": "no reply"}


# --- the rounds ----------------------------------------------------------------------------------------------------


def test_rounds_say_how_many_are_in_the_sum_which_are_closed_and_who_did_not_open_it() -> None:
    text = rounds_text(ROUNDS).splitlines()
    assert re.split(r"\s{2,}", text[0].strip())[:5] == ["round", "clients", "dropped", "in the sum", "did not open"]
    assert re.split(r"\s{2,}", text[1].strip())[:5] == ["0", "-", "0", "-", "0"]
    assert re.split(r"\s{2,}", text[2].strip())[:5] == ["1", "9", "1 [1]", "9", "1 [2]"]
    assert re.split(r"\s{2,}", text[3].strip())[:5] == ["2", "6", "3 [3]", "closed [4]", "0"]
    assert text[4:] == [
        "[1] client 4: no reply",
        f"[2] client 2 sent what goes into the sum, but did not help to open it: refused at 'unmask': {HELD}",
        f"[3] clients 1, 6 and 9: {LEFT}",
        f"[4] {CLOSED}",
    ]


def test_columns_of_secure_aggregation_are_there_only_where_they_say_something() -> None:
    assert "in the sum" not in rounds_text([{"round": 1, "clients": [0, 1]}])
    head = rounds_text([{"round": 1, "clients": [0, 1], "secure": OPENED}]).splitlines()[0]
    assert "in the sum" in head and "did not open" not in head and "cut off" not in head
    assert "cut off" in rounds_text([{"round": 1, "clients": [0, 1], "secure": OPENED | {"clipped": 3}}])


def test_runs_of_before_say_late_where_unopened_is_meant() -> None:
    old = OPENED | {"late": {"2": "no reply"}}
    new = OPENED | {"unopened": {"2": "no reply"}}
    lines = [rounds_text([{"round": 1, "clients": [0, 2], "secure": one}]) for one in (old, new)]
    assert lines[0] == lines[1] and "client 2 sent what goes into the sum" in lines[0]


def test_those_that_a_closing_round_leaves_out_are_no_dropouts() -> None:
    closed = ROUNDS[2] | {"dropouts": [], "secure": {"mode": "secagg+", "sent": 0, "cut_off": [0, 2, 3, 5]}}
    row, note = rounds_text([closed]).splitlines()[1:]
    assert re.split(r"\s{2,}", row.strip())[2:4] == ["0", "closed [1]"]
    assert note == f"[1] {CLOSED}; clients 0, 2, 3 and 5 had replied when it closed"


def test_what_was_cut_off_is_told_as_a_share(secure: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 9 clients with 2,413 entries each, 21,717 values; above one in a hundred, no bound is given for them."""
    for clipped, part, qualified in ((20, "less than 0.1 %", False), (2000, "9.2 %", True)):
        write_lines(secure / "rounds.jsonl", [{"round": 1, "secure": OPENED | {"clipped": clipped}}])
        page = words_of(secure)
        assert f"{clipped:,} values beyond ±4 were cut off before the sum, in round 1: {part} of the 21,717" in page
        assert ("the bound does not hold there" in page) is qualified
        show(RunFolder(secure))
        out = " ".join(capsys.readouterr().out.split())
        assert f"{clipped:,} ({part})" in out and "were cut off before the sum" in out
        assert ("the bound does not hold there" in out) is qualified


def test_a_round_that_was_skipped_says_why_without_secure_aggregation_too() -> None:
    text = rounds_text([{"round": 1, "clients": [2], "skipped": "1 usable updates, 2 required"}])
    assert "1 [1]" in text and text.endswith("[1] 1 usable updates, 2 required")


def test_of_many_dropouts_the_reasons_are_told_and_not_the_names() -> None:
    lines = [
        {"round": number, "dropouts": [{"client": number % 7, "reason": f"DroppedOut: {LEFT}"}]}
        for number in range(1, 41)
    ]
    notes = [line for line in rounds_text(lines).splitlines() if line.startswith("[")]
    # Seven clients and one reason are seven notes, which is few enough.
    assert len(notes) == 7
    lines += [{"round": 41, "dropouts": [{"client": client, "reason": "no reply"}]} for client in range(7)]
    for number, line in enumerate(lines):
        line["round"] = number
    notes = [line for line in rounds_text(lines).splitlines() if line.startswith("[")]
    assert notes == [f"[1] {LEFT} (40 times in all)", "[2] no reply (7 times in all)"]


# --- the mode and what was derived ---------------------------------------------------------------------------------


def test_the_page_says_what_was_chosen_what_follows_and_what_came_of_it(secure: Path) -> None:
    words = words_of(secure)
    assert "Secure aggregation secagg+ Clients add random masks" in words
    assert "Every pair of 10 clients shares a mask." in words
    assert "Threshold 6: so many of the 10 shares open a client's secret." in words
    assert "A round with fewer than 6 of 10 clients left is closed: no sum is released." in words
    assert "Sums are exact, in integers of 32 bits; rounding to these puts a mean off by 1.9e-08 at most." in words
    assert "withstand up to 10 % of the clients working together with a malicious server, and 30 % dropping" in words
    assert "'cabal' goes beyond that: 2 of the clients work together with it." in words
    assert "Values beyond ±4 would be cut off before they are summed; there were none." in words
    assert "1 of 2 rounds gave a sum; round 2 was closed." in words
    assert "secure aggregation secagg+" in words.partition("What leaked")[0]


def test_values_that_were_cut_off_are_counted(secure: Path) -> None:
    write_lines(secure / "rounds.jsonl", [{"round": n, "secure": OPENED | {"clipped": n}} for n in (0, 1, 2)])
    assert (
        "3 values beyond ±4 were cut off before the sum, in rounds 1 and 2: less than 0.1 % of the 43,434 in them."
        in words_of(secure)
    )


def test_trouble_names_closed_rounds_dropouts_and_late_clients(secure: Path) -> None:
    trouble = words_of(secure).partition("What went wrong")[2]
    assert f"Rounds that left the model as it was Round 2 : {CLOSED}" in trouble
    assert f"Round 2, clients 1, 6 and 9 : {LEFT}" in trouble
    assert f"did not help to open it Round 1, client 2 : refused at 'unmask': {HELD}" in trouble
    assert "DroppedOut" not in trouble and "Refused:" not in trouble


def test_neighbours_are_fewer_than_everybody_in_a_large_round() -> None:
    told = aggregation.line("secagg+", {"neighbours": 36, "threshold": 22, "min_survivors": 22}, 100)
    assert "each of the 100 clients of a round shares masks with 36 others" in told
    assert "so many of the 37 shares" in told
    assert "every pair" not in told


def test_a_mode_of_its_own_tells_what_it_takes_on_trust(secure: Path) -> None:
    (secure / "experiment.toml").write_text(EXPERIMENT.format(mode='"mine"'))
    facts = {"name": "mine", "error_bound": 4.7e-6, "trust": ["one client has it all"], "odd": {"a": 1}, "least": 3}
    manifest = json.loads((secure / "manifest.json").read_text()) | {"secure_aggregation": facts}
    (secure / "manifest.json").write_text(json.dumps(manifest))
    words = words_of(secure)
    assert "Updates are summed by 'mine'" in words
    assert "one client has it all" in words
    assert "A mean is off by up to 4.7e-06 where all clients weigh the most that they may." in words
    assert "exact" not in words.partition("Threat model")[2].partition("Training")[0]


@pytest.mark.parametrize("mode", ["secagg+", ""])
def test_without_the_experiment_the_manifest_tells_the_mode(secure: Path, mode: str) -> None:
    (secure / "experiment.toml").unlink()
    if not mode:
        manifest = json.loads((secure / "manifest.json").read_text())
        del manifest["secure_aggregation"]
        (secure / "manifest.json").write_text(json.dumps(manifest))
    assert aggregation.mode(read(secure)) == mode


def test_a_run_without_any_says_nothing_of_it(run: Path) -> None:
    page = render(read(run))
    body = page.partition("</style>")[2]
    for word in ("ecure aggregation", "in the sum", "erived", "colluder", "Works together", "malicious"):
        assert word not in body
    off = (run / "experiment.toml").read_text().replace("[server]", '[server]\nsecure_aggregation = "off"')
    (run / "experiment.toml").write_text(off)
    assert "ecure aggregation" not in render(read(run)).partition("</style>")[2].partition('id="repeat"')[0]


# --- derived updates -----------------------------------------------------------------------------------------------


def test_derived_updates_are_a_table_with_their_errors(secure: Path) -> None:
    words = words_of(secure)
    assert "Updates that adversaries derived" in words
    assert "cabal collusion 0 1 1.5e-08 1.1e-08 9.4e-08 1.0000" in words
    assert "the client's update was recovered" in words
    text = derived_text([DERIVED, DERIVED | {"cosine": -0.0292, "relative_error": 120.9, "largest_error": None}])
    assert text.splitlines()[2].split() == ["cabal", "collusion", "0", "1", "-", "1.1e-08", "121", "-0.0292"]


def test_an_update_of_several_rounds_says_which() -> None:
    facts = {"by": "differencing", "rounds": [1, 2, 3, 5], "coefficients": [1.0, -1.0, 0.5, 0.5]}
    text = derived_text([DERIVED | {"derivation": "differencing", "round": 5, "facts": facts}])
    assert "differencing, from rounds 1 to 3 and 5" in text


@pytest.mark.parametrize("value", [None, "x", [], {}, float("nan"), -1, 10**400, True])
def test_no_value_of_the_new_keys_breaks_the_page(secure: Path, value: Any) -> None:
    write_lines(secure / "derived.jsonl", [value, *({**DERIVED, key: value} for key in DERIVED), {}])
    lines: list[Any] = [{**ROUNDS[2], "round": 9, "secure": value, "skipped": value}]
    for number, key in enumerate(("mode", "survivors", "clipped", "late", "unopened", "cut_off", "sent")):
        lines.append({**ROUNDS[1], "round": number, "secure": {**OPENED, key: value}})
    write_lines(secure / "rounds.jsonl", [*lines, {"round": 10, "secure": {"late": {"x": value, "9" * 5000: value}}}])
    manifest = json.loads((secure / "manifest.json").read_text())
    sight = {"adversary": "x", "colluders": value, "derive": value, "threat_model": value}
    for facts in (value, *({**FACTS, key: value} for key in FACTS), {"name": "m", "trust": value}):
        content = json.dumps(
            manifest | {"secure_aggregation": facts, "who_sees_what": [sight], "notes": [value, {"text": value}]}
        )
        (secure / "manifest.json").write_text(content)
        Outline(render(read(secure)))


def test_foreign_strings_are_shown_and_not_obeyed(secure: Path) -> None:
    evil = "<script>alert(1)</script>"
    write_lines(secure / "derived.jsonl", [DERIVED | {"adversary": evil, "derivation": evil}])
    write_lines(secure / "rounds.jsonl", [{"round": 1, "skipped": evil, "secure": {"mode": evil, "late": {"1": evil}}}])
    manifest = json.loads((secure / "manifest.json").read_text())
    facts = {"name": evil, "trust": [evil], evil: evil}
    (secure / "manifest.json").write_text(json.dumps(manifest | {"secure_aggregation": facts}))
    page = render(read(secure))
    assert "script" not in Outline(page).tags
    assert page.count("&lt;script&gt;") >= 8


def nothing(adversary: str, client: int) -> dict[str, Any]:
    keys = ("round", "error_bound", "largest_error", "relative_error", "cosine", "facts")
    return {"adversary": adversary, "derivation": "prying", "client": client, **dict.fromkeys(keys), "nothing": True}


def test_of_whom_nothing_was_derived_is_a_row_too() -> None:
    text = derived_text([nothing("a", 2), DERIVED, nothing("b", 2), nothing("a", 4)]).splitlines()
    rows = [re.split(r"\s{2,}", line)[:4] for line in text[1:]]
    assert rows == [
        ["cabal", "collusion", "0", "1"],
        ["a", "prying: nothing derived", "2 and 4", "-"],
        ["b", "prying: nothing derived", "2", "-"],
    ]


def test_attempts_that_came_to_nothing_are_the_headline(secure: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (secure / "attacks.jsonl").write_text("")
    entries = [f'[[adversaries]]\nid = "{name}"\nvantage = "server"\ntargets = [2]\n' for name in "abcd"]
    (secure / "experiment.toml").write_text(
        EXPERIMENT.format(mode=SETTINGS).partition("[[adversaries]]")[0] + "".join(entries)
    )
    write_lines(secure / "derived.jsonl", [nothing(name, 2) for name in "abcd"])
    page = words_of(secure)
    assert "4 adversaries tried to single out client 2; none succeeded." in page
    assert "4 attempts, nothing derived" in page.partition("Who took part")[2]
    assert "means that the client's update was recovered" not in page and "is missing" not in page
    show(RunFolder(secure))
    out = capsys.readouterr().out
    assert out.count("nothing derived") == 4 and "recovered" not in out
    # Of one adversary, and of one among several that did nothing.
    write_lines(secure / "derived.jsonl", [nothing("a", 2)])
    assert "1 of 4 adversaries tried to single out client 2; it did not succeed." in words_of(secure)


def test_the_headline_says_from_which_rounds_and_of_whom_nothing(
    secure: Path, make_attack: Callable[..., dict[str, Any]]
) -> None:
    facts = {"by": "differencing", "rounds": [1, 2, 3]}
    one = DERIVED | {"derivation": "differencing", "round": 3, "facts": facts}
    write_lines(secure / "derived.jsonl", [one, nothing("cabal", 5)])
    write_lines(secure / "attacks.jsonl", [make_attack(adversary="cabal", vantage="server", client=0, round=3)])
    assert (
        "1 adversary at the server attacked 1 client in round 3, through updates derived from what rounds 1 to 3 "
        "showed (differencing). It tried to single out client 5, too, without success."
    ) in words_of(secure)


def test_notes_stand_beside_what_was_derived(secure: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "client 0 is determined by the sums up to round 3"
    manifest = json.loads((secure / "manifest.json").read_text())
    manifest["notes"] = [{"adversary": "cabal", "about": "collusion", "text": told}, {"text": ""}, None]
    (secure / "manifest.json").write_text(json.dumps(manifest))
    page = words_of(secure)
    section = page.partition("Updates that adversaries derived")[2].partition("Threat model")[0]
    assert f"'cabal' (collusion) : {told}" in section
    assert told not in page.partition("What went wrong")[2]
    show(RunFolder(secure))
    assert f"'cabal' (collusion): {told}" in capsys.readouterr().out
    manifest["notes"] *= 30
    (secure / "manifest.json").write_text(json.dumps(manifest))
    show(RunFolder(secure))
    assert "and 18 more in manifest.json" in capsys.readouterr().out


def test_labels_that_were_granted_are_given_and_no_score(
    secure: Path, make_attack: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    attacks = [make_attack(adversary="cabal", label_accuracy=1.0), make_attack(adversary="b", label_accuracy=0.75)]
    write_lines(secure / "attacks.jsonl", attacks)
    text = (secure / "experiment.toml").read_text()
    (secure / "experiment.toml").write_text(text.replace("targets = [0]", 'targets = [0]\nknows = ["labels"]'))
    show(RunFolder(secure))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "geiping" in line or "75 %" in line]
    assert any("75" in row for row in rows)
    show(RunFolder(secure))
    out = capsys.readouterr().out
    (given,) = [line for line in out.splitlines() if "given" in line]
    assert given.split()[0] == "cabal"


# --- the threat model ----------------------------------------------------------------------------------------------


def test_a_threat_names_its_colluders_its_derivation_and_its_model(secure: Path) -> None:
    words = words_of(secure).partition("Threat model")[2]
    assert "Works together with clients 3 and 4" in words
    assert "Derives single updates by collusion (steps 2)" in words
    assert "Follows the threat model eavesdropper" in words
    assert "May alter the global model that a client is sent" in words
    settings = words.partition("Settings of the attack")[2].split("geiping-aware")[0]
    assert settings.split()[:4] == ["attack", "geiping", "iterations", "60"]
    assert "hides" not in settings


def test_with_colluders_it_is_other_clients_whose_updates_are_not_seen(secure: Path) -> None:
    assert threat.SINGLE == words.SINGLE
    said = f"It does not see {words.SINGLE}."
    manifest = json.loads((secure / "manifest.json").read_text())
    manifest["who_sees_what"] = [{"adversary": "cabal", "words": said, "does_not_see": [words.SINGLE]}]
    (secure / "manifest.json").write_text(json.dumps(manifest))
    page = words_of(secure)
    assert page.count("any other client's update") == 2 and words.SINGLE not in page


def test_the_drawing_shows_the_sum_the_colluders_and_that_the_server_is_malicious(secure: Path) -> None:
    page = render(read(secure))
    drawing = re.findall(r'<svg[^>]*aria-label="Clients on the left.*?</svg>', page, re.DOTALL)[0]
    assert "at the malicious server, together with clients 3 and 4 and is shown a sum of updates" in drawing
    assert "Σ" in drawing and ">malicious<" in drawing and "masked update →" in drawing
    assert drawing.count('class="box colluder"') == drawing.count('class="told"') == 2
    for client in (0, 3, 4):
        assert f">client {client}<" in drawing


def test_colluders_are_drawn_beside_many_targets() -> None:
    drawing = str(diagram.threat("server", targets=range(20), clients=range(30), colluders=[25]))
    assert ">client 25<" in drawing and ">client 0<" in drawing and "and 26 more" in drawing


def test_a_link_sees_no_sum(secure: Path) -> None:
    text = (secure / "experiment.toml").read_text().replace('vantage = "server"', 'vantage = "link"')
    (secure / "experiment.toml").write_text(text)
    drawing = re.findall(r"<svg[^>]*Clients on the left.*?</svg>", render(read(secure)), re.DOTALL)[0]
    assert "Σ" not in drawing and "masked update →" in drawing and "malicious" not in drawing


# --- the terminal --------------------------------------------------------------------------------------------------


def test_the_terminal_says_it_too(secure: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(RunFolder(secure))
    out = " ".join(capsys.readouterr().out.split())
    assert "secure aggregation secagg+: every pair of 10 clients shares a mask; threshold 6" in out
    assert "closed [4]" in out
    assert "Updates that adversaries derived" in out and "recovered" in out
    assert f"clients 1, 6 and 9: {LEFT}" in out


def test_the_terminal_is_as_it_was_without(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(RunFolder(run))
    out = capsys.readouterr().out
    assert "secure" not in out and "derived" not in out
    assert "[1] client 4: loss became NaN" in out
    assert fedsim.report.write(run).is_file()
