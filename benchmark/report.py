"""Turns the runs of a sweep into benchmark/results/NAME/: two CSV files, README.md and pictures.

    python benchmark/report.py mujoco                from runs/mujoco/SETTING/TASK/SEED/,
                                                     and what runs.csv has of other runs
    python benchmark/report.py mujoco --from-csv     from runs.csv and curves.csv alone
    python benchmark/report.py --random-policy       makes benchmark/random_policy.csv

Any NAME gets scores and learning curves; table1 and strict also get the statistics of the paper's
Table 1, and atari its Table 6, with games that have no run yet marked as missing.
The CSV files hold all that the rest is made of, so they are what to commit.
"""

import argparse
import csv
import json
import math
import shlex
import sys
from collections import defaultdict
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
POINTS = 100  # of a learning curve
RESAMPLES = 10_000
TABLE1 = {  # sweeps whose report is a Table 1
    "table1": "Table 1: the objectives, compared",
    "strict": "Four rows of Table 1 by the code of July 2017",
}
TITLES = TABLE1 | {
    "mujoco": "The seven tasks by the scripts' defaults",
    "noclip": "What makes PPO without clipping collapse?",
    "bf16": "Does bfloat16 change the scores?",
    "bf16-halves": "Does bfloat16 cost scores in the rollout, or in the update?",
}
# To which the others are compared
BASELINE = dict.fromkeys(("bf16", "bf16-halves"), "float32")
BY_TASK = "Mean score over seeds, and below it the lowest and the highest seed."
RULES = """\
- **Score** of a run: mean return of its last 100 training episodes (section 6.1 of the paper).
- A run that **diverged** (a weight, loss or action ceased to be finite) counts with the score of
  the last 100 episodes that it finished; if it finished none, with the random policy's.
- **Learning curves**: each of 100 points is the mean return of the episodes that ended in that
  hundredth of the run, {smooth}averaged over seeds; bands go from the lowest to the
  highest seed.
"""

# ---------------------------------------------------------------------------------- statistics


def t_quantile(df):
    """The 97.5% quantile of Student's t with df degrees of freedom."""
    log_c = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(df * math.pi) / 2
    x = np.linspace(0, 20, 400_001)
    density = np.exp(log_c - (df + 1) / 2 * np.log1p(x**2 / df))
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2) * (x[1] - x[0])])
    return float(np.interp(0.475, mass, x))


def t_interval(x):
    """Low and high end of the 95% t interval for the mean of x, NaN for a single value."""
    if len(x) < 2:
        return math.nan, math.nan
    half = t_quantile(len(x) - 1) * np.std(x, ddof=1) / math.sqrt(len(x))
    return np.mean(x) - half, np.mean(x) + half


def iqm(x):
    """Interquartile mean over the last axis: a quarter of the values cut off at either end."""
    cut = int(0.25 * x.shape[-1])
    return np.sort(x, axis=-1)[..., cut : x.shape[-1] - cut].mean(-1)


def resample(tasks, rng):
    """Stratified bootstrap: of each task's scores [seeds], RESAMPLES new sets of as many."""
    return [x[rng.integers(len(x), size=(RESAMPLES, len(x)))] for x in tasks]


def interval(values):
    """The 95% percentile interval."""
    return tuple(np.quantile(values, [0.025, 0.975]))


def improvement(x_tasks, y_tasks):
    """Probability that a run of x beats one of y on the same task, ties half, mean over tasks."""
    better = []
    for x, y in zip(x_tasks, y_tasks):
        x, y = x[..., :, None], y[..., None, :]
        better.append(((x > y) + 0.5 * (x == y)).mean((-2, -1)))
    return np.mean(better, axis=0)


def ranks(x):
    """Ranks from 1 on, the lowest first; ties share theirs."""
    x = np.asarray(x)
    return (x[:, None] > x).sum(1) + ((x[:, None] == x).sum(1) + 1) / 2


def normalised(scores, random, by):
    """{setting: {task: scores}} with the random policy at 0 and the task's best result at 1.

    by says what the best result is: a "run", or a "setting", by the mean over its seeds.
    """
    best = defaultdict(lambda: -math.inf)
    for tasks in scores.values():
        for task, x in tasks.items():
            best[task] = max(best[task], np.max(x) if by == "run" else np.mean(x))
    return {
        setting: {t: (x - random[t]) / (best[t] - random[t]) for t, x in tasks.items()}
        for setting, tasks in scores.items()
    }


def leave_one_out(norm):
    """[(held-out task, setting that is best on the others, its mean there, 0.2's mean there)]."""
    rows = []
    for task in next(iter(norm.values())):
        mean = {s: np.mean([x.mean() for t, x in n.items() if t != task]) for s, n in norm.items()}
        best = max(mean, key=mean.get)
        rows.append((task, best, mean[best], mean.get("clip-0.2", math.nan)))
    return rows


# ---------------------------------------------------------------------------------- data


def collect(folder):
    """Rows of runs.csv and curves.csv from folder/SETTING/TASK/SEED/."""
    runs, curves = [], []
    for path in sorted(folder.glob("*/*/*/args.json"), key=lambda p: natural(p.parent)):
        setting, task, seed = path.parent.relative_to(folder).parts
        args, summary = json.loads(path.read_text()), {}
        if (path.parent / "summary.json").exists():
            summary = json.loads((path.parent / "summary.json").read_text())
        episodes, metrics = read(path.parent / "episodes.csv"), read(path.parent / "metrics.csv")
        status = summary.get("status", "interrupted")
        row = dict(setting=setting, task=task, seed=seed, status=status)
        row |= {k: number(summary.get(k)) for k in ("score", "score_all", "episodes")}
        row |= {k: number(summary.get(k)) for k in ("seconds", "sps", "global_step")}
        kl = np.array([float(m["final_kl"]) for m in metrics if "final_kl" in m])
        row |= dict(kl_mean=number(kl.mean()), kl_max=number(kl.max())) if len(kl) else {}
        if args.get("adapt_kl_coef") and len(kl):
            target = args["kl_target"]
            held = (kl >= target / 1.5) & (kl <= target * 1.5)
            row |= dict(kl_target=target, kl_held=number(held.mean()))
        row |= dict(git_commit=args.get("git_commit"), machine=args.get("machine"))
        row["versions"] = " ".join(f"{k}={v}" for k, v in args["versions"].items())
        row["command"] = "python " + shlex.join(args["command"])
        runs.append(row)
        key = dict(setting=setting, task=task, seed=seed)
        curves += [key | point for point in curve(episodes, metrics, args["total_timesteps"])]
    return runs, curves


def merged(old, new):
    """new, and the rows of old that are of other runs: made elsewhere, or their directory gone."""
    key = itemgetter("setting", "task", "seed")
    fresh = {key(row) for row in new}
    rows = [row for row in old if key(row) not in fresh] + new
    return sorted(rows, key=lambda row: natural(Path(*key(row))))


def natural(path):
    return [(float(x), "") if x.replace(".", "").isdigit() else (math.inf, x)
            for part in path.parts for x in part.split("-")]  # fmt: skip


def curve(episodes, metrics, total):
    """Return, KL and its coefficient in every hundredth of a run of total steps."""
    points = defaultdict(lambda: defaultdict(list))
    for row in episodes:
        i = math.ceil(int(row["global_step"]) * POINTS / total)
        points[i]["return"].append(float(row["episodic_return"]))
    for row in metrics:
        i = math.ceil(int(row["global_step"]) * POINTS / total)
        if "final_kl" in row:
            points[i]["kl"].append(float(row["final_kl"]))
            points[i]["kl_coef"].append(float(row.get("kl_coef") or "nan"))
    for i in sorted(points):
        x = points[i]
        mean = {k: number(np.mean(x[k])) for k in ("return", "kl") if x[k]}
        if x["kl"]:
            mean |= dict(kl_max=number(max(x["kl"])), kl_coef=number(x["kl_coef"][-1]))
        yield dict(step=round(i * total / POINTS)) | mean


def number(x):
    """x as text, short; nothing for what is missing."""
    return "" if x is None or x != x else f"{x:.6g}"


def read(path):
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(path)


def score_table(runs, random, column="score"):
    """{setting: {task: scores in the order of seeds}} of finished and diverged runs."""
    scores = defaultdict(lambda: defaultdict(list))
    for row in runs:
        if row["status"] in ("finished", "diverged"):
            score = float(row[column] or random.get(row["task"], "nan"))
            scores[row["setting"]][row["task"]].append(score)
    return {s: {t: np.array(x) for t, x in sorted(n.items())} for s, n in scores.items()}


def curve_table(curves, column):
    """{(setting, task): (steps [P], values [seeds, P])}, NaN where a run has no value."""
    cells = defaultdict(dict)
    for row in curves:
        value = float(row.get(column) or "nan")
        cells[row["setting"], row["task"]][int(row["step"]), row["seed"]] = value
    table = {}
    for key, cell in cells.items():
        steps, seeds = (sorted({k[i] for k in cell}) for i in (0, 1))
        values = [[cell.get((step, seed), math.nan) for step in steps] for seed in seeds]
        table[key] = np.array(steps), np.array(values)
    return table


def random_policy(episodes=1000):
    """Returns of the untrained policy: actions from N(0, 1), not clipped, as the scripts' are."""
    import gymnasium as gym

    gym.logger.min_level = gym.logger.ERROR
    versions = " ".join(f"{x}={version(x)}" for x in ("gymnasium", "mujoco", "numpy"))
    rows = []
    for task in dict.fromkeys(row["task"] for row in read(HERE / "paper_mujoco.csv")):
        env, rng, scores = gym.make(f"{task}-v4"), np.random.default_rng(0), []
        for episode in range(episodes):
            env.reset(seed=episode)
            score, done = 0.0, False
            while not done:
                action = rng.standard_normal(env.action_space.shape, dtype=np.float32)
                _, reward, terminated, truncated, _ = env.step(action)
                score, done = score + float(reward), terminated or truncated
            scores.append(score)
        row = dict(task=task, env_id=f"{task}-v4", score=number(np.mean(scores)))
        row |= dict(sd=number(np.std(scores, ddof=1)), episodes=episodes)
        row |= dict(command="python benchmark/report.py --random-policy", versions=versions)
        rows.append(row)
    write(HERE / "random_policy.csv", rows)


# ---------------------------------------------------------------------------------- text


def short(x):
    """A number as one reads it."""
    return "" if x != x else f"{x:,.0f}" if abs(x) >= 100 else f"{x:.1f}"


def span(ends, digits=None):
    low, high = (short(x) if digits is None else f"{x:.{digits}f}" for x in ends)
    return f"{low} to {high}" if low else "-"


def has_spread(scores):
    """Three seeds a task: of one a bootstrap has no interval, of two far too short a one."""
    return min(len(x) for n in scores.values() for x in n.values()) > 2


def brackets(ends, firm):
    """An interval, if firm."""
    return f" ({span(ends, 2)})" if firm else ""


def markdown(head, rows):
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def origin(name, runs):
    """How the runs were made, as a list."""
    seeds = sorted({int(r["seed"]) for r in runs})
    seconds = sum(float(r["seconds"] or 0) for r in runs)
    lines = [f"`python benchmark/report.py {name}`"]
    if (HERE / f"{name}.sh").exists():
        lines = [f"`bash benchmark/{name}.sh`, then {lines[0]}"]
    threads = {r["versions"].partition(" threads=")[2] or "1" for r in runs}
    cores = "one core" if threads == {"1"} else f"{' or '.join(sorted(threads))} threads"
    lines += [f"{len(runs)} run{'s' * (len(runs) > 1)}, seeds {', '.join(map(str, seeds))};"
              f" {seconds / 3600:.1f} hours of training in all, {cores} a run"]  # fmt: skip
    lines += [f"command of the first: `{runs[0]['command']}`"]
    for title, column in (("commit", "git_commit"), ("with", "versions"), ("on", "machine")):
        values = sorted({r.get(column) or "not recorded" for r in runs})
        lines += [f"{title} {' / '.join(values)}"]
    lines += ["every run's command, commit, versions, score and time: `runs.csv`;"
              " curves: `curves.csv`"]  # fmt: skip
    return "".join(f"- {line}\n" for line in lines)


def gaps(runs, scores):
    """What is missing or diverged, in words."""
    seeds = max(len(x) for tasks in scores.values() for x in tasks.values())
    tasks = {row["task"] for row in runs}
    missing = {f"{s}/{t}": seeds - len(n.get(t, ())) for s, n in scores.items() for t in tasks}
    missing = [f"{k} ({n})" for k, n in sorted(missing.items()) if n]
    diverged = [
        f"{r['setting']}/{r['task']}/{r['seed']}" for r in runs if r["status"] == "diverged"
    ]
    text = f"Diverged: {', '.join(diverged) or 'none'}."
    return text + (f" **Not finished yet: {', '.join(missing)}.**" if missing else "")


def scores_text(name, runs, scores, random):
    """README of a sweep: one setting with other people's numbers, or several side by side."""
    others = defaultdict(dict)
    for row in read(HERE / "paper_mujoco.csv"):
        others[row["column"]][row["task"]] = row
    others = {c: x for c, x in others.items() if set(x) & {r["task"] for r in runs}}
    text = f"# {TITLES.get(name, f'{name}: score by task')}\n\n"
    if len(scores) > 1:
        label = {s: s for s in scores}
        text += f"{BY_TASK}\n\n{by_task(scores, random, label)}\n"
        if base := BASELINE.get(name):
            text += f"Difference to {base}, in units of what that learned, its score less random's;"
            text += f" in brackets 95%:\n\n{differences_table(runs, base)}\n"
        if any(r.get("kl_mean") for r in runs):
            text += f"KL[pi_old, pi] after an update:\n\n{kl_table(runs, label)}\n"
        scores, others = {}, {}
    for setting, tasks in scores.items():
        head = ["task", "mean", "95% interval", "each seed", *others]
        rows = []
        for task, x in tasks.items():
            seeds = ", ".join(map(short, x))
            row = [task, f"**{short(x.mean())}**", span(t_interval(x)), seeds]
            rows.append(row + [short(float(c.get(task, {}).get("score", "nan"))) for c in
                               others.values()])  # fmt: skip
        text += f"## {setting}\n\n{markdown(head, rows)}\n"
    text += "![learning curves](curves.png)\n\n## How to read it\n\n"
    text += RULES.format(smooth="smoothed over five, " * (name in BASELINE))
    if scores:
        text += "- **95% interval**: Student's t for the mean over seeds, taken as normal; of three"
        text += "\n  seeds it is wide, and it should be.\n"
    for column, rows in others.items():
        source = next(iter(rows.values()))["source"]
        text += f"- **{column}**: {source}.\n"
    gap = gaps(runs, score_table(runs, random))
    return text + f"\n{gap}\n\n## How it was made\n\n{origin(name, runs)}"


def table1_text(name, runs, scores, random):
    """README of table1, or of strict."""
    paper = {row["setting"]: row for row in read(HERE / "paper_table1.csv")}
    label = {s: paper[s]["label"] if s in paper else s for s in scores}
    rng = np.random.default_rng(0)
    means, rows, spans = {}, [], {}
    everything, scores = scores, common_tasks(scores)
    firm = has_spread(scores)
    norm = {by: normalised(scores, random, by) for by in ("run", "setting")}
    whole = common_tasks(score_table(runs, random, "score_all"))
    whole = {s: list(n.values()) for s, n in normalised(whole, random, "run").items()}
    draws = {by: {s: resample(list(n.values()), rng) for s, n in norm[by].items()} for by in norm}
    for s in scores:
        row, diverged = [label[s], paper.get(s, {}).get("score", "")], 0
        for by in norm:
            means[by, s] = np.mean([x.mean() for x in norm[by][s].values()])
            drawn = np.mean([x.mean(-1) for x in draws[by][s]], axis=0)
            spans[by, s] = interval(drawn) if firm else (means[by, s],) * 2
            row.append(f"**{means[by, s]:.2f}**{brackets(spans[by, s], firm)}")
        x, drawn = (
            np.concatenate(list(norm["run"][s].values())),
            np.concatenate(draws["run"][s], -1),
        )
        row.append(f"{iqm(x):.2f}{brackets(interval(iqm(drawn)), firm)}")
        drawn = np.mean([x.mean(-1) for x in resample(whole[s], rng)], axis=0)
        mean = np.mean([x.mean() for x in whole[s]])
        row.append(f"{mean:.2f}{brackets(interval(drawn), firm)}")
        if s == "clip-0.2" or "clip-0.2" not in scores:
            row.append("-")
        else:
            p = improvement(*(scores[k].values() for k in ("clip-0.2", s)))
            ends = interval(improvement(draws["run"]["clip-0.2"], draws["run"][s]))
            row.append(f"{p:.2f}{brackets(ends, firm)}")
        diverged = sum(r["setting"] == s and r["status"] == "diverged" for r in runs)
        rows.append([*row, len(x), diverged])
    head = ["objective", "paper", "ours, best run = 1", "ours, best setting = 1", "IQM",
            "all of training", "P(0.2 beats it)", "runs", "diverged"]  # fmt: skip
    families = "![learning curves by family](families.png)\n\n" * (name == "table1")
    text = f"""# {TITLES[name]}

{in_words(paper, label, means, spans, firm)}
{unfinished(everything, scores)}{markdown(head, rows)}
![scores](scores.png)

## By task

{BY_TASK}

{by_task(everything, random, label)}
![learning curves](curves.png)

{families}## Is 0.2 still the choice on a task that did not choose it?

Each task is held out in turn; the setting is chosen by the mean normalised score on the others.

{held_out(norm["run"], label)}
## Does the KL do what the objective says?

KL is KL[pi_old, pi] over the whole batch after the update, the d of section 4. On target:
share of the iterations in which the rule of section 4 left beta alone, d_targ/1.5 <= KL <=
1.5 d_targ. Nothing bounds the KL of the first row. Clipping takes away the incentive to
leave the interval and no more, so what KL it comes to has to be measured.

{kl_table(runs, label)}
![KL](kl.png)

![beta](beta.png)

## How to read it

{RULES.format(smooth="smoothed over five, ")}\
- **Normalised**: random policy 0, best result 1, on each task; mean over tasks and seeds. The
  paper does not say what the best result is: we show both readings, the best run of all on the
  task, and the best setting's mean. The random policy is the untrained one, actions from N(0, 1),
  not clipped (`benchmark/random_policy.csv`).
- **In brackets**, from three seeds of every task on: 95% percentile interval of a bootstrap
  stratified by task, {RESAMPLES:,} resamples of the seeds of each task; normalisation held fixed.
  It knows of no other tasks, and understates the spread of three seeds.
- **IQM**: mean of the middle half of the setting's runs, best run = 1.
- **All of training**: the score of a run is the mean return of all its episodes, as in the first
  metric of section 6.4, which favours fast learning; best run = 1.
- **P(0.2 beats it)**: probability that a run with epsilon = 0.2 scores more than one of this row
  on the same task, mean over tasks, ties half; 0.5 means no difference.

{gaps(runs, scores)}

## How it was made

"""
    return text + origin(name, runs)


def common_tasks(scores):
    """scores of the tasks that every setting has, so that means are of the same tasks."""
    tasks = set.intersection(*map(set, scores.values()))
    return {s: {t: x for t, x in n.items() if t in tasks} for s, n in scores.items()}


def unfinished(everything, common):
    """What the means leave out, and how many seeds they are of."""
    tasks = {t for n in everything.values() for t in n}
    there = next(iter(common.values()))
    seeds = {len(x) for n in common.values() for x in n.values()}
    if len(there) == len(tasks) and len(seeds) == 1:
        return ""
    text = f"**Unfinished.** Means are of the {len(there)} tasks that every row has"
    text += f" ({', '.join(there)}), with {min(seeds)} to {max(seeds)} seeds.\n\n"
    return text.replace("with 1 to 1 seeds", "one seed each")


def atari_text(runs):
    """README of atari: Table 6, of the games and seeds that there are."""
    paper = {row["game"]: row for row in read(HERE / "paper_atari.csv")}
    paper = {g: {k: float(row[k]) for k in ("ppo", "a2c", "acer", "random", "human")}
             for g, row in paper.items()}  # fmt: skip
    done = [r for r in runs if r["status"] in ("finished", "diverged") and r["task"] in paper]
    ours = {m: {g: np.array([float(r[m] or p["random"]) for r in done if r["task"] == g])
                for g, p in paper.items()} for m in ("score", "score_all")}  # fmt: skip
    games = [g for g in paper if len(ours["score"][g])]
    begun = [f"{r['task']} seed {r['seed']}, {short(float(r['score']))} after"
             f" {float(r['global_step']) / 1e6:.1f}M steps" for r in runs
             if r["status"] == "interrupted" and r["score"]]  # fmt: skip
    begun = f"\n**Not finished yet, and not counted: {'; '.join(begun)}.**\n" if begun else ""
    if diverged := [f"{r['task']} seed {r['seed']}" for r in done if r["status"] == "diverged"]:
        begun += "\nDiverged, and counted with the games that ended before: "
        begun += f"{'; '.join(diverged)}.\n"
    rows = []
    for g, p in paper.items():
        cells = [g]
        for metric in ours:
            x = ours[metric][g]
            error = f" ± {short(np.std(x, ddof=1) / math.sqrt(len(x)))}" if len(x) > 1 else ""
            cells.append(f"{short(x.mean())}{error}" if len(x) else "missing")
        cells += [len(ours["score"][g]) or "", *(f"{p[k]:,.1f}" for k in ("ppo", "a2c", "acer"))]
        rows.append(cells)
    head = ["game", "ours, last 100 episodes", "ours, all of training", "seeds",
            "paper: PPO", "A2C", "ACER"]  # fmt: skip
    return f"""# Atari: Table 6 of the paper

{len(games)} of {len(paper)} games. After ±: standard error over seeds. Last 100 episodes of a run
is the paper's metric 2, printed in its Table 6; all of training is its metric 1, whose numbers by
game it does not print.
{begun}
{markdown(head, rows)}
![learning curves](curves.png)

## Human-normalised

Random play 0, a human 1, on the {len(games)} games that we have; 95% intervals from a bootstrap
stratified by game, {RESAMPLES:,} resamples of our seeds (no interval where every game has one).

{human_table(games, ours["score"], paper)}
## Who wins

Best of ours, A2C and ACER by the last 100 episodes, and of the paper's PPO, A2C and ACER, on the
same games. Of {RESAMPLES:,} resamples of our seeds, what share has another winner, and in how many
games; the paper's numbers of A2C and ACER have no spread to resample.

{winners_table(games, ours["score"], paper)}
## How it was made

""" + origin("atari", runs)


def human_table(games, scores, paper):
    def human(game, x):
        p = paper[game]
        return (x - p["random"]) / (p["human"] - p["random"])

    rng = np.random.default_rng(0)
    drawn = resample([human(g, scores[g]) for g in games], rng)
    drawn = np.stack([x.mean(-1) for x in drawn], -1)
    columns = {"ours": np.array([human(g, scores[g]).mean() for g in games])}
    columns |= {k: np.array([human(g, paper[g][k]) for g in games]) for k in ("ppo", "a2c", "acer")}
    seeds = max(len(scores[g]) for g in games)
    rows = []
    for name, statistic in (("median", lambda x: np.median(x, -1)), ("mean", lambda x: x.mean(-1)),
                            ("IQM", iqm)):  # fmt: skip
        row = [name, *(f"{statistic(x):.3f}" for x in columns.values())]
        row[1] = f"**{row[1]}**" + (
            f" ({span(interval(statistic(drawn)), 3)})" if seeds > 1 else ""
        )
        rows.append(row)
    return markdown(["", "ours", "paper: PPO", "A2C", "ACER"], rows)


def winners_table(games, scores, paper):
    def wins(ppo):
        """[..., 3]: games won by PPO, A2C, ACER, a tie shared; and who, [..., games, 3]."""
        rivals = np.array([[paper[g]["a2c"], paper[g]["acer"]] for g in games])
        x = np.concatenate([ppo[..., None], np.broadcast_to(rivals, (*ppo.shape, 2))], -1)
        best = x == x.max(-1, keepdims=True)
        return (best / best.sum(-1, keepdims=True)).sum(-2), best

    ours, who = wins(np.array([scores[g].mean() for g in games]))
    theirs, _ = wins(np.array([paper[g]["ppo"] for g in games]))
    rng = np.random.default_rng(0)
    drawn = np.stack([x.mean(-1) for x in resample([scores[g] for g in games], rng)], -1)
    flipped = (wins(drawn)[1] != who).any(-1).sum(-1)
    flips = f"{(flipped > 0).mean():.0%}; {flipped.mean():.1f} games in the mean"
    rows = [["ours", *(f"{x:g}" for x in ours.round(2)), flips],
            ["paper", *(f"{x:g}" for x in theirs.round(2)), ""]]  # fmt: skip
    return markdown(["PPO is", "PPO wins", "A2C", "ACER", "other winners when resampled"], rows)


def in_words(paper, label, means, spans, firm):
    """What reproduces and what does not, from the numbers."""
    ours = {s: means["run", s] for s in label}
    order, rows = sorted(ours, key=ours.get, reverse=True), [s for s in label if s in paper]
    words = [f"Best here is **{label[order[0]]}** ({ours[order[0]]:.2f}), last"
             f" **{label[order[-1]]}** ({ours[order[-1]]:.2f})."]  # fmt: skip
    if "clip-0.2" in ours:
        place = order.index("clip-0.2") + 1
        words.append(f"The paper's best, epsilon = 0.2, is number {place} of {len(order)} here.")
    if "clip-0.2" in ours and firm:
        below, above = (
            "; ".join(
                label[s] for s in ours if apart(spans["run", s], spans["run", "clip-0.2"]) == x
            )
            for x in (-1, 1)
        )
        words.append(f"Rows whose whole interval lies below that of epsilon = 0.2:"
                     f" {below or 'none'}; above it: {above or 'none'}.")  # fmt: skip
    if len(rows) > 2:
        a, b = ranks([ours[s] for s in rows]), ranks([float(paper[s]["score"]) for s in rows])
        rho = np.corrcoef(a, b)[0, 1] if a.std() and b.std() else math.nan
        words.append(f"Rank correlation with the paper's column (Spearman): {rho:.2f}.")
    for by in ("run", "setting"):
        low, high = (
            [label[s] for s in rows if side(float(paper[s]["score"]), spans[by, s]) == x]
            for x in (-1, 1)
        )
        held = [label[s] for s in rows if label[s] not in low + high]
        parts = [f"{where} {'all' if len(x) == len(rows) else len(x)} rows"
                 + f" ({'; '.join(x)})" * (len(x) < len(rows))
                 for where, x in (("above the paper's number in", low), ("below it in", high),
                                  ("about it, by the interval, in", held)) if x]  # fmt: skip
        words.append(f"With best {by} = 1, ours is {', '.join(parts)}.")
    return "".join(f"- {x}\n" for x in words)


def apart(a, b):
    """-1, 0, 1: interval a lies below, touches, lies above b."""
    return int(a[0] > b[1]) - int(a[1] < b[0])


def side(x, ends):
    """-1, 0, 1: x lies below, in, above the interval."""
    return int(x > ends[1]) - int(x < ends[0])


def by_task(scores, random, label):
    tasks = sorted({t for n in scores.values() for t in n})
    rows = [["random policy", *(short(random.get(t, math.nan)) for t in tasks)]]
    rows = rows if set(tasks) & set(random) else []
    for s, n in scores.items():
        cells = [f"{short(n[t].mean())}" if t in n else "-" for t in tasks]
        cells = [f"{cell}<br>{span((n[t].min(), n[t].max()))}" if len(n.get(t, ())) > 1 else cell
                 for cell, t in zip(cells, tasks)]  # fmt: skip
        rows.append([label[s], *cells])
    return markdown(["objective", *tasks], rows)


def difference(x_tasks, y_tasks, random):
    """By how much x exceeds y on each task, in units of what y learned, y's mean less random's.

    Also the mean over tasks and its 95% t interval, with one spread for all tasks and settings in
    those units; NaN where no task has two seeds."""
    gain = np.array([y.mean() - r for y, r in zip(y_tasks, random)])
    each = np.array([x.mean() - y.mean() for x, y in zip(x_tasks, y_tasks)]) / gain
    sides = list(zip([*x_tasks, *y_tasks], [*gain, *gain]))
    free = sum(len(x) - 1 for x, _ in sides)
    if not free:
        return each, each.mean(), (math.nan, math.nan)
    spread = math.sqrt(sum(len(x) * np.var(x) / g**2 for x, g in sides) / free)
    half = t_quantile(free) * spread * math.sqrt(sum(1 / len(x) for x, _ in sides)) / len(gain)
    return each, each.mean(), (each.mean() - half, each.mean() + half)


def differences_table(runs, base):
    """Every setting against base, on the Atari games that both have."""
    random = {row["game"]: float(row["random"]) for row in read(HERE / "paper_atari.csv")}
    by_column = {c: score_table(runs, random, c) for c in ("score", "score_all")}
    rows = []
    for setting, tasks in by_column["score"].items():
        games = [g for g in tasks if g in by_column["score"][base]]
        if setting == base or not games:
            continue
        cells = [[f"{setting}, {g}", len(tasks[g])] for g in games] + [[f"**{setting}, mean**", ""]]
        for scores in by_column.values():
            x, y = ([scores[s][g] for g in games] for s in (setting, base))
            each, mean, ends = difference(x, y, [random[g] for g in games])
            low, mean, high = (f"{d:+.1%}" for d in (ends[0], mean, ends[1]))
            text = mean if "nan" in low else f"**{mean}** ({low} to {high})"
            for row, cell in zip(cells, [*(f"{d:+.1%}" for d in each), text]):
                row.append(cell)
        rows += cells
    return markdown(["", "seeds", "last 100 episodes", "all of training"], rows)


def held_out(norm, label):
    head = ["held out", "chosen on the others", "its mean there", "0.2 there",
            "chosen one on the held-out task", "0.2 on it"]  # fmt: skip
    rows = []
    for task, best, mean, mean02 in leave_one_out(norm):
        there = [norm[s][task].mean() if task in norm.get(s, {}) else math.nan
                 for s in (best, "clip-0.2")]  # fmt: skip
        rows.append([task, label[best], *(f"{x:.2f}" for x in (mean, mean02, *there))])
    kept = sum(row[1] == label.get("clip-0.2") for row in rows)
    return markdown(head, rows) + f"\nepsilon = 0.2 is chosen in {kept} of {len(rows)} cases.\n"


def kl_table(runs, label):
    rows = []
    for s in label:
        mine = [r for r in runs if r["setting"] == s and r["status"] != "interrupted"]
        mine = [r for r in mine if r.get("kl_mean")]
        mean, top = (np.array([float(r[k]) for r in mine]) for k in ("kl_mean", "kl_max"))
        held = [float(r["kl_held"]) for r in mine if r.get("kl_held")]
        if mine:
            held = f"{np.mean(held):.0%}" if held else ""
            rows.append([label[s], *(short(x) if x >= 100 else f"{x:.3g}"
                           for x in (np.median(mean), mean.max(), top.max())), held])  # fmt: skip
    head = ["objective", "mean KL of a run, median", "highest of a run", "highest of an update",
            "on target"]  # fmt: skip
    width = len(head) - (not any(row[-1] for row in rows))
    return markdown(head[:width], [row[:width] for row in rows])


# ---------------------------------------------------------------------------------- pictures

CYCLE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]  # Okabe, Ito
STYLE = {  # a hue and a dash for each family, darker for more of its parameter
    "no-clip": ("#000000", "-"),
    "clip-0.1": ("#79BDEB", "-"),
    "clip-0.2": ("#0072B2", "-"),
    "clip-0.3": ("#00304D", "-"),
    "adaptive-kl-0.003": ("#F3B562", "--"),
    "adaptive-kl-0.01": ("#D97700", "--"),
    "adaptive-kl-0.03": ("#7A3B00", "--"),
    "fixed-kl-0.3": ("#E8A9CC", ":"),
    "fixed-kl-1": ("#CC6FA3", ":"),
    "fixed-kl-3": ("#943A6C", ":"),
    "fixed-kl-10": ("#4B1233", ":"),
}
FAMILIES = {"no-clip": "no clipping", "clip": "clipping", "adaptive-kl": "adaptive KL",
            "fixed-kl": "fixed KL"}  # fmt: skip


def pyplot():
    try:
        import matplotlib
    except ImportError:
        sys.exit("matplotlib is missing: pip install -r benchmark/requirements.txt")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({
        "figure.constrained_layout.use": True, "figure.facecolor": "white", "savefig.dpi": 110,
        "font.size": 10, "axes.grid": True, "grid.color": "#E6E6E6", "axes.spines.top": False,
        "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
    })  # fmt: skip
    return plt


def save(plt, figure, path):
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    print(path)


def style(settings):
    """{setting: (colour, dash)}."""
    dashes = "-", "--", ":"
    return {s: STYLE.get(s, (CYCLE[i % 7], dashes[i // 7 % 3])) for i, s in enumerate(settings)}


def family(setting):
    return setting.rsplit("-", 1)[0] if setting != "no-clip" else setting


def smooth(values, width):
    """Running mean over the last axis, of what there is: NaN only where there is nothing."""
    kernel, known = np.ones(width), ~np.isnan(values)
    total, count = (np.apply_along_axis(np.convolve, -1, x, kernel, "same")
                    for x in (np.where(known, values, 0), known.astype(float)))  # fmt: skip
    return np.divide(total, count, out=np.full_like(total, math.nan), where=count > 0.5)


def mean_band(values, low=0.0, high=1.0):
    """Mean over the first axis, and quantiles; NaN where there is nothing."""
    with np.errstate(all="ignore"):
        some = ~np.isnan(values).all(0)
        out = np.full((3, values.shape[1]), math.nan)
        out[0, some] = np.nanmean(values[:, some], 0)
        out[1:, some] = np.nanquantile(values[:, some], [low, high], 0)
    return out


def curves_panel(ax, table, task, settings, styles, random, width, shade, levels=()):
    """Return against steps on one task: mean over seeds, from the lowest to the highest."""
    tops, bottoms = list(levels), []
    for s in (s for s in settings if (s, task) in table):
        steps, values = table[s, task]
        mean, low, high = mean_band(smooth(values, width))
        colour, dash = styles[s]
        ax.fill_between(steps / 1e6, low, high, color=colour, alpha=shade, linewidth=0)
        ax.plot(steps / 1e6, mean, dash, color=colour, linewidth=2.2 if s == "clip-0.2" else 1.3)
        tops.append(np.nanmax(high))
        bottoms.append(np.nanmin(low))
    if not bottoms:
        return
    top = max(tops)
    floor = random.get(task, -math.inf) - (top - random.get(task, 0))
    if min(bottoms) < floor:  # else one that collapsed would flatten all others
        ax.set_ylim(floor, top + 0.05 * (top - floor))
        box = dict(facecolor="white", alpha=0.85, edgecolor="none", pad=1.5)
        ax.text(0.02, 0.03, f"lowest: {min(bottoms):,.0f}", transform=ax.transAxes, bbox=box)


def curves_picture(plt, path, curves, settings, random, lines, width):
    """Learning curves of all settings, a panel a task; lines go across, {look: {task: score}}."""
    table, styles = curve_table(curves, "return"), style(settings)
    tasks = sorted({task for _, task in table})
    columns = min(4, len(tasks) + 1) if len(tasks) % 4 else 3  # the legend has a panel, no row
    count = math.ceil((len(tasks) + 1) / columns)
    figure, axes = plt.subplots(count, columns, figsize=(3.4 * columns, 2.9 * count), squeeze=False)
    shade = 0.12 if len(settings) < 4 else 0.06
    for i, (ax, task) in enumerate(zip(axes.flat, tasks)):
        levels = [x[task] for x in lines.values() if task in x]
        curves_panel(ax, table, task, settings, styles, random, width, shade, levels)
        for (_, colour, dash), x in lines.items():
            if task in x:
                ax.axhline(x[task], color=colour, linestyle=dash)
        ax.set_title(task, fontsize=11)
        ax.set_xlabel("million steps" if i + columns >= len(tasks) else "")
    for ax in axes.flat[len(tasks) :]:
        ax.axis("off")
    for ax in axes[:, 0]:
        ax.set_ylabel("return of an episode")
    handles = [plt.Line2D([], [], color=c, linestyle=d, label=s) for s, (c, d) in styles.items()]
    handles += [plt.Line2D([], [], color=c, linestyle=d, label=n) for n, c, d in lines]
    axes.flat[len(tasks)].legend(handles=handles, loc="center", fontsize=9)
    save(plt, figure, path)


def games_picture(plt, path, curves):
    """Table 6 as 49 panels: our learning curve, the paper's last 100 episodes as a line."""
    paper, table = read(HERE / "paper_atari.csv"), curve_table(curves, "return")
    figure, axes = plt.subplots(7, 7, figsize=(15, 14))
    for ax, row in zip(axes.flat, paper):
        found = [x for (_, task), x in table.items() if task == row["game"]]
        for steps, values in found:
            mean, low, high = mean_band(smooth(values, 3))
            ax.fill_between(steps / 1e6, low, high, color=CYCLE[0], alpha=0.2, linewidth=0)
            ax.plot(steps / 1e6, mean, color=CYCLE[0])
        ax.axhline(float(row["ppo"]), color="#000000", linestyle="--", linewidth=1)
        ax.set_xlim(0, 10)
        if not found:
            ax.text(0.5, 0.5, "missing", transform=ax.transAxes, ha="center", va="bottom",
                    color="#777777")  # fmt: skip
        ax.set_title(row["game"], fontsize=9)
        ax.tick_params(labelsize=7)
        ax.yaxis.set_major_formatter("{x:,g}")
    for ax in axes[-1]:
        ax.set_xlabel("million steps", fontsize=8)
    handles = [plt.Line2D([], [], color=CYCLE[0], label="ours: mean, lowest and highest seed"),
               plt.Line2D([], [], color="#000000", linestyle="--", linewidth=1,
                          label="paper: PPO, last 100 episodes at 10M steps")]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    save(plt, figure, path)


def families_picture(plt, path, curves, settings, random, width):
    """The same, a row a family, no clipping and epsilon = 0.2 in every row."""
    table, styles = curve_table(curves, "return"), style(settings)
    tasks = sorted({task for _, task in table})
    figure, axes = plt.subplots(3, len(tasks), figsize=(2.5 * len(tasks) + 1.6, 7.2),
                                sharex=True, squeeze=False)  # fmt: skip
    for row, name in zip(axes, ("clip", "adaptive-kl", "fixed-kl")):
        shown = [s for s in settings if family(s) == name or s in ("no-clip", "clip-0.2")]
        for ax, task in zip(row, tasks):
            curves_panel(ax, table, task, shown, styles, random, width, 0.14)
            ax.tick_params(labelsize=8)
        row[0].set_ylabel(f"{FAMILIES[name]}\nreturn of an episode")
        handles = [plt.Line2D([], [], color=c, linestyle=d, label=s)
                   for s, (c, d) in styles.items() if s in shown]  # fmt: skip
        row[-1].legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    for top, bottom, task in zip(axes[0], axes[-1], tasks):
        top.set_title(task, fontsize=10)
        bottom.set_xlabel("million steps")
    save(plt, figure, path)


def scores_picture(plt, path, scores, random):
    """Table 1 as dots: ours by both readings with intervals, and the paper's."""
    paper = {row["setting"]: row for row in read(HERE / "paper_table1.csv")}
    rng, settings = np.random.default_rng(0), list(scores)
    figure, ax = plt.subplots(figsize=(8, 0.42 * len(settings) + 1.3))
    for by, colour, shift in (("run", "#0072B2", -0.16), ("setting", "#E69F00", 0.16)):
        norm = normalised(scores, random, by)
        for i, s in enumerate(settings):
            tasks = list(norm[s].values())
            ends = interval(np.mean([x.mean(-1) for x in resample(tasks, rng)], axis=0))
            if has_spread(scores):
                ax.plot(ends, [i + shift] * 2, color=colour, linewidth=2)
            ax.plot(np.mean([x.mean() for x in tasks]), i + shift, "o", color=colour)
        ax.plot([], [], "o-", color=colour, label=f"ours, best {by} = 1")
    known = [(float(paper[s]["score"]), i) for i, s in enumerate(settings) if s in paper]
    ax.plot(*zip(*known), "kD", markersize=5, linestyle="none", label="paper")
    ax.set_yticks(range(len(settings)), [paper[s]["label"] if s in paper else s for s in settings])
    ax.invert_yaxis()
    ax.set_xlabel("mean normalised score (random policy 0, best result 1)")
    figure.legend(loc="outside upper center", ncols=3)
    save(plt, figure, path)


def kl_picture(plt, path, curves, settings):
    """KL after the update against steps, a panel a family, all tasks and seeds pooled."""
    table, styles = curve_table(curves, "kl"), style(settings)
    figure, axes = plt.subplots(1, 4, figsize=(13.6, 3.6), sharey=True)
    for ax, (name, title) in zip(axes, FAMILIES.items()):
        for s in (s for s in settings if family(s) == name):
            found = [x for (setting, _), x in table.items() if setting == s]
            steps = sorted({step for x, _ in found for step in x})
            pooled = np.full((sum(len(v) for _, v in found), len(steps)), math.nan)
            row = 0
            for x, values in found:
                pooled[row : row + len(values), np.searchsorted(steps, x)] = values
                row += len(values)
            _, low, high = mean_band(pooled, 0.1, 0.9)
            _, middle, _ = mean_band(pooled, 0.5, 0.5)
            colour, dash = styles[s]
            some = ~np.isnan(middle)  # a short run has fewer updates than points
            x, low, middle, high = np.array([steps, low, middle, high])[:, some]
            ax.fill_between(x / 1e6, low, high, color=colour, alpha=0.12, linewidth=0)
            label = s.removeprefix(name + "-") if s != name else "median"
            ax.plot(x / 1e6, middle, dash if name != "fixed-kl" else "-", color=colour, label=label)
            if name == "adaptive-kl":
                ax.axhline(float(label), color=colour, linewidth=0.8)
        ax.set(title=title, yscale="log", xlabel="million steps")
        if ax.lines and name != "no-clip":
            kind = {"clip": "epsilon", "adaptive-kl": "d_targ (thin line)", "fixed-kl": "beta"}
            ax.legend(title=kind[name], ncols=4, loc="upper center", columnspacing=1,
                      handlelength=1.4)  # fmt: skip
    axes[0].set_ylabel("KL[pi_old, pi] after the update")
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, high * (high / low) ** 0.25)  # room for the legends
    save(plt, figure, path)


def beta_picture(plt, path, curves, settings):
    """Of every adaptive setting, beta and KL / d_targ against steps, a line a task."""
    adaptive = [s for s in settings if family(s) == "adaptive-kl"]
    beta, kl = curve_table(curves, "kl_coef"), curve_table(curves, "kl")
    tasks = sorted({task for s, task in beta if s in adaptive})
    figure, axes = plt.subplots(2, len(adaptive), figsize=(4.2 * len(adaptive) + 1, 6),
                                sharex=True, sharey="row", squeeze=False)  # fmt: skip
    dashes = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))]
    for column, s in enumerate(adaptive):
        target = float(s.rsplit("-", 1)[1])
        for i, task in enumerate(t for t in tasks if (s, t) in beta):
            look = dict(color=CYCLE[i % 7], linestyle=dashes[i % 7], linewidth=1.4)
            for ax, (x, values) in zip(axes[:, column], (beta[s, task], kl[s, task])):
                with np.errstate(divide="ignore"):
                    mean = np.exp(mean_band(smooth(np.log(values), 3))[0])
                label = task if column == 0 and ax is axes[0, 0] else None
                scale = 1 if ax is axes[0, column] else target
                ax.plot(x / 1e6, mean / scale, label=label, **look)
        axes[0, column].set_title(f"d_targ = {target:g}")
        axes[1, column].axhspan(1 / 1.5, 1.5, color="#E4E4E4", zorder=0)
        axes[1, column].set_xlabel("million steps")
        for ax in axes[:, column]:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
    low, high = axes[1, 0].get_ylim()
    axes[1, 0].set_ylim(min(low, 0.1), max(high, 10))
    axes[0, 0].set_ylabel("beta")
    axes[1, 0].set_ylabel("KL / d_targ (grey: beta stays)")
    figure.legend(loc="outside right center")
    save(plt, figure, path)


# ---------------------------------------------------------------------------------- command line


def report(name, out):
    """README.md and pictures in out from its runs.csv and curves.csv."""
    runs, curves = read(out / "runs.csv"), read(out / "curves.csv")
    random = {row["task"]: float(row["score"]) for row in read(HERE / "random_policy.csv")}
    scores = score_table(runs, random)
    if not scores:
        return f"{out / 'runs.csv'}: no finished run"
    if name in TABLE1 and (unknown := {r["task"] for r in runs} - set(random)):
        return f"benchmark/random_policy.csv: lacks {', '.join(sorted(unknown))}"
    notes = out / "notes.md"  # what a person found out, if there is such a file
    notes = "\n" + notes.read_text() if notes.exists() else ""
    if name == "atari":
        games_picture(pyplot(), out / "curves.png", curves)
        (out / "README.md").write_text(atari_text(runs) + notes)
        print(out / "README.md")
        return None
    order = [s for s in STYLE if s in scores]
    sweep = HERE / f"{name}.sh"
    place = sweep.read_text().find if sweep.exists() else lambda _: 0
    order += sorted((s for s in scores if s not in STYLE), key=lambda s: place(f'"{s} '))
    scores = {s: scores[s] for s in order}
    plt, lines = pyplot(), {}
    if name in TABLE1:
        text, width = table1_text(name, runs, scores, random), 5
        scores_picture(plt, out / "scores.png", common_tasks(scores), random)
        kl_picture(plt, out / "kl.png", curves, order)
        if any(family(s) == "adaptive-kl" for s in order):
            beta_picture(plt, out / "beta.png", curves, order)
        if name == "table1":
            families_picture(plt, out / "families.png", curves, order, random, width)
    else:
        text, width = scores_text(name, runs, scores, random), 5 if name in BASELINE else 1
        looks = {"paper, Fig. 3": ("#000000", "--"), "openai/baselines ppo2": ("#D55E00", ":")}
        for row in read(HERE / "paper_mujoco.csv"):
            key = row["column"], *looks[row["column"]]
            lines.setdefault(key, {})[row["task"]] = float(row["score"])
        tasks = {r["task"] for r in runs}
        lines = {k: x for k, x in lines.items() if set(x) & tasks}
    curves_picture(plt, out / "curves.png", curves, order, random, lines, width)
    (out / "README.md").write_text(text + notes)
    print(out / "README.md")
    return None


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="of the sweep: mujoco, table1, ...")
    parser.add_argument("--from-csv", action="store_true", help="do not look for run directories")
    parser.add_argument("--runs", type=Path, help="default: runs/NAME")
    parser.add_argument("--out", type=Path, help="default: benchmark/results/NAME")
    parser.add_argument("--random-policy", action="store_true", help="measure the random policy")
    args = parser.parse_args()
    if args.random_policy:
        return random_policy()
    if not args.name:
        parser.error("NAME of a sweep, or --random-policy")
    folder = args.runs or HERE.parent / "runs" / args.name
    out = args.out or HERE / "results" / args.name
    if not args.from_csv and folder.is_dir():
        runs, curves = collect(folder)
        if not runs:
            return f"{folder}: no SETTING/TASK/SEED/args.json in it"
        write(out / "runs.csv", merged(read(out / "runs.csv"), runs))
        write(out / "curves.csv", merged(read(out / "curves.csv"), curves))
    elif not (out / "runs.csv").exists():
        return f"neither {folder} nor {out / 'runs.csv'} is there"
    return report(args.name, out)


if __name__ == "__main__":
    sys.exit(main())
