"""The copies of the scripts that benchmark/log_std.sh makes by patches."""

import importlib.util
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import MUJOCO_SCRIPTS, ROOT, Program, minibatch_of

import ppo_continuous

pytestmark = pytest.mark.skipif(not shutil.which("patch"), reason="patch is not installed")


def patched(script, name, folder):
    """Path of a changed copy."""
    path = folder / f"{name}_{script.__name__}.py"
    patch = (ROOT / "benchmark" / "log_std" / f"{name}.patch").read_bytes()
    command = ["patch", "-s", "-o", path, ROOT / f"{script.__name__}.py"]
    subprocess.run(command, input=patch, check=True)
    return path


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


def test_log_std_alone_learns_without_the_clip(tmp_path):
    """Its gradient is that of eq. 6, the network's that of eq. 7."""
    path = patched(ppo_continuous, "unclipped", tmp_path)
    spec = importlib.util.spec_from_file_location("unclipped", path)
    spec.loader.exec_module(copy := importlib.util.module_from_spec(spec))
    torch.manual_seed(0)
    agent = ppo_continuous.Agent(5, 3, args := ppo_continuous.Args(vf_coef=1e-12))
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
    expected = clipped | {"log_std": unclipped["log_std"]}
    for name in names:
        assert torch.allclose(agent.get_parameter(name).grad, expected[name], rtol=1e-4, atol=1e-6)
