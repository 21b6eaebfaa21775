"""ACER, actor-critic with experience replay, for Atari, as in the PPO paper's Tables 2, 6.

Wang et al. 2016, arXiv:1611.01224, algorithm 2; Retrace: Munos et al. 2016, arXiv:1606.02647.
Games, rollout, run directory and command line are ppo_atari.py's; the network has its layers, but
a Q value for each action in place of V, which is sum_a pi(a) Q(a).

    python benchmark/rivals/acer.py --env-id Pong --run-dir runs/acer    train; again: resume
    python benchmark/rivals/acer.py --eval runs/acer                     play ten games
    python benchmark/rivals/acer.py --help                               explain every flag

Each iteration
    runs the policy for num_steps steps in each of num_envs games        rollout()
    stores these segments with mu, the policy that acted                 Segments.store()
    takes a step of RMSProp on them                                      update()
    and Poisson(replay_ratio) steps on stored ones                       Segments.sample()
A step follows from
    Q^ret, returns off the policy, eq. 5                                 retrace()
    truncated importance weights and their bias correction, eq. 9        policy_objective()
    the trust region around an average policy, eq. 12                    project()

Settings: baselines' of November 2017; the paper prints none. As there, 1e-6 is added to
denominators and in logarithms (but not in the projection), and a game that a time limit cuts counts
as ended.
Shapes: T num_steps, N num_envs, A number of actions; mu, pi, q [T, N, A].
Until it has finished, a run's replay takes 0.1 to 0.6 GB of its directory (Yars' Revenge: 1.4); a
run that diverges keeps it.
"""

import sys
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))
missing = [name for name in ("ppo_atari", "actor_critic", "segments") if not find_spec(name)]
if missing:
    print(f"acer.py: needs {missing[0]}.py beside it or two folders up", file=sys.stderr)
    sys.exit(2)
import ppo_atari as ppo
from actor_critic import RMSProp, project
from ppo_atari import Agent, Int, device_of, graphed, initialized, logits_and_value, rollout
from segments import Segments

EPS = 1e-6
ppo.LIMITS.update(
    replay_start=(0, 1e12), replay_ratio=(0, 1e6), truncation=(0, 1e12), q_coef=(0, 1e12),
    delta=(0, 1e12), average_decay=(0, 1),
)  # fmt: skip


@dataclass
class Acer:
    """Settings of ACER"""

    num_steps: Int = 20  # T, steps of a segment
    gamma: float = 0.99  # discount
    replay_ratio: float = 4.0  # replayed batches per new one: the mean of a Poisson distribution
    buffer_size: Int = 50_000  # steps of each game that are stored
    replay_start: Int = 10_000  # steps of each game before any is replayed
    truncation: float = 10.0  # c, of the importance weights
    delta: float = 1.0  # of the trust region around the average policy; 1e12 is none
    average_decay: float = 0.99  # alpha, of the average policy
    learning_rate: float = 7e-4  # RMSProp's step size
    q_coef: float = 0.5  # of half the square error of Q
    ent_coef: float = 0.01  # of the entropy
    max_grad_norm: float = 10.0  # clip the norm of the gradient to it

    batch_size, num_iterations = ppo.Advantages.batch_size, ppo.Advantages.num_iterations


@dataclass
class Args(Acer, ppo.Common):
    num_envs: Int = 16
    checkpoint_every: Int = 100

    def __post_init__(self):
        ppo.check_numbers(self)
        N, T, total = self.num_envs, self.num_steps, self.total_timesteps
        if total < N * T:
            raise ValueError(f"--total-timesteps {total}: below a batch, {N} * {T}")
        if self.buffer_size < T:
            raise ValueError(f"--buffer-size {self.buffer_size}: below --num-steps {T}")


class QAgent(Agent):
    """Policy and Q values on one convolutional network."""

    def __init__(self, num_actions, args):
        super().__init__(num_actions, args)
        self.critic = initialized(nn.Linear(self.hidden.out_features, num_actions), args.init, 1.0)

    def pi_and_q(self, obs):
        """Probabilities and Q values of actions, both [B, A], from obs [B, 84, 84, 4]."""
        pi, q = super().forward(obs)  # whose squeeze(-1) does nothing to Q
        return pi.probs, q

    def forward(self, obs):
        """pi, a distribution over actions [B], and V [B], its mean of Q."""
        pi, q = super().forward(obs)
        return pi, (pi.probs * q).sum(-1)


def retrace(rewards, dones, q_taken, values, last_value, ratio, gamma):
    """Q^ret [T, N], eq. 5, its weights truncated at 1, as in baselines and in Retrace, not at c.

    rewards, dones (after the action), Q and pi / mu of the actions taken, values V(s_t) are [T, N];
    last_value V(s_T) [N].
    """
    q_ret, following = torch.empty_like(rewards), last_value
    for t in reversed(range(len(rewards))):
        q_ret[t] = rewards[t] + gamma * (1 - dones[t]) * following
        following = ratio[t].clamp(max=1) * (q_ret[t] - q_taken[t]) + values[t]
    return q_ret


def policy_objective(pi, actions, mu, q, q_ret, c):
    """[T, N], to be maximised in pi alone: the weights have no gradient. Eq. 9.

    The second term, over all actions, corrects the bias of truncating the weights at c.
    """
    taken, log_pi, old_pi = actions[..., None], (pi + EPS).log(), pi.detach()
    values, ratio = (old_pi * q).sum(-1, keepdim=True), old_pi / (mu + EPS)
    truncated = ratio.gather(-1, taken).clamp(max=c) * (q_ret[..., None] - values)
    correction = (1 - c / (ratio + EPS)).clamp(min=0) * old_pi * (q - values)
    return (log_pi.gather(-1, taken) * truncated).squeeze(-1) + (log_pi * correction).sum(-1)


METRICS = ("policy_objective", "q_loss", "entropy", "kl", "projected")


def update(agent, average, rmsprop, args, obs, actions, rewards, dones, mu):
    """A step from obs [T + 1, N, 84, 84, 4], actions, rewards, dones [T, N] and mu.

    Returns METRICS.
    """
    pi, q = (x.unflatten(0, obs.shape[:2]) for x in agent.pi_and_q(obs.flatten(0, 1)))
    values, pi, q = (pi * q).sum(-1).detach(), pi[:-1], q[:-1]
    q_taken, ratio = (
        x.gather(-1, actions[..., None]).squeeze(-1) for x in (q, pi.detach() / (mu + EPS))
    )
    with torch.no_grad():
        q_ret = retrace(rewards, dones, q_taken, values[:-1], values[-1], ratio, args.gamma)
        average_pi = average.pi_and_q(obs[:-1].flatten(0, 1))[0].view_as(pi)
    free_pi = pi.detach().requires_grad_()  # a leaf: g and k of eq. 12 are in pi, not in logits
    gain = policy_objective(free_pi, actions, mu, q.detach(), q_ret, args.truncation)
    entropy = -(free_pi * (free_pi + EPS).log()).sum(-1)
    kl = (average_pi * ((average_pi + EPS).log() - (free_pi + EPS).log())).sum(-1)
    (g,) = torch.autograd.grad((gain + args.ent_coef * entropy).sum(), free_pi)
    (k,) = torch.autograd.grad(kl.sum(), free_pi)
    z = project(g, k, args.delta)
    q_loss = (q_ret - q_taken).square().mean() / 2
    agent.zero_grad()
    ((z * pi).sum(-1).mean() - args.q_coef * q_loss).backward()
    nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm, foreach=False)
    rmsprop.step(args.learning_rate)
    with torch.no_grad():
        for a, p in zip(average.parameters(), agent.parameters()):
            a.lerp_(p, 1 - args.average_decay)
    projected = (z != g).any(-1).float()
    return torch.stack([x.mean() for x in (gain, q_loss, entropy, kl, projected)]).detach()


def train(args, envs, run):
    """Returns the agent; run takes episodes, metrics and checkpoints."""
    device, replay = device_of(args), Segments(args, envs.num_actions, run)
    replay.check_disk()
    torch.manual_seed(args.seed)
    agent = QAgent(envs.num_actions, args).to(device)
    average = deepcopy(agent).requires_grad_(False)
    rmsprop = RMSProp(agent.parameters())
    learner = nn.ModuleList([agent, average, rmsprop])
    act = graphed(partial(logits_and_value, agent), agent, args)
    step = graphed(partial(update, *learner, args), learner, args)
    start = run.resume(agent=agent, average=average, rmsprop=rmsprop, replay=replay, envs=envs)
    for games in envs.halves:  # a GPU's graph of act() is captured before two threads call it
        act(torch.from_numpy(games.obs()).to(device))
    for iteration in range(start + 1, args.num_iterations + 1):
        rng = ppo.generator(args.seed, iteration)
        batch = rollout(args, envs, act, rng)
        run.check(iteration, logits=batch.logits, values=batch.values)
        obs = torch.cat([batch.obs, batch.next_obs[None].to(device)])
        columns = dict(actions=batch.actions, rewards=batch.rewards, dones=batch.dones)
        columns["mu"] = batch.logits.exp()
        replay.store(iteration, obs, **columns)
        metrics = [step(obs, *(x.to(device) for x in columns.values()))]
        if iteration * args.num_steps >= args.replay_start:
            for _ in range(rng.poisson(args.replay_ratio)):
                metrics.append(step(*replay.sample(rng)))
        row = dict(zip(METRICS, torch.stack(metrics).mean(0).tolist()), updates=len(metrics))
        run.log(iteration, iteration * args.batch_size, iteration == args.num_iterations, row)
    replay.remove()
    return agent


if __name__ == "__main__":
    sys.exit(ppo.main(train, Args, __file__, QAgent))
