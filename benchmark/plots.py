"""Pictures. Curves come as {(setting, task): DataFrame of values, steps x seeds}."""

from itertools import cycle, product

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

plt.switch_backend("Agg")
plt.rcParams.update({
    "figure.constrained_layout.use": True, "figure.facecolor": "white", "savefig.dpi": 110,
    "font.size": 10, "axes.grid": True, "grid.color": "#E6E6E6", "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
    "axes.labelsize": 8, "figure.labelsize": 10, "legend.handlelength": 3,
})  # fmt: skip

CYCLE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]  # Okabe, Ito
STYLE = {  # a hue and a dash for each family, darker for more of its parameter
    "no-clip": ("#000000", "-"), "pg": ("#999999", "-"),
    "clip-0.1": ("#79BDEB", "-"), "clip-0.2": ("#0072B2", "-"), "clip-0.3": ("#00304D", "-"),
    "log-clip-0.2": ("#009E73", "-"),
    "adaptive-kl-0.003": ("#F3B562", "--"), "adaptive-kl-0.01": ("#D97700", "--"),
    "adaptive-kl-0.03": ("#7A3B00", "--"), "fixed-kl-0.3": ("#E8A9CC", ":"),
    "fixed-kl-1": ("#CC6FA3", ":"), "fixed-kl-3": ("#943A6C", ":"), "fixed-kl-10": ("#4B1233", ":"),
}  # fmt: skip
FAMILIES = {"no-clip": "no clipping", "clip": "clipping, ε", "fixed-kl": "fixed KL, β",
            "adaptive-kl": "adaptive KL, d_targ (thin line)"}  # fmt: skip
LABELS = {"return": ("return of an episode", "linear"), "kl_coef": ("β", "log")}


def save(figure, path):
    """Writes a figure, the same bytes every time, and closes it."""
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    print(path)


def looks(settings):
    """{setting: colour and dash}."""
    other = cycle(product(("-", "--", ":"), CYCLE))  # for those that STYLE does not know
    found = {s: STYLE.get(s, (colour, dash)) for s, (dash, colour) in zip(settings, other)}
    return {s: dict(color=c, linestyle=dash) for s, (c, dash) in found.items()}


def family(setting):
    other = {"pg": "no-clip", "log-clip-0.2": "clip"}.get(setting, setting)
    return next((f for f in FAMILIES if other.startswith(f)), None)


def panel(ax, table, task, look, sweep, lines, random):
    """Curves of one task: mean over seeds, and from the lowest to the highest; lines across."""
    top, least = max([x for x, _ in lines], default=-np.inf), (np.inf, "")
    for s in (s for s in look if (s, task) in table):
        curve = table[s, task].rolling(sweep.width, center=True, min_periods=1).mean()
        x, low, high = curve.index / 1e6, curve.min(axis=1), curve.max(axis=1)
        ax.fill_between(x, low, high, color=look[s]["color"], alpha=0.1, linewidth=0)
        wide = s == sweep.reference
        ax.plot(x, curve.mean(axis=1), linewidth=1.3 + 0.9 * wide, zorder=2 + wide, **look[s])
        top, least = max(top, high.max()), min(least, (low.min(), sweep.label[s]))
    for y, style in lines:
        ax.axhline(y, **style)
    if least[0] < (floor := 1.5 * random - 0.5 * top) < top:  # a collapse would flatten all else
        ax.set_ylim(floor, top + 0.05 * (top - floor))
        ax.set_xlabel("million steps\nlowest {:,.0f}, {}".format(*least))


def curves(path, sweep, column="return"):
    """Learning curves, a panel a task; rows for a family, with no clipping and 0.2 in each."""
    table, look, score = sweep.curves(column), looks(sweep.label), column == "return"
    look = {s: look[s] for s in look if score or s != "pg"}  # its entropy would flatten all else
    groups = [x for x in ("clip", "adaptive-kl", "fixed-kl", None) if x in map(family, look)]
    groups = groups if len(groups) > 2 else [""]
    lines = dict(sweep.others) if sweep.beside and score and len(look) == 1 else {}
    gap = 3 * max(len(lines) - 1, 1)  # dashes of lines at the same height fill each other's gaps
    across = {name: dict(color=c, linestyle=(3 * i, (3, gap)))
              for i, (name, c) in enumerate(zip(lines, CYCLE[::-1]))}  # fmt: skip
    label, scale = LABELS.get(column, (column, "linear"))
    panels = len(sweep.tasks) + 1  # the last is for the legend
    columns = 7 if panels > 8 else 3 if panels in (5, 6) else min(panels, 4)
    rows = -(-panels // columns) * len(groups)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.4 * rows), squeeze=False)
    for group, axs in zip(groups, axes.reshape(len(groups), -1)):
        shown = [s for s in look if family(s) in ("no-clip", group) or s == "clip-0.2"]
        shown = {s: look[s] for s in shown} if group != "" else look
        for ax, task in zip(axs, sweep.tasks):
            levels = [(x[task], across[name]) for name, x in lines.items()]
            ax.set(title=task, xlabel="million steps", yscale=scale)
            panel(ax, table, task, shown, sweep, levels, sweep.random[task] if score else np.nan)
        for ax in axs[panels - 1 :]:
            ax.axis("off")
        names = [plt.Line2D([], [], label=sweep.label.get(s, s), **x)
                 for s, x in (shown | across).items()]  # fmt: skip
        axs[panels - 1].legend(handles=names, loc="center", fontsize=9 if len(names) < 12 else 8)
    figure.supylabel(label)
    save(figure, path)


def scores(path, labels, columns, paper=None):
    """A row a label: {name: [S, 3]} as bars with intervals, beside the paper's [S]."""
    figure, ax = plt.subplots(figsize=(8, 0.45 * len(labels) + 1.3))
    shifts = np.linspace(-0.18, 0.18, len(columns))
    for (name, found), colour, shift in zip(columns.items(), CYCLE, shifts):
        y = np.arange(len(labels)) + shift
        ax.barh(y, found[:, 0], 0.36, color=colour, label=name)
        ax.hlines(y, found[:, 1], found[:, 2], color="#333333", linewidth=2)
        for i in np.flatnonzero(found[:, 0] < -1):  # else one row would flatten all others
            ax.set_xlim(-1, 1.15)
            ax.text(-0.98, y[i], f"← {found[i, 0]:,.0f}", va="center", color="white", fontsize=8)
    if paper is not None and paper.notna().any():
        ax.plot(paper, range(len(labels)), "kD", markersize=5, label="paper")
    ax.set_yticks(range(len(labels)), labels)
    ax.set(xlabel="mean normalised score (random policy 0, best 1)", ylim=(len(labels) - 0.5, -0.5))
    figure.legend(loc="outside upper center", ncols=3)
    save(figure, path)


def kl(path, sweep):
    """KL after the update against steps, a panel a family, all tasks and seeds pooled."""
    table, look = sweep.curves("kl"), looks(sweep.label)
    groups = [name for name in (*FAMILIES, None) if name in map(family, look)]
    columns = -(-len(groups) // (rows := 1 + (len(groups) > 3)))
    size = 4 * columns, rows * (3.4 + 0.2 * len(look) / len(groups))  # with the legends below
    alpha = 0.12 * (len(look) < 5 * len(groups))  # more bands would hide each other
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, groups):
        for s in (s for s in look if family(s) == name and s in {x for x, _ in table}):
            pooled = pd.concat([x for key, x in table.items() if key[0] == s], axis=1)
            low, middle, high = (pooled.quantile(q, axis=1).dropna() for q in (0.1, 0.5, 0.9))
            x = middle.index / 1e6
            label = sweep.label[s].removeprefix(f"{FAMILIES.get(name, '').partition(' (')[0]} = ")
            ax.fill_between(x, low, high, color=look[s]["color"], alpha=alpha, linewidth=0)
            ax.plot(x, middle, label=label, **look[s])
            if name == "adaptive-kl":
                ax.axhline(float(s.split("-")[2]), color=look[s]["color"], linewidth=0.8)
        title = FAMILIES.get(name, "others" * (len(groups) > 1))
        ax.set(title=title, xlabel="million steps", yscale="log")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8)
    for ax in axes.flat[len(groups) :]:
        ax.axis("off")
    figure.supylabel("KL[pi_old, pi] after the update")
    axes[0, 0].set_ylim(np.clip(axes[0, 0].get_ylim(), 1e-5, 1e3))  # L^PG goes far beyond
    save(figure, path)
