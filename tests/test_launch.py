"""benchmark/launch.py: what it refuses, and real sweeps on Ray, one of them on two nodes."""

import csv
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "benchmark" / "launch.py"
sys.path.insert(0, str(LAUNCH.parent))
from launch import same_script  # noqa: E402

PPO = "--env-id InvertedPendulum --num-steps 256 --no-compile --checkpoint-every 1"

# A run in half a second a step, with the files and exit codes of a real one. --fault says what
# befalls it in step 2: crash (always), once (when it first comes there), diverge, usage.
FAKE = r"""
import argparse, json, os, pathlib, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--run-dir", type=pathlib.Path)
parser.add_argument("--total-timesteps", type=int, default=4)
parser.add_argument("--fault")
args = parser.parse_args()
if args.fault == "usage":
    print("bad usage")
    sys.exit(2)
d = args.run_dir
d.mkdir(parents=True, exist_ok=True)
(d / "fake.py").write_bytes(pathlib.Path(__file__).read_bytes())
facts = dict(command=sys.argv, total_timesteps=args.total_timesteps, git_commit="")
facts |= dict(threads=os.environ["OMP_NUM_THREADS"])
(d / "args.json").write_text(json.dumps(facts))
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
def end(status, code):
    (d / "summary.json").write_text(json.dumps(dict(status=status, score=float(step))))
    sys.exit(code)
def put(name, text):
    (d / f"{name}.tmp").write_text(text)
    os.replace(d / f"{name}.tmp", d / name)
start = int((d / "checkpoint.pt").read_text()) if (d / "checkpoint.pt").exists() else 0
rows = ["step,pid\n"]
if start:
    rows = open(d / "metrics.csv").readlines()[:start + 1]
step = start
for step in range(start + 1, args.total_timesteps + 1):
    time.sleep(0.5)
    if step == 2 and args.fault == "diverge":
        end("diverged", 3)
    if step == 2 and args.fault == "crash" or args.fault == "once" and step == 2 and start == 0:
        print("first line\nthe reason of it")
        sys.exit(1)
    rows.append(f"{step},{os.getpid()}\n")
    put("metrics.csv", "".join(rows))
    put("checkpoint.pt", str(step))
    if stop:
        end("interrupted", 143)
end("finished", 0)
"""


def launch(folder, lines, *flags):
    """A launcher that runs lines in folder, started."""
    process = subprocess.Popen(
        [sys.executable, LAUNCH, *flags], cwd=folder, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"TMPDIR": str(folder), "RAY_TMPDIR": "/tmp"},  # sockets: short names
    )  # fmt: skip
    process.stdin.write("\n".join(lines))
    process.stdin.close()
    process.stdin = None
    return process


def finish(process, timeout=180):
    output, _ = process.communicate(timeout=timeout)
    print(output)
    return process.returncode, output


def processes(*words):
    """{pid: command line} of the processes of this machine that name all words."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if all(word in line for word in words) and int(path.parent.name) != os.getpid():
            found[int(path.parent.name)] = line
    return found


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return value


def summary(folder, run_dir):
    try:
        return json.loads((folder / run_dir / "summary.json").read_text())
    except (OSError, ValueError):
        return {}


def steps(folder, run_dir):
    try:
        return [int(row["step"]) for row in csv.DictReader(open(folder / run_dir / "metrics.csv"))]
    except OSError:
        return []


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    return tmp_path


def needs_ray():
    pytest.importorskip("ray", reason="Ray is missing: pip install -r benchmark/requirements.txt")


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("", "no commands"),
        ("python fake.py", "not `python SCRIPT.py"),
        ("python missing.py --run-dir a", "not `python SCRIPT.py"),
        ("python fake.py --run-dir", "expected one argument"),
        ("python fake.py --run-dir /a", "must be relative"),
        ("python fake.py --run-dir ../a", "must be relative"),
        ("python fake.py --run-dir a\npython fake.py --seed 2 --run-dir=a", "of two commands"),
    ],
)
def test_refuses(folder, line, complaint):
    code, output = finish(launch(folder, [line], "--dry-run"))
    assert code == 2 and complaint in output


def test_refuses_flags(folder):
    code, output = finish(launch(folder, ["python fake.py --run-dir a"], "--workers", "0"))
    assert code == 2 and "--workers 0: must be at least 1" in output


def test_refuses_what_fits_no_machine(folder):
    needs_ray()
    code, output = finish(launch(folder, ["python fake.py --run-dir a"], "--gpus", "64"))
    assert code == 2 and "--gpus 64: no machine has more than" in output


def test_dry_run_prints_the_commands(folder):
    lines = ["python fake.py --run-dir runs/a/1", "python fake.py --run-dir 'runs/b c/1'"]
    assert finish(launch(folder, ["# comment", *lines], "--dry-run")) == (
        0,
        "\n".join(lines) + "\n",
    )


def test_skips_what_a_report_has(folder):
    """By setting, task and seed, if the run finished or diverged."""
    rows = ["setting,task,seed,status", "a,T,0,finished", "a,T,1,diverged", "a,T,2,interrupted"]
    (folder / "runs.csv").write_text("\n".join(rows) + "\n")
    lines = [f"python fake.py --run-dir runs/x/a/T/{i}" for i in range(4)]
    found = finish(launch(folder, lines, "--dry-run", "--skip", "runs.csv"))
    assert found == (0, "\n".join(lines[2:]) + "\n")
    code, output = finish(launch(folder, lines, "--skip", "none.csv"))
    assert code == 2 and "--skip none.csv" in output


@pytest.mark.parametrize(
    "name, runs",
    [("mujoco", 7), ("table1", 77), ("strict", 28), ("noclip", 30), ("atari", 49), ("bf16", 8)],
)
def test_sweeps_list_their_runs(name, runs):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = os.environ | {"SEEDS": "2", "PATH": path}
    command = ["bash", ROOT / "benchmark" / f"{name}.sh", "--dry-run"]
    out = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    commands = [shlex.split(line) for line in out.splitlines()]
    assert len(commands) == 2 * runs == len({c[-1] for c in commands})
    for command in commands:
        _, _, setting, task, seed = command[-1].split("/")
        assert command[command.index("--env-id") + 1] == task
        assert command[command.index("--seed") + 1] == seed
        if name == "bf16":
            assert setting == ("bf16" if "--bf16" in command else "float32")
        else:
            assert setting[-1].isalpha() or setting.split("-")[-1] in command


def test_tells_runs_of_another_version(folder):
    """A copy is compared; a script of benchmark/ that trains by another's keeps none of itself."""
    run, command = folder / "run", ["python", str(folder / "fake.py")]
    run.mkdir()
    for text, same in ((None, True), ("other", False), (FAKE, True)):
        if text:
            (run / "fake.py").write_text(text)
        assert same_script(run, command) == same


def test_keeps_the_order_of_the_lines(folder):
    """Of several scripts: a sweep that is stopped has done the first seeds of all."""
    needs_ray()
    scripts = ["fake.py"] + ["a.py"] * 3 + ["b.py"] * 7  # as table1.sh has them
    for script in set(scripts):
        (folder / script).write_text(FAKE.replace("sleep(0.5)", "sleep(0.05)"))
    runs = [(f"runs/{i}", scripts[i % 11]) for i in range(44)]
    lines = [f"python {script} --total-timesteps 1 --run-dir {run}" for run, script in runs]
    assert finish(launch(folder, lines, "--workers", "2"))[0] == 0
    ended = [(folder / run / "summary.json").stat().st_mtime_ns for run, _ in runs]
    places = sorted(range(len(runs)), key=ended.__getitem__)
    assert all(abs(i - place) <= 3 for i, place in enumerate(places)), places


def test_every_outcome(folder):
    """Finished, crashed once, crashed twice, diverged, misused; then what a second sweep does."""
    needs_ray()
    lines = [f"python fake.py --run-dir runs/good/{i}" for i in range(3)]
    lines += [f"python fake.py --fault {x} --run-dir runs/{x}" for x in FAULTS]
    sweep = launch(folder, lines, "--workers", "2", "--sync", "1")
    most = 0
    while sweep.poll() is None:  # a task that waits must not make room for a third
        most = max(most, len(processes(" fake.py ", "--run-dir runs/")))
        time.sleep(0.3)
    code, output = finish(sweep)
    assert code == 1 and most == 2
    for run_dir in ("runs/good/0", "runs/good/1", "runs/good/2", "runs/once"):
        assert summary(folder, run_dir) == {"status": "finished", "score": 4.0}
        assert steps(folder, run_dir) == [1, 2, 3, 4]
    assert summary(folder, "runs/diverge")["status"] == "diverged"
    wait_for(lambda: not list(folder.glob("ppo-*")))  # where the runs worked
    failed = output.split("FAILED")[1:]
    assert sorted(x.split()[0] for x in failed) == ["runs/crash:", "runs/usage:"]
    assert "the reason of it" in output and not (folder / "runs/usage").exists()
    assert "the reason of it" in (folder / "runs/crash.log").read_text()

    before = {p: p.stat().st_mtime_ns for p in folder.glob("runs/**/*.json")}
    code, output = finish(launch(folder, [x for x in lines if "--fault" not in x], "--workers=1"))
    assert code == 0 and "3 runs, 3 of them done before" in output
    assert {p: p.stat().st_mtime_ns for p in folder.glob("runs/**/*.json")} == before


@pytest.mark.parametrize("flags, threads", [((), "1"), (("--cpus", "2"), "2")])
def test_a_run_has_as_many_threads_as_cores(folder, flags, threads):
    needs_ray()
    line = "python fake.py --total-timesteps 1 --run-dir runs/0"
    assert finish(launch(folder, [line], "--workers", "1", *flags))[0] == 0
    assert json.loads((folder / "runs/0/args.json").read_text())["threads"] == threads


FAULTS = ("once", "crash", "diverge", "usage")


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stops_and_goes_on(folder, signum, code):
    needs_ray()
    lines = [f"python fake.py --total-timesteps 12 --run-dir runs/{i}" for i in range(3)]
    sweep = launch(folder, lines, "--workers", "2")
    wait_for(lambda: len(processes(" fake.py ", "--run-dir runs/")) == 2)
    time.sleep(2)
    if signum == signal.SIGINT:  # Ctrl-C reaches the terminal's whole process group
        os.killpg(sweep.pid, signum)
    else:
        sweep.send_signal(signum)
    assert finish(sweep)[0] == code
    assert not processes(" fake.py ", "--run-dir runs/")
    stopped = {i: steps(folder, f"runs/{i}") for i in range(3)}
    assert stopped[0] and stopped[1] and not stopped[2]
    assert summary(folder, "runs/0")["status"] == "interrupted"
    pids = (folder / "runs/0/metrics.csv").read_text()

    assert finish(launch(folder, lines, "--workers", "3"))[0] == 0
    for i in range(3):
        assert steps(folder, f"runs/{i}") == list(range(1, 13))
    assert (folder / "runs/0/metrics.csv").read_text().startswith(pids)


def test_a_killed_launcher_leaves_no_orphans_and_loses_little(folder):
    needs_ray()
    line = "python fake.py --total-timesteps 12 --run-dir runs/0"
    sweep = launch(folder, [line], "--workers", "1", "--sync", "1")
    wait_for(lambda: len(steps(folder, "runs/0")) > 2)
    sweep.kill()
    sweep.wait()
    wait_for(lambda: not processes(" fake.py ", "--run-dir runs/0"))
    wait_for(lambda: not list(folder.glob("ppo-*")))
    come_back = (folder / "runs/0/metrics.csv").read_text()
    assert finish(launch(folder, [line], "--workers", "1"))[0] == 0
    assert (folder / "runs/0/metrics.csv").read_text().startswith(come_back)
    assert steps(folder, "runs/0") == list(range(1, 13))


def descendants(pid):
    children, found = {}, []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    todo = [pid]
    while todo:
        found += (more := children.get(todo.pop(), []))
        todo += more
    return found


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The address of a Ray cluster of two nodes on this machine, and the second one's process."""
    needs_ray()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", os.urandom(32).hex())  # this cluster's own
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    nodes = []

    def start(*flags):
        command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start"]
        command += ["--num-cpus=1", "--block", "--disable-usage-stats", *flags]
        log = tmp_path / f"node{len(nodes)}.log"
        with open(log, "w") as file:
            nodes.append(subprocess.Popen(command, stdout=file, stderr=file))
        wait_for(lambda: "Ray runtime started" in log.read_text() or nodes[-1].poll())

    try:
        start("--head", f"--port={address.split(':')[1]}", "--include-dashboard=false")
        start(f"--address={address}")
        yield address, nodes[1]
    finally:
        for node in reversed(nodes):
            for pid in [node.pid, *descendants(node.pid)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            node.wait()


def test_a_lost_node_changes_no_byte(cluster, tmp_path):
    """Two nodes, one killed in mid-sweep: every run complete, once, and as on one machine."""
    address, node = cluster
    lines = [
        f"python ppo_continuous.py {PPO} --total-timesteps 40960 --seed {i} --run-dir runs/{i}"
        for i in range(3)
    ]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ppo_continuous.py").write_bytes(
            (ROOT / "ppo_continuous.py").read_bytes()
        )
    one, two = tmp_path / "one", tmp_path / "two"

    sweep = launch(two, lines, "--address", address, "--sync", "1")

    def run_on_second_node():
        """Of its processes, if what they run has a checkpoint here."""
        alive = descendants(node.pid)
        found = {p: x for p, x in processes("ppo_continuous.py", "--run-dir").items() if p in alive}
        for line in found.values():
            run_dir = line.split()[-1]
            if (two / run_dir / "checkpoint.pt").exists():
                return run_dir, found
        return None

    run_dir, runs = wait_for(run_on_second_node)
    for pid in descendants(node.pid):  # the machine's Ray dies; what it ran is left to the guard
        line = processes("").get(pid, "")
        if pid not in runs and " -c " not in line:
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(pid in runs for pid in processes("ppo_continuous.py")), 20)
    code, output = finish(sweep, 300)
    assert code == 0 and summary(two, run_dir)["status"] == "finished"
    assert sum(" finished " in line for line in output.splitlines()) == 3
    assert finish(launch(one, lines, "--workers", "1"), 300)[0] == 0
    for i in range(3):
        a, b = one / f"runs/{i}", two / f"runs/{i}"
        assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}
        for name in ("episodes.csv", "agent.pt"):
            assert (a / name).read_bytes() == (b / name).read_bytes()
        keep = [[r for r in csv.reader(open(x / "metrics.csv"))] for x in (a, b)]
        same = [[row[:1] + row[3:] for row in rows] for rows in keep]  # all but seconds and sps
        assert same[0] == same[1] and len(same[0]) == 161
