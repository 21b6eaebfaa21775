"""What the scripts share stays the same in all of them, and a variant is the paper's change.

ppo_noclip.py and ppo_klpen.py differ from ppo_continuous.py by tests/expected/VARIANT.diff and
nothing else; `UPDATE=1 pytest tests/test_drift.py` accepts a change of it. ppo_atari.py has games,
a network and a rollout of its own; what it shares is named here and compared byte for byte.
"""

import ast
import difflib
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = "ppo_continuous"
SHARED_WITH_ATARI = """Int Args surrogate gae Adam generator Stop show Run evaluate lock sources
check_numbers parse main command close METRICS finite""".split()


def source(script):
    return (ROOT / f"{script}.py").read_text()


def changes(variant):
    """The lines that differ, without file names and line numbers."""
    base, lines = (source(name).splitlines() for name in (BASE, variant))
    diff = difflib.unified_diff(base, lines, n=0, lineterm="")
    return "".join(("@@" if line[:2] == "@@" else line) + "\n" for line in [*diff][2:])


def blocks(script):
    """{name: text} of the classes, functions and constants of a script, with their decorators."""
    text, found = source(script), {}
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        names = [t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)]
        first = min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", []))])
        for name in [getattr(node, "name", None), *names]:
            found[name] = "".join(lines[first - 1 : node.end_lineno])
    return found


@pytest.mark.parametrize("variant", ["ppo_noclip", "ppo_klpen"])
def test_a_variant_differs_by_what_is_expected(variant):
    expected = Path(__file__).parent / "expected" / f"{variant}.diff"
    if os.environ.get("UPDATE"):
        expected.write_text(changes(variant))
    assert changes(variant).splitlines() == expected.read_text().splitlines()


@pytest.mark.parametrize("name", SHARED_WITH_ATARI)
def test_blocks_are_the_same_bytes_in_all_scripts(name):
    assert blocks("ppo_atari")[name] == blocks(BASE)[name]
