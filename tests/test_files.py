"""Each script is whole: it needs no other file of this repository."""

import ast
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ALL, ROOT

COMMANDS = {  # with names as CleanRL's own tests type them
    "ppo_atari": "--env-id breakout --num-envs 1 --num-steps 64 --minibatch-size 64",
    "ppo_continuous": "--env-id Hopper-v4 --num-envs 1 --num-steps 64",
    "ppo_klpen": "--env-id hopper --num-envs 1 --num-steps 64",
    "ppo_noclip": "--env-id Hopper --num-envs 1 --num-steps 64",
}


@pytest.mark.parametrize("script", ALL)
def test_copied_alone_it_runs(script, tmp_path):
    """In an empty folder, silently but for its progress; it says what the task's name means."""
    shutil.copy(script.__file__, tmp_path)
    env = {k: x for k, x in os.environ.items() if k != "PYTHONPATH"}
    argv = f"{COMMANDS[script.__name__]} --total-timesteps 128 --num-threads 1".split()
    result = subprocess.run(
        [sys.executable, f"{script.__name__}.py", *argv],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    (summary,) = tmp_path.glob("runs/*/summary.json")
    env_id = re.fullmatch(rf"(.+)__{script.__name__}__1__\d+", summary.parent.name)[1]
    assert env_id in ("Hopper-v4", "breakout")
    assert result.stdout.startswith(f"{env_id}: ")


@pytest.mark.parametrize("script", ALL)
def test_header_for_uv_lists_what_the_script_needs(script):
    """PEP 723: `uv run script.py` installs of requirements.txt what it imports, and no more."""
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    lines = (ROOT / f"{script.__name__}.py").read_text().splitlines()
    assert lines[0] == "# /// script"
    header = [line[2:] for line in lines[1 : lines.index("# ///")]]
    header = tomllib.loads("\n".join(header))
    assert header["requires-python"].startswith(">=3.10")
    required = (ROOT / "requirements.txt").read_text().replace("pillow", "PIL").split()
    listed = {x.replace("[mujoco]", "").replace("pillow", "PIL") for x in header["dependencies"]}
    assert listed <= {x.replace("[mujoco]", "") for x in required}
    source = "\n".join(lines)
    for requirement in required:
        name = re.match(r"[\w-]+", requirement)[0]
        needed = re.search(rf"^ *(import|from) {name.replace('-', '_')}\b", source, re.M)
        if name not in ("mujoco", "gymnasium"):  # the one is imported by the other, that by ale-py
            assert (requirement in listed) == bool(needed), name


@pytest.mark.parametrize("script", ALL)
def test_imports_nothing_of_the_repository_and_nothing_optional(script):
    """What only some runs need, W&B and films, is imported by those."""
    tree = ast.parse((ROOT / f"{script.__name__}.py").read_text())

    def imported(nodes):
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                yield from [node.module] if isinstance(node, ast.ImportFrom) else names

    ours = {path.stem for path in ROOT.iterdir()}
    assert not ours & {name.split(".")[0] for name in imported(ast.walk(tree))}
    assert not {"wandb", "imageio", "moviepy"} & set(imported(tree.body))
