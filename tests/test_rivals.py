"""The rivals of benchmark/rivals/: their parts by independent calculations, and the contract."""

import json
import math
import shutil
import signal
import subprocess
import sys
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import test_update
import torch
from conftest import ROOT, FakeRun, Program, results, rows
from torch import nn
from torch.distributions import Normal, kl_divergence

import ppo_continuous as ppo

sys.path.append(str(ROOT / "benchmark/rivals"))
import a2c
import actor_critic
import cem
import trpo
import vpg

torch.distributions.Distribution.set_default_validate_args(False)  # as Replay does
RIVALS = [trpo, vpg, a2c, cem]
O, A, T, N = 3, 2, 60, 2
FAST = {  # so that a few thousand steps show something
    trpo: "--num-steps 512",
    vpg: "--num-steps 512",
    a2c: "--learning-rate 7e-3",
    cem: "--population 20",
}
CASES = [pytest.param(rival, [], id=rival.__name__) for rival in RIVALS]
TRUST_REGION = ["--trust-region", "--delta", "0.5", "--learning-rate", "1.4e-2"]
CASES += [pytest.param(a2c, TRUST_REGION, id="a2c-trust-region")]


AUTHORS = {  # where the authors of a rival name settings
    trpo: dict(max_kl=0.01, cg_iterations=10, damping=0.1, gamma=0.995, gae_lambda=0.97),
    vpg: dict(learning_rate=1e-3, gamma=0.99, gae_lambda=0.97),
    a2c: dict(num_steps=5, gae_lambda=1.0, norm_adv="none", vf_coef=0.25, max_grad_norm=0.5),
}


@pytest.mark.parametrize("rival", AUTHORS, ids=lambda rival: rival.__name__)
def test_defaults_are_the_authors(rival):
    args = vars(rival.Args())
    assert {name: args[name] for name in AUTHORS[rival]} == AUTHORS[rival]


def agent_of(hidden=4, **flags):
    """A float64 agent with a small actor whose outputs and log std are no round numbers."""
    torch.manual_seed(1)
    agent = ppo.Agent(O, A, ppo.Args(**flags))
    agent.actor = nn.Sequential(nn.Linear(O, hidden), nn.Tanh(), nn.Linear(hidden, A))
    agent.log_std.data += torch.tensor([0.3, -0.5])
    return agent.double()


def batch_of(agent):
    """x [T, N, O], actions [T, N, A] of the agent, advantages [T, N]."""
    x = torch.randn(T, N, O, dtype=torch.float64)
    with torch.no_grad():
        return x, agent.policy(x).sample(), torch.randn(T, N, dtype=torch.float64)


def policy_parameters(agent):
    return [*agent.actor.parameters(), agent.log_std]


def jacobian(agent, x):
    """Of mean and log std [2A] at each x [B, O] with respect to the policy's parameters [P]."""
    parameters, rows = policy_parameters(agent), []
    for obs in x:
        phi = torch.cat([agent.actor(obs), agent.log_std])
        for y in phi:
            grads = torch.autograd.grad(y, parameters, retain_graph=True, allow_unused=True)
            zero = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads)]
            rows.append(torch.cat([g.reshape(-1) for g in zero]))
    return torch.stack(rows).view(len(x), 2 * A, -1)


def fisher_by_definition(agent, x):
    """E[score score^T] over x [B, O] and the policy's actions, by Gauss-Hermite quadrature.

    The score is quadratic in the action's noise, so three nodes a dimension are exact.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    total, J = 0, jacobian(agent, x)
    for i in range(3):
        for j in range(3):
            noise = torch.tensor([nodes[i], nodes[j]])
            std = agent.log_std.detach().exp()
            score = torch.einsum("bsp,s->bp", J, torch.cat([noise / std, noise**2 - 1]))
            weight = weights[i] * weights[j] / (2 * math.pi)
            total = total + weight * torch.einsum("bp,bq->pq", score, score) / len(x)
    return total


def gaussian_fisher(agent, x):
    """The same in closed form: J^T diag(1 / std^2, 2) J."""
    J, std = jacobian(agent, x), agent.log_std.detach().exp()
    metric = torch.cat([std**-2, torch.full((A,), 2.0)]).double()
    return torch.einsum("bsp,s,bsq->pq", J, metric, J) / len(x)


@pytest.mark.parametrize("explicit", [fisher_by_definition, gaussian_fisher])
def test_fisher_vector_product(explicit):
    agent = agent_of()
    x, _, _ = batch_of(agent)
    with torch.no_grad():
        pi_old = agent.policy(x)
    kl = kl_divergence(pi_old, agent.policy(x)).mean()
    product = trpo.fisher(kl, policy_parameters(agent), damping=0.1)
    expected = explicit(agent, x.flatten(0, 1))
    eye = torch.eye(len(expected), dtype=torch.float64)
    found = torch.stack([product(v) for v in eye])
    torch.testing.assert_close(found, expected + 0.1 * eye)


def test_conjugate_gradients_solve():
    torch.manual_seed(1)
    B = torch.randn(8, 8, dtype=torch.float64)
    F, g = B @ B.T + torch.eye(8), torch.randn(8, dtype=torch.float64)
    x = trpo.conjugate_gradients(lambda v: F @ v, g, 8)
    torch.testing.assert_close(x, torch.linalg.solve(F, g), rtol=1e-4, atol=1e-5)
    errors = [trpo.conjugate_gradients(lambda v: F @ v, g, n) - x for n in range(8)]
    norms = [(e @ F @ e).item() for e in errors]
    assert norms == sorted(norms, reverse=True)
    assert not trpo.conjugate_gradients(None, 0 * g, 8).any()  # no product is asked for


@pytest.mark.parametrize(
    "attempts, fraction",
    [
        ([(0.1, 0.01)], 1),
        ([(0.1, 0.015)], 1),  # 1.5 max_kl may be reached
        ([(0.1, 0.0151), (0.1, 0.005)], 1 / 2),
        ([(0.0, 0.01), (-0.1, 0.01), (1e-9, 0.001)], 1 / 4),
        ([(math.nan, 0.01), (0.1, math.nan), (math.inf, 0.01), (0.1, math.inf), (1, 0)], 1 / 16),
        ([(-1, 0.01)] * 9 + [(1, 0.01)], 1 / 512),
        ([(-1, 0.01)] * 10, 0),
    ],
)
def test_line_search(attempts, fraction):
    asked, script = [], iter([*attempts, (0.0, 0.0)])

    def attempt(fraction):
        asked.append(fraction)
        return next(script)

    found = trpo.line_search(attempt, max_kl=0.01)
    assert found == (fraction, *(attempts[-1] if fraction else (0.0, 0.0)))
    tried = [0.5**i for i in range(len(attempts))]
    assert asked == (tried if fraction else [*tried, 0.0])  # which puts the old policy back


def test_trust_region_step_is_the_natural_step():
    agent = agent_of()
    x, actions, advantages = batch_of(agent)
    parameters, places = policy_parameters(agent), [p.data_ptr() for p in agent.parameters()]
    before = torch.cat([p.detach().reshape(-1) for p in parameters])
    mean, std = agent.actor(x).detach(), agent.log_std.detach().exp()
    J, z = jacobian(agent, x.flatten(0, 1)), ((actions - mean) / std).flatten(0, 1)
    score = torch.einsum("bsp,bs->bp", J, torch.cat([z / std, z**2 - 1], -1))
    g = (score * advantages.flatten()[:, None]).mean(0)
    F = gaussian_fisher(agent, x[::5].flatten(0, 1)) + 0.1 * torch.eye(len(g))
    direction = torch.linalg.solve(F, g)
    step = direction * math.sqrt(2 * 1e-4 / (direction @ F @ direction))

    args = SimpleNamespace(max_kl=1e-4, cg_iterations=100, damping=0.1)
    fraction, gain, kl = trpo.trust_region_step(agent, args, x, actions, advantages)
    after = torch.cat([p.detach().reshape(-1) for p in parameters])
    assert fraction == 1 and [p.data_ptr() for p in agent.parameters()] == places
    torch.testing.assert_close(after - before, step, rtol=1e-3, atol=1e-6)
    new_mean, new_std = agent.actor(x).detach(), agent.log_std.detach().exp()
    kls = (new_std / std).log() + (std**2 + (mean - new_mean) ** 2) / (2 * new_std**2) - 0.5
    assert kl == pytest.approx(kls.sum(-1).mean().item(), rel=1e-6)  # from the old to the new
    old, new = Normal(mean, std).log_prob(actions), Normal(new_mean, new_std).log_prob(actions)
    gains = ((new - old).sum(-1).exp() - 1) * advantages
    assert gain == pytest.approx(gains.mean().item(), rel=1e-6) and gain > 0


def test_trust_region_step_that_is_rejected_changes_nothing():
    agent = agent_of()
    x, actions, _ = batch_of(agent)
    before = {k: p.clone() for k, p in agent.state_dict().items()}
    args = SimpleNamespace(max_kl=0.01, cg_iterations=10, damping=0.1)
    found = trpo.trust_region_step(agent, args, x, actions, torch.zeros(T, N).double())
    assert found == (0, 0, pytest.approx(0, abs=1e-12))
    assert all(torch.equal(before[k], p) for k, p in agent.state_dict().items())


def test_trust_region_step_is_shortened_to_its_bound():
    """A step as long as max_kl = 5 allows to second order goes too far; half of it does not."""
    agent = agent_of()
    x, actions, advantages = batch_of(agent)
    args = SimpleNamespace(max_kl=5.0, cg_iterations=100, damping=1e-3)
    fraction, gain, kl = trpo.trust_region_step(agent, args, x, actions, advantages)
    assert 0 < fraction < 1 and gain > 0 and kl <= 1.5 * args.max_kl
    before = agent_of()
    assert kl == pytest.approx(kl_divergence(before.policy(x), agent.policy(x)).mean().item())


def test_step_size_follows_the_kl():
    step_size, found = 1e-3, []
    for kl in (0.021, 0.02, 0.01, 0.005, 0.0049, 0.0, 1.0, math.nan):
        step_size = vpg.adapt(step_size, kl, desired_kl=0.01)
        found.append(step_size / 1e-3)
    assert found == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2 / 3, 1, 1.5, 1, 1])
    assert vpg.adapt(0.9, 0.0, 0.01) == 1 and vpg.adapt(1.2e-8, 1.0, 0.01) == 1e-8


def test_vpg_takes_one_step_a_batch():
    """Adam's first step has the step size's length in every parameter, up L^PG."""
    agent = agent_of()
    x, actions, advantages = batch_of(agent)
    adam = ppo.Adam(policy_parameters(agent), eps=1e-12)
    adam.register_buffer("step_size", torch.tensor(1e-3))
    z = (actions - agent.actor(x)) / agent.log_std.exp()
    logprob = (-z * z / 2 - agent.log_std - math.log(2 * math.pi) / 2).sum(-1)
    gradient = torch.autograd.grad((logprob * advantages).mean(), policy_parameters(agent))
    before = [p.detach().clone() for p in policy_parameters(agent)]
    objective = vpg.policy_step(agent, adam, x, actions, advantages)
    assert objective == pytest.approx((logprob * advantages).mean().item())
    for old, p, g in zip(before, policy_parameters(agent), gradient):
        torch.testing.assert_close(p.detach() - old, 1e-3 * g.sign(), rtol=1e-3, atol=1e-9)


def test_value_step_goes_down_the_mean_square_error():
    """As above, down the error of V [M] and its targets [M]."""
    agent = agent_of()
    x, targets = torch.randn(64, O, dtype=torch.float64), torch.randn(64, dtype=torch.float64)
    parameters = list(agent.critic.parameters())
    before = [p.detach().clone() for p in parameters]
    error = (agent.critic(x)[:, 0] - targets).square().mean()
    gradient = torch.autograd.grad(error, parameters)
    adam = ppo.Adam(parameters, eps=1e-12)
    found = vpg.value_step(agent.critic, adam, torch.tensor(1e-3), x, targets)
    assert found.item() == pytest.approx(error.item())
    for old, p, g in zip(before, parameters, gradient):
        torch.testing.assert_close(p.detach() - old, -1e-3 * g.sign(), rtol=1e-3, atol=1e-9)


def test_quality_is_the_share_of_the_variance_that_the_values_explain():
    agent = agent_of()
    x, targets = torch.randn(T, N, O, dtype=torch.float64), torch.arange(2.0 * T).view(T, N)
    found = [vpg.quality(agent, x, values, targets) for values in (targets + 7, 0 * targets)]
    assert [row["explained_variance"] for row in found] == [1, 0]
    entropy = (agent.log_std + math.log(2 * math.pi * math.e) / 2).sum().item()
    assert found[0]["entropy"] == pytest.approx(entropy)


def test_values_are_fitted_to_their_targets():
    """Every pass sees every row once; the mean error is that of all minibatches."""
    x, targets, seen = torch.arange(12.0).view(6, 2, 1), torch.arange(12.0).view(6, 2), []

    def step(learning_rate, x, targets):
        assert learning_rate == 0.5 and np.array_equal(x[:, 0], targets) and len(x) == 4
        seen.extend(targets.tolist())
        return np.float32(len(seen))

    args = SimpleNamespace(value_epochs=2, minibatch_size=4, value_learning_rate=0.5)
    loss = vpg.fit_values(step, args, np.random.default_rng(1), x, targets)
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12)) and seen[:12] != seen[12:]
    assert loss == pytest.approx(np.mean([4, 8, 12, 16, 20, 24]))


def test_rmsprop_is_tensorflows():
    rng = np.random.default_rng(1)
    p = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    rmsprop, w, square = actor_critic.RMSProp([p]), p.detach().numpy().astype(float), np.ones(3)
    for _ in range(5):
        g = rng.normal(0, 2, 3)
        p.grad = torch.tensor(g, dtype=torch.float32)
        rmsprop.step(torch.tensor(0.1))
        square = 0.99 * square + 0.01 * g**2
        w = w + 0.1 * g / np.sqrt(square + 1e-5)
    np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-5)


def test_rmsprop_has_eps_under_the_root():
    """Seen where the squares that began at 1 are small, as late in a run."""
    p = nn.Parameter(torch.zeros(1))
    rmsprop, p.grad = actor_critic.RMSProp([p]), torch.full((1,), 1e-3)
    rmsprop.squares[0].zero_()
    rmsprop.step(torch.tensor(0.1))
    assert p.item() == pytest.approx(1e-4 / math.sqrt(1e-8 + 1e-5), rel=1e-4)


def closest(g, k, delta):
    """argmin |z - g| with k . z <= delta, by bisection of the multiplier of Lagrange's function."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        z = g - middle * k  # the minimum of |z - g|^2 / 2 + middle (k . z - delta)
        low, high = (middle, high) if k @ z > delta else (low, middle)
    return g - high * k


def test_projection_is_the_optimum():
    torch.manual_seed(1)
    g, k = torch.randn(2, 50, 4, dtype=torch.float64)
    for delta in (0.0, 0.5, 5.0):
        z = actor_critic.project(g, k, delta)
        inside = (k * g).sum(-1) <= delta
        assert inside.any() and (delta == 5 or not inside.all())
        assert torch.equal(z[inside], g[inside])
        for z_i, g_i, k_i in zip(z, g, k):
            np.testing.assert_allclose(z_i, closest(g_i, k_i, delta), atol=1e-8)
    assert torch.equal(actor_critic.project(g, 0 * k, 1.0), g)
    assert torch.equal(actor_critic.project(g, 0 * k, 0.0), g)


@pytest.mark.parametrize("delta", [None, 1e9, 0.05, 0.0])
def test_trust_region_changes_the_gradient_of_each_sample(delta):
    """That of the policy's parameters is the mean over samples of J^T z, in closed form."""
    agent, average = agent_of(hidden=4), agent_of(hidden=4)
    with torch.no_grad():
        for p in policy_parameters(average):
            p.add_(0.3 * torch.randn_like(p))
    average.requires_grad_(False)
    x, actions, advantages = (y.flatten(0, 1) for y in batch_of(agent))
    mean, std = agent.actor(x).detach(), agent.log_std.detach().exp()
    far = mean - average.actor(x).detach()
    far_std = average.log_std.detach().exp()
    z = (actions - mean) / std
    g = torch.cat([z / std, z**2 - 1], -1) * advantages[:, None]
    g += torch.cat([torch.zeros(A), torch.full((A,), 0.1)])  # of 0.1 times the entropy
    k = torch.cat([far / std**2, 1 - (far_std**2 + far**2) / std**2], -1)
    kept = torch.stack([closest(*row, 1e9 if delta is None else delta) for row in zip(g, k)])
    expected = torch.einsum("bsp,bs->p", jacobian(agent, x), kept) / len(x)

    flags = dict(ent_coef=0.1, max_grad_norm=1e9, average_decay=0.9)
    flags |= dict(trust_region=delta is not None, delta=delta, vf_coef=0.5)
    values = torch.randn(len(x)).double()
    expected_value = torch.autograd.grad(
        -0.5 * (agent.critic(x)[:, 0] - values).square().mean(), [*agent.critic.parameters()]
    )
    before, found, rate = [p.clone() for p in average.parameters()], [], torch.tensor(0.0)
    rmsprop = SimpleNamespace(step=lambda _: found.extend(p.grad for p in policy_parameters(agent)))
    metrics = a2c.update(
        agent, average, rmsprop, SimpleNamespace(**flags), rate, x, actions, advantages, values
    )
    torch.testing.assert_close(trpo.flat(found), expected, rtol=1e-5, atol=1e-8)
    for p, g_p in zip(agent.critic.parameters(), expected_value):
        torch.testing.assert_close(p.grad, g_p)
    share = ((kept - g).abs() > 1e-9).any(-1).double().mean()
    assert metrics[3].item() == pytest.approx(share.item())
    assert (share > 0) == (delta in (0.05, 0.0))
    for old, a, p in zip(before, average.parameters(), agent.parameters()):
        torch.testing.assert_close(a, old if delta is None else 0.9 * old + 0.1 * p.detach())


def test_cem_finds_the_top_of_a_quadratic():
    rng, top = np.random.default_rng(1), np.array([3.0, -2.0, 0.5])
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(30):
        population = rng.normal(mean, np.sqrt(var + 0.1**2), (50, 3))
        scores = -np.square(population - top).sum(1)
        mean, var = cem.refit(population, scores, 0.2)
        best = sorted(range(50), key=lambda i: scores[i])[-10:]
        np.testing.assert_allclose(mean, np.mean([population[i] for i in best], 0))
        np.testing.assert_allclose(var, np.var([population[i] for i in best], 0))
    np.testing.assert_allclose(mean, top, atol=0.1)


def test_noise_of_cem_decreases_over_half_the_run():
    shares = [0, 0.125, 0.25, 0.375, 0.5, 0.75, 1]
    variances = [cem.noise_std(0.2, done) ** 2 for done in shares]
    np.testing.assert_allclose(variances, [0.04, 0.03, 0.02, 0.01, 0, 0, 0], atol=1e-12)


def test_a2c_clips_the_norm_of_the_gradient():
    agent, norms = agent_of(), []
    columns = [y.flatten(0, 1) for y in batch_of(agent)]
    rmsprop = SimpleNamespace(
        step=lambda _: norms.append(trpo.flat([p.grad for p in agent.parameters()]).norm().item())
    )
    for most in (1e9, 0.01):
        args = a2c.Args(max_grad_norm=most)
        a2c.update(agent, None, rmsprop, args, torch.tensor(0.0), *columns, columns[2] + 1)
    assert norms[0] > 0.1 and norms[1] == pytest.approx(0.01, rel=1e-3)


def trained(rival, *flags):
    """A FakeRun that holds what rival.train() did on a toy task, in this process."""
    argv = ["--env-id", "toys:Toy-v0", *FAST[rival].split(), *flags]
    args, run = ppo.parse([*map(str, argv)], rival.Args, rival.__file__, ""), FakeRun()
    run.check = lambda *_, **__: None
    envs = ppo.Envs(args, run.episode)
    rival.train(args, envs, run)
    envs.close()
    return run


@pytest.mark.parametrize("rival, flags", CASES)
def test_learns(rival, flags):
    steps = 40_000 if rival is a2c else 20_000
    run = trained(rival, *flags, "--total-timesteps", steps, "--seed", "3")
    scores = [score for _, score, _ in run.episodes]
    assert len(scores) > 0.09 * steps
    assert np.mean(scores[-100:]) > -10 / 3  # the most without a look at the observation
    if rival is a2c:  # decreases linearly
        rates = [row["learning_rate"] for row in run.rows]
        first = 1.4e-2 if flags else 7e-3
        expected = [first * (1 - i / len(rates)) for i in range(len(rates))]
        assert rates == pytest.approx(expected, rel=1e-5)
    if rival is vpg:
        for row, next_row in zip(run.rows, run.rows[1:]):
            low, high = row["final_kl"] < 0.005, row["final_kl"] > 0.02
            factor = 1.5 if low else 1 / 1.5 if high else 1
            assert next_row["learning_rate"] == pytest.approx(factor * row["learning_rate"])


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.__name__)
def test_the_filter_takes_in_every_observation_once(rival):
    run = trained(rival, "--total-timesteps", 2560)
    assert run.state["agent"].obs_moments.count == 2560


def test_cem_draws_with_its_noise_added():
    """The first generation's policies are as far apart as init_std and extra_std together say."""
    argv = "--total-timesteps", "4000", "--init-std", "0.3", "--extra-std", "0.4"
    assert trained(cem, *argv).rows[0]["mean_std"] == pytest.approx(0.5)


def test_cem_draws_around_its_elite_and_drops_a_generation_that_was_cut(monkeypatch):
    """25 policies of one step each, in generations of ten, of which the best two are kept."""
    played = []

    def play(args, envs, act, noise, seen):
        net = act.function.__self__.net
        played.append(trpo.flat(net.parameters()).detach().numpy().copy())
        seen.append(np.zeros(3, np.float32))
        envs.global_step += 1
        return score(played[-1])

    def score(weights):
        return -np.square(weights - 1).sum().item()

    monkeypatch.setattr(cem, "play", play)
    args = cem.Args(population=10, elite=0.2, total_timesteps=25, extra_std=0.3, compile=False)
    envs = SimpleNamespace(obs_size=3, action_size=2, obs=ppo.zeros(1, 3), global_step=0)
    policy = cem.train(args, envs, FakeRun())
    assert len(played) == 25
    best = [np.array(sorted(played[i : i + 10], key=score)[-2:]) for i in (0, 10)]
    for i, done in ((0, 10 / 25), (1, 20 / 25)):
        std = np.sqrt(best[i].var(0) + cem.noise_std(0.3, done) ** 2)
        draws = ppo.generator(args.seed, i + 2).standard_normal((10, len(std)), np.float32)
        expected = (best[i].mean(0) + std * draws)[: len(played[10 * i + 10 :][:10])]
        np.testing.assert_allclose(played[10 * i + 10 :][:10], expected, rtol=1e-4, atol=1e-5)
    mean = trpo.flat(policy.net.parameters()).detach()
    np.testing.assert_allclose(mean, best[1].mean(0), rtol=1e-5, atol=1e-6)


def test_a2c_steps_by_its_schedule_up_n_step_returns(monkeypatch):
    """What update() gets: the annealed step size; returns of all steps to the rollout's end."""
    calls, function, (steps, games) = [], a2c.update, (test_update.T, test_update.N)

    def spy(agent, average, rmsprop, args, rate, obs, actions, advantages, targets):
        with torch.no_grad():
            calls.append((rate.item(), agent(obs)[1], advantages.clone(), targets.clone()))
        return function(agent, average, rmsprop, args, rate, obs, actions, advantages, targets)

    monkeypatch.setattr(a2c, "update", spy)
    args = dict(num_envs=games, num_steps=steps, total_timesteps=3 * steps * games, gamma=0.9)
    args |= dict(norm_reward=False, bootstrap_truncated=False, compile=False)
    a2c.train(a2c.Args(**args), envs := test_update.FakeEnvs("f"), FakeRun())
    assert len(calls) == 3
    for i, (rate, values, advantages, targets) in enumerate(calls):
        assert rate == pytest.approx(2e-3 * (1 - i / 3))
        _, _, rewards, _, dones, *_ = envs.rollout(i)
        found = targets.view(steps, games).numpy()
        expected = rewards[:-1] + 0.9 * (1 - dones[:-1]) * found[1:]
        np.testing.assert_allclose(found[:-1], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(advantages, targets - values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rival", [vpg, trpo], ids=lambda rival: rival.__name__)
def test_final_kl_is_from_the_old_policy_to_the_new_one(rival, monkeypatch):
    calls, function = [], rival.estimate

    def spy(args, agent, *rest):
        calls.append((deepcopy(agent), rest[-1].obs))
        return function(args, agent, *rest)

    monkeypatch.setattr(rival, "estimate", spy)
    far = ("--learning-rate", "0.1") if rival is vpg else ("--max-kl", "0.1")
    run = trained(rival, *far, "--total-timesteps", "512", "--no-norm-obs", "--no-compile")
    ((agent, obs),) = calls
    with torch.no_grad():
        old, new = (Normal(a.actor(obs), a.log_std.exp()) for a in (agent, run.state["agent"]))
        expected, other = (kl_divergence(*x).sum(-1).mean() for x in ((old, new), (new, old)))
    assert run.rows[0]["final_kl"] == pytest.approx(expected.item(), rel=1e-3)
    assert other.item() != pytest.approx(expected.item(), rel=1e-2)


def test_cem_plays_no_more_than_10000_steps_of_a_policy():
    """Of a task that nothing ends, as ppo_continuous.play() does."""
    args = cem.Args(env_id="toys:Forever-v0", total_timesteps=25_000)
    envs, ends = ppo.Envs(args, lambda *episode: None), []
    for _ in range(3):
        assert len(envs.actions[0]) == 0  # each policy begins an episode
        cem.play(args, envs, lambda obs, noise: np.zeros((1, 1), np.float32), None, [])
        ends.append(envs.global_step)
    envs.close()
    assert ends == [10_000, 20_000, 25_000]


@pytest.mark.parametrize("rival, flags", CASES)
def test_replay_equals_plain_pytorch(rival, flags):
    a, b = (trained(rival, *flags, "--total-timesteps", "2560", f"--{how}")
            for how in ("compile", "no-compile"))  # fmt: skip
    assert len(a.rows) == len(b.rows) > 1
    for row, other in zip(a.rows, b.rows):
        assert row == pytest.approx(other, rel=2e-3, abs=2e-3)
    for name, x in a.state["agent"].state_dict().items():
        torch.testing.assert_close(x, b.state["agent"].state_dict()[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rival, flags", CASES)
def test_killed_run_goes_on_bit_for_bit(rival, flags, tmp_path):
    """Its directory holds all it needs; it runs from there, and --eval plays its policy."""
    argv = ["--env-id", "toys:Toy-v0", "--run-dir", "run", *FAST[rival].split(), *flags]
    argv += ["--checkpoint-every", "20" if rival is a2c else "1", "--total-timesteps", "5000"]
    whole = Program(rival, tmp_path / "whole", *argv)
    run = tmp_path / "killed/run"
    killed = Program(rival, tmp_path / "killed", *argv)
    assert killed.until((run / "checkpoint.pt").exists).wait(signal.SIGKILL) == -signal.SIGKILL
    again = Program(rival, tmp_path / "killed", *argv)
    assert again.wait() == 0 and "goes on after iteration" in again.out, again.err
    assert whole.wait() == 0, whole.err
    assert results(run) == results(tmp_path / "whole/run")

    sources = ["ppo_continuous.py", f"{rival.__name__}.py"] + ["vpg.py"] * (rival is trpo)
    sources += ["actor_critic.py"] * (rival is a2c)
    assert {path.name for path in run.glob("*.py")} == set(sources)
    for metrics in rows(run / "metrics.csv"):
        assert all(np.isfinite(float(x)) for x in metrics.values())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["global_step"] == int(metrics["global_step"])
    from_there = Program(run / f"{rival.__name__}.py", tmp_path / "killed", *argv)
    assert from_there.wait() == 0 and "already finished" in from_there.out
    played = Program(rival, tmp_path / "killed", "--eval", "run", *argv[:2])
    assert played.wait() == 0 and "episode 9" in played.out, played.err


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.__name__)
def test_help_is_its_own(rival, tmp_path):
    program = Program(rival, tmp_path / "cwd", "--help")
    assert program.wait() == 0
    assert rival.__doc__.splitlines()[0] in program.out
    assert "--clip-coef" not in program.out and "--env-id" in program.out


@pytest.mark.parametrize(
    "rival, flags, words",
    [
        (trpo, "--clip-coef 0.2", "--clip-coef"),
        (trpo, "--norm-adv minibatch", "--norm-adv batch none"),
        (trpo, "--num-steps 5000", "--minibatch-size 64 5000"),
        (trpo, "--max-kl 0", "--max-kl"),
        (vpg, "--desired-kl -1", "--desired-kl"),
        (vpg, "--total-timesteps 2000", "--total-timesteps 2000 2560"),
        (a2c, "--delta 0.5", "--delta --trust-region"),
        (a2c, "--num-envs 1 --num-steps 1", "--num-steps 1"),
        (a2c, "--average-decay 2 --trust-region", "--average-decay 2"),
        (cem, "--gamma 0.9", "--gamma"),
        (cem, "--num-envs 2", "--num-envs 2"),
        (cem, "--elite 1.5", "--elite 1.5"),
        (cem, "--population 5", "--elite --population 5"),
        (cem, "--population 1e9", "--population 1000000000 10000"),
        (cem, "--population 200 --total-timesteps 100", "--population 200 --total-timesteps 100"),
    ],
)
def test_bad_flags_are_refused(rival, flags, words, tmp_path):
    program = Program(rival, tmp_path / "cwd", *flags.split())
    assert program.wait() == 2
    assert program.err.count("\n") == 1 and program.err.startswith(f"{rival.__name__}.py: ")
    assert all(word in program.err for word in words.split()), program.err
    assert not list((tmp_path / "cwd").iterdir())


@pytest.mark.parametrize("rival", [vpg, a2c], ids=lambda rival: rival.__name__)
def test_divergence_has_its_exit_code(rival, tmp_path):
    flags = "--env-id toys:Toy-v0 --learning-rate 1e12 --total-timesteps 20000 --run-dir run"
    flags += " --max-grad-norm 1e12" if rival is a2c else " --value-learning-rate 1e12"
    program = Program(rival, tmp_path, *flags.split())
    assert program.wait() == 3 and "diverged in iteration" in program.err, program.err
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "diverged"


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.__name__)
def test_without_what_it_imports_it_says_so(rival, tmp_path):
    shutil.copy(rival.__file__, tmp_path)
    done = subprocess.run(
        [sys.executable, "-S", f"{rival.__name__}.py"], cwd=tmp_path, capture_output=True,
        env={"PYTHONPATH": ":".join(p for p in sys.path if "site-packages" in p)}, text=True,
    )  # fmt: skip
    line = f"{rival.__name__}.py: needs ppo_continuous.py beside it or two folders up"
    assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [f"{rival.__name__}.py"]
