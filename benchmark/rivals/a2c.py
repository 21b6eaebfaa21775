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
With --trust-region the gradient in each sample's mean and log std is changed, as little as leaves
it leading away from an average policy by no more than delta, ACER's eq. 12            project()

Settings: baselines' of 2017, but no entropy bonus, under which a Gaussian may widen without bound;
the trust region's are those of ACER there. (+) marks what is in none of these.
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
if not find_spec("ppo_continuous"):
    print("a2c.py: needs ppo_continuous.py beside it or two folders up", file=sys.stderr)
    sys.exit(2)
import ppo_continuous as ppo  # before numpy, whose number of threads it sets
from ppo_continuous import Agent, Int, Replay, RunningMeanStd, estimate, rollout, zeros
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

ppo.LIMITS.update(average_decay=(0, 1), delta=(0, 1e12))


@dataclass
class Common(ppo.Common):
    """Of every algorithm; (+) is not in the papers"""

    num_envs: Int = 16  # N, actors
    checkpoint_every: Int = 1000  # iterations


@dataclass
class A2c(ppo.Advantages):
    """Settings of A2C; (+) is not in the papers"""

    num_steps: Int = 5  # T, horizon of one rollout
    gae_lambda: float = 1.0  # (+) lambda of the PPO paper's eq. 11; 1 is A2C
    norm_adv: Literal["batch", "none"] = "none"  # (+) standardise advantages over the batch
    learning_rate: float = 7e-4  # RMSProp's step size
    anneal_lr: bool = True  # decrease it linearly to 0
    vf_coef: float = 0.5  # of the value function's square error
    ent_coef: float = 0.0  # of the entropy
    max_grad_norm: float = 0.5  # clip the norm of the gradient to it
    trust_region: bool = False  # ACER's rule
    delta: float = 1.0  # of the trust region
    average_decay: float = 0.99  # of the average policy, alpha of ACER


@dataclass
class Args(A2c, Common):
    def __post_init__(self):
        ppo.check_numbers(self)
        size, total = self.batch_size, self.total_timesteps
        if not 2 <= size <= total:
            raise ValueError(f"--num-steps {self.num_steps}: a batch, {size}, must be 2 to {total}")
        if not self.trust_region and (self.delta, self.average_decay) != (1.0, 0.99):
            raise ValueError("--delta and --average-decay need --trust-region")


class RMSProp(nn.Module):
    """TensorFlow's, uphill: the squares start at 1, and eps is under the root."""

    def __init__(self, parameters, decay=0.99, eps=1e-5):
        super().__init__()
        self.decay, self.eps, self.ascending = decay, eps, list(parameters)
        self.squares = nn.ParameterList(map(torch.ones_like, self.ascending)).requires_grad_(False)

    @torch.no_grad()
    def step(self, learning_rate):
        """Moves the parameters along their gradients. learning_rate is a tensor []."""
        for p, square in zip(self.ascending, self.squares):
            square.mul_(self.decay).add_((1 - self.decay) * p.grad.square())
            p.add_(learning_rate * p.grad / (square + self.eps).sqrt())


def project(g, k, delta):
    """The z closest to g with k . z <= delta, ACER's eq. 12, for each row of g, k [B, 2A]."""
    excess = (k * g).sum(-1, keepdim=True) - delta
    return g - (excess / k.square().sum(-1, keepdim=True).clamp(min=1e-12)).clamp(min=0) * k


METRICS = ("policy_objective", "value_loss", "entropy", "projected")


def update(agent, average, rmsprop, args, learning_rate, obs, actions, advantages, targets):
    """A step from obs [B, O], actions [B, A], advantages and targets [B]. Returns METRICS."""
    pi, value = agent(obs)
    if args.trust_region:
        phi = torch.cat([pi.mean, pi.stddev.log()], -1)  # [B, 2A]
        free_phi = phi.detach().requires_grad_()
        mean, log_std = free_phi.chunk(2, -1)
        pi = Independent(Normal(mean, log_std.exp()), 1)
    policy_objective = pi.log_prob(actions) * advantages + args.ent_coef * pi.entropy()
    objective, projected = policy_objective.mean(), torch.zeros(())
    if args.trust_region:
        kl = kl_divergence(average["agent"].policy(agent.features(obs)), pi)
        totals = policy_objective.sum(), kl.sum()  # gradients of sums: a row a sample
        g, k = (torch.autograd.grad(x, free_phi, retain_graph=True)[0] for x in totals)
        z = project(g, k, args.delta)
        objective, projected = (z * phi).sum(-1).mean(), (z != g).any(-1).float().mean()
    value_loss = (value - targets).square().mean()
    agent.zero_grad()
    (objective - args.vf_coef * value_loss).backward()
    nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm, foreach=False)
    rmsprop.step(learning_rate)
    if args.trust_region:
        for a, p in zip(average.parameters(), agent.parameters()):
            a.mul_(args.average_decay).add_((1 - args.average_decay) * p.detach())
    return torch.stack([policy_objective.mean(), value_loss, pi.entropy().mean(), projected])


def train(args, envs, run):
    """Returns the agent; run takes episodes, metrics and checkpoints."""
    B, O, A = args.batch_size, envs.obs_size, envs.action_size
    torch.manual_seed(args.seed)
    agent, return_moments = Agent(O, A, args), RunningMeanStd(min_std=1e-4)
    average = nn.ModuleDict(dict(agent=deepcopy(agent)))  # a dict, so that names differ for Replay
    average.requires_grad_(False)
    rmsprop = RMSProp(agent.parameters())
    act = Replay(args.compile, agent.act, envs.obs, zeros(args.num_envs, A))
    step = partial(update, agent, average, rmsprop, args)
    step = Replay(args.compile, step, 0.0, zeros(B, O), zeros(B, A), zeros(B), zeros(B))
    state = dict(agent=agent, average=average, rmsprop=rmsprop, return_moments=return_moments)
    start = run.resume(**state, envs=envs)
    for iteration in range(start + 1, args.num_iterations + 1):
        batch = rollout(args, envs, act, ppo.generator(args.seed, iteration))
        _, _, values, advantages, targets = estimate(args, agent, return_moments, batch)
        run.check(iteration, **vars(batch), values=values, advantages=advantages)
        alpha = 1 - (iteration - 1) / args.num_iterations
        learning_rate = args.learning_rate * (alpha if args.anneal_lr else 1)
        columns = batch.obs, batch.actions, advantages, targets
        metrics = step(learning_rate, *(x.flatten(0, 1).numpy() for x in columns))
        if args.norm_obs:
            agent.obs_moments.update(batch.obs)
        row = dict(zip(METRICS, metrics.tolist()), learning_rate=learning_rate)
        run.log(iteration, iteration * B, iteration == args.num_iterations, row)
    return agent


if __name__ == "__main__":
    sys.exit(ppo.main(train, Args, __file__))
