"""benchmark/speed.py: its commands and its tables, without timing anything."""

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

pd = pytest.importorskip("pandas", reason="pip install -r benchmark/requirements.txt")
sys.path.insert(0, str(ROOT / "benchmark"))
import speed  # noqa: E402

ROWS = """order,repeat,task,program,steps,seconds,sps,extrapolated,peak_mib,startup_s,steps_run,marginal_us,wall_s,cpu_s,rollout_us,update_us,env_alone_us
1,1,Hopper,ours,1000,10,100,False,280,1,1000,900,10,10,500,300,450
2,1,Hopper,sb3,1000,50,20,True,350,2,100,48,6,6,,,
3,1,Swimmer,ours,1000,5,200,False,280,1,1000,900,10,10,500,300,450
4,1,Swimmer,sb3,1000,50,20,True,350,2,100,48,6,6,,,
5,2,Hopper,ours,1000,10,100,False,280,1,1000,900,10,10,500,300,450
6,2,Hopper,sb3,1000,25,40,True,350,2,100,48,6,6,,,
"""  # noqa: E501


def test_tables():
    lines = speed.tables(pd.read_csv(io.StringIO(ROWS))).splitlines()
    assert "| Hopper | sb3 | 2.50 / 3.75 / 5.00 | 30.0 | 37.5 | 2.0 | 350 |" in lines
    assert "| **geometric mean** of 2 | sb3 | 5.77 | 24.5 |  |  |  |" in lines
    assert "sb3: extrapolated from 100 steps, start-up + steps * marginal." in lines
    assert lines[-1] == "| Swimmer | ours | 5,000 | 1,000 | 500 | 300 | 100 | 450 |"


def test_equal_ratios_are_all_shown():
    more = "7,3,Hopper,ours,1000,10,100,False,280,1,1000,900,10,10,500,300,450\n"
    more += "8,3,Hopper,sb3,1000,50,20,True,350,2,100,48,6,6,,,\n"
    text = speed.tables(pd.read_csv(io.StringIO(ROWS + more)))
    assert "| Hopper | sb3 | 2.50 / 5.00 / 5.00 |" in text


@pytest.mark.parametrize("algorithm", speed.SCRIPTS)
def test_programs_do_the_same_work(algorithm, monkeypatch, tmp_path):
    """Ours and Stable-Baselines3's take the same task and steps."""
    flags = ["--algorithm", algorithm, "--sb3", "--no-bf16"]
    if algorithm in ("ppo", "atari"):
        flags += ["--cleanrl", str(tmp_path), "--leanrl", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["speed.py", *flags])
    found = speed.programs(speed.parse_args())
    assert [*found] == ["ours", "sb3", "cleanrl", "leanrl"][: 4 if len(flags) > 4 else 2]
    for program in found.values():
        line = " ".join(map(str, program.words))
        assert "--env-id {task} --total-timesteps {steps} --seed {seed}" in line


def test_what_is_not_run_is_extrapolated(monkeypatch, tmp_path):
    """Eight iterations of 100 steps, each 2 s, end 1 s before the program; it began after 5 s."""
    use, ends = SimpleNamespace(ru_utime=1, ru_stime=1, ru_maxrss=2**20), range(1, 9)
    result = 0, 22.0, use, {i: 5 + 2.0 * i for i in ends}, ""
    monkeypatch.setattr(speed, "run", lambda *_: result)
    args = SimpleNamespace(own_steps=0, peer_steps=800, steps=8000, batch=100, cores=1, atari=False)
    program = speed.Program([sys.executable, "peer.py"])
    row = speed.measure("peer", program, "Hopper", 1, tmp_path, args)
    found = [row[x] for x in ("marginal_us", "startup_s", "seconds", "sps")]
    assert found == pytest.approx([2e4, 6, 166, 8000 / 166])


def test_any_commands(monkeypatch):
    flags = ["--command", "a=python a.py {steps}", "--command", "b=python b.py --env-id {task}"]
    monkeypatch.setattr(sys, "argv", ["speed.py", *flags])
    found = speed.programs(speed.parse_args())
    assert found["a"].words == ["python", "a.py", "{steps}"] and [*found] == ["a", "b"]
    for wrong in ("python a.py", "a=python", "a=python a.py {what}"):
        with pytest.raises(ValueError, match="NAME=COMMAND"):
            speed.split_name(wrong)


def test_the_environment_alone():
    command = [sys.executable, speed.PEERS, "random", "--env-id", "InvertedPendulum-v4"]
    out = subprocess.run([*command, "--total-timesteps", "500"], capture_output=True, check=True)
    assert 1 < json.loads(out.stdout) < 10_000
