"""TRPO, trust region policy optimization, for continuous actions.

Schulman et al. 2015, arXiv:1502.05477. Whatever is not the update is ppo_continuous.py's, and the
value function is fitted by vpg.py's fit_values().

    python benchmark/rivals/trpo.py --env-id Hopper --run-dir runs/trpo    train; again: resume
    python benchmark/rivals/trpo.py --eval runs/trpo                       play ten episodes
    python benchmark/rivals/trpo.py --help                                 explain every flag

Each iteration, with the PPO paper's numbers of equations,
    runs pi_old and estimates its advantages
    takes g, the gradient of the surrogate, eq. 3, at pi_old       trust_region_step()
    solves (F + damping I) x = g, F the Hessian of the mean KL     conjugate_gradients(), fisher()
    goes as far along x as max_kl, eq. 4, allows by F
    halves that step until surrogate and KL are good               line_search()
    fits the value function                                        fit_values()

The policy's settings are those of the first author's code of 2016 (joschu/modular_rl), but for the
batch, PPO's, chosen among four (benchmark/rivals_settings.sh). Line search, a fifth of the
steps for F, and Adam for the values, with twice the passes, are openai/baselines', July 2017.
(+) is in neither. Shapes: T num_steps, N num_envs, O observation, A action size, P parameters.
"""

import math
import sys
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))
missing = [name for name in ("ppo_continuous", "vpg") if not find_spec(name)]
if missing:
    print(f"trpo.py: needs {missing[0]}.py beside it or two folders up", file=sys.stderr)
    sys.exit(2)
import ppo_continuous as ppo  # before numpy, whose number of threads it sets
from ppo_continuous import Adam, Agent, Int, Replay, RunningMeanStd, estimate, rollout, zeros
from vpg import ValueFit, fit_values, quality, value_step
import torch
from torch.distributions import kl_divergence


@dataclass
class Trpo(ppo.Advantages, ValueFit):
    """Settings of TRPO; (+) is not in the code of its time"""

    num_steps: Int = 2048  # T, horizon of one rollout
    gamma: float = 0.995  # discount
    gae_lambda: float = 0.97  # lambda of the PPO paper's eq. 11
    norm_reward: bool = False  # (+) divide rewards by the running std of the discounted return
    norm_adv: Literal["batch", "none"] = "batch"  # standardise advantages over it
    max_kl: float = 0.01  # delta of eq. 4, for the mean KL[pi_old, pi]
    cg_iterations: Int = 10  # of conjugate gradients
    damping: float = 0.1  # added to the diagonal of F


@dataclass
class Args(Trpo, ppo.Common):
    __post_init__ = ppo.Args.__post_init__


def flat(tensors):
    """Their entries as one vector [P]."""
    return torch.cat([x.reshape(-1) for x in tensors])


def fisher(kl, parameters, damping):
    """v -> (F + damping I) v for vectors [P]; F is the Hessian of kl [] in the parameters."""
    gradient = flat(torch.autograd.grad(kl, parameters, create_graph=True))

    def product(v):
        return flat(torch.autograd.grad(gradient @ v, parameters, retain_graph=True)) + damping * v

    return product


def conjugate_gradients(product, g, iterations):
    """Approximately solves product(x) = g for x [P], by Hestenes & Stiefel 1952."""
    x, residual, direction = torch.zeros_like(g), g, g
    for _ in range(iterations):
        if (square := residual @ residual) < 1e-10:
            break
        image = product(direction)
        alpha = square / (direction @ image)
        x, residual = x + alpha * direction, residual - alpha * image
        direction = residual + residual @ residual / square * direction
    return x


def line_search(attempt, max_kl, tries=10):
    """Takes the first of 1, 1/2, 1/4, ... of the step that is an improvement within bounds, or 0.

    attempt(fraction) takes that part and returns gain, kl. Returns fraction, gain, kl."""
    for fraction in (0.5**i for i in range(tries)):
        gain, kl = attempt(fraction)
        if math.isfinite(gain) and gain > 0 and kl <= 1.5 * max_kl:
            return fraction, gain, kl
    return 0.0, *attempt(0.0)


METRICS = ("step_fraction", "surrogate_gain", "final_kl")


def trust_region_step(agent, args, x, actions, advantages):
    """Moves the policy, from filtered obs x [T, N, O], actions, advantages. Returns METRICS."""
    old_agent = deepcopy(agent).requires_grad_(False)
    parameters = [*agent.actor.parameters(), agent.log_std]
    theta, sizes = flat(parameters).detach(), [p.numel() for p in parameters]

    def surrogate():  # eq. 3
        pi, pi_old = agent.policy(x), old_agent.policy(x)
        return ((pi.log_prob(actions) - pi_old.log_prob(actions)).exp() * advantages).mean()

    def mean_kl(x):  # eq. 4
        return kl_divergence(old_agent.policy(x), agent.policy(x)).mean()

    @torch.no_grad()
    def attempt(fraction):
        new = theta + fraction * full_step if fraction else theta  # full_step may be NaN
        for p, new_p in zip(parameters, new.split(sizes)):
            p.copy_(new_p.view_as(p))  # in place: Replay keeps their addresses
        return (surrogate() - old_surrogate).item(), mean_kl(x).item()

    old_surrogate = surrogate()
    g = flat(torch.autograd.grad(old_surrogate, parameters))
    product = fisher(mean_kl(x[::5]), parameters, args.damping)  # every fifth step, as in baselines
    direction = conjugate_gradients(product, g, args.cg_iterations)
    full_step = direction * (2 * args.max_kl / (direction @ product(direction))).sqrt()
    return line_search(attempt, args.max_kl)


def train(args, envs, run):
    """Returns the agent; run takes episodes, metrics and checkpoints."""
    M, O, A = args.minibatch_size, envs.obs_size, envs.action_size
    torch.manual_seed(args.seed)
    agent, return_moments = Agent(O, A, args), RunningMeanStd(min_std=1e-4)
    adam = Adam(agent.critic.parameters(), eps=1e-5)  # (+) at 1e-8 mere rounding makes steps
    act = Replay(args.compile, agent.act, envs.obs, zeros(args.num_envs, A))
    step = Replay(args.compile, partial(value_step, agent.critic, adam), 0.0, zeros(M, O), zeros(M))
    start = run.resume(agent=agent, adam=adam, return_moments=return_moments, envs=envs)
    for iteration in range(start + 1, args.num_iterations + 1):
        rng = ppo.generator(args.seed, iteration)
        batch = rollout(args, envs, act, rng)
        _, values, advantages, value_targets = estimate(args, agent, return_moments, batch)
        run.check(iteration, **vars(batch), values=values, advantages=advantages)

        x = agent.features(batch.obs)
        metrics = trust_region_step(agent, args, x, batch.actions, advantages)
        row = dict(zip(METRICS, metrics), value_loss=fit_values(step, args, rng, x, value_targets))
        if args.norm_obs:  # after the update, so that pi and pi_old saw the same normalisation
            agent.obs_moments.update(batch.obs)
        row |= quality(agent, x, values, value_targets)
        run.log(iteration, iteration * args.batch_size, iteration == args.num_iterations, row)
    return agent


if __name__ == "__main__":
    sys.exit(ppo.main(train, Args, __file__))
