"""Odd environments, odd machines, odd habits: each case has a right outcome, and no traceback."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import toys
from conftest import Program, results, rows, snapshot
from PIL import Image

import ppo_continuous
import ppo_klpen

FEW = "--num-steps 64 --minibatch-size 32 --total-timesteps 512 --update-epochs 2".split()
# What these cases concern is the same bytes in the three MuJoCo scripts: test_drift.py. One of them
# has a state of its own besides, beta.
one_script = pytest.mark.parametrize("script", [ppo_klpen])


def few(toy, *flags):
    """Eight short iterations in run/."""
    return "--env-id", f"toys:{toy}-v0", *FEW, "--run-dir", "run", *flags


def ended(program, code, *words):
    """The text of a program that ended with this code, and with one line on stderr if not 0."""
    assert program.wait(timeout=60) == code, program.out + program.err
    assert program.err.count("\n") == (code not in (0, 130, 143)), program.err
    assert "Traceback" not in program.err
    assert all(word in program.out + program.err for word in words), program.out + program.err
    return program.out


def status(run):
    return json.loads((run / "summary.json").read_text())["status"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of a run that nothing happened to, by script and flags; each made once."""
    cache = {}

    def run(script, *argv):
        if (script, argv) not in cache:
            cwd = tmp_path_factory.mktemp(script.__name__) / "cwd"
            ended(Program(script, cwd, *argv), 0)
            cache[script, argv] = results(cwd / "run")
        return cache[script, argv]

    return run


# Environments are closed on every path


ENDS = [  # a file, flags, a signal, the exit code
    ("nothing", (), None, 0),
    ("rot", (), None, 3),
    ("nothing", ("--total-timesteps", "1e7"), signal.SIGINT, 130),
]
ENDS = [(ppo_klpen, *end) for end in ENDS]
ENDS += [
    (ppo_continuous, "nothing", ("--capture-video",), None, 0),
    (ppo_continuous, "nothing", ("--total-timesteps", "1e7"), signal.SIGTERM, 143),
    (ppo_continuous, "fail", (), None, 1),
]


@pytest.mark.parametrize("script, name, flags, signum, code", ENDS)
def test_each_environment_is_closed_once(script, name, flags, signum, code, tmp_path):
    """However a run ends; a thread of one would keep the process alive for ever."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    (cwd / name).touch()
    program = Program(script, cwd, *few("Worker", "--num-envs", 2, *flags))
    metrics = cwd / "run/metrics.csv"
    if signum:
        program.until(lambda: metrics.exists() and metrics.stat().st_size)
        os.kill(program.process.pid, signum)
    ended(program, code)
    notes = [line.split() for line in (cwd / "worker.log").read_text().splitlines()]
    made, closed = ([who for what, who in notes if what == w] for w in ("made", "closed"))
    assert len(made) == len(closed) >= 2
    assert sorted(made) == sorted(closed)


def test_refused_environments_are_closed_too(tmp_path):
    """Those that were made before the fault was found, and those of --eval."""
    cwd = tmp_path / "cwd"
    ended(Program(ppo_continuous, cwd, *few("Worker")), 0)
    (cwd / "run/checkpoint.pt").write_text("no checkpoint")
    (cwd / "run/summary.json").unlink()
    ended(Program(ppo_continuous, cwd, *few("Worker")), 2, "checkpoint.pt")
    ended(Program(ppo_continuous, cwd, "--eval", "run", "--env-id", "toys:Worker-v0"), 0, "mean")
    notes = (cwd / "worker.log").read_text()
    assert notes.count("made") == notes.count("closed") > 10


@one_script
@pytest.mark.parametrize("toy", ["CannotClose", "ClosesByExit"])
def test_environment_that_cannot_be_closed_ends_no_run(script, toy, tmp_path):
    """What it earned is written by then; neither the trial of a film nor --eval ends by it."""
    argv = few(toy, "--num-envs", 2, "--capture-video")
    ended(Program(script, tmp_path / "cwd", *argv), 0, "finished")
    assert status(tmp_path / "cwd/run") == "finished"
    played = Program(script, tmp_path / "cwd", "--eval", "run", "--env-id", f"toys:{toy}-v0")
    ended(played, 0, "episode 9", "mean")


@one_script
def test_whatever_an_environment_raises_is_said_in_one_line(script, tmp_path):
    """And kept, in a locale without its letters, too."""
    before = "import locale; locale.getpreferredencoding = locale.getencoding = lambda *_: 'ascii'"
    program = Program(script, tmp_path / "cwd", *few("Panics"), before=before)
    ended(program, 1, "failed in reset(): GeneratorExit: ein Fehler")
    assert status(tmp_path / "cwd/run") == "failed"
    assert "GeneratorExit" in (tmp_path / "cwd/run/error.txt").read_text("utf-8")


@one_script
def test_ctrl_c_that_ends_an_environments_process_too_is_ctrl_c(script, whole, tmp_path):
    """As from a terminal, which sends it to both: 130, and the same command goes on."""
    cwd, run, argv = tmp_path / "cwd", tmp_path / "cwd/run", few("Breaks", "--checkpoint-every", 1)
    program = Program(script, cwd, *argv).until((run / "checkpoint.pt").exists)
    (cwd / "broken").touch()
    ended(program, 130)
    assert status(run) == "interrupted" and not (run / "error.txt").exists()
    (cwd / "broken").unlink()
    ended(Program(script, cwd, *argv), 0, "goes on after iteration")
    assert results(run) == whole(script, *few("Toy"))


@one_script
def test_a_thread_that_an_environment_leaves_keeps_no_process(script, whole, tmp_path):
    """Alive, as a sweep would wait for it for ever; whatever the exit code."""
    ended(Program(script, tmp_path / "cwd", *few("LeavesAThread")), 0, "finished")
    assert results(tmp_path / "cwd/run") == whole(script, *few("Toy"))
    argv = few("LeavesAThread", "--gamma", 0.9)
    ended(Program(script, tmp_path / "cwd", *argv), 2, "--gamma 0.99, not 0.9")
    ended(Program(script, tmp_path / "cwd", "--eval", "run", *argv[:2]), 0, "mean")


@pytest.mark.parametrize("toy", ["LeavesAProcess", "Ticks", "ClosesOutput", "Prints"])
def test_what_an_environment_leaves_changes_no_exit_code(toy, whole, tmp_path):
    """As a program of its own: processes, threads that print, an output that is closed or full."""
    command = [sys.executable, ppo_continuous.__file__, *few(toy)]
    options = dict(cwd=tmp_path, env=os.environ | {"PYTHONUNBUFFERED": ""}, stderr=subprocess.PIPE)
    with open("/dev/full" if toy == "Prints" else "/dev/null", "w") as file:
        result = subprocess.run(command, stdout=file, **options)
    assert result.returncode == 0 and not result.stderr
    assert results(tmp_path / "run") == whole(ppo_continuous, *few("Toy"))


def test_signals_that_a_filmed_environment_takes_are_taken_back(tmp_path):
    run, flags = tmp_path / "cwd/run", ("--capture-video", "--total-timesteps", 10_000)
    program = Program(ppo_continuous, tmp_path / "cwd", *few("TakesSignals", *flags))
    program.until(lambda: list(run.glob("videos/*.gif")))
    begun = len(rows(run / "metrics.csv"))
    program.until(lambda: len(rows(run / "metrics.csv")) > begun)
    os.kill(program.process.pid, signal.SIGTERM)
    ended(program, 143)
    assert status(run) == "interrupted"


def test_an_environment_changes_no_setting_of_the_process(whole):
    """By its trial or a film, nor when its episodes are played again."""
    args = ppo_continuous.Args(env_id="toys:Strict-v0")
    before = np.geterr()
    ppo_continuous.close(ppo_continuous.make_env(args, video=True))
    assert np.geterr() == before and torch.is_grad_enabled()
    envs = ppo_continuous.Envs(args, print)
    ppo_continuous.play(args, ppo_continuous.Agent(1, 1, args), 1)
    assert np.geterr() == before and torch.is_grad_enabled()
    envs.load_state_dict(envs.state_dict())
    assert np.geterr() == before and torch.is_grad_enabled()


@one_script
def test_what_an_environment_turns_off_is_turned_on(script, whole, tmp_path):
    """Gradients, after a kill too; no file gets the number of the standard output it has closed."""
    argv = few("TurnsOff", "--checkpoint-every", 1)
    program = Program(script, tmp_path / "cwd", *argv)
    program.until((tmp_path / "cwd/run/checkpoint.pt").exists).wait(signal.SIGKILL)
    program = Program(script, tmp_path / "cwd", *argv)
    assert program.wait(timeout=60) == 0 and not program.err
    assert results(tmp_path / "cwd/run") == whole(script, *few("Toy"))
    assert all(rows(tmp_path / "cwd/run" / f"{name}.csv") for name in ("metrics", "episodes"))


@one_script
def test_ctrl_c_in_a_step_is_ctrl_c(script, whole, tmp_path):
    """Whoever has taken over the signal last, and in --eval, where the environment has."""
    cwd, run, argv = tmp_path / "cwd", tmp_path / "cwd/run", few("OwnHandler")
    argv = *argv, "--checkpoint-every", 1
    program = Program(script, cwd, *argv).until((run / "checkpoint.pt").exists)
    (cwd / "slow").touch()
    program.until((cwd / "slowly").exists)
    os.kill(program.process.pid, signal.SIGINT)
    program.until(lambda: "stops after this iteration" in program.out)  # or it has ended
    (cwd / "slow").unlink()
    ended(program, 130)
    assert status(run) == "interrupted"
    (cwd / "slowly").unlink()
    ended(Program(script, cwd, *argv), 0, "finished")
    assert results(run) == whole(script, *few("Toy"))
    (cwd / "slow").touch()
    program = Program(script, cwd, "--eval", "run", "--env-id", "toys:OwnHandler-v0")
    program.until((cwd / "slowly").exists)
    os.kill(program.process.pid, signal.SIGINT)
    ended(program, 130)


def test_sigterm_ends_a_process_that_an_environment_forks(tmp_path):
    ended(Program(ppo_continuous, tmp_path / "cwd", *few("Forks")), 0, "finished")


def test_a_process_that_an_environment_forks_ends_no_run(whole, tmp_path):
    argv = few("ForksAndFails", "--checkpoint-every", 1)
    program = Program(ppo_continuous, tmp_path / "cwd", *argv)
    ended(program, 0, "finished")
    assert "in a process" not in program.out + program.err
    assert not (tmp_path / "cwd/run/error.txt").exists()
    assert results(tmp_path / "cwd/run") == whole(ppo_continuous, *few("Toy"))


def test_each_picture_of_a_film_is_kept_as_it_was(tmp_path):
    ended(Program(ppo_continuous, tmp_path / "cwd", *few("OnePicture", "--capture-video")), 0)
    film = Image.open(min((tmp_path / "cwd/run/videos").iterdir()))
    shades = {film.seek(i) or film.convert("L").getpixel((0, 0)) for i in range(film.n_frames)}
    assert film.n_frames == len(shades) > 2


@one_script
@pytest.mark.parametrize("toy", ["SeesNothing", "ActsNothing"])
def test_nothing_to_see_or_to_do_is_refused(script, toy, tmp_path):
    words = f"toys:{toy}-v0: ValueError: there is nothing"
    ended(Program(script, tmp_path / "cwd", *few(toy)), 2, words)
    assert not (tmp_path / "cwd/run").exists()


@one_script
def test_value_targets_that_are_all_equal_are_no_divergence(script, tmp_path):
    """Their variance is 0, and nothing of it can be explained."""
    ended(Program(script, tmp_path / "cwd", *few("PaysNothing", "--gamma", 0)), 0, "finished")
    for row in rows(tmp_path / "cwd/run/metrics.csv"):
        assert float(row["explained_variance"]) <= 1


@one_script
def test_an_environment_with_a_model_of_its_own_is_filmed(script, tmp_path):
    ended(Program(script, tmp_path / "cwd", *few("Model", "--capture-video")), 0, "finished")
    assert list((tmp_path / "cwd/run/videos").glob("*.gif"))


# Paths do not follow the environment's os.chdir


@one_script
def test_paths_mean_the_directory_of_the_command(script, whole, tmp_path):
    """Whatever the environment does: of the run, of its films, of --eval, of what resumes."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    argv = few("Moves", "--capture-video")
    ended(Program(script, cwd, *argv), 0, "finished")
    assert results(run) == whole(script, *few("Toy")) and status(run) == "finished"
    assert len(list((run / "videos").iterdir())) == 8
    ended(Program(script, cwd, *argv), 0, "already finished")
    eval_argv = "--eval", "run", "--env-id", "toys:Moves-v0", "--capture-video"
    ended(Program(script, cwd, *eval_argv), 0, "mean")
    assert len(list((run / "videos").iterdir())) == 18
    assert {path.name for path in cwd.iterdir()} <= {"run", "__pycache__"}


def test_default_directory_is_that_of_the_command(tmp_path):
    """With no --run-dir, too."""
    argv = few("Moves")[:-2]
    ended(Program(ppo_continuous, tmp_path / "cwd", *argv), 0, "finished")
    (summary,) = tmp_path.glob("cwd/runs/*/summary.json")
    assert (summary.parent / "agent.pt").exists()


# Films


def test_films_of_an_endless_task_end(tmp_path):
    """After a stated number of frames, and training goes on."""
    cwd = tmp_path / "cwd"
    flags = "--total-timesteps", 128  # two films
    argv = few("Forever", "--capture-video", *flags)
    ended(Program(ppo_continuous, cwd, *argv), 0, "finished")
    films = list((cwd / "run/videos").iterdir())
    assert len(films) == 2 and all(film.stat().st_size < 1e6 for film in films)


def test_eval_of_an_endless_task_ends(whole, tmp_path):
    """Episodes are cut, and their films as well."""
    cwd = tmp_path / "cwd"
    argv = few("Forever", "--total-timesteps", 64)
    ended(Program(ppo_continuous, cwd, *argv), 0)
    program = Program(
        ppo_continuous, cwd, "--eval", "run", "--env-id", "toys:Forever-v0", "--capture-video"
    )
    assert program.wait(timeout=120) == 0 and "95%" in program.out, program.err
    assert len(list((cwd / "run/videos").iterdir())) == 10


FILMS = "None List Fails Channels Floats Ints FpsInf FpsZero FpsNone".split()


@one_script
@pytest.mark.parametrize("name", FILMS)
def test_films_that_cannot_be_are_refused_at_the_start(script, name, tmp_path):
    """In one line, before there is a directory; without --capture-video it trains."""
    cwd = tmp_path / "cwd"
    argv = few(f"Film{name}", "--capture-video")
    ended(Program(script, cwd, *argv), 2, f"toys:Film{name}-v0")
    assert not (cwd / "run").exists()
    ended(Program(script, cwd, *argv[:-1]), 0, "finished")
    if name.startswith("Fps"):
        ended(Program(script, cwd, "--eval", "run", *argv[:2]), 0, "mean")


@pytest.mark.parametrize(
    "name",
    "FailsLater ExitsLater CancelledLater NoneLater ListLater GrowsLater Draws".split(),
)
def test_films_that_fail_later_cost_no_run(name, whole, tmp_path):
    """The run says so and comes to the same."""
    cwd, argv = tmp_path / "cwd", few(f"Film{name}", "--capture-video")
    program = Program(ppo_continuous, cwd, *argv)
    text = ended(program, 0, "finished")
    assert results(cwd / "run") == whole(ppo_continuous, *few("Toy"))
    if name in ("FailsLater", "ExitsLater", "CancelledLater", "NoneLater"):
        assert text.count("no video of step") == 8
    if name == "FailsLater":
        played = "--eval", "run", "--env-id", f"toys:Film{name}-v0", "--capture-video"
        ended(Program(ppo_continuous, cwd, *played), 1, "--eval run: episode 0 failed")


@pytest.mark.parametrize("video", [None, Path("film.gif")])
def test_why_an_environment_cannot_be_filmed_is_said(video):
    """play() gives the film's path, or None."""
    args = ppo_continuous.Args(env_id="toys:Raises-v0")
    with pytest.raises(ppo_continuous.Stop, match="RuntimeError: the motor is off") as stop:
        ppo_continuous.make_env(args, video)
    assert ("--capture-video" in str(stop.value)) == bool(video)


def test_films_leave_the_global_generators_alone(whole, tmp_path):
    """The run of an environment that draws from them is the same with and without films."""
    ended(Program(ppo_continuous, tmp_path / "cwd", *few("Draws", "--capture-video")), 0)
    assert results(tmp_path / "cwd/run") == whole(ppo_continuous, *few("Draws"))


@one_script
def test_ctrl_c_ends_a_film(script, whole, tmp_path):
    """At once, after a checkpoint; and the same command comes to the same bytes."""
    cwd, run, argv = tmp_path / "cwd", tmp_path / "cwd/run", few("SlowFilm", "--capture-video")
    cwd.mkdir()
    (cwd / "slow").touch()
    program = Program(script, cwd, *argv)
    program.until((run / "metrics.csv").exists)
    (cwd / "frame").unlink(missing_ok=True)  # that of the trial
    program.until((cwd / "frame").exists)
    begun = time.monotonic()
    os.kill(program.process.pid, signal.SIGINT)
    ended(program, 130)
    assert time.monotonic() - begun < 5
    assert (run / "checkpoint.pt").exists() and status(run) == "interrupted"
    assert not list(run.glob("videos/*"))
    (cwd / "slow").unlink()
    ended(Program(script, cwd, *argv), 0, "goes on after iteration 1")
    assert results(run) == whole(script, *few("Toy"))


def test_films_of_many_colours_cost_seconds(tmp_path):
    """500 frames of 640 x 480, one of each third step."""
    args = ppo_continuous.Args(env_id="toys:Painted-v0")
    begun = time.process_time()
    ppo_continuous.play(args, ppo_continuous.Agent(1, 1, args), 1, tmp_path / "videos/film.gif")
    assert time.process_time() - begun < 30
    with Image.open(tmp_path / "videos/film.gif") as film:
        assert film.n_frames == 500 and film.size == (640, 480)


def test_films_of_mujoco_cost_seconds(tmp_path):
    """Without a GPU; the frames are few and small."""
    cwd, flags = tmp_path / "cwd", ["--env-id", "HalfCheetah", *FEW, "--total-timesteps", 64]
    program = Program(ppo_continuous, cwd, *flags, "--run-dir", "run", "--capture-video")
    begun = time.monotonic()
    code = program.wait(timeout=100)
    if code == 2 and re.search("render|GL", program.err):
        pytest.skip(program.err)
    assert code == 0 and time.monotonic() - begun < 60, program.err
    (film,) = (cwd / "run/videos").iterdir()
    assert 1000 < film.stat().st_size < 20e6


# What an environment returns is taken for what it means, or refused


MEANINGS = {  # toys by what they are the same as
    "EndsBool": "EndsInt EndsFloat EndsNumpyBool EndsNumpyInt EndsArray EndsNone EndsList",
    "Toy": "RewardArray RewardMatrix RewardNumber RewardDouble RewardDecimal ObsList ObsDouble "
    "NoInfo TruncatedInt Reuses CInt",
}
MEANINGS = [(same, name) for same, names in MEANINGS.items() for name in names.split()]


@pytest.mark.parametrize("same, name", MEANINGS)
def test_what_means_the_same_comes_to_the_same(same, name, whole, tmp_path):
    """A count, an array of one and the like for a flag or a number; to the byte."""
    ended(Program(ppo_continuous, tmp_path / "cwd", *few(name)), 0, "finished")
    assert results(tmp_path / "cwd/run") == whole(ppo_continuous, *few(same))


@one_script
@pytest.mark.parametrize("name", ["EndsInt", "EndsArray"])
def test_a_count_for_a_flag_changes_no_advantage(script, name, whole, tmp_path):
    """1 - done is 0 or 1 in every script."""
    ended(Program(script, tmp_path / "cwd", *few(name)), 0)
    assert results(tmp_path / "cwd/run") == whole(script, *few("EndsBool"))


REFUSED = "OldStep OldReset Raises EarlyReset Listed EndsText EndsDict EndsNaN FailsAtFirst"
REFUSED += " EndsMethod EndsEnum Complex"


@one_script
@pytest.mark.parametrize("name", REFUSED.split())
def test_environments_that_cannot_be_used_are_refused(script, name, tmp_path):
    """At the start, in one line, with nothing left behind."""
    ended(Program(script, tmp_path / "cwd", *few(name)), 2, f"toys:{name}-v0")
    assert not list((tmp_path / "cwd").iterdir())


ACTIONS = "Ints Bytes Matrix Number Discrete Pair Bits Dict".split()


@pytest.mark.parametrize("name", ACTIONS)
def test_spaces_of_actions_are_refused_by_name(name, tmp_path):
    """All but vectors of floats, those of integers among them."""
    space = str(gym.spec(f"Acts{name}-v0").kwargs["space"])
    word = space.split("(")[0]
    ended(Program(ppo_continuous, tmp_path / "cwd", *few(f"Acts{name}")), 2, "action", word)
    assert not list((tmp_path / "cwd").iterdir())


def test_doubles_are_vectors_of_floats(tmp_path):
    ended(Program(ppo_continuous, tmp_path / "cwd", *few("ActsDoubles")), 0, "finished")


@one_script
@pytest.mark.parametrize("name", toys.SPACES)
def test_observations_flatten_as_gymnasium_flattens_them(script, name):
    """Discrete parts one-hot, Dict in the order of its keys; a Box of any shape row by row."""
    env_id, space = f"toys:{name}-v0", toys.SPACES[name]
    env = script.make_env(SimpleNamespace(env_id=env_id, clip_actions=False, seed=1))
    obs, _ = env.reset(seed=2)
    flat = gym.spaces.flatten(space, env.unwrapped.seen)
    assert np.array_equal(obs, flat) and len(flat) == gym.spaces.flatdim(space)
    env.close()


@pytest.mark.parametrize("name", ["Pair", "Table", "BitTable", "Nested", "LateState", "Number"])
def test_flat_observations_train(name, tmp_path):
    """Their agent has an input for each number."""
    ended(Program(ppo_continuous, tmp_path / "cwd", *few(name)), 0, "finished")
    agent = torch.load(tmp_path / "cwd/run/agent.pt", weights_only=True)
    assert len(agent["obs_moments.mean"]) == gym.spaces.flatdim(toys.SPACES[name])


# What goes wrong in the middle of a run


FAULTS = {  # toys, and words of the line
    "Fails": "step RuntimeError motor",
    "FailsSilently": "step Motor",
    "FailsLikeSystem": "step model.xml",
    "Exits": "step SystemExit",
    "RewardNone": "step None",
    "RewardPair": "step",
    "RewardText": "step much",
    "ObsNone": "step () (1,)",
    "ObsText": "step () (1,)",
    "ObsLong": "step (3,)",
    "ObsShort": "step (1,) (3,)",
    "ObsScalar": "step () (3,)",
    "EndsPair": "step",
    "FourResults": "step 4",
    "Nothing": "step NoneType",
    "ResetNothing": "reset NoneType",
    "ResetNone": "reset () (1,)",
    "ResetLong": "reset (3,) (1,)",
    "ResetExits": "reset SystemExit",
}


@pytest.mark.parametrize("name, words", FAULTS.items())
def test_environment_that_fails_is_named_in_one_line(name, words, tmp_path):
    """Exit 1; its traceback, its last checkpoint and what it earned are kept."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    program = Program(ppo_continuous, cwd, *few(name, "--checkpoint-every", 1))
    ended(program, 1, f"toys:{name}-v0", *words.split())
    assert program.err.startswith("ppo_continuous.py: ")
    text = (run / "error.txt").read_text()
    assert "Traceback" in text and f"toys:{name}-v0 failed in {words.split()[0]}" in text
    assert torch.load(run / "checkpoint.pt", weights_only=True)["progress"][0] == 1
    summary = json.loads((run / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["status"] == "failed"
    assert program.err == f"ppo_continuous.py: {summary['reason']}\n"
    assert summary["episodes"] == len(rows(run / "episodes.csv")) >= 9
    assert not (run / "agent.pt").exists()


@one_script
@pytest.mark.parametrize("every", [1, 25])
def test_mended_environment_goes_on(script, every, whole, tmp_path):
    """From the last checkpoint, or from the start; the same command, and to the same bytes."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    argv = few("Faulty", "--checkpoint-every", every)
    cwd.mkdir()
    (cwd / "fail").touch()
    ended(Program(script, cwd, *argv), 1, "toys:Faulty-v0", "reset", "no key", "for the motor")
    assert status(run) == "failed" and (run / "checkpoint.pt").exists() == (every == 1)
    assert "for the motor" in (run / "error.txt").read_text()
    (cwd / "fail").unlink()
    ended(Program(script, cwd, *argv), 0, "finished")
    assert results(run) == whole(script, *few("Toy")) and status(run) == "finished"


def test_environment_that_fails_in_eval_is_named(tmp_path):
    """--eval ends with 1 in one line, and leaves the run as it is."""
    cwd = tmp_path / "cwd"
    ended(Program(ppo_continuous, cwd, *few("Faulty")), 0)
    before = snapshot(cwd)
    (cwd / "fail").touch()
    patched = "import toys; toys.Faulty.resets = 18"  # two in each trial, then the episode's
    program = Program(
        ppo_continuous, cwd, "--eval", "run", "--env-id", "toys:Faulty-v0", before=patched
    )
    ended(program, 1, "toys:Faulty-v0", "reset")
    assert before.items() <= snapshot(cwd).items()


def test_ctrl_c_ends_eval(tmp_path):
    """With 130 and no traceback."""
    cwd = tmp_path / "cwd"
    ended(Program(ppo_continuous, cwd, *few("SlowFilm")), 0)
    (cwd / "slow").touch()
    argv = "--eval", "run", "--env-id", "toys:SlowFilm-v0", "--capture-video"
    program = Program(ppo_continuous, cwd, *argv).until((cwd / "frame").exists)
    os.kill(program.process.pid, signal.SIGINT)
    ended(program, 130)


def test_ctrl_c_before_a_run_begins_leaves_nothing(tmp_path):
    """In the trial of a slow environment: 130, no traceback, no directory."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    (cwd / "slow").touch()
    program = Program(ppo_continuous, cwd, *few("SlowStart"))
    program.until((cwd / "slowly").exists)
    os.kill(program.process.pid, signal.SIGINT)
    ended(program, 130)
    assert not (cwd / "run").exists()


# A number that is not finite is named where it arises first


INFINITE = [  # toys, flags, the name, the iteration
    ("Rots", "", "rewards", 2),
    ("ObsRots", "", "(next_)?obs", 2),
    ("Last", "", "(truncations|final_obs)", 1),
    ("Last", "--no-norm-reward --no-norm-obs", "(truncations|final_obs)", 1),
    ("HugeDouble", "", "obs", 1),
    ("HugeDoubleReward", "", "rewards", 1),
    ("HugeSquare", "", r"agent\.obs_moments\.var", 1),
    ("HugeSquareReward", "", r"return_moments\.var", 1),
]


@one_script
@pytest.mark.parametrize("name, flags, tensor, iteration", INFINITE)
def test_what_is_not_finite_is_named_where_it_arises(
    script, name, flags, tensor, iteration, tmp_path
):
    """In that iteration, running moments included; exit 3."""
    program = Program(script, tmp_path / "cwd", *few(name), *flags.split())
    ended(program, 3)
    line = rf".*diverged in iteration {iteration}: {tensor} is not finite\n"
    assert re.fullmatch(line, program.err), program.err
    assert status(tmp_path / "cwd/run") == "diverged"


# Same command, same bytes


@one_script
@pytest.mark.parametrize("toy", ["Draws", "DrawsByTorch", "DrawsAtBirth"])
def test_global_generators_are_seeded(script, toy, whole, tmp_path):
    """Twice the same bytes; and after SIGKILL, with one environment, and with films."""
    cwd, run, argv = tmp_path / "cwd", tmp_path / "cwd/run", few(toy, "--checkpoint-every", 2)
    killed_between_checkpoints(script, cwd, argv)
    ended(Program(script, cwd, *argv, "--capture-video"), 0)
    assert results(run) == whole(script, *few(toy))
    assert json.loads((run / "summary.json").read_text())["restarted_episodes"] == 0
    several = few(toy, "--num-envs", 2)
    ended(Program(script, tmp_path / "two", *several), 0)
    assert results(tmp_path / "two/run") == whole(script, *several)


def killed_between_checkpoints(script, cwd, argv):
    """Kills a run when it has a checkpoint, so that it is in the midst of an episode."""
    program = Program(script, cwd, *argv).until((cwd / "run/checkpoint.pt").exists)
    program.wait(signal.SIGKILL)
    (cwd / "run/summary.json").unlink(missing_ok=True)


@one_script
def test_actions_are_kept_as_they_were(script, whole, tmp_path):
    """An environment may write into the array that it is given; a killed run replays it exactly."""
    cwd, run, argv = tmp_path / "cwd", tmp_path / "cwd/run", few("Sums", "--checkpoint-every", 2)
    killed_between_checkpoints(script, cwd, argv)
    text = ended(Program(script, cwd, *argv), 0, "goes on after iteration")
    assert "not deterministic" not in text
    assert json.loads((run / "summary.json").read_text())["restarted_episodes"] == 0
    assert results(run) == whole(script, *few("Sums"))


@pytest.mark.parametrize("seed", [0, 2**31, 2**53])
def test_seeds_fit_a_c_int(seed, tmp_path):
    """Those that reach the environment, whatever seed was typed; those of --eval, too."""
    cwd = tmp_path / "cwd"
    ended(Program(ppo_continuous, cwd, *few("CInt", "--seed", seed)), 0, "finished")
    program = Program(
        ppo_continuous, cwd, "--eval", "run", "--env-id", "toys:CInt-v0", "--seed", seed
    )
    ended(program, 0, "mean")


# Odd machines


HELD = "import fcntl\ndef lockf(*_): raise PermissionError(13, 'held')\nfcntl.lockf = lockf"


def test_a_lock_that_is_held_may_be_called_a_lack_of_permission(tmp_path):
    """POSIX leaves it to the system which of two errors it is."""
    program = Program(ppo_continuous, tmp_path / "cwd", *few("Toy"), before=HELD)
    ended(program, 2, "another process is at work")


LOCKS = {
    "ENOSYS": "import errno, fcntl\ndef lockf(*_): raise OSError(errno.ENOSYS, 'no')\n"
    "fcntl.lockf = fcntl.flock = lockf",
    "ENOLCK": "import errno, fcntl\ndef lockf(*_): raise OSError(errno.ENOLCK, 'no')\n"
    "fcntl.lockf = fcntl.flock = lockf",
    "Windows": "import sys; sys.modules['fcntl'] = None",
}


@one_script
@pytest.mark.parametrize("name", LOCKS)
def test_without_locks_it_goes_on_and_says_so(script, name, whole, tmp_path):
    """On Lustre without -o flock, and where Python has no fcntl."""
    cwd = tmp_path / "cwd"
    text = ended(Program(script, cwd, *few("Toy"), before=LOCKS[name]), 0, "finished")
    assert "lock" in text and "second process" in text
    assert results(cwd / "run") == whole(script, *few("Toy"))
    ended(Program(script, cwd, *few("Toy"), before=LOCKS[name]), 0, "already finished")


STREAMS = "stdin", "stdout", "stderr"
CLOSED = [(ppo_continuous, fds) for fds in ("1", "2", "1, 2")]
CLOSED += [(ppo_klpen, "0, 1, 2")]


@pytest.mark.parametrize("script, fds", CLOSED)
def test_standard_streams_may_be_closed(script, fds, whole, tmp_path):
    """`>&-` and the like: nothing that the program or the environment says gets into a file."""
    close = f"import os, sys\nfor fd in ({fds},):\n    os.close(fd)\n"
    close += "".join(f"sys.{n} = None\n" for i, n in enumerate(STREAMS) if str(i) in fds)
    argv = few("Talks", "--capture-video")
    program = Program(script, tmp_path / "cwd", *argv, before=close)
    assert program.wait() == 0
    assert results(tmp_path / "cwd/run") == whole(script, *few("Toy"))
    assert (tmp_path / "cwd/run/metrics.csv").read_text().startswith("global_step,")
    refused = Program(script, tmp_path / "cwd", *few("Talks", "--seed", 2), before=close)
    assert refused.wait() == 2
    assert Program(script, tmp_path / "cwd", "--help", before=close).wait() == 0


def test_shell_may_close_standard_output(whole, tmp_path):
    """As a program of its own."""
    line = f'"{sys.executable}" "{ppo_continuous.__file__}" {" ".join(few("Toy"))} >&- 2>&-'
    assert subprocess.run(line, shell=True, cwd=tmp_path).returncode == 0
    assert results(tmp_path / "run") == whole(ppo_continuous, *few("Toy"))


FULL = [(1, 0, ""), (2, 2, "--gamma 2"), (2, 1, "--env-id toys:Fails-v0")]


@pytest.mark.parametrize("fd, code, flags", FULL)
def test_standard_streams_may_be_full(fd, code, flags, tmp_path):
    """`> /dev/full` changes no exit code."""
    full = f"import os; os.dup2(os.open('/dev/full', os.O_WRONLY), {fd})"
    program = Program(ppo_continuous, tmp_path / "cwd", *few("Toy"), *flags.split(), before=full)
    assert program.wait() == code


@pytest.fixture
def open_path():
    """A directory that every user may come to."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("flags", ["--run-dir run", "--run-dir there/run", "--run-dir there", ""])
@pytest.mark.parametrize("mode", [0o555, 0])
def test_directory_without_permission_is_refused(flags, mode, open_path):
    """In one line that names --run-dir; also where runs/ cannot be made, or looked into."""
    cwd = open_path / "cwd"
    (cwd / "there").mkdir(parents=True)
    (cwd / "there").chmod(mode)
    cwd.chmod(0o555)
    nobody = "import os\nif os.geteuid() == 0: os.seteuid(65534)"
    argv = *few("Toy")[:-2], *flags.split()
    ended(Program(ppo_continuous, cwd, *argv, before=nobody), 2, "--run-dir")
    assert snapshot(cwd) == {}


@pytest.mark.parametrize("name", [b"r\xff", "läufe/ü 1".encode(), b"-r", b"a" * 200])
def test_directory_may_have_any_name(name, tmp_path):
    """Also one of bytes that are no UTF-8."""
    name = os.fsdecode(name)
    cwd = tmp_path / "cwd"
    argv = *few("Toy")[:-2], f"--run-dir={name}"
    ended(Program(ppo_continuous, cwd, *argv), 0)
    assert status(cwd / name) == "finished"
    ended(Program(ppo_continuous, cwd, *argv), 0)
    ended(Program(ppo_continuous, cwd, f"--eval={name}", "--env-id", "toys:Toy-v0"), 0)


# Directories


@one_script
@pytest.mark.parametrize("name", ["metrics.csv", "episodes.csv", "checkpoint.pt", "summary.json"])
def test_somebody_elses_file_is_left_alone(script, name, tmp_path):
    """A directory that holds nothing but one with a name of ours is refused, and stays as it is."""
    run = tmp_path / "cwd/run"
    run.mkdir(parents=True)
    (run / name).write_text("day,weight\n1,80\n")
    before = snapshot(run)
    ended(Program(script, tmp_path / "cwd", *few("Toy")), 2, "--run-dir run")
    assert snapshot(run) == before


@pytest.mark.parametrize(
    "names", [["metrics.csv"], ["metrics.csv", "episodes.csv"], ["metrics.csv", "args.json.tmp"]]
)
def test_start_that_was_cut_short_goes_on(names, whole, tmp_path):
    """It left empty files; half of args.json may be there, by its temporary name."""
    run = tmp_path / "cwd/run"
    run.mkdir(parents=True)
    for name in names:
        (run / name).write_text('{"env_id": "to' if name.endswith(".tmp") else "")
    ended(Program(ppo_continuous, tmp_path / "cwd", *few("Toy")), 0, "finished")
    assert results(run) == whole(ppo_continuous, *few("Toy"))


@pytest.mark.parametrize("after", ["args.json", "ppo_continuous.py", "checkpoint.pt"])
def test_start_that_was_killed_goes_on(after, whole, tmp_path):
    """SIGKILL as soon as there is the file, or while there is its temporary name."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    for suffix in ("", ".tmp", ""):
        program = Program(ppo_continuous, cwd, *few("Toy", "--checkpoint-every", 1))
        program.until((run / (after + suffix)).exists).wait(signal.SIGKILL)
    ended(Program(ppo_continuous, cwd, *few("Toy")), 0, "finished")
    assert results(run) == whole(ppo_continuous, *few("Toy"))


def test_run_within_a_run_and_beside_it(whole, tmp_path):
    """A run directory within a finished one, or a link to one, is a directory as any other."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    ended(Program(ppo_continuous, cwd, *few("Toy")), 0)
    before = snapshot(run)
    for name in ("run/inner", "run/inner/", "./run/../run/inner"):
        ended(Program(ppo_continuous, cwd, *few("Toy", "--run-dir", name)), 0, "finished")
    assert results(run / "inner") == results(run) == whole(ppo_continuous, *few("Toy"))
    (cwd / "link").symlink_to("run")
    (cwd / "nowhere").symlink_to("no/such/place")
    ended(Program(ppo_continuous, cwd, *few("Toy", "--run-dir", "link")), 0, "already finished")
    ended(Program(ppo_continuous, cwd, *few("Toy", "--run-dir", "nowhere")), 2, "--run-dir nowhere")
    ended(Program(ppo_continuous, cwd, *few("Toy", "--run-dir", ".")), 2, "--run-dir .")
    assert before.items() <= snapshot(run).items()


def test_run_that_began_in_the_meantime_is_left_alone(tmp_path):
    """Between another command's look at an empty directory and its start, that is."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    cwd.mkdir()
    (cwd / "slow").touch()
    late = Program(ppo_continuous, cwd, *few("SlowStart")).until((cwd / "slowly").exists)
    ended(Program(ppo_continuous, cwd, *few("Toy")), 0, "finished")
    before = snapshot(run)
    (cwd / "slow").unlink()
    ended(late, 2, "--run-dir run")
    assert snapshot(run) == before


@pytest.mark.parametrize("other", ["0.9", "0.99"])
def test_two_commands_in_a_second_have_two_directories(other, tmp_path):
    """Without --run-dir, whether their flags are the same or not."""
    cwd, argv = tmp_path / "cwd", few("Toy")[:-2]
    programs = [Program(ppo_continuous, cwd, *argv, "--gamma", gamma) for gamma in (0.99, other)]
    programs.append(Program(ppo_continuous, cwd, *argv))
    assert [program.wait() for program in programs] == [0, 0, 0]
    runs = list((cwd / "runs").iterdir())
    assert len(runs) == 3 and all(status(run) == "finished" for run in runs)
    gammas = [json.loads((run / "args.json").read_text())["gamma"] for run in runs]
    assert sorted(gammas) == sorted([0.99, 0.99, float(other)])


@one_script
@pytest.mark.parametrize("env_id", ["Pusher", "pusher"])
def test_pusher_is_one_that_works(script, env_id):
    """Pusher-v4 needs MuJoCo 2."""
    env_id = script.resolve(env_id)
    script.make_env(SimpleNamespace(env_id=env_id, clip_actions=False, seed=1)).close()


# Changing a line of a copy


def changed(script, folder, old, new):
    """The path of a copy of a script with one line changed."""
    text = Path(script.__file__).read_text()
    assert old in text
    path = folder / f"{script.__name__}.py"
    path.write_text(text.replace(old, new, 1))
    return path


@one_script
def test_another_activation_trains_on_the_policy_that_it_plays(script, tmp_path):
    """ReLU in mlp(): the first minibatch of each rollout has ratio 1, and --no-compile agrees."""
    path = changed(script, tmp_path, "nn.Tanh()", "nn.ReLU()")
    flags = "--num-steps 64 --minibatch-size 64 --total-timesteps 256 --update-epochs 1"
    weights = []
    for name in ("--compile", "--no-compile"):
        cwd = tmp_path / name
        argv = few("Wide", name, *flags.split())
        ended(Program(path, cwd, *argv), 0, "finished")
        metrics = rows(cwd / "run/metrics.csv")
        assert all(abs(float(row["kl"])) < 1e-6 for row in metrics)
        agent = torch.load(cwd / "run/agent.pt", weights_only=True)
        weights.append(torch.cat([x.flatten() for x in agent.values()]))
    assert torch.allclose(*weights, atol=1e-3)


LINE = "    value_loss, entropy = error.mean(), pi.entropy().mean()\n"


@one_script
def test_values_that_steer_python_are_refused(script, tmp_path):
    """A tensor read through .numpy() or .item() in update(): exit 2, by the line's number."""
    reads = "ratio.max().item()", "float(ratio.max())", "ratio.detach().numpy().max()"
    for i, read in enumerate(reads):
        folder = tmp_path / str(i)
        folder.mkdir()
        path = changed(script, folder, LINE, f"{LINE}    value_loss = value_loss * {read}\n")
        line = path.read_text()[: path.read_text().index(read)].count("\n") + 1
        program = Program(path, folder / "cwd", *few("Toy"))
        code = program.wait(timeout=20)
        assert program.err.count("\n") == 1 and "--no-compile" in program.err, program.err
        assert code == 1 or code == 2 and f"line {line}" in program.err, program.err
        ended(Program(path, folder / "plain", *few("Toy", "--no-compile")), 0)


@one_script
def test_a_replay_tells_constants_from_what_has_their_memory(script):
    """A constant that is freed leaves its address to another tensor, whose values vary."""

    def function(x):
        for _ in range(20):
            torch.ones_like(x) * 2
            x = x + (x + 1).square() - (x + 1).square()
        return (x + 1).log() / x

    expected = function(torch.full((32,), 3.0))
    for _ in range(20):
        replay = script.Replay(True, function, script.zeros(32))  # on zeros the result is NaN
        assert np.allclose(replay(np.full(32, 3, np.float32)), expected)


@one_script
def test_a_replay_that_gives_nan_is_found_out(script):
    """As any other difference from PyTorch: a tensor that the function keeps is no input."""
    kept = torch.full((32,), torch.nan)

    def function(x):
        return x + torch.tensor(kept.tolist())

    replay = script.Replay(True, function, script.zeros(32))
    kept.zero_()
    replay(np.zeros(32, np.float32))  # once may be rounding
    with pytest.raises(script.Stop, match="--no-compile"):
        replay(np.zeros(32, np.float32))


# A file that imports one of the scripts


RIVAL = '''"""A rival that follows the average reward.

    python rival.py --env-id Hopper
"""

import sys
from dataclasses import dataclass

import ppo_continuous as ppo
import torch
from helper import STEP


@dataclass
class Rival:
    """Settings of the rival"""

    step_size: float = STEP  # how far to go
    num_steps: ppo.Int = 64  # T


@dataclass
class Args(Rival, ppo.Common):
    def __post_init__(self):
        ppo.check_numbers(self)


def train(args, envs, run):
    """A random search."""
    torch.manual_seed(args.seed)
    agent = torch.nn.Linear(envs.obs_size, envs.action_size)
    start = run.resume(agent=agent, envs=envs)
    act = lambda obs, noise: agent(torch.tensor(obs)).detach().numpy() + noise
    iterations = args.total_timesteps // args.num_steps // args.num_envs
    for iteration in range(start + 1, iterations + 1):
        batch = ppo.rollout(args, envs, act, ppo.generator(args.seed, iteration))
        run.check(iteration, **vars(batch))
        with torch.no_grad():
            agent.bias += args.step_size * batch.rewards.mean().clamp(-1, 1)
        step = iteration * args.num_steps * args.num_envs
        run.log(iteration, step, iteration == iterations, dict(reward=batch.rewards.mean().item()))
    return agent


class Policy(torch.nn.Linear):
    def __init__(self, obs_size, action_size, args):
        super().__init__(obs_size, action_size)

    @torch.no_grad()
    def act(self, obs, noise):
        return self(obs) + noise


if __name__ == "__main__":
    sys.exit(ppo.main(train, Args, __file__, Policy))
'''
RIVAL_FLAGS = "--env-id toys:Toy-v0 --total-timesteps 512 --run-dir run".split()


@pytest.fixture
def rival(tmp_path, monkeypatch):
    """The path of a rival that imports ppo_continuous.py and helper.py, both beside it."""
    folder = tmp_path / "rivals"
    folder.mkdir()
    (folder / "rival.py").write_text(RIVAL)
    (folder / "helper.py").write_text("STEP = 0.5\n")
    shutil.copy(ppo_continuous.__file__, folder)
    return folder / "rival.py"


def test_rival_has_its_own_help_and_name(rival, tmp_path):
    """Its docstring, flags, and name in errors and in the run directory; none of PPO's flags."""
    cwd = tmp_path / "cwd"
    text = ended(Program(rival, cwd, "--help"), 0, "A rival that follows", "--step-size")
    assert "--env-id" in text
    assert "--clip-coef" not in text and "arXiv:1707" not in text and "how far to go" in text
    for flags, words in (
        ("--clip-coef 0.1", "--clip-coef"),
        ("--step-size nan", "--step-size nan"),
        ("--env-id Hoper", "Hopper"),
    ):
        program = Program(rival, cwd, *flags.split())
        ended(program, 2, *words.split())
        assert program.err.startswith("rival.py: ")
    ended(Program(rival, cwd, *RIVAL_FLAGS[:-2]), 0, "finished")
    (run,) = (cwd / "runs").iterdir()
    assert re.fullmatch(r"toys:Toy-v0__rival__1__\d+", run.name)


def test_rival_run_holds_every_file_that_it_imports(rival, tmp_path):
    """They run by themselves; --eval plays the rival's own policy."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    ended(Program(rival, cwd, *RIVAL_FLAGS), 0, "finished")
    for name in ("rival.py", "helper.py", "ppo_continuous.py"):
        assert (run / name).read_bytes() == (rival.parent / name).read_bytes()
    facts = json.loads((run / "args.json").read_text())
    assert facts["script"] == "rival.py" and facts["exp_name"] == "rival"
    assert "clip_coef" not in facts and "reward" in rows(run / "metrics.csv")[0]
    ended(Program(rival, cwd, "--eval", "run", "--env-id", "toys:Toy-v0"), 0, "95%")
    copies, elsewhere = tmp_path / "copies", tmp_path / "elsewhere"
    shutil.copytree(run, copies)
    shutil.rmtree(rival.parent)
    ended(Program(copies / "rival.py", elsewhere, *RIVAL_FLAGS), 0, "finished")
    assert results(elsewhere / "run") == results(run)
    argv = *RIVAL_FLAGS[:-1], str(run)
    ended(Program(run / "rival.py", elsewhere, *argv), 0, "already finished")


def test_rival_goes_on_from_its_own_copy(rival, tmp_path):
    """After a kill: `python RUN_DIR/rival.py ... --run-dir RUN_DIR`, to the same bytes."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    argv = *RIVAL_FLAGS[:-1], str(run), "--checkpoint-every", 2
    ended(Program(rival, tmp_path / "whole", *RIVAL_FLAGS), 0)
    program = Program(rival, cwd, *argv).until((run / "checkpoint.pt").exists)
    program.wait(signal.SIGKILL)
    (run / "summary.json").unlink(missing_ok=True)
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(rival.parent)
    ended(Program(run / "rival.py", tmp_path / "elsewhere", *argv), 0, "goes on after iteration")
    assert results(run) == results(tmp_path / "whole/run")


@pytest.mark.parametrize("name", ["rival.py", "helper.py", "ppo_continuous.py"])
def test_rival_is_not_resumed_by_other_sources(name, rival, tmp_path):
    """An edit of any file that it imports is found, in one line; the run stays as it is."""
    cwd, run = tmp_path / "cwd", tmp_path / "cwd/run"
    program = Program(rival, cwd, *RIVAL_FLAGS, "--checkpoint-every", 2)
    program.until((run / "checkpoint.pt").exists).wait(signal.SIGKILL)
    (run / "summary.json").unlink(missing_ok=True)
    with open(rival.parent / name, "a") as file:
        file.write("# edited\n")
    before = snapshot(run)
    program = Program(rival, cwd, *RIVAL_FLAGS, "--checkpoint-every", 2)
    ended(program, 2, "--run-dir run", "run/rival.py")
    assert program.err.startswith("rival.py: ") and snapshot(run) == before


def test_a_run_is_not_resumed_by_another_program(rival, tmp_path):
    """Though both have all else in common."""
    argv = *RIVAL_FLAGS, "--exp-name", "same", "--checkpoint-every", 2
    run = tmp_path / "cwd/run"
    program = Program(rival, tmp_path / "cwd", *argv)
    program.until((run / "checkpoint.pt").exists).wait(signal.SIGKILL)
    (run / "summary.json").unlink(missing_ok=True)
    before = snapshot(run)
    other = shutil.copy(rival, rival.with_name("other.py"))
    ended(Program(other, tmp_path / "cwd", *argv), 2, "--run-dir run", "run/rival.py")
    assert snapshot(run) == before


def test_rival_finds_a_script_in_another_folder(rival, tmp_path):
    """Through PYTHONPATH, as benchmark/rivals/ finds the scripts; the run holds it as well."""
    cwd, away = tmp_path / "cwd", tmp_path / "away"
    away.mkdir()
    shutil.move(rival.parent / "ppo_continuous.py", away)
    path = f"import sys; sys.path.insert(1, {str(away)!r})"
    ended(Program(rival, cwd, *RIVAL_FLAGS, before=path), 0, "finished")
    assert (cwd / "run/ppo_continuous.py").read_bytes() == (away / "ppo_continuous.py").read_bytes()
    ended(Program(cwd / "run/rival.py", tmp_path / "elsewhere", *RIVAL_FLAGS), 0, "finished")
