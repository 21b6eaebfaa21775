"""benchmark/bf16.py rounds as bfloat16 does, where asked to; bf16_half.py in one half only."""

import sys
from copy import deepcopy

import pytest
import torch
from conftest import ROOT
from test_atari import screens
from torch.nn import functional as F

import ppo_atari

sys.path.insert(0, str(ROOT / "benchmark"))
import bf16  # noqa: E402
import bf16_half  # noqa: E402


def agents(network="nature"):
    """The same weights with autocast and with the roundings, and a minibatch of screens."""
    torch.manual_seed(1)
    autocast = ppo_atari.Agent(4, network, "orthogonal", True)
    rounded = bf16.Agent(4, network, "orthogonal", True)
    rounded.load_state_dict(autocast.state_dict())
    return autocast, rounded, screens(32)


def gradients(agent, obs):
    """Those of an objective like eq. 9's, by parameter, and the logits and values."""
    torch.manual_seed(2)
    pi, value = agent(obs)
    advantage, target = torch.randn(2, len(obs))
    objective = (pi.log_prob(torch.arange(len(obs)) % 4) * advantage).mean()
    objective = objective - (value - target).square().mean() + 0.01 * pi.entropy().mean()
    output = torch.cat([pi.logits.detach().flatten(), value.detach()]).double()
    return [g.double() for g in torch.autograd.grad(objective, list(agent.parameters()))], output


def through(x):
    """x [..] float64 rounded to bfloat16, as its gradient will be."""
    y = x + (x.bfloat16().double() - x).detach()
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient.bfloat16().double())
    return y


class Exact(ppo_atari.Agent):
    """The same in float64 but for the roundings: the sums are exact."""

    def forward(self, obs):
        x = (obs.double() / 255).float().bfloat16().double().permute(0, 3, 1, 2)
        for layer in self.body:
            if isinstance(layer, torch.nn.Conv2d):
                x = through(F.conv2d(x, through(layer.weight), through(layer.bias), layer.stride))
            elif isinstance(layer, torch.nn.Linear):
                x = through(F.linear(x, through(layer.weight), through(layer.bias)))
            else:
                x = layer(x)
        value = F.linear(x, self.critic.weight, self.critic.bias).squeeze(-1)
        logits = F.linear(x, self.actor.weight, self.actor.bias)
        return torch.distributions.Categorical(logits=logits), value


@pytest.mark.parametrize("network", ["nature", "a3c"])
def test_rounds_as_exact_sums_would_be_rounded(network):
    """Sums in float32 differ in the last bits, so now and then one is rounded the other way."""
    _, agent, obs = agents(network)
    exact = Exact(4, network, "orthogonal", True).double()
    exact.load_state_dict(agent.state_dict())
    ours, output = gradients(agent, obs)
    expected, expected_output = gradients(exact, obs)
    agent.bf16 = False
    plain, plain_output = gradients(agent, obs)
    pairs = [*zip(ours, expected, plain), (output, expected_output, plain_output)]
    for x, y, z in pairs:
        assert (x - y).norm() < 0.25 * (y - z).norm()


def test_rounds_no_more_than_autocast():
    """Forward as autocast, on any processor; backward autocast without hardware for it is worse."""
    autocast, agent, obs = agents()
    native, native_output = gradients(autocast, obs)
    ours, output = gradients(agent, obs)
    agent.bf16 = False
    plain, plain_output = gradients(agent, obs)
    assert (output - native_output).norm() < 0.25 * (output - plain_output).norm()
    for x, y, z in zip(ours, native, plain):
        assert (x - z).norm() < 1.2 * (y - z).norm()


def test_without_the_flag_nothing_is_rounded():
    autocast, agent, obs = agents()
    autocast.bf16 = agent.bf16 = False
    for x, y in zip(*(gradients(x, obs)[0] for x in (autocast, agent))):
        assert torch.equal(x, y)


def test_weights_that_are_rounded_already_stay():
    """train() rounds those of pi_old once a rollout."""
    _, agent, obs = agents()
    old = deepcopy(agent)
    old.body.bfloat16()
    with torch.no_grad():
        for x, y in zip((agent(obs)[0].logits, agent(obs)[1]), (old(obs)[0].logits, old(obs)[1])):
            assert torch.equal(x, y)


@pytest.mark.parametrize("half", ["rollout", "update"])
def test_half_of_an_iteration_is_in_bfloat16(monkeypatch, half):
    """That half is --bf16's to the bit, the other float32's; so they are as train() uses them."""
    monkeypatch.setattr(bf16_half.Agent, "half", half)
    kinds = (ppo_atari.Agent, True), (ppo_atari.Agent, False), (bf16_half.Agent, True)
    found = {}
    for i, (kind, bf16_flag) in enumerate(kinds):
        torch.manual_seed(1)
        agent = kind(4, "nature", "orthogonal", bf16_flag)
        old_agent = deepcopy(agent)
        if bf16_flag:
            old_agent.body.bfloat16()
        old_agent.load_state_dict(agent.state_dict())
        with torch.no_grad():
            pi, value = old_agent(screens(4))
        found[i] = [torch.cat([pi.logits, value[:, None]], -1)], gradients(agent, screens(32))[0]
    for part, name in enumerate(("rollout", "update")):
        rounded, plain, ours = (found[i][part] for i in range(3))
        same, other = (rounded, plain) if half == name else (plain, rounded)
        assert all(map(torch.equal, ours, same))
        assert not any(map(torch.equal, ours, other))


def test_half_must_be_named(capsys, monkeypatch):
    for argv in (["bf16_half.py"], ["bf16_half.py", "--bf16"]):
        monkeypatch.setattr(sys, "argv", argv)
        assert bf16_half.main() == 2
        assert "must be rollout or update" in capsys.readouterr().err
