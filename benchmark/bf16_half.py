"""ppo_atari.py --bf16 in one half of each iteration only: which half costs scores?

    python benchmark/bf16_half.py {rollout,update} --bf16 --env-id Breakout [flags of ppo_atari.py]

The other half computes in float32, with weights that are not rounded. For hardware with bfloat16.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import ppo_atari  # noqa: E402


class Agent(ppo_atari.Agent):
    """With --bf16 computes in bfloat16 in its half: the update where gradients are recorded, the
    rollout where they are not. Takes and gives what ppo_atari.Agent does."""

    half = None

    def __init__(self, num_actions, network, init, bf16):
        super().__init__(num_actions, network, init, bf16)
        self.wanted = bf16
        if self.half == "update":
            self.body.bfloat16 = lambda: None  # by which train() rounds the rollout's weights

    def forward(self, obs):
        self.bf16 = self.wanted and torch.is_grad_enabled() == (self.half == "update")
        return super().forward(obs)


def main():
    parse, Agent.half = ppo_atari.parse, (sys.argv + [""])[1]
    if Agent.half not in ("rollout", "update"):
        print(f"bf16_half.py: {Agent.half!r}: must be rollout or update", file=sys.stderr)
        return 2
    ppo_atari.Agent = Agent
    ppo_atari.parse = lambda argv: parse(argv[1:])  # args.json has the whole command
    return ppo_atari.main()


if __name__ == "__main__":
    sys.exit(main())
