"""ppo_atari: its games, network and update against references made apart, and whole runs."""

import io
import json
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ale_py import Action, ALEInterface, LoggerMode, roms
from conftest import Program, rows
from PIL import Image, ImageSequence
from test_gae import eq11

import ppo_atari

gym.register_envs(ale_py)
ALEInterface.setLoggerMode(LoggerMode.Error)
torch.set_num_threads(1)

PAPER = """Alien Amidar Assault Asterix Asteroids Atlantis BankHeist BattleZone BeamRider Bowling
Boxing Breakout Centipede ChopperCommand CrazyClimber DemonAttack DoubleDunk Enduro FishingDerby
Freeway Frostbite Gopher Gravitar IceHockey Jamesbond Kangaroo Krull KungFuMaster MontezumaRevenge
MsPacman NameThisGame Pitfall Pong PrivateEye Qbert Riverraid RoadRunner Robotank Seaquest
SpaceInvaders StarGunner Tennis TimePilot Tutankham UpNDown Venture VideoPinball WizardOfWor
Zaxxon""".split()
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
STEPS = {"breakout": 500, "pong": 1050, "seaquest": 700, "qbert": 600, "freeway": 2055}


class FakeRun:
    """Stands in for a script's Run: keeps what train() hands to it."""

    def __init__(self):
        self.rows = []
        self.ends = []  # (iteration, step, last)
        self.policies = []  # logits [T, N, A] and values [T, N] of each iteration

    def resume(self, **state):
        self.weights = {k: x.clone() for k, x in state["agent"].state_dict().items()}
        return 0

    def check(self, iteration, logits, values, **tensors):
        self.policies.append({"logits": logits.clone(), "values": values.clone()})

    def log(self, iteration, step, last, metrics):
        self.ends.append((iteration, step, last))
        self.rows.append(metrics)


def results(run_dir):
    """All that the same command must reproduce byte for byte."""
    times = dict(seconds="", sps="", rollout_seconds="", update_seconds="")
    metrics = [row | times for row in rows(run_dir / "metrics.csv")]
    names = ("episodes.csv", "agent.pt")
    return {"metrics.csv": metrics} | {name: (run_dir / name).read_bytes() for name in names}


# Games


def shares(size, pixels=84):
    """[pixels, size], how much of each of pixels comes from each of size smaller ones."""
    ends, starts = np.arange(pixels + 1) * size / pixels, np.arange(size)
    overlap = np.minimum.outer(ends[1:], starts + 1) - np.maximum.outer(ends[:-1], starts)
    return torch.from_numpy(overlap.clip(0) * pixels / size).float()


ROWS, COLUMNS = shares(210), shares(160)


class Emulator:
    """A game straight on the emulator, with the rules of the script's docstring."""

    def __init__(self, name, seed, sticky=0.0, limit=108_000):
        self.ale, self.rng, self.limit = ALEInterface(), np.random.RandomState(seed), limit
        self.ale.setFloat("repeat_action_probability", sticky)
        self.ale.setInt("random_seed", seed)
        self.ale.loadROM(roms.get_rom_path(name))
        self.actions = self.ale.getMinimalActionSet()
        self.start()

    def start(self):
        self.ale.reset_game()
        waits = int(self.rng.randint(0, 2**32, dtype=np.uint32)) * 30 >> 32
        if Action.FIRE in self.actions:
            self.ale.act(Action.FIRE)
            waits -= 1
        for _ in range(waits):
            self.ale.act(Action.NOOP)
        self.frames, self.lives = 0, self.ale.lives()
        self.last_two = [self.ale.getScreenGrayscale(), np.zeros((210, 160), np.uint8)]
        self.stack = np.zeros((84, 84, 4), np.float32)
        self.look()
        return self

    def look(self):
        self.last_two[0] = np.maximum(*self.last_two)
        grey = ROWS @ torch.from_numpy(self.last_two[0]).float() @ COLUMNS.T
        self.stack = np.dstack([self.stack[..., 1:], grey])

    def step(self, action):
        reward = 0
        for frame in range(4):
            reward += self.ale.act(self.actions[action])
            self.frames, self.lives = self.frames + 1, self.ale.lives()
            self.over, self.cut = self.ale.game_over(), self.frames >= self.limit
            if self.over or self.cut:
                break
            if frame >= 2:
                self.last_two[3 - frame] = self.ale.getScreenGrayscale()
        self.look()
        return reward

    def shows(self, obs):
        """obs is what is seen here, rounded; means over areas are multiples of 1 / 200."""
        return np.abs(obs - self.stack).max() < 0.5 + 1 / 400


class Wrapped:
    """A game in Gymnasium's own wrappers, without no-ops and FIRE at the start."""

    def __init__(self, name, seed):
        env = gym.make(f"ALE/{name.title()}-v5", frameskip=1, repeat_action_probability=0.0)
        ale = env.unwrapped.ale
        env.unwrapped.seed_game = lambda seed: ale.setInt("random_seed", seed)
        env = gym.wrappers.AtariPreprocessing(env, noop_max=0)
        self.env = gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")
        self.start(seed)

    def start(self, seed=None):
        self.obs, info = self.env.reset(seed=seed)
        self.lives = info["lives"]
        return self

    def step(self, action):
        self.obs, reward, self.over, self.cut, info = self.env.step(action)
        self.lives = info["lives"]
        return reward

    def shows(self, obs):
        return np.array_equal(obs, self.obs.transpose(1, 2, 0))


def games_of(reference, name, seed=1, seeding=0, num_envs=2):
    """Games from the seeds that Envs takes."""
    keys = [(seed, n, seeding) for n in range(num_envs)]
    seeds = [int(np.random.SeedSequence(key).generate_state(1)[0]) >> 1 for key in keys]
    return [reference(name, s) for s in seeds]


def limit_games(monkeypatch, frames):
    limited = partial(ppo_atari.make_env, max_num_frames_per_episode=frames)
    monkeypatch.setattr(ppo_atari, "make_env", limited)


class Player:
    """Plays games in Envs, half of the actions being action 1: FIRE, or UP in Freeway."""

    def __init__(self, num_envs=2, **flags):
        self.N, self.episodes, self.rng = num_envs, [], np.random.default_rng(1)
        self.args = ppo_atari.Args(num_envs=num_envs, minibatch_size=2, **flags)
        self.envs = ppo_atari.Envs(self.args, lambda *row: self.episodes.append(row))

    def step(self):
        """Actions, rewards, dones [N] and {n: final obs} of games that ran out of time."""
        any_action = self.rng.integers(self.envs.num_actions, size=self.N)
        actions = np.where(self.rng.random(self.N) < 0.5, 1, any_action)
        for games in self.envs.halves:
            games.send(actions[games.ids])
        steps = SimpleNamespace(**self.envs.pop_steps())
        (rewards,), (dones,) = steps.rewards.numpy(), steps.dones.numpy()
        assert all(t == 0 for t, _, _ in steps.truncations)
        return actions, rewards, dones, {n: obs.numpy() for _, n, obs in steps.truncations}

    def close(self):
        self.envs.close()

    def follows(self, games, steps, again=None):
        """Asserts that Envs equals games in every transition. Returns how often what was seen.

        again(n) is the game after a game n that has ended; without it, game n starts once more.
        """
        seen, episodes, score, length = Counter(), [], np.zeros(self.N), np.zeros(self.N, int)
        assert all(game.shows(obs) for game, obs in zip(games, self.envs.obs()))
        for step in range(1, steps + 1):
            lives = [game.lives for game in games]
            actions, rewards, dones, cuts = self.step()
            screens = self.envs.obs()
            lives_now = np.concatenate([games.lives for games in self.envs.halves])
            for n, action in enumerate(actions):
                reward = games[n].step(action)
                score[n], length[n] = score[n] + reward, length[n] + 1
                end, lost = games[n].over or games[n].cut, 0 < games[n].lives < lives[n]
                done = end or lost and self.args.episodic_life
                assert rewards[n] == (np.sign(reward) if self.args.clip_rewards else reward)
                assert dones[n] == done and (n in cuts) == (games[n].cut and not games[n].over)
                last = games[n].lives == 0 < lives[n] and not end
                kinds = dict(over=games[n].over, cut=games[n].cut, lost=lost, last=last)
                seen.update(points=int(abs(reward)), **{k: int(x) for k, x in kinds.items()})
                if end:
                    assert n not in cuts or games[n].shows(cuts[n])
                    episodes.append((self.N * step, score[n], length[n]))
                    score[n] = length[n] = 0
                    games[n] = again(n) if again else games[n].start()
                assert games[n].shows(screens[n]) and games[n].lives == lives_now[n]
        self.close()
        assert self.episodes == episodes
        return seen


def assert_plays_as(reference, name):
    long = name in ("pong", "freeway")  # games, of one life
    N = 1 if long else 3
    games = games_of(reference, name, num_envs=N)
    seen = Player(N, env_id=name).follows(games, STEPS[name])
    assert seen["over"] >= N and seen["points"] and (seen["lost"] > 2 * seen["over"]) != long


@pytest.mark.parametrize("name", STEPS)
def test_games_equal_a_scalar_reference(name):
    """Every transition across lives and games: no-ops and FIRE, 4 frames, pool, grey, stack."""
    assert_plays_as(Emulator, name)


@pytest.mark.parametrize("name", STEPS)
def test_games_equal_the_wrappers_of_gymnasium(name, monkeypatch):
    """The same, but for no-ops and FIRE, which those do not have in this form."""
    pytest.importorskip("cv2")
    plain = partial(ppo_atari.make_env, noop_max=0, use_fire_reset=False)
    monkeypatch.setattr(ppo_atari, "make_env", plain)
    assert_plays_as(Wrapped, name)


@pytest.mark.parametrize(
    "flags",
    [dict(repeat_action_probability=0.25), dict(episodic_life=False, clip_rewards=False, seed=7)],
    ids=["sticky", "raw"],
)
def test_games_follow_the_flags(flags):
    """In a game that goes on with 0 lives left, which as in the 2017 code does not end a return."""
    sticky = flags.get("repeat_action_probability", 0.0)
    games = games_of(partial(Emulator, sticky=sticky), "bank_heist", flags.get("seed", 1))
    seen = Player(env_id="bank_heist", **flags).follows(games, 450)
    assert seen["lost"] > 3 and seen["last"] and seen["points"]


@pytest.mark.parametrize("name", ["qbert", "freeway"])
def test_time_limit_truncates(name, monkeypatch):
    """After 150 frames, in the middle of step 38."""
    limit_games(monkeypatch, 150)
    games = games_of(partial(Emulator, limit=150), name)
    assert Player(env_id=name).follows(games, 200)["cut"] == 2 * (200 // 38)


def test_a_game_after_a_long_tape_has_a_new_seed(monkeypatch):
    """Which is a function of the run's seed, the game and how often that was seeded before."""
    monkeypatch.setattr(ppo_atari.Games, "tape_length", 1)
    seedings = Counter()

    def again(n):
        seedings[n] += 1
        return games_of(Emulator, "breakout", seeding=seedings[n])[n]

    assert Player(env_id="breakout").follows(games_of(Emulator, "breakout"), 300, again)["over"] > 2


@pytest.mark.parametrize("name, sticky", [("breakout", 0.25), ("qbert", 0.0), ("seaquest", 0.0)])
def test_games_saved_and_loaded_go_on_as_if_nothing_had_been(name, sticky, monkeypatch):
    """One Envs plays on; the other is saved and built anew, at reseedings and between them."""
    monkeypatch.setattr(ppo_atari.Games, "tape_length", 150)
    flags = dict(env_id=name, repeat_action_probability=sticky, num_envs=3)
    whole, broken = Player(**flags), Player(**flags)
    for step in range(450):
        if step == 300 or any(len(x.tape) == x.starts[0] for x in broken.envs.halves):
            file = io.BytesIO()
            torch.save(broken.envs.state_dict(), file)
            file.seek(0)
            broken.close()
            broken.envs = ppo_atari.Envs(broken.args, broken.envs.on_episode)
            broken.envs.load_state_dict(torch.load(file, weights_only=True))
        for x, y in zip((*broken.step(), broken.envs.obs()), (*whole.step(), whole.envs.obs())):
            np.testing.assert_array_equal(x, y)
    assert broken.episodes == whole.episodes
    assert broken.envs.global_step == 1350 and broken.envs.num_restarts == 0
    states = [player.envs.state_dict()["halves"] for player in (broken, whole)]
    for ours, theirs in zip(*states):
        for key, x in theirs.items():
            np.testing.assert_array_equal(ours[key], x)
    first, _ = states[0]
    assert max(first["seedings"]) >= 1 and len(set(first["starts"].tolist())) == 2
    for player in (whole, broken):
        player.close()


def test_a_game_that_does_not_repeat_itself_starts_anew(capfd):
    """It alone, as the game of a seed of its own, which a later checkpoint then repeats."""
    player = Player(env_id="breakout")
    for _ in range(200):
        player.step()
    state = player.envs.state_dict()
    lengths = [int(half["lengths"][0]) for half in state["halves"]]
    assert min(lengths) > 0
    state["halves"][1]["screens"][0] += 1
    player.envs.load_state_dict(state)
    assert player.envs.num_restarts == 1
    assert "game 1 is not deterministic" in capfd.readouterr().out
    first, second = player.envs.halves
    assert first.lengths[0] == lengths[0] and first.seedings[0] == 0
    assert second.lengths[0] == second.returns[0] == 0 and second.seedings[0] == 1
    assert games_of(Emulator, "breakout", seeding=1)[1].shows(second.screens[0])
    for _ in range(20):
        player.step()
    player.envs.load_state_dict(player.envs.state_dict())
    assert player.envs.num_restarts == 1 and second.lengths[0] == 20
    player.close()


def test_a_game_cut_by_time_is_bootstrapped_from_its_last_screen(monkeypatch):
    """The rewards that gae() is given are those of the games, plus gamma V where time ran out."""
    limit_games(monkeypatch, 30)
    args = ppo_atari.Args(
        env_id="breakout", num_envs=2, num_steps=20, minibatch_size=40, total_timesteps=40,
        learning_rate=1e-12, network="a3c", init="torch", cuda=False,
    )  # fmt: skip
    envs, given = ppo_atari.Envs(args, lambda *_: None), []
    gae, pop_steps, popped = ppo_atari.gae, envs.pop_steps, {}

    def noted_steps():
        popped.update(pop_steps())
        return popped | {"rewards": popped["rewards"].clone()}

    envs.pop_steps = noted_steps
    monkeypatch.setattr(ppo_atari, "gae", lambda *x: given.append(x) or gae(*x))
    agent = ppo_atari.train(args, envs, FakeRun())
    rewards, dones, truncations = popped["rewards"], popped["dones"], popped["truncations"]
    assert [(t, n) for t, n, _ in truncations] == [(7, 0), (15, 0), (7, 1), (15, 1)]
    assert dones.nonzero().tolist() == [[7, 0], [7, 1], [15, 0], [15, 1]]
    for t, n, final_obs in truncations:
        with torch.no_grad():
            rewards[t, n] += 0.99 * agent(final_obs[None])[1].item()
    np.testing.assert_allclose(given[0][0], rewards, rtol=1e-5, atol=1e-6)
    assert np.count_nonzero(rewards) >= 4
    envs.close()


@pytest.mark.skipif(sys.platform != "linux", reason="SCHED_BATCH is Linux's")
def test_emulators_do_not_displace_the_network():
    def threads():
        return set(os.listdir("/proc/self/task"))

    before, policy = threads(), os.sched_getscheduler(0)
    games = ppo_atari.make_env(ppo_atari.Args(env_id="breakout"), num_envs=4)
    games.reset()  # takes longer than the thread that began them takes to end
    assert {os.sched_getscheduler(int(i)) for i in threads() - before} == {os.SCHED_BATCH}
    assert os.sched_getscheduler(0) == policy


@pytest.mark.parametrize("name", PAPER)
def test_usual_spellings_of_the_games_of_the_paper(name):
    snake = re.sub("(?<!^)(?=[A-Z])", "_", name).lower()
    spellings = [name, name.lower(), snake, f"ALE/{name}-v5", f"ALE/{name}", f"{name}-v4"]
    spellings += [f"{name}NoFrameskip-v4", f"{name}Deterministic-v0"]
    spellings += [f" {name} ", snake.replace("_", "-"), snake.replace("_", ". ")]
    assert len(PAPER) == 49 and roms.get_rom_path(ppo_atari.resolve(name)).exists()
    assert {ppo_atari.resolve(s) for s in spellings} == {gym.spec(f"ALE/{name}-v5").kwargs["game"]}


@pytest.mark.parametrize(
    "name, nearest",
    [("Brekout-v5", ": breakout"), ("MissPacman", ": ms_pacman"), ("Ponk", ": pong"), ("1x1", "")],
)
def test_unknown_games_are_refused_with_the_nearest(name, nearest):
    with pytest.raises(ppo_atari.Stop, match=f"{name}: no such Atari game.*{nearest}") as stop:
        ppo_atari.resolve(name)
    assert stop.value.code == 2 and ("nearest" in str(stop.value)) == bool(nearest)


def test_games_that_need_two_players_are_refused_and_never_offered():
    """All others can be made: those that ALE lists and cannot make end the process."""
    unplayable = {"combat", "joust", "maze_craze", "warlords"}
    for rom in roms.get_all_rom_ids():
        if rom not in unplayable:
            assert ppo_atari.resolve(rom) == rom
    for name in (*unplayable, "Combat-v5", "MazeCraze", "jousts", "combaf", "mazecrazy", "warlord"):
        with pytest.raises(ppo_atari.Stop, match="no such Atari game for one player") as stop:
            ppo_atari.resolve(name)
        _, _, offered = str(stop.value).partition("nearest: ")
        assert not unplayable & set(offered.split(", "))


def emulator_threads(before):
    """Those begun since before; one that has ended may be listed for a moment."""
    for _ in range(100):
        if not (threads := set(os.listdir("/proc/self/task")) - before):
            break
        time.sleep(0.01)
    return threads


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_emulators_end_with_what_made_them(monkeypatch, tmp_path):
    """Envs that are closed, in the middle of a step too; a film that is stopped or fails."""
    before = set(os.listdir("/proc/self/task"))
    args = ppo_atari.Args(env_id="breakout", num_envs=2, minibatch_size=2, cuda=False)
    envs = ppo_atari.Envs(args, print)
    envs.run_halves(lambda games: games.send(np.zeros(1, np.int64)))
    assert len(emulator_threads(before)) >= 3
    envs.close()
    assert not emulator_threads(before)
    agent, film = ppo_atari.Agent(4, args), tmp_path / "videos/film.gif"
    assert ppo_atari.play(args, agent, 1, film, stop=lambda: True) == 0.0
    assert not film.exists() and not emulator_threads(before)
    monkeypatch.setattr(ppo_atari.Image, "fromarray", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ppo_atari.play(args, agent, 1, film)
    assert not emulator_threads(before)


def test_a_game_that_fails_is_named():
    player = Player(env_id="breakout")
    first, _ = player.envs.halves
    first.envs.recv = lambda: 1 / 0
    with pytest.raises(ppo_atari.Stop, match="breakout failed in step: ZeroDivision") as stop:
        player.step()
    assert stop.value.code == 1
    player.close()


# Network and update


def network(w, obs):
    """log pi and V of obs [B, 84, 84, 4], in float64 from weights w by name, channels first."""
    w = {name: x.double() for name, x in w.items()}
    x = torch.as_tensor(obs).permute(0, 3, 1, 2).double() / 255
    convolutions = [name[:-7] for name in w if re.fullmatch("convs.*weight", name)]
    for name, stride in zip(convolutions, (4, 2, 1)):
        x = F.relu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride))
    x = x.permute(0, 2, 3, 1).flatten(1)  # row, column, channel
    x = F.relu(F.linear(x, w["hidden.weight"], w["hidden.bias"]))
    logits = F.linear(x, w["actor.weight"], w["actor.bias"])
    return logits.log_softmax(-1), F.linear(x, w["critic.weight"], w["critic.bias"])[:, 0]


def screens(*shape):
    return torch.randint(0, 256, (*shape, 84, 84, 4), dtype=torch.uint8)


@pytest.mark.parametrize("kind, size", [("nature", 1_687_719), ("a3c", 677_943)])
def test_agent_equals_a_reference(kind, size):
    """Closely in float32; bfloat16 makes a difference, but a small one."""
    torch.manual_seed(1)
    agent, obs = ppo_atari.Agent(6, ppo_atari.Args(network=kind, init="torch")), screens(5)
    with torch.no_grad():
        (pi, value), expected = agent(obs), network(agent.state_dict(), obs)
        rough = agent(obs, bf16=True)
    assert pi.logits.shape == (5, 6) and value.shape == (5,)
    for x, y, z in zip((pi.logits, value), (rough[0].logits, rough[1]), expected):
        torch.testing.assert_close(x.double(), z, atol=1e-5, rtol=1e-5)
        assert y.dtype == torch.float32
        assert 1e-5 < (y - z).abs().max() < 0.02
    assert sum(p.numel() for p in agent.parameters()) == size


class FakeEnvs:
    """Games that show and pay the same whatever the actions; the time of some runs out."""

    num_actions = 3

    def __init__(self, num_envs):
        self.N, self.told, self.steps = num_envs, 0, []
        ids = slice(0, num_envs // 2), slice(num_envs // 2, num_envs)
        self.halves = [SimpleNamespace(ids=i, actions=[]) for i in ids]
        for games in self.halves:
            games.obs, games.send = partial(self.obs, games), partial(self.send, games)

    def step(self, t):
        """screens, rewards, dones, truncated, final_obs of step t."""
        rng = np.random.default_rng(t)
        dones = (rng.random(self.N) < 0.3).astype(np.float32)
        truncated = (dones > 0) & (rng.random(self.N) < 0.7)
        rewards = rng.integers(-1, 2, self.N).astype(np.float32)
        screens, final_obs = rng.integers(0, 256, (2, self.N, 84, 84, 4), dtype=np.uint8)
        return screens, rewards, dones, truncated, final_obs

    def obs(self, games=None):
        screens, *_ = self.step(len((games or self.halves[0]).actions))
        return screens[games.ids] if games else screens

    def run_halves(self, function):
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(function, self.halves))

    def send(self, games, actions):
        games.actions.append(actions.copy())

    @property
    def played(self):
        """(screens, actions, rewards, dones, truncated, final_obs) of each step of all games."""
        for actions in list(zip(*(games.actions for games in self.halves)))[len(self.steps) :]:
            screens, *outcome = self.step(len(self.steps))
            self.steps.append((screens, np.concatenate(actions), *outcome))
        return self.steps

    def pop_steps(self):
        _, _, rewards, dones, truncated, final_obs = zip(*self.played[self.told :])
        self.told = len(self.played)
        truncations = [(t, n, torch.tensor(final_obs[t][n])) for t, n in np.argwhere(truncated)]
        steps = dict(rewards=torch.tensor(np.array(rewards)), dones=torch.tensor(np.array(dones)))
        return steps | dict(truncations=truncations)


def reference(args, w):
    """Algorithm 1 on FakeEnvs from weights w, once more and in float64; epochs of 4 minibatches."""
    envs, rows, norms = FakeEnvs(args.num_envs), [], []
    w = {name: x.clone().requires_grad_() for name, x in w.items()}
    first, second = ({name: torch.zeros_like(x) for name, x in w.items()} for _ in range(2))
    T, N = args.num_steps, args.num_envs
    for iteration in range(args.num_iterations):
        rng = np.random.default_rng((args.seed, 1 + iteration))
        alpha = 1 - iteration / args.num_iterations
        step_size = args.learning_rate * (alpha if args.anneal_lr else 1)
        epsilon = args.clip_coef * (alpha if args.anneal_clip_coef else 1)
        noise = rng.gumbel(size=(T, N, 3)).astype(np.float32)
        logp, values, rewards, dones = [], [], [], []
        with torch.no_grad():
            for t in range(T):
                logits, value = network(w, envs.obs())
                actions = (logits.numpy() + noise[t]).argmax(-1)
                for games in envs.halves:
                    games.send(actions[games.ids])
                *_, reward, done, truncated, final_obs = envs.played[-1]
                cut_value = args.gamma * truncated * network(w, final_obs)[1].numpy()
                dones.append(done)
                rewards.append(reward + args.bootstrap_truncated * cut_value)
                logp.append(logits)
                values.append(value.numpy())
            last_value = network(w, envs.obs())[1].numpy()
        obs, actions = (np.concatenate(x) for x in list(zip(*envs.played[-T:]))[:2])
        old_logp = torch.cat(logp)[range(T * N), actions]
        rollout = np.array(rewards), np.array(values), np.array(dones), last_value
        adv, values = eq11(*rollout, args.gamma, args.gae_lambda).ravel(), np.ravel(values)
        targets = adv + values
        if args.norm_adv == "batch":
            adv = (adv - adv.mean()) / (adv.std(ddof=1) + 1e-8)

        metrics = []
        for _ in range(args.update_epochs):
            if metrics and args.target_kl and np.mean(metrics[-4:], 0)[3] > args.target_kl:
                break
            for at in np.split(rng.permutation(T * N), T * N // args.minibatch_size):
                A, target, old_value = (torch.tensor(x[at]) for x in (adv, targets, values))
                if args.norm_adv == "minibatch":
                    A = (A - A.mean()) / (A.std() + 1e-8)
                logits, value = network(w, obs[at])
                log_ratio = logits[range(len(at)), actions[at]] - old_logp[at]
                ratio, low, high = log_ratio.exp(), 1 - epsilon, 1 + epsilon
                if args.clip_log_ratio:
                    low, high = np.exp([-epsilon, epsilon])
                flat = (A > 0) & (ratio > high) | (A < 0) & (ratio < low)
                policy = (torch.where(flat, ratio.detach().clip(low, high), ratio) * A).mean()
                error = (value - target) ** 2
                if args.clip_vloss:
                    near = value.clip(old_value - args.clip_vloss, old_value + args.clip_vloss)
                    error = torch.maximum(error, (near - target) ** 2)
                entropy = -(logits.exp() * logits).sum(-1).mean()
                objective = policy - args.vf_coef * error.mean() + args.ent_coef * entropy
                gradients = dict(zip(w, torch.autograd.grad(objective, w.values())))
                norm = sum(g.square().sum() for g in gradients.values()).sqrt()
                kl, clipped = (ratio - 1 - log_ratio).mean(), (ratio > high) | (ratio < low)
                row = policy, error.mean(), entropy, kl, clipped.double().mean()
                metrics.append([x.item() for x in row])
                norms.append(norm.item())
                for name, g in gradients.items():
                    if args.max_grad_norm and norm > args.max_grad_norm:
                        g = g * args.max_grad_norm / (norm + 1e-6)
                    first[name] = 0.9 * first[name] + 0.1 * g
                    second[name] = 0.999 * second[name] + 0.001 * g * g
                    mean = first[name] / (1 - 0.9 ** len(norms))
                    std = (second[name] / (1 - 0.999 ** len(norms))).sqrt()
                    w[name].data += step_size * mean / (std + args.adam_eps)
        row = dict(zip(ppo_atari.METRICS, np.mean(metrics, 0)), learning_rate=step_size)
        rows.append(row | dict(explained_variance=1 - (targets - values).var() / targets.var()))
    return envs, rows, w, norms


@pytest.mark.parametrize(
    "flags",
    [
        {},
        dict(
            network="a3c", norm_adv="minibatch", clip_log_ratio=True, clip_vloss=0.05,
            max_grad_norm=1.5, bootstrap_truncated=False, gamma=0.9, gae_lambda=0.8, vf_coef=0.5,
        ),
        dict(
            anneal_lr=False, anneal_clip_coef=False, norm_adv="none", max_grad_norm=None,
            target_kl=0.003,
        ),
    ],
    ids=["defaults", "others", "constant"],
)  # fmt: skip
def test_two_iterations_equal_an_independent_implementation(flags, monkeypatch):
    """Actions, metrics and weights of 3 epochs of 4 minibatches, in float64."""
    size = dict(num_envs=2, num_steps=8, minibatch_size=4, total_timesteps=32)
    args = ppo_atari.Args(**size, seed=3, learning_rate=1e-3, cuda=False, **flags)
    notes, envs = FakeRun(), FakeEnvs(2)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    try:
        agent = ppo_atari.train(args, envs, notes)
    finally:
        torch.set_default_dtype(torch.float32)

    expected_envs, expected_rows, weights, norms = reference(args, notes.weights)
    for step, expected in zip(envs.played, expected_envs.played):
        for x, y in zip(step, expected):
            np.testing.assert_array_equal(x, y)
    for row, expected in zip(notes.rows, expected_rows):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-7)
    for name, x in weights.items():
        np.testing.assert_allclose(agent.state_dict()[name], x.detach(), rtol=1e-5, atol=1e-7)
        assert (x - notes.weights[name]).abs().max() > 1e-5
    if args.max_grad_norm:
        assert len({norm > args.max_grad_norm for norm in norms}) == (2 if flags else 1)
    epochs = (3, 3) if args.target_kl is None else (1, 3)
    assert len(norms) == 4 * sum(epochs)
    assert all(row["clip_fraction"] > 0 for row in notes.rows)


@pytest.mark.parametrize("init", ["orthogonal", "normc"])
@pytest.mark.parametrize("network", ["nature", "a3c"])
def test_initial_weights(network, init):
    """Orthogonal, or of unit norm into each unit, times a gain; biases of 0."""
    agent = ppo_atari.Agent(6, ppo_atari.Args(network=network, init=init))
    for layer in (*agent.convs[::2], agent.hidden, agent.actor, agent.critic):
        gain = {agent.actor: 0.01, agent.critic: 1.0}.get(layer, 2**0.5)
        rows = layer.weight.detach().flatten(1)
        found = torch.linalg.svdvals(rows) if init == "orthogonal" else rows.norm(dim=1)
        expected = torch.full_like(found, gain if init == "orthogonal" else min(gain, 1))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert (layer.bias == 0).all()


@pytest.mark.parametrize("deterministic", [True, False])
def test_convolutions_are_in_float32_and_repeat_themselves(deterministic, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", not deterministic)
    flags = dict(cuda=False, num_threads=1, torch_deterministic=deterministic)
    ppo_atari.prepare(ppo_atari.Args(**flags))
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.deterministic == deterministic


@needs_gpu
def test_gpu_equals_the_same_implementation():
    """Graphs, in float32: a layer moves to a hundredth as in float64; TF32 is a tenth off."""
    size = dict(num_envs=4, num_steps=8, minibatch_size=16, total_timesteps=32, update_epochs=1)
    args, notes, envs = ppo_atari.Args(**size, seed=3), FakeRun(), FakeEnvs(4)
    torch.backends.cudnn.allow_tf32 = False
    agent = ppo_atari.train(args, envs, notes)
    begin = {name: x.cpu().double() for name, x in notes.weights.items()}
    expected_envs, expected_rows, weights, _ = reference(args, begin)
    for step, expected in zip(envs.played, expected_envs.played):
        for x, y in zip(step, expected):
            np.testing.assert_array_equal(x, y)
    assert notes.rows[0] == pytest.approx(expected_rows[0], rel=1e-4, abs=1e-6)
    for name, x in weights.items():
        error = agent.state_dict()[name].cpu() - x.detach()
        assert error.norm() < 1e-2 * (x.detach() - begin[name]).norm(), name


def test_bfloat16_changes_an_update_but_little_and_a_rollout_not_at_all():
    size = dict(num_envs=4, num_steps=16, minibatch_size=16, total_timesteps=64, update_epochs=1)
    plain, rough = FakeRun(), FakeRun()
    for notes, bf16 in ((plain, False), (rough, True)):
        args = ppo_atari.Args(**size, bf16=bf16, cuda=False)
        agent = ppo_atari.train(args, FakeEnvs(4), notes)
        assert {p.dtype for p in agent.parameters()} == {torch.float32}
    for x, y in zip(*(notes.policies[0].values() for notes in (plain, rough)), strict=True):
        assert torch.equal(x, y)
    assert rough.rows[0] != plain.rows[0]
    assert rough.rows[0] == pytest.approx(plain.rows[0], rel=0.1, abs=1e-4)


@pytest.mark.parametrize("processor, expected", [("AVX2", "slower with it"), ("AVX512", "")])
def test_bfloat16_says_where_it_is_slow(processor, expected, monkeypatch, capfd):
    def stop(*_):
        raise ppo_atari.Stop(2, "far enough")

    monkeypatch.setattr(ppo_atari, "Run", stop)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    monkeypatch.setattr(sys, "argv", ["ppo_atari.py", "--bf16", "--no-cuda"])
    assert ppo_atari.main(ppo_atari.train, ppo_atari.Args, ppo_atari.__file__) == 2
    assert expected in (said := capfd.readouterr().out) and bool(said) == bool(expected)


class Graph:
    """Stands in for a CUDA graph: notes what is called in its capture, and repeats it."""

    noted = None

    def replay(self):
        function, inputs, result = self.noted
        result.copy_(function(*inputs))


def test_graphs_are_captured_once_for_each_size(monkeypatch):
    """As far as no GPU is needed: what capturing changed is undone, inputs are the latest, and
    what an earlier call returned stays as it was."""
    stream, weight = SimpleNamespace(wait_stream=lambda _: None), torch.nn.Linear(1, 1).weight
    learner, capturing, graphs = torch.nn.ParameterList([weight]), [], []

    @contextmanager
    def capture(graph):
        graphs.append(graph)
        capturing.append(graph)
        yield
        capturing.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *_, copy: x.clone())

    def function(x, y):
        weight.data += 1
        result = x + y + weight.detach()[0]
        for graph in capturing:
            graph.noted = function, (x, y), result
        return result

    monkeypatch.setattr(ppo_atari, "device_of", lambda _: SimpleNamespace(type="cuda"))
    args = ppo_atari.Args()
    before, step = weight.item(), ppo_atari.graphed(function, learner, args)
    results, sums = [], []
    for calls, size in enumerate((2, 3, 2), 1):
        x, y = torch.randn(size), torch.randn(size)
        results.append(step(x, y))
        sums.append(x + y + before + calls)
    for result, expected in zip(results, sums):
        torch.testing.assert_close(result, expected)
    assert len(graphs) == 2
    assert ppo_atari.graphed(function, learner, ppo_atari.Args(compile=False)) is function
    monkeypatch.undo()
    assert ppo_atari.graphed(function, learner, ppo_atari.Args(cuda=False)) is function


def test_actions_are_independent_samples_of_pi(monkeypatch):
    """Pairs of neighbours in a batch, and pairs of steps, come as often as pi times pi says."""
    p = torch.tensor([0.5, 0.35, 0.15])

    class Constant(torch.nn.Module):
        def __init__(self, *_):
            super().__init__()
            self.logits = torch.nn.Parameter(p.log())

        def forward(self, obs, bf16=False):
            zero = 0 * self.logits.sum().expand(len(obs))
            return torch.distributions.Categorical(logits=self.logits + zero[:, None]), zero

    monkeypatch.setattr(ppo_atari, "Agent", Constant)
    flags = dict(learning_rate=1e-12, update_epochs=1, minibatch_size=1000, total_timesteps=8000)
    args, envs = ppo_atari.Args(num_envs=20, num_steps=50, cuda=False, **flags), FakeEnvs(20)
    ppo_atari.train(args, envs, FakeRun())
    actions = np.array([step[1] for step in envs.played])
    for first, second in ((actions[:, ::2], actions[:, 1::2]), (actions[::2], actions[1::2])):
        count = np.bincount((3 * first + second).ravel(), minlength=9)
        expected = 4000 * np.outer(p, p).ravel()
        assert (np.square(count - expected) / expected).sum() < 26  # p = 0.001 on 8 degrees


# Runs

ARGV = """--num-envs 2 --num-steps 64 --minibatch-size 64 --update-epochs 1 --total-timesteps 1280
--network a3c --checkpoint-every 3 --run-dir run""".split()


@pytest.fixture(scope="module", params=["--no-cuda", pytest.param("--cuda", marks=needs_gpu)])
def device(request):
    return request.param


@pytest.fixture(scope="module")
def whole(tmp_path_factory, device):
    """The directory of a run of ten iterations that nothing happened to."""
    cwd = tmp_path_factory.mktemp("whole") / "cwd"
    program = Program(ppo_atari, cwd, *ARGV, device)
    assert program.wait() == 0 and program.err == "", program.err
    return cwd / "run"


def test_directory_holds_what_the_contract_says(whole):
    files = {"ppo_atari.py", "args.json", "episodes.csv", "metrics.csv", "checkpoint.pt"}
    assert {path.name for path in whole.iterdir()} == files | {"agent.pt", "summary.json"}
    summary = json.loads((whole / "summary.json").read_text())
    episodes, metrics = rows(whole / "episodes.csv"), rows(whole / "metrics.csv")
    scores = [float(row["episodic_return"]) for row in episodes]
    assert summary["status"] == "finished" and summary["restarted_episodes"] == 0
    assert summary["score"] == summary["score_all"] == np.mean(scores)
    assert summary["episodes"] == len(scores) > 2 and summary["global_step"] == 1280
    assert [int(row["global_step"]) for row in metrics] == list(range(128, 1281, 128))
    assert float(metrics[-1]["learning_rate"]) == pytest.approx(2.5e-5)
    assert json.loads((whole / "args.json").read_text())["env_id"] == "breakout"


def test_divergence_ends_the_run_with_3(device, tmp_path):
    """Even where the weights become NaN in the middle of an update."""
    flags = "--learning-rate 1e9 --no-anneal-lr --update-epochs 3 --max-grad-norm 1e12".split()
    program = Program(ppo_atari, tmp_path / "cwd", *ARGV, device, *flags)
    assert program.wait() == 3
    assert re.fullmatch(r".*diverged in iteration 1: [\w.]+ is not finite\n", program.err)
    summary = json.loads((tmp_path / "cwd/run/summary.json").read_text())
    assert summary["status"] == "diverged"


def test_killed_run_ends_with_the_same_bytes(whole, device, tmp_path):
    """Stopped after the second iteration, killed after the fifth, which is no checkpoint's."""
    cwd = tmp_path / "cwd"
    metrics = cwd / "run/metrics.csv"
    for iterations, signum, code in ((2, signal.SIGTERM, 143), (5, signal.SIGKILL, -9)):
        program = Program(ppo_atari, cwd, *ARGV, device)
        program.until(lambda n=iterations: metrics.exists() and len(rows(metrics)) >= n)
        assert program.wait(signum) == code
        assert iterations <= len(rows(metrics)) < 10
    program = Program(ppo_atari, cwd, *ARGV, device)
    assert program.wait() == 0, program.err
    assert "goes on after iteration" in program.out and "warning" not in program.out
    assert results(cwd / "run") == results(whole)


def test_film_is_the_game_in_colour(whole, tmp_path, monkeypatch, capfd):
    """--eval with --capture-video: ten games as people see them, cut short here."""
    limit_games(monkeypatch, 60)
    run = shutil.copytree(whole, tmp_path / "run")
    argv = ["--eval", str(run), "--capture-video"]
    args = ppo_atari.parse(argv, ppo_atari.Args, ppo_atari.__file__, "")
    assert ppo_atari.evaluate(args, ppo_atari.Agent) == 0
    out = capfd.readouterr().out
    films = sorted(run.glob("videos/*.gif"), key=lambda path: int(path.stem.split("-")[-1]))
    assert len(films) == 10 and all(str(film) in out for film in films)
    assert re.search(r"mean [\d.]+ \(95% -?[\d.]+ to [\d.]+\)", out)
    for i, film in enumerate(films[:3]):
        gif, (game,) = Image.open(film), games_of(Emulator, "breakout", 1000 + i, num_envs=1)
        frames = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
        np.testing.assert_array_equal(frames[0], game.ale.getScreenRGB())
        assert len(frames) > 5 and np.ptp(frames[-1].astype(int), axis=-1).max() > 100
        shown = sum(frame.info["duration"] for frame in ImageSequence.Iterator(gif))
        assert abs(shown - 1000 * 16 / 15) <= 10  # 16 steps, 15 a second


def test_a_film_ends_before_a_long_game_and_costs_seconds(tmp_path):
    """500 frames, every second step; the return is of the whole game."""
    args = ppo_atari.Args(env_id="freeway", network="a3c", cuda=False)
    agent, films = ppo_atari.Agent(3, args), (tmp_path / "videos/film.gif", None)
    filmed, plain = (ppo_atari.play(args, agent, 3, film) for film in films)
    assert filmed == plain
    durations = [x.info["duration"] for x in ImageSequence.Iterator(Image.open(films[0]))]
    assert 250 < len(durations) <= 500 and abs(sum(durations) - 500 / 7.5 * 1000) <= 10


def test_ctrl_c_ends_a_film_and_then_the_run(tmp_path):
    """In the first film of a run, after which a checkpoint is written as everywhere."""
    cwd = tmp_path / "cwd"
    argv = [*ARGV, "--no-cuda", "--capture-video", "--env-id", "pong"]
    program = Program(ppo_atari, cwd, *argv)
    program.until(lambda: (cwd / "run/metrics.csv").exists() and rows(cwd / "run/metrics.csv"))
    assert program.wait(signal.SIGINT) == 130, program.err
    assert json.loads((cwd / "run/summary.json").read_text())["status"] == "interrupted"
    assert (cwd / "run/checkpoint.pt").exists() and not list(cwd.glob("run/videos/*"))


@pytest.mark.parametrize(
    "env_id, word", [("freeway", "not for freeway"), ("hopper", "no such Atari game")]
)
def test_eval_refuses_a_game_that_is_not_the_agents(env_id, word, whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "cwd/run") / "args.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"env_id": env_id}))
    program = Program(ppo_atari, tmp_path / "cwd", "--eval", "run")
    assert program.wait() == 2 and program.err.count("\n") == 1
    assert "--eval run" in program.err and word in program.err


def test_eval_refuses_a_game_that_the_run_did_not_play(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "cwd/run")
    program = Program(ppo_atari, tmp_path / "cwd", "--eval", "run", "--env-id", "Freeway")
    assert program.wait() == 2 and program.err.count("\n") == 1
    assert "--eval run" in program.err and "its own task: --env-id" in program.err


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--env-id Brekout", "--env-id Brekout nearest breakout"),
        ("--env-id Hopper-v4", "--env-id Hopper-v4 no such Atari game"),
        ("--env-id combat", "--env-id combat no such Atari game for one player"),
        ("--clip-coef 0", "--clip-coef 0 must be"),
        ("--num-envs 1.5", "--num-envs 1.5 must be an int"),
        ("--repeat-action-probability 1.1", "--repeat-action-probability 1.1 must be"),
        ("--minibatch-size 100", "--minibatch-size 100 8 * 128"),
        ("--total-timesteps 1e3", "--total-timesteps 1000 8 * 128"),
        ("--eval nowhere", "--eval nowhere not a finished run"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(argv, words, tmp_path):
    program = Program(ppo_atari, tmp_path / "cwd", *argv.split())
    assert program.wait() == 2 and not any((tmp_path / "cwd").iterdir())
    assert program.err.count("\n") == 1 and all(word in program.err for word in words.split())
