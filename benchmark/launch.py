"""Runs the training commands on standard input, one a line, on this machine or on a Ray cluster.

    bash benchmark/table1.sh                       all cores of this machine
    bash benchmark/table1.sh --workers 4           four runs at a time
    bash benchmark/table1.sh --address HOST:6379   a Ray cluster that this machine is a node of
    bash benchmark/table1.sh --dry-run             prints the commands, runs nothing

A command is `python SCRIPT.py [flags] --run-dir DIR`; each has its own DIR, a relative path. Ray
decides what runs where and when, and repeats elsewhere what a lost worker or machine was running.
Each run works in a temporary directory of its machine. A machine of a cluster needs the same
versions of Python, of requirements.txt and of Ray, and the same RAY_AUTH_TOKEN, but neither this
repository nor a shared disk: the script, the files of this repository that it imports and what
there is of the run directory are sent there, and new files come back every --sync seconds and at
the end.

Finished and diverged runs are skipped; the others go on from the last checkpoint that came back,
bit for bit. A run that fails is tried once more, unless its command is wrong, then listed with the
end of its log; all of the log is in DIR.log. Ctrl-C, SIGTERM or SIGHUP lets every run write a
checkpoint, for a minute at most, fetches it and ends; a second one does not wait. Exit code: 0 all
finished or diverged, 1 some failed, 2 bad usage, 130, 143 or 129 stopped.
"""

import argparse
import ast
import csv
import fcntl
import json
import math
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import cache
from itertools import takewhile
from pathlib import Path, PurePosixPath

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
except ImportError:
    ray = None

LOST_WORKERS = 10  # that one run survives
TICK = 1.0  # seconds between two looks at a run, and at the sweep
# The order in which the files of a run directory are written; they are read in the opposite one.
# So a copy made while it grows, or cut short, is one that its script goes on with. None: others.
ORDER = ("args.json", ".py", None, "metrics.csv", "agent.pt", "checkpoint.pt", "summary.json")
GUARD = """
import os, shutil, sys
if os.fork():
    os._exit(0)  # so that Ray, which kills a worker's children with it, does not know of this one
sys.stdin.read()  # ends when the worker says so, or ends itself, however that comes
try:
    os.killpg(int(sys.argv[1]), 9)
except OSError:
    pass
shutil.rmtree(sys.argv[2], ignore_errors=True)
"""


def say(text, end="\n"):
    """Prints. Where the reader, a terminal or `| tee`, is gone, the sweep goes on in silence."""
    try:
        print(text, end=end, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_order(name):
    name = ".py" if name.endswith(".py") else name
    return ORDER.index(name if name in ORDER else None)


def write(directory, files):
    """Replaces or adds files, {name: bytes}, one at a time; then removes those with None."""
    gone = {name for name in files if files[name] is None}
    for name in sorted(files.keys() - gone, key=write_order):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(files[name])
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # where it failed: a full disk needs its room
    for name in gone:
        (directory / name).unlink(missing_ok=True)


def read_new(directory, seen):
    """{name: bytes} of the files that changed since seen, {name: stat}, which it brings up to date.

    None for those of replay/ that are gone: acer.py removes what it needs no more.
    Left out: unfinished files, and what Weights & Biases keeps."""
    files = {}

    def read(name):
        with suppress(FileNotFoundError):
            stat = (directory / name).stat()
            if seen.get(name) != (stat.st_mtime_ns, stat.st_size):
                files[name] = (directory / name).read_bytes()
                seen[name] = stat.st_mtime_ns, stat.st_size

    first = ORDER[:2:-1]  # a checkpoint before a look at what it needs
    for name in first:
        read(name)
    found = [Path(root, name) for root, _, names in os.walk(directory) for name in names]
    names = {path.relative_to(directory).as_posix() for path in found}
    for name in sorted(names - set(first), key=write_order, reverse=True):
        if not name.endswith(".tmp") and not name.startswith("wandb/"):
            read(name)
    for name in [x for x in seen.keys() - names if x.startswith("replay/")]:
        files[name] = None
        del seen[name]
    return files


def lock(directory, file=None):
    """Keeps other launchers out of a directory until its result, a file descriptor, is closed.

    Raises BlockingIOError if one is in, or a script that has locked file."""
    directory.mkdir(parents=True, exist_ok=True)
    number = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if file and (directory / file).exists():
            with open(directory / file, "a") as opened:
                fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        raise
    except OSError:
        pass  # a file system without locks
    return number


def read_json(path):
    """What path holds, {} if that is nothing readable."""
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


@cache
def source_files(script):
    """The paths of script and of every file of this repository that it imports, however indirectly.

    Imports are looked for beside the script, here, and in benchmark/rivals/. Raises SyntaxError."""
    found, unread = [], [Path(script)]
    while unread:
        found.append(path := unread.pop())
        modules = set()
        for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
            if isinstance(node, ast.Import):
                modules.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module)
        for module in sorted(modules):
            places = Path(script).parent, Path(), Path("benchmark/rivals")
            paths = [place / f"{module.replace('.', '/')}.py" for place in places]
            path = next(filter(Path.is_file, paths), None)
            if path and path not in found + unread:
                unread.append(path)
    return found


def same_script(run_dir, command):
    """Whether the copies in run_dir, if there are any, are of the files that command would run."""
    copies = [(Path(run_dir) / path.name, path) for path in source_files(command[1])]
    return all(not a.exists() or a.read_bytes() == b.read_bytes() for a, b in copies)


class Coordinator:
    """On the machine that launched, an actor through which run directories come and go."""

    def __init__(self, root, commit):
        self.root, self.commit = Path(root), commit
        self.stopping = False
        self.attempt = {}  # {run directory: the attempt whose files count}
        self.running = {}  # {run directory: fraction done}
        self.locks = {}  # {run directory: what lock() returned}
        self.crashes = Counter()

    def begin(self, run_dir, attempt):
        """The files of a run to go on with, or a status and a text if it may not begin."""
        if self.stopping:
            return "stopped", ""
        if run_dir not in self.locks:
            try:
                self.locks[run_dir] = lock(self.root / run_dir, "metrics.csv")
            except BlockingIOError:
                return "failed", "another process is at work on it"
            except OSError as error:  # as where a file has its name
                return "failed", str(error)
        self.attempt[run_dir] = attempt
        self.running[run_dir] = fraction_done(self.root / run_dir)
        return read_new(self.root / run_dir, {})

    def heartbeat(self, run_dir, attempt, machine, fraction, files, ended=False):
        """Takes new files. False: stop, for the sweep does, or the run was given to another."""
        if self.attempt.setdefault(run_dir, attempt) != attempt:
            return False
        if saved_args := json.loads(files.get("args.json", b"{}")):
            saved_args["git_commit"] = saved_args.get("git_commit") or self.commit
            saved_args.setdefault("machine", machine)
            files["args.json"] = json.dumps(saved_args, indent=1).encode()
        write(self.root / run_dir, files)
        self.running[run_dir] = fraction
        if ended:
            self.running.pop(run_dir, None)
            if run_dir in self.locks:  # of this process, should Ray have begun another
                os.close(self.locks.pop(run_dir))
            with suppress(OSError):  # of bad usage nothing is left
                (self.root / run_dir).rmdir()
        return not self.stopping

    def crashed(self, run_dir, log):
        """Adds the log to DIR.log. Says whether to try again."""
        with open(self.root / f"{run_dir}.log", "ab") as file:
            file.write(log + b"\n")
        self.crashes[run_dir] += 1
        return self.crashes[run_dir] < 2

    def state(self, stop):
        """What is running, {run directory: fraction done}. stop: all of it is to end."""
        self.stopping = stop
        return self.running


def start(work, command, threads, path):
    """A run in the directory work, and the guard that ends it and work when this process ends."""
    path = [str(work), str((work / command[1]).parent), *path]
    environ = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(path)}
    with open(work / "log.txt", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command[1:]], cwd=work, env=os.environ | environ,
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    guard = subprocess.Popen(
        [sys.executable, "-c", GUARD, str(process.pid), work], start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    guard.wait()
    return process, guard


def train(coordinator, run_dir, command, sources, path, threads, sync):
    """On some machine of the cluster: a run from where it stands. Returns a status and a text."""
    calls, attempt = ThreadPoolExecutor(1), os.urandom(8).hex()

    def ask(method, *args):  # in a thread of its own: a task that itself waits frees its core
        return calls.submit(lambda: ray.get(method.remote(*args))).result()

    files = ask(coordinator.begin, run_dir, attempt)
    if isinstance(files, tuple):
        return files
    work, seen = Path(tempfile.mkdtemp(prefix="ppo-")), {}
    directory = work / run_dir
    try:
        write(directory, files)
        read_new(directory, seen)
        write(work, sources[command[1]])
        process, guard = start(work, command, threads, path)
    except BaseException:  # a full disk, say
        shutil.rmtree(work, ignore_errors=True)
        raise

    def heartbeat(files, ended=False):
        done = fraction_done(directory)
        return ask(coordinator.heartbeat, run_dir, attempt, machine(), done, files, ended)

    try:
        stopping, next_sync = False, time.monotonic() + sync
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(TICK)
            is_due = time.monotonic() > next_sync
            if not heartbeat(read_new(directory, seen) if is_due else {}) and not stopping:
                stopping = True
                process.terminate()  # it writes a checkpoint
            if is_due:
                next_sync = time.monotonic() + sync
        heartbeat(read_new(directory, seen), ended=True)
        summary = read_json(directory / "summary.json")
        if process.returncode in (0, 3) and "status" in summary:
            return summary["status"], f"score {summary.get('score')}"
        if stopping:
            return "stopped", ""
        log = (work / "log.txt").read_bytes()
        text = f"exit code {process.returncode}: {shlex.join(command)}\n"
        again = ask(coordinator.crashed, run_dir, text.encode() + log)
        if again and process.returncode != 2:
            return "again", text
        last_lines = log.decode(errors="replace").splitlines()[-15:]
        return "failed", text + "\n".join(f"    {line}" for line in last_lines)
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


def git_commit():
    """As the scripts find theirs; empty outside a repository."""
    command = "git describe --always --dirty --abbrev=40 --exclude='*'"
    done = subprocess.run(command, shell=True, text=True, capture_output=True)
    return done.stdout.strip()


def read_commands(lines):
    """{run directory: command} of the lines. Raises ValueError if a line is none."""
    commands = {}
    for line in lines:
        try:
            words = [] if line.lstrip().startswith("#") else shlex.split(line)
            command = list(takewhile(lambda word: not word.startswith("#"), words))
        except ValueError as error:
            raise ValueError(f"{error}: {line.strip()}") from error
        if not command:
            continue
        flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        flags.add_argument("--run-dir", default="")
        try:
            run_dir = flags.parse_known_args(command)[0].run_dir
        except argparse.ArgumentError as error:
            raise ValueError(f"{error}: {line.strip()}") from error
        if "python" not in command[0] or not Path(*command[1:2]).is_file() or not run_dir:
            raise ValueError(f"not `python SCRIPT.py [flags] --run-dir DIR`: {line.strip()}")
        path = PurePosixPath(run_dir)
        for part in (path, PurePosixPath(command[1])):
            if part.is_absolute() or ".." in part.parts or not part.parts:
                raise ValueError(f"must be relative to here and below: {part}")
        if str(path) in commands:
            raise ValueError(f"--run-dir {path}: of two commands")
        commands[str(path)] = command
    if not commands:
        raise ValueError("no commands on standard input; see benchmark/mujoco.sh")
    return commands


def is_done(run_dir, command):
    """Whether this very command has finished or diverged there; if another did, its script says."""
    status = read_json(Path(run_dir) / "summary.json").get("status")
    saved_args = read_json(Path(run_dir) / "args.json")
    return status in ("finished", "diverged") and saved_args.get("command") == command[1:]


def without_listed(commands, path):
    """commands less those whose SETTING/TASK/SEED has ended, by a runs.csv of report.py.

    Raises ValueError if path is none."""
    try:
        with open(path, newline="") as file:
            rows = csv.DictReader(file)
            if missing := {"setting", "task", "seed", "status"} - set(rows.fieldnames or ()):
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            ended = [x for x in rows if x["status"] in ("finished", "diverged")]
        listed = {(row["setting"], row["task"], row["seed"]) for row in ended}
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"--skip {path}: no runs.csv of report.py: {error}") from error
    return {r: c for r, c in commands.items() if PurePosixPath(r).parts[-3:] not in listed}


class Display:
    """A line for every run that ends, and one that says where the sweep stands."""

    def __init__(self, total, done, fractions):
        self.total, self.done, self.failed = total, done, 0
        self.fractions = fractions  # {run directory: fraction done} of those that have not ended
        self.work_before = self.work()
        self.start, self.last_print = time.monotonic(), 0.0
        self.terminal = sys.stdout.isatty()

    def line(self, text):
        say(f"\r{text:79}" if self.terminal else text)

    def work(self):
        """Runs done, with the parts of others."""
        return self.done + sum(self.fractions.values())

    def ended(self, run_dir, status, text):
        if status != "stopped":
            del self.fractions[run_dir]
            self.done += (done := status in ("finished", "diverged"))
            self.failed += not done
        self.line(f"[{self.done}/{self.total}] {run_dir} {status} {text}")

    def state(self, running):
        """running: {run directory: fraction done}."""
        self.fractions |= running
        seconds, work, total = time.monotonic() - self.start, self.work(), self.total - self.failed
        text = f"{self.done}/{self.total} runs, {len(running)} running, {work / self.total:.1%}"
        if work > self.work_before:
            left = (total - work) * seconds / (work - self.work_before)
            text += f", {timedelta(seconds=round(left))} left"
        if self.terminal:
            say(f"\r{text:79}", end="")
        elif seconds - self.last_print > 60:
            self.last_print = seconds
            say(text)

    def end(self):
        took = timedelta(seconds=round(time.monotonic() - self.start))
        self.line(f"{self.done} of {self.total} runs done in {took}")


def connect(args):
    """Starts Ray here, or joins the cluster. Raises ValueError if a run fits nowhere."""
    if args.address:
        if args.address.startswith("ray://"):
            raise ValueError("--address HOST:PORT, not ray://, on a machine that is a node of it")
        resources = {"address": args.address}
    else:
        workers = args.workers or max(1, int(cores() / max(args.cpus, 1)))
        resources = {"address": "local", "num_cpus": workers}
        resources |= {"include_dashboard": False, "object_store_memory": 10**8}
    try:
        ray.init(**resources, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"Ray, {resources['address']}: {reason}") from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": args.cpus if args.address else 1, "GPU": args.gpus}
    for name, number in wanted.items():
        most = max(node.get(name, 0) for node in nodes)
        if number > most:
            raise ValueError(f"--{name.lower()}s {number:g}: no machine has more than {most:g}")
    if not any(all(node.get(name, 0) >= x for name, x in wanted.items()) for node in nodes):
        raise ValueError(f"--cpus {args.cpus:g} --gpus {args.gpus:g}: no machine has both")


def submit(args, commands):
    """The Coordinator, and what begins a run by its directory and returns Ray's reference."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    options = dict(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
    coordinator = ray.remote(Coordinator).options(**options).remote(os.getcwd(), git_commit())
    sources = {
        script: {path.as_posix(): path.read_bytes() for path in source_files(script)}
        for script in {command[1] for command in commands.values()}
    }
    # One object for all: Ray keeps the order of tasks only among those that need the same objects.
    sources = ray.put(sources)
    task = ray.remote(train).options(
        num_cpus=args.cpus if args.address else 1,  # here --workers says how many at a time
        num_gpus=args.gpus, max_retries=LOST_WORKERS, retry_exceptions=True,
    )  # fmt: skip
    path = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = max(1, int(args.cpus))

    def begin(run_dir):
        command = commands[run_dir]
        beside = os.path.dirname(os.path.abspath(command[1]))  # where an environment may lie
        paths = [beside, *path]
        return task.remote(coordinator, run_dir, command, sources, paths, threads, args.sync)

    return coordinator, begin


def catch_signals():
    """A list that gets the number of the first signal; the second ends this process at once."""
    caught = []

    def on_signal(signum, _):
        if caught:
            os._exit(128 + signum)  # Ray goes down with this process, and the runs with Ray
        caught.append(signum)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup
            signal.signal(signum, on_signal)
    return caught


def result(ref):
    """What train() returned."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        return "failed", str(error).strip().splitlines()[-1]


def sweep(args, commands):
    """Runs what is left of commands. Returns the exit code."""
    unfinished = {r: command for r, command in commands.items() if not is_done(r, command)}
    done = [r for r in commands if r not in unfinished]
    say(f"{len(commands)} runs, {len(done)} of them done before")
    if stale := [r for r in done if not same_script(r, commands[r])]:
        say(f"{len(stale)} of these by another version of the script, such as {stale[0]}")
    if not unfinished:
        return 0
    for run_dir in unfinished:
        parent = next(path for path in Path(run_dir).absolute().parents if path.exists())
        if not os.access(parent, os.W_OK):
            raise ValueError(f"--run-dir {run_dir}: {parent} cannot be written")
    connect(args)
    stopped = catch_signals()
    coordinator, begin = submit(args, unfinished)
    pending = {begin(run_dir): run_dir for run_dir in unfinished}
    fractions = {run_dir: fraction_done(Path(run_dir)) for run_dir in unfinished}
    display = Display(len(commands), len(done), fractions)
    failed, deadline = {}, None
    try:
        while pending:
            ready, _ = ray.wait(list(pending), timeout=TICK)
            for ref in ready:
                run_dir, (status, text) = pending.pop(ref), result(ref)
                if status == "again" and not stopped:
                    pending[begin(run_dir)] = run_dir
                    display.line(f"{run_dir} is tried once more: {text.strip()}")
                    continue
                if status not in ("finished", "diverged") and not stopped:
                    failed[run_dir] = text
                display.ended(run_dir, status, text.partition("\n")[0])
            running = ray.get(coordinator.state.remote(stop=bool(stopped)))
            running = {r: running[r] for r in running.keys() & set(pending.values())}
            display.state(running)
            if stopped:
                if not deadline:
                    display.line(f"stops: waits for the checkpoints of {len(running)} runs")
                    deadline = time.monotonic() + 60
                if not running or time.monotonic() > deadline:
                    break
    except ray.exceptions.RayError as error:  # not of a run: the cluster is gone
        text = str(error).strip().splitlines()[-1]
        failed[f"{len(pending)} runs"] = f"{text}; the same command goes on from here"
    display.end()
    for run_dir, text in failed.items():
        say(f"\nFAILED {run_dir}: {text}")
    if stopped:
        say("stopped; the same command goes on from here")
        return 128 + stopped[0]
    return 1 if failed else 0


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="runs at a time here; default: cores / --cpus")
    where.add_argument("--address", help="HOST:PORT of a Ray cluster, or auto")
    parser.add_argument("--cpus", type=float, default=1, help="cores, and threads, of a run")
    parser.add_argument("--gpus", type=float, default=0, help="of a run; 0.25: four runs share one")
    parser.add_argument("--sync", type=float, default=30, help="seconds between copies of a run")
    parser.add_argument("--skip", metavar="RUNS_CSV", action="append", default=[],
                        help="skip the runs done by this report; may be given again")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    args = parser.parse_args()
    for name, least in (("workers", 1), ("cpus", 0.01), ("gpus", 0), ("sync", 0)):
        if (value := getattr(args, name)) is not None and not least <= value < math.inf:
            parser.error(f"--{name} {value}: must be a number, at least {least}")
    return args


def main():
    args = parse_args()
    try:
        commands = read_commands(sys.stdin)
        for path in args.skip:
            commands = without_listed(commands, path)
        if args.dry_run:
            for command in commands.values():
                say(shlex.join(command))
            return 0
        if ray is None:
            raise ValueError("Ray is missing: pip install -r benchmark/requirements.txt")
        return sweep(args, commands)
    except (ValueError, SyntaxError, ConnectionError) as error:
        print(f"launch.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
