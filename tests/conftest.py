"""What the tests share: the scripts as modules, and a cheap way to run them as programs."""

import csv
import multiprocessing
import os
import runpy
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
ALL = [import_module(path.stem) for path in sorted(ROOT.glob("ppo_*.py"))]
MUJOCO_SCRIPTS = [script for script in ALL if script.__name__ != "ppo_atari"]
torch.set_num_threads(1)
os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # for the forkserver, and for toys


def pytest_make_parametrize_id(val):
    return getattr(val, "__name__", None)


class FakeRun:
    """Stands in for a script's Run: keeps what train() hands to it."""

    def __init__(self):
        self.rollouts, self.rows, self.episodes = [], [], []

    def resume(self, **state):
        self.state = state
        self.weights = {k: x.clone() for k, x in state["agent"].state_dict().items()}
        return 0

    def check(self, iteration, **tensors):
        if "obs" in tensors:
            copies = {
                k: list(x) if isinstance(x, list) else np.asarray(x).copy()
                for k, x in tensors.items()
            }
            self.rollouts.append(copies)

    def log(self, iteration, step=None, last=None, metrics=None, **row):  # row: as ppo_atari.py
        self.rows.append(row if metrics is None else dict(metrics))

    def episode(self, *row):
        self.episodes.append(row)


def minibatch_of(script, agent, size):
    """Random tensors [size, ...], what train() would hand to update() with agent as pi_old."""
    obs = torch.randn(size, len(agent.obs_moments.mean))
    with torch.no_grad():
        pi, value = agent(obs)
        actions = pi.sample()
        old = [pi.mean, pi.stddev] * (script.__name__ == "ppo_klpen") + [pi.log_prob(actions)]
    return obs, actions, *old, torch.randn(size), torch.randn(size), value


def update(script, agent, minibatch, adam=None, learning_rate=0.0, step=None, **flags):
    """The METRICS of one call of script.update, or of its replay step, as a dict."""
    args = script.Args(**flags)
    coefs = [x for name, x in vars(args).items() if name in ("clip_coef", "kl_coef")]
    adam = adam or script.Adam(agent.parameters(), args.adam_eps)
    step = step or eager(script.update, agent, adam, args)
    metrics = step(learning_rate, *coefs, *(x.numpy() for x in minibatch))
    return dict(zip(script.METRICS, metrics.tolist()))


def eager(function, *fixed):
    """What Replay(True, partial(function, *fixed), ...) stands for, in plain PyTorch."""

    def step(*inputs):
        return function(*fixed, *(torch.as_tensor(x) for x in inputs)).detach().numpy()

    return step


forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["conftest", "mujoco"])


def become(path, argv, cwd, output, before):
    """Makes this process the program `PYTHONPATH=. python path argv` in cwd; first runs before."""
    os.chdir(cwd)
    for fd, file in zip((1, 2), output):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    for script in ALL:  # another folder may have its own
        sys.modules.pop(script.__name__, None)
    np.random.seed()  # or every program would begin with the same state of it
    sys.argv, sys.path = [path, *argv], [os.path.dirname(path), str(cwd), *sys.path]
    exec(before, {})
    runpy.run_path(path, run_name="__main__")


class Program:
    """A script running in directory cwd; forked with torch imported, it starts in 0.1 s, not 2.

    script is a module or a path; before is Python code that is run first.
    """

    def __init__(self, script, cwd, *argv, before=""):
        cwd.mkdir(exist_ok=True)
        self.output = [cwd.with_name(f"{cwd.name}.{name}") for name in ("stdout", "stderr")]
        path = str(getattr(script, "__file__", script))
        args = path, [str(x) for x in argv], cwd, self.output, before
        self.process = forkserver.Process(target=become, args=args, daemon=True)
        self.process.start()

    @property
    def out(self):
        return self.output[0].read_text(errors="surrogateescape") if self.output[0].exists() else ""

    @property
    def err(self):
        return self.output[1].read_text(errors="surrogateescape")

    def until(self, condition):
        """Waits until condition() holds or the program has ended. Returns itself."""
        while self.process.exitcode is None and not condition():
            time.sleep(0.001)
        return self

    def wait(self, send=None, timeout=60):
        """Sends a signal, if given. Returns the exit code, or minus the signal that killed it."""
        if send and self.process.exitcode is None:
            os.kill(self.process.pid, send)
        self.process.join(timeout)
        if self.process.exitcode is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.join()
        return self.process.exitcode


def rows(path):
    """The rows of a CSV file, as dicts."""
    with open(path) as file:
        return list(csv.DictReader(file))


def results(run_dir):
    """All that the same command must reproduce byte for byte."""
    times = {"seconds", "sps", "rollout_seconds", "update_seconds"}
    metrics = rows(run_dir / "metrics.csv")
    metrics = [{k: x for k, x in row.items() if k not in times} for row in metrics]
    return {
        "episodes.csv": (run_dir / "episodes.csv").read_bytes(),
        "metrics.csv": metrics,
        "agent.pt": (run_dir / "agent.pt").read_bytes(),
    }


def snapshot(directory):
    """Every file below a directory with its bytes and the time of its last change."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
