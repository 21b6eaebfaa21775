"""Training: what goes into an update, and what comes out of a run."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import toys
from conftest import ALL, MUJOCO_SCRIPTS, FakeRun, Program, results, rows


def train(script, env_id, **flags):
    """Trains in this process. Returns the agent and what train() told of its run."""
    run, args = FakeRun(), script.Args(env_id=f"toys:{env_id}", **flags)
    return script.train(args, script.Envs(args, run.episode), run), run


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("bootstrap", [True, False])
def test_every_transition_is_learnt_from_once_an_epoch(script, N, bootstrap, monkeypatch):
    """Across ends of rollouts and of episodes, of any kind, no row is lost, doubled or garbage.

    Count shows where it is, and nothing is learnt, so every row can be told beforehand.
    """
    minibatches, T, iterations = [], 12, 4

    def spy(*x):
        minibatches.append([tensor.clone() for tensor in x[3:] if tensor.ndim])
        return function(*x)

    function = script.update
    monkeypatch.setattr(script, "update", spy)
    agent, run = train(
        script, "Count-v0", num_envs=N, num_steps=T, total_timesteps=iterations * T * N,
        minibatch_size=4, update_epochs=2, learning_rate=1e-12, gae_lambda=0.0, gamma=0.9,
        norm_obs=False, norm_reward=False, norm_adv="none", bootstrap_truncated=bootstrap,
        compile=False,
    )  # fmt: skip

    places, episodes = [], []
    for n, (instance, episode, _) in enumerate(run.rollouts[0]["obs"][0].tolist()):
        step = 0
        for t in range(iterations * T):
            places.append((t, n, [instance, episode, step]))
            step += 1
            if step == toys.Count.length(episode):
                episodes.append((N * (t + 1), n, episode, step))
                episode, step = episode + 1, 0
    for epoch in range(2 * iterations):
        calls = minibatches[epoch * 3 * N : (epoch + 1) * 3 * N]
        obs, actions, *_, advantage, target, value = map(torch.cat, zip(*calls))
        first = epoch // 2 * T
        assert sorted(obs.tolist()) == sorted(o for t, _, o in places if first <= t < first + T)

        _, episode, step = (obs + torch.tensor([0, 0, 1])).T
        end = step == torch.tensor([toys.Count.length(e) for e in episode.tolist()])
        goes_on = ~end | bootstrap & (episode % 3 == 0)
        with torch.no_grad():
            now, then = agent(obs)[1], agent(obs + torch.tensor([0, 0, 1]))[1]
        expected = episode + step / 16 + actions[:, 0] + 0.9 * goes_on * then
        torch.testing.assert_close(target, expected)
        torch.testing.assert_close(value, now)
        torch.testing.assert_close(advantage, expected - now, atol=1e-5, rtol=1e-5)

    rewards = np.concatenate([rollout["rewards"] for rollout in run.rollouts])
    assert [(step, length) for step, _, length in run.episodes] == [
        (step, length) for step, _, _, length in sorted(episodes)
    ]
    for (_, score, length), (step, n, *_) in zip(run.episodes, sorted(episodes)):
        assert score == pytest.approx(rewards[step // N - length : step // N, n].sum(), rel=1e-5)


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_rewards_are_scaled_by_the_discounted_return_of_the_episode(script):
    """Envs sums rewards up as r + gamma R, from zero in every episode."""
    args = script.Args(env_id="toys:Count-v0", num_envs=2, gamma=0.5)
    envs, sums = script.Envs(args, lambda *_: None), np.zeros(2)
    for _ in range(20):
        envs.step(np.ones((2, 2), np.float32))
        steps = envs.pop_steps()
        (rewards,), (returns,), (dones,) = (
            steps[k].numpy() for k in ("rewards", "discounted_returns", "dones")
        )
        sums = rewards + 0.5 * sums
        np.testing.assert_allclose(returns, sums)
        sums *= 1 - dones


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_every_episode_of_every_environment_and_seed_is_another(script):
    seen = set()
    for seed in (1, 2):
        args = script.Args(env_id="toys:Toy-v0", num_envs=2, seed=seed)
        envs = script.Envs(args, lambda *_: None)
        for _ in range(35):
            seen |= set(envs.obs.flat)
            envs.step(np.zeros((2, 1), np.float32))
    assert len(seen) == 2 * 35 * 2


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_actions_reach_the_environment_raw_unless_clipped(script):
    """Count pays the action that it gets."""
    paid = []
    for clip_actions in (False, True):
        args = script.Args(env_id="toys:Count-v0", clip_actions=clip_actions)
        envs = script.Envs(args, lambda *_: None)
        envs.step(np.array([[3.0, 0.0]]))
        paid.append(envs.pop_steps()["rewards"].item())
    assert paid[0] - paid[1] == 2


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_value_of_an_endless_task_needs_bootstrapping_at_time_limits(script):
    """A reward of 1 for ever is worth 1 / (1 - gamma) = 5; cut every 8 steps, 2.9 on average."""
    for bootstrap, low, high in ((True, 4.7, 5.3), (False, 2.4, 3.4)):
        agent, _ = train(
            script, "Endless-v0", num_steps=128, total_timesteps=128 * 12, gamma=0.8,
            learning_rate=3e-3, norm_reward=False, bootstrap_truncated=bootstrap,
        )  # fmt: skip
        with torch.no_grad():
            _, value = agent(torch.eye(4))
        assert low < value.mean() < high


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
@pytest.mark.parametrize("name", toys.SPACES)
def test_observations_of_any_space_are_flattened(script, name):
    """As Gymnasium flattens them; training runs on what comes out."""
    space = toys.SPACES[name]
    args = script.Args(env_id=f"toys:{name}-v0", num_envs=2)
    envs = script.Envs(args, lambda *_: None)
    for _ in range(12):
        seen = [gym.spaces.flatten(space, env.unwrapped.seen) for env in envs.envs]
        np.testing.assert_array_equal(envs.obs, np.array(seen, np.float32))
        envs.step(np.zeros((2, 1), np.float32))
    agent, _ = train(script, f"{name}-v0", num_envs=2, num_steps=32, total_timesteps=64)
    assert agent.obs_moments.mean.shape == gym.spaces.flatten(space, space.sample()).shape


TABLE_3 = dict(
    num_steps=2048, learning_rate=3e-4, update_epochs=10, minibatch_size=64, gamma=0.99,
    gae_lambda=0.95,
)  # fmt: skip
TABLE_5 = dict(
    num_steps=128, learning_rate=2.5e-4, anneal_lr=True, update_epochs=3, minibatch_size=32 * 8,
    gamma=0.99, gae_lambda=0.95, num_envs=8, clip_coef=0.1, anneal_clip_coef=True, vf_coef=1.0,
    ent_coef=0.01,
)  # fmt: skip
OBJECTIVES = {  # of section 6.1, and the adaptation of section 4
    "ppo_continuous": dict(clip_coef=0.2, clip_log_ratio=False),
    "ppo_noclip": dict(surrogate="cpi"),
    "ppo_klpen": dict(kl_coef=1.0, adapt_kl_coef=True, kl_tolerance=1.5, kl_factor=2.0),
}


@pytest.mark.parametrize("script", ALL)
def test_defaults_are_the_papers(script):
    own = OBJECTIVES.get(script.__name__)
    expected = TABLE_5 if own is None else TABLE_3 | own
    args = vars(script.Args())
    assert {name: args[name] for name in expected} == expected


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_toy_task_is_solved(script):
    """Ten steps of saying random numbers cost 13; of saying the number that is shown, nothing."""
    _, run = train(
        script, "Toy-v0", num_envs=4, num_steps=64, total_timesteps=256 * 24,
        learning_rate=3e-3, gamma=0.5,
    )  # fmt: skip
    scores = [score for _, score, _ in run.episodes]
    assert np.mean(scores[:20]) < -10 and np.mean(scores[-100:]) > -1.5


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_same_seed_same_bytes(script, tmp_path):
    """Two runs of a command agree in every byte that it earns; another seed gives another run."""
    argv = "--env-id Reacher --num-envs 2 --num-steps 128 --total-timesteps 2048 --run-dir run"
    runs = {}
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        program = Program(script, tmp_path / name, *argv.split(), "--seed", seed)
        assert program.wait() == 0, program.err
        runs[name] = results(tmp_path / name / "run")
    assert runs["one"] == runs["same"] != runs["other"]
    episodes = [rows(tmp_path / name / "run/episodes.csv") for name in ("one", "other")]
    assert len(episodes[0]) == 40 and not any(a == b for a, b in zip(*episodes))
