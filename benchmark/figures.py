"""Figures 1 and 2 of the paper, drawn with ppo_continuous.py's own functions.

    python benchmark/figures.py

Figure 1: one term of L^CLIP against the probability ratio, and its gradient, which is what learns.
Figure 2: surrogate objectives on the straight line through the parameters before and after the
first update of a run, and beyond. Both go to benchmark/results/figures/, figure 2 with its numbers.
The picture of benchmark/results/speed/ is drawn from its mujoco.csv.
"""

import argparse
import csv
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmark")]
from launch import git_commit  # noqa: E402
from plots import CYCLE, plt, save  # noqa: E402

import ppo_continuous as ppo  # noqa: E402

OUT = ROOT / "benchmark/results/figures"
CLIP, ACCENT, OTHER, KL = "#0072B2", "#D55E00", "#009E73", "#000000"


def figure_1(clip_coef=0.2):
    """L^CLIP of a single time step, for an advantage of +1 and of -1, and its gradient."""
    ratios = torch.linspace(0, 2, 1001)
    figure, axes = plt.subplots(2, 2, figsize=(7.6, 4.8), sharey="row", height_ratios=(3, 2))
    for (top, bottom), advantage in zip(axes.T, (1.0, -1.0)):
        terms, slopes = [], []
        for ratio in ratios:
            ratio = ratio.clone().requires_grad_()
            term = ppo.surrogate(ratio, torch.tensor(advantage), clip_coef)
            terms.append(term.item())
            slopes.append(torch.autograd.grad(term, ratio)[0].item())
        top.plot(ratios, terms, color=CLIP, linewidth=2)
        top.plot(1, advantage, "o", color=ACCENT, markersize=6)
        bottom.plot(ratios, slopes, color=CLIP, linewidth=2)
        top.set_title(f"A {'>' if advantage > 0 else '<'} 0")
        edge = 1 + clip_coef * advantage
        for ax in (top, bottom):
            ax.axvline(1, color="#999999", linestyle=":", linewidth=1)
            ax.axvline(edge, color="#999999", linestyle="--", linewidth=1)
            labels = ["0", "1", f"1 {'+' if advantage > 0 else '-'} ε", "2"]
            ax.set_xticks([0, 1, edge, 2], labels if ax is bottom else [])
        bottom.set_xlabel("probability ratio r")
    axes[0, 0].set_ylabel("L$^{CLIP}$ / |A|")
    axes[1, 0].set_ylabel("its derivative in r")
    save(figure, OUT / "figure1.png")


class FirstUpdate:
    """Stands in for the script's Run and, once called, for its estimate(): keeps what they see."""

    def __call__(self, args, agent, return_moments, batch):
        """The batch: obs [T*N, O], actions [T*N, A], old_logprob [T*N], advantages [T*N]."""
        estimates = self.estimate(args, agent, return_moments, batch)
        old_pi, _, advantages, _ = estimates
        columns = batch.obs, batch.actions, old_pi.log_prob(batch.actions), advantages
        self.batch = [x.flatten(0, 1) for x in columns]
        return estimates

    def resume(self, agent, **_):
        self.old = {k: x.clone() for k, x in agent.state_dict().items()}
        return 0

    def check(self, iteration, **_):
        pass

    def log(self, iteration, step, last, metrics):
        self.kl = metrics["final_kl"]


def first_update(args):
    """Agent, its parameters before and after, the batch, and the KL that train() found after it."""
    note = FirstUpdate()
    note.estimate = ppo.estimate
    with mock.patch.object(ppo, "estimate", note):
        agent = ppo.train(args, ppo.Envs(args, lambda *episode: None), note)
    new = {k: p.detach().clone() for k, p in agent.named_parameters()}
    agent.load_state_dict(note.old)  # with the statistics that the update saw
    old = {k: p.detach().clone() for k, p in agent.named_parameters()}
    return agent, old, new, note.batch, note.kl


def along_the_line(agent, old, new, batch, clip_coef, points):
    """Rows of (lambda, E[KL], L^CPI, E[clip(r)A], L^CLIP) at old + lambda * (new - old)."""
    obs, actions, old_logprob, advantages = batch
    low, high = 1 - clip_coef, 1 + clip_coef
    with torch.no_grad():
        old_pi, rows = agent(obs)[0], []
        for x in points:
            for name, p in agent.named_parameters():
                p.copy_(old[name] + x * (new[name] - old[name]))
            pi = agent(obs)[0]
            ratio = (pi.log_prob(actions) - old_logprob).exp()
            row = (
                x,
                ppo.kl_divergence(old_pi, pi).mean(),
                (ratio * advantages).mean(),
                (ratio.clamp(low, high) * advantages).mean(),
                ppo.surrogate(ratio, advantages, clip_coef),
            )
            rows.append([float(value) for value in row])
    return rows


def figure_2(args):
    agent, old, new, batch, _ = first_update(args)
    points = np.linspace(0, 3, 151)
    rows = along_the_line(agent, old, new, batch, args.clip_coef, points)
    names = "lambda", "kl", "cpi", "clipped", "clip"
    with open(OUT / "figure2.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([names, *([f"{x:.6g}" for x in row] for row in rows)])
    x, kl, cpi, clipped, clip = np.array(rows).T
    peak, there = clip.argmax(), np.abs(x - 1).argmin()

    figure, ax = plt.subplots(figsize=(7.6, 4.4))
    looks = (
        (kl, KL, ":", "E[KL]"),
        (cpi, OTHER, "--", "E[r A], L$^{CPI}$"),
        (clipped, ACCENT, "-.", "E[clip(r, 1 - ε, 1 + ε) A]"),
        (clip, CLIP, "-", "L$^{CLIP}$"),
    )
    for y, colour, dash, label in looks:
        ax.plot(x, y, dash, color=colour, linewidth=2, label=label)
    for at in (0, 1):
        ax.axvline(at, color="#999999", linestyle="--", linewidth=1)
    ax.plot(x[peak], clip[peak], "o", color=CLIP)
    ax.set_ylim(clip.min(), 4 * clip.max())
    ax.annotate(
        f"L$^{{CLIP}}$ is highest at λ = {x[peak]:.2f},\nwhere E[KL] = {kl[peak]:.3f}"
        " (paper: 0.02)",
        (x[peak], clip[peak]), (0.99, 0.6), textcoords="axes fraction", ha="right", fontsize=9,
        color=CLIP, arrowprops={"arrowstyle": "-", "color": CLIP, "linewidth": 0.7},
    )  # fmt: skip
    ax.set_xticks(range(4), ["0\nθ$_{old}$", "1\nθ$_{new}$", "2", "3"])
    ax.set_xlabel("λ, of θ$_{old}$ + λ (θ$_{new}$ - θ$_{old}$)")
    ax.set_ylabel("mean over the batch")
    ax.legend(loc="lower left", bbox_to_anchor=(0.36, 0))
    save(figure, OUT / "figure2.png")
    return x[peak], kl[peak], kl[there], clip[peak]


def speed(path):
    """Steps a second of each program, and where a step of ours takes its time, task by task."""
    names = {"ours": "this repository", "sb3": "Stable-Baselines3", "cleanrl": "CleanRL"}
    data = pd.read_csv(path)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True)
    sps = data.pivot_table(index="task", columns="program", values="sps", aggfunc="median")
    sps = sps[list(names)].rename(columns=names)
    sps.plot.barh(ax=left, color=CYCLE, width=0.8, xlabel="steps a second, one core", ylabel="")
    ours = data[data["program"] == "ours"].groupby("task").median(numeric_only=True)
    parts = pd.DataFrame({
        "environment, timed alone": ours["env_alone_us"],
        "rest of rollout and advantages": ours["rollout_us"] - ours["env_alone_us"],
        "update": ours["update_us"],
    })  # fmt: skip
    parts.plot.barh(ax=right, stacked=True, color=CYCLE[3:], xlabel="our microseconds a step")
    for ax in (left, right):
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8, ncols=2, columnspacing=1)
        ax.tick_params(axis="y", length=0)
    left.locator_params(axis="x", nbins=4)
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.invert_yaxis()
    save(figure, path.with_name("speed.png"))


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    ppo.gym.logger.min_level = ppo.gym.logger.ERROR
    OUT.mkdir(parents=True, exist_ok=True)
    commit = git_commit()  # before files of it change
    figure_1()
    speed(OUT.parent / "speed/mujoco.csv")
    args = ppo.Args(env_id="Hopper-v4", total_timesteps=2048)
    peak, kl, kl_there, top = figure_2(args)
    text = f"""# Where does the clipped objective stop an update?

At about the mean KL of the paper. L^CLIP peaks at an E[KL] of {kl:.4f}; in the
paper's Figure 2 it peaks at about 0.02. L^CPI, the surrogate without clipping (eq. 6), has no such
point: it goes on rising.

| | λ | E[KL] | L^CLIP |
| --- | ---: | ---: | ---: |
| after the update, θ_new | 1 | {kl_there:.4f} | |
| where L^CLIP is highest | {peak:.2f} | {kl:.4f} | {top:.4f} |
| paper: where L^CLIP is highest, θ_new | 1 | about 0.02 | |

![figure 2](figure2.png)

Figure 2 of the paper: objectives on the straight line through the parameters before and after the
first update. θ_new lies at λ = 1.

![figure 1](figure1.png)

Figure 1 of the paper: one time step's term of L^CLIP, eq. 7, with ε = 0.2, and its derivative in
the ratio. The gradient is 0 where the ratio has gone further than ε in the direction that the
advantage asks for. Everywhere else it is full: on the way back nothing is clipped. The dot is
where every update starts, r = 1.

## How it was made

- `python benchmark/figures.py`
- {args.env_id}, seed {args.seed}, first update of a run with the script's defaults: 2048 steps, 10
  epochs, standardised advantages
- commit {commit}, PyTorch {torch.__version__}
- numbers of figure 2: `figure2.csv`

[All results](../README.md)
"""
    (OUT / "README.md").write_text(text)
    print(OUT / "README.md")


if __name__ == "__main__":
    main()
