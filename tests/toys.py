"""Environments that show what is to be shown; `--env-id toys:Toy-v0` finds them."""

import contextlib
import ctypes
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from asyncio import CancelledError
from enum import Enum
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Sequence, Text, Tuple


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


class PaysNothing(Toy):
    """Rewards nothing."""

    def step(self, action):
        return self.observe(), 0.0, False, False, {}


class Model(Toy):
    """Has a model that is not MuJoCo's."""

    model = "of something else"


class Slow(Toy):
    """Takes a second a step while there is a file named slow."""

    def step(self, action):
        if Path("slow").exists():
            time.sleep(1)
        return super().step(action)


class Holds(Toy):
    """Waits after 300 steps while there is a file named hold."""

    steps = 0

    def step(self, action):
        self.steps += 1
        while self.steps > 300 and Path("hold").exists():
            time.sleep(0.005)
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

    def __init__(self, shown, dtype=np.float32):
        self.number = np.array(shown, dtype)

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


class Moves(Toy):
    """Changes the working directory whenever it begins an episode."""

    elsewhere = tempfile.mkdtemp()

    def reset(self, **kwargs):
        os.chdir(self.elsewhere)
        return super().reset(**kwargs)


class Worker(Toy):
    """Has a thread that lives until close(); a second close() raises. It keeps a log of both.

    Steps fail, or pay NaN, while there is a file named fail, or rot.
    """

    steps = 0

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.closed = threading.Event()
        self.log = Path("worker.log").absolute()
        threading.Thread(target=self.closed.wait).start()
        self.note("made")

    def note(self, what):
        with self.log.open("a") as file:
            file.write(f"{what} {id(self)}\n")

    def step(self, action):
        self.steps += 1
        if self.steps > 100 and Path("fail").exists():
            raise RuntimeError("the worker is tired")
        obs, reward, *rest = super().step(action)
        return obs, np.nan if self.steps > 100 and Path("rot").exists() else reward, *rest

    def close(self):
        if self.closed.is_set():
            raise RuntimeError("closed twice")
        self.closed.set()
        self.note("closed")


class CannotClose(Toy):
    """Its close() fails."""

    def close(self):
        raise RuntimeError("the door is stuck")


class ClosesByExit(Toy):
    """Its close() ends the process."""

    def close(self):
        sys.exit(0)


class LeavesAThread(Toy):
    """Has a thread that outlives close()."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        threading.Thread(target=threading.Event().wait).start()


class LeavesAProcess(Toy):
    """Has a process that outlives close()."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        multiprocessing.Process(target=time.sleep, args=(100,)).start()


class Ticks(Toy):
    """Has a thread that prints for ever."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        threading.Thread(target=self.tick, daemon=True).start()

    def tick(self):
        while True:
            print("tick" * 30)


class ClosesOutput(LeavesAThread):
    """Closes standard output for Python, too."""

    def close(self):
        sys.stdout.close()


class Prints(Toy):
    """Prints at each episode; Python writes it when it has the time."""

    def reset(self, **kwargs):
        print("an episode begins")
        return super().reset(**kwargs)


class TakesSignals(Toy):
    """Lets nobody end it from when it is made, as some simulators do."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)


class Strict(Toy):
    """Makes an error of any rounding to 0, and turns off gradients."""

    def reset(self, **kwargs):
        np.seterr(all="raise")
        torch.set_grad_enabled(False)
        return super().reset(**kwargs)


class DrawsAtBirth(Toy):
    """Its rewards depend on a number that it draws when it is made."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.extra = np.random.uniform() + random.random() + torch.rand(()).item()

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + self.extra, *rest


class TurnsOff(Toy):
    """Turns off gradients, and closes standard output, when it begins an episode."""

    def reset(self, **kwargs):
        torch.set_grad_enabled(False)
        with contextlib.suppress(OSError):
            os.close(1)
        return super().reset(**kwargs)


class OwnHandler(Toy):
    """Takes over Ctrl-C as a program of its own would; waits while there is a file named slow."""

    def reset(self, **kwargs):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return super().reset(**kwargs)

    def step(self, action):
        while Path("slow").exists():
            Path("slowly").touch()
            time.sleep(0.05)
        return super().step(action)


class FailsAtFirst(Toy):
    """Its third reset(), the first after the trial, fails."""

    resets = 0

    def reset(self, **kwargs):
        self.resets += 1
        if self.resets == 3:
            raise ValueError("no map of this seed")
        return super().reset(**kwargs)


class Panics(Toy):
    """Its ninth episode fails by what is no Exception, in letters that not all can write."""

    def reset(self, **kwargs):
        self.episodes = getattr(self, "episodes", 0) + 1
        if self.episodes == 9:
            raise GeneratorExit("ein Fehler \u00fc \ud800")
        return super().reset(**kwargs)


class Breaks(Toy):
    """While there is a file named broken, Ctrl-C ends a process that it works with, as well."""

    def step(self, action):
        if Path("broken").exists():
            os.kill(os.getpid(), signal.SIGINT)
            raise BrokenPipeError("it is gone")
        return super().step(action)


class Forks(Toy):
    """Has a process for a while, which SIGTERM ends."""

    def reset(self, **kwargs):
        if not (pid := os.fork()):
            time.sleep(30)
            os._exit(0)
        time.sleep(0.02)
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        return super().reset(**kwargs)


class ForksAndFails(Toy):
    """Has a process once, which fails as if it were the run."""

    forked = False

    def step(self, action):
        if not self.forked and Path("run/checkpoint.pt").exists():
            self.forked = True
            if not (pid := os.fork()):
                raise ValueError("in a process of its own")
            os.waitpid(pid, 0)
        return super().step(action)


class DrawsByTorch(Toy):
    """What it shows comes from torch's global generator."""

    def observe(self):
        self.number = torch.rand(1).numpy()
        return self.number


class OnePicture(Toy):
    """Draws every picture into the same array."""

    picture = np.zeros((16, 16, 3), np.uint8)

    def render(self):
        self.picture += 20
        return self.picture


class Ends(Toy):
    """Every fifth step ends the episode, which step() says by yes instead of no."""

    steps = 0

    def __init__(self, yes, no):
        self.yes, self.no = yes, no

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        self.steps += 1
        return obs, reward, self.no if self.steps % 5 else self.yes, truncated, info


class Draws(Toy):
    """Draws from the generators that a whole program shares."""

    def observe(self):
        self.number = np.float32([np.random.uniform(-1, 1) * random.choice((-1, 1))])
        return self.number


class Sums(Toy):
    """Shows the sum of its actions, and writes into the array that it is given."""

    def reset(self, **kwargs):
        super().reset(**kwargs)
        self.number = np.zeros(1, np.float32)
        return self.number.copy(), {}

    def step(self, action):
        action *= 2
        self.number = self.number + action
        action[:] = np.nan
        return self.number.copy(), -float(abs(self.number[0])), False, False, {}


class Reuses(Toy):
    """Shows always the same array, with new numbers in it."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.array = np.zeros(1, np.float32)

    def observe(self):
        self.array[:] = super().observe()
        return self.array


class CInt(Toy):
    """Its simulator takes a C int for a seed."""

    def reset(self, *, seed=None, options=None):
        if seed is not None and ctypes.c_int(seed).value != seed:
            raise OverflowError(f"the seed {seed} is no C int")
        return super().reset(seed=seed)


class EarlyReset(Toy):
    """Refuses to be reset in the middle of an episode."""

    steps = 0

    def reset(self, **kwargs):
        if self.steps % 10:
            raise RuntimeError("the episode is not over")
        return super().reset(**kwargs)

    def step(self, action):
        self.steps += 1
        return super().step(action)


class OldReset(Toy):
    """Its reset() is that of gym before 0.26."""

    def reset(self):
        return super().reset()[0]


class Faulty(Toy):
    """Fails in reset() while there is a file named fail, but never at first."""

    resets = 0

    def reset(self, **kwargs):
        self.resets += 1
        if self.resets > 20 and Path("fail").exists():
            raise ValueError("no key\nfor the motor")
        return super().reset(**kwargs)


class Later(Toy):
    """After so many steps, step() returns change(obs, reward, terminated, truncated, info)."""

    steps = 0

    def __init__(self, change, after=100, render_mode=None):
        super().__init__(render_mode)
        self.change, self.after = change, after

    def step(self, action):
        self.steps += 1
        result = super().step(action)
        return self.change(*result) if self.steps > self.after else result


class LaterReset(Toy):
    """After so many, reset() returns change(obs, info)."""

    resets = 0

    def __init__(self, change, after=12):
        self.change, self.after = change, after

    def reset(self, **kwargs):
        self.resets += 1
        result = super().reset(**kwargs)
        return self.change(*result) if self.resets > self.after else result


class Wide(Later):
    """The same with three numbers to see."""

    observation_space = Box(-1, 1, (3,))

    def observe(self):
        self.number = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.number


class Last(Toy):
    """The last observation of an episode, the tenth after the first, is no number."""

    def reset(self, **kwargs):
        self.step_of_episode = 0
        return super().reset(**kwargs)

    def step(self, action):
        self.step_of_episode += 1
        obs, *rest = super().step(action)
        return obs * (np.nan if self.step_of_episode == 10 else 1), *rest


class Huge(Toy):
    """Shows numbers of the size that it was made with, or pays them, but not in its first step."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float64)

    def __init__(self, obs=1.0, reward=1.0):
        self.sizes = obs, reward

    def reset(self, **kwargs):
        (obs, info), self.size = super().reset(**kwargs), (1.0, 1.0)
        return obs.astype(np.float64), info

    def step(self, action):
        (obs, reward, *rest), size = super().step(action), self.size
        self.size = self.sizes
        return obs.astype(np.float64) * size[0], reward * size[1], *rest


class Painted(Toy):
    """Its pictures have many colours."""

    number_of_pictures = 0

    def render(self):
        self.number_of_pictures += 1
        x, y = np.meshgrid(np.arange(640), np.arange(480))
        return np.stack([x, y, x + y + self.number_of_pictures], -1).astype(np.uint8)


class Film(Toy):
    """Its pictures are what picture(number of the picture) returns."""

    frames = 0

    def __init__(self, picture, fps=10, render_mode=None):
        super().__init__(render_mode)
        self.picture, self.metadata = picture, {**self.metadata, "render_fps": fps}

    def render(self):
        self.frames += 1
        return self.picture(self.frames)


class SlowFilm(Toy):
    """A picture takes its time while there is a file named slow; each leaves a file named frame."""

    def render(self):
        Path("frame").touch()
        if Path("slow").exists():
            time.sleep(0.3)
        return super().render()


class Talks(Toy):
    """Says something by standard output and standard error whenever it begins an episode."""

    def reset(self, **kwargs):
        for stream in (sys.stdout, sys.stderr):
            stream.write("an episode begins\n")
            stream.flush()
        return super().reset(**kwargs)


class SlowStart(Toy):
    """Its reset() waits while there is a file named slow, and leaves a file slowly."""

    def reset(self, **kwargs):
        while Path("slow").exists():
            Path("slowly").touch()
            time.sleep(0.05)
        return super().reset(**kwargs)


class Acts(Toy):
    """Takes actions of the space that it was made with."""

    def __init__(self, space):
        self.action_space = space

    def step(self, action):
        self.action_space.contains(action)
        return self.observe(), 0.0, False, False, {}


def fail(*_):
    raise RuntimeError("the motor\nis off")


def decimal(number):
    from decimal import Decimal

    return Decimal(number)


def cancel():
    raise CancelledError


def picture(number):
    return np.full((16, 16, 3), 127, np.uint8)


class Motor(Exception):
    """An error whose text is of no help."""

    def __str__(self):
        return ""


def fail_without_words(*_):
    raise Motor


def fail_like_the_system(*_):
    raise FileNotFoundError(2, "No such file or directory", "model.xml")


class Status(Enum):
    RUNNING = 0
    OVER = 1


SPACES = {
    "Dict": Dict(a=Box(-1, 1, (2, 3)), b=Discrete(4)),
    "Tuple": Tuple((Box(-1, 1, (2,)), Box(0, 255, (3,), np.uint8))),
    "Grid": Box(-1, 1, (3, 4)),
    "Number": Box(-1, 1, ()),
    "Bytes": Box(0, 255, (2, 2), np.uint8),
    "Doubles": Box(-1, 1, (2,), np.float64),
    "State": Discrete(5),
    "LateState": Discrete(3, start=7),
    "Pair": MultiDiscrete([3, 4]),
    "Table": MultiDiscrete([[2, 3], [4, 5]]),
    "Bits": MultiBinary(4),
    "BitTable": MultiBinary((2, 3)),
    "PairInDict": Dict(pair=MultiDiscrete([3, 4])),
    "Nested": Dict(b=Dict(y=Discrete(2), x=Tuple((MultiBinary(2), Discrete(3)))), a=Box(0, 1)),
    "Word": Text(4, min_length=4, charset="ab"),
}

short = Toy, PaysNothing, PaysNaN, Model, Slow, Holds, Rotten, Raises
for toy in (*short, FickleObs, FickleReward, FickleEnd):
    gym.register(f"{toy.__name__}-v0", toy, max_episode_steps=10)
gym.register("Long-v0", Toy, max_episode_steps=300)
gym.register("ShowsNaN-v0", Shows, kwargs={"shown": [np.nan]})
gym.register("ShowsHuge-v0", Shows, kwargs={"shown": [1e60], "dtype": np.float64})
gym.register("Misshapen-v0", Shows, kwargs={"shown": [0, 0, 0]})
gym.register("Count-v0", Count)
gym.register("Endless-v0", Endless, max_episode_steps=8)
for name, space in SPACES.items():
    gym.register(f"{name}-v0", Spaces, max_episode_steps=10, kwargs={"space": space})
for toy in (Moves, Worker, CannotClose, Draws, Sums, Reuses, CInt, EarlyReset, OldReset):
    gym.register(f"{toy.__name__}-v0", toy, max_episode_steps=10)
others = ClosesByExit, DrawsByTorch, Faulty, Last, OnePicture, Panics, SlowFilm, SlowStart, Talks
more = LeavesAThread, DrawsAtBirth, TurnsOff, OwnHandler, FailsAtFirst, LeavesAProcess, Ticks
last = ClosesOutput, Prints, Strict
for toy in (Breaks, Forks, ForksAndFails, *others, *more, *last):
    gym.register(f"{toy.__name__}-v0", toy, max_episode_steps=10)
gym.register("Forever-v0", Toy)
gym.register("Painted-v0", Painted)
gym.register("TakesSignals-v0", TakesSignals)
gym.register("SeesNothing-v0", Spaces, kwargs={"space": Box(-1, 1, (0,))})
gym.register(
    "Complex-v0", Later, kwargs=dict(after=0, change=lambda obs, reward, *rest: (obs, 1j, *rest))
)
gym.register("OldStep-v0", Later, kwargs=dict(after=0, change=lambda *result: result[:-1]))
gym.register("Listed-v0", Spaces, kwargs={"space": Sequence(Discrete(3))})
for name, (yes, no) in {
    "Bool": (True, False),
    "Int": (2, 0),
    "Float": (1.0, 0.0),
    "NumpyBool": (np.True_, np.False_),
    "NumpyInt": (np.int64(1), np.int64(0)),
    "Array": (np.array([True]), np.array([False])),
    "None": (True, None),
    "List": ([True], [False]),
    "Text": ("True", "False"),
    "Dict": ({"agent": True}, {"agent": False}),
    "NaN": (True, np.nan),
    "Method": (True, Toy.observe),
    "Enum": (Status.OVER, Status.RUNNING),
}.items():
    gym.register(f"Ends{name}-v0", Ends, max_episode_steps=10, kwargs=dict(yes=yes, no=no))
gym.register("Wide-v0", Wide, max_episode_steps=10, kwargs={"change": lambda *result: result})
LATER = {  # by which what a step returns is replaced after a hundred steps
    "RewardArray": lambda obs, reward, *rest: (obs, np.array([reward]), *rest),
    "RewardMatrix": lambda obs, reward, *rest: (obs, np.array([[reward]]), *rest),
    "RewardNumber": lambda obs, reward, *rest: (obs, np.array(reward), *rest),
    "RewardDouble": lambda obs, reward, *rest: (obs, np.float64(reward), *rest),
    "RewardDecimal": lambda obs, reward, *rest: (obs, decimal(reward), *rest),
    "RewardList": lambda obs, reward, *rest: (obs, [reward], *rest),
    "ObsList": lambda obs, *rest: (obs.tolist(), *rest),
    "ObsDouble": lambda obs, *rest: (obs.astype(np.float64), *rest),
    "NoInfo": lambda *result: (*result[:-1], None),
    "TruncatedInt": lambda obs, reward, terminated, truncated, info: (obs, reward, 0, 0, info),
    "RewardNone": lambda obs, reward, *rest: (obs, None, *rest),
    "RewardPair": lambda obs, reward, *rest: (obs, [reward, reward], *rest),
    "RewardText": lambda obs, reward, *rest: (obs, "much", *rest),
    "ObsNone": lambda obs, *rest: (None, *rest),
    "ObsText": lambda obs, *rest: ("nothing", *rest),
    "ObsLong": lambda obs, *rest: (np.zeros(3, np.float32), *rest),
    "EndsPair": lambda obs, reward, _, *rest: (obs, reward, np.array([True, False]), *rest),
    "FourResults": lambda *result: result[:-1],
    "Nothing": lambda *result: None,
    "Fails": fail,
    "FailsSilently": fail_without_words,
    "FailsLikeSystem": fail_like_the_system,
    "Exits": lambda *_: sys.exit(0),
    "Rots": lambda obs, reward, *rest: (obs, np.nan, *rest),
    "ObsRots": lambda obs, *rest: (obs * np.inf, *rest),
}
for name, change in LATER.items():
    gym.register(f"{name}-v0", Later, max_episode_steps=10, kwargs={"change": change})
for name, change in {
    "Nothing": lambda *result: None,
    "None": lambda obs, info: (None, info),
    "Long": lambda obs, info: (np.zeros(3, np.float32), info),
    "Exits": lambda *_: sys.exit(0),
}.items():
    gym.register(f"Reset{name}-v0", LaterReset, max_episode_steps=10, kwargs={"change": change})
for name, change in {  # of three numbers one remains
    "ObsShort": lambda obs, *rest: (obs[:1], *rest),
    "ObsScalar": lambda obs, *rest: (obs[0], *rest),
}.items():
    gym.register(f"{name}-v0", Wide, max_episode_steps=10, kwargs={"change": change})
for name, sizes in {
    "Double": dict(obs=1e300),
    "DoubleReward": dict(reward=1e300),
    "Square": dict(obs=1e30),
    "SquareReward": dict(reward=1e30),
}.items():
    gym.register(f"Huge{name}-v0", Huge, max_episode_steps=10, kwargs=sizes)
for name, members in {
    "None": dict(picture=lambda n: None),
    "List": dict(picture=lambda n: [picture(n)]),
    "Fails": dict(picture=fail),
    "Channels": dict(picture=lambda n: picture(n).transpose(2, 0, 1)),
    "Floats": dict(picture=lambda n: picture(n) / 255),
    "Ints": dict(picture=lambda n: 2 * picture(n).astype(int)),
    "FpsInf": dict(picture=picture, fps=np.inf),
    "FpsZero": dict(picture=picture, fps=0),
    "FpsNone": dict(picture=picture, fps=None),
    "FailsLater": dict(picture=lambda n: picture(n) if n < 4 else fail()),
    "ExitsLater": dict(picture=lambda n: picture(n) if n < 4 else sys.exit(0)),
    "CancelledLater": dict(picture=lambda n: picture(n) if n < 4 else cancel()),
    "NoneLater": dict(picture=lambda n: picture(n) if n < 4 else None),
    "ListLater": dict(picture=lambda n: picture(n) if n < 4 else [picture(n)]),
    "GrowsLater": dict(picture=lambda n: picture(n) if n < 4 else np.zeros((32, 8, 3), np.uint8)),
    "Draws": dict(picture=lambda n: np.full((16, 16, 3), np.random.randint(256), np.uint8)),
}.items():
    gym.register(f"Film{name}-v0", Film, max_episode_steps=10, kwargs=members)
for name, space in {
    "Ints": Box(-1, 1, (1,), np.int64),
    "Bytes": Box(0, 255, (1,), np.uint8),
    "Matrix": Box(-1, 1, (2, 2)),
    "Number": Box(-1, 1, ()),
    "Discrete": Discrete(3),
    "Pair": MultiDiscrete([3, 4]),
    "Bits": MultiBinary(4),
    "Dict": Dict(a=Box(-1, 1, (1,))),
    "Doubles": Box(-1, 1, (1,), np.float64),
    "Nothing": Box(-1, 1, (0,)),
}.items():
    gym.register(f"Acts{name}-v0", Acts, max_episode_steps=10, kwargs={"space": space})
