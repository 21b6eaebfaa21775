"""The command line: what it takes, and how it refuses what it does not take."""

import pytest
from conftest import SCRIPTS, Program

import ppo_continuous
import ppo_klpen
import ppo_noclip

BAD = [  # flags of ppo_continuous.py, and words that the one line on stderr must have
    ("--total-timestep 100", "--total-timestep --total-timesteps"),
    ("--learnin-rate 1e-4", "--learnin-rate --learning-rate"),
    ("hopper", "hopper"),
    ("--gamma", "--gamma"),
    ("--num-steps 1.5", "--num-steps 1.5 int"),
    ("--total-timesteps many", "--total-timesteps many int"),
    ("--norm-adv always", "--norm-adv always batch minibatch none"),
    ("--env-id Hoper", "--env-id Hoper Hopper"),
    ("--env-id inverted_pendulum", "--env-id inverted_pendulum InvertedPendulum"),
    ("--env-id no_such_module:Toy-v0", "--env-id no_such_module"),
    ("--env-id toys:Tou-v0", "--env-id toys:Tou-v0 Toy"),
    ("--env-id CartPole-v1", "--env-id CartPole-v1 Discrete Box"),
    ("--env-id toys:Raises-v0", "--env-id toys:Raises-v0 RuntimeError motor off"),
    ("--env-id toys:ShowsNaN-v0", "--env-id toys:ShowsNaN-v0 finite nan"),
    ("--env-id toys:PaysNaN-v0", "--env-id toys:PaysNaN-v0 finite nan"),
    ("--env-id toys:Misshapen-v0", "--env-id toys:Misshapen-v0 shape (1,)"),
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
    ("--total-timesteps 1e400", "--total-timesteps 1e400"),
    ("--learning-rate -1e-4", "--learning-rate -0.0001"),
    ("--learning-rate nan", "--learning-rate nan"),
    ("--learning-rate inf", "--learning-rate inf"),
    ("--gamma 1.01", "--gamma 1.01"),
    ("--gae-lambda -0.1", "--gae-lambda -0.1"),
    ("--vf-coef nan", "--vf-coef nan"),
    ("--max-grad-norm -1", "--max-grad-norm -1"),
    ("--target-kl nan", "--target-kl nan"),
    ("--num-threads 1e12", "--num-threads 1024"),
    ("--total-timesteps 1.5", "--total-timesteps 1.5"),
    ("--eval nowhere", "--eval nowhere"),
    ("--eval=", "--eval not a finished run"),
]
BAD = [(ppo_continuous, *case) for case in BAD] + [
    (ppo_continuous, "--clip-coef 1.5", "--clip-coef 1.5"),
    (ppo_continuous, "--kl-coef 1", "--kl-coef"),
    (ppo_noclip, "--clip-coef 0.1", "--clip-coef"),
    (ppo_klpen, "--clip-coef 0.1", "--clip-coef"),
    (ppo_klpen, "--kl-coef nan", "--kl-coef nan"),
    (ppo_klpen, "--kl-target -1", "--kl-target -1"),
]


@pytest.mark.parametrize("script, flags, words", BAD)
def test_bad_input_is_refused_in_one_line(script, flags, words, tmp_path):
    """It names the flag, the value and what would be right; exit 2, and nothing left behind."""
    program = Program(script, tmp_path / "cwd", *flags.split())
    assert program.wait() == 2
    assert program.err.startswith(f"{script.__name__}.py: ") and program.err.count("\n") == 1
    assert all(word in program.err for word in words.split()), program.err
    assert program.out == "" and not list((tmp_path / "cwd").iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag(script, tmp_path):
    """In a box for each group, and says where the defaults come from."""
    program = Program(script, tmp_path / "cwd", "--help")
    assert program.wait() == 0 and program.err == ""
    for name in script.Args.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in program.out
    _, _, task, paper, extra, run = program.out.split("╭─")
    assert "--env-id" in task and "Table 3" in paper and "--clip-actions" in extra
    assert "--minibatch-size" in paper and "--run-dir" in run


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("typed", ["1e6", "1_000_000", "1000000", "1.0E+6", "10e5"])
def test_integers_are_typed_as_people_type_them(script, typed):
    for argv in (["--total-timesteps", typed], [f"--total-timesteps={typed}"]):
        steps = script.parse(argv).total_timesteps
        assert steps == 1_000_000 and type(steps) is int


@pytest.mark.parametrize("script", SCRIPTS)
def test_names_that_look_like_numbers_stay_as_they_are(script):
    args = script.parse("--run-dir 2e1 --exp-name 1e3".split())
    assert (args.run_dir, args.exp_name) == ("2e1", "1e3")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "typed, env_id",
    [
        ("Hopper", "Hopper-v4"),
        ("hopper", "Hopper-v4"),
        ("Hopper-v4", "Hopper-v4"),
        ("hopper-V5", "Hopper-v5"),
        ("Hopper-v5", "Hopper-v5"),
        ("pendulum", "Pendulum-v1"),
        ("toys:Toy-v0", "toys:Toy-v0"),
    ],
)
def test_tasks_are_named_as_people_name_them(script, typed, env_id):
    """A bare name means the version of the paper's day, -v4, or else the newest."""
    assert script.parse(["--env-id", typed]).env_id == env_id
