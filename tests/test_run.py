"""The run directory: its contract, and that a run survives whatever happens to it."""

import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import MUJOCO_SCRIPTS, Program, results, rows, snapshot

import ppo_continuous
import ppo_klpen
import ppo_noclip

TASKS = {  # with physics, with goals and time limits, with several environments
    ppo_continuous: "Hopper --num-steps 256 --total-timesteps 7680",
    ppo_noclip: "Reacher --num-steps 256 --total-timesteps 7680",
    ppo_klpen: "InvertedPendulum --num-envs 4 --num-steps 64 --total-timesteps 7680",
}
TOY = "--env-id toys:Toy-v0 --num-steps 128 --total-timesteps 1024 --run-dir run".split()


def command(script):
    """Thirty iterations of 256 steps each."""
    return f"--run-dir run --update-epochs 4 --env-id {TASKS[script]}".split()


def assert_refused(program, *words):
    """The program ended with 2, and one line on stderr that has these words."""
    assert program.wait() == 2
    assert program.err.count("\n") == 1 and "Traceback" not in program.err
    assert all(word in program.err for word in words), program.err


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of a run that nothing happened to, by script; from a process of its own."""
    cache = {}

    def run(script):
        if script not in cache:
            cwd = tmp_path_factory.mktemp(script.__name__)
            argv = [sys.executable, script.__file__, *command(script)]
            subprocess.run(argv, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
            cache[script] = results(cwd / "run")
        return cache[script]

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of a toy task by script, made once; for reading only."""
    cache = {}

    def run(script, *flags):
        if (script, flags) not in cache:
            cwd = tmp_path_factory.mktemp(script.__name__) / "cwd"
            program = Program(script, cwd, *TOY, *flags)
            assert program.wait() == 0, program.err
            cache[script, flags] = cwd
        return cache[script, flags]

    return run


def test_progress_ends_with_all(tmp_path):
    """Also where the steps are no multiple of a batch, and the rest of them is not run."""
    argv = ["1000" if x == "1024" else x for x in TOY]
    program = Program(ppo_continuous, tmp_path / "cwd", *argv)
    assert program.wait() == 0, program.err
    lines = [line for line in program.out.splitlines() if "steps/s" in line]
    assert lines[-1].startswith("100%") and lines[-1].endswith("0:00 left")


@pytest.fixture(scope="module")
def whole_toy(finished):
    return results(finished(ppo_continuous) / "run")


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_directory_holds_what_the_contract_says(script, finished):
    run = finished(script) / "run"
    files = {f"{script.__name__}.py", "args.json", "episodes.csv", "metrics.csv", "checkpoint.pt"}
    assert {path.name for path in run.iterdir()} == files | {"agent.pt", "summary.json"}

    facts = json.loads((run / "args.json").read_text())
    args = dict(env_id="toys:Toy-v0", num_steps=128, total_timesteps=1024, run_dir="run")
    args = asdict(script.Args(**args, exp_name=script.__name__))
    assert args == {name: facts[name] for name in args}
    assert facts["script"] == f"{script.__name__}.py" and facts["command"][1:] == TOY
    assert {"python", "torch", "gymnasium", "mujoco", "numpy"} <= facts["versions"].keys()
    assert facts["versions"]["device"].startswith("cpu") and facts["versions"]["threads"] == 1
    assert "git_commit" in facts
    with open(script.__file__, "rb") as file:
        assert (run / f"{script.__name__}.py").read_bytes() == file.read()

    episodes, metrics = rows(run / "episodes.csv"), rows(run / "metrics.csv")
    assert list(episodes[0]) == ["global_step", "episodic_return", "episodic_length"]
    assert [int(row["global_step"]) for row in episodes] == list(range(10, 1025, 10))
    assert {row["episodic_length"] for row in episodes} == {"10"}
    assert [int(row["global_step"]) for row in metrics] == list(range(128, 1025, 128))
    columns = "surrogate kl final_kl clip_fraction entropy value_loss".split()
    columns += ["explained_variance", "learning_rate"]
    columns += ["kl_coef"] * (script is ppo_klpen)
    times = ["global_step", "seconds", "sps", "rollout_seconds", "update_seconds"]
    assert list(metrics[0])[:5] == times
    parts = sum(float(row["rollout_seconds"]) + float(row["update_seconds"]) for row in metrics)
    assert 0 < parts <= float(metrics[-1]["seconds"]) * 1.001
    assert set(columns) <= metrics[0].keys()
    assert all(np.isfinite(float(x)) for row in metrics for x in row.values())

    summary = json.loads((run / "summary.json").read_text())
    scores = [float(row["episodic_return"]) for row in episodes]
    assert summary["status"] == "finished" and summary["global_step"] == 1024
    assert summary["episodes"] == len(scores) == 102
    assert summary["score"] == pytest.approx(np.mean(scores[-100:]))
    assert summary["score_all"] == pytest.approx(np.mean(scores))
    assert summary["sps"] == pytest.approx(1024 / summary["seconds"])
    for name in ("checkpoint.pt", "agent.pt"):
        torch.load(run / name, weights_only=True)


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_finished_run_is_left_as_it_is(script, finished):
    """The same command says so and ends with 0; one with other arguments is refused."""
    cwd = finished(script)
    before = snapshot(cwd)
    for flags in ((), ("--checkpoint-every", 3)):
        again = Program(script, cwd, *TOY, *flags)
        assert again.wait() == 0 and "already finished" in again.out
    assert_refused(Program(script, cwd, *TOY, "--seed", 2), "run", "--seed", "1", "2")
    assert_refused(Program(script, cwd, *TOY, "--no-norm-obs"), "run", "--norm-obs")
    assert snapshot(cwd) == before


@pytest.mark.parametrize("name", ["thesis.tex", "args.json", "ppo_continuous.py"])
def test_foreign_directory_is_refused(name, tmp_path):
    """Whatever the files of others are called, they stay."""
    run = tmp_path / "cwd/run"
    run.mkdir(parents=True)
    (run / name).write_text("[1, 2, 3]")
    before = snapshot(run)
    assert_refused(Program(ppo_continuous, tmp_path / "cwd", *TOY), "run")
    assert snapshot(run) == before


@pytest.mark.parametrize("run_dir", ["file/run", "/proc/run"])
def test_directory_that_cannot_be_made_is_refused(run_dir, tmp_path):
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd/file").write_text("")
    before = snapshot(tmp_path / "cwd")
    argv = *TOY, "--run-dir", run_dir
    assert_refused(Program(ppo_continuous, tmp_path / "cwd", *argv), "--run-dir", run_dir)
    assert snapshot(tmp_path / "cwd") == before


def started(program, run):
    """The program, once it has written to the metrics of its run, or has cut them to resume."""
    path = run / "metrics.csv"
    before = path.exists() and path.stat().st_mtime_ns
    return program.until(
        lambda: path.exists() and path.stat().st_size and path.stat().st_mtime_ns != before
    )


def held(cwd, *argv):
    """A program in cwd with a checkpoint, that waits in its third of eight iterations."""
    cwd.mkdir(exist_ok=True)
    (cwd / "hold").touch()
    program = Program(ppo_continuous, cwd, *TOY, "--env-id", "toys:Holds-v0", *argv)
    return program.until((cwd / "run/checkpoint.pt").exists)


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_killed_at_any_instant_it_ends_with_the_same_bytes(script, whole, tmp_path):
    """SIGKILL, six times at random, often while a checkpoint is being written."""
    rng, cwd, run, kills = random.Random(script.__name__), tmp_path / "cwd", tmp_path / "cwd/run", 0
    for every in (1, 8, 1, 3, 8, 1):
        program = started(Program(script, cwd, *command(script), "--checkpoint-every", every), run)
        time.sleep(rng.uniform(0, 0.03))
        if rng.random() < 0.5:
            program.until((run / "checkpoint.pt.tmp").exists)
        kills += program.wait(signal.SIGKILL) == -signal.SIGKILL
    assert kills  # a busy machine may not get to all six before the run ends
    program = Program(script, cwd, *command(script))
    assert program.wait() == 0, program.err
    assert results(run) == whole(script)


def test_rows_after_the_last_checkpoint_are_written_again(tmp_path):
    """A killed run leaves some; one that resumes drops them, and may stop before new ones come."""
    cwd, run, whole = tmp_path / "cwd", tmp_path / "cwd/run", tmp_path / "whole"
    argv = *TOY, "--env-id", "toys:Long-v0"
    assert started(Program(ppo_continuous, cwd, *argv), run).wait(signal.SIGTERM) == 143
    with open(run / "episodes.csv", "a") as file:
        file.write("300,-1.0,300\n")
    program = Program(ppo_continuous, cwd, *argv)
    program.until(lambda: "goes on" in program.out)
    assert program.wait(signal.SIGTERM) == 143
    program = Program(ppo_continuous, cwd, *argv)
    assert program.wait() == Program(ppo_continuous, whole, *argv).wait() == 0, program.err
    assert results(run) == results(whole / "run")


@pytest.mark.parametrize(
    "script, signum", [(ppo_continuous, signal.SIGINT), (ppo_klpen, signal.SIGTERM)]
)
def test_stopped_by_a_signal_it_goes_on_to_the_same_bytes(script, signum, whole, tmp_path):
    """Ctrl-C ends with 130, SIGTERM with 143, each after a checkpoint and a summary."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    for _ in range(3):
        program = started(Program(script, cwd, *command(script), "--checkpoint-every", 1000), run)
        assert program.wait(signum) == 128 + signum and program.err == ""
        summary = json.loads((run / "summary.json").read_text())
        assert summary["status"] == "interrupted"
        assert summary["global_step"] == int(rows(run / "metrics.csv")[-1]["global_step"])
    assert len(rows(run / "metrics.csv")) >= 3
    assert Program(script, cwd, *command(script)).wait() == 0
    assert results(run) == whole(script)


def test_it_goes_on_where_nobody_reads(whole, tmp_path):
    """`| tee log`, which the same Ctrl-C ends: exit 130, a checkpoint, then the same bytes."""
    cwd, run = tmp_path, tmp_path / "run"
    argv = [sys.executable, ppo_continuous.__file__, *command(ppo_continuous)]
    argv += ["--checkpoint-every", "1000"]
    program = subprocess.Popen(argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    program.stdout.readline()
    program.stdout.close()
    while program.poll() is None and len((run / "metrics.csv").read_text().split()) < 8:
        time.sleep(0.001)  # of which it has said something by then
    program.send_signal(signal.SIGINT)
    assert program.wait() == 130 and program.stderr.read() == b""
    program.stderr.close()
    iteration = torch.load(run / "checkpoint.pt", weights_only=True)["progress"][0]
    assert json.loads((run / "summary.json").read_text())["global_step"] == 256 * iteration
    assert iteration >= 7
    assert Program(ppo_continuous, cwd, *command(ppo_continuous)).wait() == 0
    assert results(run) == whole(ppo_continuous)


def test_second_ctrl_c_ends_at_once(finished, tmp_path):
    """In the midst of an iteration that takes minutes; what was saved before is not lost."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    argv = *TOY, "--env-id", "toys:Slow-v0", "--checkpoint-every", 1
    program = started(Program(ppo_continuous, cwd, *argv), run).until(
        (run / "checkpoint.pt").exists
    )
    (cwd / "slow").touch()
    os.kill(program.process.pid, signal.SIGINT)
    program.until(lambda: "stops after this iteration" in program.out)
    begun = time.monotonic()
    assert program.wait(signal.SIGINT) == 130 and time.monotonic() - begun < 5
    (cwd / "slow").unlink()
    assert Program(ppo_continuous, cwd, *argv).wait() == 0
    assert results(run) == results(finished(ppo_continuous) / "run")


def test_two_processes_never_share_a_run(finished, tmp_path):
    """The second is refused for as long as the first lives, however that one ends."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    argv = *TOY, "--env-id", "toys:Slow-v0", "--checkpoint-every", 1
    program = started(Program(ppo_continuous, cwd, *argv), run)
    (cwd / "slow").touch()
    assert_refused(Program(ppo_continuous, cwd, *argv), "another process")
    assert program.wait(signal.SIGKILL) == -signal.SIGKILL
    (cwd / "slow").unlink()
    assert Program(ppo_continuous, cwd, *argv).wait() == 0
    assert results(run) == results(finished(ppo_continuous) / "run")


@pytest.mark.parametrize(
    "script, flags, name",
    [
        (ppo_continuous, "--env-id toys:Rotten-v0", "rewards"),
        (ppo_noclip, "--learning-rate 1e6 --no-anneal-lr", r"[\w.]+"),
        (ppo_klpen, "--kl-coef 1e12 --learning-rate 1e6", r"[\w.]+"),
    ],
)
def test_divergence_ends_the_run_with_3(script, flags, name, tmp_path):
    """It names the first bad tensor, keeps what was earned, and says so again when asked again."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    program = Program(script, cwd, *TOY, *flags.split())
    assert program.wait() == 3
    assert re.fullmatch(rf".*diverged in iteration \d+: {name} is not finite\n", program.err)
    summary = json.loads((run / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["status"] == "diverged"
    assert summary["episodes"] == len(rows(run / "episodes.csv")) >= 10
    assert "Traceback" in (run / "error.txt").read_text()
    before = snapshot(cwd)
    again = Program(script, cwd, *TOY, *flags.split())
    assert again.wait() == 3 and "already diverged" in again.out
    assert snapshot(cwd) == before


class Evil:
    """Unpickled, it leaves a file named owned."""

    def __reduce__(self):
        return os.system, ("touch owned",)


def planted(path):
    """Puts in place of a good file one bad one after another; yields what each is."""
    good = path.read_bytes()
    for name, content in {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "no zip": b"hello",
        "pickle": pickle.dumps(Evil()),
        "evil": {"agent": Evil()},
        "foreign": {"weights": torch.ones(3)},
        "list": [torch.ones(3)],
    }.items():
        torch.save(content, path) if not isinstance(content, bytes) else path.write_bytes(content)
        yield name


def test_bad_checkpoints_are_refused(finished, tmp_path):
    """Torn, foreign or malicious: one line, exit 2, nothing executed, nothing changed."""
    cwd = tmp_path / "cwd"
    shutil.copytree(finished(ppo_continuous), cwd)
    (cwd / "run/summary.json").unlink()
    for _ in planted(cwd / "run/checkpoint.pt"):
        before = snapshot(cwd)
        assert_refused(Program(ppo_continuous, cwd, *TOY), "run/checkpoint.pt")
        assert snapshot(cwd) == before


def test_checkpoint_of_another_run_is_refused(finished, tmp_path):
    """Even one that would fit, of a shorter run with another seed."""
    cwd, other = tmp_path / "cwd", ("--seed", "2", "--total-timesteps", "512")
    shutil.copytree(finished(ppo_continuous), cwd)
    (cwd / "run/summary.json").unlink()
    shutil.copy(finished(ppo_continuous, *other) / "run/checkpoint.pt", cwd / "run/checkpoint.pt")
    before = snapshot(cwd)
    assert_refused(Program(ppo_continuous, cwd, *TOY), "run/checkpoint.pt")
    assert snapshot(cwd) == before


@pytest.mark.parametrize("name", ["episodes.csv", "metrics.csv"])
@pytest.mark.parametrize("fault", ["short", "gone", "longer"])
def test_records_are_healed_from_the_checkpoint(name, fault, whole_toy, tmp_path):
    """It holds all their rows, so that whatever became of a file, a resumed run has it again."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    argv = *TOY, "--checkpoint-every", 3
    program = Program(ppo_continuous, cwd, *argv).until((run / "checkpoint.pt").exists)
    program.wait(signal.SIGKILL)
    (run / "summary.json").unlink(missing_ok=True)
    text = (run / name).read_text()
    (run / name).write_text(text[: len(text) // 2] if fault == "short" else text + "3,-1.0,3\n")
    if fault == "gone":
        (run / name).unlink()
    program = Program(ppo_continuous, cwd, *argv)
    assert program.wait() == 0 and "goes on after iteration" in program.out
    assert results(run) == whole_toy


INTERVAL = r"mean (\S+) \(95% (\S+) to (\S+)\), standard deviation (\S+)"


def test_eval_plays_a_finished_run(finished, tmp_path):
    """Ten episodes of it, with videos if asked for; the record of the run stays as it is."""
    cwd = tmp_path / "cwd"
    shutil.copytree(finished(ppo_continuous), cwd)
    before = snapshot(cwd)
    task = "--env-id", "toys:Toy-v0"  # by whose code it may be played
    program = Program(ppo_continuous, cwd, "--eval", "run", "--capture-video", *task)
    assert program.wait() == 0 and program.out.startswith("toys:Toy-v0: ten episodes of run\n")
    returns = [float(x) for x in re.findall(r"return (-?[\d.]+)", program.out)]
    mean, low, high, std = map(float, re.search(INTERVAL, program.out).groups())
    assert len(returns) == 10 and mean == pytest.approx(np.mean(returns), abs=0.1)
    assert std == pytest.approx(np.std(returns, ddof=1), abs=0.1)
    half = 2.262 * np.std(returns, ddof=1) / 10**0.5  # by Student's t, 9 degrees of freedom
    assert (high - mean, mean - low) == pytest.approx((half, half), abs=0.15)
    assert len(list((cwd / "run/videos").iterdir())) == 10
    assert before.items() <= snapshot(cwd).items()


def test_films_change_nothing_of_a_run(finished, tmp_path):
    program = Program(ppo_continuous, tmp_path / "cwd", *TOY, "--capture-video")
    assert program.wait() == 0, program.err
    assert results(tmp_path / "cwd/run") == results(finished(ppo_continuous) / "run")
    assert len(list((tmp_path / "cwd/run/videos").iterdir())) == 8


def test_eval_refuses_what_is_no_finished_run(finished, tmp_path):
    """Nothing there, the run of another script, or a bad agent.pt, never executed."""
    cwd = tmp_path / "cwd"
    shutil.copytree(finished(ppo_klpen), cwd)
    assert_refused(Program(ppo_continuous, cwd, "--eval", "nowhere"), "--eval", "nowhere")
    assert_refused(Program(ppo_continuous, cwd, "--eval", "run"), "--eval", "run")
    argv = "--eval", "run", "--env-id", "toys:Toy-v0"
    for _ in planted(cwd / "run/agent.pt"):
        assert_refused(Program(ppo_klpen, cwd, *argv), "--eval", "run")
    assert not (cwd / "owned").exists()


def test_eval_refuses_a_task_that_is_not_the_agents(finished, tmp_path):
    """One of another size, none at all, or code to be imported that the user has not named."""
    cwd = tmp_path / "cwd"
    shutil.copytree(finished(ppo_continuous), cwd)
    (cwd / "evil.py").write_text("open('owned', 'w')")
    path = cwd / "run/args.json"
    facts = json.loads(path.read_text())
    for env_id, word in (
        ("Hopper-v4", "not for Hopper-v4"),
        ("NoSuchTask", "NoSuchTask"),
        ("evil:Toy-v0", "--env-id evil:Toy-v0"),
        (5, "TypeError"),
    ):
        path.write_text(json.dumps(facts | {"env_id": env_id}))
        assert_refused(Program(ppo_continuous, cwd, "--eval", "run"), "--eval run", word)
    path.write_text(json.dumps(facts | {"env_id": "InvertedPendulum-v4"}))
    for typed in ("Hopper", "Swimmer", "InvertedPendulum-v5", "toys:Toy-v0"):
        argv = "--eval", "run", "--env-id", typed
        assert_refused(Program(ppo_continuous, cwd, *argv), "--env-id InvertedPendulum-v4")
    assert not (cwd / "owned").exists()


def test_checkpoint_is_replaced_not_overwritten(tmp_path):
    """No instant knows half of one: whoever holds the old file keeps it whole."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    program = held(cwd, "--checkpoint-every", 1)
    os.link(run / "checkpoint.pt", cwd / "old.pt")
    (cwd / "hold").unlink()
    assert program.wait() == 0
    assert torch.load(cwd / "old.pt", weights_only=True)["progress"][0] < 8
    assert torch.load(run / "checkpoint.pt", weights_only=True)["progress"][0] == 8


@pytest.mark.parametrize("limit", [20_000, 100])
def test_full_disk_leaves_the_last_checkpoint(limit, finished, tmp_path):
    """No room for a checkpoint, or not even for a row: one line, exit 1, and it can go on later.

    What it left of the file that it was writing is in nobody's way.
    """
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    program = held(cwd, "--checkpoint-every", 1)
    resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    (cwd / "hold").unlink()
    assert program.wait() == 1
    assert program.err.count("\n") == 1 and "too large" in program.err
    torch.load(run / "checkpoint.pt", weights_only=True)
    if limit > 1000:  # there is room for this
        assert json.loads((run / "summary.json").read_text())["status"] == "failed"
    assert Program(ppo_continuous, cwd, *TOY, "--env-id", "toys:Holds-v0").wait() == 0
    assert results(run) == results(finished(ppo_continuous) / "run")


@pytest.mark.parametrize("limit", [20_000, 1000])
def test_full_disk_at_the_start_ends_with_1(limit, finished, tmp_path):
    """No room for the script's copy or for args.json: one line; once there is, it works."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    done = subprocess.run(
        [sys.executable, ppo_continuous.__file__, *TOY], cwd=cwd, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "large" in done.stderr
    assert Program(ppo_continuous, cwd, *TOY).wait() == 0
    assert results(cwd / "run") == results(finished(ppo_continuous) / "run")


def test_vanished_directory_ends_the_run_with_1(tmp_path):
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    program = held(cwd, "--checkpoint-every", 1)
    run.rename(cwd / "elsewhere")
    (cwd / "hold").unlink()
    assert program.wait() == 1
    assert program.err.count("\n") == 1 and "Traceback" not in program.err


@pytest.mark.parametrize("name", ["FickleObs", "FickleReward", "FickleEnd"])
def test_environment_that_does_not_repeat_itself_starts_an_episode_anew(name, tmp_path):
    """In what it shows, in what it pays or in when it ends; the run says so and counts it."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    argv = *TOY, "--env-id", f"toys:{name}-v0", "--num-envs", 2
    program = started(Program(ppo_continuous, cwd, *argv), run)
    assert program.wait(signal.SIGTERM) == 143
    (cwd / "short").touch()
    program = Program(ppo_continuous, cwd, *argv)
    assert program.wait() == 0, program.err
    assert program.out.count("is not deterministic; its episode was restarted") == 2
    assert json.loads((run / "summary.json").read_text())["restarted_episodes"] == 2


WANDB = """
def say(*words):
    print(*words, file=open("wandb.log", "a"), flush=True)

def init(id, resume, **_):
    say("init", id, resume)
    {init}

def log(row, step):
    say("log", step)
    {log}
"""


@pytest.mark.parametrize("fault", [None, "init", "log"])
def test_weights_and_biases_never_stop_a_run(fault, finished, tmp_path):
    """A resumed run continues its W&B run; where W&B fails, ours goes on without it."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    cwd.mkdir()
    faults = {name: "raise OSError" if name == fault else "" for name in ("init", "log")}
    (cwd / "wandb.py").write_text(WANDB.format(**faults))
    argv = *TOY, "--track"
    program = started(Program(ppo_continuous, cwd, *argv), run)
    assert program.wait(signal.SIGTERM) == 143
    again = Program(ppo_continuous, cwd, *argv)
    assert again.wait() == 0, again.err
    assert results(run) == results(finished(ppo_continuous) / "run")
    facts, words = json.loads((run / "args.json").read_text()), (cwd / "wandb.log").read_text()
    assert words.count(f"init {facts['wandb_id']} allow") == 2
    if fault is None:
        steps = re.findall(r"log (\d+)", words)
        assert steps == [str(step) for step in range(128, 1025, 128)]
