"""What benchmark/speed.py times beside our scripts: other libraries' algorithms, with our settings.

    python benchmark/peers.py ppo|ppo-atari|a2c|trpo --env-id ID --total-timesteps N [flags]
    python benchmark/peers.py random|random-atari ...     the environments alone, random actions
    python benchmark/peers.py probe --needs torch gymnasium --env-id ID

A learner is Stable-Baselines3's, TRPO sb3-contrib's, and prints "SPS: STEP" whenever STEP steps
have been learned from. `random` prints the microseconds of a step, `probe` what is missing, whether
there is a GPU, and the versions, each as one line of JSON.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import time

PACKAGES = """torch numpy gymnasium mujoco ale-py stable-baselines3 sb3-contrib tensordict
    envpool""".split()


def vector_env(args):
    """What a learner gets: observations and rewards normalised, or four screens of Atari."""
    import gymnasium as gym
    from stable_baselines3.common import env_util, vec_env

    if args.what == "ppo-atari":
        gym.register_envs(__import__("ale_py"))
        games = env_util.make_atari_env(args.env_id, args.num_envs, args.seed)
        return vec_env.VecFrameStack(games, 4)
    make = [lambda: gym.make(args.env_id)] * args.num_envs
    return vec_env.VecNormalize(vec_env.DummyVecEnv(make), gamma=0.99)


def learner(args):
    """(class, positional arguments, settings)."""
    from stable_baselines3 import A2C, PPO

    if args.what == "ppo":  # Table 3
        return PPO, ("MlpPolicy", vector_env(args), 3e-4), dict(
            n_steps=2048, batch_size=64, n_epochs=10, gae_lambda=0.95, clip_range=0.2,
            ent_coef=0.0, vf_coef=0.5, max_grad_norm=0.5,
        )  # fmt: skip
    if args.what == "ppo-atari":  # Table 5
        return PPO, ("CnnPolicy", vector_env(args), 2.5e-4), dict(
            n_steps=128, batch_size=32 * args.num_envs, n_epochs=3, gae_lambda=0.95, clip_range=0.1,
            ent_coef=0.01, vf_coef=1.0, max_grad_norm=0.5,
        )  # fmt: skip
    if args.what == "a2c":  # 16 environments, 5 steps
        return A2C, ("MlpPolicy", vector_env(args), lambda left: 2e-3 * left), dict(
            n_steps=5, gae_lambda=1.0, ent_coef=0.0, vf_coef=0.25, max_grad_norm=0.5,
            use_rms_prop=True, rms_prop_eps=1e-5,
        )  # fmt: skip
    from sb3_contrib import TRPO

    return TRPO, ("MlpPolicy", vector_env(args), 1e-3), dict(
        n_steps=2048, batch_size=64, gae_lambda=0.95, target_kl=0.01, cg_max_steps=10,
        cg_damping=0.1, n_critic_updates=10, sub_sampling_factor=5,
    )  # fmt: skip


def learn(args):
    import torch

    torch.set_num_threads(args.num_threads)
    algorithm, positional, settings = learner(args)

    class Loud(algorithm):
        def train(self):
            super().train()
            print(f"SPS: {self.num_timesteps}", flush=True)

    device = "cuda" if args.cuda else "cpu"
    model = Loud(*positional, gamma=0.99, seed=args.seed, device=device, **settings)
    model.learn(args.total_timesteps)
    model.env.close()


def play_at_random(args):
    """The seconds of total_timesteps steps in one environment, episodes following each other."""
    import gymnasium as gym

    env = gym.make(args.env_id, disable_env_checker=True)  # as our scripts do
    env.action_space.seed(args.seed)
    env.reset(seed=args.seed)
    actions = [env.action_space.sample() for _ in range(1000)]
    start = time.perf_counter()
    for step in range(args.total_timesteps):
        _, _, terminated, truncated, _ = env.step(actions[step % 1000])
        if terminated or truncated:
            env.reset()
    return time.perf_counter() - start


def play_atari_at_random(args):
    """The same with num_envs games at once, by emulators of ale-py."""
    import ale_py
    import gymnasium as gym
    import numpy as np
    from ale_py.vector_env import AtariVectorEnv

    gym.register_envs(ale_py)
    game = gym.spec(f"ALE/{args.env_id}-v5").kwargs["game"]
    games = AtariVectorEnv(
        game, args.num_envs, num_threads=args.num_threads, repeat_action_probability=0.0
    )
    games.reset(seed=args.seed)
    rng, number = np.random.default_rng(args.seed), games.single_action_space.n
    start = time.perf_counter()
    for _ in range(args.total_timesteps // args.num_envs):
        games.step(rng.integers(number, size=args.num_envs))
    return time.perf_counter() - start


def probe(args):
    missing = [need for need in args.needs if not importlib.util.find_spec(need.split("<")[0])]
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "gymnasium<1" in args.needs and not versions.get("gymnasium", "0").startswith("0"):
        missing.append(f"gymnasium<1 (it has {versions['gymnasium']})")
    if args.env_id and not missing:
        import gymnasium

        missing += [f"the task {args.env_id}"] * (args.env_id not in gymnasium.registry)
    gpu = False
    if importlib.util.find_spec("torch"):
        import torch

        gpu = torch.cuda.is_available()
    return missing, gpu, ", ".join(" ".join(item) for item in versions.items())


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whats = "ppo ppo-atari a2c trpo random random-atari probe".split()
    p.add_argument("what", choices=whats)
    p.add_argument("--env-id")
    p.add_argument("--total-timesteps", type=int, default=20_000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--num-envs", type=int, default=1)
    p.add_argument("--num-threads", type=int, default=1)
    p.add_argument("--cuda", action="store_true")
    p.add_argument("--needs", nargs="*", default=[], help="of probe: modules")
    args = p.parse_args()
    if args.what == "probe":
        print(json.dumps(probe(args)))
    elif args.what.startswith("random"):
        play = play_at_random if args.what == "random" else play_atari_at_random
        print(json.dumps(1e6 * play(args) / args.total_timesteps))
    else:
        learn(args)


if __name__ == "__main__":
    main()
