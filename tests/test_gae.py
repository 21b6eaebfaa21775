"""Generalised advantage estimation, eqs. 11 and 12."""

import numpy as np
import pytest
import torch
from conftest import ALL

T, N = 12, 3


def eq11(rewards, values, dones, last_value, gamma, gae_lambda):
    """Eq. 11 as printed: sums of (gamma lambda)^l delta_{t+l} up to the end of the episode."""
    values, advantages = np.vstack([values, last_value]), np.zeros(rewards.shape)
    for t, n in np.ndindex(rewards.shape):
        for k in range(t, len(rewards)):
            next_value = 0 if dones[k, n] else values[k + 1, n]
            delta = rewards[k, n] + gamma * next_value - values[k, n]
            advantages[t, n] += (gamma * gae_lambda) ** (k - t) * delta
            if dones[k, n]:
                break
    return advantages


def gae(script, *arrays_and_scalars):
    """script.gae of arrays, as an array."""
    tensors = [torch.tensor(x) if isinstance(x, np.ndarray) else x for x in arrays_and_scalars]
    return script.gae(*tensors).numpy()


@pytest.fixture
def rollout():
    """rewards, values, dones, last_value; every environment with a done of its own."""
    rng = np.random.default_rng(1)
    dones = np.zeros((T, N))
    dones[[4, 7, 11], range(N)] = 1
    return rng.normal(size=(T, N)), rng.normal(size=(T, N)), dones, rng.normal(size=N)


@pytest.mark.parametrize("script", ALL)
def test_is_eq_11_summed_literally(script, rollout):
    for gamma, gae_lambda in ((0.99, 0.95), (0.9, 0.5), (1, 1), (0.9, 0), (0, 0.9)):
        expected = eq11(*rollout, gamma, gae_lambda)
        np.testing.assert_allclose(gae(script, *rollout, gamma, gae_lambda), expected, atol=1e-12)


@pytest.mark.parametrize("script", ALL)
def test_unit_rewards_count_the_steps_left(script):
    ones, zeros = np.ones((5, N)), np.zeros((5, N))
    advantages = gae(script, ones, zeros, zeros, np.zeros(N), 1, 1)
    assert advantages.tolist() == [[x] * N for x in (5, 4, 3, 2, 1)]


@pytest.mark.parametrize("script", ALL)
def test_lambda_1_is_the_discounted_sum_less_the_value(script, rollout):
    rewards, values, _, last_value = rollout
    powers = 0.9 ** np.arange(T + 1)[:, None]
    returns = [(powers[: T + 1 - t] * [*rewards[t:], last_value]).sum(0) for t in range(T)]
    advantages = gae(script, rewards, values, np.zeros((T, N)), last_value, 0.9, 1)
    np.testing.assert_allclose(advantages, returns - values, atol=1e-12)


@pytest.mark.parametrize("script", ALL)
def test_lambda_0_is_delta(script, rollout):
    rewards, values, _, last_value = rollout
    delta = rewards + 0.9 * np.vstack([values[1:], last_value]) - values
    advantages = gae(script, rewards, values, np.zeros((T, N)), last_value, 0.9, 0)
    np.testing.assert_allclose(advantages, delta, atol=1e-12)


@pytest.mark.parametrize("script", ALL)
def test_nothing_crosses_the_end_of_an_episode(script, rollout):
    """What comes after a done in an environment changes no advantage up to it, nor elsewhere."""
    before = gae(script, *rollout, 0.99, 0.95)
    rewards, values, _, last_value = rollout
    rewards[5:, 0], values[5:, 0], last_value[0] = 100, 100, 100
    after = gae(script, *rollout, 0.99, 0.95)
    np.testing.assert_array_equal(after[:5], before[:5])
    np.testing.assert_array_equal(after[:, 1:], before[:, 1:])
    assert (after[5:, 0] != before[5:, 0]).all()


@pytest.mark.parametrize("script", ALL)
def test_permuting_environments_permutes_advantages(script, rollout):
    """Time runs along the first axis, environments stand side by side along the second."""
    order = [2, 0, 1]
    permuted = gae(script, *(x[..., order] for x in rollout), 0.99, 0.95)
    np.testing.assert_array_equal(permuted, gae(script, *rollout, 0.99, 0.95)[:, order])
