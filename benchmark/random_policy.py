"""The random policy's returns, on which scores are normalised: makes random_policy.csv.

    python benchmark/random_policy.py

It is the untrained one: actions from N(0, 1), not clipped, as the scripts' are.
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd

TASKS = "HalfCheetah Hopper InvertedDoublePendulum InvertedPendulum Reacher Swimmer Walker2d"
HELD_OUT = "Ant Humanoid"
EPISODES = 1000


def play(env, rng, seed):
    """The return of an episode."""
    env.reset(seed=seed)
    score, done = 0.0, False
    while not done:
        action = rng.standard_normal(env.action_space.shape, dtype=np.float32)
        _, reward, terminated, truncated, _ = env.step(action)
        score, done = score + float(reward), terminated or truncated
    return score


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    gym.logger.min_level = gym.logger.ERROR
    versions = " ".join(f"{x}={version(x)}" for x in ("gymnasium", "mujoco", "numpy"))
    rows = []
    for task in f"{TASKS} {HELD_OUT}".split():
        env, rng = gym.make(f"{task}-v4"), np.random.default_rng(0)
        scores = [play(env, rng, seed) for seed in range(EPISODES)]
        row = dict(task=task, env_id=f"{task}-v4", score=np.mean(scores), sd=np.std(scores, ddof=1))
        row |= dict(episodes=EPISODES, command="python benchmark/random_policy.py")
        rows.append(row | {"versions": versions})
        print(f"{task}: {row['score']:.6g}")
    path = Path(__file__).with_name("random_policy.csv")
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


if __name__ == "__main__":
    main()
