# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["torch==2.13.0", "gymnasium[mujoco]==1.4.0", "mujoco==3.3.0", "numpy>=2",
#   "pillow>=9.1", "tyro>=1.0.17", "wandb>=0.31"]
# ///
"""PPO with a fixed or adaptive KL penalty (section 4), for continuous actions.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347.

    python ppo_klpen.py --env-id Hopper --run-dir runs/hopper    train; again: resume
    python ppo_klpen.py --eval runs/hopper                       play ten episodes
    python ppo_klpen.py --help                                   explain every flag

Algorithm 1, in this file's names. Each iteration
    runs the policy in num_envs environments for num_steps steps   rollout()
    estimates advantages, eqs. 11 and 12                           estimate(), gae()
    takes update_epochs passes over minibatches, eqs. 8 and 9      update(), surrogate()
    adapts the penalty's coefficient, section 4                    adapt()

The defaults are those of Table 3. (+) marks what is not in the paper; each has its flag.
Shapes: T num_steps, N num_envs, M minibatch_size, O observation size, A action size.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import defaultdict, deque
from contextlib import ExitStack, closing, contextmanager, nullcontext, redirect_stderr, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, make_dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO, StringIO
from itertools import count
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's matrices here are small

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Int = int | float  # what may be typed as 1e6; check_numbers() makes it an int


@dataclass
class Common:
    """Of every algorithm; (+) is not in the paper"""

    env_id: str = "Hopper"  # Hopper means Hopper-v4; some_module:TheirEnv-v0 works too
    total_timesteps: Int = 1_000_000  # environment steps, rounded down to whole iterations
    seed: Int = 1
    num_envs: Int = 1  # N, actors
    norm_obs: bool = True  # (+) standardise observations by running moments, clip them to +-5
    clip_actions: bool = False  # (+) clip actions to the action space before env.step
    run_dir: str | None = None  # run directory; if it holds this run, resume it
    checkpoint_every: Int = 25  # iterations
    exp_name: str | None = None  # the script's name, if not given
    compile: bool = True  # replay PyTorch's operations in numpy: 6 times as fast (no torch.compile)
    num_threads: Int = 1  # CPU threads, 0 for all; 1 is best: run two seeds on two cores instead
    save_model: bool = True  # write agent.pt at the end
    capture_video: bool = False  # film an episode every tenth of the run, or those of --eval
    eval: str | None = None  # play ten episodes with the agent of this run directory
    track: bool = False  # log to Weights & Biases, too
    wandb_project_name: str = "ppo"
    wandb_entity: str | None = None


@dataclass
class Advantages:
    """Rollouts and advantages, section 5, and initial weights; (+) is not in the paper"""

    num_steps: Int = 2048  # T, horizon of one rollout
    gamma: float = 0.99  # discount
    gae_lambda: float = 0.95  # lambda of eq. 11
    norm_reward: bool = True  # (+) divide rewards by the discounted return's std, clip them to +-10
    norm_adv: Literal["batch", "minibatch", "none"] = "batch"  # (+) standardise advantages over it
    bootstrap_truncated: bool = True  # (+) where a time limit cuts an episode, add gamma V(s_T)
    init: Literal["orthogonal", "normc", "torch"] = "orthogonal"  # (+) kind of initial weights
    init_log_std: float = 0.0  # (+) the policy's log standard deviation at the start

    batch_size = property(lambda self: self.num_envs * self.num_steps)
    num_iterations = property(lambda self: self.total_timesteps // self.batch_size)


@dataclass
class Ppo:
    """Table 3 of the paper; (+) is not in the paper"""

    learning_rate: float = 3e-4  # Adam's step size
    update_epochs: Int = 10  # K, passes over the rollout
    minibatch_size: Int = 64  # M
    kl_coef: float = 1.0  # beta of eq. 8; where it starts from if it adapts
    adapt_kl_coef: bool = True  # keep KL near kl_target by the rule of section 4
    kl_target: float = 0.01  # d_targ of section 4
    kl_tolerance: float = 1.5  # beta stays where KL is within this factor of kl_target
    kl_factor: float = 2.0  # beta is multiplied or divided by it
    vf_coef: float = 1.0  # c1 of eq. 9
    ent_coef: float = 0.0  # c2 of eq. 9
    anneal_lr: bool = True  # (+) decrease the step size linearly to 0
    adam_eps: float = 1e-5  # (+) Adam's epsilon
    max_grad_norm: float | None = None  # (+) clip the norm of the gradient to it
    clip_vloss: float | None = None  # (+) clip the change of V in the value loss to +- it
    target_kl: float | None = None  # (+) end the update after an epoch whose mean KL exceeds it


@dataclass
class Args(Ppo, Advantages, Common):  # a new flag goes into one of these
    def __post_init__(self):
        check_numbers(self)
        if self.adapt_kl_coef and not self.kl_coef:
            raise ValueError("--kl-coef 0: nothing to adapt; give --no-adapt-kl-coef, too")
        N, T, M = self.num_envs, self.num_steps, self.minibatch_size
        if M == 1 or N * T % M:
            raise ValueError(f"--minibatch-size {M}: must divide {N} * {T} and exceed 1")
        if self.total_timesteps < N * T:
            raise ValueError(f"--total-timesteps {self.total_timesteps}: below a batch, {N} * {T}")


def surrogate(ratio, advantage, kl, kl_coef):
    """L^KLPEN, eq. 8, to be maximised. ratio [M] is r_t(theta) = pi(a_t|s_t) / pi_old(a_t|s_t).

    kl [M] is KL[pi_old(.|s_t), pi(.|s_t)].
    """
    return (ratio * advantage - kl_coef * kl).mean()


def adapt(kl_coef, kl, kl_target, tolerance=1.5, factor=2.0):
    """beta of the next iteration, from the KL that this one's update came to: section 4."""
    if kl < kl_target / tolerance:
        return max(kl_coef / factor, 1e-300)  # 0 could not be doubled
    if kl > kl_target * tolerance:
        return kl_coef * factor
    return kl_coef


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
    """Policy and value function, an MLP of 64 and 64 tanh units each, with their input filter."""

    def __init__(self, obs_size, action_size, args):
        super().__init__()
        self.obs_moments = RunningMeanStd(obs_size)
        self.obs_clip = 5.0 if args.norm_obs else math.inf
        self.actor = mlp(obs_size, action_size, args.init, last_gain=0.01)
        self.critic = mlp(obs_size, 1, args.init, last_gain=1.0)
        self.log_std = nn.Parameter(torch.full((action_size,), args.init_log_std))

    def features(self, obs):
        """What both networks see of obs [..., O]: (+) standardised and clipped."""
        x = (obs - self.obs_moments.mean) / self.obs_moments.std
        return x.clamp(-self.obs_clip, self.obs_clip)

    def policy(self, features):
        """pi, a distribution over actions [..., A]."""
        return Independent(Normal(self.actor(features), self.log_std.exp()), 1)

    def forward(self, obs):
        """pi, and value [...], both from obs [..., O]."""
        x = self.features(obs)
        return self.policy(x), self.critic(x).squeeze(-1)

    @torch.no_grad()
    def act(self, obs, noise):
        """Actions [N, A], a sample of pi, from obs [N, O] and standard normal noise [N, A]."""
        normal = self.policy(self.features(obs)).base_dist
        return normal.loc + normal.scale * noise


def rollout(args, envs, act, rng):
    """Runs pi_old, by act(obs, noise), for T steps in each of N environments.

    Returns tensors obs [T, N, O], actions [T, N, A], rewards, dones, discounted_returns [T, N]
    (R = gamma R + r, from 0 in each episode), next_obs [N, O], and a list of
    (t, n, final obs [O]) where a time limit cut an episode: truncations.
    """
    obs = zeros(args.num_steps, *envs.obs.shape)
    actions = zeros(args.num_steps, args.num_envs, envs.action_size)
    noise = rng.standard_normal(actions.shape, dtype=np.float32)
    with envs.own_settings():
        for t in range(args.num_steps):
            obs[t] = envs.obs
            actions[t] = act(envs.obs, noise[t])
            envs.step(actions[t])
    obs, actions, next_obs = map(torch.from_numpy, (obs, actions, envs.obs))
    return SimpleNamespace(obs=obs, actions=actions, next_obs=next_obs, **envs.pop_steps())


@torch.no_grad()
def estimate(args, agent, return_moments, batch):
    """pi_old, values, advantages and value targets [T, N] of a rollout."""
    old_pi, values = agent(batch.obs)
    rewards = batch.rewards.clone()
    if args.norm_reward:  # (+)
        return_moments.update(batch.discounted_returns)
        rewards = (rewards / return_moments.std).clamp(-10, 10)
    if args.bootstrap_truncated and batch.truncations:  # (+)
        t, n, final_obs = zip(*batch.truncations)
        rewards[t, n] += args.gamma * agent(torch.stack(final_obs))[1]
    last_value = agent(batch.next_obs)[1]
    advantages = gae(rewards, values, batch.dones, last_value, args.gamma, args.gae_lambda)
    value_targets = advantages + values
    if args.norm_adv == "batch":
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)  # (+)
    return old_pi, values, advantages, value_targets


METRICS = ("surrogate", "value_loss", "entropy", "kl", "clip_fraction")


def update(
    agent, adam, args, learning_rate, kl_coef,
    obs, actions, old_mean, old_std, old_logprob, advantage, value_target, old_value,
):  # fmt: skip
    """One step up eq. 9 on a minibatch: obs [M, O], actions, old_mean, old_std [M, A], others [M].

    Returns METRICS as a tensor.
    """
    if args.norm_adv == "minibatch":
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)  # (+)
    pi, value = agent(obs)
    log_ratio = pi.log_prob(actions) - old_logprob
    ratio = log_ratio.exp()
    kl = kl_divergence(Independent(Normal(old_mean, old_std), 1), pi)
    policy_objective = surrogate(ratio, advantage, kl, kl_coef)
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

    clip_fraction = ((ratio - 1).abs() > 0.2).float().mean()  # outside eq. 7's range
    return torch.stack([policy_objective, value_loss, entropy, kl.mean(), clip_fraction])


def train(args, envs, run):
    """Algorithm 1. Returns the agent; run takes episodes, metrics and checkpoints.

    Raises Stop if the run diverges or cannot go on, KeyboardInterrupt if a signal ends it.
    """
    N, M, O, A = args.num_envs, args.minibatch_size, envs.obs_size, envs.action_size
    torch.manual_seed(args.seed)
    agent = Agent(O, A, args)
    adam = Adam(agent.parameters(), args.adam_eps)
    return_moments = RunningMeanStd(min_std=1e-4)
    beta = nn.Module()
    beta.kl_coef = nn.Buffer(torch.tensor(args.kl_coef, dtype=torch.float64))
    # act() and update() as they are, but faster: see the end of this file
    act = Replay(args.compile, agent.act, envs.obs, zeros(N, A))
    minibatch = zeros(M, O), *zeros(3, M, A), *zeros(4, M)
    step = Replay(args.compile, partial(update, agent, adam, args), 0.0, 0.0, *minibatch)
    state = dict(agent=agent, adam=adam, return_moments=return_moments, envs=envs)
    start = run.resume(**state, beta=beta)
    for iteration in range(start + 1, args.num_iterations + 1):
        # Rollout: N actors run pi_old for T steps
        rng = generator(args.seed, iteration)
        batch = rollout(args, envs, act, rng)

        # Advantages
        old_pi, values, advantages, value_targets = estimate(args, agent, return_moments, batch)
        old_logprob = old_pi.log_prob(batch.actions)
        seen = dict(**vars(batch), return_moments=return_moments)
        run.check(iteration, **seen, values=values, advantages=advantages)

        # Update: K epochs of minibatch ascent on eq. 9
        alpha = 1 - (iteration - 1) / args.num_iterations
        learning_rate = args.learning_rate * (alpha if args.anneal_lr else 1)  # (+)
        kl_coef = beta.kl_coef.item()
        old = old_pi.mean, old_pi.stddev, old_logprob
        columns = batch.obs, batch.actions, *old, advantages, value_targets, values
        columns = [x.flatten(0, 1).numpy() for x in columns]  # [T*N, ...]
        metrics = []
        for _ in range(args.update_epochs):
            rows = rng.permutation(args.batch_size).reshape(-1, M)
            for minibatch in zip(*(x[rows] for x in columns)):
                metrics.append(step(learning_rate, kl_coef, *minibatch).copy())
            epoch = np.mean(metrics[-len(rows) :], 0)
            if args.target_kl is not None and epoch[METRICS.index("kl")] > args.target_kl:  # (+)
                break
        with torch.no_grad():
            final_kl = kl_divergence(old_pi, agent(batch.obs)[0]).mean().item()  # d of section 4
        if args.adapt_kl_coef:
            constants = args.kl_target, args.kl_tolerance, args.kl_factor
            beta.kl_coef.fill_(adapt(kl_coef, final_kl, *constants))
        if args.norm_obs:  # (+) after the update, so that pi and pi_old saw the same normalisation
            agent.obs_moments.update(batch.obs)

        row = dict(zip(METRICS, np.mean(metrics, 0).tolist(), strict=True), final_kl=final_kl)
        unexplained = (value_targets - values).var() / value_targets.var().clamp(min=1e-12)
        row |= dict(explained_variance=1 - unexplained.item(), learning_rate=learning_rate)
        row["kl_coef"] = kl_coef
        run.log(iteration, iteration * args.batch_size, iteration == args.num_iterations, row)
    return agent


# --------------------------------------------------------------------------------------------------
# Below this line: Adam, initialisation, running moments; environments, run directory, command line.


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


def mlp(inputs, outputs, init, last_gain):
    """Two hidden layers of 64 tanh units. (+) init is the kind of weights; the paper names none."""
    layers = []
    for n, m, gain in ((inputs, 64, 2**0.5), (64, 64, 2**0.5), (64, outputs, last_gain)):
        layer = nn.Linear(n, m)
        if init == "orthogonal":
            nn.init.orthogonal_(layer.weight, gain)
        if init == "normc":  # each row, the weights into a unit, has norm min(1, gain)
            weight = torch.randn_like(layer.weight)
            layer.weight.data = weight * min(gain, 1) / weight.norm(dim=1, keepdim=True)
        if init != "torch":
            nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class RunningMeanStd(nn.Module):
    """(+) Running mean and std, at least min_std, of vectors [size], by batches (Chan 1979)."""

    def __init__(self, *size, min_std=0.1):  # the floor of the 2017 code
        super().__init__()
        self.min_std = min_std
        self.mean, self.count = nn.Buffer(torch.zeros(size)), nn.Buffer(torch.zeros(()))
        self.var, self.std = nn.Buffer(torch.ones(size)), nn.Buffer(torch.ones(size))

    def update(self, batch):
        """Takes in batch [..., size]."""
        var, mean = torch.var_mean(batch.reshape(-1, *self.mean.shape), 0, correction=0)
        added = batch.numel() // self.mean.numel()
        self.count += added
        weight, delta = added / self.count, mean - self.mean
        self.mean += weight * delta
        self.var += weight * (var - self.var + (1 - weight) * delta.square())
        self.std.copy_(self.var.sqrt().clamp(min=self.min_std))


def zeros(*shape):
    """A numpy array in torch's memory, which is 64-byte aligned, so that sums round alike."""
    return torch.zeros(shape).numpy()


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
    """The registered id that name means: exact but for case, else its -v4, else its newest."""
    name = name.strip()
    ids = {x.lower(): x for x in gym.registry if x != "Pusher-v4"}  # which needs MuJoCo 2
    guesses = [name.lower(), *(f"{name.lower()}-v{i}" for i in (4, *reversed(range(10))))]
    return next((ids[guess] for guess in guesses if guess in ids), name)


@np.errstate()  # as it was, whatever an environment sets
@torch.enable_grad()
def make_env(args, video=False):
    """An environment with vectors for observations, tried out for a step. Raises Stop(2)."""
    Box, env = gym.spaces.Box, None
    seed = args.seed % 2**31  # some simulators take a C int
    try:
        seed_all(seed)
        kwargs = {"render_mode": "rgb_array"} if video else {}
        env = gym.make(args.env_id, disable_env_checker=True, **kwargs)
        actions, space = env.action_space, env.observation_space
        if not isinstance(actions, Box) or len(actions.shape) != 1 or actions.dtype.kind != "f":
            raise ValueError(f"actions must be vectors of floats (Box), not {actions}")
        if not isinstance(space, Box) or len(space.shape) != 1:
            env = gym.wrappers.FlattenObservation(env)
        if args.clip_actions:
            env = gym.wrappers.ClipAction(env)  # (+)
        if (size := env.observation_space.shape) is None:
            raise ValueError(f"observations must flatten to a vector, not {space}")
        if 0 in (*size, *actions.shape):
            raise ValueError(f"there is nothing to see or to do: {space}, {actions}")
        obs, _ = env.reset(seed=seed)
        next_obs, reward, terminated, truncated, _ = env.step(np.zeros(actions.shape, np.float32))
        _ = as_bool(terminated), as_bool(truncated)  # or ValueError
        again, _ = env.reset(seed=seed)
        reward = float(np.asarray(reward).item())
        for x, shape in ((obs, size), (next_obs, size), (again, size), (reward, ())):
            if np.shape(x) != shape or not torch.tensor(np.float64(x)).float().isfinite().all():
                raise ValueError(f"it should return something finite of shape {shape}, not {x}")
        if video:
            if hasattr(getattr(env.unwrapped, "model", None), "vis"):  # MuJoCo: ten times as fast
                env.unwrapped.model.vis.quality.offsamples = 0
                env.unwrapped.model.vis.quality.shadowsize = 0
            if not 0 < (fps := env.metadata.get("render_fps", 30)) < math.inf:
                raise ValueError(f"no video of it: render_fps is {fps}")
            picture(env)
        return env
    except BaseException as error:
        close(env)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Stop(2, f"--env-id {args.env_id}{' --capture-video' * bool(video)}", error) from error


def picture(env):
    """What render() shows, as a frame of a GIF."""
    from PIL import Image

    frame = Image.fromarray(np.array(env.render())).convert("RGB")
    return frame.quantize(method=Image.Quantize.FASTOCTREE)  # 40 times as fast as the default


def close(env):
    """Closes it, whatever it raises: all that counts is written by now."""
    with suppress(BaseException):
        env.close()


def as_bool(x):
    """Whether an episode has ended. Raises ValueError if x does not say."""
    if type(x) not in (bool, np.bool_):
        x = np.asarray(x).item()  # of an array or a list of one
        if not isinstance(x, int | float | None) or x != x:
            raise ValueError(f"{x!r} does not say whether the episode has ended")
    return bool(x)


def seed_all(seed):
    """Seeds the global generators: some environments draw from these."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


class Envs:
    """num_envs environments stepped in turn; an episode that ends is followed by the next at once.

    Episode k of environment n is reset with a seed that depends on (seed, n, k) alone, so it can be
    played again up to where a checkpoint left it, whatever state the environment hides.
    """

    def __init__(self, args, on_episode, video=False):
        N = args.num_envs
        self.args, self.on_episode = args, on_episode
        self.gamma = getattr(args, "gamma", 1.0)  # CEM has none
        self.global_step = self.num_restarts = 0  # restarts of episodes that did not repeat
        self.steps = []  # (reward, discounted return, done) since pop_steps()
        self.truncations = []  # (t, n, final obs) since then
        self.episode = [-1] * N
        self.episode_return, self.discounted_return = [0.0] * N, [0.0] * N
        self.actions = [bytearray() for _ in range(N)]  # of the episode so far, as float32
        self.envs, self.torch_state = [], torch.get_rng_state()
        with ExitStack() as stack, self.own_settings():
            for _ in range(N):
                self.envs.append(make_env(args, video))
                stack.callback(close, self.envs[-1])  # if something fails
            self.obs_size, self.action_size = sizes(self.envs[0])
            self.obs = zeros(N, self.obs_size)  # what is seen now
            for n in range(N):
                self.reset(n)
            self.close = stack.pop_all().close

    @contextmanager
    def own_settings(self):
        """For all use of environments: what these set in torch and numpy is undone after it.

        They draw from a state of torch's global generator that nothing else draws from.
        """
        with torch.random.fork_rng(devices=()), torch.enable_grad(), np.errstate():
            torch.set_rng_state(self.torch_state)
            yield
            self.torch_state = torch.get_rng_state()

    def reset(self, n):
        """Begins the next episode of environment n. Raises Stop if it fails."""
        self.episode[n] += 1
        self.episode_return[n] = self.discounted_return[n] = 0.0
        self.actions[n].clear()
        sequence = np.random.SeedSequence((self.args.seed, n, self.episode[n]))
        seed = int(sequence.generate_state(1)[0] >> 1)  # some simulators take a C int
        seed_all(seed)
        try:
            self.see(n, self.envs[n].reset(seed=seed)[0])
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            code = 1 if self.global_step else 2  # nothing has begun
            raise Stop(code, f"{self.args.env_id} failed in reset()", error) from error

    def see(self, n, obs):
        """Takes in what environment n shows. Raises ValueError if it is no vector [O]."""
        obs = np.asarray(obs)
        if obs.shape != (self.obs_size,):  # numpy would repeat a number, and take None for NaN
            raise ValueError(f"an observation of shape {obs.shape}, not {(self.obs_size,)}")
        self.obs[n] = obs

    def step_one(self, n, action):
        """Steps environment n: reward, terminated, truncated. Raises Stop(1) if it fails."""
        self.actions[n] += action.tobytes()
        try:
            obs, reward, terminated, truncated, _ = self.envs[n].step(action.copy())  # may alter it
            self.see(n, obs)
            reward = float(reward if isinstance(reward, float) else np.asarray(reward).item())
            terminated = terminated is not False and as_bool(terminated)  # a call only if need be
            truncated = truncated is not False and as_bool(truncated)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            code, why = (1, "failed in step()") if np.isfinite(action).all() else (3, "diverged")
            raise Stop(code, f"{self.args.env_id} {why} by {np.round(action, 3)}", error) from error
        self.episode_return[n] += reward
        self.discounted_return[n] = self.gamma * self.discounted_return[n] + reward
        return reward, terminated, truncated

    def step(self, actions):
        """Steps all by actions [N, A]; what they then see is in obs [N, O]."""
        self.global_step += len(self.envs)
        for n in range(len(self.envs)):
            reward, terminated, truncated = self.step_one(n, actions[n])
            done = terminated or truncated
            self.steps.append((reward, self.discounted_return[n], done))
            if done:
                if not terminated:
                    t = (len(self.steps) - 1) // len(self.envs)
                    self.truncations.append((t, n, torch.tensor(self.obs[n])))
                length = len(self.actions[n]) // actions[n].nbytes
                self.on_episode(self.global_step, self.episode_return[n], length)
                self.reset(n)

    def pop_steps(self):
        """rewards, discounted_returns, dones [T, N] and truncations since the last call."""
        steps, self.steps = torch.tensor(np.array(self.steps, self.obs.dtype).T.copy()), []
        truncations, self.truncations = self.truncations, []
        names = "rewards", "discounted_returns", "dones"
        return dict(zip(names, steps.view(3, -1, len(self.envs))), truncations=truncations)

    def state_dict(self):
        """What load_state_dict() needs."""
        names = "global_step", "num_restarts", "episode", "episode_return"
        actions = [torch.tensor(np.frombuffer(x, self.obs.dtype)) for x in self.actions]
        state = {name: getattr(self, name) for name in names}
        return state | dict(actions=actions, obs=torch.tensor(self.obs))

    def load_state_dict(self, state):
        """Plays the episodes in progress again. Raises Stop(1) if an environment fails."""
        self.global_step, self.num_restarts = state["global_step"], state["num_restarts"]
        with self.own_settings():
            for n, actions in enumerate(state["actions"]):
                self.episode[n] = state["episode"][n] - 1
                self.reset(n)
                actions = actions.numpy().reshape(-1, self.action_size)
                ended = any(any(self.step_one(n, action)[1:]) for action in actions)
                same_obs = np.array_equal(self.obs[n], state["obs"][n])
                if ended or not same_obs or self.episode_return[n] != state["episode_return"][n]:
                    show(f"environment {n} is not deterministic; its episode was restarted")
                    self.num_restarts += 1
                    self.reset(n)


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
    """The return of an episode of agent, or of its first 10,000 steps; filmed to the GIF video.

    A film has at most 500 frames.
    """
    returns, frames, rng = [], [], np.random.default_rng((seed, 1))
    args = SimpleNamespace(**vars(args) | dict(num_envs=1, seed=seed))
    envs = Envs(args, lambda step, score, length: returns.append(score), video)
    with closing(envs), envs.own_settings():
        fps = envs.envs[0].metadata.get("render_fps", 30) if video else 30
        every = max(1, round(fps / 25))
        while not returns and envs.global_step < 10_000 and not stop():
            if video and envs.global_step % every == 0 and len(frames) < 500:
                frames.append(picture(envs.envs[0]))
            noise = rng.standard_normal((1, envs.action_size), np.float32)
            envs.step(agent.act(torch.tensor(envs.obs), torch.from_numpy(noise)).numpy())
    if video and not stop():
        video.parent.mkdir(exist_ok=True)
        film = dict(append_images=frames[1:], duration=1000 * every / fps, loop=0)
        frames[0].save(video, save_all=True, **film)
    return (returns or envs.episode_return)[0]


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


def sizes(env):
    """What a policy is made for: O and A."""
    return env.observation_space.shape[0], env.action_space.shape[0]


def sources(script):
    """{name: bytes} of a script and of what it has imported that lies beside it or this file."""
    folders = {Path(path).resolve().parent for path in (script, __file__)}
    imported = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
    paths = {Path(path).resolve() for path in (script, *imported)}
    return {p.name: p.read_bytes() for p in paths if p.parent in folders and p.is_file()}


LIMITS = dict(
    seed=(0, 2**53), num_threads=(0, 1024), num_envs=(1, 1e4), num_steps=(1, 1e7),
    minibatch_size=(1, 1e7), gamma=(0, 1), gae_lambda=(0, 1), clip_coef=(1e-6, 1),
    init_log_std=(-20, 5), vf_coef=(0, 1e12), ent_coef=(0, 1e12), kl_coef=(0, 1e12),
    kl_tolerance=(1, 1e12), kl_factor=(1.000001, 1e12))  # fmt: skip


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


def prepare(args):
    """Sets up the process. Returns what the results' last bits depend on: the processor."""
    torch.set_num_threads(args.num_threads or torch.get_num_threads())
    gym.logger.min_level = gym.logger.ERROR
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # films need no screen
    return f"cpu with {torch.backends.cpu.get_cpu_capability()}"


# --------------------------------------------------------------------------------------------------
# Below this line: a fast replay. `--no-compile` skips all of it; it changes nothing but rounding.
#
# On networks this small PyTorch's calls take the time, not their arithmetic; numpy's cost a third.
# So a function, gradients and all, runs once in PyTorch and is then repeated:
#   1. Replay sees each operation of PyTorch's own library (ATen), those of backward() among them.
#   2. It keeps the memory of every result, which each later call fills anew.
#   3. A view of such memory needs no operation; one that works in place is repeated in place.
#   4. An operation that NUMPY has becomes numpy's on the same memory; others stay PyTorch's.
#   5. What cannot be repeated on other numbers is refused, as Python's `if` on a tensor's value.
#   6. Calls 1, 2, 4, 8, ... are made in plain PyTorch, too, and must come to the same.


class Replay(TorchDispatchMode):
    """function(*inputs), repeated: arrays and floats in, arrays out, overwritten by the next call.

    Raises Stop(2) if function cannot be repeated, Stop(1) if its repetition differs from it.
    """

    _should_skip_dynamo = classmethod(lambda cls: False)  # else torch imports dynamo: 1 s, 70 MiB

    def __init__(self, enabled, function, *inputs):
        super().__init__()
        torch.distributions.Distribution.set_default_validate_args(False)  # which reads values
        np.seterr(all="ignore")  # as torch does
        self.function, self.enabled, self.operations = function, enabled, []
        self.calls = 0
        self.retry = None  # the call to be compared again, after one that differed
        self.arrays = [np.asarray(x, zeros().dtype) for x in inputs]
        self.inputs = [torch.from_numpy(x) for x in self.arrays]
        self.state = {f"input.{i}": x for i, x in enumerate(self.inputs)}
        self.parameters = {}  # their gradients are looked at, too
        call = partial(function)  # merges nested partials
        self.name = getattr(call.func, "__name__", "function")
        owners = [getattr(call.func, "__self__", None), *call.args, *call.keywords.values()]
        for i, x in enumerate(x for x in owners if isinstance(x, nn.Module)):
            name = f"{type(x).__name__.lower()}{i or ''}"
            self.state |= x.state_dict(prefix=f"{name}.")
            self.parameters |= x.named_parameters(name)
        inside = [y for x in owners for y in (x.modules() if isinstance(x, nn.Module) else [x])]
        # where function may keep something of Python's
        self.homes = [getattr(x, "__dict__", {}) for x in (*inside, call.func)]
        self.homes.append(getattr(call.func, "__globals__", {}))
        names = getattr(getattr(call.func, "__code__", None), "co_names", ())
        self.constants = [(home, name, home[name]) for home in self.homes for name in names
                          if isinstance(home.get(name), int | float | str)]  # fmt: skip
        if enabled:
            self.varying = addresses(self.state)  # and of what depends on it
            self.made = set()  # addresses of function's own tensors
            before = self.python_state()
            self.result = self.try_out(function, "record")[1].numpy()
            if changed := self.python_state() - before:
                what = min(changed, key=str)[1]
                raise Stop(2, f"{self.name}() changes {what} of Python: use --no-compile")

    def __call__(self, *inputs):
        if len(inputs) != len(self.arrays):  # zip(strict=True) takes 0.25 us
            raise TypeError(f"{self.name}() takes {len(self.arrays)} inputs, not {len(inputs)}")
        for array, x in zip(self.arrays, inputs):
            if array is not x:
                array[...] = x
        if not self.enabled:
            return self.function(*self.inputs).detach().numpy()
        for home, name, value in self.constants:
            if home.get(name) != value:
                raise Stop(1, f"{name} is not what it was when recorded: use --no-compile")
        self.calls += 1
        if self.calls.bit_count() == 1 or self.calls == self.retry:  # 1, 2, 4, 8, ...
            self.compare()
        return self.repeat()

    def repeat(self, *_):
        """Does once more what was recorded."""
        for operation in self.operations:
            operation()
        return self.result

    def python_state(self):
        """Marks of what Python holds that function could change, and a replay would not."""

        def mark(x, depth=3):
            x = vars(x) if isinstance(x, SimpleNamespace) else x
            if isinstance(x, torch.Tensor):
                return id(x), x.data_ptr()
            if isinstance(x, list | tuple | dict | set | deque) and depth:
                return tuple(mark(y, depth - 1) for y in (x.values() if isinstance(x, dict) else x))
            return x.tobytes() if isinstance(x, np.ndarray) else x if type(x) in plain else id(x)

        plain = int, float, str, bool
        return {(i, name, mark(x)) for i, home in enumerate(self.homes) for name, x in home.items()
                if not name.startswith("__")}  # fmt: skip

    def __torch_dispatch__(self, target, types, args=(), kwargs=None):
        """Records, or nudges, an operation of PyTorch's: each that is called within `with self`."""
        kwargs, name, tags, Tag = kwargs or {}, target.name(), set(target.tags), torch.Tag
        if self.nudge:
            result = target(*args, **kwargs)
            for x in tree_leaves(None if target.is_view else result):
                if torch.is_tensor(x) and x.is_floating_point():
                    x *= 1 + 1e-7 * torch.randn(x.shape, generator=self.nudge)
            return result
        reads_values = tags & {Tag.data_dependent_output, Tag.dynamic_output_shape}
        if name == "aten::index.Tensor":
            reads_values = any(x is not None and not x.dtype.is_signed for x in args[1])  # a mask
        given = {x.name: y for x, y in zip(target._schema.arguments, args)} | kwargs
        written = [given.get(x.name) for x in target._schema.arguments if x.is_write]
        written = [x for x in tree_leaves(written) if torch.is_tensor(x)]
        foreign = addresses(written) - self.varying - self.made
        if target.namespace != "aten" or reads_values or foreign:
            why = f"{name} cannot be repeated on other numbers"
            if foreign:
                why = f"{name} changes a tensor that no state_dict() has"
            folder = os.path.dirname(torch.__file__)
            line = [x for x in traceback.extract_stack() if not x.filename.startswith(folder)][-2]
            where = f"{Path(line.filename).name}, line {line.lineno}, `{line.line}`"
            raise Stop(2, f"{where}: {why}: use --no-compile")
        for x in written:
            if not addresses(x) <= self.varying:  # a constant so far
                whole = x.detach() if x._base is None else x._base.detach()
                self.operations.insert(0, partial(whole.copy_, whole.clone()))
        result = target(*args, **kwargs)
        if name == "aten::expand" and 0 in result.stride():
            result = result.contiguous()  # numpy is slow where a stride is 0
        elif target.is_view and name != "aten::lift_fresh" or Tag.inplace_view in tags:
            return result
        self.made |= addresses(result)
        varies = Tag.nondeterministic_seeded in tags or addresses((args, kwargs)) & self.varying
        if written or varies and name not in ("aten::ones_like", "aten::zeros_like"):
            self.varying |= addresses(result)
            nested = tree_map_only(torch.Tensor, torch.Tensor.detach, (result, args, kwargs))
            self.operations += repeated(target, *nested)
        return result

    def try_out(self, function, mode=None):
        """What function changes in the state, with its result, by name; and the result as it is.

        State and generator are put back. mode is "record", or "nudge": change the result of every
        operation by about 1e-7 of itself, as other ways to round would.
        """
        saved, rng = [x.clone() for x in self.state.values()], torch.Generator().manual_seed(0)
        gradients = [p.grad for p in self.parameters.values()]
        for x in self.inputs if mode == "record" else ():
            x.uniform_(generator=rng)  # solvers fail on zeros
        before = [x.to(torch.float64, copy=True) for x in self.state.values()]
        self.nudge = rng if mode == "nudge" else None
        with torch.random.fork_rng(devices=()), self if mode else nullcontext():
            result = torch.as_tensor(function(*self.inputs)).detach()
        changes = {k: x.double() - y for (k, x), y in zip(self.state.items(), before)}
        changes |= {f"{k}.grad": p.grad.to(torch.float64, copy=True)
                    for k, p in self.parameters.items() if p.grad is not None}  # fmt: skip
        for x, y in zip(self.state.values(), saved):
            x.copy_(y)
        for p, x in zip(self.parameters.values(), () if mode == "record" else gradients):
            p.grad = x  # the replay's
        return changes | {f"result.{i}": x.double() for i, x in enumerate(result.flatten())}, result

    def compare(self):
        """Raises Stop(1) if the replay differs from function in two calls running.

        A difference may be rounding if it is below the sum of: 1% of a change, or 1e-4 of a result;
        3e-5 of the size of all tensors of the same owner; and 100 times the effect of a nudge: the
        gradient of a saturated tanh is nothing but rounding. A single larger one may be a sample at
        the very edge of the clip.
        """
        tries, nudged = (self.repeat, self.function, self.function), None
        found, expected, again = (self.try_out(x)[0] for x in tries)
        norms = defaultdict(float)  # of all tensors of an owner: of "adam1.means", "agent.actor.0"
        for name, x in self.state.items():
            norms[name.rpartition(".")[0]] += (x.double() + expected[name]).norm()
        for name, x in ((name, x) for name, x in expected.items() if name in found):
            error, share = (found[name] - x).norm(), 1e-4 if name.startswith("result") else 1e-2
            rounding = share * x.norm() + 3e-5 * (1 + norms[name.rpartition(".")[0]])
            if error > rounding:
                nudged = nudged or self.try_out(self.function, "nudge")[0]
                rounding += 100 * (nudged[name] - x).norm()
            far = error > rounding or not torch.equal(found[name].isfinite(), x.isfinite())
            if far or (again[name] - x).norm() > 0:  # it has changed something of Python's
                if self.calls == self.retry:
                    what = f"the replay of {self.name}() differs in {name}"
                    raise Stop(1, f"{what}: use --no-compile")
                self.retry = self.calls + 1
                return


def addresses(nested):
    """Of the tensors in a nested structure; views are where their originals are."""
    return {x.untyped_storage().data_ptr() for x in tree_leaves(nested) if torch.is_tensor(x)}


def repeated(target, result, args, kwargs):
    """Functions of nothing that fill result once more as target(*args, **kwargs) did."""
    name, packet, calls = target.name().removeprefix("aten::"), target.overloadpacket.__name__, None
    dtypes = {x.dtype for x in tree_leaves((result, args)) if torch.is_tensor(x)}
    translate = NUMPY.get(name, NUMPY.get(packet.rstrip("_")))  # add_ as add
    if translate and dtypes <= {torch.float32, torch.bool} and kwargs.keys() <= {"dtype"}:
        out, *xs = tree_map_only(torch.Tensor, torch.Tensor.numpy, (result, *args))
        calls = translate(xs[0] if packet.endswith("_") else out, *xs)
    if calls:  # each (function, *its arguments)
        as_is = dot, np.copyto, np.add.reduce
        return [partial(f, *(xs if f in as_is else map(fast, xs))) for f, *xs in calls]
    operation = partial(getattr(torch, packet, target), *args, **kwargs)

    if target._schema.is_mutable and addresses(result) <= addresses((args, kwargs)):
        return [operation]
    leaves = tree_leaves(result)
    return [lambda: [x.copy_(y) for x, y in zip(leaves, tree_leaves(operation())) if x is not None]]


def fast(x):
    """numpy is faster on an array than on a number, on a vector than on a matrix of one row."""
    x = np.asarray(x, None if isinstance(x, np.ndarray) else np.float32)
    return x[0] if x.ndim == 2 and len(x) == 1 else x


def total(out, x, axes=None, keep=False):
    """As an entry of NUMPY: the sum of x over axes, or of all."""
    if x.ndim == 1 or x.ndim == 2 and axes in ([0], [1], [-1]):  # faster than np.add.reduce
        x = x.T if axes == [0] else x
        return [(dot, x, np.ones(x.shape[-1], np.float32), out.reshape(x.shape[:-1]))]
    return [(np.add.reduce, x, tuple(axes) if axes else None, None, out, keep)]


dot = np.ndarray.dot
SAME = dict(  # by PyTorch's name, numpy's function; some take out by name only
    abs=np.abs, add=np.add, div=np.divide, eq=np.equal, exp=np.exp, ge=np.greater_equal,
    gt=np.greater, le=np.less_equal, log=np.log, logical_and=np.logical_and, lt=np.less,
    maximum=lambda x, y, out: np.maximum(x, y, out=out), mul=np.multiply, neg=np.negative,
    minimum=lambda x, y, out: np.minimum(x, y, out=out), reciprocal=np.reciprocal,
    sqrt=np.sqrt, sub=np.subtract, tanh=np.tanh)  # fmt: skip
NUMPY = {  # by PyTorch's name: from its result and arguments, [(numpy's function, *arguments)]
    "_to_copy": lambda out, x: [(np.copyto, out, x, "unsafe")],
    "addmm": lambda out, b, x, w: not np.may_share_memory(out, b) and [
        (dot, fast(x), w, row := fast(out)), (np.add, row, b, row)],  # two views take twice as long
    "clamp": lambda out, x, low=None, high=None: [
        (SAME["maximum"], x, -np.inf if low is None else low, row := fast(out)),
        (SAME["minimum"], row, np.inf if high is None else high, row)],
    "expand": lambda out, x, *_: [(np.copyto, out, x)],
    "linalg_vector_norm": lambda out, x, *p: p == (2,) and x.flags.c_contiguous and [
        (dot, x.reshape(-1), x.reshape(-1), out), (np.sqrt, out, out)],
    "masked_fill_.Scalar": lambda out, x, mask, y: [
        (np.copyto, out, np.asarray(y, out.dtype), "same_kind", mask)],
    "mean": lambda out, *x: [  # not all in out: in place an operation on a number is slow
        *total(sum := np.empty_like(out), *x), (np.divide, sum, x[0].size / out.size, out)],
    "mm": lambda out, x, w: [(dot, fast(x), w, fast(out))],
    "pow.Tensor_Scalar": lambda out, x, y: y in (1, 2) and [
        (np.square if y == 2 else np.positive, x, out)],
    "rsub.Scalar": lambda out, x, y, a=1: a == 1 and [(np.subtract, y, x, out)],
    "stack": lambda out, xs, dim=0: [
        (np.copyto, np.moveaxis(out, dim, 0)[i, ...], x) for i, x in enumerate(xs)],
    "sum": total,
    "tanh_backward": lambda out, g, y: [
        (np.square, y, out), (np.subtract, 1, out, out), (np.multiply, g, out, out)],
    "where.self": lambda out, mask, x, y: [
        (np.copyto, out, y), (np.copyto, out, x, "same_kind", mask)],
}  # fmt: skip
NUMPY |= {name: lambda out, *xs, f=f: [(f, *xs, out)] for name, f in SAME.items()}


if __name__ == "__main__":
    sys.exit(main(train, Args, __file__))
