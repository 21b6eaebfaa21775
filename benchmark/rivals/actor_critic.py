"""What a2c.py, a2c_atari.py and acer.py share: TensorFlow's RMSProp and ACER's trust region."""

import torch
from torch import nn


class RMSProp(nn.Module):
    """TensorFlow's, uphill: the squares start at 1, and eps is under the root."""

    def __init__(self, parameters, decay=0.99, eps=1e-5):
        super().__init__()
        self.decay, self.eps, self.trained = decay, eps, list(parameters)
        self.squares = nn.ParameterList(map(torch.ones_like, self.trained)).requires_grad_(False)

    @torch.no_grad()
    def step(self, learning_rate):
        """Moves the parameters along their gradients. learning_rate is a float or a tensor []."""
        for p, square in zip(self.trained, self.squares):
            square.mul_(self.decay).add_((1 - self.decay) * p.grad.square())
            p.add_(learning_rate * p.grad / (square + self.eps).sqrt())


def project(g, k, delta):
    """The z closest to g with k . z <= delta, ACER's eq. 12, for each row of g, k [..., K]."""
    excess = (k * g).sum(-1, keepdim=True) - delta
    return g - (excess / k.square().sum(-1, keepdim=True).clamp(min=1e-12)).clamp(min=0) * k
