"""A variant differs from ppo_continuous.py by tests/expected/VARIANT.diff and nothing else.

That diff is the paper's change: a change to what the scripts share leaves it as it is, and a change
to one script alone shows up here. `UPDATE=1 pytest tests/test_drift.py` accepts it.
"""

import difflib
import os
from pathlib import Path

ROOT = Path(__file__).parent.parent


def changes(variant):
    """The lines that differ, without file names and line numbers."""
    base, lines = ((ROOT / f"{name}.py").read_text().splitlines() for name in (BASE, variant))
    diff = difflib.unified_diff(base, lines, n=0, lineterm="")
    return "".join(("@@" if line[:2] == "@@" else line) + "\n" for line in [*diff][2:])


BASE = "ppo_continuous"
VARIANTS = [path.stem for path in sorted(ROOT.glob("ppo_*.py")) if path.stem != BASE]


def test_variants_differ_by_what_is_expected():
    for variant in VARIANTS:
        expected = Path(__file__).parent / "expected" / f"{variant}.diff"
        if os.environ.get("UPDATE"):
            expected.write_text(changes(variant))
        assert changes(variant).splitlines() == expected.read_text().splitlines()


def test_readme_states_the_length_and_the_difference():
    table = (ROOT / "README.md").read_text().split("## Start")[0]
    for name in (BASE, *VARIANTS):
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}.py`"))
        *_, length, difference, _ = (cell.strip() for cell in row.split("|"))
        assert int(length) == len((ROOT / f"{name}.py").read_text().splitlines())
        removed, added = (sum(x[:1] == s for x in changes(name).splitlines()) for s in "-+")
        assert difference in ("", f"-{removed} +{added}")
