"""Training speed of ppo_continuous.py (or ppo_atari.py) beside other people's PPO.

    python benchmark/speed.py --sb3 --peer-python PYTHON --cleanrl DIR --cleanrl-python PYTHON
    python benchmark/speed.py --from-csv benchmark/results/speed/speed.csv

Every run is a fresh process pinned to the same cores; programs alternate: ours, sb3, cleanrl,
ours, ... Time is that of the whole process: imports, compilation (LeanRL's, into an empty cache),
training, exit. Memory is the peak of its largest process. All do the same work:
MuJoCo -v4, 2048 steps, minibatches of 64, 10 epochs, two 64-64 tanh networks (Table 3); Atari
8 games, 128 steps, 4 minibatches, 3 epochs, the Nature CNN (Table 5), ours also with --bf16.

With --peer-steps the others, with --own-steps ours, run for fewer steps and their time is
extrapolated, and marked so:
    marginal      seconds a step between the ends of two iterations: the last one, and the one
                  a quarter of the way there (so that compiling and warming up stay out)
    start-up      whole process - steps it ran * marginal
    extrapolated  start-up + steps asked for * marginal
"""

import argparse
import csv
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import date
from itertools import product
from math import nan
from pathlib import Path
from statistics import geometric_mean, median

ROOT = Path(__file__).resolve().parent.parent
MUJOCO = "HalfCheetah Hopper InvertedDoublePendulum InvertedPendulum Reacher Swimmer Walker2d"
TABLES = dict(
    continuous=" --num-envs 1 --num-steps 2048 --num-minibatches 32 --update-epochs 10",
    atari=" --num-envs {N} --num-steps 128 --num-minibatches 4 --update-epochs 3 --clip-coef 0.1",
)
COLUMNS = """order repeat task program steps seconds sps extrapolated peak_mib startup_s steps_run
    marginal_us wall_s cpu_s env_us act_us update_us mj_step_us""".split()
PACKAGES = "torch numpy gymnasium mujoco ale-py stable-baselines3 tensordict envpool".split()
PIN = hasattr(os, "sched_setaffinity")
ITERATION = re.compile(rb"SPS:|(\d+)/\d+ \[")  # printed by CleanRL and drive_sb3; LeanRL's tqdm


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--tasks", nargs="+", help="default: the paper's seven, or Breakout")
    p.add_argument("--atari", action="store_true", help="ppo_atari.py")
    p.add_argument("--num-envs", type=int, default=8, help="games of --atari at once")
    p.add_argument("--steps", type=float, help="cut to whole iterations; default: 1e6, Atari 1e7")
    p.add_argument("--peer-steps", type=float, help="fewer steps for the others; extrapolate")
    p.add_argument("--own-steps", type=float, help="fewer steps for ours; extrapolate")
    p.add_argument("--repeats", type=int, default=1)
    p.add_argument("--cores", type=int, default=1)
    p.add_argument("--cuda", action="store_true", help="let every program use the GPU")
    p.add_argument("--no-bf16", action="store_true", help="not ours with --bf16: needs AVX-512")
    p.add_argument("--sb3", action="store_true", help="Stable-Baselines3, a package")
    p.add_argument("--cleanrl", type=Path, metavar="CHECKOUT", help="CleanRL (gymnasium 0.29)")
    p.add_argument("--leanrl", type=Path, metavar="CHECKOUT", help="LeanRL (gymnasium 0.29)")
    p.add_argument("--peer-python", default=sys.executable, help="runs the others")
    p.add_argument("--cleanrl-python", help="runs CleanRL and LeanRL; default: --peer-python")
    p.add_argument("--out", type=Path, metavar="DIR", help="write speed.csv and README.md there")
    p.add_argument("--from-csv", type=Path, metavar="CSV", help="only print the tables")
    args = p.parse_args()
    args.tasks = args.tasks or (["Breakout"] if args.atari else MUJOCO.split())
    args.batch = args.num_envs * 128 if args.atari else 2048
    args.steps = args.steps or (1e7 if args.atari else 1e6)
    for name in ("steps", "peer_steps", "own_steps"):
        steps = min(args.steps, getattr(args, name) or args.steps)
        setattr(args, name, int(steps // args.batch) * args.batch)
    return args


def programs(args):
    """{name: (python, script, packages it needs, its arguments)}."""
    kind = "atari" if args.atari else "continuous"
    line = "--env-id {task} --total-timesteps {steps} --seed {seed} "
    line += "--cuda" if args.cuda else "--no-cuda"
    own = line + " --run-dir {run} --max-grad-norm 0.5"  # as the others do
    if args.atari:
        own += f" --num-envs {args.num_envs} --minibatch-size {args.batch // 4}"
    ours = ROOT / f"ppo_{kind}.py", "torch gymnasium tyro", own
    found = {"ours": (sys.executable, *ours)}
    if args.atari and not args.no_bf16:
        found["ours bf16"] = (sys.executable, *ours[:2], own + " --bf16")
    if args.sb3:
        sb3_line = f"--drive sb3 {{task}} {{steps}} {{seed}} {args.cores} {args.cuda}"
        sb3_line += f" {args.num_envs}"
        needs = "torch gymnasium stable_baselines3" + " cv2 ale_py" * args.atari
        found["sb3"] = (args.peer_python, Path(__file__), needs, sb3_line)
    old_python = args.cleanrl_python or args.peer_python
    line += TABLES[kind].replace("{N}", str(args.num_envs))
    if args.cleanrl:
        script = args.cleanrl / f"cleanrl/ppo_{kind}{'' if args.atari else '_action'}.py"
        needs = "torch gymnasium<1 tyro tensorboard" + " cv2 ale_py" * args.atari
        found["cleanrl"] = (old_python, script, needs, line)
    if args.leanrl:
        kind += "_envpool" if args.atari else "_action"
        script = args.leanrl / f"leanrl/ppo_{kind}_torchcompile.py"
        needs = "torch tyro tqdm wandb tensordict"
        needs += " gym envpool" if args.atari else " gymnasium<1"
        line += " --compile" + " --cudagraphs" * args.cuda
        found["leanrl"] = (old_python, script, needs, line)
    return found


def task_id(program, task, args):
    if args.atari:
        old_id = f"{task}NoFrameskip-v4"
        return {"sb3": old_id, "cleanrl": old_id, "leanrl": f"{task}-v5"}.get(program, task)
    return task if re.search(r"-v\d+$", task) else f"{task}-v4"


def fail(message):
    print(f"speed.py: {message}", file=sys.stderr)
    sys.exit(2)


def check(args, found):
    """{program: versions}; exits with 2 and one line where a run could not work."""
    cores = len(os.sched_getaffinity(0)) if PIN else os.cpu_count()
    if min(args.peer_steps, args.own_steps) < 3 * args.batch:
        fail(f"--steps, --peer-steps and --own-steps must be at least {3 * args.batch}")
    if args.repeats < 1 or not 1 <= args.cores <= cores:
        fail(f"--repeats must be at least 1, and --cores from 1 to {cores}")
    if args.out and (args.out / "speed.csv").exists():
        fail(f"--out {args.out}: has a speed.csv, and nothing is overwritten")
    versions = {}
    for name, (python, script, needs, _) in found.items():
        if not script.is_file() or not shutil.which(python):
            fail(f"{name}: no such file: {python if script.is_file() else script}")
        tasks = [task_id(name, task, args) for task in args.tasks if not args.atari]
        command = [python, __file__, "--drive", "probe", needs, *tasks]
        probe = subprocess.run(command, capture_output=True, text=True)
        if probe.returncode:
            fail(f"{name}: {python}: {(probe.stderr.splitlines() or ['failed'])[-1]}")
        missing, gpu, versions[name] = json.loads(probe.stdout.splitlines()[-1])
        if missing:
            fail(f"{name}: {python} lacks {', '.join(missing)}")
        if args.cuda and not gpu:
            for python, script, _, line in found.values():
                print(f"would alternate, for {' '.join(args.tasks)}: {python} {script} {line}")
            fail(f"--cuda: {name} finds no GPU, so nothing is measured")
    return versions


def launch(command, args, cwd, env):
    """Runs command to its end: exit code, seconds, rusage, {iteration: seconds}, last output."""
    cpus = PIN and sorted(os.sched_getaffinity(0))[-args.cores :]
    env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.cores))
    ends, tail = {}, bytearray()
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd, env=os.environ | env)
    if PIN:
        options["preexec_fn"] = lambda: os.sched_setaffinity(0, cpus)
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], **options)

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


def measure(name, task, repeat, work, args, found):
    """One row of speed.csv, or None and a message if the program failed."""
    python, script, _, line = found[name]
    python, script = os.path.abspath(shutil.which(python)), script.resolve()
    ours = name.startswith("ours")
    steps = args.own_steps if ours else args.peer_steps
    cwd = work / name.replace(" ", "-")  # compilers stumble over spaces
    cwd.mkdir()
    run = cwd / "run"
    values = dict(task=task_id(name, task, args), steps=steps, seed=repeat, run=run)
    command = [python, script, *(word.format(**values) for word in line.split())]
    env = dict(TORCHINDUCTOR_CACHE_DIR=str(cwd), TMPDIR=str(cwd))  # headers go to TMPDIR
    env |= dict(WANDB_MODE="disabled", PYTHONUNBUFFERED="1")
    if name in ("cleanrl", "leanrl"):
        env["PYTHONPATH"] = str(script.parent.parent)
    code, wall, usage, ends, tail = launch(command, args, cwd, env)
    ends = [(iteration * args.batch, when) for iteration, when in sorted(ends.items())]
    if ours and code == 0:
        metrics = list(csv.DictReader((run / "metrics.csv").open()))
        ends = [(int(m["global_step"]), float(m["seconds"])) for m in metrics]
    if code or len(ends) < 2 or ends[-1][0] != steps:
        step = ends[-1][0] if ends else 0
        print(f"{name}, {task}: exit code {code} after step {step}:\n{tail}", file=sys.stderr)
        return None
    quarter = len(ends) // 4
    steps_between = steps - ends[quarter][0]
    marginal = (ends[-1][1] - ends[quarter][1]) / steps_between
    seconds = wall + (args.steps - steps) * marginal
    row = dict(
        repeat=repeat, task=task, program=name, steps=args.steps, seconds=seconds,
        sps=args.steps / seconds, extrapolated=steps < args.steps, steps_run=steps,
        startup_s=wall - steps * marginal, marginal_us=1e6 * marginal, wall_s=wall,
        peak_mib=usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
        cpu_s=usage.ru_utime + usage.ru_stime,
    )  # fmt: skip
    drives = {"split": [task, *line.split("0.5")[1].split()]} if ours else {}
    if ours and not args.atari:
        drives["physics"] = [run]
    for drive, what in drives.items():
        command = [python, Path(__file__).resolve(), "--drive", drive, script, *what]
        with suppress(ValueError, IndexError):
            row |= json.loads(launch(command, args, cwd, env)[-1].splitlines()[-1])
    return row


# --------------------------------------------------------------------------------------------------
# python speed.py --drive NAME ...: what runs in the other processes.


def drive_probe(needs, *tasks):
    import importlib.metadata
    import importlib.util

    missing = [need for need in needs.split() if not importlib.util.find_spec(need.split("<")[0])]
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    if "gymnasium<1" in needs and not versions.get("gymnasium", "0").startswith("0"):
        missing.append(f"gymnasium<1 (it has {versions['gymnasium']})")
    if tasks and not missing:
        import gymnasium

        missing = [f"the task {task}" for task in tasks if task not in gymnasium.registry]
    gpu = False
    if "torch" not in missing:
        import torch

        gpu = torch.cuda.is_available()
    print(json.dumps([missing, gpu, ", ".join(" ".join(item) for item in versions.items())]))


def drive_sb3(task, steps, seed, cores, cuda, num_envs):
    import gymnasium as gym
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common import env_util, vec_env

    class LoudPPO(PPO):
        def train(self):
            super().train()
            print("SPS: end of an iteration")

    torch.set_num_threads(int(cores))
    common = dict(seed=int(seed), device="cuda" if cuda == "True" else "cpu")
    common |= dict(gamma=0.99, gae_lambda=0.95, max_grad_norm=0.5)
    if "NoFrameskip" in task:
        gym.register_envs(__import__("ale_py"))
        envs = env_util.make_atari_env(task, int(num_envs), int(seed))
        envs = vec_env.VecFrameStack(envs, 4)
        batch_size = 32 * int(num_envs)
        table5 = dict(n_steps=128, batch_size=batch_size, n_epochs=3, ent_coef=0.01, vf_coef=1.0)
        ppo = LoudPPO("CnnPolicy", envs, 2.5e-4, clip_range=0.1, **table5, **common)
    else:
        envs = vec_env.VecNormalize(vec_env.DummyVecEnv([lambda: gym.make(task)]))
        table3 = dict(n_steps=2048, batch_size=64, n_epochs=10, ent_coef=0.0, vf_coef=0.5)
        ppo = LoudPPO("MlpPolicy", envs, 3e-4, clip_range=0.2, **table3, **common)
    ppo.learn(int(steps))
    envs.close()


def drive_physics(script, run):
    """Prints microseconds of a mujoco.mj_step (frame_skip included) while script --eval plays."""
    import runpy

    import mujoco

    spent, mj_step = [], mujoco.mj_step

    def timed_mj_step(*args, **kwargs):
        start = time.perf_counter()
        mj_step(*args, **kwargs)
        spent.append(time.perf_counter() - start)
        if len(spent) == 5000:
            raise KeyboardInterrupt

    mujoco.mj_step, sys.argv = timed_mj_step, [script, "--eval", run]
    with suppress(BaseException):
        runpy.run_path(script, run_name="__main__")
    print("\n" + json.dumps({"mj_step_us": 1e6 * sum(spent) / len(spent)}))


def drive_split(script, task, *flags):
    """Prints microseconds a step in environments, actor and update(): iterations 6 to 25.

    On Atari those of the environments are waiting for them; two halves of the games run side by
    side, and of environments and actor the mean of both is printed.
    """
    import importlib.util

    spec = importlib.util.spec_from_file_location("script", script)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    spent = dict(env_us=[], act_us=[], update_us=[])

    def timed(part, function):
        def wrapper(*args):
            start = time.perf_counter()
            result = function(*args)
            spent[part].append(time.perf_counter() - start)
            return result

        return wrapper

    def timed_policy(agent):
        mean, std = numpy_policy(agent)
        return timed("act_us", mean), std

    def timed_graph(function, *args, **kwargs):
        part = "act_us" if hasattr(function, "__name__") else "update_us"  # not of partial()
        return timed(part, graphed(function, *args, **kwargs))

    def log_and_stop(run, iteration, **metrics):
        log(run, iteration, **metrics)
        if iteration == 5:
            for times in spent.values():
                times.clear()
        if iteration == 25:
            steps = 20 * run.args.batch_size
            us = {part: 1e6 * sum(times) / steps for part, times in spent.items() if times}
            if hasattr(module, "Games"):
                us |= dict(env_us=us["env_us"] / 2, act_us=us["act_us"] / 2)
            print("\n" + json.dumps(us))
            sys.exit()

    log, module.Run.log = module.Run.log, log_and_stop
    if compiled := getattr(module, "compiled", None):
        module.compiled = lambda *args: timed("update_us", compiled(*args))
        numpy_policy, module.Agent.numpy_policy = module.Agent.numpy_policy, timed_policy
        module.Envs.step = timed("env_us", module.Envs.step)
    if graphed := getattr(module, "graphed", None):
        module.graphed = timed_graph
        module.AtariVectorEnv.recv = timed("env_us", module.AtariVectorEnv.recv)
    sys.argv = [script, "--env-id", task, "--run-dir", "split", *flags]
    module.main()


# --------------------------------------------------------------------------------------------------
# Tables, from the rows of speed.csv and nothing else.


def markdown(rows):
    runs = {(r["program"], r["task"], r["repeat"]): r for r in rows}
    names, tasks, repeats = (list(dict.fromkeys(key[i] for key in runs)) for i in range(3))
    partial = {r["program"]: r for r in rows if r["extrapolated"] == "True"}
    labels = {name: name + " (extrapolated)" * (name in partial) for name in names}

    def middle(name, task, column):
        found = [runs[key][column] for key in runs if key[:2] == (name, task)]
        return median([float(x or nan) for x in found] or [nan])

    def ratio(name, tasks):  # ours / name in each repeat, geometric mean over tasks
        found = []
        for repeat in repeats:
            pairs = [(runs.get(("ours", t, repeat)), runs.get((name, t, repeat))) for t in tasks]
            if name != "ours" and all(map(all, pairs)):
                found += [geometric_mean(float(a["sps"]) / float(b["sps"]) for a, b in pairs)]
        return " / ".join(dict.fromkeys(f"{f(found):.2f}" for f in (min, median, max) if found))

    def line(*cells):
        text = (c if isinstance(c, str) else f"{c:,.{0 if c > 99 else 1}f}" for c in cells)
        return f"| {' | '.join(text)} |".replace("| nan", "| ")

    out = [line("task", "program", "steps/s", "ours / it: min / median / max", "seconds")]
    out[0] += " of them start-up | peak MiB |"
    out += ["|---|---|" + "--:|" * 5]
    for task, name in product(tasks, names):
        columns = [middle(name, task, x) for x in ("sps", "seconds", "startup_s", "peak_mib")]
        out += [line(task, labels[name], columns[0], ratio(name, [task]), *columns[1:])]
    for name in names:
        done = [t for t in tasks if all(middle(x, t, "sps") > 0 for x in ("ours", name))] or tasks
        means = [geometric_mean(middle(name, t, x) for t in done) for x in ("sps", "peak_mib")]
        label = f"**geometric mean** of {len(done)}"
        out += [line(label, labels[name], means[0], ratio(name, done), "", "", means[1])]
    for name, r in partial.items():
        out += ["", f"{name}: **extrapolated** to {int(r['steps']):,} steps from "]
        out[-1] += f"{int(r['steps_run']):,}, as start-up + steps * marginal time of a step."
    out += ["", "Where our time goes, microseconds a step (start-up spread over all steps):", ""]
    out += [line("task", "whole run", "start-up", "env", "act", "update", "rest", "mj_step", "%")]
    out += ["|---|" + "--:|" * 8]
    parts = "startup_s steps marginal_us mj_step_us env_us act_us update_us".split()
    for task in tasks:
        whole = 1e6 / middle("ours", task, "sps")
        startup, steps, marginal, mj_step, *split = (middle("ours", task, x) for x in parts)
        rest = marginal - sum(split)
        share = 100 * mj_step / whole
        out += [line(task, whole, 1e6 * startup / steps, *split, rest, mj_step, share)]
    busy = [float(r["cpu_s"]) / float(r["wall_s"]) for r in rows]
    out += [
        "",
        "mj_step: mujoco.mj_step (frame_skip included), which is a part of env; up to 5,000 calls "
        "timed one by one while the trained agent plays after the run. %: of the whole run. env, "
        "act, update: timed in iterations 6 to 25 of another run, so the rest is a difference. On "
        "Atari env is waiting for emulators, and env and act are means of two halves of the games. "
        "On a GPU act and update are times to launch; what it computes meanwhile is in the rest.",
        f"CPU time was {min(busy):.0%} to {max(busy):.0%} of a run's wall time.",
    ]
    return "\n".join(out)


def main(args):
    if args.from_csv:
        if not args.from_csv.is_file():
            fail(f"--from-csv {args.from_csv}: no such file")
        return print(markdown(list(csv.DictReader(args.from_csv.open()))))
    found = programs(args)
    versions = check(args, found)
    cpu = platform.processor()
    with suppress(OSError):
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    load = f"load average {os.getloadavg()[0]:.2f} at the start"
    about = [f"{date.today()}: {args.cores} of {os.cpu_count()} cores of {cpu}, {load}"]
    about += [f"{name}: {what}" for name, what in versions.items()]
    jobs = list(product(range(1, args.repeats + 1), args.tasks))
    rows, total = [], len(jobs) * len(found)
    for job, (repeat, task) in enumerate(jobs):
        with tempfile.TemporaryDirectory() as work:
            for order, name in enumerate(found, 1 + job * len(found)):
                row = measure(name, task, repeat, Path(work), args, found)
                if row is None:
                    continue
                values = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()}
                rows.append(dict.fromkeys(COLUMNS, "") | values | {"order": str(order)})
                print(f"{order}/{total} {name} {task}: {row['sps']:,.0f} steps/s", file=sys.stderr)
                if args.out:
                    args.out.mkdir(parents=True, exist_ok=True)
                    with open(args.out / "speed.csv", "w", newline="") as file:
                        writer = csv.DictWriter(file, COLUMNS)
                        writer.writeheader()
                        writer.writerows(rows)
    if rows:
        command = shlex.join(["python", "benchmark/speed.py", *sys.argv[1:]])
        text = "\n".join([markdown(rows), "", f"    {command}", "", *(f"- {x}" for x in about), ""])
        print(text)
        if args.out:
            (args.out / "README.md").write_text("# Training speed\n\n" + text)
    sys.exit(len(rows) < total)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--drive"]:
        drive = dict(probe=drive_probe, sb3=drive_sb3, physics=drive_physics, split=drive_split)
        drive[sys.argv[2]](*sys.argv[3:])
    else:
        try:
            main(parse_args())
        except KeyboardInterrupt:
            sys.exit(130)
