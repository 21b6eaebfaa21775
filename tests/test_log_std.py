"""The copies of the scripts that benchmark/log_std.sh makes by patches; gradients.py."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MUJOCO_SCRIPTS, ROOT, Program, minibatch_of

import ppo_continuous

sys.path.append(str(ROOT / "benchmark"))
import gradients

needs_patch = pytest.mark.skipif(not shutil.which("patch"), reason="patch is not installed")


def patched(script, name, folder):
    """Path of a changed copy."""
    path = folder / f"{name}_{script.__name__}.py"
    patch = (ROOT / "benchmark" / "log_std" / f"{name}.patch").read_bytes()
    command = ["patch", "-s", "-o", path, ROOT / f"{script.__name__}.py"]
    subprocess.run(command, input=patch, check=True)
    return path


@needs_patch
def test_sweep_needs_the_page_before_it_and_a_dry_run_leaves_no_schedule(tmp_path):
    for name in ("ppo_*.py", "benchmark/l*", "benchmark/table1_rows.txt", "benchmark/rivals"):
        for path in ROOT.glob(name):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            (tmp_path / "benchmark").mkdir(exist_ok=True)
            copy(path, tmp_path / path.relative_to(ROOT))
    for schedule in (tmp_path / "benchmark/log_std").glob("*.txt"):
        schedule.unlink()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = dict(env=os.environ | {"PATH": path, "SEEDS": "3"}, capture_output=True, text=True)
    command = ["bash", tmp_path / "benchmark/log_std.sh", "--dry-run"]
    done = subprocess.run(command, **options)
    assert done.returncode == 1 and done.stderr.startswith("no Ant; first: bash benchmark/held_out")
    (tmp_path / "benchmark/results/held-out").mkdir(parents=True)
    rows = [f"clip-0.2,{task},1,{100_000 * i},{11 - i}\n"
            for task in ("Ant", "Humanoid") for i in range(1, 11)]  # fmt: skip
    curves = tmp_path / "benchmark/results/held-out/curves.csv"
    curves.write_text("setting,task,seed,step,entropy\n" + "".join(rows))
    done = subprocess.run(command, **options)
    assert done.returncode == 0 and done.stdout.count("\n") == 232
    assert not list((tmp_path / "benchmark/log_std").glob("*.txt"))


@needs_patch
@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_log_std_is_what_the_schedule_says(script, tmp_path):
    """Linear between its points, replayed as in plain PyTorch, and no optimizer moves it."""
    copy = patched(script, "scheduled", tmp_path)
    flags = "--env-id InvertedPendulum --num-steps 256 --run-dir run --total-timesteps".split()
    for steps, expected in ((1280, -2.0), (256, 0.0)):
        program = Program(copy, tmp_path / str(steps), *flags, steps, "--log-std", "0 -1 -2")
        assert program.wait() == 0, program.err
        agent = torch.load(tmp_path / f"{steps}/run/agent.pt", weights_only=True)
        assert agent["log_std"].tolist() == [expected]
    entropy = np.genfromtxt(
        tmp_path / "1280/run/metrics.csv", delimiter=",", names=True, encoding=None
    )["entropy"]
    assert np.allclose(np.diff(entropy), -0.5, atol=1e-5)


@needs_patch
@pytest.mark.parametrize("free", ["log_std", "mean"])
def test_log_std_or_the_mean_learns_without_the_clip(free, tmp_path):
    """Its gradient is that of eq. 6, the other's that of eq. 7."""
    path = patched(ppo_continuous, "unclipped", tmp_path)
    spec = importlib.util.spec_from_file_location("unclipped", path)
    spec.loader.exec_module(copy := importlib.util.module_from_spec(spec))
    torch.manual_seed(0)
    agent = ppo_continuous.Agent(5, 3, args := copy.Args(vf_coef=1e-12, unclipped=free))
    obs, actions, old_logprob, advantage, *targets = minibatch_of(ppo_continuous, agent, 64)
    with torch.no_grad():
        for p in agent.parameters():
            p += 0.2 * torch.randn_like(p)
    ratio = (agent(obs)[0].log_prob(actions) - old_logprob).exp()
    assert ((ratio - 1).abs() > 0.2).float().mean() > 0.2
    objectives = ppo_continuous.surrogate(ratio, advantage, 0.2), (ratio * advantage).mean()
    names = [name for name, _ in agent.named_parameters() if not name.startswith("critic")]
    parameters = [agent.get_parameter(name) for name in names]
    clipped, unclipped = (
        dict(zip(names, torch.autograd.grad(x, parameters, retain_graph=True))) for x in objectives
    )
    assert not torch.allclose(clipped["log_std"], unclipped["log_std"], rtol=0.1)

    class Nothing:
        def step(self, learning_rate):
            pass

    minibatch = obs, actions, old_logprob, advantage, *targets
    metrics = copy.update(agent, Nothing(), args, 0.0, 0.2, *minibatch)
    assert torch.allclose(metrics[0], objectives[0], atol=1e-6)
    for name in names:
        expected = unclipped if (name == "log_std") == (free == "log_std") else clipped
        gradient = agent.get_parameter(name).grad
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 30])
def test_root_is_what_adam_divides_by(steps):
    """Of a gradient that stays the same, its size, after any number of steps."""
    agent, note = torch.nn.Module(), gradients.Note({})
    agent.log_std = torch.nn.Parameter(torch.zeros(2))
    agent.log_std.grad = torch.full((2,), 3.0)
    adam = ppo_continuous.Adam([agent.log_std], eps=1e-5)
    for _ in range(steps):
        adam.step(torch.tensor(0.1))
    note.resume(agent=agent, adam=adam)
    note.log(1, 64, False, {"entropy": 5.0})
    assert note.rows == [(64, 5.0, pytest.approx(3, rel=1e-4))]


def test_gradients_are_those_of_the_scripts(tmp_path, monkeypatch):
    """Entropy as in metrics.csv; what goes on from a penalty begins with its state, or its Adam."""
    constants = dict(TASK="InvertedPendulum-v4", TOTAL=8192, SEEDS=(1,), HALF=1, OUT=tmp_path)
    for name, x in constants.items():
        monkeypatch.setattr(gradients, name, x)
    monkeypatch.setattr(sys, "argv", ["gradients.py"])
    gradients.main()
    table = pd.read_csv(tmp_path / "gradients.csv").set_index("setting")
    flags = "--env-id InvertedPendulum --total-timesteps 8192 --run-dir run".split()
    for name, (script, more, parts) in gradients.ROWS.items():
        found = table.loc[[name]]
        assert list(found["step"]) == [2048, 4096][len(parts) > 0 :] and (found["root"] > 0).all()
        if not more and not parts:
            program = Program(script, tmp_path / script.__name__, *flags)
            assert program.wait() == 0, program.err
            rows = pd.read_csv(tmp_path / script.__name__ / "run/metrics.csv")
            assert list(rows["entropy"][:2]) == pytest.approx(list(found["entropy"]), rel=1e-5)
    kept, fresh = (table.loc[f"β = 1, then ε = 0.2{x}"] for x in ("", ", new Adam"))
    before = table.loc["fixed KL, β = 1"].iloc[0]
    assert abs(kept["entropy"] - before["entropy"]) < 0.05 > abs(fresh["entropy"] - kept["entropy"])
    assert kept["root"] != fresh["root"] and (tmp_path / "gradients.png").exists()
    monkeypatch.setattr(gradients, "trained", None)  # from the file alone
    gradients.main()
