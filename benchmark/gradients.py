"""Draws why the policy's noise falls with the clip and stays with a penalty: held-out/log-std.

    python benchmark/gradients.py    makes gradients.png there, and gradients.csv if there is none

Adam divides its step by the root of a running mean of squared gradients, corrected for its start at
0. On Ant, for the first 100 iterations of a run of 1M steps, this notes that root for log std, and
the entropy. Two rows begin at the state that a penalty's row has reached halfway: one with its
Adam, one with a new one.
"""

import argparse
import csv
import sys
from copy import deepcopy
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmark")]
import ppo_continuous  # noqa: E402, I001  before numpy, whose number of threads it sets
import pandas as pd  # noqa: E402
import plots  # noqa: E402
import ppo_klpen  # noqa: E402
import ppo_noclip  # noqa: E402
import torch  # noqa: E402

OUT = ROOT / "benchmark/results/held-out/log-std"
TASK, TOTAL, SEEDS, HALF = "Ant-v4", 1_000_000, (1, 2, 3), 50  # HALF in iterations
BETA = dict(adapt_kl_coef=False, kl_coef=1.0)
ROWS = {  # script, flags, what of the state of β = 1 it begins with
    "clipping, ε = 0.2": (ppo_continuous, {}, ()),
    "no clipping or penalty": (ppo_noclip, {}, ()),
    "fixed KL, β = 1": (ppo_klpen, BETA, ()),
    "β = 1, gradient clipped": (ppo_klpen, BETA | {"max_grad_norm": 0.5}, ()),
    "β = 1, then ε = 0.2": (ppo_continuous, {}, ("agent", "return_moments", "envs", "adam")),
    "β = 1, then ε = 0.2, new Adam": (ppo_continuous, {}, ("agent", "return_moments", "envs")),
}


class Done(Exception):
    """Ends train() after 2 HALF iterations."""


class Note:
    """Stands in for a script's Run: notes rows of (step, entropy, root), and the state halfway."""

    def __init__(self, begin):
        self.begin, self.rows = begin, []

    def resume(self, **state):
        self.state = state
        for name, x in self.begin.items():
            state[name].load_state_dict(x)
        return HALF if self.begin else 0

    def check(self, iteration, **_):
        pass

    def log(self, iteration, step, last, metrics):
        adam, log_std = self.state["adam"], self.state["agent"].log_std
        (squares,) = (x for p, x in zip(adam.trained, adam.squares) if p is log_std)
        square = squares.mean().item() / (1 - 0.999 ** adam.t.item())
        self.rows.append((step, metrics["entropy"], square**0.5))
        if iteration == HALF:
            self.half = {name: deepcopy(x.state_dict()) for name, x in self.state.items()}
        if iteration == 2 * HALF:
            raise Done


def trained(script, flags, seed, begin):
    """The Note of a script's train() by flags."""
    args = script.Args(env_id=TASK, seed=seed, total_timesteps=TOTAL, **flags)
    envs, note = script.Envs(args, lambda *episode: None), Note(begin)
    try:
        script.train(args, envs, note)
    except Done:
        envs.close()
    return note


def draw():
    """gradients.png from gradients.csv: means over seeds, and from the lowest to the highest."""
    table = pd.read_csv(OUT / "gradients.csv")
    figure, axes = plots.plt.subplots(1, 2, figsize=(11, 3.8))
    for (ax, column), (name, colour) in product(
        zip(axes, ("entropy", "root")), zip(ROWS, plots.CYCLE)
    ):
        x = table[table["setting"] == name].pivot(index="step", columns="seed", values=column)
        steps, dash = x.index / 1e6, "--" if "then" in name else "-"
        ax.fill_between(steps, x.min(axis=1), x.max(axis=1), color=colour, alpha=0.12, linewidth=0)
        ax.plot(steps, x.mean(axis=1), dash, color=colour, label=name)
        ax.set_xlabel("million steps")
        ax.locator_params(axis="x", nbins=5)
    axes[0].set_title("entropy of the policy")
    axes[1].set(title="root in Adam's step of log std", yscale="log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    plots.save(figure, OUT / "gradients.png")


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    ppo_continuous.gym.logger.min_level = ppo_continuous.gym.logger.ERROR
    rows, half = [("setting", "seed", "step", "entropy", "root")], {}
    there = (OUT / "gradients.csv").exists()
    for seed, (name, (script, flags, parts)) in product([] if there else SEEDS, ROWS.items()):
        note = trained(script, flags, seed, {x: half[seed][x] for x in parts})
        if flags == BETA:
            half[seed] = note.half
        rows += [(name, seed, step, f"{h:.6g}", f"{x:.6g}") for step, h, x in note.rows]
        print(name, seed, *rows[-1][2:], flush=True)
    if not there:
        with open(OUT / "gradients.csv", "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    draw()


if __name__ == "__main__":
    main()
