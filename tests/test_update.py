"""Whole iterations against an independent implementation, and the parts of an update."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import MUJOCO_SCRIPTS, FakeRun
from test_gae import eq11

O, A, T, N = 3, 2, 16, 3


class FakeEnvs:
    """Environments that play a random tape, whatever the actions, and keep what was played."""

    obs_size, action_size = O, A

    def __init__(self, dtype=np.float64):
        self.rng, self.played, self.dtype = np.random.default_rng(1), [], dtype
        self.own_settings = nullcontext
        self.obs = self.observe()

    def normal(self, std, *shape):
        return self.rng.normal(0.3 * std, std, shape).astype(self.dtype)

    def observe(self):
        """The last component hardly varies: what it is divided by has a floor."""
        return self.normal(2, N, O) * np.array([1, 1, 0.01], self.dtype)

    def step(self, actions):
        dones = (self.rng.random(N) < 0.2).astype(self.dtype)
        truncations = dones * (self.rng.random(N) < 0.5)
        rewards, returns = self.normal(2, N), self.normal(0.1, N)  # some are clipped to +-10
        results = rewards, returns, dones, truncations, self.observe()
        self.played.append((self.obs.copy(), actions.copy(), *results))
        self.obs[...] = self.observe()

    def pop_steps(self):
        _, _, *arrays, truncations, final_obs, _ = self.rollout(len(self.played) // T - 1)
        steps = dict(zip(("rewards", "discounted_returns", "dones"), map(torch.tensor, arrays)))
        cut = np.argwhere(truncations)
        return steps | dict(truncations=[(t, n, torch.tensor(final_obs[t, n])) for t, n in cut])

    def rollout(self, iteration):
        """obs, actions, rewards, returns, dones, truncations, final_obs [T, N, ...], next obs."""
        played = self.played[iteration * T : (iteration + 1) * T]
        next_obs = [*(step[0] for step in self.played), self.obs][(iteration + 1) * T]
        return *(np.array(x) for x in zip(*played)), next_obs


class Reference:
    """PPO once more, from the formulas: float64, tables instead of running sums, no nn.Module."""

    def __init__(self, script, args, weights):
        self.kind, self.args, self.t = script.__name__, args, 0
        self.w = {k: x.clone() for k, x in weights.items() if "moments" not in k}
        for x in self.w.values():
            x.requires_grad_()
        self.first = {k: torch.zeros_like(x) for k, x in self.w.items()}
        self.second = {k: torch.zeros_like(x) for k, x in self.w.items()}
        self.all_obs, self.all_returns = np.zeros((0, O)), np.zeros(0)
        self.iteration, self.norms = 0, []
        self.beta = getattr(args, "kl_coef", None)

    def network(self, name, obs):
        x = torch.as_tensor(obs)
        if len(self.all_obs):
            mean, std = self.all_obs.mean(0), np.maximum(self.all_obs.std(0), 0.1)
            x = (x - torch.tensor(mean)) / torch.tensor(std)
        if self.args.norm_obs:
            x = x.clip(-5, 5)
        for i in (0, 2):
            x = torch.tanh(x @ self.w[f"{name}.{i}.weight"].T + self.w[f"{name}.{i}.bias"])
        return x @ self.w[f"{name}.4.weight"].T + self.w[f"{name}.4.bias"]

    def value(self, obs):
        return self.network("critic", obs)[..., 0]

    def logprob(self, mean, actions):
        log_std = self.w["log_std"]
        z = (actions - mean) / log_std.exp()
        return (-z * z / 2 - log_std - math.log(2 * math.pi) / 2).sum(-1)

    def kl(self, old_mean, old_log_std, mean):
        log_std = self.w["log_std"]
        square = (2 * old_log_std).exp() + (old_mean - mean) ** 2
        return (log_std - old_log_std + square / (2 * (2 * log_std).exp()) - 0.5).sum(-1)

    def bounds(self, epsilon):
        if getattr(self.args, "clip_log_ratio", False):
            return math.exp(-epsilon), math.exp(epsilon)
        return 1 - epsilon, 1 + epsilon

    def surrogate(self, ratio, advantage, kl, epsilon):
        if self.kind == "ppo_noclip":
            return ratio.log() * advantage if self.args.surrogate == "pg" else ratio * advantage
        if self.kind == "ppo_klpen":
            return ratio * advantage - self.beta * kl
        low, high = self.bounds(epsilon)
        clipped = (advantage > 0) & (ratio > high) | (advantage < 0) & (ratio < low)
        return torch.where(clipped, ratio.detach().clip(low, high), ratio) * advantage

    def adam(self, objective, step_size):
        gradients = dict(zip(self.w, torch.autograd.grad(objective, self.w.values())))
        norm = math.sqrt(sum((g * g).sum().item() for g in gradients.values()))
        limit, self.t = self.args.max_grad_norm, self.t + 1
        self.norms.append(norm)
        for k, g in gradients.items():
            g = g * limit / (norm + 1e-6) if limit and norm > limit else g
            self.first[k] = 0.9 * self.first[k] + 0.1 * g
            self.second[k] = 0.999 * self.second[k] + 0.001 * g * g
            m, v = self.first[k] / (1 - 0.9**self.t), self.second[k] / (1 - 0.999**self.t)
            self.w[k].data += step_size * m / (v.sqrt() + self.args.adam_eps)

    def iterate(self, alpha, rollout):
        """One iteration. Returns the actions that it took and the row of metrics that it made."""
        args = self.args
        obs, actions, rewards, returns, dones, truncations, final_obs, next_obs = rollout
        step_size = args.learning_rate * (alpha if args.anneal_lr else 1)
        epsilon = 0.2 * (alpha if getattr(args, "anneal_clip_coef", False) else 1)

        self.iteration += 1
        rng = np.random.default_rng((args.seed, self.iteration))
        noise = torch.tensor(rng.standard_normal((T, N, A), dtype=np.float32))
        with torch.no_grad():
            old_mean, old_log_std = self.network("actor", obs), self.w["log_std"].detach().clone()
            taken = old_mean + old_log_std.exp() * noise
            old_logprob, values = self.logprob(old_mean, torch.tensor(actions)), self.value(obs)
            if args.norm_reward:
                self.all_returns = np.append(self.all_returns, returns)
                rewards = np.clip(rewards / self.all_returns.std(), -10, 10)
            if args.bootstrap_truncated:
                rewards = rewards + args.gamma * truncations * self.value(final_obs).numpy()
            last_value = self.value(next_obs).numpy()
        advantages = eq11(rewards, values.numpy(), dones, last_value, args.gamma, args.gae_lambda)
        targets = torch.tensor(advantages) + values
        if args.norm_adv == "batch":
            advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)

        metrics = []
        for _ in range(args.update_epochs):
            order, epoch = rng.permutation(T * N), []
            for start in range(0, T * N, args.minibatch_size):
                t, n = np.divmod(order[start : start + args.minibatch_size], N)
                adv = torch.tensor(advantages[t, n])
                if args.norm_adv == "minibatch":
                    adv = (adv - adv.mean()) / (adv.std() + 1e-8)
                mean, value = self.network("actor", obs[t, n]), self.value(obs[t, n])
                target, old_value = targets[t, n], values[t, n]
                log_ratio = self.logprob(mean, torch.tensor(actions[t, n])) - old_logprob[t, n]
                ratio = log_ratio.exp()
                kl = self.kl(old_mean[t, n], old_log_std, mean)
                policy = self.surrogate(ratio, adv, kl, epsilon).mean()
                error = (value - target) ** 2
                if args.clip_vloss:
                    near = value.clip(old_value - args.clip_vloss, old_value + args.clip_vloss)
                    error = torch.maximum(error, (near - target) ** 2)
                entropy = self.w["log_std"].sum() + A / 2 * math.log(2 * math.pi * math.e)
                objective = policy - args.vf_coef * error.mean() + args.ent_coef * entropy
                if self.kind != "ppo_klpen":
                    kl = ratio - 1 - log_ratio
                low, high = self.bounds(epsilon)
                clipped = ((ratio > high) | (ratio < low)).double()
                row = policy, error.mean(), entropy, kl.mean(), clipped.mean()
                epoch.append([x.item() for x in row])
                self.adam(objective, step_size)
            metrics += epoch
            if args.target_kl and np.mean(epoch, 0)[3] > args.target_kl:
                break
        with torch.no_grad():
            final_kl = self.kl(old_mean, old_log_std, self.network("actor", obs)).mean().item()
        if args.norm_obs:
            self.all_obs = np.append(self.all_obs, obs.reshape(-1, O), 0)
        names = "surrogate", "value_loss", "entropy", "kl", "clip_fraction"
        row = dict(zip(names, np.mean(metrics, 0)), final_kl=final_kl, learning_rate=step_size)
        row["explained_variance"] = 1 - (targets - values).var().item() / targets.var().item()
        if self.beta is not None:
            row["kl_coef"] = self.beta
            if args.adapt_kl_coef:
                low, high = args.kl_target / args.kl_tolerance, args.kl_target * args.kl_tolerance
                self.beta *= args.kl_factor if final_kl > high else 1
                self.beta /= args.kl_factor if final_kl < low else 1
        return taken, row, len(metrics)


FLAGS = {
    "defaults": {},
    "ppo2": dict(
        norm_adv="minibatch", clip_vloss=0.1, max_grad_norm=8.0, ent_coef=0.01, vf_coef=0.5,
        gamma=0.9, gae_lambda=0.8,
    ),
    "strict": dict(
        norm_adv="none", norm_obs=False, norm_reward=False, bootstrap_truncated=False,
        anneal_lr=False, target_kl=0.02,
    ),
}  # fmt: skip
OWN_FLAGS = {
    "ppo_continuous": dict(clip_log_ratio=True, anneal_clip_coef=True),
    "ppo_noclip": dict(surrogate="pg"),
    "ppo_klpen": dict(adapt_kl_coef=False, kl_coef=3.0),
}


def own_flags(script, flags):
    return FLAGS[flags] | (OWN_FLAGS[script.__name__] if flags == "strict" else {})


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_three_iterations_equal_an_independent_implementation(script, flags, monkeypatch):
    """Actions, metrics and weights, to 1e-9 in float64: everything between two env.step."""
    args = dict(num_envs=N, num_steps=T, minibatch_size=12, total_timesteps=3 * T * N)
    args |= dict(learning_rate=3e-3, update_epochs=4, seed=5, init_log_std=-0.3, compile=False)
    args = script.Args(**args | own_flags(script, flags))
    function, calls, run = script.update, [], FakeRun()
    monkeypatch.setattr(script, "update", lambda *x: calls.append(0) or function(*x))
    torch.set_default_dtype(torch.float64)
    try:
        envs = FakeEnvs()
        agent = script.train(args, envs, run)
    finally:
        torch.set_default_dtype(torch.float32)

    reference, updates = Reference(script, args, run.weights), 0
    for i, row in enumerate(run.rows):
        rollout = envs.rollout(i)
        actions, expected, n = reference.iterate(1 - i / 3, rollout)
        updates += n
        np.testing.assert_allclose(rollout[1], actions, rtol=1e-9)
        if args.__dict__.get("surrogate") == "pg":  # log ratio A in place of log pi A
            del row["surrogate"], expected["surrogate"]
        assert row == pytest.approx(expected, rel=1e-7)
    assert len(calls) == updates and (updates < 3 * 16) == (args.target_kl is not None)
    if args.max_grad_norm:
        assert min(reference.norms) < args.max_grad_norm < max(reference.norms)
    for name, x in reference.w.items():
        np.testing.assert_allclose(agent.state_dict()[name], x.detach(), rtol=1e-9, atol=1e-12)
        assert (x - run.weights[name]).abs().max() > 1e-3


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_first_minibatch_of_every_iteration_has_ratio_1(script, monkeypatch):
    """No weight and no statistic moves between an action and the first use of its ratio."""
    kl, clip_fraction, function = [], [], script.update

    def recording(*x):
        metrics = function(*x)
        kl.append(abs(metrics[3].item()))
        clip_fraction.append(metrics[4].item())
        return metrics

    monkeypatch.setattr(script, "update", recording)
    args = dict(num_envs=N, num_steps=T, minibatch_size=12, total_timesteps=4 * T * N, seed=2)
    args |= dict(learning_rate=3e-3, anneal_lr=False, compile=False)
    script.train(script.Args(**args), FakeEnvs("f"), FakeRun())
    assert len(kl) == 160
    assert max(kl[::40]) < 1e-6 and max(clip_fraction[::40]) == 0
    assert min(kl[39::40]) > 1e-4 and min(clip_fraction[39::40]) > 0


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_adam_equals_torch(script):
    """Uphill, with step sizes that change."""
    torch.manual_seed(1)
    ours = [torch.randn(4, 3, requires_grad=True), torch.randn(5, requires_grad=True)]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    adam = script.Adam(ours, eps=1e-5)
    optimizer = torch.optim.Adam(theirs, eps=1e-5, maximize=True)
    for i in range(1, 11):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p) * i / 5
            q.grad = p.grad.clone()
        adam.step(torch.tensor(0.1 / i))
        optimizer.param_groups[0]["lr"] = 0.1 / i
        optimizer.step()
        for p, q in zip(ours, theirs):
            torch.testing.assert_close(p, q, atol=1e-5, rtol=0)


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_parameters_that_nothing_uses_stay(script):
    """As those of a layer that a changed copy does not call."""
    p, unused = torch.randn(3, requires_grad=True), torch.randn(5, requires_grad=True)
    before, p.grad = [p.detach().clone(), unused.detach().clone()], torch.ones(3)
    script.Adam([unused, p], eps=1e-5).step(torch.tensor(0.1))
    torch.testing.assert_close(p.detach(), before[0] + 0.1)
    assert torch.equal(unused, before[1])


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
@pytest.mark.parametrize("init", ["orthogonal", "normc"])
def test_initial_weights(script, init):
    """Orthogonal or with unit norm into each unit; a policy next to N(0, 1), biases of 0."""
    agent = script.Agent(O, A, script.Args(init=init, init_log_std=-0.5))
    for network, last in ((agent.actor, 0.01), (agent.critic, 1)):
        for layer, gain in zip(network[::2], (1, 1, last)):
            if init == "normc":
                size = layer.weight.norm(dim=1)
            else:
                size = torch.linalg.svdvals(layer.weight) / (1 if layer is network[-1] else 2**0.5)
            torch.testing.assert_close(size, torch.full_like(size, gain))
            assert (layer.bias == 0).all()
    assert (agent.log_std == -0.5).all()


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
@pytest.mark.parametrize("n", [1, 7])
def test_actions_are_samples_of_pi(script, n):
    """What acts is the very pi whose ratios are taken, filter and clip included, replayed too."""
    torch.manual_seed(1)
    agent = script.Agent(O, A, script.Args(init="torch"))
    agent.obs_moments.update(torch.randn(100, O) * 3 + 2)
    agent.log_std.data += torch.tensor([0.3, -0.3])
    act, ends = script.Replay(True, agent.act, script.zeros(n, O), script.zeros(n, A)), set()
    for _ in range(3):
        obs, noise = torch.randn(n, O) * 20, torch.randn(n, A)
        moments = agent.obs_moments
        by_hand = ((obs - moments.mean) / moments.std).numpy().clip(-5, 5)
        ends |= {-5.0, 5.0} & set(by_hand.ravel().tolist())
        torch.testing.assert_close(agent.features(obs), torch.from_numpy(by_hand))
        pi, _ = agent(obs)
        expected = pi.mean + pi.stddev * noise
        torch.testing.assert_close(agent.act(obs, noise), expected)
        actions = torch.from_numpy(act(obs.numpy(), noise.numpy()))
        torch.testing.assert_close(actions, expected, atol=1e-6, rtol=1e-5)
        agent.log_std.data += 0.1  # as an update does, in place
        agent.actor[0].weight.data *= 1.1
    assert ends == {-5, 5} or n == 1


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
@pytest.mark.parametrize("size", [(), (3,)])
def test_moments_equal_numpy_over_all_batches(script, size):
    """Mean and variance of all that was ever taken in; the std does not fall below its floor."""
    rng, moments = np.random.default_rng(1), script.RunningMeanStd(*size, min_std=1.0)
    batches = [rng.normal(i, 1 + i, (5 + i, 2, *size)).astype(np.float32) for i in range(4)]
    for batch in batches:
        moments.update(torch.from_numpy(batch))
    seen = np.concatenate(batches).reshape(-1, *size)
    np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.var, seen.var(0), rtol=1e-5)
    np.testing.assert_allclose(moments.std, seen.std(0), rtol=1e-5)
    moments.update(torch.zeros(100_000, *size))
    assert (moments.std == 1).all()
