"""Speed of our scripts beside other people's, or of any Python scripts, as whole processes.

    python benchmark/speed.py --sb3 --cleanrl DIR --peer-python PYTHON --cleanrl-python PYTHON
    python benchmark/speed.py --algorithm trpo --sb3           beside sb3-contrib's TRPO
    python benchmark/speed.py --atari --sb3 --leanrl DIR --cuda
    python benchmark/speed.py --tasks Hopper --steps 102400 \\
        --command "cem=python benchmark/rivals/cem.py --env-id {task} --total-timesteps {steps}" \\
        --command "ppo=python ppo_continuous.py --env-id {task} --total-timesteps {steps}"
    python benchmark/speed.py --from-csv benchmark/results/speed/mujoco.csv

Every run is a fresh process pinned to the same cores; programs alternate. Time is that of the whole
process: imports, compilation (LeanRL's, into an empty cache), training, exit. Memory is the peak of
its largest process. All do the same work: MuJoCo Table 3 of the paper, Atari Table 5, ours also
with --bf16; A2C 16 environments, 5 steps; TRPO 2048 steps. A --command may name {task}, {steps},
{seed}, {cores} and {run}, a run directory whose metrics.csv then says where the time goes.

With --peer-steps the others, with --own-steps ours, run for fewer steps and their time is
extrapolated, and marked so: start-up + steps asked for * marginal. Marginal is the time of a step
from a quarter of the iterations to the last (so that compiling and warming up stay out), start-up
the whole process - steps it ran * marginal.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from launch import cores, git_commit, machine
from report import cell, markdown

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).with_name("peers.py")
MUJOCO = "HalfCheetah Hopper InvertedDoublePendulum InvertedPendulum Reacher Swimmer Walker2d"
SCRIPTS = {"ppo": "ppo_continuous.py", "atari": "ppo_atari.py"}
SCRIPTS |= {name: f"benchmark/rivals/{name}.py" for name in ("trpo", "a2c")}
COLUMNS = """order repeat task program steps seconds sps extrapolated peak_mib startup_s steps_run
    marginal_us wall_s cpu_s rollout_us update_us env_alone_us""".split()
PLACES = {"task", "steps", "seed", "run", "cores"}
ITERATION = re.compile(rb"SPS:|(\d+)/\d+ \[")  # printed by CleanRL and peers.py; LeanRL's tqdm


class Program(NamedTuple):
    """words: of the command, PLACES in braces; needs: modules; path: for PYTHONPATH."""

    words: list
    needs: list = ()
    is_ours: bool = False
    task: str = "{}-v4"
    path: Path | None = None


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--algorithm", choices=SCRIPTS, default="ppo")
    p.add_argument("--atari", dest="algorithm", action="store_const", const="atari")
    p.add_argument("--command", action="append", metavar="NAME=COMMAND", help="time it instead")
    p.add_argument("--tasks", nargs="+", help="default: the paper's seven, or Breakout")
    p.add_argument("--num-envs", type=int, default=8, help="games of Atari at once")
    p.add_argument("--steps", type=float, help="cut to whole iterations; default: 1e6, Atari 1e7")
    p.add_argument("--peer-steps", type=float, help="fewer steps for the others; extrapolate")
    p.add_argument("--own-steps", type=float, help="fewer steps for ours; extrapolate")
    p.add_argument("--repeats", type=int, default=1)
    p.add_argument("--cores", type=int, default=1)
    p.add_argument("--cuda", action="store_true", help="let every program of Atari use the GPU")
    p.add_argument("--no-bf16", action="store_true", help="no ours with --bf16 (for AVX-512)")
    p.add_argument("--sb3", action="store_true", help="Stable-Baselines3, or sb3-contrib")
    p.add_argument("--cleanrl", type=Path, metavar="CHECKOUT", help="CleanRL (gymnasium 0.29)")
    p.add_argument("--leanrl", type=Path, metavar="CHECKOUT", help="LeanRL (gymnasium 0.29)")
    p.add_argument("--peer-python", default=sys.executable, help="runs the others")
    p.add_argument("--cleanrl-python", help="runs CleanRL and LeanRL; default: --peer-python")
    p.add_argument("--out", type=Path, metavar="CSV", help="write it, and its tables to NAME.md")
    p.add_argument("--from-csv", type=Path, metavar="CSV", help="only print the tables")
    args = p.parse_args()
    args.atari = args.algorithm == "atari"
    args.tasks = args.tasks or (["Breakout"] if args.atari else MUJOCO.split())
    args.batch = {"atari": args.num_envs * 128, "a2c": 80}.get(args.algorithm, 2048)
    args.steps = args.steps or (1e7 if args.atari else 1e6)
    for name in ("steps", "peer_steps", "own_steps"):
        steps = min(args.steps, getattr(args, name) or args.steps)
        setattr(args, name, int(steps // args.batch) * args.batch)
        if getattr(args, name) < 3 * args.batch:
            p.error(f"--{name.replace('_', '-')} must be at least {3 * args.batch}")
    if args.repeats < 1 or not 1 <= args.cores <= cores():
        p.error(f"--repeats must be at least 1, and --cores from 1 to {cores()}")
    if args.out and (args.out.exists() or args.out.with_suffix(".md").exists()):
        p.error(f"--out {args.out}: exists, and nothing is overwritten")
    if args.algorithm in ("trpo", "a2c") and (args.cleanrl or args.leanrl):
        p.error(f"--algorithm {args.algorithm}: only --sb3 has it")
    return args


def programs(args):
    """{name: Program}. Raises ValueError if a --command is none."""
    if args.command:
        return {name: Program(shlex.split(x)) for name, x in map(split_name, args.command)}
    atari = args.atari
    task, size = ("{}NoFrameskip-v4", args.num_envs) if atari else ("{}-v4", 1)
    line = ["--env-id", "{task}", "--total-timesteps", "{steps}", "--seed", "{seed}"]
    device, games = ["--cuda" if args.cuda else "--no-cuda"], ["cv2", "ale_py"] * atari
    flags = dict(  # where our defaults are not what the others do
        ppo=["--max-grad-norm", 0.5],
        atari=["--num-envs", size, "--minibatch-size", size * 32, *device],
        trpo=["--norm-reward", "--gamma", 0.99, "--gae-lambda", 0.95],
    )
    words = [sys.executable, ROOT / SCRIPTS[args.algorithm], *line, "--run-dir", "{run}"]
    words += flags.get(args.algorithm, [])
    found = {"ours": Program(words, ["torch", "tyro"], True, "{}" if atari else task)}
    if atari and not args.no_bf16:
        found["ours bf16"] = found["ours"]._replace(words=[*words, "--bf16"])
    if args.sb3:
        words = [args.peer_python, PEERS, "ppo-atari" if atari else args.algorithm, *line]
        words += ["--num-envs", 16 if args.algorithm == "a2c" else size]
        words += ["--num-threads", "{cores}", *["--cuda"] * args.cuda]
        package = "sb3_contrib" if args.algorithm == "trpo" else "stable_baselines3"
        found["sb3"] = Program(words, ["torch", "gymnasium", package, *games], task=task)
    python = args.cleanrl_python or args.peer_python
    steps, minibatches, epochs = (128, 4, 3) if atari else (2048, 32, 10)
    line += [*device, "--num-envs", size, "--num-steps", steps, "--num-minibatches", minibatches]
    line += ["--update-epochs", epochs, *["--clip-coef", 0.1] * atari]
    if args.cleanrl:
        root = args.cleanrl.resolve()
        script = root / f"cleanrl/ppo_{'atari' if atari else 'continuous_action'}.py"
        needs = ["torch", "gymnasium<1", "tyro", "tensorboard", *games]
        found["cleanrl"] = Program([python, script, *line], needs, False, task, root)
    if args.leanrl:
        root = args.leanrl.resolve()
        kind = "atari_envpool" if atari else "continuous_action"
        script = root / f"leanrl/ppo_{kind}_torchcompile.py"
        words = [python, script, *line, "--compile", *["--cudagraphs"] * args.cuda]
        needs = ["torch", "tyro", "tqdm", "wandb", "tensordict"]
        needs += ["gym", "envpool"] if atari else ["gymnasium<1"]
        found["leanrl"] = Program(words, needs, False, "{}-v5" if atari else task, root)
    return found


def split_name(text):
    name, equals, command = text.partition("=")
    wrong = " " in name or set(re.findall(r"{(\w*)}", command)) - PLACES
    if not equals or wrong or len(command.split()) < 2:
        raise ValueError(f"--command must be NAME=COMMAND with {{task}} and the like, not {text}")
    return name, command


def task_id(program, task):
    return task if re.search(r"-v\d+$", task) else program.task.format(task)


def check(args, found):
    """{program: versions}. Raises ValueError where a run could not work."""
    versions = {}
    for name, program in found.items():
        python, script, *_ = program.words
        if not shutil.which(python) or not Path(script).is_file():
            raise ValueError(f"{name}: no such file: {python} or {script}")
        command = [python, PEERS, "probe", "--needs", *program.needs]
        if not args.atari and not args.command:
            command += ["--env-id", task_id(program, args.tasks[0])]
        probe = subprocess.run(command, capture_output=True, text=True)
        if probe.returncode:
            raise ValueError(f"{name}: {(probe.stderr.splitlines() or ['failed'])[-1]}")
        missing, gpu, versions[name] = json.loads(probe.stdout.splitlines()[-1])
        if missing:
            raise ValueError(f"{name}: {python} lacks {', '.join(missing)}")
        if args.cuda and not gpu:
            raise ValueError(f"--cuda: {name} finds no GPU, so nothing is measured")
    return versions


def run(words, args, cwd, env):
    """Runs words to their end: exit code, seconds, rusage, {iteration: seconds}, last output."""
    env = env | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.cores))
    ends, tail = {}, bytearray()
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd, env=os.environ | env)
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))[-args.cores :]
        options["preexec_fn"] = lambda: os.sched_setaffinity(0, cpus)
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in words], **options)

    def listen():
        while chunk := os.read(process.stdout.fileno(), 65536):
            for match in ITERATION.finditer(chunk):
                iteration = int(match[1]) if match[1] else len(ends) + 1
                ends.setdefault(iteration, time.perf_counter() - start)
            tail[:] = (tail + chunk)[-1000:]

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        raise
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    listener.join(5)
    ends.pop(0, None)  # tqdm's 0/488
    return process.returncode, seconds, usage, ends, tail.decode(errors="replace")


def measure(name, program, task, repeat, work, args):
    """One row of the CSV, or None and a message if the program failed."""
    steps = args.own_steps if program.is_ours else args.peer_steps
    cwd = work / name.replace(" ", "-")  # compilers stumble over spaces
    cwd.mkdir()
    values = dict(task=task_id(program, task), steps=steps, seed=repeat, run=cwd / "run")
    words = [str(word).format(**values, cores=args.cores) for word in program.words]
    words[:2] = os.path.abspath(shutil.which(words[0])), os.path.abspath(words[1])
    env = dict(TORCHINDUCTOR_CACHE_DIR=str(cwd), TMPDIR=str(cwd))  # headers go to TMPDIR
    env |= dict(WANDB_MODE="disabled", PYTHONUNBUFFERED="1")
    env |= {"PYTHONPATH": str(program.path)} if program.path else {}
    code, wall, usage, ends, tail = run(words, args, cwd, env)
    if code:
        print(f"{name}, {task}: exit code {code}:\n{tail}", file=sys.stderr)
        return None
    row = dict(repeat=repeat, task=task, program=name, steps=args.steps, steps_run=steps)
    row |= dict(seconds=wall, wall_s=wall, cpu_s=usage.ru_utime + usage.ru_stime)
    row["peak_mib"] = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    ends = [(iteration * args.batch, when) for iteration, when in sorted(ends.items())]
    if (cwd / "run/metrics.csv").exists():
        metrics = pd.read_csv(cwd / "run/metrics.csv")
        ends = list(zip(metrics.global_step, metrics.seconds))
        late = metrics[len(metrics) // 4 :].diff().global_step.sum()
        for part in ("rollout", "update"):  # the former with its advantages
            seconds = metrics.get(f"{part}_seconds", pd.Series(float("nan"), metrics.index))
            row[f"{part}_us"] = 1e6 * seconds[len(metrics) // 4 + 1 :].sum(min_count=1) / late
        row["env_alone_us"] = environment_alone(task_id(program, task), args, cwd)
    row["extrapolated"] = steps < args.steps
    if len(ends) > 2 and ends[-1][0] == steps:
        first_step, first_time = ends[len(ends) // 4]
        marginal = (ends[-1][1] - first_time) / (steps - first_step)
        row |= dict(startup_s=wall - steps * marginal, marginal_us=1e6 * marginal)
        row["seconds"] = wall + (args.steps - steps) * marginal
    elif row["extrapolated"]:
        print(f"{name}, {task}: its iterations do not end at {steps}:\n{tail}", file=sys.stderr)
        return None
    return row | {"sps": args.steps / row["seconds"]}


def environment_alone(task, args, cwd):
    """Microseconds a step of random actions, in a process like those of the programs."""
    steps, what = (2000 * args.num_envs, "random-atari") if args.atari else (20_000, "random")
    words = [sys.executable, PEERS, what, "--env-id", task, "--total-timesteps", steps]
    words += ["--num-envs", args.num_envs, "--num-threads", args.cores]
    code, *_, output = run(words, args, cwd, {})
    return None if code else float(output.splitlines()[-1])


def table(data):
    """In Markdown; data: a DataFrame whose texts stand as they are."""
    rows = [list(map(cell, row)) for row in data.itertuples(index=False)]
    return markdown(list(data), rows, texts=sum(kind.kind not in "fi" for kind in data.dtypes))


def tables(data):
    """The Markdown of a CSV's rows: speed beside the first program, and where its time goes."""
    first, columns = data.program.iloc[0], ["sps", "seconds", "startup_s", "peak_mib"]
    lines = data.groupby(["task", "program"], sort=False)[columns].median().reset_index()
    by_run = data.pivot(index=["task", "repeat"], columns="program", values="sps")
    ratios = by_run.rdiv(by_run[first], axis=0).groupby("task").agg(["min", "median", "max"])

    def spread(task, name):
        values = ratios.loc[task, name].dropna() if name != first else []
        texts = [f"{x:.2f}" for x in values]
        return " / ".join(texts if len(set(texts)) > 1 else texts[:1])

    lines.insert(2, "ratio", list(map(spread, lines.task, lines.program)))
    by_task = by_run.groupby("task").median()
    for name in data.program.unique() if len(by_task) > 1 else []:
        both = by_task[by_task[[first, name]].notna().all(axis=1)]
        mean = np.exp(np.log(both).mean())
        ratio = f"{mean[first] / mean[name]:.2f}" if name != first else ""
        label = f"**geometric mean** of {len(both)}"
        lines.loc[len(lines), ["task", "program", "ratio", "sps"]] = label, name, ratio, mean[name]
    head = ["task", "program", f"{first} / it: min / median / max", "steps/s", "seconds"]
    text = table(lines.set_axis([*head, "of them start-up", "peak MiB"], axis=1))
    partial = data[data.extrapolated].groupby("program", sort=False).steps_run.first()
    for name, steps in partial.items():
        text += f"\n{name}: extrapolated from {steps:,} steps, start-up + steps * marginal.\n"
    return text + split(data)


def split(data):
    """The table of where the time of programs that write metrics.csv goes."""
    if "rollout_us" not in data or data.rollout_us.isna().all():
        return ""
    data = data.dropna(subset="rollout_us").rename(columns=lambda x: x.removesuffix("_us"))
    data = data.assign(whole=1e6 / data.sps, startup=1e6 * data.startup_s / data.steps)
    data["rest"] = data["marginal"] - data["rollout"] - data["update"]
    parts = ["whole", "startup", "rollout", "update", "rest", "env_alone"]
    text = "\nMicroseconds a step (startup spread over all steps; env_alone: random actions):\n\n"
    return text + table(data.groupby(["task", "program"], sort=False)[parts].median().reset_index())


def main():
    args = parse_args()
    if args.from_csv:
        print(tables(pd.read_csv(args.from_csv)))
        return 0
    try:
        found = programs(args)
        versions = check(args, found)
    except ValueError as error:
        print(f"speed.py: {error}", file=sys.stderr)
        return 2
    about = [f"`{shlex.join(['python', 'benchmark/speed.py', *sys.argv[1:]])}`"]
    load = f"load {os.getloadavg()[0]:.2f} at the start"
    about += [f"{date.today()}, commit {git_commit()}, {args.cores} used of {machine()}, {load}"]
    about += [f"{name}: {what}" for name, what in versions.items()]
    rows, jobs = [], list(product(range(1, args.repeats + 1), args.tasks, found))
    for order, (repeat, task, name) in enumerate(jobs, 1):
        with tempfile.TemporaryDirectory() as work:
            row = measure(name, found[name], task, repeat, Path(work), args)
        if row is None:
            continue
        rows.append(row | {"order": order})
        print(f"{order}/{len(jobs)} {name} {task}: {row['sps']:,.0f} steps/s", file=sys.stderr)
        data = pd.DataFrame(rows, columns=COLUMNS)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            data.to_csv(args.out, index=False, float_format="%.6g", lineterminator="\n")
    if rows:
        text = tables(data) + "".join(f"\n- {x}" for x in about) + "\n"
        print(text)
        if args.out:
            args.out.with_suffix(".md").write_text(text)
    return int(len(rows) < len(jobs))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
