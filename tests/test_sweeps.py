"""benchmark/*.sh: how many runs they list, and that a setting's name says what is run."""

import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT

import ppo_atari
import ppo_continuous

sys.path.append(str(ROOT / "benchmark/rivals"))


@cache
def listed(name):
    """Of two seeds, with --dry-run: the words of each command."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = os.environ | {"SEEDS": "2", "PATH": path}
    command = ["bash", ROOT / "benchmark" / f"{name}.sh", "--dry-run"]
    out = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    return [shlex.split(line) for line in out.splitlines()]


@pytest.mark.parametrize(
    "name, runs",
    [
        ("mujoco", 7), ("table1", 91), ("table1_2017", 91), ("no_clip", 30), ("atari", 147),
        ("bfloat16", 8), ("ablation", 104), ("kl_constants", 49), ("held_out", 30), ("rivals", 49),
    ],
)  # fmt: skip
def test_sweeps_list_their_runs(name, runs):
    commands = listed(name)
    assert len(commands) == 2 * runs == len({c[-1] for c in commands})
    for command in commands:
        _, _, setting, task, seed = command[-1].split("/")
        assert command[command.index("--env-id") + 1] == task
        assert command[command.index("--seed") + 1] == seed


CLIP, NO_CLIP, PENALTY = "ppo_continuous", "ppo_noclip", "ppo_klpen"
TABLE_1 = {"no-clip": (NO_CLIP, {}), "pg": (NO_CLIP, {"surrogate": "pg"})}
TABLE_1 |= {"clip-0.2": (CLIP, {}), "log-clip-0.2": (CLIP, {"clip_log_ratio": True})}
TABLE_1 |= {f"clip-{x}": (CLIP, {"clip_coef": x}) for x in (0.1, 0.3)}
TABLE_1 |= {"adaptive-kl-0.01": (PENALTY, {}), "fixed-kl-1": (PENALTY, {"adapt_kl_coef": False})}
TABLE_1 |= {f"adaptive-kl-{x}": (PENALTY, {"kl_target": x}) for x in (0.003, 0.03)}
TABLE_1 |= {
    f"fixed-kl-{x}": (PENALTY, {"adapt_kl_coef": False, "kl_coef": x}) for x in (0.3, 3, 10)
}
CODE_2017 = dict(norm_reward=False, anneal_lr=False, init="normc", adam_eps=1e-8)
CODE_2017 |= dict(bootstrap_truncated=False)


def without(name):
    """CODE_2017 but for one flag, which has its default."""
    return {k: x for k, x in CODE_2017.items() if k != name}


CHANGES = {
    "defaults": {}, "raw-observations": {"norm_obs": False}, "raw-rewards": {"norm_reward": False},
    "raw-advantages": {"norm_adv": "none"}, "minibatch-advantages": {"norm_adv": "minibatch"},
    "constant-steps": {"anneal_lr": False}, "no-bootstrap": {"bootstrap_truncated": False},
    "normc-init": {"init": "normc"}, "torch-init": {"init": "torch"},
    "adam-eps-1e-8": {"adam_eps": 1e-8}, "clip-vloss-0.2": {"clip_vloss": 0.2},
    "max-grad-norm-0.5": {"max_grad_norm": 0.5}, "clip-actions": {"clip_actions": True},
}  # fmt: skip
SETTINGS = {
    "table1": TABLE_1,
    "table1_2017": {s: (script, flags | CODE_2017) for s, (script, flags) in TABLE_1.items()},
    "held_out": TABLE_1 | {"trpo": ("trpo", {}), "vpg": ("vpg", {})},
    "ablation": {
        f"{s}-{kind}": (script, flags)
        for s, flags in CHANGES.items()
        for kind, script in (("clip", CLIP), ("no-clip", NO_CLIP))
    },
    "kl_constants": {
        "defaults": (PENALTY, {}),
        "tolerance-1.25": (PENALTY, {"kl_tolerance": 1.25}),
        "tolerance-2": (PENALTY, {"kl_tolerance": 2}),
        "factor-1.5": (PENALTY, {"kl_factor": 1.5}),
        "factor-4": (PENALTY, {"kl_factor": 4}),
        "beta-0.1": (PENALTY, {"kl_coef": 0.1}),
        "beta-10": (PENALTY, {"kl_coef": 10}),
    },
    "no_clip": {
        "2017-code": (NO_CLIP, CODE_2017),
        "annealed-steps": (NO_CLIP, without("anneal_lr")),
        "scaled-rewards": (NO_CLIP, without("norm_reward")),
        "raw-advantages": (NO_CLIP, CODE_2017 | {"norm_adv": "none"}),
        "minibatch-advantages": (NO_CLIP, CODE_2017 | {"norm_adv": "minibatch"}),
        "raw-observations": (NO_CLIP, CODE_2017 | {"norm_obs": False}),
        "torch-init": (NO_CLIP, CODE_2017 | {"init": "torch"}),
        "30-epochs": (NO_CLIP, CODE_2017 | {"update_epochs": 30}),
        "larger-steps": (NO_CLIP, CODE_2017 | {"learning_rate": 1e-3}),
        "larger-steps-clipped": (CLIP, CODE_2017 | {"learning_rate": 1e-3}),
    },
    "rivals": {
        "ppo": (CLIP, {}),
        "trpo": ("trpo", {}),
        "trpo-2016": ("trpo", {"minibatch_size": 50, "num_steps": 25000}),  # of HalfCheetah
        "vpg": ("vpg", {}),
        "a2c": ("a2c", {}),
        "a2c-tr": ("a2c", {"trust_region": True}),
        "cem": ("cem", {}),
    },
    "atari": {"ppo": ("ppo_atari", {}), "a2c": ("a2c_atari", {}), "acer": ("acer", {})},
    "bfloat16": {
        "float32": ("ppo_atari", {"total_timesteps": 200_000}),
        "bf16": ("ppo_atari", {"total_timesteps": 200_000, "bf16": True}),
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_what_it_is_called(name):
    """Its script, and what differs from the script's defaults, of the first task's first run."""
    found = {}
    for command in listed(name):
        setting, _, seed = command[-1].split("/")[-3:]
        if seed in ("1", "5") and setting not in found:  # bfloat16.sh begins with 5
            script = import_module(Path(command[1]).stem)
            base = ppo_atari if name in ("atari", "bfloat16") else ppo_continuous
            args = asdict(base.parse(command[2:], script.Args, command[1], ""))
            differs = {k: x for k, x in args.items() if x != asdict(script.Args())[k]}
            for own in ("env_id", "seed", "exp_name", "run_dir"):
                differs.pop(own, None)
            found[setting] = script.__name__, differs
    assert found == SETTINGS[name]
