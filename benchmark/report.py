"""Turns the runs of a sweep into benchmark/results/NAME/: two CSV files, README.md and pictures.

`python benchmark/report.py NAME` reads the ended runs in runs/NAME/SETTING/TASK/SEED/, if there are
any, and what runs.csv has of others. A page is answer.md, by hand: a question as title, the answer.
Then come the tables and pictures of PAGES, how it was made, and other files such as notes.md. A
folder within it with CSV files is a section. labels.csv orders and names the settings.
"""

import argparse
import json
import shlex
from functools import cache, partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import plots
import stats

HERE = Path(__file__).resolve().parent
KEY = ["setting", "task", "seed"]
METRICS = {"score": "last 100 episodes", "score_all": "all of training"}
load = partial(pd.read_csv, dtype={"setting": str, "task": str})


def read(path):
    """A CSV file as a DataFrame of text, just as it was written; empty if there is none."""
    there = path.exists() and path.stat().st_size
    return pd.read_csv(path, dtype=str, keep_default_na=False) if there else pd.DataFrame()


def write(path, rows):
    """A DataFrame to a CSV file, floats with six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = rows.map(lambda x: f"{x:.6g}" if isinstance(x, float) and x == x else x)
    rows.to_csv(path, index=False, lineterminator="\n")


def collect(folder):
    """DataFrames of runs.csv and curves.csv from folder/SETTING/TASK/SEED/, of runs that ended.

    Names those that failed or were stopped. Raises ValueError for a directory of no run.
    """
    runs, curves = [], []
    for path in sorted(folder.glob("*/*/*/summary.json")):
        key = dict(zip(KEY, path.parent.relative_to(folder).parts))
        try:
            key["seed"] = str(int(key["seed"]))
            row, points = collect_run(path.parent)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path.parent}: not a run's directory: {error!r}") from error
        if row["status"] in ("finished", "diverged"):
            runs.append(key | row)
            curves.append(pd.DataFrame(key, points.index).join(points))
        else:
            print(f"not counted: {path.parent}, {row['status']}")
    return pd.DataFrame(runs), pd.concat(curves) if curves else None


def collect_run(folder):
    """What runs.csv says of a run, and its curve()."""
    args, summary = (json.loads((folder / f"{x}.json").read_text()) for x in ("args", "summary"))
    names = "status", "score", "score_all", "episodes", "seconds", "sps", "global_step"
    row = {name: summary.get(name) for name in names} | {"status": summary["status"]}
    metrics = read(folder / "metrics.csv")
    if "final_kl" in metrics and len(metrics):
        found = metrics.reindex(columns=["final_kl", "clip_fraction", "entropy"])
        kl, clipped, entropy = found.apply(pd.to_numeric).to_numpy().T
        row |= {"kl_mean": kl.mean(), "kl_max": kl.max()}
        row |= {"clip_fraction": clipped.mean(), "entropy": entropy[-1]}
        if args.get("adapt_kl_coef"):
            held = np.abs(np.log(kl / args["kl_target"])) <= np.log(1.5)
            row |= {"kl_target": args["kl_target"], "kl_held": held.mean()}
    row |= {"git_commit": args.get("git_commit"), "machine": args.get("machine")}
    row["versions"] = " ".join(f"{k}={v}" for k, v in args["versions"].items())
    row["command"] = "python " + shlex.join(args["command"])
    return row, curve(read(folder / "episodes.csv"), metrics, args["total_timesteps"])


def curve(episodes, metrics, total):
    """Step, return, KL, its coefficient and entropy in every hundredth of a run of total steps."""

    def hundredths(table, *columns):
        x = table.reindex(columns=["global_step", *columns]).apply(pd.to_numeric).astype(float)
        return x.groupby(np.ceil(x.pop("global_step") * 100 / total).astype(int))

    points = hundredths(episodes, "episodic_return").mean().set_axis(["return"], axis=1)
    if "final_kl" in metrics:
        found = hundredths(metrics, "final_kl", "kl_coef", "entropy")
        kl = found["final_kl"].agg(["mean", "max"]).set_axis(["kl", "kl_max"], axis=1)
        points = points.join([kl, found[["kl_coef", "entropy"]].last()], how="outer")
    points.insert(0, "step", [round(i * total / 100) for i in points.index])
    return points


def merged(old, new, runs):
    """new, and the rows of old that are not of runs: made elsewhere, or their directory gone."""
    if len(old):
        old = old[~old.set_index(KEY).index.isin(runs.set_index(KEY).index)]
    rows, number = pd.concat([old, new]), lambda x: x.astype(int) if x.name == "seed" else x
    return rows.sort_values(KEY, key=number, kind="stable")


def known(name, *index):
    """A file of the paper's numbers, or of names."""
    return pd.read_csv(HERE / f"{name}.csv", index_col=index)


class Sweep:
    """What a result directory's CSV files hold; a section also has with_page's rows of its page."""

    def __init__(self, folder, root, reference="", smooth=5, beside=False, with_page=""):
        self.folder, self.root, self.width, self.beside = folder, root, smooth, beside
        self.folders = [folder, folder.parent][: 1 + bool(with_page)]
        runs = pd.concat([load(x / "runs.csv") for x in self.folders])
        self.runs = runs[runs["setting"].str.fullmatch(with_page or ".*")]
        labels = known("labels", "setting")["label"]
        there = sorted(set(self.runs["setting"]))
        there.sort(key=lambda s: labels.index.get_loc(s) if s in labels else len(labels))
        self.label = {s: labels.get(s, s) for s in there}
        self.reference = reference if reference in there else next(iter(there), "")
        self.tasks = sorted(set(self.runs["task"]))  # TASK, or TASK@START by log_std.sh
        atari = known("paper_atari", "game")
        random = pd.concat([known("random_policy", "task")["score"], atari["random"]])
        self.random = random.reindex([x.split("@")[0] for x in self.tasks]).set_axis(self.tasks)
        others = known("paper_mujoco", "task", "column")["score"].unstack(sort=False)
        atari = atari[["ppo", "a2c", "acer"]].rename(columns=lambda s: f"paper, {s.upper()}")
        self.others = pd.concat([others, atari]).reindex(self.tasks).dropna(axis=1)

    def table(self, column="score", common=True):
        """Settings x tasks of scores by seed; of the tasks that all settings have, or NaN there."""
        scores = self.runs[column].fillna(self.runs["task"].map(self.random))
        cells = scores.groupby([self.runs["setting"], self.runs["task"]]).apply(np.array)
        table = cells.unstack().reindex(list(self.label))
        return table.dropna(axis=1) if common else table

    def curves(self, column="return"):
        """{(setting, task): DataFrame of values, steps x seeds}."""
        rows = pd.concat([load(x / "curves.csv") for x in self.folders])
        groups = rows.groupby(["setting", "task"]) if column in rows else ()
        return {key: x.pivot(index="step", columns="seed", values=column) for key, x in groups}

    def picture(self, name, *args):
        """Draws NAME.png, by plots.NAME or as curves of the column NAME. Markdown of it."""
        path = self.folder / f"{name}.png"
        getattr(plots, name, partial(plots.curves, column=name))(path, *args)
        return f"![{name}]({path.relative_to(self.root)})\n"


def short(x):
    """A number as one reads it."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.1f}"


def cell(x, form=short, ends=" ({} to {})"):
    """Text of a number, of [number, ends of its interval, ...], or of text; nothing for NaN."""
    if np.ndim(x):
        return form(x[0]) + (ends.format(form(x[1]), form(x[2])) if x[1] == x[1] else "")
    return str(x) if isinstance(x, str | int | np.integer) else "" if x != x else form(x)


def markdown(head, rows, texts=1):
    """A Markdown table; all columns but the first, or the first texts, are aligned to the right."""
    lines = [head, ["---"] * texts + ["---:"] * (len(head) - texts), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def table(columns, index, form="{:.2f}".format):
    """The same of {head: cells}, without the columns that have no cell."""
    columns = {head: [cell(x, form) for x in cells] for head, cells in columns.items()}
    columns = {head: cells for head, cells in columns.items() if any(cells)}
    return markdown(["", *columns], zip(index, *columns.values()))


def common_tasks(sweep):
    """Which tasks means are of, unless of all."""
    text = f"Means are of the tasks that every row has: {', '.join(sweep.table())}.\n\n"
    return text * (len(sweep.table().columns) < len(sweep.tasks))


def how(name, sweep):
    """How the runs were made, as a list."""
    runs = load(sweep.folder / "runs.csv")
    runs = runs.replace("(?<=[0-9a-f]{7})[0-9a-f]{33}", "", regex=True)
    seeds, hours = ", ".join(map(str, sorted(set(runs["seed"])))), runs["seconds"].sum() / 3600
    names = (x.replace("-", "_") for x in (name.split("/")[-1], name.replace("/", "_")))
    scripts = [f"benchmark/{x}.sh" for x in names if (HERE / f"{x}.sh").exists()]
    made = [f"`SEEDS={runs['seed'].nunique()} bash {x}`" for x in scripts[:1]]
    lines = [", then ".join([*made, f"`python benchmark/report.py {name}`"])]
    seeds += ", not all of every row" * bool(len(runs) < runs[KEY].nunique().prod())
    lines += [f"{len(runs)} runs, seeds {seeds}; {hours:.1f} hours of training in all"]
    lines += [f"the first: `{runs['command'].iloc[0].split(' --run-dir')[0]}`"]
    for title, column in (("commit", "git_commit"), ("on", "machine"), ("with", "versions")):
        found = " / ".join(sorted(set(runs[column].dropna()))) or "a machine not recorded"
        lines += [f"{title} {found}"]
    diverged = runs[runs["status"] == "diverged"][KEY].astype(str).agg("/".join, axis=1)
    lines += [f"diverged: {', '.join(diverged)}"] * bool(len(diverged))
    return "".join(f"- {line}\n" for line in lines)


def by_algorithm(sweep):
    """By task, scores by both metrics beside other people's."""
    columns = {}
    for s, who in sweep.label.items():
        for metric, title in METRICS.items():
            x = sweep.table(metric, common=False).loc[s]
            columns[f"{who}, {title}"] = x.map(lambda y: [y.mean(), *stats.t_interval(y)], "ignore")
        columns[f"{who}, seeds"] = x.map(len, "ignore")
    columns |= dict(sweep.others)
    if len(sweep.label) == 1 and sweep.runs["seed"].nunique() > 1:
        columns["median"] = sweep.table().iloc[0].map(np.median)
        columns["each seed"] = [", ".join(map(short, x)) for x in sweep.table().iloc[0]]
    return table(columns, sweep.tasks, short)


def by_task(sweep, interval=None, paper=None):
    """Means, below them ranges of seeds or interval() of them, below those a paper's file's."""
    ends = interval or (lambda x: (x.min(), x.max()) if len(x) > 1 else (np.nan, np.nan))
    paper = known(paper, "task", "setting")["score"].unstack() if paper else ()
    rows = [["random policy", *sweep.random]]
    for s, row in sweep.table(common=False).iterrows():
        rows += [[sweep.label[s], *([x.mean(), *ends(x)] if np.ndim(x) else x for x in row)]]
        rows += [["*in the paper*", *paper[s].reindex(sweep.tasks)]] if s in paper else []
    text = markdown(["", *sweep.tasks], [[cell(x, ends="<br>{} to {}") for x in y] for y in rows])
    ends = f", and its {'95% interval' if interval else 'range over seeds'}" * ("<br>" in text)
    return f"Mean score{ends}.\n\n{text}"


@cache
def statistics(sweep):
    """What stats.bootstrap() finds by best run, by best setting, and over all of training."""
    wanted = dict(mean=stats.mean_scores, iqm=stats.iqm_scores, pairs=stats.all_pairs)
    base = list(sweep.label).index(sweep.reference)
    wanted["less"] = lambda x: (means := stats.mean_scores(x)) - means[base]
    column = known("paper_table1", "setting")["score"].reindex(list(sweep.label))
    rows = np.flatnonzero(column.notna())
    if len(rows) > 4:
        wanted["rank"] = lambda x: [stats.spearman(stats.mean_scores(x)[rows], column.dropna())]
    found, rng = [], np.random.default_rng(0)
    for metric, best in (("score", np.max), ("score", np.mean), ("score_all", np.max)):
        norm = stats.normalised(sweep.table(metric), sweep.random, best)
        found.append(stats.bootstrap(norm, rng, **wanted))
        wanted = {"mean": stats.mean_scores}
    by_task = found[0]["pairs"].reshape(-1, len(sweep.table().columns) + 1, 4)
    pairs = dict(zip(combinations(sweep.label, 2), by_task))
    pairs |= {(b, a): 1 - p[:, [0, 2, 1, 3]] for (a, b), p in pairs.items()}
    return *found, pairs, column


def summary(sweep):
    """Settings by mean normalised score, as in Table 1."""
    run, setting, whole, pairs, column = statistics(sweep)
    base, there, name = sweep.reference, sweep.table(), sweep.label
    columns = {
        "paper": column,
        "best run = 1": run["mean"],
        "best setting = 1": setting["mean"],
        "IQM": run["iqm"],
        "all of training": whole["mean"],
        f"minus {name[base]}": [cell(x, "{:.3f}".format) if x[0] else "-" for x in run["less"]],
        f"P({name[base]} > it)": [pairs.get((base, s), ["-"])[-1] for s in name],
        "runs": there.map(len).sum(axis=1),
    }
    text = f"{table(columns, name.values())}\n"
    if "rank" in run:
        rank = cell(run["rank"][0], "{:.2f}".format)
        text += f"Rank correlation with the paper's column (Spearman): {rank}.\n\n"
    text += common_tasks(sweep)
    bars = {f"ours, {head}": columns[head] for head in ("best run = 1", "best setting = 1")}
    return text + sweep.picture("scores", list(name.values()), bars, column)


def told_apart(sweep):
    """Pairs of settings whose P(A beats B) has an interval without 0.5."""
    pairs = {key: p for key, p in statistics(sweep)[3].items() if p[-1, 1] == p[-1, 1]}
    found = {key: p[-1] for key, p in pairs.items() if p[-1, 1] > 0.5 + 1e-9}
    if not pairs:  # of fewer than three seeds
        return ""
    text = f"{len(found)} of {len(pairs) // 2} pairs: the interval of P(A beats B) excludes 0.5. "
    text += "Of equal pairs at most 1 in 11 do with 3 seeds, 1 in 17 with 6, 1 in 20 with 10.\n\n"
    rows = [[*map(sweep.label.get, key), cell(p, "{:.3f}".format)] for key, p in found.items()]
    return text + markdown(["A", "B", "P(A beats B)"], rows, texts=2)


def kl(sweep):
    """What KL the updates came to, and the share of samples beyond epsilon, or 0.2 without one."""
    names = "kl_mean", "kl_max", "kl_held", "clip_fraction"
    runs = sweep.runs.reindex(columns=["setting", *names]).dropna(thresh=2)
    found = runs.groupby("setting").agg(["median", "mean", "max"])
    found = found.loc[[s for s in sweep.label if s in found.index]]
    columns = {
        "mean KL of a run, median": found["kl_mean", "median"],
        "highest of a run": found["kl_mean", "max"],
        "highest of an update": found["kl_max", "max"],
        "within 1.5 times d_targ": found["kl_held", "mean"].map("{:.0%}".format, "ignore"),
        "samples beyond the clip": found["clip_fraction", "mean"].map("{:.1%}".format, "ignore"),
    }
    form = lambda x: short(x) if x >= 100 else f"{x:.3g}"  # noqa: E731
    return table(columns, [sweep.label[s] for s in found.index], form)


def winners(sweep):
    """Who wins how many games, by both metrics of the paper's Table 2; of ten games or more."""
    (count, tasks), columns = sweep.table().shape, {}
    if count < 2 or tasks < 10:
        return ""
    for metric, title in METRICS.items():
        won, most = stats.bootstrap(sweep.table(metric), x=stats.wins)["x"].reshape(2, -1, 4)
        columns |= {f"games won, {title}": won, f"share of resamples, {title}": most[:, 3]}
    text = f"Games won, of {tasks}, and the share of resamples of seeds in which it wins most.\n\n"
    return text + table(columns, sweep.label.values())


def acer_lead(sweep):
    """The size of ACER's lead in the paper's own Table 6."""
    paper = known("paper_atari", "game")
    gap, p = stats.lead(paper["acer"], paper["ppo"])
    row = [len(gap), sum(gap > 0), sum(gap < 0), f"{gap.median():+.1%}", f"{gap.mean():+.1%}"]
    head = "games", "ACER ahead", "PPO ahead", "median lead", "mean lead", "p of a sign test"
    text = "ACER's score less PPO's, last 100 episodes, as a share of the larger of the two.\n\n"
    return text + markdown(head, [[*row, f"{p:.2g}"]])


def beaten(sweep):
    """By task, how likely a run of the reference beats one of each other setting."""
    if sweep.table().map(len).min(axis=None) < stats.FEWEST:
        return ""
    base, others = sweep.reference, [s for s in sweep.label if s != sweep.reference]
    found = np.array([statistics(sweep)[3][base, s] for s in others]).transpose(1, 0, 2)
    text = f"How likely a run of {sweep.label[base]} is to beat one of the row:\n\n"
    return text + table(dict(zip([*sweep.table(), "mean"], found)), map(sweep.label.get, others))


def ablation(sweep):
    """Settings NAME-clip and NAME-no-clip: both, and what the clip adds."""
    norm, labels = stats.normalised(sweep.table(), sweep.random, np.max), known("labels", "setting")
    both = [{f"{s}-clip", f"{s}-no-clip"} <= set(norm.index) for s in labels.index]
    labels = labels["label"][both]
    if "defaults" not in labels:  # from which the changes are
        return by_task(sweep)
    found = stats.bootstrap(
        norm.loc[[f"{s}-{x}" for s in labels.index for x in ("clip", "no-clip")]],
        mean=stats.mean_scores,
        gain=lambda x: (m := stats.mean_scores(x))[::2] - m[1::2],
        cost=lambda x: (m := stats.mean_scores(x)) - m[[0, 1] * (len(x) // 2)],
        average=lambda x: [(m := stats.mean_scores(x))[::2].mean(0) - m[1::2].mean(0)],
    )
    bars = {"clip": found["mean"][::2], "no clip": found["mean"][1::2]}
    more = {"the clip adds": found["gain"]}
    more |= {"the change adds, clip": found["cost"][::2], "…, no clip": found["cost"][1::2]}
    text = f"{table(bars | more, labels)}\nMean of what the clip adds: "
    text += f"{cell(found['average'][0], '{:.2f}'.format)}.\n\n{common_tasks(sweep)}"
    return text + sweep.picture("scores", list(labels), bars)


KL = {"KL[pi_old, pi] after an update": [kl, "kl"]}
TASKS = {"By task": [by_task]}
APART = {"Which rows do the data tell apart?": [told_apart]}
BEATEN = {"Who beats whom?": [beaten]}
ENTROPY = {"Entropy": ["entropy"]}
ATARI = {"Who wins?": [winners], "How large is ACER's lead in the paper?": [acer_lead]}
HELD = partial(by_task, interval=stats.t_interval)
PAGES = {  # sections of the answer, sections of the details, options of Sweep; text: a picture
    "mujoco": ([by_algorithm, "curves"], {}, {"smooth": 1, "beside": True}),
    "table1": ([summary, "curves"], APART | TASKS | KL, {"reference": "clip-0.2"}),
    "table1/log-std": ([HELD, "curves"], {}, {"with_page": "clip-0.2|log-std.*"}),
    "table1-2017": ([summary, "curves"], APART | TASKS | KL, {"reference": "clip-0.2"}),
    "held-out": ([HELD, "curves"], BEATEN | KL | ENTROPY, {"reference": "clip-0.2"}),
    "held-out/log-std": ([HELD], {}, {"with_page": ".*"}),
    "rivals": ([partial(HELD, paper="paper_fig3"), "curves"], BEATEN, {"reference": "ppo"}),
    "rivals/settings": ([by_task], {}, {}),
    "ablation": ([ablation], TASKS, {"reference": "defaults-clip"}),
    "kl-constants": ([summary, "kl_coef"], APART | TASKS | KL, {"reference": "defaults"}),
    "no-clip": ([by_task, "curves"], KL, {"reference": "2017-code"}),
    "bfloat16": ([summary, "curves"], TASKS, {"reference": "float32"}),
    "bfloat16/halves": ([summary, "curves"], TASKS, {"reference": "float32"}),
    "atari": ([by_algorithm, "curves"], ATARI, {"smooth": 3, "beside": True}),
    "atari/1000000": ([by_algorithm, "curves"], {}, {}),
}


def page(name, folder, root, mark="#"):
    """Markdown of a folder and of those within it; draws its pictures. root is the page's."""
    first, details, options = PAGES.get(name, ([by_task, "curves"], {}, {"smooth": 1}))
    sweep, answer = Sweep(folder, root, **options), folder / "answer.md"
    parts = [answer.read_text() if answer.exists() else f"{mark} {folder.name}\n"]
    if "reference" in options and (len(sweep.label) < 2 or sweep.table().empty):
        first, details = [by_task, "curves"], {}  # there is nothing to compare yet
    for title, sections in ({"": first, "How it was made": [partial(how, name)]} | details).items():
        made = [sweep.picture(x, sweep) if isinstance(x, str) else x(sweep) for x in sections]
        parts += [f"{mark}# {title}\n"] * bool(title and any(made)) + list(filter(None, made))
    for file in sorted(folder.glob("*/runs.csv")):
        parts.append(page(f"{name}/{file.parent.name}", file.parent, root, f"{mark}#"))
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", type=lambda x: x.strip("/"), help="of the sweep: mujoco, ...")
    parser.add_argument("--runs", type=Path, help="default: runs/NAME")
    parser.add_argument("--out", type=Path, help="default: benchmark/results/NAME")
    args = parser.parse_args()
    folder = args.runs or HERE.parent / "runs" / args.name
    out = args.out or HERE / "results" / args.name
    try:
        runs, points = collect(folder)
        for name, rows in (("runs.csv", runs), ("curves.csv", points)) if len(runs) else ():
            write(out / name, merged(read(out / name), rows, runs))
        top = out.parent if "/" in args.name else out  # of a section, the page
        needed = [x / y for x in (out, top) for y in ("runs.csv", "curves.csv")]
        if missing := [x for x in needed if not x.exists()]:
            raise ValueError(f"no {missing[0]}; runs that have ended in {folder}: {len(runs)}")
        path = top / "README.md"
        others = sorted({*top.glob("*.md")} - {top / "answer.md", path})
        first = page(args.name.split("/")[0], top, top)
        path.write_text("\n".join([first, *map(Path.read_text, others)]))
        print(path)
    except (OSError, ValueError) as error:
        parser.exit(2, f"report.py: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
