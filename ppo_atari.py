# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0", "ale-py==0.12.1", "numpy>=2", "pillow>=9.1",
#   "tyro>=1.0.17", "wandb>=0.31"]
# ///
"""PPO with the clipped surrogate objective, for Atari games (section 6.4).

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347.

    python ppo_atari.py --env-id Breakout --run-dir runs/breakout    train; again: resume
    python ppo_atari.py --eval runs/breakout                         play ten games
    python ppo_atari.py --help                                       explain every flag

Algorithm 1, in this file's names. Each iteration
    runs the policy in num_envs environments for num_steps steps   rollout()
    estimates advantages, eqs. 11 and 12                           estimate(), gae()
    takes update_epochs passes over minibatches, eqs. 7 and 9      update(), surrogate()

The defaults are those of Table 5. (+) marks what is not in the paper; each has its flag.
Scores are raw, of whole games. Shapes: T num_steps, N num_envs, M minibatch_size, A number of
actions, B any number of screens; obs [..., 84, 84, 4] uint8.
"""

import ctypes
import difflib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, make_dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO, StringIO
from itertools import chain, count
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
import tyro
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from PIL import Image
from torch import nn
from torch.distributions import Categorical
from torch.utils._pytree import tree_leaves

Int = int | float  # what may be typed as 1e6; check_numbers() makes it an int


@dataclass
class Common:
    """Of every algorithm; (+) is not in the paper"""

    env_id: str = "Breakout"  # in any usual spelling
    total_timesteps: Int = 10_000_000  # of 4 frames each, rounded down to whole iterations
    seed: Int = 1
    num_envs: Int = 8  # N, actors
    network: Literal["nature", "a3c"] = "nature"  # (+) the paper cites A3C's, code used Nature's
    init: Literal["orthogonal", "normc", "torch"] = "orthogonal"  # (+) kind of initial weights
    episodic_life: bool = True  # (+) a life lost ends the return, though not the game
    clip_rewards: bool = True  # (+) learn from the sign of rewards
    repeat_action_probability: float = 0.0  # (+) sticky actions
    run_dir: str | None = None  # run directory; if it holds this run, resume it
    checkpoint_every: Int = 25  # iterations
    exp_name: str | None = None  # the script's name, if not given
    cuda: bool = True  # use the GPU, if any
    compile: bool = True  # on a GPU, replay CUDA graphs; no torch.compile, nothing on the CPU
    torch_deterministic: bool = True  # on a GPU, only convolutions that repeat bit for bit
    num_threads: Int = 0  # CPU threads, 0 for all
    save_model: bool = True  # write agent.pt at the end
    capture_video: bool = False  # film a game every tenth of the run, or those of --eval
    eval: str | None = None  # play ten games with the agent of this run directory, on the CPU
    track: bool = False  # log to Weights & Biases, too
    wandb_project_name: str = "ppo"
    wandb_entity: str | None = None


@dataclass
class Advantages:
    """Rollouts and advantages, section 5; (+) is not in the paper"""

    num_steps: Int = 128  # T, horizon of one rollout
    gamma: float = 0.99  # discount
    gae_lambda: float = 0.95  # lambda of eq. 11
    norm_adv: Literal["batch", "minibatch", "none"] = "batch"  # (+) standardise advantages over it
    bootstrap_truncated: bool = True  # (+) where a time limit cuts a game, add gamma V(s_T)

    batch_size = property(lambda self: self.num_envs * self.num_steps)
    num_iterations = property(lambda self: self.total_timesteps // self.batch_size)


@dataclass
class Ppo:
    """Table 5 of the paper; (+) is not in the paper"""

    learning_rate: float = 2.5e-4  # Adam's step size
    anneal_lr: bool = True  # alpha: decrease the step size linearly to 0
    update_epochs: Int = 3  # K, passes over the rollout
    minibatch_size: Int = 256  # M
    clip_coef: float = 0.1  # epsilon of eq. 7
    anneal_clip_coef: bool = True  # alpha: decrease epsilon likewise
    clip_log_ratio: bool = False  # clip log r to +- epsilon instead (the paper: no better)
    vf_coef: float = 1.0  # c1 of eq. 9
    ent_coef: float = 0.01  # c2 of eq. 9
    adam_eps: float = 1e-5  # (+) Adam's epsilon
    max_grad_norm: float | None = 0.5  # (+) clip the norm of the gradient to it
    clip_vloss: float | None = None  # (+) clip the change of V in the value loss to +- it
    target_kl: float | None = None  # (+) end the update after an epoch whose mean KL exceeds it
    bf16: bool = False  # (+) the update's hidden layers in bfloat16: faster on hardware for it


@dataclass
class Args(Ppo, Advantages, Common):  # a new flag goes into one of these
    def __post_init__(self):
        check_numbers(self)
        N, T, M = self.num_envs, self.num_steps, self.minibatch_size
        if M == 1 or N * T % M:
            raise ValueError(f"--minibatch-size {M}: must divide {N} * {T} and exceed 1")
        if self.total_timesteps < N * T:
            raise ValueError(f"--total-timesteps {self.total_timesteps}: below a batch, {N} * {T}")


def surrogate(ratio, advantage, clip_coef, clip_log_ratio=False):
    """L^CLIP, eq. 7, to be maximised. ratio [M] is r_t(theta) = pi(a_t|s_t) / pi_old(a_t|s_t)."""
    low, high = 1 - clip_coef, 1 + clip_coef
    if clip_log_ratio:
        low, high = math.e**-clip_coef, math.e**clip_coef
    return torch.min(ratio * advantage, ratio.clamp(low, high) * advantage).mean()


def gae(rewards, values, dones, last_value, gamma, gae_lambda):
    """Advantages [T, N] from tensors rewards, values, dones [T, N] and last_value [N], V(s_T).

    dones[t] says that the episode ended with step t: s_{t+1} belongs to the next one.
    """
    next_values = torch.cat([values[1:], last_value[None]])
    deltas = rewards + gamma * (1 - dones) * next_values - values  # eq. 12
    decay = gamma * gae_lambda * (1 - dones)
    N = len(last_value)
    advantages = [0.0] * N  # of s_T, followed by those of each step, the last step first
    for delta, c in zip(deltas.flatten().tolist()[::-1], decay.flatten().tolist()[::-1]):
        advantages.append(delta + c * advantages[-N])  # eq. 11; floats are faster than tensors
    return deltas.new_tensor(advantages[N:][::-1]).view_as(deltas)


class Agent(nn.Module):
    """Policy and value function on one convolutional network, Nature DQN's or the A3C paper's."""

    def __init__(self, num_actions, args):
        super().__init__()
        shapes, features, hidden = {
            "nature": (((4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)), 64 * 7 * 7, 512),
            "a3c": (((4, 16, 8, 4), (16, 32, 4, 2)), 32 * 9 * 9, 256),
        }[args.network]
        self.convs = nn.Sequential()
        for shape in shapes:
            layer = nn.Conv2d(*shape) if self.convs else FirstLayer(*shape)
            self.convs.extend([initialized(layer, args.init, 2**0.5), nn.ReLU(inplace=True)])
        self.hidden = initialized(nn.Linear(features, hidden), args.init, 2**0.5)
        self.actor = initialized(nn.Linear(hidden, num_actions), args.init, 0.01)
        self.critic = initialized(nn.Linear(hidden, 1), args.init, 1.0)
        self.to(memory_format=torch.channels_last)

    def forward(self, obs, bf16=False):
        """pi, a distribution over actions [B], and value [B], both from obs [B, 84, 84, 4]."""
        x = (obs.bfloat16() if bf16 else obs.float()).permute(0, 3, 1, 2)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            x = self.convs(x).permute(0, 2, 3, 1).flatten(1)  # as it is in memory, channels last
            x = self.hidden(x).relu().float()
        return Categorical(logits=self.actor(x)), self.critic(x).squeeze(-1)


def rollout(args, envs, act, rng):
    """Runs pi_old for T steps in N games. act(obs) is [B, A + 1], log pi and value.

    Returns tensors obs [T, N, ...] on the device, and on the CPU actions, values, rewards, dones
    [T, N], logits (log pi_old) [T, N, A], next_obs [N, ...], and truncations: a list of (t, n,
    final obs) where a time limit cut a game. Raises Stop(1) if a game fails.
    """
    T, N, A = args.num_steps, args.num_envs, envs.num_actions
    obs = torch.empty(T, N, 84, 84, 4, dtype=torch.uint8, device=device_of(args))
    actions = torch.zeros(T, N, dtype=torch.int64)
    outputs = torch.zeros(T, N, A + 1)  # log pi_old and value
    noise = torch.from_numpy(rng.gumbel(size=(T, N, A)).astype(np.float32))  # standard Gumbel

    def run_half(games):
        ids = games.ids  # a slice of the N games
        for t in range(T):
            obs[t, ids].copy_(torch.from_numpy(games.obs()), non_blocking=True)
            outputs[t, ids] = act(obs[t, ids]).cpu()
            actions[t, ids] = (outputs[t, ids, :-1] + noise[t, ids]).argmax(-1)  # Gumbel-max
            games.send(actions[t, ids].numpy())

    envs.run_halves(run_half)  # one half steps while the other half's actions are computed
    seen = dict(obs=obs, actions=actions, logits=outputs[..., :-1], values=outputs[..., -1])
    return SimpleNamespace(**seen, next_obs=torch.from_numpy(envs.obs()), **envs.pop_steps())


@torch.no_grad()
def estimate(args, agent, batch):
    """log pi_old(a_t|s_t), advantages and value targets [T, N] of a rollout, on the CPU."""
    rewards = batch.rewards.clone()
    if args.bootstrap_truncated and batch.truncations:  # (+)
        t, n, final_obs = zip(*batch.truncations)
        rewards[t, n] += args.gamma * agent(torch.stack(final_obs).to(device_of(args)))[1].cpu()
    last_value = agent(batch.next_obs.to(device_of(args)))[1].cpu()
    advantages = gae(rewards, batch.values, batch.dones, last_value, args.gamma, args.gae_lambda)
    value_targets = advantages + batch.values
    if args.norm_adv == "batch":
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)  # (+)
    old_logprob = Categorical(logits=batch.logits).log_prob(batch.actions)
    return old_logprob, advantages, value_targets


METRICS = ("surrogate", "value_loss", "entropy", "kl", "clip_fraction")


def update(
    agent, adam, args, learning_rate, clip_coef,
    obs, actions, old_logprob, advantage, value_target, old_value,
):  # fmt: skip
    """One step up eq. 9 on a minibatch: obs [M, 84, 84, 4], the others [M].

    Returns METRICS as a tensor.
    """
    if args.norm_adv == "minibatch":
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)  # (+)
    pi, value = agent(obs, args.bf16)
    log_ratio = pi.log_prob(actions) - old_logprob
    ratio = log_ratio.exp()
    policy_objective = surrogate(ratio, advantage, clip_coef, args.clip_log_ratio)
    error = (value - value_target).square()
    if args.clip_vloss is not None:  # (+)
        clipped = old_value + (value - old_value).clamp(-args.clip_vloss, args.clip_vloss)
        error = torch.max(error, (clipped - value_target).square())
    value_loss, entropy = error.mean(), pi.entropy().mean()
    objective = policy_objective - args.vf_coef * value_loss + args.ent_coef * entropy  # eq. 9
    agent.zero_grad()
    objective.backward()
    if args.max_grad_norm is not None:  # (+)
        nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm, foreach=False)
    adam.step(learning_rate)

    kl = (ratio - 1 - log_ratio).mean()  # an estimate of KL[pi_old, pi]
    change = log_ratio if args.clip_log_ratio else ratio - 1
    clip_fraction = (change.abs() > clip_coef).float().mean()
    return torch.stack([policy_objective, value_loss, entropy, kl, clip_fraction]).detach()


def train(args, envs, run):
    """Algorithm 1. Returns the agent; run takes episodes, metrics and checkpoints.

    Raises Stop if the run diverges or cannot go on, KeyboardInterrupt if a signal ends it.
    """
    device = device_of(args)
    torch.manual_seed(args.seed)
    agent = Agent(envs.num_actions, args).to(device)
    adam = Adam(agent.parameters(), args.adam_eps)
    act = graphed(partial(logits_and_value, agent), agent, args)
    step = graphed(partial(update, agent, adam, args), nn.ModuleList([agent, adam]), args)
    start = run.resume(agent=agent, adam=adam, envs=envs)
    for games in envs.halves:  # a GPU's graph of act() is captured before two threads call it
        act(torch.from_numpy(games.obs()).to(device))
    for iteration in range(start + 1, args.num_iterations + 1):
        # Rollout: N actors run pi_old for T steps
        rng = generator(args.seed, iteration)
        batch = rollout(args, envs, act, rng)

        # Advantages
        old_logprob, advantages, value_targets = estimate(args, agent, batch)
        run.check(iteration, logits=batch.logits, values=batch.values, advantages=advantages)

        # Update: K epochs of minibatch ascent on eq. 9
        alpha = 1 - (iteration - 1) / args.num_iterations  # of Table 5
        learning_rate = args.learning_rate * (alpha if args.anneal_lr else 1)
        clip_coef = args.clip_coef * (alpha if args.anneal_clip_coef else 1)
        coefs = torch.tensor([learning_rate, clip_coef], device=device)
        columns = batch.obs, batch.actions, old_logprob, advantages, value_targets, batch.values
        columns = [x.flatten(0, 1).to(device) for x in columns]  # [T*N, ...]
        metrics = []
        for _ in range(args.update_epochs):
            order = torch.from_numpy(rng.permutation(args.batch_size)).view(-1, args.minibatch_size)
            for rows in order.to(device):
                metrics.append(step(*coefs, *(x.index_select(0, rows) for x in columns)))
            epoch = torch.stack(metrics[-len(order) :]).mean(0)
            if args.target_kl is not None and epoch[METRICS.index("kl")] > args.target_kl:  # (+)
                break

        row = dict(zip(METRICS, torch.stack(metrics).mean(0).tolist(), strict=True))
        unexplained = (value_targets - batch.values).var() / value_targets.var().clamp(min=1e-12)
        row |= dict(explained_variance=1 - unexplained.item(), learning_rate=learning_rate)
        run.log(iteration, iteration * args.batch_size, iteration == args.num_iterations, row)
        del batch, columns  # so that no two rollouts are in memory at once
    return agent


# --------------------------------------------------------------------------------------------------
# Below this line: Adam, initialisation, CUDA graphs; games, run directory, command line.


def device_of(args):
    """The GPU, if there is one and --cuda."""
    return torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")


class Adam(nn.Module):
    """Kingma & Ba 2015, algorithm 1, uphill, by the kernel of torch.optim.Adam(fused=True).

    torch.optim itself takes 1.6 s and 68 MiB to import.
    """

    def __init__(self, parameters, eps):
        super().__init__()
        self.eps, self.trained = eps, list(parameters)
        self.means = nn.ParameterList(map(torch.zeros_like, self.trained)).requires_grad_(False)
        self.squares = deepcopy(self.means)
        self.t = nn.Buffer(torch.zeros((), device=self.means[0].device))

    @torch.no_grad()
    def step(self, learning_rate):
        """Moves the parameters along their gradients. learning_rate is a tensor []."""
        self.t += 1
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained]
        steps = [self.t] * len(gradients)
        torch._fused_adam_(
            self.trained, gradients, [*self.means], [*self.squares], [], steps, lr=learning_rate,
            beta1=0.9, beta2=0.999, eps=self.eps, weight_decay=0.0, amsgrad=False, maximize=True,
        )  # fmt: skip


def initialized(layer, init, gain):
    """(+) The layer with initial weights of the given kind; the paper names none."""
    if init == "orthogonal":
        nn.init.orthogonal_(layer.weight, gain)
    if init == "normc":  # each row, the weights into a unit, has norm min(1, gain)
        weight = torch.randn_like(layer.weight).flatten(1)
        weight *= min(gain, 1) / weight.norm(dim=1, keepdim=True)
        layer.weight.data = weight.view_as(layer.weight)
    if init != "torch":
        nn.init.zeros_(layer.bias)
    return layer


class FirstLayer(nn.Conv2d):
    """The 8x8 convolution of stride 4, as an 8x2 one on 16 channels: same result, faster."""

    def forward(self, obs):
        """[B, channels, 20, 20] from obs [B, 4, 84, 84] in 0 to 255, by weights for 0 to 1."""
        obs, weight = (  # [., 4, h, w] becomes [., 16, h, w / 4], in memory the same
            x.permute(0, 2, 3, 1).reshape(len(x), x.shape[2], -1, 16).permute(0, 3, 1, 2)
            for x in (obs, self.weight / 255)
        )
        return torch.conv2d(obs, weight, self.bias, stride=(4, 1))


@torch.no_grad()
def logits_and_value(agent, obs):
    """[B, A + 1]: log pi [B, A] and value [B] of obs; in one tensor, for one copy from a GPU."""
    pi, value = agent(obs)
    return torch.cat([pi.logits, value[:, None]], -1)


def graphed(function, learner, args):
    """function of tensors to a tensor; on a GPU, a CUDA graph of it for each size of its inputs.

    It may change the state of learner, a module, which capturing leaves as it was. Once captured
    it may be called by several threads. What it returns, no later call overwrites.
    """
    torch.distributions.Distribution.set_default_validate_args(False)  # whose checks wait for a GPU
    if not args.compile or device_of(args).type != "cuda":
        return function
    graphs, one_at_a_time = {}, threading.Lock()

    def capture(*inputs):
        state_before = deepcopy(learner.state_dict())
        static_inputs = [x.to(device_of(args), copy=True) for x in inputs]
        warm_up, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            for _ in range(3):
                function(*static_inputs)
        torch.cuda.current_stream().wait_stream(warm_up)
        with torch.cuda.graph(graph):
            result = function(*static_inputs)
        learner.load_state_dict(state_before)
        return graph, static_inputs, result

    def replay(*inputs):
        shapes = tuple(x.shape for x in inputs)
        with one_at_a_time:
            if shapes not in graphs:
                graphs[shapes] = capture(*inputs)
            graph, static_inputs, result = graphs[shapes]
            for static, x in zip(static_inputs, inputs):
                static.copy_(x)
            graph.replay()
            return result.clone()

    return replay


def generator(seed, iteration):
    """numpy's generator of an iteration; seeds torch's, too. So no checkpoint keeps their state."""
    rng = np.random.default_rng((seed, iteration))
    number = int(rng.bit_generator.seed_seq.generate_state(1)[0])
    for each in (torch.default_generator, *torch.cuda.default_generators):
        each.manual_seed(number)  # torch.manual_seed() takes 0.2 ms
    return rng


class Stop(Exception):
    """Ends the program with an exit code and one line, which may end with an error."""

    def __init__(self, code, line, error=None):
        line += f": {type(error).__name__}: {error}" if error else ""
        super().__init__(" ".join(line.split()))
        self.code = code


def show(line, file=1):
    """Prints. Never fails, even after Ctrl-C has ended the `tee` that it is piped to."""
    with suppress(OSError):
        os.write(file, f"{line}\n".encode(errors="backslashreplace"))


def resolve(name):
    """The ROM that name means: Breakout, breakout, BreakoutNoFrameskip-v4, ALE/Breakout-v5.

    Raises Stop(2) if there is none that one player can play.
    """
    playable = set(roms.get_all_rom_ids()) - {"combat", "joust", "maze_craze", "warlords"}
    games = {rom.replace("_", ""): rom for rom in playable}
    game = re.sub(r"^ale/|(noframeskip|deterministic)?(-v\d+)?$|[^a-z\d]", "", name.lower())
    if game not in games:
        near = difflib.get_close_matches(game, sorted(games), cutoff=0.5)
        hint = ", nearest: " + ", ".join(games[n] for n in near) if near else ""
        raise Stop(2, f"--env-id {name}: no such Atari game for one player{hint}")
    return games[game]


def make_env(args, video=False, num_envs=1, **kwargs):
    """num_envs games much as in the 2017 code, or, for a video, with the screen that people see.

    4 frames an action, of which the last two are pooled, 84x84 grey, 4 stacked. Other than there:
    FIRE comes before the random number of no-ops; after a lost life there is neither FIRE nor a
    no-op, and the frames before it stay in the stack; a game is truncated after 30 minutes. Raises
    Stop(2) if there is no such game.
    """
    if video:
        kwargs |= dict(grayscale=False, img_height=210, img_width=160, stack_num=1)

    def begin():
        with suppress(AttributeError, OSError):  # not everywhere possible or allowed
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # threads inherit it
        return AtariVectorEnv(
            resolve(args.env_id), num_envs, autoreset_mode="SameStep", reward_clipping=False,
            repeat_action_probability=args.repeat_action_probability,  # (+)
            num_threads=min(num_envs, torch.get_num_threads()), **kwargs,
        )  # fmt: skip

    with ThreadPoolExecutor(1) as thread:  # only the emulators are to run as batch, not this thread
        return thread.submit(begin).result()


def close(env):
    """Closes it, whatever it raises: all that counts is written by now."""
    with suppress(BaseException):
        env.close()


def sizes(env):
    """What Agent takes, apart from args."""
    return (int(env.single_action_space.n),)


class Games:
    """Some of the N games; one that ends is followed by the next in the same step.

    A checkpoint keeps the actions since each game was last seeded, the tape, and resuming plays
    them again. To bound the tape, a game that ends tape_length steps or more after its last seed
    is seeded again, which loads the ROM anew, 70 ms. After a shorter one the next game goes on with
    the emulator's own random numbers.
    """

    tape_length = 8192
    saved = ("screens", "starts", "seedings", "lengths", "returns")

    def __init__(self, args, ids, video=False):
        n = ids.stop - ids.start
        self.args = args
        self.ids = ids  # slice of the N games
        self.envs = make_env(args, video, n)
        self.global_step = 0
        self.num_restarts = 0  # of games that did not repeat themselves on resuming
        self.stepping = False  # a step has begun and its outcome is not noted yet
        self.steps = []  # (rewards, dones, lives before, lives after), each [n], since pop_steps()
        self.truncations = []  # (t, id, final obs) since then
        self.episodes = []  # (global step, id, return, length) since then
        self.tape = []  # actions [n] of the steps that may have to be played again
        self.starts = np.zeros(n, np.int64)  # where on the tape each game was last seeded
        self.seedings = np.zeros(n, np.int64)  # how often each was seeded again
        self.lengths = np.zeros(n, np.int64)  # steps of each game so far
        self.returns = np.zeros(n)  # of each game so far
        stack, *shape = self.envs.single_observation_space.shape
        pinned = device_of(args).type == "cuda"  # a GPU reads such memory while the program goes on
        screens = torch.zeros(n, *shape, stack, dtype=torch.uint8, pin_memory=pinned)
        self.screens = screens.numpy()  # what is seen now [n, 84, 84, 4]
        self.seed(np.ones(n, bool))

    def close(self):
        """Ends the games."""
        self.envs.close()
        self.envs.ale = None  # whose threads end when it is collected, and no earlier

    def seed(self, mask):
        """Starts games under mask [n] from seeds that depend on (seed, id, seedings) alone."""
        if not mask.any():
            return
        key = [(self.args.seed, self.ids.start + i, self.seedings[i]) for i in np.flatnonzero(mask)]
        seeds = np.array([np.random.SeedSequence(k).generate_state(1)[0] for k in key])
        options = {"reset_mask": mask}
        self.see(*self.envs.reset(seed=seeds >> 1, options=options))  # ALE takes 31 bits

    def seed_again(self, mask):
        """Starts games under mask [n] anew, each from its next seed."""
        self.starts[mask] = len(self.tape)
        self.seedings[mask] += 1
        self.lengths[mask] = self.returns[mask] = 0
        self.seed(mask)

    def see(self, obs, info):
        """Takes in what the games show."""
        np.stack([*obs.swapaxes(0, 1)], -1, out=self.screens)  # 3 times as fast as transposing
        self.lives = info["lives"].copy()

    def send(self, actions):
        """Starts a step by actions [n]."""
        self.envs.send(actions)
        self.tape.append(actions.astype(np.uint8))
        self.stepping = True

    def obs(self):
        """What is seen now, once the step is done and noted. Raises Stop(1) if the step fails."""
        if self.stepping:
            lives_before, self.stepping = self.lives, False
            try:
                obs, rewards, terminated, truncated, info = self.envs.recv()
            except Exception as error:
                raise Stop(1, f"{self.args.env_id} failed in step", error) from error
            self.see(obs, info)
            done = terminated | truncated
            self.steps.append((rewards.copy(), done, lives_before, self.lives))
            self.global_step += self.args.num_envs
            self.returns += rewards
            self.lengths += 1
            if done.any():
                self.end(done, truncated, info)
        return self.screens

    def end(self, done, truncated, info):
        """Notes games that are done [n] and have made room for the next."""
        for i in np.flatnonzero(done):
            n, episode_return, length = self.ids.start + i, self.returns[i], self.lengths[i]
            self.episodes.append((self.global_step, n, float(episode_return), int(length)))
            if truncated[i]:
                final_obs = torch.tensor(np.moveaxis(info["final_obs"][i], 0, -1))
                self.truncations.append((len(self.steps) - 1, n, final_obs))
        self.returns[done] = self.lengths[done] = 0
        self.seed_again(done & (len(self.tape) - self.starts >= self.tape_length))

    def pop_steps(self):
        """Of the steps since the last call: rewards, dones [T, n], truncations and episodes."""
        rewards, dones, lives_before, lives_after = map(np.array, zip(*self.steps))
        if self.args.clip_rewards:  # (+)
            rewards = np.sign(rewards)
        if self.args.episodic_life:  # (+)
            dones |= (lives_after < lives_before) & (lives_after > 0)
        popped = rewards, dones, self.truncations, self.episodes
        self.steps, self.truncations, self.episodes = [], [], []
        return popped

    def state_dict(self):
        """What load_state_dict() needs."""
        begin = int(self.starts.min())  # no game needs what came before
        self.tape, self.starts = self.tape[begin:], self.starts - begin
        state = {name: torch.tensor(getattr(self, name)) for name in self.saved}
        state["tape"] = torch.tensor(np.array(self.tape, np.uint8)).view(-1, len(self.starts))
        return state | dict(global_step=self.global_step, num_restarts=self.num_restarts)

    def load_state_dict(self, state):
        """Plays the tape again."""
        self.global_step, self.num_restarts = state["global_step"], state["num_restarts"]
        self.tape = list(state["tape"].numpy())
        saved = [state[name].numpy() for name in self.saved]
        screens, self.starts, self.seedings, self.lengths, self.returns = saved
        self.seed(self.starts >= 0)  # all; until its own start a game plays whatever comes
        for t, actions in enumerate(self.tape, 1):
            obs, _, _, _, info = self.envs.step(actions.astype(np.int64))
            self.see(obs, info)
            self.seed(self.starts == t)
        differs = (self.screens != screens).any((1, 2, 3))
        for i in np.flatnonzero(differs):
            show(f"game {self.ids.start + i} is not deterministic; it was restarted")
            self.num_restarts += 1
        self.seed_again(differs)


class Envs:
    """num_envs games, in two halves, each of which steps when it has its actions."""

    def __init__(self, args, on_episode):
        self.on_episode = on_episode
        ids = np.array_split(range(args.num_envs), min(2, args.num_envs))
        self.halves = [Games(args, slice(i[0], i[-1] + 1)) for i in ids]
        self.threads = ThreadPoolExecutor(2)  # one for each half
        self.num_actions = sizes(self.halves[0].envs)[0]

    def close(self):
        """Ends all games and their threads."""
        self.threads.shutdown()
        for games in self.halves:
            games.close()

    def run_halves(self, function):
        """function(games) of all halves at once, with an equal share of PyTorch's threads."""
        num_threads = torch.get_num_threads()
        torch.set_num_threads(max(1, num_threads // len(self.halves)))
        list(self.threads.map(function, self.halves))
        torch.set_num_threads(num_threads)

    def obs(self):
        """What is seen now [N, 84, 84, 4]."""
        return np.concatenate([games.obs() for games in self.halves])

    def pop_steps(self):
        """Of the steps since the last call: rewards, dones [T, N], and truncations."""
        self.obs()
        rewards, dones, truncations, episodes = zip(*(games.pop_steps() for games in self.halves))
        for global_step, _, episode_return, length in sorted(chain(*episodes)):
            self.on_episode(global_step, episode_return, length)
        rewards, dones = (torch.from_numpy(np.hstack(x)).float() for x in (rewards, dones))
        return dict(rewards=rewards, dones=dones, truncations=list(chain(*truncations)))

    @property
    def global_step(self):
        return self.halves[-1].global_step

    @property
    def num_restarts(self):
        return sum(games.num_restarts for games in self.halves)

    def state_dict(self):
        """Of both halves."""
        return {"halves": [games.state_dict() for games in self.halves]}

    def load_state_dict(self, state):
        """Of both halves."""
        for games, half in zip(self.halves, state["halves"]):
            games.load_state_dict(half)


class Run:
    """The run directory: arguments, sources, every episode, metrics, the last checkpoint."""

    # Flags that a resumed run may change
    may_change = {"run_dir", "checkpoint_every", "capture_video"}
    may_change |= {"track", "wandb_project_name", "wandb_entity"}

    def __init__(self, args, script, processor):
        """Only looks. Raises Stop(2) unless the directory is free or holds this very run."""
        self.args, self.script, self.sources = args, Path(script).resolve().name, sources(script)
        self.dir = Path(args.run_dir or "").absolute()  # some environments change the cwd
        self.saved_args, self.summary, self.files, self.state = {}, {}, {}, {}
        header = "global_step,episodic_return,episodic_length\n"
        self.rows = {"metrics.csv": [], "episodes.csv": [header]}
        self.seconds = self.last_step = 0
        self.exit_code, self.pid = None, os.getpid()  # the code that a signal asks for
        self.versions = dict(python=sys.version.split()[0], device=processor)
        self.versions["threads"] = torch.get_num_threads()
        for package in ("torch", "gymnasium", "mujoco", "ale-py", "numpy"):
            with suppress(PackageNotFoundError):
                self.versions[package] = version(package)
        try:
            names = os.listdir(self.dir) if args.run_dir and self.dir.is_dir() else ()
            found = {name: self.dir / name for name in names if name != "args.json.tmp"}
            if not any(path.is_dir() or path.stat().st_size for path in found.values()):
                return  # there is nothing but what a start that was cut short may leave
            self.saved_args = dict(json.loads((self.dir / "args.json").read_text()))
            if "summary.json" in found:
                self.summary = dict(json.loads((self.dir / "summary.json").read_text()))
            same = [x == found[n].read_bytes() for n, x in self.sources.items() if n in found]
            same.append(self.saved_args.get("script") == self.script)
        except (OSError, ValueError, TypeError) as error:
            raise Stop(2, f"--run-dir {args.run_dir}: not a run of this script", error) from error
        for name, x in asdict(args).items():
            if name not in self.may_change and (old := self.saved_args.get(name)) != x:
                flag = f"--{name.replace('_', '-')}"
                raise Stop(2, f"--run-dir {args.run_dir}: holds a run with {flag} {old}, not {x}")
        if not all(same):
            how = f"resume with `python {args.run_dir}/{self.saved_args.get('script')}`"
            raise Stop(2, f"--run-dir {args.run_dir}: begun by another version of this; {how}")

    def start(self):
        """Creates the directory, says what will run, and takes over Ctrl-C and SIGTERM."""
        args, name = self.args, f"{self.args.env_id}__{self.args.exp_name}__{self.args.seed}"
        try:
            if not args.run_dir:
                for seconds in count(int(time.time())):
                    args.run_dir = f"runs/{name.replace('/', '_')}__{seconds}"
                    with suppress(FileExistsError):  # of a run that began in the same second
                        (self.dir / args.run_dir).mkdir(parents=True)
                        break
                self.dir /= args.run_dir
            self.dir.mkdir(parents=True, exist_ok=True)
            while (number := os.open(os.devnull, os.O_RDWR)) < 3:
                pass  # an environment has closed 0, 1 or 2, and the next file would get that number
            os.close(number)
            self.files = {name: open(self.dir / name, "a", buffering=1) for name in self.rows}
        except OSError as error:
            raise Stop(2, f"--run-dir {args.run_dir}: cannot be written", error) from error
        lock(self.files["metrics.csv"], args.run_dir)
        if not self.saved_args and (self.dir / "args.json").exists():
            raise Stop(2, f"--run-dir {args.run_dir}: another process has just begun a run there")
        if not self.saved_args:
            git = "git describe --always --dirty --abbrev=40 --exclude='*'"
            where = dict(shell=True, cwd=Path(__file__).resolve().parent)
            commit = subprocess.run(git, **where, text=True, capture_output=True).stdout.strip()
            self.saved_args = asdict(args) | dict(script=self.script, command=sys.argv)
            self.saved_args |= dict(versions=self.versions, git_commit=commit)
            self.saved_args["wandb_id"] = os.urandom(4).hex()  # also says whose a checkpoint is
            self.write("args.json", self.saved_args)
        for name, code in self.sources.items():
            if not (self.dir / name).exists():
                self.write(name, code)
        old = self.saved_args.get("versions", {})
        if new := {k: x for k, x in self.versions.items() if old.get(k) != x}:
            show(f"warning: goes on with {new}, other than at the start: results will differ")
        show(f"{args.env_id}: {args.total_timesteps:,} steps, in {args.run_dir}")
        self.take_signals()
        self.track()

    def take_signals(self):
        """Takes over Ctrl-C and SIGTERM, again after an environment may have taken them."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self.on_signal)

    def on_signal(self, signum, _):
        """Ends the run after this iteration; a second signal ends it at once."""
        if self.exit_code or os.getpid() != self.pid:  # as in a process of an environment
            os._exit(128 + signum)
        self.exit_code = 128 + signum
        show("\nstops after this iteration; the same command will resume from there")

    def track(self, row=None):
        """Begins, or continues, the run's W&B run, or sends it a row; W&B never stops a run."""
        try:
            if self.args.track and row:
                sys.modules["wandb"].log(row, step=row["global_step"])
            elif self.args.track:
                import wandb

                wandb.init(
                    project=self.args.wandb_project_name, entity=self.args.wandb_entity,
                    id=self.saved_args["wandb_id"], resume="allow", name=self.dir.name,
                    config=asdict(self.args), dir=self.dir, settings={"init_timeout": 30},
                )  # fmt: skip
        except (Exception, SystemExit) as error:
            show(f"goes on without Weights & Biases: {error}")
            self.args.track = False

    def write(self, name, data):
        """Replaces a file by tensors (*.pt), bytes or JSON; on any fault the old one stays."""
        if name.endswith(".pt"):
            torch.save(data, content := BytesIO())  # its own error is unclear on a full disk
            data = content.getbuffer()
        elif not isinstance(data, bytes):
            data = json.dumps(data, indent=1).encode()
        temporary = self.dir / f"{name}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.dir / name)
        finally:
            with suppress(OSError):  # where it failed: a full disk needs its room
                temporary.unlink()

    def resume(self, **state):
        """Starts the run, and brings state to where its last checkpoint left it, if there is one.

        Returns the iterations that are done. Raises Stop(2) if the checkpoint is not this run's.
        """
        self.start()
        self.state, path, iteration = state, self.dir / "checkpoint.pt", 0
        try:
            if path.exists():
                saved = torch.load(path, map_location="cpu", weights_only=True)
                if saved["run"] != self.saved_args["wandb_id"]:
                    raise ValueError("it was made by another run")
                iteration, self.last_step, self.seconds, self.rows = saved["progress"]
                for name, part in state.items():
                    part.load_state_dict(saved[name])
                show(f"goes on after iteration {iteration}")
        except Stop:
            raise
        except Exception as error:
            raise Stop(2, f"{path}: not a checkpoint of this run", error) from error
        for name, file in self.files.items():  # what came after the checkpoint will come again
            file.truncate(0)
            file.write("".join(self.rows[name]))
        self.last_time = self.begun = time.perf_counter()
        return iteration

    def add(self, name, *row):
        """Appends a row to a CSV file."""
        self.rows[name].append(",".join(map(str, row)) + "\n")
        self.files[name].write(self.rows[name][-1])

    def score(self, most=100):
        """The mean return of the last episodes, at most so many; NaN if there are none."""
        returns = [float(row.split(",")[1]) for row in self.rows["episodes.csv"][1:][-most:]]
        return float(np.mean(returns)) if returns else math.nan

    def check(self, iteration, **parts):
        """Raises Stop(3), naming the first of these that is not finite. Notes the rollout's end."""
        require_finite(iteration, parts)
        self.rollout_end = time.perf_counter()

    def log(self, iteration, step, last, metrics):
        """Ends an iteration at a global step: a row of metrics, a checkpoint where one is due.

        Raises Stop(3) if something is not finite, KeyboardInterrupt if a signal has asked for it.
        """
        args, now, middle = self.args, time.perf_counter(), self.rollout_end
        modules = {name: x for name, x in self.state.items() if isinstance(x, nn.Module)}
        require_finite(iteration, metrics | modules)
        self.seconds += now - self.last_time  # with the last checkpoint's writing, without films
        self.last_time = now
        row = dict(global_step=step, seconds=self.seconds, sps=round(step / self.seconds))
        row |= dict(rollout_seconds=middle - self.begun, update_seconds=now - middle, **metrics)
        if not self.rows["metrics.csv"]:
            self.add("metrics.csv", *row)
        self.add("metrics.csv", *row.values())
        self.track(row | {"episodic_return": self.score()})
        total = args.total_timesteps
        done, before = 1.0 if last else step / total, self.last_step / total
        if int(20 * done) > int(20 * before):
            left = int(self.seconds / done * (1 - done))
            text = f"{done:4.0%}  return {self.score():.1f}  {row['sps']:,} steps/s"
            show(f"{text}  {left // 60}:{left % 60:02} left")
        if args.capture_video and int(10 * done) > int(10 * before):
            self.film(step)
        self.take_signals()
        self.last_step = step
        if last or self.exit_code or iteration % args.checkpoint_every == 0:
            saved = {name: part.state_dict() for name, part in self.state.items()}
            saved |= dict(progress=(iteration, step, self.seconds, self.rows))
            self.write("checkpoint.pt", saved | dict(run=self.saved_args["wandb_id"]))
        self.begun = time.perf_counter()
        if self.exit_code:
            raise KeyboardInterrupt

    def film(self, step):
        """An episode to videos/. What fails costs the film alone; nothing else changes."""
        states, begun = (random.getstate(), np.random.get_state()), time.perf_counter()
        try:
            path = self.dir / "videos" / f"step-{step}.gif"
            play(self.args, self.state["agent"], self.args.seed, path, lambda: self.exit_code)
        except BaseException as error:
            show(f"no video of step {step}: {error}")
        random.setstate(states[0])
        np.random.set_state(states[1])
        self.last_time += time.perf_counter() - begun

    def finish(self, status, **more):
        """Writes summary.json."""
        step, episodes = self.state["envs"].global_step, len(self.rows["episodes.csv"]) - 1
        scores = [x if math.isfinite(x) else None for x in (self.score(), self.score(episodes))]
        self.write("summary.json", dict(
            status=status, score=scores[0], score_all=scores[1], episodes=episodes,
            global_step=step, seconds=self.seconds, sps=step / max(self.seconds, 1e-9),
            restarted_episodes=self.state["envs"].num_restarts, **more,
        ))  # fmt: skip
        show(f"{status}: score {self.score():.2f}, {episodes} episodes, {self.args.run_dir}")

    def fail(self, error, code):
        """Keeps the traceback of what ended the run, and says so in summary.json."""
        with suppress(OSError, MemoryError):
            text = "".join(traceback.format_exception(error))
            self.write("error.txt", text.encode(errors="backslashreplace"))
            status = "diverged" if code == 3 else "failed"
            kind = "" if isinstance(error, Stop) else f"{type(error).__name__}: "
            self.finish(status, reason=f"{kind}{error}")


def play(args, agent, seed, video=None, stop=lambda: False):
    """The return of a game of agent, which ends within 30 minutes; filmed to the GIF video.

    A film shows every second step, at most 500 of them: 67 seconds. An emulator of its own plays
    the same game for it, in the colours and size that people see.
    """
    args = SimpleNamespace(**vars(args) | dict(num_envs=1, seed=seed, cuda=False))
    device, rng = next(agent.parameters()).device, np.random.default_rng((seed, 1))
    frames, games = [], Games(args, slice(0, 1))
    camera = Games(args, slice(0, 1), video=True) if video else None
    try:
        for t in count():
            obs = torch.from_numpy(games.obs()).to(device)
            if games.episodes or stop():
                break
            logits = logits_and_value(agent, obs)[:, :-1].cpu().numpy()
            action = (logits + rng.gumbel(size=logits.shape)).argmax(-1)  # a sample of pi
            games.send(action)
            if camera and len(frames) < 500:
                screen = camera.obs()
                if t % 2 == 0:
                    image = Image.fromarray(screen.reshape(210, 160, 3))
                    frames.append(image.quantize(method=Image.Quantize.FASTOCTREE))  # few colours
                camera.send(action)
    finally:
        for player in filter(None, (games, camera)):
            player.close()
    if video and not stop():
        video.parent.mkdir(exist_ok=True)
        times = 10 * np.rint(np.arange(len(frames) + 1) / 7.5 * 100)  # GIFs count in 1/100 s
        film = dict(append_images=frames[1:], duration=np.diff(times).tolist(), loop=0)
        frames[0].save(video, save_all=True, **film)
    return games.episodes[0][2] if games.episodes else float(games.returns[0])


def evaluate(args, policy):
    """Plays ten episodes with the agent of the run directory args.eval."""
    run = Path(args.eval).absolute()
    try:
        saved = json.loads((run / "args.json").read_text())
        weights = torch.load(run / "agent.pt", map_location="cpu", weights_only=True)
        if not {f.name for f in fields(args)} <= saved.keys():
            raise ValueError(f"it was made by {saved.get('script')}")
        run_args = type(args)(**{f.name: saved[f.name] for f in fields(args)})
        typed = any(x.startswith(("--env-id", "--env_id")) for x in sys.argv)
        # a user's module is imported only if the command names it
        if args.env_id != run_args.env_id and (typed or ":" in run_args.env_id):
            raise ValueError(f"give its own task: --env-id {run_args.env_id}")
        env = make_env(run_args, args.capture_video)
        close(env)
        agent = policy(*sizes(env), run_args)
        if any(weights[k].shape != x.shape for k, x in agent.state_dict().items()):
            raise ValueError(f"its agent is not for {run_args.env_id}")
        agent.load_state_dict(weights)
    except Exception as error:
        raise Stop(2, f"--eval {args.eval}: not a finished run of this script", error) from None
    show(f"{run_args.env_id}: ten episodes of {args.eval}")
    now, returns = f"{time.time():.0f}", []
    for i in range(10):
        video = run / "videos" / f"eval-{now}-{i}.gif" if args.capture_video else None
        try:
            returns.append(play(run_args, agent, (args.seed * 1000 + i) % 2**53, video))
        except Exception as error:
            raise Stop(1, f"--eval {args.eval}: episode {i} failed", error) from error
        show(f"episode {i}: return {returns[-1]:.1f}" + (f", {video}" if video else ""))
    mean, std = np.mean(returns), np.std(returns, ddof=1)
    half = 2.262 * std / 10**0.5  # 2.262: Student's t, 9 degrees of freedom
    interval = f"95% {mean - half:.1f} to {mean + half:.1f}"
    show(f"mean {mean:.1f} ({interval}), standard deviation {std:.1f}")
    return 0


def require_finite(iteration, parts):
    """Raises Stop(3), naming the first of {name: module, nested tensors} that is not finite."""
    inside = {}
    for name, x in parts.items():
        inside |= x.state_dict(prefix=f"{name}.") if isinstance(x, nn.Module) else {name: x}
    if not finite(inside):
        key = next(key for key, nested in inside.items() if not finite(nested))
        raise Stop(3, f"diverged in iteration {iteration}: {key} is not finite")


def finite(nested):
    """Whether all numbers in nested tensors and numbers are finite. Integers are."""
    numbers = defaultdict(list)  # by device
    for x in (torch.as_tensor(x) for x in tree_leaves(nested) if not isinstance(x, int)):
        numbers[x.device].append(x.reshape(-1))
    return all(torch.cat(xs).isfinite().all().item() for xs in numbers.values())


def lock(file, run_dir):
    """Keeps other processes out. Raises Stop(2) if one is in."""
    try:
        import fcntl  # Windows has none

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # by system
        raise Stop(2, f"--run-dir {run_dir}: another process is at work on this run") from None
    except (ImportError, OSError) as error:
        show(f"no file locks ({error}): nothing keeps a second process out of this run")


def sources(script):
    """{name: bytes} of a script and of what it has imported that lies beside it or this file."""
    folders = {Path(path).resolve().parent for path in (script, __file__)}
    imported = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
    paths = {Path(path).resolve() for path in (script, *imported)}
    return {p.name: p.read_bytes() for p in paths if p.parent in folders and p.is_file()}


LIMITS = dict(
    seed=(0, 2**53), num_threads=(0, 1024), num_envs=(1, 1e4), num_steps=(1, 1e7),
    minibatch_size=(1, 1e7), gamma=(0, 1), gae_lambda=(0, 1), clip_coef=(1e-6, 1),
    repeat_action_probability=(0, 1), vf_coef=(0, 1e12), ent_coef=(0, 1e12),
)  # fmt: skip


def check_numbers(args):
    """Makes ints of 1e6 and the like. Raises ValueError for a number that makes no sense."""
    for f in fields(args):
        x, is_int = getattr(args, f.name), f.type == Int
        low, high = LIMITS.get(f.name, (1 if is_int else 1e-12, 1e12))
        if type(x) in (int, float) and (not low <= x <= high or is_int and x % 1):
            kind, flag = "an int" if is_int else "a number", f"--{f.name.replace('_', '-')}"
            raise ValueError(f"{flag} {x:.12g}: must be {kind} from {low:g} to {high:g}")
        setattr(args, f.name, int(x) if is_int else x)


def parse(argv, flags, script, doc):
    """The flags of a command line; --help shows a box for each of their bases. Raises Stop(2)."""
    bases = flags.__bases__[::-1]
    boxes = make_dataclass("Flags", [(base.__name__, base) for base in bases])
    parts = (base(**{f.name: getattr(flags, f.name) for f in fields(base)}) for base in bases)
    options = dict(args=argv, description=doc, config=(tyro.conf.OmitArgPrefixes,))
    with redirect_stderr(StringIO()) as stderr:
        try:
            typed = vars(tyro.cli(boxes, default=boxes(*parts), **options)).values()
            args = flags(**{k: x for part in typed for k, x in vars(part).items()})
        except ValueError as error:
            raise Stop(2, str(error)) from None
        except SystemExit as exit:
            if not exit.code:
                raise
            box = [line.strip("│ ") for line in stderr.getvalue().splitlines()[1:]]
            text = " ".join(line for line in box if line.strip("─-"))
            raise Stop(2, text.split("For full helptext")[0] or stderr.getvalue()) from None
    if args.run_dir == "":
        raise Stop(2, "--run-dir: must name a directory")
    args.env_id, args.exp_name = resolve(args.env_id), args.exp_name or Path(script).stem
    return args


def prepare(args):
    """Sets up the process. Returns what the results' last bits depend on: the processor."""
    torch.set_num_threads(args.num_threads or torch.get_num_threads())
    torch.backends.cudnn.deterministic = args.torch_deterministic
    torch.backends.cudnn.allow_tf32 = False  # TF32 keeps 10 bits; only --bf16 may lower precision
    if sys.platform == "linux":  # keep freed memory: page faults would cost a quarter of an update
        for option, value in ((-1, 2**31 - 1), (-4, 0)):  # M_TRIM_THRESHOLD, M_MMAP_MAX
            ctypes.CDLL(None).mallopt(option, value)
    if device_of(args).type == "cuda":
        return torch.cuda.get_device_name()
    kind = torch.backends.cpu.get_cpu_capability()
    if getattr(args, "bf16", False) and kind == "AVX2":
        show("--bf16: this processor has no bfloat16 arithmetic; it is slower with it")
    return f"cpu with {kind}"


def main(train, flags, script, policy=Agent):
    """Runs a script's command line: train(args, envs, run) by its flags, or --eval by its policy.

    Returns the exit code: 0 finished, 1 the system or the environment failed, 2 bad usage,
    3 diverged, 130 or 143 stopped by a signal.
    """
    before = {*active_children(), *threading.enumerate()}
    code = command(train, flags, script, policy)
    for child in {*active_children()} - before:
        child.terminate()
    left = {*threading.enumerate()} - before
    try:
        sys.stdout.flush()
    except Exception:  # Python would try again and change the code
        os._exit(code)
    if left and "wandb" not in sys.modules:
        os._exit(code)  # Python would wait for a thread that an environment has left behind
    return code


def command(train, flags, script, policy):
    """main() without its end. Known errors are printed in a line, others with their traceback."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # it is closed, and the next file would get its number
            setattr(sys, name, open(os.devnull, "r+"))
            os.set_inheritable(getattr(sys, name).fileno(), True)
    warnings.filterwarnings("ignore", module="torch")
    warnings.filterwarnings("ignore", "Converting a tensor")  # the replay says more
    run = envs = None
    try:
        args = parse(sys.argv[1:], flags, script, train.__globals__["__doc__"])
        processor = prepare(args)
        if args.eval is not None:
            return evaluate(args, policy)
        run = Run(args, script, processor)
        if (status := run.summary.get("status")) in ("finished", "diverged"):
            score = run.summary.get("score")
            show(f"{args.run_dir}: already {status}, score {score and round(score, 2)}")
            return 0 if status == "finished" else 3
        if args.capture_video:
            close(make_env(args, video=True))
        envs = Envs(args, partial(run.add, "episodes.csv"))
        agent = train(args, envs, run)
        if args.save_model:
            run.write("agent.pt", agent.state_dict())
        run.finish("finished")
        return 0
    except BaseException as error:
        if isinstance(error, SystemExit) and not run:  # of --help
            raise
        if run and os.getpid() != run.pid:  # a process of an environment's
            os._exit(1)
        code, signalled = error.code if isinstance(error, Stop) else 1, run and run.exit_code
        # Ctrl-C ends an environment's processes, too, and then its step fails
        if isinstance(error, KeyboardInterrupt) or signalled and code == 1:
            if run and run.state:
                run.finish("interrupted")
            return signalled or 130
        if run and run.state and code != 2:
            run.fail(error, code)
        if isinstance(error, Stop | OSError | MemoryError) or "allocate" in str(error):
            show(f"{Path(script).name}: {' '.join(str(error).split())}", file=2)
        else:
            traceback.print_exc()
        return code
    finally:
        if envs:
            envs.close()


if __name__ == "__main__":
    sys.exit(main(train, Args, __file__))
