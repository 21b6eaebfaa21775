"""benchmark/report.py: its statistics against their definitions, and a report of made-up runs."""

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "benchmark" / "report.py"
spec = importlib.util.spec_from_file_location("report", REPORT)
report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report)


@pytest.mark.parametrize("df, t", [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (1000, 1.962)])
def test_t_quantile_is_that_of_the_tables(df, t):
    assert report.t_quantile(df) == pytest.approx(t, abs=1e-3)


def test_t_interval():
    low, high = report.t_interval(np.array([1.0, 2.0, 3.0]))  # mean 2, deviation 1
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    assert np.isnan(report.t_interval(np.array([1.0]))).all()


def test_iqm_drops_a_quarter_at_either_end():
    assert report.iqm(np.array([100.0, 1, 2, -50])) == 1.5
    assert report.iqm(np.arange(21.0)[::-1]) == np.mean(range(5, 16))  # int(21 / 4) = 5 a side
    assert report.iqm(np.stack([np.arange(8.0), np.ones(8)])).tolist() == [3.5, 1]


def test_resampling_stays_in_the_task_and_has_the_spread_of_the_mean():
    rng = np.random.default_rng(0)
    tasks = [np.array([1.0, 2, 3]), np.array([10.0, 20]), np.array([100.0])]
    draws = report.resample(tasks, rng)
    for x, drawn in zip(tasks, draws):
        assert drawn.shape == (report.RESAMPLES, len(x)) and set(drawn.flat) == set(x)
    means = np.mean([x.mean(-1) for x in draws], axis=0)
    variance = sum(x.var() / len(x) for x in tasks) / len(tasks) ** 2
    assert means.std() == pytest.approx(variance**0.5, rel=0.03)
    assert means.mean() == pytest.approx(np.mean([x.mean() for x in tasks]), rel=0.01)
    low, high = report.interval(means)
    assert ((means < low).mean(), (means > high).mean()) == pytest.approx((0.025, 0.025), abs=0.02)


def test_improvement_counts_pairs():
    rng = np.random.default_rng(0)
    x, y = ([rng.integers(0, 4, n).astype(float) for n in sizes] for sizes in ((3, 2), (4, 3)))
    by_hand = np.mean([
        np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(*pair)])
        for pair in zip(x, y)
    ])  # fmt: skip
    assert report.improvement(x, y) == pytest.approx(by_hand)
    assert report.improvement(x, y) + report.improvement(y, x) == pytest.approx(1)
    many = report.improvement([np.stack([a, a]) for a in x], [np.stack([a, a]) for a in y])
    assert many == pytest.approx([by_hand, by_hand])


def test_difference_is_a_t_test_in_units_of_what_was_learned():
    """By hand: gains 4 and 10; squared deviations 2/16 + 8/16 and 0 + 50/100; 5 free."""
    x, y = [np.array([1.0, 2, 3]), np.array([17.0])], [np.array([2.0, 4, 6]), np.array([10.0, 20])]
    each, mean, ends = report.difference(x, y, [0, 5])
    assert each == pytest.approx([-0.5, 0.2]) and mean == pytest.approx(-0.15)
    half = 2.570582 * (1.125 / 5 * (1 / 3 + 1 / 3 + 1 + 1 / 2)) ** 0.5 / 2
    assert ends == pytest.approx((-0.15 - half, -0.15 + half), rel=1e-5)
    assert np.isnan(report.difference([np.ones(1)], [np.array([2.0])], [0])[2]).all()


def test_differences_are_of_the_games_that_both_have():
    """Pong's random policy has -20.7: 19 is 10% more than 15.4 above it; Krull is of one alone."""
    scores = ("float32", "Pong", 15.4), ("bf16", "Pong", 19.01), ("bf16", "Krull", 1.0)
    runs = [dict(setting=s, task=t, status="finished", score=x, score_all=x) for s, t, x in scores]
    lines = report.differences_table(runs, "float32").splitlines()[2:]
    assert lines[0] == "| bf16, Pong | 1 | +10.0% | +10.0% |"
    assert lines[1:] == ["| **bf16, mean** |  | +10.0% | +10.0% |"]
    # A second seed scores 2 more: squared deviations 2 + 2 by the gain's square, 2 free.
    runs += [row | dict(score=row["score"] + 2) for row in runs]
    half = 4.302653 * (4 / 37.1**2 / 2 * (1 / 2 + 1 / 2)) ** 0.5
    low, mean, high = (f"{3.61 / 37.1 + x:+.1%}" for x in (-half, 0, half))
    last = f"| **bf16, mean** |  | **{mean}** ({low} to {high}) | **+10.0%** (+10.0% to +10.0%) |"
    assert report.differences_table(runs, "float32").splitlines()[-1] == last


def test_ranks_share_ties():
    assert report.ranks([0.7, 0.1, 0.7, 0.9]).tolist() == [2.5, 1, 2.5, 4]


SCORES = {
    "clip-0.2": {"A": np.array([8.0, 10]), "B": np.array([-2.0, -4])},
    "no-clip": {"A": np.array([0.0, -5]), "B": np.array([-1.0, -21])},
}


def test_both_readings_of_best_result():
    random = {"A": 0.0, "B": -11.0}
    run = report.normalised(SCORES, random, "run")  # best A 10, B -1
    assert run["clip-0.2"]["A"].tolist() == [0.8, 1] and run["no-clip"]["A"].tolist() == [0, -0.5]
    assert run["clip-0.2"]["B"].tolist() == [0.9, 0.7] and run["no-clip"]["B"].tolist() == [1, -1]
    setting = report.normalised(SCORES, random, "setting")  # best mean A 9, B -3
    assert setting["clip-0.2"]["A"] == pytest.approx([8 / 9, 10 / 9])
    assert setting["clip-0.2"]["B"].mean() == 1


def test_leave_one_out_chooses_without_the_task():
    norm = {
        "clip-0.2": {"A": np.array([0.9]), "B": np.array([0.5]), "C": np.array([0.5])},
        "fixed-kl-1": {"A": np.array([0.1]), "B": np.array([0.6]), "C": np.array([0.6])},
    }
    rows = report.leave_one_out(norm)
    assert [row[:2] for row in rows] == [("A", "fixed-kl-1"), ("B", "clip-0.2"), ("C", "clip-0.2")]
    assert rows[0][2:] == pytest.approx((0.6, 0.5))


def test_curve_is_the_mean_of_each_hundredth():
    episodes = [dict(global_step=s, episodic_return=r) for s, r in ((5, 1), (10, 3), (11, 7))]
    metrics = [dict(global_step=10, final_kl=0.1, kl_coef=1), dict(global_step=20, final_kl=0.2)]
    first, second = report.curve(episodes, metrics, total=1000)
    assert first == {"step": 10, "return": "2", "kl": "0.1", "kl_max": "0.1", "kl_coef": "1"}
    assert second == {"step": 20, "return": "7", "kl": "0.2", "kl_max": "0.2", "kl_coef": ""}


def test_smooth_keeps_gaps_out():
    x = np.array([[1.0, 2, 3, np.nan, np.nan, np.nan]])
    assert report.smooth(x, 3)[0, :4].tolist() == [1.5, 2, 2.5, 3]
    assert np.isnan(report.smooth(x, 3)[0, 4:]).all()


def make_run(folder, seed, score, status="finished", **args):
    """A run directory of 20 episodes, the last ten of which have that score."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    returns = np.r_[np.linspace(-100, score, 10), np.full(10, score)]
    lines = [f"{50 * (i + 1)},{r},50\n" for i, r in enumerate(returns)]
    (folder / "episodes.csv").write_text("global_step,episodic_return,episodic_length\n" +
                                         "".join(lines))  # fmt: skip
    head = "global_step,seconds,sps,final_kl" + (",kl_coef" if args else "")
    lines = [f"{s},1,1000,{0.01 * rng.uniform(0.5, 2):.4f}" + (",1.5" if args else "") + "\n"
             for s in range(50, 1001, 50)]  # fmt: skip
    (folder / "metrics.csv").write_text(head + "\n" + "".join(lines))
    facts = dict(command=["x.py", "--seed", str(seed)], versions={"python": "3"}, git_commit="abc")
    (folder / "args.json").write_text(json.dumps(facts | dict(total_timesteps=1000) | args))
    if status:
        summary = dict(status=status, score=score, score_all=float(returns.mean()), episodes=20,
                       seconds=1.0, sps=1000, global_step=1000)  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def runs(tmp_path):
    for task, best in (("Hopper", 2000.0), ("Reacher", -5.0)):
        for seed in (1, 2, 3):
            for setting, loss in (("no-clip", 0.9), ("clip-0.2", 0.1), ("adaptive-kl-0.01", 0.2)):
                args = dict(adapt_kl_coef=True, kl_target=0.01) if "kl" in setting else {}
                status, score = "finished", best - abs(best) * loss * seed
                if (setting, task, seed) == ("no-clip", "Hopper", 3):
                    status, score = "diverged", -1e6
                folder = tmp_path / "runs" / setting / task / str(seed)
                make_run(folder, seed, score, status, **args)
    make_run(tmp_path / "runs" / "clip-0.2" / "Hopper" / "4", 4, 1e9, "interrupted")
    make_run(tmp_path / "runs" / "clip-0.2" / "Hopper" / "5", 5, 1e9, None)
    return tmp_path


def make_report(folder, *arguments):
    command = [
        sys.executable,
        REPORT,
        *arguments,
        "--runs",
        folder / "runs",
        "--out",
        folder / "out",
    ]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["mujoco", "table1", "strict"])
def test_the_csv_alone_makes_the_same_report(runs, name):
    pytest.importorskip("matplotlib", reason="pip install -r benchmark/requirements.txt")
    first = make_report(runs, name)
    assert first.returncode == 0, first.stderr
    assert not first.stderr
    out = {p.name: p.read_bytes() for p in (runs / "out").iterdir()}
    pictures = {"mujoco": "curves", "strict": "curves scores kl beta",
                "table1": "curves families scores kl beta"}[name].split()  # fmt: skip
    assert set(out) == {"README.md", "runs.csv", "curves.csv"} | {f"{x}.png" for x in pictures}
    text = out["README.md"].decode()
    assert "Diverged: no-clip/Hopper/3." in text
    for path in (runs / "out").iterdir():
        if path.suffix != ".csv":
            path.unlink()
    (runs / "runs").rename(runs / "gone")
    assert make_report(runs, name).returncode == 0
    assert {p.name: p.read_bytes() for p in (runs / "out").iterdir()} == out


def test_what_counts_as_a_score(runs):
    rows, _ = report.collect(runs / "runs")
    assert {r["seed"]: r["status"] for r in rows if r["setting"] == "clip-0.2"}[
        "5"
    ] == "interrupted"
    scores = report.score_table(rows, {"Hopper": 18.0})
    assert len(scores["clip-0.2"]["Hopper"]) == 3  # none that is unfinished
    assert scores["no-clip"]["Hopper"][2] == -1e6  # diverged: what it had
    whole = report.score_table(rows, {}, "score_all")["clip-0.2"]["Hopper"]
    means = [0.25 * (-100 + score) + 0.5 * score for score in (1800, 1600, 1400)]
    assert whole == pytest.approx(means)
    diverged = [r | {"score": ""} for r in rows if r["status"] == "diverged"]  # no episode at all
    assert report.score_table(diverged, {"Hopper": 18.0})["no-clip"]["Hopper"].tolist() == [18]


def test_bf16_is_compared_with_float32(tmp_path):
    for setting, score in (("float32", 400.0), ("bf16", 350.0)):
        for seed in (5, 6):
            make_run(tmp_path / "runs" / setting / "Assault" / str(seed), seed, score)
    rows, _ = report.collect(tmp_path / "runs")
    report.write(tmp_path / "runs.csv", rows)
    runs = report.read(tmp_path / "runs.csv")
    text = report.scores_text("bf16", runs, report.score_table(runs, {}), {})
    assert report.differences_table(runs, "float32") in text and "| bf16, Assault | 2 |" in text


def test_says_what_is_missing(tmp_path):
    done = make_report(tmp_path, "mujoco")
    assert done.returncode == 1 and "neither" in done.stderr
    (tmp_path / "runs").mkdir()
    assert "no SETTING/TASK/SEED" in make_report(tmp_path, "mujoco").stderr


def test_committed_numbers_of_the_paper():
    table = {row["setting"]: float(row["score"]) for row in
             report.read(ROOT / "benchmark" / "paper_table1.csv")}  # fmt: skip
    assert list(table) == list(report.STYLE) and max(table, key=table.get) == "clip-0.2"
    tasks = {row["task"] for row in report.read(ROOT / "benchmark" / "random_policy.csv")}
    assert {r["task"] for r in report.read(ROOT / "benchmark" / "paper_mujoco.csv")} == tasks


def test_runs_of_other_machines_stay(runs):
    """What is in the CSV and not in the folder is kept; what is in both is read anew."""
    old = [dict(setting="clip-0.2", task=task, seed="1", score="7") for task in ("Ant", "Hopper")]
    rows, _ = report.collect(runs / "runs")
    found = report.merged(old, rows)
    assert len(found) == len(rows) + 1 and found == report.merged(found, rows)
    scores = {(r["setting"], r["task"], r["seed"]): r["score"] for r in found}
    assert scores["clip-0.2", "Ant", "1"] == "7" and scores["clip-0.2", "Hopper", "1"] == "1800"
    assert [r["task"] for r in found if r["setting"] == "clip-0.2"][:2] == ["Ant", "Hopper"]


def test_figure_2_is_what_training_sees():
    """At theta_old nothing has changed; at theta_new the KL is the one that train() logs."""
    figures = pytest.importorskip("benchmark.figures")
    args = figures.ppo.Args(env_id="Hopper-v4", total_timesteps=2048)
    agent, old, new, batch, kl = figures.first_update(args)
    assert [len(x) for x in batch] == [2048] * 4
    (_, *zero), (_, *one) = figures.along_the_line(agent, old, new, batch, 0.2, (0.0, 1.0))
    assert zero == pytest.approx([0, 0, 0, 0], abs=1e-6)
    assert one[0] == pytest.approx(kl, rel=1e-4) and 0 < one[3] <= min(one[1:3])


def test_atari_table_of_what_there_is(tmp_path):
    """Two games of 49: means and standard errors, both metrics, winners, the rest missing."""
    pytest.importorskip("matplotlib", reason="pip install -r benchmark/requirements.txt")
    scores = {("Pong", 1): 20.0, ("Pong", 2): 20.8, ("Breakout", 1): 300.0, ("Breakout", 2): 500.0}
    for (game, seed), score in scores.items():
        folder = tmp_path / "runs/ppo_atari" / game / str(seed)
        make_run(folder, seed, score, "diverged" if score == 500 else "finished")
        rows = (folder / "metrics.csv").read_text().replace("final_kl", "kl")
        (folder / "metrics.csv").write_text(rows)
    make_run(tmp_path / "runs/ppo_atari/Alien/1", 1, 700.0, "interrupted")
    make_run(tmp_path / "runs/ppo_atari/Alien/2", 2, 800.0, None)  # killed, so of unknown score
    done = make_report(tmp_path, "atari")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out/README.md").read_text()
    assert "not counted: Alien seed 1, 700 after 0.0M steps." in text
    assert "Diverged, and counted with the games that ended before: Breakout seed 2." in text
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "| 20.4 ± 0.4 |" in lines["Pong"] and "| 400 ± 100 |" in lines["Breakout"]
    assert lines["Alien"].count("missing") == 2 and text.count("missing |") == 2 * 47
    normal = (20.4 + 20.7) / (14.6 + 20.7), (400 - 1.7) / (30.5 - 1.7)
    assert f"**{np.mean(normal):.3f}**" in lines["mean"]
    # ACER has 20.7 and 456.4: each game has another winner in a quarter of the resamples
    assert "| ours | 0 | 0 | 2 | 4" in lines["ours"] and "0.5 games" in lines["ours"]
    assert "| paper | 0.5 | 0 | 1.5 |" in lines["paper"]  # a tie on Pong
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert make_report(tmp_path, "atari", "--from-csv").returncode == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
