"""ppo_atari.py --bf16 without hardware for it: the roundings of bfloat16, in float32 arithmetic.

    python benchmark/bf16.py --bf16 --env-id Breakout [flags of ppo_atari.py]

Such hardware multiplies bfloat16 numbers exactly, sums the products in float32 and rounds the sum.
So does this, with the sums in another order, as on any other processor. PyTorch without it is
slower and rounds more: its convolutions add up gradients in bfloat16, too.
"""

import sys
from pathlib import Path

import torch
from torch.distributions import Categorical

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import ppo_atari  # noqa: E402


class Rounded(torch.autograd.Function):
    """x [...] in float32, to the 8 bits of bfloat16, and so its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.bfloat16().float()


class Agent(ppo_atari.Agent):
    """With --bf16 rounds what autocast would: of each hidden layer weights, output, gradients.

    Takes and gives what ppo_atari.Agent does, and without --bf16 the same."""

    def forward(self, obs):
        if not self.bf16:
            return super().forward(obs)
        x = obs.bfloat16().div_(255).float().permute(0, 3, 1, 2)
        for layer in self.body:
            if weights := {name: Rounded.apply(w) for name, w in layer.named_parameters()}:
                x = Rounded.apply(torch.func.functional_call(layer, weights, x))
            else:
                x = layer(x)
        return Categorical(logits=self.actor(x)), self.critic(x).squeeze(-1)


if __name__ == "__main__":
    ppo_atari.Agent = Agent
    sys.exit(ppo_atari.main())
