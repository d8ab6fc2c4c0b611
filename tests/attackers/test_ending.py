"""How `fedsim attack` ends before its time: no process stays behind, and the truth is back, or found again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from asking import ask

EXPERIMENT = """
rounds = 1
[data]
name = "digits"
[model]
name = "mlp"
[clients]
count = 2
algorithm = "fedsgd"
batch_size = 2
[scores]
lpips = "off"
[[adversaries]]
name = "spy"
vantage = "server"
targets = [0]
rounds = [1]
"""


def gone(number: int) -> bool:
    """Whether a process has ended, soon."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("way", ["Ctrl-C", "kill -9"])
def test_no_process_is_left_and_the_truth_is_not_lost(
    way: str, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.toml").write_text(EXPERIMENT)
    run, start = tmp_path / "run", tmp_path / "number"
    assert ask(capsys, "run", str(tmp_path / "x.toml"), "--out", str(run)).code == 0
    command = [sys.executable, "-m", "fedsim", "attack", str(run), "--adversary", "spy", "--set", "fault=hangs"]
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--set", f"start_file={start}"],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    ) as done:
        for _ in range(1200):
            if start.is_file() and start.read_text():
                break
            assert done.poll() is None, done.communicate()
            time.sleep(0.05)
        number = int(start.read_text())
        parent = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
        assert not (run / "truth").exists()
        if way == "Ctrl-C":
            os.killpg(done.pid, signal.SIGINT)  # as a terminal does: to all of the group
        else:
            done.kill()
        said = done.communicate(timeout=30)[1]
    assert gone(number) and gone(parent)
    if way == "Ctrl-C":
        assert (done.returncode, said) == (130, "fedsim: interrupted\n")
    else:
        assert not (run / "truth").exists() and len(list(tmp_path.glob(".fedsim-truth-*"))) == 1
        answer = ask(capsys, "attack", str(run), "--adversary", "spy")
        assert answer.code == 0 and "was still apart" in answer.err
    assert [path.name for path in (run / "truth").iterdir()] == ["c0-r1.safetensors"]
    assert not list(tmp_path.glob(".fedsim-truth-*"))
