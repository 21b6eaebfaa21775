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
"""PPO with the clipped surrogate objective, for continuous actions.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347.
Algorithm 1, in this file's names. Each iteration
    runs the policy in num_envs environments for num_steps steps   train(), "Rollout"
    estimates advantages, eqs. 11 and 12                           gae()
    takes update_epochs passes over minibatches, eqs. 7 and 9      surrogate(), update(), "Update"

The defaults are those of Table 3. Not in the paper, marked (+) where it happens, each with its
flag: --norm-obs, --norm-reward, --norm-adv, --bootstrap-truncated, --anneal-lr, --init, --adam-eps,
--max-grad-norm, --clip-vloss, --clip-actions, --target-kl, --anneal-clip-coef.

Shapes: T num_steps, N num_envs, M minibatch_size, O observation size, A action size.
"""

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
from contextlib import redirect_stderr, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
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


@dataclass(frozen=True)
class Task:
    env_id: str = "Hopper"  # Hopper means Hopper-v4; some_module:TheirEnv-v0 works too
    total_timesteps: int = 1_000_000  # environment steps, rounded down to whole iterations
    seed: int = 1


@dataclass(frozen=True)
class Paper:
    """Table 3 of the paper"""

    num_envs: int = 1  # N, actors
    num_steps: int = 2048  # T, horizon of one rollout
    learning_rate: float = 3e-4  # Adam's step size
    update_epochs: int = 10  # K, passes over the rollout
    minibatch_size: int = 64  # M
    gamma: float = 0.99  # discount
    gae_lambda: float = 0.95  # lambda of eq. 11
    clip_coef: float = 0.2  # epsilon of eq. 7
    clip_log_ratio: bool = False  # clip log r to +- epsilon instead (the paper: no better)
    vf_coef: float = 1.0  # c1 of eq. 9
    ent_coef: float = 0.0  # c2 of eq. 9


@dataclass(frozen=True)
class Extra:
    """(+) Not in the paper"""

    norm_obs: bool = True  # standardise observations by running moments, clip them to +-5
    norm_reward: bool = True  # divide rewards by the running std of the discounted return
    norm_adv: Literal["batch", "minibatch", "none"] = "batch"  # standardise advantages over it
    bootstrap_truncated: bool = True  # a time limit ends no task: V(s_T) stands for the rest
    anneal_lr: bool = True  # decrease the step size linearly to 0
    anneal_clip_coef: bool = False  # decrease epsilon likewise
    init: Literal["orthogonal", "normc", "torch"] = "orthogonal"  # kind of initial weights
    adam_eps: float = 1e-5  # Adam's epsilon
    max_grad_norm: float | None = None  # clip the norm of the gradient to it
    clip_vloss: float | None = None  # clip the change of V in the value loss to +- it
    clip_actions: bool = False  # clip actions to the action space before env.step
    target_kl: float | None = None  # end the update after an epoch whose mean KL exceeds it


@dataclass(frozen=True)
class Running:
    run_dir: str | None = None  # the same command continues or confirms the run that lives there
    checkpoint_every: int = 25  # iterations, and at least once a minute
    exp_name: str = Path(__file__).stem
    compile: bool = True  # record the update and replay it, which takes a sixth of the time
    cuda: bool = False  # update on the GPU, if any; networks this small are faster without
    num_threads: int = 1  # CPU threads, 0 for all; two runs on a core each beat one on two
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
    def obs_clip(self):
        return 5.0 if self.norm_obs else math.inf

    @property
    def device(self):
        return torch.device("cuda" if self.cuda and torch.cuda.is_available() else "cpu")

    @property
    def num_iterations(self):
        return self.total_timesteps // self.batch_size

    def __post_init__(self):
        for name, x in vars(self).items():
            low = 1 if type(x) is int and name not in ("seed", "num_threads") else 0
            shares = ("gamma", "gae_lambda", "clip_coef")
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


class Agent(nn.Module):
    """Policy and value function, an MLP of 64 and 64 tanh units each, with their input filter."""

    def __init__(self, obs_size, action_size, init, obs_clip):
        super().__init__()
        self.obs_moments, self.obs_clip = Moments(obs_size), obs_clip
        self.actor = mlp(obs_size, action_size, init, last_gain=0.01)
        self.critic = mlp(obs_size, 1, init, last_gain=1.0)
        self.log_std = nn.Parameter(torch.zeros(action_size))

    def forward(self, obs):
        """pi, a distribution over actions [..., A], and value [...], both from obs [..., O]."""
        mean, std = self.obs_moments.mean_std()
        x = ((obs - mean) / std).clamp(-self.obs_clip, self.obs_clip)  # (+)
        pi = Independent(Normal(self.actor(x), self.log_std.exp()), 1)
        return pi, self.critic(x).squeeze(-1)

    def numpy_policy(self):
        """Mean [N, A] of numpy obs [N, O], [A] if N is 1, as a function, and std [A] of pi.

        A call takes 4 us where forward() takes 55.
        """
        parameters = (*self.actor.parameters(), self.log_std.exp(), *self.obs_moments.mean_std())
        w1, b1, w2, b2, w3, b3, std, obs_mean, obs_std = (
            p.detach().cpu().numpy().T.copy() for p in parameters
        )
        low, high = np.full_like(obs_mean, -self.obs_clip), np.full_like(obs_mean, self.obs_clip)

        def mean(obs):
            x = obs[0] if len(obs) == 1 else obs  # a third faster than a matrix of one row
            x = np.minimum(np.maximum((x - obs_mean) / obs_std, low), high)
            return np.tanh(np.tanh(x.dot(w1) + b1).dot(w2) + b2).dot(w3) + b3

        return mean, std


METRICS = ("surrogate", "value_loss", "entropy", "kl", "clip_fraction")


def update(agent, adam, args, learning_rate, clip_coef, *minibatch):
    """One step up eq. 9 on a minibatch of tensors [M, ...]. Returns METRICS as a tensor."""
    obs, actions, old_logprob, advantage, value_target, old_value = minibatch
    if args.norm_adv == "minibatch":
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)  # (+)
    pi, value = agent(obs)
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
    agent = Agent(envs.obs_size, envs.action_size, args.init, args.obs_clip).to(device)
    adam = Adam(agent.parameters(), args.adam_eps)
    return_moments = Moments(min_std=1e-4)
    start = run.resume(agent=agent, adam=adam, return_moments=return_moments, envs=envs)
    step = compiled(update, agent, adam, args)

    def zeros(*shape):  # numpy's view of torch's memory, whose alignment is always the same
        return torch.zeros(T, N, *shape).numpy()

    def tensor(array):
        return torch.from_numpy(array).to(device)

    obs, actions = zeros(envs.obs_size), zeros(envs.action_size)
    for iteration in range(start + 1, args.num_iterations + 1):
        # Rollout: N actors run pi_old for T steps
        rng = np.random.default_rng((args.seed, iteration))  # there is no state to be saved
        policy_mean, policy_std = agent.numpy_policy()
        noise = policy_std * rng.standard_normal(actions.shape, dtype=np.float32)
        for t in range(T):
            obs[t] = envs.obs
            actions[t] = policy_mean(obs[t]) + noise[t]
            envs.step(actions[t])
        rewards, returns, dones, cuts = envs.outcomes()
        run.check(iteration, obs=obs, actions=actions, rewards=rewards)

        # Advantages: what no environment waits for is computed for the whole rollout at once
        with torch.no_grad():
            old_pi, values = agent(tensor(obs))
            old_logprob = old_pi.log_prob(tensor(actions))
            last_value = agent(tensor(envs.obs))[1].cpu().numpy()
            if args.norm_reward:  # (+)
                return_moments.update(torch.from_numpy(returns))
                rewards = (rewards / return_moments.mean_std()[1].item()).clip(-10, 10)
            if args.bootstrap_truncated and cuts:  # (+)
                t, n, final_obs = zip(*cuts)
                final_obs = torch.tensor(np.array(final_obs), device=device)
                rewards[t, n] += args.gamma * agent(final_obs)[1].cpu().numpy()
        v = values.cpu().numpy()
        advantages = tensor(gae(rewards, v, dones, last_value, args.gamma, args.gae_lambda))
        value_targets = advantages + values
        if args.norm_adv == "batch":
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)  # (+)

        # Update: K epochs of minibatch ascent on eq. 9
        alpha = 1 - (iteration - 1) / args.num_iterations
        learning_rate = args.learning_rate * (alpha if args.anneal_lr else 1)  # (+)
        clip_coef = args.clip_coef * (alpha if args.anneal_clip_coef else 1)  # (+)
        rollout = tensor(obs), tensor(actions), old_logprob, advantages, value_targets, values
        batch = [x.flatten(0, 1).cpu().numpy() for x in rollout]  # [T*N, ...]
        metrics = []
        for _ in range(args.update_epochs):
            for rows in rng.permutation(args.batch_size).reshape(-1, args.minibatch_size):
                metrics.append(step(rows, learning_rate, clip_coef, *batch))
            if args.target_kl is not None:  # (+)
                epoch = torch.stack(metrics[-args.batch_size // args.minibatch_size :])
                if epoch.mean(0)[METRICS.index("kl")] > args.target_kl:
                    break
        with torch.no_grad():
            final_kl = kl_divergence(old_pi, agent(tensor(obs))[0]).mean()  # d of section 4
        if args.norm_obs:
            agent.obs_moments.update(tensor(obs))  # (+) not earlier: ratios compare like with like

        metrics = dict(zip(METRICS, torch.stack(metrics).mean(0)))
        run.check(iteration, **metrics, **dict(agent.named_parameters()))
        run.log(
            iteration,
            **{name: x.item() for name, x in metrics.items()},
            final_kl=final_kl.item(),
            explained_variance=1 - ((value_targets - values).var() / value_targets.var()).item(),
            learning_rate=learning_rate,
        )
    return agent


# --------------------------------------------------------------------------------------------------
# Below this line: Adam, initialisation, running moments; environments, records, command line.


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


def mlp(inputs, outputs, init, last_gain):
    """Two hidden layers of 64 tanh units."""
    return nn.Sequential(
        initialized(nn.Linear(inputs, 64), init, 2**0.5), nn.Tanh(),
        initialized(nn.Linear(64, 64), init, 2**0.5), nn.Tanh(),
        initialized(nn.Linear(64, outputs), init, last_gain),
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


class Moments(nn.Module):
    """(+) Running mean and variance of vectors [size], a batch at a time (Chan et al. 1979)."""

    def __init__(self, *size, min_std=0.1):  # the floor of the 2017 code
        super().__init__()
        self.min_std = min_std
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    def update(self, batch):
        """Takes in batch [..., size]."""
        var, mean = torch.var_mean(batch.reshape(-1, *self.mean.shape), 0, correction=0)
        added = batch.numel() // self.mean.numel()
        self.count += added
        weight, delta = added / self.count, mean - self.mean
        self.mean += weight * delta
        self.var += weight * (var - self.var + (1 - weight) * delta.square())

    def mean_std(self):
        return self.mean, self.var.sqrt().clamp(min=self.min_std)


def compiled(function, agent, adam, args):
    """function(agent, adam, args, *tensors) on minibatches, fast on small ones.

    Returns step(rows, *batch), of scalars and arrays [size, ...], of which function gets rows [M].
    Its first call records what function does, gradients included, and keeps the memory of every
    result. Each later one repeats that on the same memory, mostly in numpy, whose calls cost a
    third of torch's: on networks this small the calls are the work.
    """
    torch.distributions.Distribution.set_default_validate_args(False)  # slow, and waits for values
    learner = nn.ModuleList([agent, adam])
    recorded = None if args.compile and args.device.type == "cpu" else ()

    def record(places):
        before = deepcopy(learner.state_dict())
        try:
            with Recorder([*learner.state_dict().values(), *places]) as recorder:
                result = function(agent, adam, args, *places)
            return [x.numpy() for x in places], recorder.calls, result
        except Unrecordable as error:
            show(f"the update is not compiled and takes six times as long: {error}")
            return ()
        finally:
            learner.load_state_dict(before)

    def tensors(rows, batch):
        some = [x if isinstance(x, float) else x[rows] for x in batch]
        return [torch.tensor(x, device=args.device) for x in some]

    def step(rows, *batch):
        nonlocal recorded
        if recorded is None:
            recorded = record(tensors(rows, batch))
        if not recorded:
            return function(agent, adam, args, *tensors(rows, batch))
        places, calls, result = recorded
        for place, x in zip(places, batch):
            if isinstance(x, float):
                place.fill(x)
            else:
                x.take(rows, 0, place, "clip")  # the other modes go through one more array
        with np.errstate(all="ignore"):
            for operation, arguments in calls:
                operation(*arguments)
        return result.clone()

    return step


def memory(nested):
    """Where the tensors in a nested structure lie, views where their originals do."""
    return {x.untyped_storage().data_ptr() for x in tree_leaves(nested) if torch.is_tensor(x)}


class Unrecordable(Exception):
    """What an update does cannot be repeated on other numbers."""


class Recorder(TorchDispatchMode):
    """Notes the calls (operation, arguments) that fill anew what is computed from inputs."""

    _should_skip_dynamo = classmethod(lambda cls: False)  # importing that takes 1 s and 70 MiB

    def __init__(self, inputs):
        super().__init__()
        self.calls, self.kept, self.varying = [], [], memory(inputs)

    def __torch_dispatch__(self, target, types, args=(), kwargs=None):
        kwargs, tags, Tag = kwargs or {}, target.tags, torch.Tag
        if Tag.data_dependent_output in tags or Tag.dynamic_output_shape in tags:
            raise Unrecordable(f"{target} makes what follows depend on the values of a tensor")
        changes = target._schema.is_mutable
        for x in tree_leaves(args[0]) if changes else ():
            if not memory(x) <= self.varying:  # so far it was a constant
                self.calls.insert(0, (x.detach().copy_, [x.clone()]))
        result = target(*args, **kwargs)
        if target._schema.name == "aten::expand":
            result = result.contiguous()  # numpy is slow where a stride is 0
        self.kept.append(result)  # or its memory would be used again
        varies = Tag.nondeterministic_seeded in tags or memory((args, kwargs)) & self.varying
        alike = target._schema.name in ("aten::ones_like", "aten::zeros_like")
        if changes or varies and not alike and not memory(result) <= memory(args):  # that is a view
            self.calls += replay(target, args, kwargs, result)
            self.varying |= memory(result)
        return result


def replay(target, args, kwargs, result):
    """Calls (operation, arguments) that fill result again as target(*args, **kwargs) did."""
    name, rest = target._schema.name.removeprefix("aten::"), target._schema.arguments[len(args) :]
    args = *args, *(x.default_value for x in rest if not x.kwarg_only)
    args, kwargs, result = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs, result))
    tensors = [x for x in tree_leaves((args, result)) if torch.is_tensor(x)]
    if {x.dtype for x in tensors} <= {torch.float32, torch.bool} and kwargs.keys() <= {"dtype"}:
        arrays = tree_map_only(torch.Tensor, torch.Tensor.numpy, (*args, result))
        if calls := in_numpy(name.rstrip("_"), *arrays):
            return [(operation, arguments) for operation, *arguments in calls]
    if target._schema.is_mutable:
        return [(partial(getattr(torch, name, target), **kwargs), args)]

    def refill():
        for x, new in zip(tree_leaves(result), tree_leaves(target(*args, **kwargs))):
            x.copy_(new)

    return [(refill, ())]


dot = np.ndarray.dot  # a tenth of a microsecond faster than np.dot
NUMPY = {  # where one call is the same as one of torch
    "abs": np.abs, "add": np.add, "div": np.divide, "exp": np.exp, "log": np.log, "mm": dot,
    "mul": np.multiply, "neg": np.negative, "sqrt": np.sqrt, "sub": np.subtract, "tanh": np.tanh,
    "eq": np.equal, "ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less,
    "logical_and": np.logical_and,
}  # fmt: skip


def in_numpy(name, *args):
    """[(operation, *arguments)] that do what torch's operation of that name does, or None."""

    def array(x):
        return np.array(x, np.float32) if isinstance(x, float | int) else x

    match name, *args:
        case [same, *_] if same in NUMPY:
            return [(NUMPY[name], *map(array, args))]
        case ["_to_copy", x, out]:
            return [(np.copyto, out, x)]
        case ["addmm", b, x, w, out]:
            return [(dot, x, w, out), (np.add, out, b, out)]
        case ["clamp", x, low, high, out]:
            return [(x.clip, array(low), array(high), out)]
        case ["expand", x, _, out]:
            return [(np.copyto, out, x)]
        case ["linalg_vector_norm", x, 2, None, False, out] if x.flags.c_contiguous:
            return [(dot, x.reshape(-1), x.reshape(-1), out), (np.sqrt, out, out)]
        case ["masked_fill", x, mask, y, out]:
            return [(np.copyto, out, x), (np.copyto, out, array(y), "same_kind", mask)]
        case ["maximum" | "minimum", x, y, out]:
            return [(partial(getattr(np, name), out=out), x, y)]
        case ["mean", x, out]:
            total = np.empty_like(out)  # 0-d operations in place are slow
            return [(np.add.reduce, x, None, None, total), (np.divide, total, array(x.size), out)]
        case ["pow", x, int() | float() as y, out] if y in (1, 2):
            return [(np.square if y == 2 else np.positive, x, out)]
        case ["rsub", x, y, 1, out]:
            return [(np.subtract, array(y), x, out)]
        case ["stack", xs, 0, out]:
            return [(np.copyto, place, x) for place, x in zip(np.split(out, len(xs)), xs)]
        case ["sum", x, [0 | -1 as axis], _, out] if x.ndim == 2:  # faster than np.add.reduce
            ones = np.ones(x.shape[axis], np.float32)
            return [(dot, *((x, ones) if axis else (ones, x)), out.reshape(-1))]
        case ["sum", x, [*axes], keep, out]:
            return [(np.add.reduce, x, tuple(axes), None, out, keep)]
        case ["tanh_backward", g, y, out]:
            rest = (np.subtract, array(1), out, out), (np.multiply, g, out, out)
            return [(np.square, y, out), *rest]
        case ["where", mask, x, y, out]:
            return [(np.copyto, out, array(y)), (np.copyto, out, array(x), "same_kind", mask)]


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
    """The registered id that name means: exact but for case, else its -v4, else its newest."""
    ids = {env_id.lower(): env_id for env_id in gym.registry}
    guesses = [name.lower(), *(f"{name.lower()}-v{i}" for i in (4, *reversed(range(10))))]
    return next((ids[guess] for guess in guesses if guess in ids), name)


def make_env(args, **kwargs):
    """One environment with vectors for observations, tried out for a step. Raises Stop."""
    try:
        env = gym.make(args.env_id, disable_env_checker=True, **kwargs)
        if not isinstance(env.action_space, gym.spaces.Box) or len(env.action_space.shape) != 1:
            raise ValueError(f"actions must be real vectors (Box), not {env.action_space}")
        if len(env.observation_space.shape or ()) != 1:
            env = gym.wrappers.FlattenObservation(env)
        if args.clip_actions:
            env = gym.wrappers.ClipAction(env)  # (+)
        obs, _ = env.reset(seed=args.seed)
        next_obs, reward, *_ = env.step(np.zeros(env.action_space.shape, np.float32))
        size = env.observation_space.shape
        if "render_mode" in kwargs:
            env.render()
        for x, shape in ((obs, size), (next_obs, size), (reward, ())):
            if np.shape(x) != shape or not np.isfinite(x).all():
                raise ValueError(f"it should return something finite of shape {shape}, not {x}")
        return env
    except Exception as error:
        raise Stop(2, f"--env-id {args.env_id}: {type(error).__name__}: {error}") from error


class Envs:
    """num_envs environments stepped in turn; an episode that ends is followed by the next at once.

    Episode k of environment n is reset with a seed that depends on (seed, n, k) alone, so it can be
    played again up to where a checkpoint left it, whatever state the environment hides.
    """

    def __init__(self, args, on_episode):
        self.args, self.on_episode, N = args, on_episode, args.num_envs
        self.envs = [make_env(args) for _ in range(N)]
        self.obs_size = self.envs[0].observation_space.shape[0]
        self.action_size = self.envs[0].action_space.shape[0]
        self.obs = torch.zeros(N, self.obs_size).numpy()
        self.global_step, self.restarted, self.steps, self.cuts = 0, 0, [], []
        self.episode, self.score, self.discounted, self.actions = ([-1] * N for _ in range(4))
        for n in range(N):
            self.reset(n)

    def reset(self, n):
        self.episode[n] += 1
        self.score[n], self.discounted[n], self.actions[n] = 0.0, 0.0, []
        seed = np.random.SeedSequence((self.args.seed, n, self.episode[n])).generate_state(1)[0]
        self.obs[n], _ = self.envs[n].reset(seed=int(seed))

    def act(self, n, action):
        """Steps environment n: reward, terminated, truncated."""
        self.obs[n], reward, terminated, truncated, _ = self.envs[n].step(action)
        reward = float(reward)
        self.actions[n].append(action)
        self.score[n] += reward
        self.discounted[n] = self.args.gamma * self.discounted[n] + reward
        return reward, terminated, truncated

    def step(self, actions):
        """Steps all by actions [N, A]; what they then see is in obs [N, O]."""
        self.global_step += len(self.envs)
        for n in range(len(self.envs)):
            reward, terminated, truncated = self.act(n, actions[n].copy())
            done = terminated or truncated
            self.steps.append((reward, self.discounted[n], done))
            if done:
                if not terminated:
                    t = (len(self.steps) - 1) // len(self.envs)
                    self.cuts.append((t, n, self.obs[n].copy()))
                self.on_episode(self.global_step, self.score[n], len(self.actions[n]))
                self.reset(n)

    def outcomes(self):
        """Since the last call: rewards, discounted sums, dones [T, N]; cuts (t, n, final obs)."""
        steps, cuts = np.array(self.steps, np.float32), self.cuts
        self.steps, self.cuts = [], []
        return *torch.tensor(steps.T.copy()).view(3, -1, len(self.envs)).numpy(), cuts

    def state_dict(self):
        actions = [torch.from_numpy(np.array(actions)) for actions in self.actions]
        state = {k: getattr(self, k) for k in ("episode", "score", "global_step", "restarted")}
        return state | {"obs": torch.tensor(self.obs), "actions": actions}

    def load_state_dict(self, state):
        self.global_step, self.restarted = state["global_step"], state["restarted"]
        for n, (obs, actions) in enumerate(zip(state["obs"].numpy(), state["actions"])):
            self.episode[n] = state["episode"][n] - 1
            self.reset(n)
            ended = any(any(self.act(n, action)[1:]) for action in actions.numpy())
            if ended or not np.array_equal(self.obs[n], obs) or self.score[n] != state["score"][n]:
                show(f"environment {n} does not repeat itself: its episode starts anew")
                self.restarted += 1
                self.reset(n)


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
    """The return of one episode of agent, filmed to the GIF video, if given."""
    env = make_env(args, **({"render_mode": "rgb_array"} if video else {}))
    (mean, std), rng = agent.numpy_policy(), np.random.default_rng((seed, 1))
    obs, _ = env.reset(seed=seed)
    score, done, frames = 0.0, False, []
    while not done:
        noise = std * rng.standard_normal(std.shape, np.float32)
        obs, reward, terminated, truncated, _ = env.step(mean(np.float32([obs])) + noise)
        score, done = score + float(reward), terminated or truncated
        if video:
            frames.append(env.render())
    if video:
        import imageio

        fps = env.metadata.get("render_fps", 30)
        every = math.ceil(fps / 50)  # GIF players show at most 50 frames a second
        video.parent.mkdir(exist_ok=True)
        frames = frames[::every]
        times = np.rint(np.arange(len(frames) + 1) * every / fps * 100)  # GIFs count in 1/100 s
        imageio.mimsave(video, frames, duration=list(10 * np.diff(times)), loop=0)
    env.close()
    return score


def evaluate(args):
    """Plays ten episodes with the agent of the run directory args.eval."""
    run = Path(args.eval)
    try:
        saved = json.loads((run / "args.json").read_text())
        run_args = Args(**{name: saved[name] for name in asdict(args)} | {"cuda": args.cuda})
        weights = torch.load(run / "agent.pt", map_location="cpu", weights_only=True)
        obs_size, action_size = weights["obs_moments.mean"].shape[0], weights["log_std"].shape[0]
        agent = Agent(obs_size, action_size, run_args.init, run_args.obs_clip)
        agent.load_state_dict(weights)
        if ":" in run_args.env_id and run_args.env_id != args.env_id:
            raise ValueError(f"to run the code of its task, add --env-id {run_args.env_id}")
        env = make_env(run_args)
        if env.observation_space.shape + env.action_space.shape != (obs_size, action_size):
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
    gym.logger.min_level = gym.logger.ERROR
    warnings.filterwarnings("ignore", module="torch")
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # films need no screen
    try:
        args = parse(sys.argv[1:])
        torch.set_num_threads(args.num_threads or torch.get_num_threads())
        torch.backends.cudnn.deterministic = args.torch_deterministic
        if args.eval is not None:
            return evaluate(args)
        run = Run(args)
        if run.summary.get("status") in ("finished", "diverged"):
            show(f"{run.dir}: already {run.summary['status']}, score {run.summary['score']}")
            return 0 if run.summary["status"] == "finished" else 3
        if args.capture_video:
            make_env(args, render_mode="rgb_array").close()
        envs = Envs(args, run.episode)
        run.start()
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
