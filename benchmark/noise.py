"""Draws score against the policy's noise on Ant and Humanoid: results/held-out/log-std/noise.png.

From the CSV files of held-out and of its section; a line joins a setting's starts of log std. The
title has Spearman's rank correlation over the points drawn: those above the random policy.
"""

import argparse
from pathlib import Path

import numpy as np
import plots
import stats
from plots import plt
from report import PAGES, Sweep

PAGE = Path(__file__).resolve().parent / "results/held-out"
HALFWAY = 500_000  # steps
plots.STYLE.update({  # of the wider range
    "clip-0.05": ("#C4E3F8", "-"), "clip-0.5": ("#00131F", "-"), "fixed-kl-0.03": ("#F8E0ED", ":"),
    "fixed-kl-0.1": ("#F0C5DD", ":"), "fixed-kl-30": ("#26081A", ":"),
})  # fmt: skip
COPIES = {"of-clip": "D", "unclipped": "v", "only": "P", "held": "s", "clipped": "X"}  # markers


def points(sweep, setting, task):
    """[(entropy halfway, score)] of a setting's starts on a task, means over seeds, sorted."""
    curves, scores = sweep.curves("entropy"), sweep.table(common=False)
    starts = [t for t in sweep.tasks if t.partition("@")[0] == task and (setting, t) in curves]
    halfway = (curves[setting, t].mean(axis=1).loc[:HALFWAY].iloc[-1] for t in starts)
    return sorted(zip(halfway, (scores.loc[setting, t].mean() for t in starts)))


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    sweep = Sweep(PAGE / "log-std", PAGE, **PAGES["held-out/log-std"][2])
    tasks = [x for x in sweep.tasks if "@" not in x]
    figure, axes = plt.subplots(1, len(tasks) + 1, figsize=(4 * len(tasks) + 3, 6.6))
    # NAME-std-COPY and NAME-grad-clipped have the colour of NAME
    bases = {s: s.replace("-grad-", "-std-").partition("-std-")[::2] for s in sweep.label}
    look = plots.looks(dict.fromkeys(base for base, _ in bases.values()))
    for ax, task in zip(axes, tasks):
        drawn = []
        for s, (base, copy) in bases.items():
            found = [x for x in points(sweep, s, task) if x[1] > sweep.random[task]]
            drawn += found
            if found:
                marker = COPIES.get(copy, "o" if base in plots.STYLE else "^")
                style = dict(marker=marker, markeredgecolor="black", markeredgewidth=0.6)
                ax.plot(*zip(*found), label=sweep.label[s], **style, **look[base])
        title = f"{task}: rank correlation {stats.spearman(*np.transpose(drawn)):.2f}"
        ax.set(title=title, xlabel=f"entropy of the policy after {HALFWAY:,} steps")
    axes[0].set_ylabel("mean return of the last 100 episodes")
    axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="center", fontsize=8)
    axes[-1].axis("off")
    plots.save(figure, PAGE / "log-std/noise.png")


if __name__ == "__main__":
    main()
