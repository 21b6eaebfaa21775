"""CEM, the cross-entropy method, for continuous actions.

Szita & Lorincz 2006, "Learning Tetris using the noisy cross-entropy method". Environments, run
directory and command line are ppo_continuous.py's; of its networks CEM needs a smaller one.

    python benchmark/rivals/cem.py --env-id Hopper --run-dir runs/cem    train; again: resume
    python benchmark/rivals/cem.py --eval runs/cem                       play ten episodes
    python benchmark/rivals/cem.py --help                                explain every flag

Each generation
    draws the weights of population policies from a diagonal Gaussian
    plays an episode with each; its score is the sum of rewards     play()
    fits the Gaussian to the best of them, its elite, and adds      refit()
    noise to its variance, decreasing to 0 over half the run        noise_std()

Settings: those of the PPO paper's first author's code of 2016 (joschu/modular_rl): a deterministic
policy of 10 and 5 tanh units, elite, noise. But the population is 40 instead of 200: 1M steps may
be no more than a thousand episodes (benchmark/rivals_settings.sh compares four); the moments of
observations change between generations alone; the noise decreases by steps, not generations;
weights and biases begin as PyTorch's, but the last weights, as there, at a tenth. Every episode of
training counts, and the last generation may be cut short.
Shapes: O observation size, A action size, D number of weights.
"""

import math
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))
if not find_spec("ppo_continuous"):
    print("cem.py: needs ppo_continuous.py beside it or two folders up", file=sys.stderr)
    sys.exit(2)
import ppo_continuous as ppo  # before numpy, whose number of threads it sets
import numpy as np
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector as flat

ppo.LIMITS.update(population=(2, 10_000), elite=(1e-6, 1), extra_std=(0, 1e12))


@dataclass
class Cem:
    """Settings of CEM"""

    population: ppo.Int = 40  # policies of a generation
    elite: float = 0.2  # the share of them that the next is fitted to
    init_std: float = 1.0  # of the weights in the first generation, around usual initial weights
    extra_std: float = 0.01  # of the noise, at first


@dataclass
class Args(Cem, ppo.Common):
    checkpoint_every: ppo.Int = 1

    def __post_init__(self):
        ppo.check_numbers(self)
        if self.num_envs != 1:
            raise ValueError(f"--num-envs {self.num_envs}: CEM plays in 1")
        if self.population > self.total_timesteps:
            total = f"--total-timesteps {self.total_timesteps}"
            raise ValueError(f"--population {self.population}: more episodes than {total}")
        if self.elite * self.population < 2:
            raise ValueError(f"--elite {self.elite}: below 2 of --population {self.population}")


class Policy(nn.Module):
    """A deterministic policy. Between generations its weights are the Gaussian's mean; var [D]."""

    def __init__(self, obs_size, action_size, args):
        super().__init__()
        self.obs_moments = ppo.RunningMeanStd(obs_size)
        self.obs_clip = 5.0 if args.norm_obs else math.inf
        layers = [nn.Linear(obs_size, 10), nn.Linear(10, 5), nn.Linear(5, action_size)]
        layers[-1].weight.data *= 0.1
        self.net = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
        self.register_buffer("var", torch.full_like(flat(self.net.parameters()), args.init_std**2))

    features = ppo.Agent.features

    @torch.no_grad()
    def act(self, obs, noise):
        """Actions [N, A] from obs [N, O]; noise is not used."""
        return self.net(self.features(obs))

    @torch.no_grad()
    def put(self, weights):
        """Replaces the weights by an array [D], in place."""
        sizes = [p.numel() for p in self.net.parameters()]
        for p, x in zip(self.net.parameters(), torch.as_tensor(weights).split(sizes)):
            p.copy_(x.view_as(p))


def noise_std(extra_std, done):
    """Standard deviation of the extra noise after a share done of the run."""
    return extra_std * math.sqrt(max(1 - 2 * done, 0))


def refit(population, scores, elite):
    """Mean and variance [D] of the best rows of population [n, D], a share elite of them."""
    best = population[np.argsort(scores)[::-1][: round(elite * len(scores))]]
    return best.mean(0), best.var(0)


def play(args, envs, act, noise, seen):
    """The return of an episode, or of its first 10,000 steps, or of those up to the run's last.

    Appends obs to seen.
    """
    episode, end = envs.episode[0], min(envs.global_step + 10_000, args.total_timesteps)
    with envs.own_settings():
        while envs.episode[0] == episode and envs.global_step < end:
            seen.append(envs.obs[0].copy())
            envs.step(act(envs.obs, noise))
        if envs.episode[0] == episode and end < args.total_timesteps:
            envs.reset(0)  # the next policy begins where this one did
    return envs.pop_steps()["rewards"].sum().item()


def train(args, envs, run):
    """Returns the policy; run takes episodes, metrics and checkpoints."""
    torch.manual_seed(args.seed)
    policy = Policy(envs.obs_size, envs.action_size, args)
    noise = ppo.zeros(1, envs.action_size)
    act = ppo.Replay(args.compile, policy.act, envs.obs, noise)
    generation = run.resume(agent=policy, envs=envs)
    while envs.global_step < args.total_timesteps:
        generation += 1
        rng = ppo.generator(args.seed, generation)
        extra = noise_std(args.extra_std, envs.global_step / args.total_timesteps)
        std = np.sqrt(policy.var.numpy() + extra**2)
        mean = flat(policy.net.parameters()).detach().numpy()
        draws = rng.standard_normal((args.population, len(mean)), np.float32)
        population, scores, seen = mean + std * draws, [], []
        for weights in population:
            if envs.global_step < args.total_timesteps:
                policy.put(weights)
                scores.append(play(args, envs, act, noise, seen))
        run.check(generation, obs=np.array(seen), scores=np.array(scores))

        last, var = envs.global_step == args.total_timesteps, policy.var.numpy()
        if not last:  # else the end of the run may have cut the generation short
            mean, var[:] = refit(population, scores, args.elite)  # var is policy.var's memory
        policy.put(mean)
        if args.norm_obs:  # after the generation, so that all its policies saw the same
            policy.obs_moments.update(torch.from_numpy(np.array(seen)))
        row = dict(mean_score=np.mean(scores), best_score=max(scores), mean_std=std.mean().item())
        run.log(generation, envs.global_step, last, row)
    return policy


if __name__ == "__main__":
    sys.exit(ppo.main(train, Args, __file__, Policy))
