"""What bfloat16 changes in the gradients of ppo_atari.py: both precisions on the same minibatches.

    python benchmark/rounding.py --env-id Breakout --total-timesteps 400000 --no-cuda \
        --run-dir runs/rounding/Breakout/1
    python benchmark/rounding.py

The first trains by ppo_atari.py, whose flags it takes, in float32. In some twenty iterations of the
run each gradient is computed as by --bf16, too, at the same weights, on the same minibatch; what it
differs by goes to rounding.csv in the run directory, and changes nothing in the run. The second
makes tables of all such runs in benchmark/results/rounding/, with its notes.md.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from report import markdown, read, write

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import ppo_atari  # noqa: E402

PROBES = 20


class Kept:
    """Stands in for Adam: keeps the gradients and leaves the weights as they are."""

    def ascend(self, parameters, gradients, *_):
        self.gradients = gradients


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
                known = [row for row in read(path) if int(row["global_step"]) < step]
                rows = compared(agent, self.seen, per_epoch)
                write(path, known + [{"global_step": step} | row for row in rows])
        return self.update(agent, adam, args, learning_rate, clip_coef, *minibatch)

    def gradient(self, agent, args, clip_coef, minibatch):
        """The gradient by parameter, and METRICS by name."""
        kept = Kept()
        metrics = self.update(agent, kept, args, 0.0, clip_coef, *minibatch)
        return kept.gradients, dict(zip(ppo_atari.METRICS, metrics.tolist()))


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


def table(rows):
    """What became of the gradient in each layer, over all probes of a run."""
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        mine = [row for row in rows if row["layer"] == layer]
        g, g_common, e, e_common, along = (
            np.array([float(row[name]) for row in mine])
            for name in ("gradient", "gradient_common", "error", "error_common", "along")
        )
        noise = g - g_common  # the variance between minibatches, summed over parameters
        step = np.array([int(row["global_step"]) for row in mine])
        late = step > 0.9 * step.max()
        lines.append([
            layer, f"{(e.sum() / g.sum()) ** 0.5:.1%}", f"{along.sum() / g.sum():+.2%}",
            f"{e.sum() / noise.sum():.2%}", f"{e[late].sum() / noise[late].sum():.2%}",
            f"{max(0, e_common.sum()) / noise.sum():.2%}",
        ])  # fmt: skip
    head = "layer", "error / gradient", "longer by", "error / noise", "last tenth", "common / noise"
    return markdown(list(head), lines)


def main():
    if flags := set(sys.argv[1:]):
        graphs = torch.cuda.is_available() and not flags & {"--no-cuda", "--no-compile"}
        if graphs or "--bf16" in flags:
            print("rounding.py: not with --bf16, nor CUDA graphs: --no-compile", file=sys.stderr)
            return 2
        ppo_atari.update = Probe(ppo_atari.update)
        return ppo_atari.main()
    out, text = HERE / "results" / "rounding", "# What bfloat16 changes in the gradients\n"
    everything = read(out / "rounding.csv")
    for path in sorted((HERE.parent / "runs" / "rounding").glob("*/*/rounding.csv")):
        facts = json.loads((path.parent / "args.json").read_text())
        key = {"task": path.parent.parent.name, "seed": str(facts["seed"])}
        everything = [row for row in everything if not key.items() <= row.items()]
        key |= {"git_commit": facts["git_commit"], "command": " ".join(facts["command"])}
        everything += [key | row for row in read(path)]
    if not everything:
        return "rounding.py: no runs/rounding/GAME/SEED/rounding.csv, and no results either"
    for task, seed in dict.fromkeys((r["task"], r["seed"]) for r in everything):
        mine = [r for r in everything if (r["task"], r["seed"]) == (task, seed)]
        whole = [r for r in mine if r["layer"] == "all"]
        text += f"\n## {task}, seed {seed}, {len(whole)} iterations of its run\n\n{table(mine)}\n"
        for name in ("kl", "clip_fraction"):
            x, y = (np.mean([float(r[n]) for r in whole]) for n in (name, f"{name}_bf16"))
            text += f"- {name}, mean: {x:.4g} in float32, {y:.4g} in bfloat16\n"
        text += f"- `python {mine[0]['command']}`, commit {mine[0]['git_commit']}\n"
    out.mkdir(exist_ok=True)
    write(out / "rounding.csv", everything)
    notes = out / "notes.md"
    (out / "README.md").write_text(text + ("\n" + notes.read_text() if notes.exists() else ""))
    print(out / "README.md")


if __name__ == "__main__":
    sys.exit(main())
