"""Pictures. Curves come as {(setting, task): DataFrame of values, steps x seeds}."""

from itertools import product

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

plt.switch_backend("Agg")
plt.rcParams.update({
    "figure.constrained_layout.use": True, "figure.facecolor": "white", "savefig.dpi": 110,
    "font.size": 10, "axes.grid": True, "grid.color": "#E6E6E6", "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
})  # fmt: skip

CYCLE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]  # Okabe, Ito
STYLE = {  # a hue and a dash for each family, darker for more of its parameter
    "no-clip": ("#000000", "-"), "pg": ("#999999", "-"),
    "clip-0.1": ("#79BDEB", "-"), "clip-0.2": ("#0072B2", "-"), "clip-0.3": ("#00304D", "-"),
    "log-clip-0.2": ("#009E73", "-"),
    "adaptive-kl-0.003": ("#F3B562", "--"), "adaptive-kl-0.01": ("#D97700", "--"),
    "adaptive-kl-0.03": ("#7A3B00", "--"), "fixed-kl-0.3": ("#E8A9CC", ":"),
    "fixed-kl-1": ("#CC6FA3", ":"), "fixed-kl-3": ("#943A6C", ":"), "fixed-kl-10": ("#4B1233", ":"),
    "clip-0.2-std-unclipped": ("#79BDEB", "-."), "clip-0.2-std-held": ("#0072B2", "-."),
    "fixed-kl-1-std-of-clip": ("#CC6FA3", "-."), "adaptive-kl-0.01-std-of-clip": ("#D97700", "-."),
    "no-clip-std-of-clip": ("#000000", "-."),
}  # fmt: skip
FAMILIES = {"no-clip": "no clipping", "clip": "clipping, ε", "fixed-kl": "fixed KL, β",
            "adaptive-kl": "adaptive KL, d_targ (thin line)"}  # fmt: skip


def save(figure, path):
    """Writes a figure, the same bytes every time, and closes it."""
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    print(path)


def looks(settings):
    """{setting: colour and dash}."""
    other = product(("-", "--", ":"), CYCLE)  # for those that STYLE does not know
    found = {s: STYLE.get(s, (colour, dash)) for s, (dash, colour) in zip(settings, other)}
    return {s: dict(color=c, linestyle=dash) for s, (c, dash) in found.items()}


def family(setting):
    other = {"pg": "no-clip", "log-clip-0.2": "clip"}.get(setting, setting)
    return next((f for f in FAMILIES if other.startswith(f)), None)


def panel(ax, table, task, look, sweep, random=(), levels=()):
    """Curves of one task: mean over seeds, and from the lowest to the highest."""
    top, bottom = max(levels, default=-np.inf), np.inf
    for s in (s for s in look if (s, task) in table):
        curve = table[s, task].rolling(sweep.width, center=True, min_periods=1).mean()
        x, low, high = curve.index / 1e6, curve.min(axis=1), curve.max(axis=1)
        ax.fill_between(x, low, high, color=look[s]["color"], alpha=0.1, linewidth=0)
        ax.plot(x, curve.mean(axis=1), linewidth=2.2 if s == "clip-0.2" else 1.3, **look[s])
        top, bottom = max(top, high.max()), min(bottom, low.min())
    floor = 2 * random[task] - top if task in random else -np.inf
    if bottom < floor < top:  # else one that collapsed would flatten all others
        ax.set_ylim(floor, top + 0.05 * (top - floor))
        ax.text(0.02, 0.03, f"lowest: {bottom:,.0f}", transform=ax.transAxes,
                bbox=dict(facecolor="white", alpha=0.85, edgecolor="none", pad=1.5))  # fmt: skip


def curves(path, sweep, column="return"):
    """Learning curves, a panel a task; rows for a family, with no clipping and 0.2 in each."""
    table, look, score = sweep.curves(column), looks(sweep.label), column == "return"
    groups = [x for x in ("clip", "adaptive-kl", "fixed-kl", None) if x in map(family, look)]
    tasks, groups = sweep.tasks, groups if len(groups) > 2 and not sweep.above else [""]
    lines = dict(sweep.others) if sweep.beside and score and len(look) == 1 else {}
    gap = 3 * max(len(lines) - 1, 1)  # dashes of lines at the same height fill each other's gaps
    across = {name: dict(color=c, linestyle=(3 * i, (3, gap)))
              for i, (name, c) in enumerate(zip(lines, CYCLE[::-1]))}  # fmt: skip
    last = [None] * (len(look) + len(lines) > 1)  # the panel of the legend
    panels = len(tasks) + len(last)
    columns = 7 if panels > 8 else 3 if panels in (5, 6) else min(panels, 4)
    count = -(-panels // columns)
    last += [""] * (count * columns - panels)  # nothing
    size = 2.6 * columns, 2.4 * count * len(groups)
    figure, axes = plt.subplots(count * len(groups), columns, figsize=size, squeeze=False)
    for ax, (group, task) in zip(axes.flat, product(groups, [*tasks, *last])):
        shown = [s for s in look if group in ("", family(s)) or s in ("no-clip", "pg", "clip-0.2")]
        shown = {s: look[s] for s in shown}
        if task is None:
            names = [plt.Line2D([], [], label=sweep.label.get(s, s), **x)
                     for s, x in (shown | across).items()]  # fmt: skip
            ax.legend(handles=names, loc="center", fontsize=9 if len(names) < 12 else 8)
        elif task:
            levels, random = [x[task] for x in lines.values()], sweep.random if score else ()
            panel(ax, table, task, shown, sweep, random, levels)
            for name, x in lines.items():
                ax.axhline(x[task], **across[name])
            ax.set(title=task, xlabel="million steps")
    for ax in axes.flat:
        ax.axis("on" if ax.lines else "off")
        ax.set_yscale("log" if column == "kl_coef" and ax.lines else "linear")
    for ax in axes[:, 0]:
        ax.set_ylabel("return of an episode" if score else LABELS[column])
    save(figure, path)


LABELS = {"entropy": "entropy", "kl_coef": "β"}


def entropy(path, sweep):
    """The same of the policy's entropy."""
    curves(path, sweep, "entropy")


def beta(path, sweep):
    """The same of the penalty's coefficient."""
    curves(path, sweep, "kl_coef")


def log_std(path, sweep, cells, names):
    """Scores by the log std at the start: all rows on Ant and Humanoid, ε = 0.2 on the others."""
    means, tasks = cells.map(lambda x: x[0], "ignore"), list(cells.columns.levels[0])
    clip = means.loc["clip-0.2"].unstack().sub(sweep.random.reindex(tasks), axis=0)
    rows = means[sweep.tasks].dropna(thresh=len(sweep.tasks) + 1)
    size = 4.2 * len(sweep.tasks) + 4.2, 4.8
    figure, axes = plt.subplots(1, len(sweep.tasks) + 1, figsize=size)
    for ax, task in zip(axes, sweep.tasks):
        for s, look in looks(rows.index).items():
            line = rows.loc[s, task].dropna()
            ax.plot(line.index, line, marker=".", label=names[s], **look)
        ax.set(title=task, ylabel="score")
    for task, line in clip.drop(sweep.tasks).iterrows():
        axes[-1].plot(line.index, line / line[0], marker=".", label=task)
    axes[-1].set(title="clipping, ε = 0.2", ylabel="score, relative to that of 0")
    axes[-1].legend(fontsize=8)
    for ax in axes:
        ax.set_xlabel("log std at the start")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    save(figure, path)


def scores(path, labels, columns, paper=None):
    """A row a label: {name: [S, 3]} as dots with intervals beside the paper's [S], or as bars."""
    figure, ax = plt.subplots(figsize=(8, 0.45 * len(labels) + 1.3))
    shifts = np.linspace(-0.18, 0.18, len(columns))
    for (name, found), colour, shift in zip(columns.items(), CYCLE, shifts):
        y, dark = np.arange(len(labels)) + shift, "#333333" if paper is None else colour
        if paper is None:
            ax.barh(y, found[:, 0], 0.36, color=colour, label=name)
        else:
            ax.plot(found[:, 0], y, "o", color=colour, label=name)
        ax.hlines(y, found[:, 1], found[:, 2], color=dark, linewidth=2)
    if paper is not None and paper.notna().any():
        ax.plot(paper, range(len(labels)), "kD", markersize=5, label="paper")
    first = next(iter(columns.values()))[:, 0]
    if np.nanmin(first) < -1:  # else one row would flatten all others
        ax.set_xlim(-1, 1.15)
        for y in np.flatnonzero(first < -1):
            ax.text(-0.98, y, f"← {first[y]:,.0f}", va="center")
    ax.set_xlabel("mean normalised score (random policy 0, best result 1)")
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=3)
    save(figure, path)


def kl(path, sweep):
    """KL after the update against steps, a panel a family, all tasks and seeds pooled."""
    table, look = sweep.curves("kl"), looks(sweep.label)
    groups = [name for name in (*FAMILIES, None) if name in map(family, look)]
    size = 3.4 * len(groups) + 4 * (None in groups), 3.8
    figure, axes = plt.subplots(1, len(groups), figsize=size, sharey=True, squeeze=False)
    for ax, name in zip(axes[0], groups):
        for s in (s for s in look if family(s) == name):
            pooled = pd.concat([x for key, x in table.items() if key[0] == s], axis=1)
            low, middle, high = (pooled.quantile(q, axis=1).dropna() for q in (0.1, 0.5, 0.9))
            short = name in ("clip", "fixed-kl", "adaptive-kl") and s.startswith(name)
            label = s.removeprefix(f"{name}-") if short else sweep.label[s].split(",")[0]
            x, label = middle.index / 1e6, label if name else sweep.label[s]
            ax.fill_between(x, low, high, color=look[s]["color"], alpha=0.12, linewidth=0)
            ax.plot(x, middle, label=label, **look[s])
            if name == "adaptive-kl":
                ax.axhline(float(label.split("-")[0]), color=look[s]["color"], linewidth=0.8)
        ax.set(title=FAMILIES.get(name, ""), yscale="log", xlabel="million steps")
        place = dict(loc="upper center", ncols=3, columnspacing=1, handlelength=1.4, fontsize=8)
        place |= dict(frameon=True, edgecolor="none", framealpha=0.9)
        ax.legend(**place if name else dict(loc="center left", bbox_to_anchor=(1, 0.5)))
    axes[0, 0].set_ylabel("KL[pi_old, pi] after the update")
    low, high = np.clip(axes[0, 0].get_ylim(), 1e-5, 1e3)  # L^PG goes far beyond
    axes[0, 0].set_ylim(low, high * (high / low) ** 0.2)  # room for the legends
    save(figure, path)
