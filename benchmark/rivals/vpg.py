"""Vanilla policy gradient whose step size follows the KL, for continuous actions.

The "vanilla PG, adaptive stepsize" of the PPO paper, footnote 3. Whatever is not the update is
ppo_continuous.py's.

    python benchmark/rivals/vpg.py --env-id Hopper --run-dir runs/vpg    train; again: resume
    python benchmark/rivals/vpg.py --eval runs/vpg                       play ten episodes
    python benchmark/rivals/vpg.py --help                                explain every flag

Each iteration, with the PPO paper's numbers of equations,
    runs pi_old and estimates its advantages
    takes one step of Adam up L^PG, eq. 2, on the whole batch      policy_step()
    changes the step size by the KL from pi_old to the new pi      adapt()
    fits the value function                                        fit_values()

The rule and the passes are those of the code which the footnote names (hw4 of
berkeleydeeprlcourse/homework, March 2017). Batch, lambda and standardised advantages are those of
the nearest MuJoCo code of its time (ACKTR in openai/baselines, August 2017), but for whole
episodes. (+) marks what is in neither: bounds of the step size, and a value function that is fitted
by minibatches and to lambda returns instead of whole ones.
Shapes: T num_steps, N num_envs, M minibatch_size, O observation size, A action size; x: obs,
filtered.
"""

import sys
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))
if not find_spec("ppo_continuous"):
    print("vpg.py: needs ppo_continuous.py beside it or two folders up", file=sys.stderr)
    sys.exit(2)
import ppo_continuous as ppo  # before numpy, whose number of threads it sets
from ppo_continuous import Adam, Agent, Int, Replay, RunningMeanStd, estimate, rollout, zeros
import numpy as np
import torch
from torch.distributions import kl_divergence


@dataclass
class ValueFit:
    """Fit of the value function"""

    value_learning_rate: float = 1e-3  # Adam's step size
    value_epochs: Int = 10  # passes over the rollout
    minibatch_size: Int = 64  # M, (+) in vpg.py


@dataclass
class Vpg(ppo.Advantages):
    """Policy and advantages; (+) is not in the code of its time"""

    num_steps: Int = 2560  # T, horizon of one rollout
    gae_lambda: float = 0.97  # lambda of the PPO paper's eq. 11
    norm_adv: Literal["batch", "none"] = "batch"  # standardise advantages over the batch
    learning_rate: float = 1e-3  # Adam's first step size
    desired_kl: float = 0.01  # (+) for the mean KL[pi_old, pi]; there 0.002; chosen among three


@dataclass
class Args(Vpg, ValueFit, ppo.Common):
    __post_init__ = ppo.Args.__post_init__


def adapt(step_size, kl, desired_kl):
    """The next step size, from the KL that this one caused."""
    if kl > 2 * desired_kl:
        step_size /= 1.5
    if kl < desired_kl / 2:
        step_size *= 1.5
    return min(max(step_size, 1e-8), 1.0)  # (+)


def policy_step(agent, adam, x, actions, advantages):
    """A step up eq. 2 from x [T, N, O], actions [T, N, A], advantages [T, N]. Returns L^PG."""
    objective = (agent.policy(x).log_prob(actions) * advantages).mean()
    agent.zero_grad()
    objective.backward()
    adam.step(adam.step_size)
    return objective.item()


def value_step(critic, adam, learning_rate, x, value_targets):
    """A step down the mean square error of x [M, O] and value_targets [M]. Returns that error."""
    loss = (critic(x).squeeze(-1) - value_targets).square().mean()
    critic.zero_grad()
    (-loss).backward()
    adam.step(learning_rate)
    return loss


def fit_values(step, args, rng, x, value_targets):
    """The mean error of step() on minibatches of x [T, N, O] and value_targets [T, N]."""
    x, value_targets = x.flatten(0, 1).numpy(), value_targets.flatten().numpy()
    epochs = [rng.permutation(len(x)) for _ in range(args.value_epochs)]
    rows = np.reshape(epochs, (-1, args.minibatch_size))
    errors = [step(args.value_learning_rate, x[m], value_targets[m]).item() for m in rows]
    return np.mean(errors).item()


def quality(agent, x, values, value_targets):
    """Entropy of the policy now, and explained variance of values, value_targets [T, N]."""
    unexplained = (value_targets - values).var() / value_targets.var().clamp(min=1e-12)
    entropy = agent.policy(x[0, 0]).entropy().item()
    return dict(entropy=entropy, explained_variance=1 - unexplained.item())


def train(args, envs, run):
    """Returns the agent; run takes episodes, metrics and checkpoints."""
    M, O, A = args.minibatch_size, envs.obs_size, envs.action_size
    torch.manual_seed(args.seed)
    agent, return_moments = Agent(O, A, args), RunningMeanStd(min_std=1e-4)
    adam = Adam([*agent.actor.parameters(), agent.log_std], eps=1e-8)
    adam.register_buffer("step_size", torch.tensor(args.learning_rate))
    value_adam = Adam(agent.critic.parameters(), eps=1e-5)  # (+) at 1e-8 mere rounding makes steps
    act = Replay(args.compile, agent.act, envs.obs, zeros(args.num_envs, A))
    step = partial(value_step, agent.critic, value_adam)
    step = Replay(args.compile, step, 0.0, zeros(M, O), zeros(M))
    state = dict(agent=agent, adam=adam, value_adam=value_adam, return_moments=return_moments)
    start = run.resume(**state, envs=envs)
    for iteration in range(start + 1, args.num_iterations + 1):
        rng = ppo.generator(args.seed, iteration)
        batch = rollout(args, envs, act, rng)
        old_pi, values, advantages, value_targets = estimate(args, agent, return_moments, batch)
        run.check(iteration, **vars(batch), values=values, advantages=advantages)

        x = agent.features(batch.obs)
        row = dict(learning_rate=adam.step_size.item())
        row["policy_objective"] = policy_step(agent, adam, x, batch.actions, advantages)
        with torch.no_grad():
            row["final_kl"] = kl_divergence(old_pi, agent.policy(x)).mean().item()
        adam.step_size.fill_(adapt(row["learning_rate"], row["final_kl"], args.desired_kl))
        row["value_loss"] = fit_values(step, args, rng, x, value_targets)
        if args.norm_obs:  # after the update, so that pi and pi_old saw the same normalisation
            agent.obs_moments.update(batch.obs)
        row |= quality(agent, x, values, value_targets)
        run.log(iteration, iteration * args.batch_size, iteration == args.num_iterations, row)
    return agent


if __name__ == "__main__":
    sys.exit(ppo.main(train, Args, __file__))
