"""benchmark/rounding.py: its sums against their definitions, and that a probed run is the same."""

import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Notes, rows
from test_atari import Tape

import ppo_atari

pd = pytest.importorskip("pandas", reason="pip install -r benchmark/requirements.txt")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmark"))
import rounding  # noqa: E402

LAYERS = ["convs.0", "convs.2", "convs.4", "hidden", "actor", "critic", "all"]
SIZE = dict(num_envs=4, num_steps=16, minibatch_size=16, total_timesteps=128, update_epochs=2)


def test_moments_are_means_over_minibatches_and_over_pairs_of_them():
    g, h = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    same = np.mean([float(g[k, m] @ h[k, m]) for k in range(3) for m in range(4)])
    pairs = [(k, m, n) for k in range(3) for m, n in permutations(range(4), 2)]
    other = np.mean([float(g[k, m] @ h[k, n]) for k, m, n in pairs])
    assert rounding.moments(g, h) == pytest.approx((same, other))


def test_a_probed_run_is_the_same_and_its_gradients_are_autograds(tmp_path, monkeypatch):
    args = ppo_atari.Args(**SIZE, cuda=False, run_dir=str(tmp_path))
    plain = ppo_atari.train(args, Tape(4), Notes()).state_dict()
    seen, compared = [], rounding.compared
    monkeypatch.setattr(rounding, "compared", lambda *x: seen.append(x[1]) or compared(*x))
    monkeypatch.setattr(ppo_atari, "update", rounding.Probe(ppo_atari.update))
    for _ in range(2):  # what is done again replaces its rows
        probed = ppo_atari.train(args, Tape(4), Notes()).state_dict()
        assert all(torch.equal(x, plain[name]) for name, x in probed.items())
        table = rows(tmp_path / "rounding.csv")
        assert [row["global_step"] for row in table] == 7 * ["0"] + 7 * ["64"]
        assert [row["layer"] for row in table] == 2 * LAYERS

    first = [torch.stack([torch.cat([x.flatten() for x in g[-4:-2]]) for g, _ in gradients])
             for gradients in zip(*seen[0])]  # fmt: skip
    exact, rounded = (x.double() for x in first)
    assert exact.shape == (8, 3 * 512 + 3)
    assert float(table[4]["gradient"]) == pytest.approx((exact**2).sum().item() / 8)
    assert float(table[4]["error"]) == pytest.approx(((rounded - exact) ** 2).sum().item() / 8)
    for name in ("gradient", "gradient_common", "error", "error_common", "along"):
        layers = [float(row[name]) for row in table[:6]]
        assert float(table[6][name]) == pytest.approx(sum(layers))
    for row in table:
        assert 0 < float(row["error"]) < 0.01 * float(row["gradient"])


def test_the_summary_is_of_lengths_over_a_whole_run():
    first = dict(global_step=0, gradient=5, gradient_common=1, error=0.03, error_common=0.006)
    last = dict(global_step=1024, gradient=5, gradient_common=1, error=0.01, error_common=0.002)
    more = dict(kl=0.1, kl_bf16=0.2, clip_fraction=0.3, clip_fraction_bf16=0.4)
    rows = [{"along": x} | row | more for x, row in ((0.01, first), (-0.03, last))]
    found = rounding.summary(pd.DataFrame(rows)).to_dict()
    shares = [0.004**0.5, -0.002, 0.005, 0.0025, 0.001]
    assert list(found.values()) == pytest.approx([*shares, 0.1, 0.2, 0.3, 0.4])
