"""What bfloat16 changes in the gradients of ppo_atari.py: both precisions on the same minibatches.

    python benchmark/rounding.py --env-id Breakout --total-timesteps 400000 --no-cuda \
        --run-dir runs/rounding/Breakout/1
    python benchmark/rounding.py

The first trains by ppo_atari.py, whose flags it takes, in float32. In some twenty iterations of the
run each gradient is computed as by --bf16, too, at the same weights, on the same minibatch. What it
differs by goes to rounding.csv in the run directory, and changes nothing in the run. The second
collects all such runs in benchmark/results/bfloat16/rounding.csv and makes its gradients.md, a
section of the page that report.py makes.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from report import table  # noqa: E402

import ppo_atari  # noqa: E402

PROBES = 20
MEANS = "KL, float32", "KL, bfloat16", "clipped share, float32", "clipped share, bfloat16"


class Kept:
    """Stands in for Adam: leaves the weights as they are."""

    def step(self, learning_rate):
        pass


class Probe:
    """Stands in for ppo_atari.update, and looks at every gradient of some iterations."""

    def __init__(self, update):
        self.update = update

    def __call__(self, agent, adam, args, learning_rate, clip_coef, *minibatch):
        per_epoch = args.batch_size // args.minibatch_size
        iteration, number = divmod(int(adam.t), args.update_epochs * per_epoch)
        if iteration % max(1, args.num_iterations // PROBES) == 0:
            if number == 0:
                self.seen = []
            both = [replace(args, bf16=x) for x in (False, True)]
            self.seen.append([self.gradient(agent, x, clip_coef, minibatch) for x in both])
            if number == args.update_epochs * per_epoch - 1:
                step, path = iteration * args.batch_size, Path(args.run_dir) / "rounding.csv"
                rows = pd.DataFrame(compared(agent, self.seen, per_epoch))
                rows.insert(0, "global_step", step)
                if path.exists():
                    known = pd.read_csv(path)
                    rows = pd.concat([known[known["global_step"] < step], rows])
                rows.to_csv(path, index=False)
        return self.update(agent, adam, args, learning_rate, clip_coef, *minibatch)

    def gradient(self, agent, args, clip_coef, minibatch):
        """The gradient by parameter, and METRICS by name."""
        args = replace(args, max_grad_norm=None)  # its gradients are not cut in place
        metrics = self.update(agent, Kept(), args, 0.0, clip_coef, *minibatch)
        gradients = [p.grad.clone() for p in agent.parameters()]
        return gradients, dict(zip(ppo_atari.METRICS, metrics.tolist()))


def moments(g, h):
    """Of g, h [K, M, D], D parameters in M minibatches of K epochs: the mean over minibatches of
    <g, h>, and of <g, h'> where h' is of another minibatch of the epoch."""
    same, both = (g * h).sum((1, 2)), (g.sum(1) * h.sum(1)).sum(1)
    M = g.shape[1]
    return (same / M).mean().item(), ((both - same) / (M * (M - 1))).mean().item()


def compared(agent, seen, per_epoch):
    """A row of squared lengths for each layer, and for all of them together, with metrics."""
    layers, rows = {}, []
    for i, (name, _) in enumerate(agent.named_parameters()):
        layers.setdefault(name.rpartition(".")[0], []).append(i)
    for layer, places in layers.items():
        exact, rounded = (
            torch.stack([torch.cat([g[i].flatten() for i in places]) for g, _ in gradients])
            .unflatten(0, (-1, per_epoch)).double() for gradients in zip(*seen)
        )  # fmt: skip
        error = rounded - exact
        row = {"layer": layer}
        row["gradient"], row["gradient_common"] = moments(exact, exact)
        row["error"], row["error_common"] = moments(error, error)
        row["along"], _ = moments(error, exact)
        rows.append(row)
    total = {name: sum(row[name] for row in rows) for name in rows[0] if name != "layer"}
    total = {"layer": "all"} | total
    for name in ("kl", "clip_fraction"):
        exact, rounded = (np.mean([m[name] for _, m in metrics]) for metrics in zip(*seen))
        total |= {name: exact, f"{name}_bf16": rounded}
    return [*rows, total]


def summary(rows):
    """What became of the gradient over all probes of a run, from its rows of all layers together.

    rows: DataFrame of rounding.csv; a Series of shares, and of KL and clipped share in either
    precision.
    """
    late = rows[rows["global_step"] > 0.9 * rows["global_step"].max()]
    total, end = rows.sum(numeric_only=True), late.sum(numeric_only=True)
    # the variance between minibatches, summed over parameters
    noise, noise_end = (x["gradient"] - x["gradient_common"] for x in (total, end))
    shares = {
        "error / gradient": (total["error"] / total["gradient"]) ** 0.5,
        "longer by": total["along"] / total["gradient"],
        "error / noise": total["error"] / noise,
        "last tenth": end["error"] / noise_end,
        "common / noise": max(0, total["error_common"]) / noise,
    }
    means = rows[["kl", "kl_bf16", "clip_fraction", "clip_fraction_bf16"]].mean()
    return pd.Series(shares | means.to_dict())


def main():
    if flags := set(sys.argv[1:]):
        graphs = torch.cuda.is_available() and not flags & {"--no-cuda", "--no-compile"}
        if graphs or "--bf16" in flags:
            print("rounding.py: not with --bf16, nor CUDA graphs: --no-compile", file=sys.stderr)
            return 2
        ppo_atari.update = Probe(ppo_atari.update)
        return ppo_atari.main(ppo_atari.train, ppo_atari.Args, ppo_atari.__file__)
    out = HERE / "results" / "bfloat16"
    found = [pd.read_csv(path) for path in [out / "rounding.csv"] if path.exists()]
    for path in sorted((HERE.parent / "runs" / "rounding").glob("*/*/rounding.csv")):
        facts = json.loads((path.parent / "args.json").read_text())
        key = {"task": path.parent.parent.name, "seed": facts["seed"]}
        key |= {"git_commit": facts["git_commit"], "command": " ".join(facts["command"])}
        rows = pd.read_csv(path)
        found.append(pd.DataFrame(key, rows.index).join(rows))
    if not found:
        return "rounding.py: no runs/rounding/GAME/SEED/rounding.csv, and no results either"
    key = ["task", "seed", "global_step", "layer"]
    rows = pd.concat(found).drop_duplicates(key, keep="last")
    rows.to_csv(out / "rounding.csv", index=False, lineterminator="\n")
    runs = rows[rows["layer"] == "all"].groupby("task", sort=False)
    names = list(runs.groups)
    shares = pd.DataFrame([summary(x) for _, x in runs], names)
    first = runs[["command", "git_commit"]].first().astype(str).itertuples()
    commands = [f"- {task}: `python {how}`, commit {commit[:7]}\n" for task, how, commit in first]
    text = f"""## What does bfloat16 change in the gradients?

{table(dict(shares.iloc[:, :5].items()), names, "{:.2%}".format)}
Means over the run:

{table(dict(zip(MEANS, shares.iloc[:, 5:].to_numpy().T)), names, "{:.4g}".format)}
{"".join(commands)}"""
    (out / "gradients.md").write_text(text)
    print(f"{out / 'gradients.md'}: a section of the page that report.py bfloat16 makes")


if __name__ == "__main__":
    sys.exit(main())
