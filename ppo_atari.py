# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = [
#   "torch==2.13.0",
#   "gymnasium[mujoco]==1.4.0",
#   "mujoco==3.3.0",
#   "ale-py==0.12.1",
#   "numpy>=2",
#   "tyro>=1.0.17",
#   "wandb>=0.31",
# ]
# ///
"""PPO with the clipped surrogate objective, for Atari (section 6.4).

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347.
Algorithm 1, in this file's names. Each iteration
    runs the policy in num_envs environments for num_steps steps   train(), "Rollout"
    estimates advantages, eqs. 11 and 12                           gae()
    takes update_epochs passes over minibatches, eqs. 7 and 9      surrogate(), update(), "Update"

The defaults are those of Table 5. Not in the paper, marked (+) where it happens, each with its
flag: --norm-adv, --bootstrap-truncated, --episodic-life, --clip-rewards, --init, --adam-eps,
--max-grad-norm, --clip-vloss, --target-kl, --repeat-action-probability.

A game is played as in the 2017 code: 4 frames an action, of which the last two are pooled, 84x84
grey, 4 stacked, up to 29 frames of FIRE and no-ops first, no sticky actions; but a lost life is
not followed by FIRE. Scores are raw, of whole games.
Shapes: T num_steps, N num_envs, M minibatch_size, A number of actions; obs [..., 84, 84, 4] uint8.
"""

import ctypes
import difflib
import fcntl
import io
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from torch import nn
from torch.distributions import Categorical


@dataclass(frozen=True)
class Task:
    env_id: str = "Breakout"  # in any usual spelling
    total_timesteps: int = 10_000_000  # of 4 frames, rounded down to whole iterations
    seed: int = 1


@dataclass(frozen=True)
class Paper:
    """Table 5 of the paper"""

    num_envs: int = 8  # N, actors
    num_steps: int = 128  # T, horizon of one rollout
    learning_rate: float = 2.5e-4  # Adam's step size
    anneal_lr: bool = True  # alpha: decrease the step size linearly to 0
    update_epochs: int = 3  # K, passes over the rollout
    minibatch_size: int = 256  # M
    gamma: float = 0.99  # discount
    gae_lambda: float = 0.95  # lambda of eq. 11
    clip_coef: float = 0.1  # epsilon of eq. 7
    anneal_clip_coef: bool = True  # alpha: decrease epsilon likewise
    clip_log_ratio: bool = False  # clip log r to +- epsilon instead (the paper: no better)
    vf_coef: float = 1.0  # c1 of eq. 9
    ent_coef: float = 0.01  # c2 of eq. 9
    network: Literal["nature", "a3c"] = "nature"  # the paper cites A3C's, its code used Nature's


@dataclass(frozen=True)
class Extra:
    """(+) Not in the paper"""

    norm_adv: Literal["batch", "minibatch", "none"] = "batch"  # standardise advantages over it
    bootstrap_truncated: bool = True  # a time limit ends no task: V(s_T) stands for the rest
    episodic_life: bool = True  # a life lost ends the return, though not the game
    clip_rewards: bool = True  # learn from the sign of rewards
    repeat_action_probability: float = 0.0  # sticky actions
    init: Literal["orthogonal", "normc", "torch"] = "orthogonal"  # kind of initial weights
    adam_eps: float = 1e-5  # Adam's epsilon
    max_grad_norm: float | None = 0.5  # clip the norm of the gradient to it
    clip_vloss: float | None = None  # clip the change of V in the value loss to +- it
    target_kl: float | None = None  # end the update after an epoch whose mean KL exceeds it


@dataclass(frozen=True)
class Running:
    run_dir: str | None = None  # the same command continues or confirms the run that lives there
    checkpoint_every: int = 25  # iterations, and at least once a minute
    exp_name: str = Path(__file__).stem
    compile: bool = True  # on a GPU, let the network and the update be a CUDA graph each
    cuda: bool = True  # use the GPU, if any
    bf16: bool = False  # the update's hidden layers in bfloat16: faster on hardware for it
    num_threads: int = 0  # CPU threads, 0 for all
    torch_deterministic: bool = True
    save_model: bool = True  # write agent.pt at the end
    capture_video: bool = False  # film an episode every tenth of the run, or those of --eval
    eval: str | None = None  # play ten episodes with the agent of this run directory
    track: bool = False  # log to Weights & Biases, too
    wandb_project_name: str = "ppo"
    wandb_entity: str | None = None


@dataclass(frozen=True)
class Args(Running, Extra, Paper, Task):
    @property
    def batch_size(self):
        return self.num_envs * self.num_steps

    @property
    def device(self):
        return torch.device("cuda" if self.cuda and torch.cuda.is_available() else "cpu")

    @property
    def num_iterations(self):
        return self.total_timesteps // self.batch_size

    def __post_init__(self):
        for name, x in vars(self).items():
            low = 1 if type(x) is int and name not in ("seed", "num_threads") else 0
            shares = ("gamma", "gae_lambda", "clip_coef", "repeat_action_probability")
            high = 1 if name in shares else 1024 if name == "num_threads" else 1e12
            if type(x) in (int, float) and not low <= x <= high:
                raise ValueError(f"--{name.replace('_', '-')} {x}: must be from {low} to {high:g}")
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
    """Advantages [T, N] from rewards, values, dones [T, N] and last_value [N], the value of s_T.

    dones[t] says that the episode ended with step t: s_{t+1} belongs to the next one.
    """
    next_values = np.concatenate([values[1:], last_value[None]])
    deltas = rewards + gamma * (1 - dones) * next_values - values  # eq. 12
    decay = gamma * gae_lambda * (1 - dones)
    advantages, advantage = np.zeros_like(rewards), np.zeros_like(last_value)
    for t in reversed(range(len(rewards))):
        advantages[t] = advantage = deltas[t] + decay[t] * advantage  # eq. 11
    return advantages


class FirstLayer(nn.Conv2d):
    """8x8 with stride 4, computed as 8x2 with four columns side by side for channels: faster."""

    def forward(self, obs):
        """[B, channels, 20, 20] from obs [B, 4, 84, 84] in 0 to 255, by weights for 0 to 1."""
        obs, weight = (  # [., 4, h, w] becomes [., 16, h, w / 4], in memory the same
            x.permute(0, 2, 3, 1).reshape(len(x), x.shape[2], -1, 16).permute(0, 3, 1, 2)
            for x in (obs, self.weight / 255)
        )
        return torch.conv2d(obs, weight, self.bias, stride=(4, 1))


class Agent(nn.Module):
    """Policy and value function on one convolutional network, Nature DQN's or the A3C paper's."""

    def __init__(self, num_actions, network, init):
        super().__init__()
        shapes, features, hidden = {
            "nature": (((4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)), 64 * 7 * 7, 512),
            "a3c": (((4, 16, 8, 4), (16, 32, 4, 2)), 32 * 9 * 9, 256),
        }[network]
        self.convs = nn.Sequential()
        for shape in shapes:
            layer = nn.Conv2d(*shape) if self.convs else FirstLayer(*shape)
            self.convs.extend([initialized(layer, init, 2**0.5), nn.ReLU(inplace=True)])
        self.hidden = initialized(nn.Linear(features, hidden), init, 2**0.5)
        self.actor = initialized(nn.Linear(hidden, num_actions), init, 0.01)
        self.critic = initialized(nn.Linear(hidden, 1), init, 1.0)
        self.to(memory_format=torch.channels_last)

    def forward(self, obs, bf16=False):
        """pi, a distribution over actions [B], and value [B], both from obs [B, 84, 84, 4]."""
        x = (obs.bfloat16() if bf16 else obs.float()).permute(0, 3, 1, 2)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            x = self.convs(x).permute(0, 2, 3, 1).flatten(1)  # as it is in memory, channels last
            x = self.hidden(x).relu().float()
        return Categorical(logits=self.actor(x)), self.critic(x).squeeze(-1)


METRICS = ("surrogate", "value_loss", "entropy", "kl", "clip_fraction")


def update(agent, adam, args, learning_rate, clip_coef, *minibatch):
    """One step up eq. 9 on a minibatch of tensors [M, ...]. Returns METRICS as a tensor."""
    obs, actions, old_logprob, advantage, value_target, old_value = minibatch
    if args.norm_adv == "minibatch":
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)  # (+)
    pi, value = agent(obs, args.bf16)
    log_ratio = pi.log_prob(actions) - old_logprob
    ratio = log_ratio.exp()
    policy_objective = surrogate(ratio, advantage, clip_coef, args.clip_log_ratio)
    error = (value - value_target).square()
    if args.clip_vloss is not None:  # (+)
        near = old_value + (value - old_value).clamp(-args.clip_vloss, args.clip_vloss)
        error = torch.max(error, (near - value_target).square())
    value_loss, entropy = error.mean(), pi.entropy().mean()
    objective = policy_objective - args.vf_coef * value_loss + args.ent_coef * entropy  # eq. 9
    parameters = list(agent.parameters())
    gradients = list(torch.autograd.grad(objective, parameters))
    adam.ascend(parameters, gradients, learning_rate, args.max_grad_norm)

    kl = (ratio - 1 - log_ratio).mean()  # an estimate of KL[pi_old, pi]
    change = log_ratio if args.clip_log_ratio else ratio - 1
    clip_fraction = (change.abs() > clip_coef).float().mean()
    return torch.stack([policy_objective, value_loss, entropy, kl, clip_fraction]).detach()


def train(args, envs, run):
    """Algorithm 1. Returns the agent; run takes episodes, metrics and checkpoints."""
    T, N = args.num_steps, args.num_envs
    device = args.device
    torch.manual_seed(args.seed)
    agent = Agent(envs.num_actions, args.network, args.init).to(device)
    adam = Adam(agent.parameters(), args.adam_eps)
    start = run.resume(agent=agent, adam=adam, envs=envs)
    step = graphed(partial(update, agent, adam, args), nn.ModuleList([agent, adam]), args)
    threads, pool = torch.get_num_threads(), ThreadPoolExecutor()

    def tensor(array):
        return torch.from_numpy(array).to(device)

    obs = torch.zeros(T, N, 84, 84, 4, dtype=torch.uint8, device=device)
    policy = torch.zeros(T, N, envs.num_actions + 1)  # logits of pi_old, and its value
    actions = np.zeros((T, N), np.int64)

    @partial(graphed, learner=agent, args=args)
    @torch.no_grad()
    def look(obs):
        pi, value = agent(obs)
        return torch.cat([pi.logits, value[:, None]], -1)

    def play(games, gumbel):
        """T steps of one half of the games; the other half plays beside it, at its own pace."""
        n = games.ids
        for t in range(T):
            screens = obs[t, n].copy_(torch.from_numpy(games.obs()), non_blocking=True)
            policy[t, n] = look(screens)
            actions[t, n] = (policy[t, n, :-1].numpy() + gumbel[t, n]).argmax(-1)  # from pi
            games.send(actions[t, n])

    for games in envs.halves:
        look(obs[0, games.ids])  # a graph is captured while there is one thread
    for iteration in range(start + 1, args.num_iterations + 1):
        # Rollout: N actors run pi_old for T steps
        rng = np.random.default_rng((args.seed, iteration))  # there is no state to be saved
        gumbel = rng.gumbel(size=(T, N, envs.num_actions)).astype(np.float32)
        torch.set_num_threads(max(1, threads // 2))  # for each half
        list(pool.map(partial(play, gumbel=gumbel), envs.halves))
        with torch.no_grad():
            rewards, dones, cuts = envs.outcomes()
            last_value = agent(tensor(envs.obs()))[1].cpu().numpy()
            if args.bootstrap_truncated:  # (+)
                for t, n, final_obs in cuts:
                    rewards[t, n] += args.gamma * agent(tensor(final_obs[None]))[1].item()
        torch.set_num_threads(threads)
        logits, values = policy[..., :-1].to(device), policy[..., -1].to(device)
        run.check(iteration, logits=logits, values=values)

        # Advantages
        old_logprob = Categorical(logits=logits).log_prob(tensor(actions))
        v = policy[..., -1].numpy()
        advantages = tensor(gae(rewards, v, dones, last_value, args.gamma, args.gae_lambda))
        value_targets = advantages + values
        if args.norm_adv == "batch":
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)  # (+)

        # Update: K epochs of minibatch ascent on eq. 9
        alpha = 1 - (iteration - 1) / args.num_iterations  # of Table 5
        learning_rate = args.learning_rate * (alpha if args.anneal_lr else 1)
        clip_coef = args.clip_coef * (alpha if args.anneal_clip_coef else 1)
        coefs = torch.tensor([learning_rate, clip_coef], device=device)
        rollout = obs, tensor(actions), old_logprob, advantages, value_targets, values
        batch = [x.flatten(0, 1) for x in rollout]  # [T*N, ...]
        metrics = []
        for _ in range(args.update_epochs):
            for rows in tensor(rng.permutation(args.batch_size)).split(args.minibatch_size):
                metrics.append(step(*coefs, *(x.index_select(0, rows) for x in batch)))
            if args.target_kl is not None:  # (+)
                epoch = torch.stack(metrics[-args.batch_size // args.minibatch_size :])
                if epoch.mean(0)[METRICS.index("kl")] > args.target_kl:
                    break

        metrics = dict(zip(METRICS, torch.stack(metrics).mean(0)))
        run.check(iteration, **metrics, **dict(agent.named_parameters()))
        run.log(
            iteration,
            **{name: x.item() for name, x in metrics.items()},
            explained_variance=1 - ((value_targets - values).var() / value_targets.var()).item(),
            learning_rate=learning_rate,
        )
    return agent


# --------------------------------------------------------------------------------------------------
# Below this line: Adam and initialisation; environments, records, command line.


class Adam(nn.Module):
    """Kingma & Ba 2015, algorithm 1, by the kernel of torch.optim.Adam(fused=True)."""

    def __init__(self, parameters, eps):
        super().__init__()
        self.eps = eps
        zeros = [nn.Parameter(torch.zeros_like(p), requires_grad=False) for p in parameters]
        self.means, self.squares = nn.ParameterList(zeros), nn.ParameterList(deepcopy(zeros))
        self.register_buffer("t", torch.zeros((), device=zeros[0].device))

    @torch.no_grad()
    def ascend(self, parameters, gradients, learning_rate, max_grad_norm):
        if max_grad_norm is not None:  # (+)
            norm = torch.stack([g.norm() for g in gradients]).norm()
            scale = (max_grad_norm / (norm + 1e-6)).clamp(max=1)
            gradients = [g * scale for g in gradients]
        for i, (p, g) in enumerate(zip(parameters, gradients)):
            if g.stride() != p.stride():  # the kernel goes through the memory of both in its order
                gradients[i] = torch.empty_like(p).copy_(g)
        self.t += 1
        torch._fused_adam_(
            parameters, gradients, [*self.means], [*self.squares], [], [self.t] * len(parameters),
            lr=learning_rate, beta1=0.9, beta2=0.999, eps=self.eps,  # (+) eps
            weight_decay=0.0, amsgrad=False, maximize=True,
        )  # fmt: skip


def initialized(layer, init, gain):
    """(+) The layer with initial weights of the given kind; the paper names none."""
    if init == "orthogonal":
        nn.init.orthogonal_(layer.weight, gain)
    if init == "normc":  # the weights into each unit have norm 1, or a smaller gain
        weight = torch.randn_like(layer.weight).flatten(1)
        weight *= min(gain, 1) / weight.norm(dim=1, keepdim=True)
        layer.weight.data = weight.view_as(layer.weight)
    if init != "torch":
        nn.init.zeros_(layer.bias)
    return layer


def graphed(function, learner, args):
    """function of tensors to a tensor, on a GPU a CUDA graph for each size of its inputs.

    It may change the state of learner, and may be called by several threads.
    """
    torch.distributions.Distribution.set_default_validate_args(False)  # waits for the GPU
    if not args.compile or args.device.type != "cuda":
        return function
    graphs, turn = {}, threading.Lock()

    def capture(*inputs):
        before = deepcopy(learner.state_dict())
        places = [x.to(args.device, copy=True) for x in inputs]
        warm_up, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            for _ in range(3):
                function(*places)
        torch.cuda.current_stream().wait_stream(warm_up)
        with torch.cuda.graph(graph):
            result = function(*places)
        learner.load_state_dict(before)
        return graph, places, result

    def replay(*inputs):
        sizes = tuple(x.shape for x in inputs)
        with turn:
            if sizes not in graphs:
                graphs[sizes] = capture(*inputs)
            graph, places, result = graphs[sizes]
            for place, x in zip(places, inputs):
                place.copy_(x)
            graph.replay()
            return result.clone()

    return replay


class Stop(Exception):
    """Ends the program with one line and an exit code: 2 for bad usage, 3 for divergence."""

    def __init__(self, code, line):
        super().__init__(" ".join(line.split()))
        self.code = code


def show(text, end="\n"):
    """Prints. A run goes on where nobody reads, as when Ctrl-C ends its `| tee log`, too."""
    try:
        print(text, end=end, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def resolve(name):
    """The ROM that name means: Breakout, breakout, BreakoutNoFrameskip-v4, ALE/Breakout-v5."""
    games = {rom.replace("_", ""): rom for rom in roms.get_all_rom_ids()}
    game = re.sub(r"^ale/|(noframeskip|deterministic)?(-v\d+)?$|_", "", name.lower())
    if game not in games:
        near = difflib.get_close_matches(game, games, cutoff=0.5)
        hint = ", nearest: " + ", ".join(games[n] for n in near) if near else ""
        raise Stop(2, f"--env-id {name}: no such Atari game{hint}")
    return games[game]


def make_games(args, num_envs, **kwargs):
    """ALE's vector environment, whose own frame limit of 30 minutes truncates games."""
    num_threads = min(num_envs, torch.get_num_threads())

    def begin():
        with suppress(AttributeError, OSError):  # not everywhere possible or allowed
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        return AtariVectorEnv(
            args.env_id, num_envs, autoreset_mode="SameStep", reward_clipping=False,
            repeat_action_probability=args.repeat_action_probability,  # (+)
            num_threads=num_threads, **kwargs,
        )  # fmt: skip

    with ThreadPoolExecutor(1) as thread:  # what it starts will not displace the network's threads
        return thread.submit(begin).result()


class Games:
    """The games ids of a run's N; one that ends is followed by the next in the same step.

    Their state is the tape, the actions since each game was last seeded, which is played again on
    resuming. A seed loads the game anew and costs 70 ms, so only a game whose tape has grown
    tape_length long is seeded again when it ends; the others go on with the emulator's generators.
    """

    tape_length = 8192
    arrays = ("starts", "seedings", "lengths", "scores", "lives", "screens")

    def __init__(self, args, ids):
        self.args, self.ids = args, ids
        self.n = ids.stop - ids.start
        self.envs = make_games(args, self.n)
        self.global_step, self.restarted, self.tape = 0, 0, []
        self.starts, self.seedings, self.lengths = (np.zeros(self.n, np.int64) for _ in range(3))
        self.scores = np.zeros(self.n)
        self.moving, self.steps, self.cuts, self.episodes = False, [], [], []
        pinned = args.device.type == "cuda"  # a GPU reads such memory while the program goes on
        self.screens = torch.zeros(self.n, 84, 84, 4, dtype=torch.uint8, pin_memory=pinned).numpy()
        self.seed(np.ones(self.n, bool))

    def seed(self, mask):
        """Starts games under mask [n] from seeds that depend on (seed, id, seedings) alone."""
        key = [(self.args.seed, self.ids.start + i, self.seedings[i]) for i in np.flatnonzero(mask)]
        seeds = np.array([np.random.SeedSequence(k).generate_state(1)[0] >> 1 for k in key])
        self.see(*self.envs.reset(seed=seeds, options={"reset_mask": mask}))

    def seed_anew(self, mask):
        self.starts[mask], self.seedings[mask] = len(self.tape), self.seedings[mask] + 1
        self.seed(mask)

    def see(self, obs, info):
        planes = obs.transpose(1, 0, 2, 3)
        np.stack([*planes], -1, out=self.screens)  # 3 times as fast as transposing
        self.lives = info["lives"].copy()

    def send(self, actions):
        """Starts a step."""
        self.envs.send(actions)
        self.tape.append(actions.astype(np.uint8))
        self.moving = True

    def obs(self):
        """What there is to see [n, 84, 84, 4], once the step is done and its outcome noted."""
        if self.moving:
            self.receive()
        return self.screens

    def receive(self):
        """Waits for the end of the step and notes its outcome."""
        lives, self.moving = self.lives, False
        obs, rewards, terminated, truncated, info = self.envs.recv()
        over = terminated | truncated
        self.see(obs, info)
        self.steps.append((rewards.copy(), over, lives, self.lives))
        self.global_step += self.args.num_envs
        self.scores += rewards
        self.lengths += 1
        if over.any():
            self.end(over, truncated, info)

    def end(self, over, truncated, info):
        """Notes games that are over [n] and have made room for the next."""
        for i in np.flatnonzero(over):
            score, length = float(self.scores[i]), int(self.lengths[i])
            self.episodes.append((self.global_step, self.ids.start + i, score, length))
            if truncated[i]:
                last = info["final_obs"][i].transpose(1, 2, 0).copy()
                self.cuts.append((len(self.steps) - 1, self.ids.start + i, last))
        self.scores[over] = self.lengths[over] = 0
        long = over & (len(self.tape) - self.starts >= self.tape_length)
        if long.any():
            self.seed_anew(long)

    def outcomes(self):
        """Of the steps since the last call: rewards, dones [T, n], cuts and episodes."""
        rewards, over, before, after = map(np.array, zip(*self.steps))
        if self.args.clip_rewards:  # (+)
            rewards = np.sign(rewards)
        life_lost = (after < before) & (after > 0) & self.args.episodic_life  # (+)
        outcomes = rewards, over | life_lost, self.cuts, self.episodes
        self.steps, self.cuts, self.episodes = [], [], []
        return outcomes

    def state_dict(self):
        begin = int(self.starts.min())
        self.tape, self.starts = self.tape[begin:], self.starts - begin
        state = {k: torch.tensor(getattr(self, k)) for k in self.arrays}
        tape = torch.from_numpy(np.array(self.tape, np.uint8).reshape(-1, self.n))
        return state | {"tape": tape, "global_step": self.global_step, "restarted": self.restarted}

    def load_state_dict(self, state):
        self.global_step, self.restarted = state["global_step"], state["restarted"]
        saved = {k: state[k].numpy() for k in self.arrays}
        self.starts, self.seedings = saved["starts"], saved["seedings"]
        self.tape = list(state["tape"].numpy())
        self.seed(np.ones(self.n, bool))
        for t, actions in enumerate([*self.tape, None]):
            if t and (self.starts == t).any():
                self.seed(self.starts == t)
            if actions is not None:
                obs, _, _, _, info = self.envs.step(actions.astype(np.int64))
                self.see(obs, info)
        self.scores, self.lengths = saved["scores"], saved["lengths"]
        strange = (self.screens != saved["screens"]).any((1, 2, 3))
        for i in np.flatnonzero(strange):
            show(f"game {self.ids.start + i} does not repeat itself: it starts anew")
            self.restarted += 1
        if strange.any():
            self.scores[strange] = self.lengths[strange] = 0
            self.seed_anew(strange)


class Envs:
    """num_envs games, in two halves, each of which moves when it has its actions."""

    def __init__(self, args, on_episode):
        self.on_episode = on_episode
        ids = np.array_split(range(args.num_envs), min(2, args.num_envs))
        self.halves = [Games(args, slice(i[0], i[-1] + 1)) for i in ids]
        self.num_actions = int(self.halves[0].envs.single_action_space.n)

    def obs(self):
        return np.concatenate([games.obs() for games in self.halves])

    def outcomes(self):
        """Since the last call: rewards, dones [T, N]; of games that time cut (t, id, final obs)."""
        self.obs()
        rewards, dones, cuts, episodes = zip(*(games.outcomes() for games in self.halves))
        for global_step, _, score, length in sorted(chain(*episodes)):
            self.on_episode(global_step, score, length)
        rewards, dones = (np.hstack(x).astype(np.float32) for x in (rewards, dones))
        return rewards, dones, list(chain(*cuts))

    @property
    def global_step(self):
        return self.halves[-1].global_step

    @property
    def restarted(self):
        return sum(games.restarted for games in self.halves)

    def state_dict(self):
        return {"halves": [games.state_dict() for games in self.halves]}

    def load_state_dict(self, state):
        for games, half in zip(self.halves, state["halves"]):
            games.load_state_dict(half)


class Run:
    """The run directory: arguments, script, every episode, metrics, the last checkpoint."""

    may_change = "run_dir checkpoint_every capture_video track wandb_project_name wandb_entity"

    def __init__(self, args):
        """Looks only. Raises Stop unless the directory is free or holds this very run."""
        self.args, self.dir, self.script = args, Path(args.run_dir), Path(__file__)
        self.stop, self.clock, self.facts, self.summary = None, time.perf_counter(), {}, {}
        begun = {"metrics.csv", self.script.name, "args.json.tmp"}  # by a start that was cut short
        try:
            copy, names = self.dir / self.script.name, set()
            if self.dir.exists():
                names = {path.name for path in self.dir.iterdir()}
            code = copy.read_bytes() if copy.name in names else b""
            if names <= begun and self.script.read_bytes().startswith(code):
                return
            self.facts = json.loads((self.dir / "args.json").read_text())
            if (self.dir / "summary.json").exists():
                self.summary = json.loads((self.dir / "summary.json").read_text())
            same_script = code == self.script.read_bytes()
            if not isinstance(self.facts, dict) or not isinstance(self.summary, dict):
                raise ValueError("args.json and summary.json must hold an object each")
        except (OSError, ValueError) as error:
            raise Stop(2, f"--run-dir {self.dir}: not a run of this script: {error}") from error
        for name, x in asdict(args).items():
            if name not in self.may_change.split() and (there := self.facts.get(name)) != x:
                flag = f"--{name.replace('_', '-')}"
                raise Stop(2, f"--run-dir {self.dir}: holds a run with {flag} {there}, not {x}")
        if not same_script:
            raise Stop(2, f"--run-dir {self.dir}: go on with the {self.script.name} that is in it")

    def start(self):
        """Creates the directory, says what will run, and takes over Ctrl-C and SIGTERM."""
        packages = ("torch", "gymnasium", "mujoco", "ale-py", "numpy")
        versions = {"python": platform.python_version()} | {p: version(p) for p in packages}
        gpu = self.args.device.type == "cuda" and torch.cuda.get_device_name()
        versions["device"] = gpu or f"cpu with {torch.backends.cpu.get_cpu_capability()}"
        versions["threads"] = torch.get_num_threads()
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            self.files = {"metrics.csv": open(self.dir / "metrics.csv", "a", buffering=1)}
            fcntl.lockf(self.files["metrics.csv"], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Stop(2, f"--run-dir {self.dir}: another process is at work on this run") from None
        except OSError as error:
            raise Stop(2, f"--run-dir {self.dir}: cannot be written: {error}") from error
        if not self.facts:
            commit = subprocess.run(
                "git describe --always --dirty --abbrev=40 --exclude='*'", shell=True,
                text=True, cwd=self.script.resolve().parent, capture_output=True,
            ).stdout.strip()  # fmt: skip
            self.facts = asdict(self.args) | dict(script=self.script.name, command=sys.argv)
            self.facts |= dict(versions=versions, git_commit=commit, wandb_id=os.urandom(4).hex())
            (self.dir / self.script.name).write_bytes(self.script.read_bytes())
            self.write_json("args.json", self.facts)
        if self.facts["versions"] != versions:
            show(f"not bit for bit: begun with {self.facts['versions']}, goes on with {versions}")
        size = f"{self.args.num_iterations} iterations of {self.args.batch_size} steps"
        device = f"{self.args.device}, {versions['threads']} thread(s)"
        show(f"{self.args.env_id}: {size} on {device}, in {self.dir}")
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self.on_signal)
        self.tracks = self.args.track
        self.track()

    def on_signal(self, signum, _):
        """Ends the run after this iteration; after 25 s, or a second signal, without it."""
        self.stop = 128 + signum
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, lambda *_: os._exit(self.stop))
        timer = threading.Timer(25, os._exit, [self.stop])
        timer.daemon = True
        timer.start()
        with suppress(OSError):
            os.write(1, b"\nstops after this iteration; the same command will go on from there\n")

    def track(self, row=None):
        """Begins, or continues, the run's W&B run, or sends it a row; W&B never stops a run."""
        if not self.tracks:
            return
        try:
            import wandb

            if row:
                wandb.log(row, step=row["global_step"])
                return
            wandb.init(
                project=self.args.wandb_project_name, entity=self.args.wandb_entity,
                id=self.facts["wandb_id"], resume="allow", name=self.dir.name,
                config=asdict(self.args), dir=self.dir, settings={"init_timeout": 30},
            )  # fmt: skip
        except Exception as error:
            show(f"goes on without Weights & Biases: {error}")
            self.tracks = False

    def write(self, name, save):
        """Replaces a file by what save(file) writes, or on any fault leaves the old one."""
        new, content = self.dir / f"{name}.tmp", io.BytesIO()
        save(content)  # in memory, for torch.save answers a full disk with a riddle
        try:
            with open(new, "wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.dir / name)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def write_json(self, name, data):
        self.write(name, lambda file: file.write(json.dumps(data, indent=1).encode()))

    def resume(self, **state):
        """Brings state to where the last checkpoint left it. Returns the iterations it has done."""
        self.state, path = state, self.dir / "checkpoint.pt"
        saved = {"iteration": 0, "seconds": 0.0, "sizes": {}}
        if path.exists():
            try:
                saved = torch.load(path, map_location="cpu", weights_only=True)
                if saved["run"] != self.facts["wandb_id"]:
                    raise ValueError("it was made by another run")
                for name, part in state.items():
                    part.load_state_dict(saved[name])
            except Exception as error:
                raise Stop(2, f"{path}: not a checkpoint of this run: {error}") from error
        self.seconds, self.saved_at = saved["seconds"], time.perf_counter()
        self.files["episodes.csv"] = open(self.dir / "episodes.csv", "a", buffering=1)
        for name, file in self.files.items():
            size = saved["sizes"].get(name, 0)
            if file.tell() < size:
                raise Stop(2, f"{self.dir / name}: shorter than when the checkpoint was made")
            file.seek(file.truncate(size))
        if saved["iteration"]:
            show(f"goes on after iteration {saved['iteration']}")
        else:
            self.files["episodes.csv"].write("global_step,episodic_return,episodic_length\n")
        self.recent = deque(self.scores(), maxlen=100)
        return saved["iteration"]

    def scores(self):
        return [float(row.split(",")[1]) for row in open(self.dir / "episodes.csv").readlines()[1:]]

    def episode(self, global_step, score, length):
        self.files["episodes.csv"].write(f"{global_step},{score},{length}\n")
        self.recent.append(score)

    def check(self, iteration, **tensors):
        self.iteration = iteration
        for name, x in tensors.items():
            if not torch.isfinite(torch.as_tensor(x)).all():
                raise Stop(3, f"diverged in iteration {iteration}: {name} is not finite")

    def log(self, iteration, **metrics):
        """Writes, sends and shows a row of metrics; saves a checkpoint where one is due."""
        args, now, step = self.args, time.perf_counter(), iteration * self.args.batch_size
        self.seconds, self.clock = self.seconds + now - self.clock, now
        row = dict(global_step=step, seconds=round(self.seconds, 3), sps=round(step / self.seconds))
        row |= metrics
        if iteration == 1:
            self.files["metrics.csv"].write(",".join(row) + "\n")
        self.files["metrics.csv"].write(",".join(map(str, row.values())) + "\n")
        score = np.mean(self.recent) if self.recent else math.nan
        self.track(row | {"episodic_return": score})
        left = self.seconds / iteration * (args.num_iterations - iteration)
        text = f"{iteration / args.num_iterations:4.0%}  return {score:.1f}  {row['sps']:,} steps/s"
        text += f"  {left // 60:.0f}:{left % 60:02.0f} left"
        if sys.stdout.isatty():
            show(f"\r{text:70}", end="\n" if iteration == args.num_iterations else "")
        elif iteration % max(1, args.num_iterations // 20) == 0:
            show(text)
        last = iteration == args.num_iterations or self.stop
        if last or iteration % args.checkpoint_every == 0 or now - self.saved_at > 60:
            self.checkpoint(iteration)
            self.saved_at = now
        if self.stop:
            self.finish("interrupted", iteration)
            sys.exit(self.stop)
        if args.capture_video and iteration % max(1, args.num_iterations // 10) == 0:
            play(args, self.state["agent"], args.seed, self.dir / "videos" / f"step-{step}.gif")
            self.clock = time.perf_counter()  # a film's time is not the training's

    def checkpoint(self, iteration, name="checkpoint.pt"):
        for file in self.files.values():
            os.fsync(file.fileno())
        saved = {name: part.state_dict() for name, part in self.state.items()}
        saved["sizes"] = {name: file.tell() for name, file in self.files.items()}
        saved |= {"iteration": iteration, "seconds": self.seconds, "run": self.facts["wandb_id"]}
        self.write(name, lambda file: torch.save(saved, file))

    def finish(self, status, iteration, **more):
        def mean(scores):  # JSON knows no NaN
            return np.mean(scores) if scores and np.isfinite(scores).all() else None

        scores, step = self.scores(), self.state["envs"].global_step
        self.seconds += time.perf_counter() - self.clock
        summary = dict(
            status=status, score=mean(scores[-100:]), score_all=mean(scores),
            episodes=len(scores), global_step=step,
            seconds=self.seconds, sps=step / self.seconds, iteration=iteration,
            restarted_episodes=self.state["envs"].restarted, **more,
        )  # fmt: skip
        self.write_json("summary.json", summary)
        show(f"{status}: score {summary['score']}, {len(scores)} episodes, {self.dir}")


def play(args, agent, seed, video=None):
    """The score of one game of agent, filmed to the GIF video, if given."""
    seed = int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1)  # ALE takes 31 bits
    rng, env, score, over, frames = np.random.default_rng(seed), make_games(args, 1), 0.0, False, []
    obs, _ = env.reset(seed=seed)
    if video:  # the same game on a second emulator, for the screen as people see it
        screen = make_games(args, 1, grayscale=False, img_height=210, img_width=160, stack_num=1)
        frames.append(screen.reset(seed=seed)[0])
    while not over:
        with torch.no_grad():
            pi, _ = agent(torch.from_numpy(obs).permute(0, 2, 3, 1).to(args.device))
        action = (pi.logits.cpu().numpy() + rng.gumbel(size=pi.logits.shape)).argmax(-1)
        obs, reward, terminated, truncated, _ = env.step(action)
        score, over = score + float(reward[0]), bool(terminated[0] | truncated[0])
        if video:
            frame, _, _, _, info = screen.step(action)
            frames.append(info["final_obs"] if over else frame)
    if video:
        import imageio

        video.parent.mkdir(exist_ok=True)
        frames = [f.reshape(210, 160, 3) for f in frames]
        times = np.rint(np.arange(len(frames) + 1) / 15 * 100)  # GIFs count in 1/100 s
        imageio.mimsave(video, frames, duration=list(10 * np.diff(times)), loop=0)
        screen.close()
    env.close()
    return score


def evaluate(args):
    """Plays ten episodes with the agent of the run directory args.eval."""
    run = Path(args.eval)
    try:
        saved = json.loads((run / "args.json").read_text())
        run_args = Args(**{name: saved[name] for name in asdict(args)} | {"cuda": args.cuda})
        weights = torch.load(run / "agent.pt", map_location="cpu", weights_only=True)
        num_actions = weights["actor.bias"].shape[0]
        agent = Agent(num_actions, run_args.network, run_args.init).to(args.device)
        agent.load_state_dict(weights)
        run_args = replace(run_args, env_id=resolve(run_args.env_id))
        env = make_games(run_args, 1)
        if env.single_action_space.n != num_actions:
            raise ValueError(f"its agent is not for {run_args.env_id}")
        env.close()
    except Exception as error:
        error = f"not a finished run of this script: {type(error).__name__}: {error}"
        raise Stop(2, f"--eval {run}: {error}") from None
    now, scores = f"{time.time():.0f}", []
    for i in range(10):
        video = run / "videos" / f"eval-{now}-{i}.gif" if args.capture_video else None
        scores.append(play(run_args, agent, args.seed * 1000 + i, video))
        show(f"episode {i}: return {scores[-1]:.1f}" + (f", {video}" if video else ""))
    show(f"mean {np.mean(scores):.1f}, standard deviation {np.std(scores):.1f}")
    return 0


def flags(task: Task, paper: Paper, extra: Extra, run: Running):
    """Args of its four parts, each a box of --help."""
    return Args(**vars(task), **vars(paper), **vars(extra), **vars(run))


def whole(texts):
    """The int that is typed as 1000000, 1_000_000 or 1e6."""
    with suppress(ValueError):
        if (x := float(texts[0])) % 1 == 0 and x < 2**53:
            return int(x)
    return int(texts[0])


def parse(argv):
    """Args of the command line. Raises Stop in one line."""
    integers = tyro.constructors.ConstructorRegistry()
    typed = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="INT", instance_from_str=whole,
        is_instance=lambda x: isinstance(x, int), str_from_instance=lambda x: [str(x)],
    )  # fmt: skip
    integers.primitive_rule(lambda info: typed if info.type is int else None)
    with integers, redirect_stderr(io.StringIO()) as stderr:
        try:
            config = (tyro.conf.OmitArgPrefixes,)
            args = tyro.cli(flags, args=argv, description=__doc__, config=config)
        except ValueError as error:
            raise Stop(2, str(error)) from None
        except SystemExit as exit:
            if not exit.code:
                raise
            lines = [x.strip("│ ") for x in stderr.getvalue().splitlines() if x[:1] == "│"]
            text = re.sub("─+", "", " ".join(lines))
            raise Stop(2, text.split("For full helptext")[0]) from None
    args = replace(args, env_id=resolve(args.env_id))
    name = f"{args.env_id}__{args.exp_name}__{args.seed}__{time.time():.0f}".replace("/", "_")
    return replace(args, run_dir=args.run_dir or f"runs/{name}")


def main():
    """The exit code: 0 finished, 1 system failed, 2 bad usage, 3 diverged, 130 or 143 stopped."""
    warnings.filterwarnings("ignore", module="torch")
    if sys.platform == "linux":  # keep freed memory: getting it anew is a quarter of an update
        for option, value in ((-1, 2**31 - 1), (-4, 0)):  # M_TRIM_THRESHOLD, M_MMAP_MAX
            ctypes.CDLL(None).mallopt(option, value)
    try:
        args = parse(sys.argv[1:])
        torch.set_num_threads(args.num_threads or torch.get_num_threads())
        torch.backends.cudnn.deterministic = args.torch_deterministic
        torch.backends.cudnn.allow_tf32 = False  # a float32 of 10 bits; --bf16 asks for fewer
        if args.eval is not None:
            return evaluate(args)
        run = Run(args)
        if run.summary.get("status") in ("finished", "diverged"):
            show(f"{run.dir}: already {run.summary['status']}, score {run.summary['score']}")
            return 0 if run.summary["status"] == "finished" else 3
        envs = Envs(args, run.episode)
        run.start()
        slow = args.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
        if args.bf16 and slow:
            show("--bf16: this processor has no bfloat16 arithmetic; it is slower with it")
        try:
            agent = train(args, envs, run)
        except Stop as stop:
            if stop.code == 3:
                run.finish("diverged", run.iteration, reason=str(stop))
                run.checkpoint(None, "diverged.pt")
            raise
        if args.save_model:
            run.write("agent.pt", lambda file: torch.save(agent.state_dict(), file))
        run.finish("finished", args.num_iterations)
        return 0
    except Stop as stop:
        print(f"{Path(__file__).name}: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"{Path(__file__).name}: {error}; the last checkpoint is untouched", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
