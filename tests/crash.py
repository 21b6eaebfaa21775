"""Kills runs again and again, goes on with them, and compares what they end with.

    python tests/crash.py [--runs 50] [--workers 2] [--scripts ppo_atari.py ...]

Of each script: one run that nothing happens to; then runs of the same command that are killed with
SIGKILL three times each, and then finish: a fifth of the times in the first second, else after a
random number of iterations, at a random instant or while a file is being replaced. Then the other
faults: signals, a full disk, a directory that vanishes, bad checkpoints, other arguments, two
processes in one directory, divergence.

A run survives if it ends, says and keeps what it must, and then, asked to go on, ends with the
bytes of the first run: episodes.csv, agent.pt, and metrics.csv without its columns of time. The
processes are forked from one that has imported torch, which makes room for more kills an hour.
The tables go to benchmark/results/crash-tests/. Exit code: 0 if all survived, else 1. Not a test
for pytest, since it takes a quarter of an hour or more.
"""

import argparse
import csv
import json
import os
import pickle
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import torch
from conftest import ROOT, Program, results, rows, snapshot

sys.path.insert(0, str(ROOT / "benchmark"))
from launch import git_commit  # noqa: E402
from report import markdown  # noqa: E402

COMMANDS = {
    "ppo_continuous.py": "--env-id Hopper --total-timesteps 16384 --num-steps 256"
    " --minibatch-size 8",
    "ppo_noclip.py": "--env-id Walker2d --total-timesteps 16384 --num-envs 2 --num-steps 128",
    "ppo_klpen.py": "--env-id HalfCheetah --total-timesteps 16384 --num-steps 256"
    " --minibatch-size 8",
    "ppo_atari.py": "--env-id Breakout --total-timesteps 2048 --num-envs 4 --num-steps 32"
    " --minibatch-size 16 --num-threads 1 --no-cuda",
}
COST_COMMANDS = {  # the defaults, for as many iterations as a measurement needs
    "ppo_continuous.py": "--env-id HalfCheetah --total-timesteps 204800",
    "ppo_atari.py": "--env-id Breakout --total-timesteps 25600 --num-threads 1 --no-cuda",
}


class Outcome(NamedTuple):
    """Of one run that faults were injected into."""

    script: str
    fault: str
    injected: int
    replacing: int  # kills while a file was replaced
    wrong: list  # texts


class Crashes:
    """One script's runs, each in a directory of its own under scratch.

    The methods named after a fault inject it and return what went wrong, a list of texts."""

    def __init__(self, name, scratch):
        self.name, self.script = name, import_module(name[:-3])
        self.scratch = scratch / name
        command = [sys.executable, ROOT / name, *COMMANDS[name].split(), "--run-dir", "run"]
        cwd = self.directory("whole")
        subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
        self.finished = cwd / "run"
        self.total = self.iterations(self.finished)

    def directory(self, name):
        cwd = self.scratch / name
        cwd.mkdir(parents=True)
        return cwd

    def start(self, cwd, *more, every=3):
        program = Program(
            self.script, cwd, *COMMANDS[self.name].split(), "--run-dir", "run",
            "--checkpoint-every", every, *more,
        )  # fmt: skip
        program.run, program.started = cwd / "run", time.time()
        return program

    def training(self, program):
        """Waits until it has written a row, or has ended."""
        path = program.run / "metrics.csv"
        program.until(
            lambda: path.exists() and path.stat().st_size and path.stat().st_mtime > program.started
        )
        return program

    def has_checkpoint(self, program):
        return program.until((program.run / "checkpoint.pt").exists)

    def later(self, program, seconds):
        end = time.monotonic() + seconds
        return program.until(lambda: time.monotonic() > end)

    def iterations(self, run):
        """How many rows metrics.csv has."""
        path = run / "metrics.csv"
        return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0

    def finish(self, cwd):
        """Goes on with a run to its end, and compares."""
        program = self.start(cwd)
        if code := program.wait(timeout=600):
            return [f"exit code {code}: {program.err}"]
        found, whole = results(program.run), results(self.finished)
        return [f"{name} differs" for name in whole if found[name] != whole[name]]

    def one_line(self, program, code, pattern="."):
        """Waits for its end, which must have that exit code and one line of explanation."""
        found = program.wait()
        if found == code and program.err.count("\n") == 1 and re.search(pattern, program.err):
            return []
        return [f"exit code {found}, not {code}: {program.err}"]

    def loads(self, run):
        torch.load(run / "checkpoint.pt", weights_only=True)
        return ["a torn file is left"] * any(run.glob("*.tmp"))

    def nothing(self):
        return self.finish(self.directory("again"))

    def killed(self, number):
        """Up to three times: (kills, kills while a file was replaced, what went wrong)."""
        rng, cwd = random.Random(f"{self.name} {number}"), self.directory(f"killed-{number}")
        kills, replacing = 0, 0
        for _ in range(3):
            program = self.start(cwd, every=rng.choice((1, 1, 3, 9)))
            self.wait_at_random(program, rng)
            if program.wait(signal.SIGKILL) != -signal.SIGKILL:
                break
            kills += 1
            replacing += any(program.run.glob("*.tmp"))
        wrong = self.finish(cwd)
        shutil.rmtree(cwd)
        return kills, replacing, wrong

    def wait_at_random(self, program, rng):
        """Until some instant of the first second, or of an iteration, or while a file changes."""
        done = self.iterations(program.run)
        if rng.random() < 0.2:
            self.later(program, rng.uniform(0, 1))
            return
        goal = done + rng.randint(1, max(1, (self.total - done) // 2))
        program.until(lambda: self.iterations(program.run) >= goal)
        if rng.random() < 0.5:
            program.until(lambda: any(program.run.glob("*.tmp")))
        else:
            self.later(program, rng.uniform(0, 0.1))

    def signalled(self, number):
        """SIGINT or SIGTERM while training: the right exit code within 30 s."""
        rng, cwd = random.Random(f"{self.name} {number}"), self.directory(f"signalled-{number}")
        signum = (signal.SIGINT, signal.SIGTERM)[number % 2]
        program = self.later(self.training(self.start(cwd)), rng.uniform(0, 0.5))
        sent = time.monotonic()
        code = program.wait(signum)
        seconds = time.monotonic() - sent
        right = code == 128 + signum and seconds < 30
        return ([] if right else [f"exit code {code} after {seconds:.0f} s"]) + self.finish(cwd)

    def full_disk(self):
        """No room for a checkpoint any more: exit 1, the last one loads."""
        cwd = self.directory("full")
        program = self.has_checkpoint(self.start(cwd, every=1))
        limit = (program.run / "checkpoint.pt").stat().st_size // 2
        resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        return self.one_line(program, 1) + self.loads(program.run) + self.finish(cwd)

    def vanished(self):
        """The directory is moved away while training, and back after the end: exit 1."""
        cwd = self.directory("vanished")
        program = self.has_checkpoint(self.start(cwd, every=1))
        program.run.rename(cwd / "elsewhere")
        wrong = self.one_line(program, 1)
        shutil.rmtree(program.run, ignore_errors=True)
        (cwd / "elsewhere").rename(program.run)
        return wrong + self.loads(program.run) + self.finish(cwd)

    def shared(self):
        """A second process in the same directory: exit 2, and the first does not mind."""
        cwd, other = self.directory("shared"), self.directory("second")
        first = self.training(self.start(cwd))
        (other / "run").symlink_to(first.run)
        wrong = self.one_line(self.start(other), 2)
        code = first.wait(timeout=600)
        return wrong + [f"exit code {code}"] * bool(code) + self.finish(cwd)

    def refused(self, name, spoil, *more):
        """A half-done run, spoilt: exit 2 in one line and nothing changed; restored, it goes on."""
        cwd = self.directory(f"refused-{name}")
        program = self.has_checkpoint(self.start(cwd))
        program.wait(signal.SIGKILL)
        good = snapshot(program.run)
        spoil(program.run)
        spoilt = snapshot(program.run)
        program = self.start(cwd, *more)
        wrong = self.one_line(program, 2)
        wrong += ["the directory has changed"] * (snapshot(program.run) != spoilt)
        wrong += ["code in the checkpoint was executed"] * (cwd / "owned").exists()
        for path, (_, content) in good.items():
            path.write_bytes(content)
        return wrong + self.finish(cwd)

    def diverged(self):
        """Exit 3, the first bad tensor named, everything earned kept; asked again, the same."""
        cwd, more = self.directory("diverged"), ("--learning-rate", "1e9", "--no-anneal-lr")
        program = self.start(cwd, *more)
        wrong = self.one_line(program, 3, r"iteration \d+.* not finite")
        summary = json.loads((program.run / "summary.json").read_text())
        earned = "diverged", len(rows(program.run / "episodes.csv"))
        if (summary["status"], summary["episodes"]) != earned:
            wrong.append(f"summary.json: {summary}")
        before = snapshot(program.run)
        if self.start(cwd, *more).wait() != 3 or snapshot(program.run) != before:
            wrong.append("asked again, it does something else")
        return wrong


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def faults(crashes, runs):
    """[(kind of fault, function that injects it)]: runs times SIGKILL, and the others."""

    def cut(run):
        path = run / "checkpoint.pt"
        os.truncate(path, path.stat().st_size // 2)

    def foreign(run):
        (run / "checkpoint.pt").write_bytes((crashes.finished / "checkpoint.pt").read_bytes())

    def evil(run):
        torch.save({"agent": Evil()}, run / "checkpoint.pt")

    def evil_pickle(run):
        (run / "checkpoint.pt").write_bytes(pickle.dumps(Evil()))

    def other_version(run):
        (run / crashes.name).write_bytes((ROOT / crashes.name).read_bytes() + b"\n")

    def refused(spoil, *more):
        return lambda: crashes.refused(spoil.__name__, spoil, *more)

    def other_args(run):
        pass

    return [
        ("none", crashes.nothing),
        *(("SIGKILL", lambda i=i: crashes.killed(i)) for i in range(runs)),
        *(("SIGINT, SIGTERM", lambda i=i: crashes.signalled(i)) for i in range(4)),
        ("full disk", crashes.full_disk),
        ("directory moved away", crashes.vanished),
        ("second process in the directory", crashes.shared),
        ("truncated checkpoint", refused(cut)),
        ("checkpoint of another run", refused(foreign)),
        ("checkpoint that executes code", refused(evil)),
        ("checkpoint that executes code", refused(evil_pickle)),
        ("started by another version of the script", refused(other_version)),
        ("other arguments", refused(other_args, "--gamma", "0.5")),
        ("divergence", crashes.diverged),
    ]


def run_all(scripts, runs, workers, scratch):
    """The Outcome of every run, shown as they come."""
    lock, count = threading.Lock(), 0

    def attempt(crashes, fault, inject):
        nonlocal count
        try:
            found = inject()
        except Exception as error:
            found = [repr(error)]
        injected, replacing, wrong = found if isinstance(found, tuple) else (1, 0, found)
        if fault == "none":
            injected = 0
        with lock:
            count += 1
            print(f"{count} {crashes.name} {fault}: {injected} {wrong or 'ok'}", flush=True)
        return Outcome(crashes.name, fault, injected, replacing, wrong)

    with ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(attempt, crashes, *fault)
            for crashes in list(pool.map(lambda script: Crashes(script, scratch), scripts))
            for fault in faults(crashes, runs)
        ]
        return [job.result() for job in jobs]


def checkpoint_seconds(run):
    """What a checkpoint takes, and an iteration without, of a run with --checkpoint-every 2.

    A checkpoint is saved after an iteration's row is written, so its time is in the next row, and
    neither of the rollout nor of the update."""
    metrics = [{name: float(x) for name, x in row.items()} for row in rows(run / "metrics.csv")]
    rest = [
        b["seconds"] - a["seconds"] - b["rollout_seconds"] - b["update_seconds"]
        for a, b in zip(metrics, metrics[1:])
    ]
    without, after = rest[2::2], rest[3::2]  # rest[0] is of iteration 2; the first two warm up
    iteration = (metrics[-1]["seconds"] - metrics[0]["seconds"]) / len(rest)
    each = mean(after) - mean(without)
    return each, iteration - each / 2


def resume_seconds(command, run, env):
    """From the start of the process to the end of the first iteration: median of three."""
    metrics, waits = run / "metrics.csv", []
    for _ in range(4):  # the first starts the run, which the others go on with
        started, size = time.time(), metrics.stat().st_size if metrics.exists() else 0
        program = subprocess.Popen(
            [*command, "--run-dir", run, "--checkpoint-every", "1"],
            env=env, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        while program.poll() is None and not (metrics.exists() and metrics.stat().st_size > size):
            time.sleep(0.01)
        waits.append(time.time() - started)
        time.sleep(2)
        program.send_signal(signal.SIGTERM)
        program.wait()
    return median(waits[1:])


def cost(script, scratch):
    """A row: seconds of a checkpoint, share of the run by the default interval; resuming."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command, run = [sys.executable, ROOT / script, *COST_COMMANDS[script].split()], scratch / "cost"
    subprocess.run(
        [*command, "--run-dir", run / script, "--checkpoint-every", "2"],
        env=env, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    each, iteration = checkpoint_seconds(run / script)
    every = import_module(script[:-3]).Args.checkpoint_every
    share = each / (every * iteration + each)
    seconds = resume_seconds(command, run / f"{script}-resumed", env)
    return [script, f"{1000 * each:.1f} ms", every, f"{share:.2%}", f"{seconds:.1f} s"]


HEAD = ["script", "fault", "injected", "while a file was replaced", "runs", "survived"]


def count(outcomes, key):
    """A row for each key(outcome): the key, then the numbers of HEAD."""
    groups = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return [
        [*key, sum(x.injected for x in group), sum(x.replacing for x in group),
         len(group), sum(not x.wrong for x in group)]
        for key, group in groups.items()
    ]  # fmt: skip


def page(args, outcomes, costs, seconds):
    """The text of README.md."""
    faults, replacing, runs, survived = count(outcomes, lambda x: ())[0]
    kills = sum(x.injected for x in outcomes if x.fault == "SIGKILL")
    answer = "Yes" if survived == runs else f"Not always: {runs - survived} of {runs} runs did not"
    wrong = [f"- {x.script}, {x.fault}: {text}\n" for x in outcomes for text in x.wrong]
    by_fault = count(outcomes, lambda x: (x.fault,))
    by_fault.append(["**all**", faults, replacing, runs, survived])
    cost_head = ["script", "a checkpoint", "every (iterations)", "share of the run", "to resume"]
    return f"""# Does a run survive being killed?

{answer}. {faults} faults were injected into {runs} runs of {len(args.scripts)} scripts.
{kills} were SIGKILL, {replacing} of all while a file was being replaced.

{markdown(HEAD[1:], by_fault)}
A run *survived* if it ended, said and kept what `tests/crash.py` says it must. It was then asked to
go on, and ended with the bytes of a run that nothing happened to.

{"".join(wrong) or "Nothing differed."}

## How it was made

- `python tests/crash.py --runs {args.runs} --workers {args.workers}`, {date.today()},
  {seconds / 60:.0f} minutes, commit {git_commit() or "unknown"}
- Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores
- every script and fault: `faults.csv`

## What it costs

Runs of their own with the default interval. To resume: from the start of the process to the end of
the first iteration.

{markdown(cost_head, costs)}
[All results](../README.md)
"""


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50, help="of each script, to be killed")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="at a time")
    parser.add_argument("--scripts", nargs="+", default=list(COMMANDS), choices=COMMANDS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmark/results/crash-tests")
    args = parser.parse_args()
    start = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        costs = [cost(x, Path(scratch)) for x in args.scripts if x in COST_COMMANDS]
        outcomes = run_all(args.scripts, args.runs, args.workers, Path(scratch))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "README.md").write_text(text := page(args, outcomes, costs, time.time() - start))
    with open(args.out / "faults.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEAD, *count(outcomes, lambda x: x[:2])])
    print(text)
    return 1 if any(x.wrong for x in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
