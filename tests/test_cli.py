"""The command line: what it takes, and how it refuses what it does not take."""

import re

import pytest
from conftest import MUJOCO_SCRIPTS, Program

import ppo_continuous
import ppo_klpen
import ppo_noclip

BAD = [  # flags of ppo_continuous.py, and words that the one line on stderr must have
    ("--total-timestep 100", "--total-timestep --total-timesteps"),
    ("--learnin-rate 1e-4", "--learnin-rate --learning-rate"),
    ("hopper", "hopper"),
    ("--gamma", "--gamma"),
    ("--num-steps 1.5", "--num-steps 1.5 int"),
    ("--seed 1.5", "--seed 1.5 int"),
    ("--num-envs 0.5", "--num-envs 0.5 int"),
    ("--seed nan", "--seed nan int"),
    ("--seed inf", "--seed inf int"),
    ("--cuda", "--cuda"),
    ("--no-cuda", "--no-cuda"),
    ("--torch-deterministic", "--torch-deterministic"),
    ("--total-timesteps many", "--total-timesteps many int"),
    ("--norm-adv always", "--norm-adv always batch minibatch none"),
    ("--env-id Hoper", "--env-id Hoper Hopper"),
    ("--env-id inverted_pendulum", "--env-id inverted_pendulum InvertedPendulum"),
    ("--env-id no_such_module:Toy-v0", "--env-id no_such_module"),
    ("--env-id toys:Tou-v0", "--env-id toys:Tou-v0 Toy"),
    ("--env-id CartPole-v1", "--env-id CartPole-v1 Discrete Box"),
    ("--env-id Pusher-v4", "--env-id Pusher-v4 mujoco<3"),
    ("--env-id toys:Raises-v0", "--env-id toys:Raises-v0 RuntimeError motor off"),
    ("--env-id toys:ShowsNaN-v0", "--env-id toys:ShowsNaN-v0 finite nan"),
    ("--env-id toys:ShowsHuge-v0", "--env-id toys:ShowsHuge-v0 finite e+60"),
    ("--env-id toys:Listed-v0", "--env-id toys:Listed-v0 vector Sequence"),
    ("--env-id toys:PaysNaN-v0", "--env-id toys:PaysNaN-v0 finite nan"),
    ("--env-id toys:Misshapen-v0", "--env-id toys:Misshapen-v0 shape (1,)"),
    ("--env-id toys:Misshapen-v0 --num-envs 2", "--env-id toys:Misshapen-v0 shape (1,)"),
    ("--env-id toys:Count-v0 --capture-video", "--env-id toys:Count-v0 render"),
    ("--num-steps 100", "--minibatch-size 64 100"),
    ("--num-envs 3 --num-steps 64 --minibatch-size 128", "--minibatch-size 128 3 64"),
    ("--minibatch-size 1", "--minibatch-size 1"),
    ("--minibatch-size 0", "--minibatch-size 0"),
    ("--total-timesteps 2047", "--total-timesteps 2047 2048"),
    ("--num-envs 0", "--num-envs 0"),
    ("--update-epochs -1", "--update-epochs -1"),
    ("--checkpoint-every 0", "--checkpoint-every 0"),
    ("--seed -1", "--seed -1"),
    ("--total-timesteps 1e400", "--total-timesteps 1e+12"),
    ("--learning-rate -1e-4", "--learning-rate -0.0001"),
    ("--learning-rate 0", "--learning-rate 0"),
    ("--learning-rate nan", "--learning-rate nan"),
    ("--learning-rate inf", "--learning-rate inf"),
    ("--gamma 1.01", "--gamma 1.01"),
    ("--gae-lambda -0.1", "--gae-lambda -0.1"),
    ("--vf-coef nan", "--vf-coef nan"),
    ("--max-grad-norm -1", "--max-grad-norm -1"),
    ("--max-grad-norm 0", "--max-grad-norm 0"),
    ("--clip-vloss 0", "--clip-vloss 0"),
    ("--target-kl 0", "--target-kl 0"),
    ("--adam-eps 0", "--adam-eps 0"),
    ("--init-log-std nan", "--init-log-std nan -20 5"),
    ("--init-log-std 1000", "--init-log-std 1000 -20 5"),
    ("--init he", "--init he orthogonal normc torch"),
    ("--target-kl nan", "--target-kl nan"),
    ("--num-threads 1e12", "--num-threads 1024"),
    ("--total-timesteps 1.5", "--total-timesteps 1.5"),
    ("--seed 1e20", "--seed 1e+20"),
    ("--eval nowhere", "--eval nowhere"),
    ("--eval=", "--eval not a finished run"),
    ("--run-dir=", "--run-dir name"),
]
BAD = [(ppo_continuous, *case) for case in BAD] + [
    (ppo_continuous, "--clip-coef 1.5", "--clip-coef 1.5"),
    (ppo_continuous, "--clip-coef 0", "--clip-coef 0"),
    (ppo_continuous, "--surrogate pg", "--surrogate"),
    (ppo_noclip, "--surrogate clip", "--surrogate clip cpi pg"),
    (ppo_noclip, "--kl-tolerance 2", "--kl-tolerance"),
    (ppo_continuous, "--kl-coef 1", "--kl-coef"),
    (ppo_noclip, "--clip-coef 0.1", "--clip-coef"),
    (ppo_klpen, "--clip-coef 0.1", "--clip-coef"),
    (ppo_klpen, "--kl-coef nan", "--kl-coef nan"),
    (ppo_klpen, "--kl-coef 0", "--kl-coef 0 --no-adapt-kl-coef"),
    (ppo_klpen, "--kl-target -1", "--kl-target -1"),
    (ppo_klpen, "--kl-target 0", "--kl-target 0"),
    (ppo_klpen, "--kl-tolerance 0.5", "--kl-tolerance 0.5 1"),
    (ppo_klpen, "--kl-factor 0.5", "--kl-factor 0.5 1"),
    (ppo_klpen, "--kl-factor 1", "--kl-factor 1"),
]


@pytest.mark.parametrize("script, flags, words", BAD)
def test_bad_input_is_refused_in_one_line(script, flags, words, tmp_path):
    """It names the flag, the value and what would be right; exit 2, and nothing left behind."""
    program = Program(script, tmp_path / "cwd", *flags.split())
    assert program.wait(timeout=60) == 2
    assert program.err.startswith(f"{script.__name__}.py: ") and program.err.count("\n") == 1
    assert len(program.err) < 400 and not re.search(r"\d\.\d{7}", program.err)
    assert program.err.count("Unrecognized options") <= 1  # not the title of tyro's box as well
    assert all(word in program.err for word in words.split()), program.err
    assert program.out == "" and not list((tmp_path / "cwd").iterdir())


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_bad_input_is_named_where_no_box_can_be_drawn(script, tmp_path):
    before = "import sys; sys.stdout.reconfigure(encoding='ascii')"
    program = Program(script, tmp_path / "cwd", "--anneal-lr", "True", before=before)
    assert program.wait(timeout=60) == 2
    assert program.err == f"{script.__name__}.py: Unrecognized options: True\n"


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_help_explains_every_flag(script, tmp_path):
    """In a box for each group, and says where the defaults come from."""
    program = Program(script, tmp_path / "cwd", "--help")
    assert program.wait() == 0 and program.err == ""
    for name in script.Args.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in program.out
    first, *boxes = re.split(r"╭─ (?!options)", program.out.replace("╭─ options", ""))
    assert script.__doc__.splitlines()[0] in first and "arXiv:1707.06347" in first
    common, advantages, paper = boxes
    assert "--env-id" in common and "--run-dir" in common and "--clip-actions" in common
    assert "--gae-lambda" in advantages and "Table 3" in paper and "--minibatch-size" in paper
    assert "--learning-rate" not in common + advantages


def parsed(script, *argv):
    return script.parse([*argv], script.Args, script.__file__, script.__doc__)


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
@pytest.mark.parametrize("typed", ["1e6", "1_000_000", "1000000", "1.0E+6", "10e5"])
def test_integers_are_typed_as_people_type_them(script, typed):
    for argv in (["--total-timesteps", typed], [f"--total-timesteps={typed}"]):
        steps = parsed(script, *argv).total_timesteps
        assert steps == 1_000_000 and type(steps) is int


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
def test_names_that_look_like_numbers_stay_as_they_are(script):
    args = parsed(script, "--run-dir", "2e1", "--exp-name", "1e3")
    assert (args.run_dir, args.exp_name) == ("2e1", "1e3")


@pytest.mark.parametrize("script", MUJOCO_SCRIPTS)
@pytest.mark.parametrize(
    "typed, env_id",
    [
        ("Hopper", "Hopper-v4"),
        ("hopper", "Hopper-v4"),
        ("Hopper-v4", "Hopper-v4"),
        ("hopper-V5", "Hopper-v5"),
        (" Hopper ", "Hopper-v4"),
        ("Hopper-v5", "Hopper-v5"),
        ("pendulum", "Pendulum-v1"),
        ("Pusher", "Pusher-v5"),
        ("pusher", "Pusher-v5"),
        ("Pusher-v5", "Pusher-v5"),
        ("toys:Toy-v0", "toys:Toy-v0"),
    ],
)
def test_tasks_are_named_as_people_name_them(script, typed, env_id):
    """A bare name means the version of the paper's day, -v4, or else the newest that works."""
    assert parsed(script, "--env-id", typed).env_id == env_id
