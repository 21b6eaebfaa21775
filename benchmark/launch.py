"""Runs the training commands on standard input, one a line, on this machine or on a Ray cluster.

    bash benchmark/table1.sh                       all cores of this machine
    bash benchmark/table1.sh --workers 4           four runs at a time
    bash benchmark/table1.sh --address HOST:6379   a Ray cluster that this machine is a node of
    bash benchmark/table1.sh --dry-run             prints the commands, runs nothing

A command is `python SCRIPT.py [flags] --run-dir DIR`, DIR its own and relative. Ray decides what
runs where and when, and runs again elsewhere what a lost worker or machine was at. Each run
works in a temporary directory of its machine. A machine of a cluster needs the same versions of
Python, of requirements.txt and of Ray, and the same RAY_AUTH_TOKEN, but neither this repository
nor a shared disk: the script and what there is of the run directory travel there, and everything
new travels back every --sync seconds and at the end.

Finished and diverged runs are skipped; the others go on from the last checkpoint that came back,
bit for bit. A run that crashes is tried once more, then listed with the end of its log; all of it
is in DIR.log. Ctrl-C or SIGTERM lets every run write a checkpoint, fetches it and ends; a second
one does not wait. Exit code: 0 all finished or diverged, 1 some failed, 2 bad usage, 130, 143 or
129 stopped.
"""

import argparse
import csv
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
except ImportError:
    ray = None

LOST_WORKERS = 10  # that one run survives
TICK = 1.0  # seconds between two looks at a run, and at the sweep
# Written in this order and read in the opposite one, a run directory that is copied while it
# grows, or whose copying is cut short, is one that its script goes on with.
LAST_FILES = ("args.json", "metrics.csv", "agent.pt", "checkpoint.pt", "summary.json")
GUARD = """
import os, shutil, sys
if os.fork():
    os._exit(0)  # so that Ray, which kills a worker's children with it, does not know of this one
sys.stdin.read()  # ends when the worker says so, or ends itself, however that comes
try:
    os.killpg(int(sys.argv[1]), 9)
except ProcessLookupError:
    pass
shutil.rmtree(sys.argv[2], ignore_errors=True)
"""


def read_new(directory, seen):
    """{name: bytes} of the files that changed since seen, {name: stat}, which it brings up to date.

    Left out: unfinished files, and what Weights & Biases keeps."""
    names = [p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()]
    names = [name for name in names if not name.endswith(".tmp") and not name.startswith("wandb/")]
    files = {}
    for name in sorted(names, key=order, reverse=True):
        with suppress(FileNotFoundError):
            stat = (directory / name).stat()
            if seen.get(name) != (stat.st_mtime_ns, stat.st_size):
                files[name] = (directory / name).read_bytes()
                seen[name] = stat.st_mtime_ns, stat.st_size
    return files


def write(directory, files):
    for name in sorted(files, key=order):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{path}.tmp", "wb") as file:
            file.write(files[name])
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)


def order(name):
    if name in LAST_FILES:
        return LAST_FILES.index(name)
    return -1 if name.endswith(".py") else 0.5


def read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def fraction_done(directory):
    """Of a run, by the last whole row of its metrics."""
    total = read_json(directory / "args.json").get("total_timesteps")
    try:
        with open(directory / "metrics.csv", "rb") as file:
            file.seek(max(0, os.path.getsize(file.name) - 4096))
            return min(1.0, int(file.read().split(b"\n")[-2].split(b",")[0]) / total)
    except (OSError, ValueError, IndexError, TypeError):
        return 0.0


class Home:
    """On the machine that launched, an actor through which run directories come and go."""

    def __init__(self, root, commit):
        self.root, self.commit, self.stopping = Path(root), commit, False
        self.attempt, self.running, self.crashes = {}, {}, Counter()

    def begin(self, run_dir, attempt):
        """The files of a run to go on with, or None if nothing may begin any more."""
        if self.stopping:
            return None
        self.attempt[run_dir], self.running[run_dir] = attempt, fraction_done(self.root / run_dir)
        return read_new(self.root / run_dir, {})

    def beat(self, run_dir, attempt, machine, fraction, files, over=False):
        """Takes new files. False: stop, for the sweep does, or the run was given to another."""
        if self.attempt.setdefault(run_dir, attempt) != attempt:
            return False
        if facts := json.loads(files.get("args.json", b"{}")):
            facts["git_commit"] = facts.get("git_commit") or self.commit
            facts.setdefault("machine", machine)
            files["args.json"] = json.dumps(facts, indent=1).encode()
        write(self.root / run_dir, files)
        self.running[run_dir] = fraction
        if over:
            self.running.pop(run_dir, None)
        return not self.stopping

    def crashed(self, run_dir, log):
        """Keeps the log. Says whether to try again."""
        write(self.root, {f"{run_dir}.log": log})
        self.crashes[run_dir] += 1
        return self.crashes[run_dir] < 2

    def state(self, stop=False):
        """{run directory: fraction done} of what is running."""
        self.stopping = self.stopping or stop
        return self.running


def train(home, run_dir, command, scripts, path, threads, sync):
    """On some machine of the cluster: a run from where it stands. Returns a status and a text."""
    calls, attempt = ThreadPoolExecutor(1), os.urandom(8).hex()

    def ask(method, *args):  # in a thread of its own: a task that itself waits frees its core
        return calls.submit(lambda: ray.get(method.remote(*args))).result()

    files = ask(home.begin, run_dir, attempt)
    if files is None:
        return "stopped", ""
    work, seen = Path(tempfile.mkdtemp(prefix="ppo-")), {}
    directory, log = work / run_dir, work / "log.txt"
    write(directory, files)
    read_new(directory, seen)
    (work / command[1]).parent.mkdir(parents=True, exist_ok=True)
    (work / command[1]).write_bytes(scripts[command[1]])
    environ = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command[1:]], cwd=work, env=environ, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        )  # fmt: skip
    guard = subprocess.Popen(
        [sys.executable, "-c", GUARD, str(process.pid), work], start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    guard.wait()

    def beat(files, over=False):
        done = fraction_done(directory)
        return ask(home.beat, run_dir, attempt, machine(), done, files, over)

    try:
        stopping, due = False, time.monotonic() + sync
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(TICK)
            is_due = time.monotonic() > due
            if not beat(read_new(directory, seen) if is_due else {}) and not stopping:
                stopping = True
                process.terminate()  # it writes a checkpoint
            if is_due:
                due = time.monotonic() + sync
        beat(read_new(directory, seen), over=True)
        summary, code = read_json(directory / "summary.json"), process.returncode
        if code in (0, 3):
            return summary.get("status", "failed"), f"score {summary.get('score')}"
        if stopping:
            return "stopped", ""
        text = f"exit code {code}: {shlex.join(command)}\n"
        if code != 2 and ask(home.crashed, run_dir, text.encode() + log.read_bytes()):
            raise RuntimeError(f"will be tried once more: {text}")
        end = log.read_text(errors="replace").splitlines()[-15:]
        return "failed", text + "\n".join(f"    {line}" for line in end)
    finally:
        guard.stdin.close()


def cores():
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine():
    """Processor and cores."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = open("/proc/cpuinfo").read().splitlines()
        name = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores"


def read_commands(lines):
    """{run directory: command} of the lines. Raises ValueError if a line is none."""
    commands = {}
    for line in lines:
        command = shlex.split(line, comments=True)
        if not command:
            continue
        flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        flags.add_argument("--run-dir", default="")
        run_dir = flags.parse_known_args(command)[0].run_dir
        if "python" not in command[0] or not Path(*command[1:2]).is_file() or not run_dir:
            raise ValueError(f"not `python SCRIPT.py [flags] --run-dir DIR`: {line.strip()}")
        path = PurePosixPath(run_dir)
        for part in (path, PurePosixPath(command[1])):
            if part.is_absolute() or ".." in part.parts:
                raise ValueError(f"must be relative to here and below: {part}")
        if str(path) in commands:
            raise ValueError(f"--run-dir {path}: of two commands")
        commands[str(path)] = command
    if not commands:
        raise ValueError("no commands on standard input; see benchmark/mujoco.sh")
    return commands


def is_done(run_dir, command):
    """Whether this very command has finished or diverged there; if another did, its script says."""
    facts, summary = (read_json(Path(run_dir) / f"{x}.json") for x in ("args", "summary"))
    return summary.get("status") in ("finished", "diverged") and facts.get("command") == command[1:]


def without_listed(commands, path):
    """commands less those whose SETTING/TASK/SEED has ended, by a runs.csv of report.py."""
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] in ("finished", "diverged")]
    listed = {(row["setting"], row["task"], row["seed"]) for row in rows}
    return {r: c for r, c in commands.items() if PurePosixPath(r).parts[-3:] not in listed}


def hours(seconds):
    return f"{seconds // 3600:.0f}:{seconds // 60 % 60:02.0f}:{seconds % 60:02.0f}"


class Display:
    """A line for every run that ends, and one that says where the sweep stands."""

    def __init__(self, total, done, begun):
        self.total, self.done, self.begun = total, done, done + begun
        self.start, self.said, self.terminal = time.monotonic(), 0.0, sys.stdout.isatty()

    def line(self, text):
        print(f"\r{text:79}" if self.terminal else text, flush=True)

    def ended(self, run_dir, status, text):
        self.done += status in ("finished", "diverged")
        self.line(f"[{self.done}/{self.total}] {run_dir} {status} {text}")

    def state(self, running):
        """running: {run directory: fraction done}."""
        seconds, work = time.monotonic() - self.start, self.done + sum(running.values())
        text = f"{self.done}/{self.total} runs, {len(running)} running, {work / self.total:.1%}"
        if work > self.begun:
            text += f", {hours((self.total - work) * seconds / (work - self.begun))} left"
        if self.terminal:
            print(f"\r{text:79}", end="", flush=True)
        elif seconds - self.said > 60:
            self.said = seconds
            print(text, flush=True)


def connect(args):
    """Starts Ray here, or joins the cluster. Raises ValueError if a run fits nowhere."""
    if args.address:
        if args.address.startswith("ray://"):
            raise ValueError("--address HOST:PORT, not ray://, on a machine that is a node of it")
        resources = {"address": args.address}
    else:
        workers = args.workers or max(1, int(cores() / max(args.cpus, 1)))
        resources = {"address": "local", "num_cpus": max(1, round(workers * args.cpus))}
        resources |= {"include_dashboard": False, "object_store_memory": 10**8}
    try:
        ray.init(**resources, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"Ray, {resources['address']}: {reason}") from error
    for name, wanted in (("CPU", args.cpus), ("GPU", args.gpus)):
        most = max(node["Resources"].get(name, 0) for node in ray.nodes() if node["Alive"])
        if wanted > most:
            raise ValueError(f"--{name.lower()}s {wanted:g}: no machine has more than {most:g}")


def submit(args, commands):
    """Home, and {Ray's reference: run directory} of all commands."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    commit = subprocess.run(  # as the scripts find theirs
        "git describe --always --dirty --abbrev=40 --exclude='*'", shell=True, text=True,
        capture_output=True,
    ).stdout.strip()  # fmt: skip
    options = dict(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
    home = ray.remote(Home).options(**options).remote(os.getcwd(), commit)
    # One object for all: Ray keeps the order of tasks only among those that need the same objects.
    scripts = ray.put({name: Path(name).read_bytes() for name in {c[1] for c in commands.values()}})
    task = ray.remote(train).options(
        num_cpus=args.cpus, num_gpus=args.gpus, max_retries=LOST_WORKERS, retry_exceptions=True
    )
    path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = max(1, int(args.cpus))
    return home, {
        task.remote(home, run_dir, command, scripts, path, threads, args.sync): run_dir
        for run_dir, command in commands.items()
    }


def sweep(args, commands):
    """Runs what is left of commands. Returns the exit code."""
    left = {r: c for r, c in commands.items() if not is_done(r, c)}
    stale = [r for r in commands if r not in left and not same_script(r, commands[r])]
    print(f"{len(commands)} runs, {len(commands) - len(left)} of them done before", flush=True)
    if stale:
        print(f"{len(stale)} of these by another version of the script, such as {stale[0]}")
    if not left:
        return 0
    stopped = []

    def on_signal(signum, _):
        if stopped:
            os._exit(128 + signum)  # Ray goes down with this process, and the runs with Ray
        stopped.append(signum)

    connect(args)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup
            signal.signal(signum, on_signal)
    home, pending = submit(args, left)
    begun = sum(fraction_done(Path(run_dir)) for run_dir in left)
    show = Display(len(commands), len(commands) - len(left), begun)
    failed, deadline = {}, None
    while pending:
        ready, _ = ray.wait(list(pending), timeout=TICK)
        for ref in ready:
            run_dir = pending.pop(ref)
            try:
                status, text = ray.get(ref)
            except ray.exceptions.RayError as error:
                status, text = "failed", str(error).strip().splitlines()[-1]
            if status == "failed":
                failed[run_dir] = text
            show.ended(run_dir, status, text.splitlines()[0] if text else "")
        running = ray.get(home.state.remote(stop=bool(stopped)))
        show.state(running)
        if stopped:
            if not deadline:
                show.line(f"stops: waits for the checkpoints of {len(running)} runs")
                deadline = time.monotonic() + 60
            if not running or time.monotonic() > deadline:
                break
    show.line(f"{show.done} of {show.total} runs done in {hours(time.monotonic() - show.start)}")
    for run_dir, text in failed.items():
        print(f"\nFAILED {run_dir}: {text}")
    if stopped:
        print("stopped; the same command goes on from here", flush=True)
        return 128 + stopped[0]
    return 1 if failed else 0


def same_script(run_dir, command):
    """Whether the copy in run_dir is what command would run, if its script keeps one."""
    script = Path(command[1])
    copy = Path(run_dir) / script.name
    return not copy.exists() or copy.read_bytes() == script.read_bytes()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="runs at a time on this machine; default: cores")
    where.add_argument("--address", help="HOST:PORT of a Ray cluster, or auto")
    parser.add_argument("--cpus", type=float, default=1, help="cores, and threads, of a run")
    parser.add_argument("--gpus", type=float, default=0, help="of a run; 0.25: four runs share one")
    parser.add_argument("--sync", type=float, default=30, help="seconds between copies of a run")
    parser.add_argument("--skip", metavar="RUNS_CSV", help="skip the runs done by this report")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    args = parser.parse_args()
    try:
        for name, least in (("workers", 1), ("cpus", 0), ("gpus", 0), ("sync", 0)):
            if (value := getattr(args, name)) is not None and value < least:
                raise ValueError(f"--{name} {value}: must be at least {least}")
        commands = read_commands(sys.stdin)
        try:
            commands = without_listed(commands, args.skip) if args.skip else commands
        except (OSError, KeyError) as error:
            raise ValueError(f"--skip {args.skip}: no runs.csv of report.py: {error}") from error
        if args.dry_run:
            print(*map(shlex.join, commands.values()), sep="\n")
            return 0
        if ray is None:
            raise ValueError("Ray is missing: pip install -r benchmark/requirements.txt")
        return sweep(args, commands)
    except (ValueError, ConnectionError) as error:
        print(f"launch.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
