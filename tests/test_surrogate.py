"""The objectives of Table 1, eqs. 6, 7 and 8, their KL, and the rule of section 4 for beta."""

import pytest
import torch
from conftest import ALL, MUJOCO_SCRIPTS, Program, minibatch_of, rows, update
from torch.distributions import kl_divergence

import ppo_klpen
import ppo_noclip

CLIPPED = [script for script in ALL if hasattr(script.Args, "clip_coef")]


def value_and_gradients(surrogate, *columns):
    """surrogate of columns [1], and its gradients by them."""
    columns = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in columns]
    value = surrogate(*columns)
    return pytest.approx([value.item(), *(g.item() for g in torch.autograd.grad(value, columns))])


@pytest.mark.parametrize("script", CLIPPED)
@pytest.mark.parametrize(
    "log, ratio, advantage, value, gradient",
    [  # Fig. 1 with epsilon = 0.2
        (False, 0.5, 2.0, 1.0, 2),
        (False, 0.9, 2.0, 1.8, 2),
        (False, 1.1, 2.0, 2.2, 2),
        (False, 1.5, 2.0, 2.4, 0),
        (False, 0.5, -2.0, -1.6, 0),
        (False, 0.9, -2.0, -1.8, -2),
        (False, 1.1, -2.0, -2.2, -2),
        (False, 1.5, -2.0, -3.0, -2),
        # in log space the ends are exp(-0.2) = 0.81873 and exp(0.2) = 1.22140
        (True, 0.0, 2.0, 0.0, 2),
        (True, 0.0, -2.0, -1.63746151, 0),
        (True, 0.5, 2.0, 1.0, 2),
        (True, 0.81, 2.0, 1.62, 2),
        (True, 1.21, 2.0, 2.42, 2),
        (True, 1.23, 2.0, 2.44280552, 0),
        (True, 0.81, -2.0, -1.63746151, 0),
        (True, 0.82, -2.0, -1.64, -2),
        (True, 1.21, -2.0, -2.42, -2),
        (True, 1.5, -2.0, -3.0, -2),
    ],
)
def test_clipped_objective_by_hand(script, log, ratio, advantage, value, gradient):
    """Leaving the interval is not rewarded, but it is punished: a lower bound on r A."""
    by_ratio = value_and_gradients(
        lambda r: script.surrogate(r, torch.tensor([advantage]), 0.2, log), ratio
    )
    assert [value, gradient] == by_ratio


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.1, 1.5])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_unclipped_and_penalised_objectives_by_hand(ratio, advantage):
    """Eq. 6 is r A and eq. 2 log pi A, wherever r is; eq. 8 takes off beta times KL."""
    assert [ratio * advantage, advantage, 0, ratio] == value_and_gradients(
        lambda r, logp, a: ppo_noclip.surrogate(r, logp, a) + 0 * logp.sum(), ratio, -1.5, advantage
    )
    assert [-1.5 * advantage, 0, advantage, -1.5] == value_and_gradients(
        lambda r, logp, a: ppo_noclip.surrogate(r, logp, a, "pg") + 0 * r.sum(),
        ratio, -1.5, advantage,
    )  # fmt: skip
    assert [ratio * advantage - 3 * 0.25, advantage, ratio, -3] == value_and_gradients(
        lambda r, a, kl: ppo_klpen.surrogate(r, a, kl, kl_coef=3), ratio, advantage, 0.25
    )


def test_all_objectives_agree_at_ratio_1():
    """Where pi is pi_old, each is the mean advantage and points the same way."""
    advantage, zeros = torch.tensor([3.0, -1.0, 0.5, -2.0]), torch.zeros(4)
    for surrogate in (
        *(lambda r, script=script: script.surrogate(r, advantage, 0.2) for script in CLIPPED),
        *(lambda r, script=script: script.surrogate(r, advantage, 0.2, True) for script in CLIPPED),
        lambda r: ppo_noclip.surrogate(r, r.log(), advantage),
        lambda r: ppo_noclip.surrogate(r, 1 + r.log(), advantage, "pg"),
        lambda r: ppo_klpen.surrogate(r, advantage, zeros, kl_coef=3),
    ):
        ratio = torch.ones(4, requires_grad=True)
        value = surrogate(ratio)
        assert value == 0.125
        torch.testing.assert_close(torch.autograd.grad(value, ratio)[0], advantage / 4)


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_kl_runs_from_old_to_new(script):
    """The KL that is reported, and penalised, is KL[pi_old, pi], in closed form or sampled."""
    torch.manual_seed(1)
    agent = script.Agent(3, 2, script.Args())
    minibatch = minibatch_of(script, agent, 100_000)
    old = agent(minibatch[0])[0]
    with torch.no_grad():
        agent.log_std += torch.tensor([0.5, -0.2])
        agent.actor[-1].bias += 0.3
    new = agent(minibatch[0])[0]
    by_hand = new.stddev.log() + (1 + (old.mean - new.mean) ** 2) / (2 * new.variance) - 0.5
    torch.testing.assert_close(by_hand.sum(-1), kl_divergence(old, new))

    kl = update(script, agent, minibatch)["kl"]
    exact = script is ppo_klpen
    assert kl == pytest.approx(by_hand.sum(-1).mean().item(), rel=1e-5 if exact else 0.03)
    actions = old.sample()
    sampled = (old.log_prob(actions) - new.log_prob(actions)).mean().item()
    assert kl == pytest.approx(sampled, rel=0.03)
    assert abs(kl / kl_divergence(new, old).mean().item() - 1) > 0.2


def test_beta_follows_a_scripted_kl_sequence():
    """It halves below d_targ / 1.5, doubles above d_targ * 1.5, and stays in between."""
    beta, betas = 1.0, []
    for kl in (0.014, 0.016, 0.1, 0.0151, 0.01, 0.0067, 0.0066, 0.0, 0.02):
        beta = ppo_klpen.adapt(beta, kl, kl_target=0.01)
        betas.append(beta)
    assert betas == [1, 2, 4, 8, 8, 8, 4, 2, 4]
    assert [ppo_klpen.adapt(1.0, kl, 0.01, 2, 3) for kl in (0.021, 0.019, 0.0049)] == [3, 1, 1 / 3]
    assert [ppo_klpen.adapt(1.0, kl, 3.0) for kl in (2.0, 4.5)] == [1, 1]
    beta = 1.0
    for _ in range(2000):  # while nothing is learned
        beta = ppo_klpen.adapt(beta, 0.0, kl_target=0.01)
    assert ppo_klpen.adapt(beta, 1.0, kl_target=0.01) == 2 * beta > 0


def test_beta_0_is_no_penalty(tmp_path):
    """Eq. 8 with beta = 0 is eq. 6: the same weights."""
    argv = "--env-id toys:Toy-v0 --num-steps 128 --total-timesteps 512 --run-dir run".split()
    flags, agents = {ppo_klpen: ["--no-adapt-kl-coef", "--kl-coef", "0"], ppo_noclip: []}, []
    for script, more in flags.items():
        cwd = tmp_path / script.__name__
        assert Program(script, cwd, *argv, *more).wait() == 0
        agents.append(torch.load(cwd / "run/agent.pt", weights_only=True))
    assert agents[0].keys() == agents[1].keys()
    assert all(torch.equal(x, agents[1][key]) for key, x in agents[0].items())


def test_beta_moves_once_an_iteration_by_its_final_kl(tmp_path):
    """Row by row of metrics.csv: final_kl decides by what beta the next iteration starts from."""
    argv = "--env-id toys:Toy-v0 --num-steps 128 --total-timesteps 3840 --learning-rate 1e-3"
    argv += " --kl-coef 0.5 --run-dir run"
    assert Program(ppo_klpen, tmp_path / "cwd", *argv.split()).wait() == 0
    table = rows(tmp_path / "cwd/run/metrics.csv")
    table = [(float(row["kl_coef"]), float(row["final_kl"])) for row in table]
    assert table[0][0] == 0.5
    factors = []
    for (beta, kl), (next_beta, _) in zip(table, table[1:]):
        factors.append(2 if kl > 0.01 * 1.5 else 0.5 if kl < 0.01 / 1.5 else 1)
        assert next_beta == beta * factors[-1]
    assert set(factors) == {0.5, 1, 2}
