"""Kills runs again and again, goes on with them, and compares what they end with.

    python benchmark/torture.py [--runs 50] [--workers 2] [--scripts ppo_atari.py ...]

Of each script: one run that nothing happens to; then runs of the same command that are killed with
SIGKILL three times each, and then finish: a fifth of the times in the first second, else after a
random number of iterations, at a random instant or while a file is being replaced. Then the other
faults: signals, a full disk, a directory that vanishes, bad checkpoints, other arguments, two
processes in one directory, divergence.

A run survives if it ends, says and keeps what it must, and then, asked to go on, ends with the
bytes of the first run: episodes.csv, agent.pt, metrics.csv without its two columns of time. The
processes are forked from one that has imported torch, which makes room for more kills an hour.
The table goes to benchmark/results/torture/. Needs tests/ and what tests/requirements.txt lists.
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
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib import import_module
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from conftest import Program, results, rows, snapshot  # noqa: E402

COMMANDS = {
    "ppo_continuous.py": "--env-id Hopper --total-timesteps 16384 --num-steps 256"
    " --minibatch-size 8",
    "ppo_noclip.py": "--env-id Walker2d --total-timesteps 16384 --num-envs 2 --num-steps 128",
    "ppo_klpen.py": "--env-id HalfCheetah --total-timesteps 16384 --num-steps 256"
    " --minibatch-size 8",
    "ppo_atari.py": "--env-id Breakout --total-timesteps 2048 --num-envs 4 --num-steps 32"
    " --minibatch-size 16 --num-threads 1 --no-cuda",
}
DEFAULTS = {  # to measure, on runs long enough for it, what checkpoints and resuming cost
    "ppo_continuous.py": "--env-id HalfCheetah --total-timesteps 204800",
    "ppo_atari.py": "--env-id Breakout --total-timesteps 25600 --num-threads 1 --no-cuda",
}
TIMED = """
import sys, time
sys.argv = sys.argv[1:]
module = __import__(sys.argv[0][:-3])
save, spent = module.Run.checkpoint, []
def timed(*args):
    start = time.perf_counter()
    save(*args)
    spent.append(time.perf_counter() - start)
module.Run.checkpoint = timed
code = module.main()
print("CHECKPOINTS", len(spent), sum(spent))
sys.exit(code)
"""


class Torture:
    """One script's runs, each in a directory of its own under scratch."""

    def __init__(self, name, scratch):
        self.name, self.script = name, import_module(name[:-3])
        self.scratch = scratch / name
        command = [sys.executable, ROOT / name, *COMMANDS[name].split(), "--run-dir", "run"]
        cwd = self.directory("whole")
        subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
        self.finished = cwd / "run"
        self.total = self.iterations(self.finished)
        self.again = self.finish(self.directory("again"))

    def directory(self, name):
        cwd = self.scratch / name
        cwd.mkdir(parents=True)
        return cwd

    def start(self, cwd, *more, every=3):
        program = Program(
            self.script, cwd, *COMMANDS[self.name].split(), "--run-dir", "run",
            "--checkpoint-every", every, *more,
        )  # fmt: skip
        program.run, program.begun = cwd / "run", time.time()
        return program

    def training(self, program):
        """Waits until it has written a row, or has ended."""
        path = program.run / "metrics.csv"
        program.until(
            lambda: path.exists() and path.stat().st_size and path.stat().st_mtime > program.begun
        )
        return program

    def later(self, program, seconds):
        end = time.monotonic() + seconds
        return program.until(lambda: time.monotonic() > end)

    def iterations(self, run):
        """How many rows metrics.csv has."""
        path = run / "metrics.csv"
        return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0

    def finish(self, cwd):
        """Goes on with a run to its end. What is wrong with it."""
        program = self.start(cwd)
        if code := program.wait(timeout=600):
            return [f"exit code {code}: {program.err}"]
        found, whole = results(program.run), results(self.finished)
        return [f"{name} differs" for name in whole if found[name] != whole[name]]

    def killed(self, number):
        """Up to three times: (kills, kills while a file was replaced, what went wrong)."""
        rng, cwd = random.Random(f"{self.name} {number}"), self.directory(f"killed-{number}")
        kills, replacing, run = 0, 0, cwd / "run"
        for _ in range(3):
            done = self.iterations(run)
            program = self.start(cwd, every=rng.choice((1, 1, 3, 9)))
            if rng.random() < 0.2:
                self.later(program, rng.uniform(0, 1))
            else:
                goal = done + rng.randint(1, max(1, (self.total - done) // 2))
                program.until(lambda goal=goal: self.iterations(run) >= goal)
                if rng.random() < 0.5:
                    program.until(lambda: any(run.glob("*.tmp")))
                else:
                    self.later(program, rng.uniform(0, 0.1))
            code = program.wait(signal.SIGKILL)
            if code != -signal.SIGKILL:
                break
            kills, replacing = kills + 1, replacing + any(program.run.glob("*.tmp"))
        wrong = self.finish(cwd)
        shutil.rmtree(cwd)
        return kills, replacing, wrong

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
        program = self.start(cwd, every=1)
        program.until((program.run / "checkpoint.pt").exists)
        limit = (program.run / "checkpoint.pt").stat().st_size // 2
        resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        return self.one_line(program, 1) + self.loads(program.run) + self.finish(cwd)

    def vanished(self):
        """The directory is moved away while training, and back after the end: exit 1."""
        cwd = self.directory("vanished")
        program = self.start(cwd, every=1)
        program.until((program.run / "checkpoint.pt").exists)
        program.run.rename(cwd / "elsewhere")
        wrong = self.one_line(program, 1)
        (cwd / "elsewhere").rename(program.run)
        return wrong + self.loads(program.run) + self.finish(cwd)

    def shared(self):
        """A second process in the same directory: exit 2, and the first does not mind."""
        cwd, other = self.directory("shared"), self.directory("second")
        first = self.training(self.start(cwd))
        (other / "run").symlink_to(first.run)
        return self.one_line(self.start(other), 2) + self.finish_first(first)

    def finish_first(self, program):
        code = program.wait(timeout=600)
        return [f"exit code {code}"] if code else self.finish(program.run.parent)

    def refused(self, name, spoil, *more):
        """A half-done run, spoilt: exit 2 in one line and nothing changed; restored, it goes on."""
        cwd = self.directory(f"refused-{name}")
        program = self.start(cwd)
        program.until((program.run / "checkpoint.pt").exists)
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
        wrong = self.one_line(program, 3, r"diverged in iteration \d+: \S+ is not finite")
        summary = json.loads((program.run / "summary.json").read_text())
        earned = "diverged", len(rows(program.run / "episodes.csv"))
        if (summary["status"], summary["episodes"]) != earned:
            wrong.append(f"summary.json: {summary}")
        torch.load(program.run / "diverged.pt", weights_only=True)
        before = snapshot(program.run)
        if self.start(cwd, *more).wait() != 3 or snapshot(program.run) != before:
            wrong.append("asked again, it does something else")
        return wrong

    def one_line(self, program, code, pattern="."):
        found = program.wait()
        if found == code and program.err.count("\n") == 1 and re.search(pattern, program.err):
            return []
        return [f"exit code {found}, not {code}: {program.err}"]

    def loads(self, run):
        torch.load(run / "checkpoint.pt", weights_only=True)
        return ["a torn file is left"] * any(run.glob("*.tmp"))


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def cut(run):
    path = run / "checkpoint.pt"
    os.truncate(path, path.stat().st_size // 2)


def faults(torture):
    """{kind of fault: [function that injects it and returns what went wrong]}."""
    t = torture
    foreign = (t.finished / "checkpoint.pt").read_bytes()
    script = (ROOT / t.name).read_bytes()
    return {
        "SIGINT, SIGTERM": [lambda i=i: t.signalled(i) for i in range(4)],
        "full disk": [t.full_disk],
        "directory moved away": [t.vanished],
        "second process in the directory": [t.shared],
        "truncated checkpoint": [lambda: t.refused("cut", cut)],
        "checkpoint of another run": [
            lambda: t.refused("foreign", lambda r: (r / "checkpoint.pt").write_bytes(foreign))
        ],
        "checkpoint that executes code": [
            lambda: t.refused("evil", lambda r: torch.save({"agent": Evil()}, r / "checkpoint.pt")),
            lambda: t.refused(
                "pickle", lambda r: (r / "checkpoint.pt").write_bytes(pickle.dumps(Evil()))
            ),
        ],
        "begun by another version of the script": [
            lambda: t.refused("version", lambda r: (r / t.name).write_bytes(script + b"\n"))
        ],
        "other arguments": [lambda: t.refused("args", lambda r: None, "--gamma", "0.5")],
        "divergence": [t.diverged],
    }


def cost(script, scratch):
    """At the default interval, a row: checkpoints, seconds each, share of the run; resuming."""
    home = scratch / "cost" / script
    home.mkdir(parents=True)
    shutil.copy(ROOT / script, home)
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    argv = [script, *DEFAULTS[script].split(), "--run-dir", "run"]
    timed = [sys.executable, "-c", TIMED, *argv]
    done = subprocess.run(timed, cwd=home, env=environ, check=True, stdout=subprocess.PIPE)
    number, seconds = map(float, re.search(rb"CHECKPOINTS (\d+) (\S+)", done.stdout).groups())
    whole = json.loads((home / "run/summary.json").read_text())["seconds"]
    metrics, waits = home / "resumed/metrics.csv", []
    for _ in range(4):  # the first begins the run, which the others go on with
        begun, size = time.time(), metrics.stat().st_size if metrics.exists() else 0
        program = subprocess.Popen(
            [sys.executable, *argv[:-1], "resumed", "--checkpoint-every", "1"],
            cwd=home, env=environ, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        while program.poll() is None and size >= (
            metrics.stat().st_size if metrics.exists() else 0
        ):
            time.sleep(0.01)
        waits.append(time.time() - begun)
        time.sleep(2)
        program.send_signal(signal.SIGTERM)
        program.wait()
    cells = f"{number:.0f}", f"{1000 * seconds / number:.0f} ms", f"{seconds / whole:.2%}"
    return [script, *cells, f"{statistics.median(waits[1:]):.1f} s"]


def table(head, rows):
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50, help="of each script, to be killed")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="at a time")
    parser.add_argument("--scripts", nargs="+", default=list(COMMANDS), choices=COMMANDS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmark/results/torture")
    args = parser.parse_args()
    begun, lines, costs, problems = time.time(), [], [], []
    lock, count = threading.Lock(), 0

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(args.workers) as pool:
        scratch = Path(scratch)
        for script in DEFAULTS:
            if script in args.scripts:
                costs.append(cost(script, scratch))
                print(*costs[-1], flush=True)
        tortures = list(pool.map(lambda script: Torture(script, scratch), args.scripts))

        def attempt(torture, kind, inject):
            nonlocal count
            try:
                found = inject()
            except Exception as error:
                found = 0, 0, [repr(error)]
            kills, replacing, different = found if isinstance(found, tuple) else (1, 0, found)
            with lock:
                count += 1
                print(f"{count} {torture.name} {kind}: {kills} {different or 'ok'}", flush=True)
            return torture.name, kind, kills, replacing, different

        jobs = []
        for torture in tortures:
            for number in range(args.runs):
                job = attempt, torture, "SIGKILL", lambda t=torture, i=number: t.killed(i)
                jobs.append(pool.submit(*job))
            for kind, injections in faults(torture).items():
                jobs += [pool.submit(attempt, torture, kind, inject) for inject in injections]
        done = [job.result() for job in jobs]
        for torture in tortures:
            problems += [f"{torture.name}, run again: {name}" for name in torture.again]

    for script in args.scripts:
        for kind in dict.fromkeys(kind for s, kind, *_ in done if s == script):
            mine = [x for x in done if x[:2] == (script, kind)]
            injected, replacing = sum(x[2] for x in mine), sum(x[3] for x in mine)
            survived = sum(not x[4] for x in mine)
            name = f"{kind}, {replacing} of them while a file was replaced" if replacing else kind
            lines.append(
                [script, name, injected, len(mine), survived, sum(len(x[4]) for x in mine)]
            )
            problems += [f"{script}, {kind}: {text}" for x in mine for text in x[4]]
    total = ["**all**", "", *(f"**{sum(r[i] for r in lines)}**" for i in range(2, 6))]
    commit = subprocess.run(
        "git describe --always --dirty --abbrev=40 --exclude='*'", shell=True, text=True, cwd=ROOT,
        capture_output=True,
    ).stdout.strip()  # fmt: skip
    head = ["script", "fault", "injected", "runs", "survived", "different"]
    text = "# What runs survive\n\n" + table(head, [*lines, total])
    text += f"""
Survived: runs that ended, said and kept what `benchmark/torture.py` says they must, and then, asked
to go on, ended with the bytes of a run that nothing happened to. Different: things that were not
so, files that differ among them.

{"".join(f"- **{x}**{chr(10)}" for x in problems) or "No differences were found."}
What it costs, in runs of their own with the default interval: checkpoints; and to resume, from the
start of the process to the end of the first iteration.

{table(["script", "checkpoints", "each", "share of the run", "to resume"], costs)}
- `python benchmark/torture.py --runs {args.runs} --workers {args.workers}`, {date.today()},
  {(time.time() - begun) / 60:.0f} minutes, commit {commit or "unknown"}
- Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores
"""
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "README.md").write_text(text)
    with open(args.out / "faults.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *lines])
    print(text)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
