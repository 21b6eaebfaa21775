"""Environments that show what is to be shown; `--env-id toys:Toy-v0` finds them."""

import os
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Tuple


class Toy(gym.Env):
    """Asks to be told the number it shows; a perfect episode of ten steps returns 0."""

    observation_space = Box(-1, 1, (1,))
    action_space = Box(-1, 1, (1,))
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def observe(self):
        self.number = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.number

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        reward = -float((action[0] - self.number[0]) ** 2)
        return self.observe(), reward, False, False, {}

    def render(self):
        return np.full((16, 16, 3), 127, np.uint8)


class Slow(Toy):
    """Takes a second a step while there is a file named slow."""

    def step(self, action):
        if Path("slow").exists():
            time.sleep(1)
        return super().step(action)


class FickleObs(Toy):
    """Shows other numbers in every process, whatever the seed."""

    def observe(self):
        self.number = np.frombuffer(os.urandom(4), np.uint32).astype(np.float32) / 2**32
        return self.number


class FickleReward(Toy):
    """Shows the same number always, and pays what it likes."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return np.zeros_like(obs), os.urandom(1)[0], *rest

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return np.zeros(1, np.float32), {}


class FickleEnd(Toy):
    """Ends after one step where there is a file named short, and cannot be stepped on then."""

    def reset(self, **kwargs):
        self.over = False
        return super().reset(**kwargs)

    def step(self, action):
        if self.over:
            raise RuntimeError("the episode is over")
        self.over = Path("short").exists()
        obs, reward, *_ = super().step(action)
        return obs, reward, self.over, False, {}


class Rotten(Toy):
    """Its rewards turn to NaN after a hundred steps."""

    steps = 0

    def step(self, action):
        self.steps += 1
        obs, reward, *rest = super().step(action)
        return obs, np.nan if self.steps > 100 else reward, *rest


class Raises(Toy):
    """Breaks down at the first step."""

    def step(self, action):
        raise RuntimeError("the motor\nis off")


class Shows(Toy):
    """Shows the observation that it was made with, whatever its space says."""

    def __init__(self, shown):
        self.number = np.array(shown, np.float32)

    def observe(self):
        return self.number


class PaysNaN(Toy):
    """Its rewards are no numbers from the first step on."""

    def step(self, action):
        return self.observe(), np.nan, False, False, {}


class Count(gym.Env):
    """Shows (instance, episode, step) and pays episode + step / 16 + action[0].

    It ends after length(episode) steps: truncated, terminated or both, by episode % 3.
    """

    observation_space = Box(0, np.inf, (3,))
    action_space = Box(-1, 1, (2,))
    instances = 0

    def __init__(self):
        Count.instances += 1
        self.state = [Count.instances, 0, 0]

    @staticmethod
    def length(episode):
        return 1 + 3 * episode % 7

    def reset(self, *, seed=None, options=None):
        self.state = [self.state[0], self.state[1] + 1, 0]
        return np.array(self.state, np.float32), {}

    def step(self, action):
        self.state[2] += 1
        obs, (_, episode, step) = np.array(self.state, np.float32), self.state
        ends = np.array([episode % 3 != 0, episode % 3 != 1]) & (step == self.length(episode))
        return obs, episode + step / 16 + action[0], *ends, {}


class Endless(gym.Env):
    """Pays 1 a step for ever, in four states that follow each other; a time limit cuts it."""

    observation_space = Box(0, 1, (4,))
    action_space = Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.state = 0
        return np.eye(4, dtype=np.float32)[0], {}

    def step(self, action):
        self.state = (self.state + 1) % 4
        return np.eye(4, dtype=np.float32)[self.state], 1.0, False, False, {}


class Spaces(Toy):
    """Shows random samples of the observation space that it was made with."""

    def __init__(self, space):
        super().__init__()
        self.observation_space = space

    def observe(self):
        super().observe()
        self.observation_space.seed(int(self.np_random.integers(1000)))
        self.seen = self.observation_space.sample()
        return self.seen


SPACES = {
    "Dict": Dict(a=Box(-1, 1, (2, 3)), b=Discrete(4)),
    "Tuple": Tuple((Box(-1, 1, (2,)), Box(0, 255, (3,), np.uint8))),
    "Grid": Box(-1, 1, (3, 4)),
}

for toy in (Toy, Slow, FickleObs, FickleReward, FickleEnd, Rotten, Raises, PaysNaN):
    gym.register(f"{toy.__name__}-v0", toy, max_episode_steps=10)
gym.register("Long-v0", Toy, max_episode_steps=300)
gym.register("ShowsNaN-v0", Shows, kwargs={"shown": [np.nan]})
gym.register("Misshapen-v0", Shows, kwargs={"shown": [0, 0, 0]})
gym.register("Count-v0", Count)
gym.register("Endless-v0", Endless, max_episode_steps=8)
for name, space in SPACES.items():
    gym.register(f"{name}-v0", Spaces, max_episode_steps=10, kwargs={"space": space})
