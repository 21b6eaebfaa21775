"""A2C, synchronous advantage actor-critic, for continuous actions; --trust-region adds ACER's rule.

Mnih et al. 2016, arXiv:1602.01783, in the synchronous form of openai/baselines; Wang et al. 2016,
arXiv:1611.01224, section 3.3. Whatever is not the update is ppo_continuous.py's.

    python benchmark/rivals/a2c.py --env-id Hopper --run-dir runs/a2c    train; again: resume
    python benchmark/rivals/a2c.py --eval runs/a2c                       play ten episodes
    python benchmark/rivals/a2c.py --help                                explain every flag

Each iteration
    runs the policy for num_steps steps in each of num_envs environments
    estimates advantages, n-step returns less V, the PPO paper's eq. 10
    takes one step of RMSProp up its eq. 9, with L^PG, eq. 2, for L^CLIP                update()
With --trust-region each sample's gradient in mean and log std is projected, so that to first order
it raises the KL from an average policy by at most delta, ACER's eq. 12                project()

Settings: baselines' of 2017, for Atari, but a larger step size, 2e-3 instead of 7e-4, by a search
(benchmark/rivals_settings.sh), and no entropy bonus, which may widen a Gaussian without bound.
The trust region's are those of ACER there. (+) marks what is in none of these.
Shapes: T num_steps, N num_envs, B = T*N, O observation size, A action size.
"""

import sys
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))
missing = [name for name in ("ppo_continuous", "actor_critic") if not find_spec(name)]
if missing:
    print(f"a2c.py: needs {missing[0]}.py beside it or two folders up", file=sys.stderr)
    sys.exit(2)
import ppo_continuous as ppo  # before numpy, whose number of threads it sets
from actor_critic import RMSProp, project
from ppo_continuous import Agent, Int, Replay, RunningMeanStd, estimate, rollout, zeros
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

ppo.LIMITS.update(average_decay=(0, 1), delta=(0, 1e12))


@dataclass
class A2c(ppo.Advantages):
    """Settings of A2C; (+) is neither in the papers nor in baselines"""

    num_steps: Int = 5  # T, horizon of one rollout
    gae_lambda: float = 1.0  # (+) lambda of the PPO paper's eq. 11; 1 is A2C
    norm_adv: Literal["batch", "none"] = "none"  # (+) standardise advantages over the batch
    learning_rate: float = 2e-3  # RMSProp's step size
    anneal_lr: bool = True  # decrease it linearly to 0
    vf_coef: float = 0.25  # of (V - target)^2; in baselines 0.5 of half of it
    ent_coef: float = 0.0  # of the entropy
    max_grad_norm: float = 0.5  # clip the norm of the gradient to it
    trust_region: bool = False  # ACER's rule
    delta: float = 1.0  # of the trust region
    average_decay: float = 0.99  # of the average policy, alpha of ACER


@dataclass
class Args(A2c, ppo.Common):
    num_envs: Int = 16
    checkpoint_every: Int = 1000

    def __post_init__(self):
        ppo.check_numbers(self)
        size, total = self.batch_size, self.total_timesteps
        if size < 2:
            raise ValueError(f"--num-steps {self.num_steps}: a batch must have at least 2 steps")
        if total < size:
            raise ValueError(f"--total-timesteps {total}: below a batch, {size}")
        if not self.trust_region and (self.delta, self.average_decay) != (1.0, 0.99):
            raise ValueError("--delta and --average-decay need --trust-region")


METRICS = ("policy_objective", "value_loss", "entropy", "projected")


def update(agent, average, rmsprop, args, learning_rate, obs, actions, advantages, value_targets):
    """A step from obs [B, O], actions [B, A], advantages and value_targets [B]. Returns METRICS."""
    pi, value = agent(obs)
    if args.trust_region:
        phi = torch.cat([pi.mean, pi.stddev.log()], -1)  # [B, 2A]
        free_phi = phi.detach().requires_grad_()  # a leaf, so that g and k are gradients in phi
        mean, log_std = free_phi.chunk(2, -1)
        pi = Independent(Normal(mean, log_std.exp()), 1)
    policy_objective, entropy = pi.log_prob(actions) * advantages, pi.entropy()
    gain = policy_objective + args.ent_coef * entropy
    objective, projected = gain.mean(), torch.zeros(())
    if args.trust_region:
        kl = kl_divergence(average.policy(agent.features(obs)), pi)
        totals = gain.sum(), kl.sum()  # a sum's gradient has a row for each sample
        g, k = (torch.autograd.grad(x, free_phi, retain_graph=True)[0] for x in totals)
        z = project(g, k, args.delta)
        objective, projected = (z * phi).sum(-1).mean(), (z != g).any(-1).float().mean()
    value_loss = (value - value_targets).square().mean()
    agent.zero_grad()
    (objective - args.vf_coef * value_loss).backward()
    nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm, foreach=False)
    rmsprop.step(learning_rate)
    if args.trust_region:
        for a, p in zip(average.parameters(), agent.parameters()):
            a.mul_(args.average_decay).add_((1 - args.average_decay) * p.detach())
    return torch.stack([policy_objective.mean(), value_loss, entropy.mean(), projected])


def train(args, envs, run):
    """Returns the agent; run takes episodes, metrics and checkpoints."""
    B, O, A = args.batch_size, envs.obs_size, envs.action_size
    torch.manual_seed(args.seed)
    agent, return_moments = Agent(O, A, args), RunningMeanStd(min_std=1e-4)
    average = deepcopy(agent).requires_grad_(False)  # unused without --trust-region
    rmsprop = RMSProp(agent.parameters())
    act = Replay(args.compile, agent.act, envs.obs, zeros(args.num_envs, A))
    step = partial(update, agent, average, rmsprop, args)
    step = Replay(args.compile, step, 0.0, zeros(B, O), zeros(B, A), zeros(B), zeros(B))
    state = dict(agent=agent, average=average, rmsprop=rmsprop, return_moments=return_moments)
    start = run.resume(**state, envs=envs)
    for iteration in range(start + 1, args.num_iterations + 1):
        batch = rollout(args, envs, act, ppo.generator(args.seed, iteration))
        _, values, advantages, value_targets = estimate(args, agent, return_moments, batch)
        run.check(iteration, **vars(batch), values=values, advantages=advantages)
        alpha = 1 - (iteration - 1) / args.num_iterations
        learning_rate = args.learning_rate * (alpha if args.anneal_lr else 1)
        columns = batch.obs, batch.actions, advantages, value_targets
        metrics = step(learning_rate, *(x.flatten(0, 1).numpy() for x in columns))
        if args.norm_obs:
            agent.obs_moments.update(batch.obs)
        row = dict(zip(METRICS, metrics.tolist()), learning_rate=learning_rate)
        run.log(iteration, iteration * B, iteration == args.num_iterations, row)
    return agent


if __name__ == "__main__":
    sys.exit(ppo.main(train, Args, __file__))
