"""benchmark/launch.py: what it refuses, and real sweeps on Ray, one of them on two nodes."""

import csv
import json
import os
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
import launch as launcher  # noqa: E402
from launch import read_commands, read_new, same_script, source_files, write  # noqa: E402

PPO = "--env-id InvertedPendulum --num-steps 256 --no-compile --checkpoint-every 1"

# A run of short steps, with the files and exit codes of a real one. --fault says what befalls it in
# step 2: crash (always), once (when it first comes there), diverge; or at once: usage, silent. As
# long as there is a file $HOLD, it waits in step 3.
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
if args.fault == "silent":
    print("nothing done")
    sys.exit(0)
d = args.run_dir
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
d.mkdir(parents=True, exist_ok=True)
(d / "fake.py").write_bytes(pathlib.Path(__file__).read_bytes())
saved_args = dict(command=sys.argv, total_timesteps=args.total_timesteps, git_commit="")
saved_args |= dict(threads=os.environ["OMP_NUM_THREADS"])
saved_args |= {x: sys.modules[x].__file__ for x in ("trpo", "ppo") if x in sys.modules}
(d / "args.json").write_text(json.dumps(saved_args))
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
    time.sleep(0.05)
    if step == 2 and args.fault == "diverge":
        end("diverged", 3)
    if step == 2 and args.fault == "crash" or args.fault == "once" and step == 2 and start == 0:
        print("first line\nthe reason of it")
        end("failed", 1)
    rows.append(f"{step},{os.getpid()}\n")
    put("metrics.csv", "".join(rows))
    put("checkpoint.pt", str(step))
    while step == 3 and os.path.exists(os.environ["HOLD"]) and not stop:
        time.sleep(0.01)
    if stop:
        end("interrupted", 143)
end("finished", 0)
"""
FAULTS = ("once", "crash", "diverge", "usage", "silent")


launched = []


@pytest.fixture(autouse=True)
def end_launchers():
    """Of a test that failed."""
    yield
    while launched:
        launched.pop().kill()


def launch(folder, lines, *flags):
    """A launcher that runs lines in folder, started."""
    environ = {"HOLD": str(folder / "hold"), "TMPDIR": str(folder)}
    environ |= {"RAY_TMPDIR": "/tmp"}  # sockets: short names
    process = subprocess.Popen(
        [sys.executable, LAUNCH, *flags], cwd=folder, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | environ,
        # a shell that starts pytest in the background has it, and what it starts, ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    launched.append(process)
    process.stdin.write("\n".join(lines))
    process.stdin.close()
    process.stdin = None
    return process


def finish(process, timeout=180):
    output, _ = process.communicate(timeout=timeout)
    print(output)
    return process.returncode, output


def processes(folder):
    """{pid: command line} of the runs that work in folder; others may run the same tests."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if "--run-dir" in line and (path / "cwd").readlink().is_relative_to(folder):
                found[int(path.name)] = line
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
    """That have come back."""
    try:
        return [int(row["step"]) for row in csv.DictReader(open(folder / run_dir / "metrics.csv"))]
    except OSError:
        return []


def holding(folder):
    """The run directories whose runs wait in step 3 until folder / "hold" is removed."""
    paths = list(folder.glob("ppo-*/runs/**/checkpoint.pt"))
    return {"/".join(p.relative_to(folder).parts[1:-1]) for p in paths if p.read_text() == "3"}


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
        ("python fake.py --run-dir .", "must be relative"),
        ("python fake.py --run-dir a\npython fake.py --seed 2 --run-dir=a", "of two commands"),
    ],
)
def test_refuses(folder, monkeypatch, line, complaint):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=complaint):
        read_commands(line.splitlines())


def test_a_comment_begins_at_a_word(folder, monkeypatch):
    monkeypatch.chdir(folder)
    lines = ["# it's none", "python fake.py --run-dir 'a #1'", "python fake.py --run-dir b#2 # two"]
    assert list(read_commands(lines)) == ["a #1", "b#2"]


def test_time_left_counts_the_parts_of_runs_that_wait(capsys, monkeypatch):
    """Ten runs of which six tenths are done; a tenth of one more took a second."""
    monkeypatch.setattr(launcher.time, "monotonic", lambda: 100.0)
    display = launcher.Display(10, 0, {f"run{i}": 0.6 for i in range(10)})
    display.start, display.last_print = 99.0, -1000.0
    display.state({"run0": 0.7})
    assert capsys.readouterr().out == "0/10 runs, 1 running, 61.0%, 0:00:39 left\n"
    display.ended("run0", "finished", "score 1")
    assert display.work() == pytest.approx(1 + 9 * 0.6)
    for i in range(1, 9):
        display.ended(f"run{i}", "failed", "")
    display.last_print, display.work_before = -1000.0, 0.6
    capsys.readouterr()
    display.state({"run9": 0.6})
    assert capsys.readouterr().out == "1/10 runs, 1 running, 16.0%, 0:00:00 left\n"


def test_refuses_flags(folder):
    code, output = finish(launch(folder, ["python fake.py --run-dir a"], "--workers", "0"))
    assert code == 2 and "--workers 0: must be a number, at least 1" in output
    code, output = finish(launch(folder, ["python fake.py --run-dir /a"], "--dry-run"))
    assert (code, output) == (2, "launch.py: must be relative to here and below: /a\n")


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


def test_refuses_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    """Before anything is trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher.os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="--run-dir runs/a: .* cannot be written"):
        launcher.sweep(None, {"runs/a": ["python", "fake.py", "--run-dir", "runs/a"]})


def test_a_run_directory_is_locked_against_launchers_and_scripts(tmp_path):
    number = launcher.lock(tmp_path / "run", "metrics.csv")
    with pytest.raises(BlockingIOError):
        launcher.lock(tmp_path / "run")
    os.close(number)
    (tmp_path / "run/metrics.csv").touch()
    hold = f"import fcntl; f = open(r'{tmp_path}/run/metrics.csv', 'a'); fcntl.lockf(f, 6)"
    command = [sys.executable, "-c", f"{hold}; print('held', flush=True); input()"]
    script = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    script.stdout.readline()
    with pytest.raises(BlockingIOError):
        launcher.lock(tmp_path / "run", "metrics.csv")
    script.communicate(b"\n")
    os.close(launcher.lock(tmp_path / "run", "metrics.csv"))


def test_a_copy_that_is_cut_short_is_a_run_directory():
    """As the scripts begin one: args.json, then the sources; a checkpoint after its episodes."""
    names = ["checkpoint.pt", "trpo.py", "episodes.csv", "args.json", "metrics.csv"]
    expected = ["args.json", "trpo.py", "episodes.csv", "metrics.csv", "checkpoint.pt"]
    assert sorted(names, key=launcher.write_order) == expected


def test_skips_what_a_report_has(folder):
    """By setting, task and seed, if the run finished or diverged."""
    rows = ["setting,task,seed,status", "a,T,0,finished", "a,T,1,diverged", "a,T,2,interrupted"]
    (folder / "runs.csv").write_text("\n".join(rows) + "\n")
    lines = [f"python fake.py --run-dir runs/x/a/T/{i}" for i in range(4)]
    found = finish(launch(folder, lines, "--dry-run", "--skip", "runs.csv"))
    assert found == (0, "\n".join(lines[2:]) + "\n")
    (folder / "other.csv").write_text("setting,task\n")
    for name, reason in (("none.csv", "No such file"), ("other.csv", "no column seed, status")):
        code, output = finish(launch(folder, lines, "--skip", name))
        assert code == 2 and output.startswith(f"launch.py: --skip {name}: ") and reason in output


def test_copies_what_is_new_and_removes_what_a_replay_has_removed(tmp_path):
    here, there, seen = tmp_path / "here", tmp_path / "there", {}
    write(here, {"replay/1.zip": b"1", "replay/2.zip": b"2", "checkpoint.pt": b"2", "log": b""})
    write(there, read_new(here, seen))
    for name in ("replay/1.zip", "log"):
        (here / name).unlink()
    write(here, {"replay/3.zip": b"3"})
    new = read_new(here, seen)
    assert new == {"replay/1.zip": None, "replay/3.zip": b"3"}
    write(there, new)
    assert read_new(here, seen) == {}
    names = {path.name: path.read_bytes() for path in there.rglob("*.*")}
    assert names == {"2.zip": b"2", "3.zip": b"3", "checkpoint.pt": b"2"}
    assert (there / "log").exists()


@pytest.fixture
def rivals(folder, monkeypatch):
    """vpg.py, which imports trpo.py beside it, which imports ppo.py where the launcher starts."""
    monkeypatch.chdir(folder)
    path = Path("benchmark/rivals")
    path.mkdir(parents=True)
    (path / "vpg.py").write_text("import csv\nfrom trpo import step\n" + FAKE)
    (path / "trpo.py").write_text("import os, ppo\nstep = ppo.step\n")
    Path("ppo.py").write_text("def step():\n    import trpo\n")
    Path("unrelated.py").write_text("import ppo\n")
    return path


def test_finds_what_a_script_imports(rivals):
    found = source_files("benchmark/rivals/vpg.py")
    assert found == [rivals / "vpg.py", rivals / "trpo.py", Path("ppo.py")]


@pytest.mark.parametrize("name", ["vpg.py", "trpo.py", "ppo.py"])
def test_tells_runs_of_another_version(rivals, name):
    """Copies are compared, of the script and of what it imports, if the run directory has them."""
    run, command = Path("run"), ["python", "benchmark/rivals/vpg.py"]
    run.mkdir()
    assert same_script(run, command)
    for path in source_files(command[1]):
        (run / path.name).write_bytes(path.read_bytes())
    assert same_script(run, command)
    (run / name).write_text("other")
    assert not same_script(run, command)


def test_sends_what_a_script_imports(rivals, folder):
    """A run imports what was sent to where it works; it has as many threads as cores."""
    needs_ray()
    line = "python benchmark/rivals/vpg.py --run-dir runs/vpg"
    assert finish(launch(folder, [line], "--workers", "1", "--cpus", "2"))[0] == 0
    saved_args = json.loads((folder / "runs/vpg/args.json").read_text())
    found = [Path(saved_args[name]).relative_to(folder) for name in ("trpo", "ppo")]
    assert [path.parts[0][:4] for path in found] == ["ppo-", "ppo-"]
    assert [path.parts[1:] for path in found] == [("benchmark", "rivals", "trpo.py"), ("ppo.py",)]
    assert saved_args["threads"] == "2"


def test_finds_an_environment_beside_the_script(folder):
    needs_ray()
    (folder / "sub").mkdir()
    (folder / "sub/env.py").touch()
    (folder / "sub/own.py").write_text("import importlib\nimportlib.import_module('env')\n" + FAKE)
    line = "python sub/own.py --run-dir runs/own"
    assert finish(launch(folder, [line], "--workers", "1"))[0] == 0


def test_keeps_the_order_of_the_lines(folder):
    """Of several scripts: a sweep that is stopped has done the first seeds of all."""
    needs_ray()
    scripts = ["fake.py", "a.py", "a.py", "b.py", "b.py", "b.py"]  # as table1.sh has them
    for script in set(scripts):
        (folder / script).write_text(FAKE)
    runs = [(f"runs/{i}", scripts[i % len(scripts)]) for i in range(24)]
    lines = [f"python {script} --total-timesteps 1 --run-dir {run}" for run, script in runs]
    assert finish(launch(folder, lines, "--workers", "1"))[0] == 0
    ended = [(folder / run / "summary.json").stat().st_mtime_ns for run, _ in runs]
    assert ended == sorted(ended)


def test_every_outcome(folder):
    """Finished, crashed once, crashed twice, diverged, misused; then what a second sweep does."""
    needs_ray()
    lines = [f"python fake.py --run-dir runs/good/{i}" for i in range(3)]
    lines += [f"python fake.py --fault {x} --run-dir runs/{x}" for x in FAULTS]
    (folder / "hold").touch()
    (folder / "runs").mkdir()
    (folder / "runs/crash.log").write_text("a user's notes\n")
    sweep = launch(folder, lines, "--workers", "2", "--sync", "1")
    wait_for(lambda: holding(folder) == {"runs/good/0", "runs/good/1"})
    end = time.monotonic() + 3
    while time.monotonic() < end:  # a task that waits must not make room for a third
        assert len(processes(folder)) == 2
        time.sleep(0.1)
    (folder / "hold").unlink()
    code, output = finish(sweep)
    assert code == 1
    for run_dir in ("runs/good/0", "runs/good/1", "runs/good/2", "runs/once"):
        assert summary(folder, run_dir) == {"status": "finished", "score": 4.0}
        assert steps(folder, run_dir) == [1, 2, 3, 4]
        assert json.loads((folder / run_dir / "args.json").read_text())["threads"] == "1"
    assert summary(folder, "runs/diverge")["status"] == "diverged"
    assert summary(folder, "runs/crash")["status"] == "failed"
    wait_for(lambda: not list(folder.glob("ppo-*")))  # where the runs worked
    failed = output.split("FAILED")[1:]
    assert sorted(x.split()[0] for x in failed) == ["runs/crash:", "runs/silent:", "runs/usage:"]
    assert "the reason of it" in output and not (folder / "runs/usage").exists()
    log = (folder / "runs/crash.log").read_text()
    assert log.startswith("a user's notes\n") and log.count("the reason of it") == 2
    assert "nothing done" in output and "nothing done" in (folder / "runs/silent.log").read_text()

    before = {p: p.stat().st_mtime_ns for p in folder.glob("runs/**/*.json")}
    code, output = finish(launch(folder, [x for x in lines if "--fault" not in x], "--workers=1"))
    assert code == 0 and "3 runs, 3 of them done before" in output
    assert {p: p.stat().st_mtime_ns for p in folder.glob("runs/**/*.json")} == before


def test_a_second_launcher_stays_out_of_what_is_running(folder):
    needs_ray()
    (folder / "hold").touch()
    first = launch(folder, ["python fake.py --run-dir runs/a"], "--workers", "1")
    wait_for(lambda: holding(folder) == {"runs/a"})
    (folder / "runs/file").touch()
    lines = [f"python fake.py --run-dir runs/{x}" for x in ("a", "b", "file")]
    second = launch(folder, lines, "--workers", "2")
    wait_for(lambda: holding(folder) == {"runs/a", "runs/b"})
    (folder / "hold").unlink()
    code, output = finish(second)
    assert code == 1 and "FAILED runs/a: another process is at work on it" in output
    assert "FAILED runs/file: [Errno 17]" in output and "Traceback" not in output
    assert summary(folder, "runs/b")["status"] == "finished"
    assert finish(first)[0] == 0 and steps(folder, "runs/a") == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "signum, code, reader",
    [(signal.SIGINT, 130, "there"), (signal.SIGTERM, 143, "there"), (signal.SIGINT, 130, "gone")],
)
def test_stops_and_goes_on(folder, signum, code, reader):
    """The reader of what it prints, such as tee, is gone with Ctrl-C."""
    needs_ray()
    lines = [f"python fake.py --run-dir runs/{i}" for i in range(3)]
    (folder / "hold").touch()
    sweep = launch(folder, lines, "--workers", "2")
    wait_for(lambda: holding(folder) == {"runs/0", "runs/1"})
    if reader == "gone":
        sweep.stdout.close()
        sweep.stdout = None
    if signum == signal.SIGINT:  # Ctrl-C reaches the terminal's whole process group
        os.killpg(sweep.pid, signum)
    else:
        sweep.send_signal(signum)
    assert finish(sweep)[0] == code
    assert not processes(folder)
    assert [steps(folder, f"runs/{i}") for i in range(3)] == [[1, 2, 3], [1, 2, 3], []]
    assert summary(folder, "runs/0")["status"] == "interrupted"
    stopped = (folder / "runs/0/metrics.csv").read_text()

    (folder / "hold").unlink()
    assert finish(launch(folder, lines, "--workers", "3"))[0] == 0
    for i in range(3):
        assert steps(folder, f"runs/{i}") == [1, 2, 3, 4]
    assert (folder / "runs/0/metrics.csv").read_text().startswith(stopped)


def test_a_killed_launcher_leaves_no_orphans_and_loses_little(folder):
    needs_ray()
    line = "python fake.py --run-dir runs/0"
    (folder / "hold").touch()
    sweep = launch(folder, [line], "--workers", "1", "--sync", "1")
    wait_for(lambda: (folder / "runs/0/checkpoint.pt").exists() and holding(folder))
    wait_for(lambda: (folder / "runs/0/checkpoint.pt").read_text() == "3")
    sweep.kill()
    sweep.wait()
    wait_for(lambda: not processes(folder))
    wait_for(lambda: not list(folder.glob("ppo-*")))
    come_back = (folder / "runs/0/metrics.csv").read_text()
    assert steps(folder, "runs/0") == [1, 2, 3]
    (folder / "hold").unlink()
    assert finish(launch(folder, [line], "--workers", "1"))[0] == 0
    assert (folder / "runs/0/metrics.csv").read_text().startswith(come_back)
    assert steps(folder, "runs/0") == [1, 2, 3, 4]


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


def kill(pids):
    """Some of them may have gone already, for Ray's processes end when others of them do."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The address of a Ray cluster of two nodes on this machine, and the second one's process."""
    needs_ray()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", os.urandom(32).hex())  # this cluster's own
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environ = os.environ | {"TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    nodes = []

    def start(*flags):
        command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start"]
        command += ["--num-cpus=1", "--block", "--disable-usage-stats", *flags]
        log = tmp_path / f"node{len(nodes)}.log"
        with open(log, "w") as file:
            nodes.append(subprocess.Popen(command, stdout=file, stderr=file, env=environ))
        wait_for(lambda: "Ray runtime started" in log.read_text() or nodes[-1].poll())

    try:
        start("--head", f"--port={address.split(':')[1]}", "--include-dashboard=false")
        start(f"--address={address}")
        yield address, nodes[1]
    finally:
        for node in reversed(nodes):
            kill([node.pid, *descendants(node.pid)])
            node.wait()


def untimed(path):
    """The rows of metrics.csv without the columns of seconds and speed."""
    rows = list(csv.DictReader(open(path)))
    return [{k: x for k, x in row.items() if k != "sps" and "seconds" not in k} for row in rows]


def test_a_lost_node_changes_no_byte(cluster, tmp_path):
    """Two nodes, one killed in mid-sweep: every run complete, once, and as on one machine."""
    address, node = cluster
    lines = [
        f"python ppo_continuous.py {PPO} --total-timesteps 20480 --seed {i} --run-dir runs/{i}"
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
        found = {pid: x for pid, x in processes(tmp_path).items() if pid in alive}
        for line in found.values():
            run_dir = line.split()[-1]
            if (two / run_dir / "checkpoint.pt").exists():
                return run_dir, found
        return None

    run_dir, runs = wait_for(run_on_second_node)
    kill(set(descendants(node.pid)) - set(runs))  # what it ran is left to the guard
    wait_for(lambda: not runs.keys() & processes(tmp_path).keys())
    code, output = finish(sweep, 300)
    assert code == 0 and summary(two, run_dir)["status"] == "finished"
    assert sum(" finished " in line for line in output.splitlines()) == 3
    assert finish(launch(one, lines, "--workers", "2"), 300)[0] == 0
    for i in range(3):
        a, b = one / f"runs/{i}", two / f"runs/{i}"
        assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}
        for name in ("episodes.csv", "agent.pt"):
            assert (a / name).read_bytes() == (b / name).read_bytes()
        assert untimed(a / "metrics.csv") == untimed(b / "metrics.csv")
