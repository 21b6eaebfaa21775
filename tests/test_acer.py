"""ACER and A2C for Atari: their equations by independent calculations, the replay, whole runs."""

import shutil
import signal
import subprocess
import sys
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import test_atari
import torch
from conftest import ROOT, FakeRun, Program, results, rows
from torch import nn

import ppo_atari

sys.path.append(str(ROOT / "benchmark/rivals"))
import a2c_atari
import acer
import segments as segments_file

T, N, A, O = 5, 3, 4, 6
RIVALS = [a2c_atari, acer]


AUTHORS = {  # what the papers and baselines have
    a2c_atari: dict(
        num_envs=16, num_steps=5, gae_lambda=1.0, norm_adv="none", learning_rate=7e-4,
        anneal_lr=True, vf_coef=0.25, ent_coef=0.01, max_grad_norm=0.5,
    ),
    acer: dict(
        num_envs=16, num_steps=20, replay_ratio=4, buffer_size=50_000, replay_start=10_000,
        truncation=10, delta=1, average_decay=0.99, learning_rate=7e-4, q_coef=0.5, ent_coef=0.01,
        max_grad_norm=10,
    ),
}  # fmt: skip


@pytest.mark.parametrize("rival", AUTHORS)
def test_defaults_are_the_authors(rival):
    args = vars(rival.Args())
    assert {name: args[name] for name in AUTHORS[rival]} == AUTHORS[rival]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    yield
    torch.set_default_dtype(torch.float32)


class Small(nn.Module):
    """Stands in for QAgent on vectors of size O."""

    def __init__(self):
        super().__init__()
        self.hidden, self.actor, self.critic = nn.Linear(O, 16), nn.Linear(16, A), nn.Linear(16, A)

    def pi_and_q(self, obs):
        x = self.hidden(obs).tanh()
        return self.actor(x).softmax(-1), self.critic(x)


def distributions(*shape):
    return torch.randn(*shape, A).mul(2).softmax(-1)


def segments(dones=0.3):
    """obs [T + 1, N, O], actions, rewards, dones [T, N]."""
    actions = torch.randint(A, (T, N))
    return torch.randn(T + 1, N, O), actions, torch.randn(T, N), (torch.rand(T, N) < dones).double()


# Equations


def test_retrace_is_its_recursion():
    _, _, rewards, dones = segments()
    q, values, ratio = torch.randn(T, N), torch.randn(T, N), torch.rand(T, N) * 3
    last = torch.randn(N)
    found = acer.retrace(rewards, dones, q, values, last, ratio, 0.9)

    def q_ret(t, n):
        if dones[t, n]:
            return rewards[t, n]
        if t + 1 == T:
            return rewards[t, n] + 0.9 * last[n]
        correction = min(1.0, ratio[t + 1, n]) * (q_ret(t + 1, n) - q[t + 1, n])
        return rewards[t, n] + 0.9 * (correction + values[t + 1, n])

    expected = torch.stack([torch.stack([q_ret(t, n) for n in range(N)]) for t in range(T)])
    torch.testing.assert_close(found, expected)


def test_retrace_on_policy_is_q_and_the_discounted_errors_of_q():
    _, _, rewards, dones = segments(dones=0)
    q, values, last = torch.randn(T, N), torch.randn(T, N), torch.randn(N)
    found = acer.retrace(rewards, dones, q, values, last, torch.ones(T, N), 0.9)
    errors = rewards + 0.9 * torch.cat([values[1:], last[None]]) - q
    discounts = 0.9 ** (torch.arange(T)[None] - torch.arange(T)[:, None]).double()
    torch.testing.assert_close(found, q + discounts.triu() @ errors)


def test_retrace_stops_where_a_life_ends():
    _, _, rewards, dones = segments(dones=0)
    q, values, ratio = torch.randn(T, N), torch.randn(T, N), torch.ones(T, N)
    dones[2] = 1
    found = acer.retrace(rewards, dones, q, values, torch.randn(N), ratio, 0.9)
    torch.testing.assert_close(found[2], rewards[2])
    again = rewards.clone()
    again[3:] += 7
    other = acer.retrace(again, dones, q, values, torch.randn(N), ratio, 0.9)
    torch.testing.assert_close(found[:3], other[:3])


@pytest.mark.parametrize("c", [0.0, 0.5, 1.0, 10.0, 1e12])
def test_truncation_and_correction_are_the_policy_gradient(c):
    """Over all actions, weighted by mu, for any c: the gradient of sum_a pi(a) Q(a)."""
    logits, q, mu = torch.randn(N, A, requires_grad=True), torch.randn(N, A), distributions(N)
    pi = logits.softmax(-1)
    found = 0
    for action in range(A):
        actions = torch.full((N,), action)
        objective = acer.policy_objective(pi, actions, mu, q, q[:, action], c)
        found = found + mu[:, action] * objective
    found = torch.autograd.grad(found.sum(), logits, retain_graph=True)[0]
    expected = torch.autograd.grad((pi * q).sum(), logits)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_policy_objective_action_by_action():
    pi, mu, q, q_ret = distributions(N), distributions(N), torch.randn(N, A), torch.randn(N)
    actions, c = torch.randint(A, (N,)), 1.5
    found = acer.policy_objective(pi, actions, mu, q, q_ret, c)
    for n, i in enumerate(actions.tolist()):
        value = sum(pi[n, a] * q[n, a] for a in range(A))
        total = min(c, pi[n, i] / mu[n, i]) * pi[n, i].log() * (q_ret[n] - value)
        for a in range(A):
            weight = max(0, 1 - c * mu[n, a] / pi[n, a])
            total += weight * pi[n, a] * pi[n, a].log() * (q[n, a] - value)
        torch.testing.assert_close(found[n], total, rtol=1e-3, atol=1e-4)


# Updates


@pytest.mark.parametrize("norm", [1e-3, 10.0])
def test_first_update_on_policy_is_actor_critics(norm):
    """Weights are 1, the correction 0, and a projection along k = -1 leaves the logits alone."""
    obs, actions, rewards, dones = segments()
    agent = Small()
    reference, average = deepcopy(agent), deepcopy(agent)
    mu = agent.pi_and_q(obs[:-1])[0].detach()
    args = dict(max_grad_norm=norm, learning_rate=0.01, ent_coef=0.3)
    args = acer.Args(num_envs=N, num_steps=T, **args)
    rmsprop = acer.RMSProp(agent.parameters())
    metrics = acer.update(agent, average, rmsprop, args, obs, actions, rewards, dones, mu)

    pi, q = reference.pi_and_q(obs)
    value, q_taken = (pi * q).sum(-1), q[:-1].gather(-1, actions[..., None])[..., 0]
    targets, following = torch.zeros(T, N), value[-1]
    for t in reversed(range(T)):
        targets[t] = rewards[t] + 0.99 * (1 - dones[t]) * following
        following = targets[t] - q_taken[t] + value[t]
    pi = torch.distributions.Categorical(pi[:-1])
    policy = pi.log_prob(actions) * (targets - value[:-1]).detach() + 0.3 * pi.entropy()
    loss = 0.25 * (targets.detach() - q_taken).square().mean() - policy.mean()
    before = deepcopy(reference.state_dict())
    parameters = list(reference.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    total = sum(x.square().sum() for x in gradients).sqrt()
    for p, g in zip(parameters, gradients):
        g = g * min(1, norm / total)
        p.data -= 0.01 * g / (0.99 + 0.01 * g.square() + 1e-5).sqrt()
    for (name, found), expected in zip(agent.named_parameters(), reference.parameters()):
        moved, should = found - before[name], expected - before[name]
        torch.testing.assert_close(moved, should, rtol=1e-3, atol=1e-3 * should.abs().max().item())
        mean = 0.99 * before[name] + 0.01 * found
        torch.testing.assert_close(average.get_parameter(name), mean)
    assert metrics[acer.METRICS.index("kl")].abs() < 1e-6


def test_update_off_policy_sample_by_sample():
    """All that it does at once, written out: mu and the average policy are others than pi."""
    obs, actions, rewards, dones = segments()
    rewards, mu, c, delta = 3 * rewards, distributions(T, N), 1.5, 0.2
    agent, average = Small(), Small()
    reference, grads = deepcopy(agent), {}
    args = dict(max_grad_norm=1e9, truncation=c, delta=delta, ent_coef=0.3)
    args = acer.Args(num_envs=N, num_steps=T, **args)
    rmsprop = SimpleNamespace(
        step=lambda _: grads.update({k: p.grad.clone() for k, p in agent.named_parameters()})
    )
    pi, q = reference.pi_and_q(obs)
    p, values = pi.detach(), q.detach()
    far = average.pi_and_q(obs)[0].detach()
    v, q_ret, z = (p * values).sum(-1), torch.zeros(T, N), torch.zeros(T, N, A)
    for n in range(N):
        following = v[T, n]
        for t in reversed(range(T)):
            i = actions[t, n]
            q_ret[t, n] = rewards[t, n] + 0.99 * (1 - dones[t, n]) * following
            weight = min(1, p[t, n, i] / mu[t, n, i])
            following = v[t, n] + weight * (q_ret[t, n] - values[t, n, i])
        for t in range(T):
            i, ratio = actions[t, n], p[t, n] / mu[t, n]
            g = (1 - c / ratio).clamp(min=0) * (values[t, n] - v[t, n])  # of the correction
            g[i] += min(c, ratio[i]) * (q_ret[t, n] - v[t, n]) / p[t, n, i]
            g -= 0.3 * (p[t, n].log() + 1)  # of the entropy
            k = -far[t, n] / p[t, n]  # of KL[average, pi]
            z[t, n] = g - max(0, (k @ g - delta) / (k @ k)) * k
    q_taken = q[:-1].gather(-1, actions[..., None])[..., 0]
    objective = (z * pi[:-1]).sum(-1).mean() - 0.25 * (q_ret - q_taken).square().mean()
    expected = torch.autograd.grad(objective, list(reference.parameters()))

    metrics = acer.update(agent, average, rmsprop, args, obs, actions, rewards, dones, mu)
    for (name, _), x in zip(reference.named_parameters(), expected):
        torch.testing.assert_close(grads[name], x, rtol=1e-3, atol=1e-3 * x.abs().max().item())
    kl = (far * (far / p).log())[:-1].sum(-1).mean()
    assert metrics[acer.METRICS.index("kl")].item() == pytest.approx(kl.item(), rel=1e-3)
    assert 0 < metrics[acer.METRICS.index("projected")] < 1


def test_trust_region_and_average_policy():
    """A small delta keeps the policy nearer to the average, which moves by 1 - alpha."""
    obs, actions, rewards, dones = segments()
    columns = obs, actions, 9 * rewards, dones, distributions(T, N)
    kls, start = [], Small()
    other = deepcopy(start)
    for p in other.parameters():
        p.data += 0.3 * torch.randn_like(p)
    for delta in (1e-6, 1e12):
        agent, average = deepcopy(start), deepcopy(other)
        args = acer.Args(num_envs=N, num_steps=T, delta=delta, average_decay=1.0, ent_coef=0)
        rmsprop = acer.RMSProp(agent.parameters())
        for _ in range(50):
            metrics = acer.update(agent, average, rmsprop, args, *columns)
        kls.append(metrics[acer.METRICS.index("kl")])
        assert (metrics[acer.METRICS.index("projected")] > 0) == (delta < 1)
    assert kls[0] < kls[1]


class Vector(Small):
    """Stands in for ppo_atari's Agent on vectors of size O."""

    def __init__(self):
        super().__init__()
        self.critic = nn.Linear(16, 1)

    def forward(self, obs):
        x = self.hidden(obs).tanh()
        pi = torch.distributions.Categorical(logits=self.actor(x), validate_args=False)
        return pi, self.critic(x).squeeze(-1)


def a2c_batch(size, *obs_shape):
    """obs, actions, advantages, targets."""
    actions, (advantages, targets) = torch.randint(A, (size,)), torch.randn(2, size)
    return torch.randn(size, *obs_shape), actions, advantages, targets


@pytest.mark.parametrize("norm", [0.1, 1e9])
def test_a2c_update_is_a_step_up_eq_9(norm):
    args = a2c_atari.Args(cuda=False, ent_coef=0.3, max_grad_norm=norm)
    agent, (obs, actions, advantages, targets) = Vector(), a2c_batch(8, O)
    before, rmsprop = deepcopy(agent), a2c_atari.RMSProp(agent.parameters())
    rate = torch.tensor(0.01)
    a2c_atari.update(agent, rmsprop, args, rate, obs, actions, advantages, targets)
    pi, value = before(obs)
    gain = (pi.logits[range(8), actions] * advantages).mean() + 0.3 * pi.entropy().mean()
    objective = gain - 0.25 * (value - targets).square().mean()
    gradients = torch.autograd.grad(objective, list(before.parameters()))
    total = sum(g.square().sum() for g in gradients).sqrt()
    assert (total > norm) == (norm == 0.1)
    for old, p, g in zip(before.parameters(), agent.parameters(), gradients):
        g = g * min(1, norm / (total + 1e-6))
        move = 0.01 * g / (0.99 + 0.01 * g.square() + 1e-5).sqrt()
        torch.testing.assert_close(p - old, move, rtol=1e-6, atol=1e-10)


def test_a2c_steps_by_its_schedule(monkeypatch):
    torch.set_default_dtype(torch.float32)
    rates, function = [], a2c_atari.update

    def spy(agent, rmsprop, args, learning_rate, *rest):
        rates.append(learning_rate.item())
        return function(agent, rmsprop, args, learning_rate, *rest)

    monkeypatch.setattr(a2c_atari, "update", spy)
    for anneal_lr, expected in ((True, [7e-4, 7e-4 * 2 / 3, 7e-4 / 3]), (False, [7e-4] * 3)):
        args = a2c_atari.Args(num_envs=2, total_timesteps=30, anneal_lr=anneal_lr, cuda=False)
        rates.clear()
        a2c_atari.train(args, test_atari.FakeEnvs(2), test_atari.FakeRun())
        assert rates == pytest.approx(expected)


@pytest.mark.parametrize("rival", RIVALS)
def test_a_graph_can_be_made_of_an_update(rival):
    """What it changes is in what capturing restores, and nothing waits for a number."""
    obs, actions, rewards, dones = segments()
    columns = obs, actions, rewards, dones, distributions(T, N)
    modules, args = [Small(), Small()], rival.Args(num_envs=N, num_steps=T)
    if rival is a2c_atari:
        modules, columns = [Vector()], (torch.tensor(0.01), *a2c_batch(T * N, O))
    learner = nn.ModuleList([*modules, acer.RMSProp(modules[0].parameters())])
    before = deepcopy(learner.state_dict())
    first, after = rival.update(*learner, args, *columns), deepcopy(learner.state_dict())
    assert all((after[name] != x).any() for name, x in before.items())
    learner.load_state_dict(before)
    assert torch.equal(rival.update(*learner, args, *columns), first)
    assert all(torch.equal(x, after[name]) for name, x in learner.state_dict().items())

    modules = [x.to("meta") for x in modules]
    rmsprop, columns = acer.RMSProp(modules[0].parameters()), (x.to("meta") for x in columns)
    assert rival.update(*modules, rmsprop, args, *columns).device.type == "meta"


def test_a_toy_task_is_learned_from_new_and_old_segments():
    """The action to take is shown. Without replay the same number of segments is not enough."""
    scores = {}
    for ratio in (0, 4):
        torch.manual_seed(1)
        rng, agent = np.random.default_rng(1), Small()
        average, stored, scores[ratio] = deepcopy(agent), [], []
        args = acer.Args(num_envs=8, num_steps=T, learning_rate=0.01, replay_ratio=ratio)
        rmsprop = acer.RMSProp(agent.parameters())
        for _ in range(150):
            shown = torch.randint(A, (T + 1, 8))
            obs = nn.functional.one_hot(shown, O).double()
            with torch.no_grad():
                mu = agent.pi_and_q(obs[:-1])[0]
            actions = torch.distributions.Categorical(mu).sample()
            rewards = (actions == shown[:-1]).double()
            stored.append((obs, actions, rewards, (torch.rand(T, 8) < 0.2).double(), mu))
            scores[ratio].append(rewards.mean().item())
            for i in [-1, *rng.integers(len(stored), size=rng.poisson(ratio))]:
                acer.update(agent, average, rmsprop, args, *stored[i])
    assert np.mean(scores[4][:5]) < 0.4 and np.mean(scores[4][-10:]) > 0.9
    assert np.mean(scores[0][-10:]) < 0.7


# Network and replay


def test_network_has_q_values_for_v():
    torch.set_default_dtype(torch.float32)
    args = acer.Args()
    agent, obs = acer.QAgent(A, args), torch.randint(0, 256, (3, 84, 84, 4), dtype=torch.uint8)
    pi, value = agent(obs)
    probs, q = agent.pi_and_q(obs)
    torch.testing.assert_close(value, (probs * q).sum(-1))
    torch.testing.assert_close(pi.probs, probs)
    gram = agent.critic.weight @ agent.critic.weight.T
    torch.testing.assert_close(gram, torch.eye(A), atol=1e-5, rtol=0)
    gram = agent.actor.weight @ agent.actor.weight.T
    torch.testing.assert_close(gram, 1e-4 * torch.eye(A), atol=1e-7, rtol=0)
    assert not {"pi_and_q", "bf16"} & set(vars(args))


class Player:
    """Stacks of random frames as a game shows them, whose games last some steps, often few."""

    def __init__(self, seed):
        self.rng, self.stack = np.random.default_rng(seed), np.zeros((84, 84, 4), np.uint8)

    def look(self, begins):
        frame = self.rng.integers(1, 256, (84, 84, 1), dtype=np.uint8)
        self.stack = np.dstack([self.stack[..., 1:] * (not begins), frame])
        return self.stack

    def play(self):
        return np.stack([self.look(self.rng.random() < 0.3) for _ in range(T)])


def replay_of(folder, **flags):
    flags = dict(num_envs=N, num_steps=T, cuda=False, total_timesteps=10_000) | flags
    return segments_file.Segments(acer.Args(**flags), A, SimpleNamespace(dir=folder))


def store(replay, iteration, columns):
    replay.store(iteration, **dict(zip(("obs", "actions", "rewards", "dones", "mu"), columns)))


def stored_segments(replay, iterations):
    """{iteration: what was stored}, from games that go on from one to the next."""
    torch.set_default_dtype(torch.float32)
    players, stored = [Player(n) for n in range(N)], {}
    last = np.stack([player.look(True) for player in players])
    for iteration in range(1, iterations + 1):
        new = np.stack([player.play() for player in players], 1)
        obs = torch.from_numpy(np.concatenate([last[None], new]))
        last = new[-1]
        _, actions, rewards, dones = segments()
        stored[iteration] = obs, actions, rewards, dones.float(), distributions(T, N)
        store(replay, iteration, stored[iteration])
    return stored


def test_replay_returns_what_was_stored_across_episodes(tmp_path):
    """And only of the last segments, each game's drawn evenly and apart from the others'."""
    replay = replay_of(tmp_path, buffer_size=4 * T + T // 2)
    stored = stored_segments(replay, 9)
    rng, counts = np.random.default_rng(1), np.zeros((N, 10), int)
    for _ in range(60):
        sample = replay.sample(rng)
        for n in range(N):
            same = [
                i for i, x in stored.items()
                if all(torch.equal(a[:, n], b[:, n]) and a.dtype == b.dtype
                       for a, b in zip(x, sample))
            ]  # fmt: skip
            assert len(same) == 1
            counts[n, same] += 1
    assert (counts[:, :6] == 0).all() and (counts[:, 6:] > 4).all()
    assert len({tuple(x) for x in counts}) > 1


def test_replay_keeps_what_a_checkpoint_needs(tmp_path):
    """A run killed after its checkpoint of iteration 7 wrote two more; it goes on from 7."""
    replay = replay_of(tmp_path, buffer_size=3 * T)
    stored = stored_segments(replay, 5)
    assert replay.state_dict() == {"iteration": 5}
    names = {path.name for path in (tmp_path / "replay").iterdir()}
    assert names == {f"{i}.zip" for i in range(1, 6)}  # there was no checkpoint that needs fewer
    for iteration in (6, 7):
        store(replay, iteration, stored[1])
    saved = replay.state_dict()
    assert {int(path.stem) for path in (tmp_path / "replay").iterdir()} == {3, 4, 5, 6, 7}
    expected = [replay.sample(np.random.default_rng(seed)) for seed in range(3)]
    for iteration in (8, 9):
        store(replay, iteration, stored[2])
    again = replay_of(tmp_path, buffer_size=3 * T)
    again.load_state_dict(saved)
    for seed, sample in enumerate(expected):
        assert all(map(torch.equal, again.sample(np.random.default_rng(seed)), sample))
    again.path(5).unlink()
    with pytest.raises(ValueError, match=r"replay/5\.zip is missing"):
        replay_of(tmp_path, buffer_size=3 * T).load_state_dict(saved)


def test_replay_of_a_real_game(tmp_path):
    """Lives end returns and are seen as part of the game; games end returns and are not."""
    torch.set_default_dtype(torch.float32)
    args = acer.Args(num_envs=2, num_steps=20, cuda=False, network="a3c", buffer_size=20)
    replay = segments_file.Segments(args, 4, SimpleNamespace(dir=tmp_path))
    episodes, lives, games = [], 0, 0
    envs = ppo_atari.Envs(args, lambda *row: episodes.append(row))

    def policy(obs):
        return torch.zeros(len(obs), 5)

    rng = np.random.default_rng(1)
    for iteration in range(1, 40):
        batch = ppo_atari.rollout(args, envs, policy, rng)
        obs = torch.cat([batch.obs, batch.next_obs[None]])
        columns = obs, batch.actions, batch.rewards, batch.dones, batch.logits.exp()
        store(replay, iteration, columns)
        assert all(map(torch.equal, replay.sample(rng), columns))
        begins = (obs[1:, ..., :3] != obs[:-1, ..., 1:]).flatten(2).any(-1).numpy()
        assert (batch.dones.numpy()[begins] == 1).all()
        lives += (batch.dones.numpy()[~begins] == 1).sum()
        games += begins.sum()
        if len(episodes) > 2:
            break
    envs.close()
    assert games == len(episodes) > 2 and 3 * games <= lives <= 4 * games + 8


def test_replay_asks_for_disk(tmp_path, monkeypatch):
    replay = replay_of(tmp_path / "none/yet", num_envs=16, num_steps=20, total_timesteps=1e7)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    free = 2e9
    replay.check_disk()
    free = 1e9
    with pytest.raises(segments_file.Stop, match="50000: may need 1.5 GB of disk, 1.0 GB are free"):
        replay.check_disk()


def test_acer_stores_what_acted_and_replays_as_often_as_it_says(tmp_path, monkeypatch):
    """mu is the acting policy's; a Poisson number of steps from replay_start on."""
    torch.set_default_dtype(torch.float32)
    flags = dict(num_envs=N, num_steps=T, cuda=False, network="a3c", replay_ratio=2.0)
    args = acer.Args(**flags, replay_start=3 * T, buffer_size=6 * T, total_timesteps=9 * N * T)
    batches, updates, stored = [], [], {}

    def rollout(args, envs, act, rng):
        obs = torch.randint(256, (T + 1, N, 84, 84, 4), dtype=torch.uint8)
        actions, rewards = torch.randint(A, (T, N)), torch.randn(T, N)
        dones, logits = torch.randint(2, (T, N)).float(), torch.randn(T, N, A).log_softmax(-1)
        batches.append(SimpleNamespace(obs=obs[:-1], next_obs=obs[-1], actions=actions, dones=dones,
                                       rewards=rewards, logits=logits, values=rewards))  # fmt: skip
        return batches[-1]

    class Replay:
        def __init__(self, *_):
            pass

        check_disk = remove = lambda self: None

        def store(self, iteration, obs, **columns):
            stored[iteration] = obs, *columns.values()

        def sample(self, rng):
            return stored[rng.integers(1, len(stored) + 1)]

    def update(agent, average, rmsprop, args, *columns):
        updates.append(columns)
        return torch.zeros(len(acer.METRICS))

    for name, x in (("rollout", rollout), ("Segments", Replay), ("update", update)):
        monkeypatch.setattr(acer, name, x)
    monkeypatch.setattr(acer, "graphed", lambda function, *_: function)
    acer.train(args, SimpleNamespace(num_actions=A, halves=()), run := FakeRun())
    for batch, columns in zip(batches, stored.values(), strict=True):
        obs = torch.cat([batch.obs, batch.next_obs[None]])
        expected = obs, batch.actions, batch.rewards, batch.dones, batch.logits.exp()
        assert all(map(torch.equal, columns, expected)) and len(columns) == len(expected)
    expected = []
    for iteration in range(1, 10):
        rng = ppo_atari.generator(args.seed, iteration)
        replayed = rng.poisson(2.0) if iteration >= 3 else 0
        expected.append(1 + replayed)
    assert [row["updates"] for row in run.rows] == expected and len(updates) == sum(expected)
    assert max(expected) > 2 and expected[:2] == [1, 1]


# Runs

ARGV = {
    a2c_atari: "--num-steps 8 --total-timesteps 640 --checkpoint-every 9",
    acer: "--num-steps 4 --buffer-size 24 --replay-start 12 --replay-ratio 1 "
    "--total-timesteps 160 --checkpoint-every 6",
}
SMALL = "--num-envs 2 --network a3c --no-cuda --num-threads 1 --run-dir run".split()


@pytest.mark.parametrize("rival", RIVALS)
def test_killed_run_ends_with_the_same_bytes(rival, tmp_path):
    """Stopped, then killed between two checkpoints, by when old segments would have gone."""
    argv = [*ARGV[rival].split(), *SMALL]
    whole, cwd = tmp_path / "whole", tmp_path / "cwd"
    program = Program(rival, whole, *argv)
    assert program.wait() == 0 and program.err == "", program.err
    names = {f"{rival.__name__}.py", "actor_critic.py", "ppo_atari.py", "args.json", "metrics.csv"}
    names |= {"segments.py"} if rival is acer else set()
    names |= {"episodes.csv", "checkpoint.pt", "agent.pt", "summary.json"}
    assert {path.name for path in (whole / "run").iterdir()} == names
    metrics = cwd / "run/metrics.csv"
    for iterations, signum, code in ((2, signal.SIGTERM, 143), (10, signal.SIGKILL, -9)):
        program = Program(rival, cwd, *argv)
        program.until(lambda n=iterations: metrics.exists() and len(rows(metrics)) >= n)
        assert program.wait(signum) == code, program.err
        assert iterations <= len(rows(metrics))
    program = Program(rival, cwd, *argv)
    assert program.wait() == 0, program.err
    assert "goes on after iteration" in program.out and "warning" not in program.out
    assert results(cwd / "run") == results(whole / "run")
    program = Program(cwd / "run" / f"{rival.__name__}.py", cwd, *argv)  # its own copy
    assert program.wait() == 0 and "already finished" in program.out, program.err
    if rival is a2c_atari:
        found = [float(row["learning_rate"]) for row in rows(metrics)]
        np.testing.assert_allclose(found, 7e-4 * (1 - np.arange(len(found)) / len(found)))


@pytest.mark.parametrize(
    "rival, argv, words",
    [
        (a2c_atari, "--num-steps 0", "--num-steps 0 must be"),
        (a2c_atari, "--total-timesteps 70", "--total-timesteps 70 80"),
        (a2c_atari, "--clip-coef 0.1", "--clip-coef"),
        (acer, "--total-timesteps 300", "--total-timesteps 300 16 * 20"),
        (acer, "--buffer-size 19", "--buffer-size 19 --num-steps 20"),
        (acer, "--delta -1", "--delta -1 must be"),
        (acer, "--gae-lambda 1", "--gae-lambda"),
        (acer, "--buffer-size 1e10 --total-timesteps 1e12", "--buffer-size 10000000000 disk free"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(rival, argv, words, tmp_path):
    program = Program(rival, tmp_path / "cwd", *argv.split(), "--run-dir", "run")
    assert program.wait() == 2 and not any((tmp_path / "cwd").iterdir()), program.err
    assert program.err.count("\n") == 1 and all(word in program.err for word in words.split())


@pytest.mark.parametrize("rival", RIVALS)
def test_without_ppo_atari_it_says_so(rival, tmp_path):
    path = shutil.copy(rival.__file__, tmp_path)
    done = subprocess.run([sys.executable, "-I", path], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "needs ppo_atari.py" in done.stderr
