"""A2C, synchronous advantage actor-critic, for Atari games, as in the PPO paper's Tables 2, 6.

Mnih et al. 2016, arXiv:1602.01783, in the synchronous form of openai/baselines. Games, network,
rollout, run directory and command line are ppo_atari.py's.

    python benchmark/rivals/a2c_atari.py --env-id Pong --run-dir runs/a2c    train; again: resume
    python benchmark/rivals/a2c_atari.py --eval runs/a2c                     play ten games
    python benchmark/rivals/a2c_atari.py --help                              explain every flag

Each iteration
    runs the policy for num_steps steps in each of num_envs games                    rollout()
    estimates advantages, n-step returns less V, the PPO paper's eq. 10              estimate()
    takes one step of RMSProp up its eq. 9, with L^PG, eq. 2, for L^CLIP             update()

Settings: baselines' of 2017; the paper prints none of its own.
Shapes: T num_steps, N num_envs, B = T*N.
"""

import sys
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))
missing = [name for name in ("ppo_atari", "actor_critic") if not find_spec(name)]
if missing:
    print(f"a2c_atari.py: needs {missing[0]}.py beside it or two folders up", file=sys.stderr)
    sys.exit(2)
import ppo_atari as ppo
from actor_critic import RMSProp
from ppo_atari import Agent, Int, device_of, estimate, graphed, logits_and_value, rollout


@dataclass
class A2c(ppo.Advantages):
    """Settings of A2C; (+) is neither in the papers nor in baselines"""

    num_steps: Int = 5  # T, horizon of one rollout
    gae_lambda: float = 1.0  # (+) lambda of the PPO paper's eq. 11; 1 is A2C
    norm_adv: Literal["batch", "none"] = "none"  # (+) standardise advantages over the batch
    learning_rate: float = 7e-4  # RMSProp's step size
    anneal_lr: bool = True  # decrease it linearly to 0
    vf_coef: float = 0.25  # of (V - target)^2; in baselines 0.5 of half of it
    ent_coef: float = 0.01  # of the entropy
    max_grad_norm: float = 0.5  # clip the norm of the gradient to it


@dataclass
class Args(A2c, ppo.Common):
    num_envs: Int = 16
    checkpoint_every: Int = 400

    def __post_init__(self):
        ppo.check_numbers(self)
        size, total = self.batch_size, self.total_timesteps
        if size < 2:
            raise ValueError(f"--num-steps {self.num_steps}: a batch must have at least 2 steps")
        if total < size:
            raise ValueError(f"--total-timesteps {total}: below a batch, {size}")


METRICS = ("policy_objective", "value_loss", "entropy")


def update(agent, rmsprop, args, learning_rate, obs, actions, advantages, value_targets):
    """A step from obs [B, 84, 84, 4], actions, advantages, value_targets [B]. Returns METRICS."""
    pi, value = agent(obs)
    policy_objective = (pi.log_prob(actions) * advantages).mean()  # eq. 2
    value_loss, entropy = (value - value_targets).square().mean(), pi.entropy().mean()
    agent.zero_grad()
    (policy_objective - args.vf_coef * value_loss + args.ent_coef * entropy).backward()  # eq. 9
    nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm, foreach=False)
    rmsprop.step(learning_rate)
    return torch.stack([policy_objective, value_loss, entropy]).detach()


def train(args, envs, run):
    """Returns the agent; run takes episodes, metrics and checkpoints."""
    device = device_of(args)
    torch.manual_seed(args.seed)
    agent = Agent(envs.num_actions, args).to(device)
    rmsprop = RMSProp(agent.parameters())
    act = graphed(partial(logits_and_value, agent), agent, args)
    step = graphed(partial(update, agent, rmsprop, args), nn.ModuleList([agent, rmsprop]), args)
    start = run.resume(agent=agent, rmsprop=rmsprop, envs=envs)
    for games in envs.halves:  # a GPU's graph of act() is captured before two threads call it
        act(torch.from_numpy(games.obs()).to(device))
    for iteration in range(start + 1, args.num_iterations + 1):
        batch = rollout(args, envs, act, ppo.generator(args.seed, iteration))
        _, advantages, value_targets = estimate(args, agent, batch)
        run.check(iteration, logits=batch.logits, values=batch.values, advantages=advantages)
        alpha = 1 - (iteration - 1) / args.num_iterations
        learning_rate = args.learning_rate * (alpha if args.anneal_lr else 1)
        columns = batch.obs, batch.actions, advantages, value_targets
        columns = [x.flatten(0, 1).to(device) for x in columns]  # [T*N, ...]
        metrics = step(torch.tensor(learning_rate, device=device), *columns)
        row = dict(zip(METRICS, metrics.tolist()), learning_rate=learning_rate)
        run.log(iteration, iteration * args.batch_size, iteration == args.num_iterations, row)
    return agent


if __name__ == "__main__":
    sys.exit(ppo.main(train, Args, __file__))
