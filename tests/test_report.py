"""benchmark/report.py: its statistics against their definitions, and reports of made-up runs."""

import itertools
import json
import shutil
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

for name in ("pandas", "scipy", "matplotlib"):
    pytest.importorskip(name, reason="pip install -r benchmark/requirements.txt")

import pandas as pd  # noqa: E402
import scipy.stats  # noqa: E402

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmark"
sys.path.insert(0, str(BENCHMARK))
import noise  # noqa: E402
import plots  # noqa: E402
import report  # noqa: E402
import stats  # noqa: E402

# ---------------------------------------------------------------------------------- statistics


def test_t_interval():
    low, high = stats.t_interval(np.array([1.0, 2.0, 3.0]))  # mean 2, deviation 1
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    assert stats.t_interval(np.full(3, 1000.0)) == (1000, 1000)
    for few in ([1.0], [1.0, 2.0]):
        assert np.isnan(stats.t_interval(np.array(few))).all()


def test_iqm_drops_a_quarter_of_the_runs_at_either_end():
    assert stats.iqm_scores([[np.array([100.0, 1]), np.array([2.0, -50])]])[0] == 1.5
    (found,) = stats.iqm_scores([[np.stack([np.arange(8.0), np.ones(8)])]])
    assert found.tolist() == [3.5, 1]


TABLE = pd.DataFrame({
    "A": [np.array([1.0, 2, 3]), np.array([2.0, 2, 5, 4])],
    "B": [np.array([10.0, 30, 20]), np.array([20.0, 20, 0])],
}, ["x", "y"])  # fmt: skip


def test_the_bootstrap_is_stratified_and_draws_what_numpy_draws():
    """Seeds are drawn within each cell, cell by cell; ends are percentiles of the statistic."""
    found = stats.bootstrap(TABLE, np.random.default_rng(0), mean=stats.mean_scores)["mean"]
    rng = np.random.default_rng(0)
    for row, (value, low, high, middle) in zip(TABLE.to_numpy(), found):
        draws = [x[rng.integers(len(x), size=(stats.RESAMPLES, len(x)))] for x in row]
        means = np.mean([x.mean(-1) for x in draws], axis=0)
        assert value == pytest.approx(np.mean([x.mean() for x in row]))
        assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
        assert middle == pytest.approx(means.mean())


def test_two_seeds_have_no_interval():
    found = stats.bootstrap(TABLE.map(lambda x: x[:2]), mean=stats.mean_scores)["mean"]
    assert found[:, 0] == pytest.approx([10.75, 11]) and np.isnan(found[:, 1:]).all()


@pytest.mark.parametrize("seeds, chance", [(3, 1 / 8), (10, 1 / 14)])
def test_how_often_equal_rows_differ(seeds, chance, monkeypatch):
    """What results/README.md says of intervals of a difference, by 400 pairs of equal rows."""
    monkeypatch.setattr(stats, "RESAMPLES", 1000)
    rng, found = np.random.default_rng(1), []
    for _ in range(400):
        table = pd.DataFrame([[rng.normal(size=seeds) for _ in range(7)] for _ in range(2)])
        minus = {"minus": lambda rows: np.subtract(*stats.mean_scores(rows))[None]}
        ((_, low, high, _),) = stats.bootstrap(table, rng, **minus)["minus"]
        found.append(low > 0 or high < 0)
    assert np.mean(found) == pytest.approx(chance, abs=0.045)


def test_improvement_counts_pairs():
    x, y = TABLE.to_numpy()
    by_hand = [np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(*pair)])
               for pair in zip(x, y)]  # fmt: skip
    assert stats.beats(x, y) == pytest.approx(by_hand)
    assert stats.beats(x, y) + stats.beats(y, x) == pytest.approx([1, 1])
    assert stats.all_pairs([x, y]) == pytest.approx([*by_hand, np.mean(by_hand)])
    rows = {"x": x, "y": y, "z": [a + 0.5 for a in x]}
    pairs = [stats.beats(rows[a], rows[b]) for a, b in (("x", "y"), ("x", "z"), ("y", "z"))]
    expected = np.concatenate([[*pair, pair.mean()] for pair in pairs])
    assert stats.all_pairs(list(rows.values())) == pytest.approx(expected)
    many = stats.beats([np.stack([a, a]) for a in x], [np.stack([a, a]) for a in y])
    assert many == pytest.approx(np.stack([by_hand, by_hand], -1))


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (6, 3)), rng.normal(size=6)
    expected = [scipy.stats.spearmanr(column, y).statistic for column in x.T]
    assert stats.spearman(x, y) == pytest.approx(expected)


def test_wins_share_ties():
    rows = [[np.array([3.0, 5]), np.array([1.0])], [np.array([4.0]), np.array([2.0])]]
    assert stats.wins(rows).tolist() == [0.5, 1.5, 0, 1]


def test_lead_is_a_share_of_the_larger():
    gap, p = stats.lead(pd.Series([2.0, -10, 0, 5]), pd.Series([1.0, -40, 0, 10]))
    assert gap.tolist() == [0.5, 0.75, 0, -0.5] and p == 1
    _, p = stats.lead(pd.Series([2.0] * 6 + [0, 0]), pd.Series([1.0] * 6 + [0, 0]))
    assert p == pytest.approx(2 / 2**6)  # ties do not count


def test_both_readings_of_best_result():
    table = pd.DataFrame({"A": [np.array([8.0, 10]), np.array([0.0, -5])],
                          "B": [np.array([-2.0, -4]), np.array([-1.0, -21])]})  # fmt: skip
    random = pd.Series({"B": -11.0, "A": 0.0, "C": 1.0})
    run = stats.normalised(table, random, np.max)  # best A 10, B -1
    assert [x.tolist() for x in run["A"]] == [[0.8, 1], [0, -0.5]]
    assert [x.tolist() for x in run["B"]] == [[0.9, 0.7], [1, -1]]
    setting = stats.normalised(table, random, np.mean)  # best mean A 9, B -3
    assert setting["A"][0] == pytest.approx([8 / 9, 10 / 9]) and setting["B"][0].mean() == 1
    below = stats.normalised(table, pd.Series({"B": 1.0, "A": 20.0}), np.max)  # better is higher
    assert below.map(np.max).to_numpy().tolist() == [[-1, -1.5], [-2, -1]]


# ---------------------------------------------------------------------------------- data


def make_run(folder, seed, score, status="finished", **args):
    """A run directory of 20 episodes, the last ten of which have that score."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    returns = np.r_[np.linspace(-100, score, 10), np.full(10, score)]
    lines = [f"{50 * (i + 1)},{r},50\n" for i, r in enumerate(returns)]
    head = "global_step,episodic_return,episodic_length\n"
    (folder / "episodes.csv").write_text(head + "".join(lines))
    head = "global_step,seconds,sps,entropy,clip_fraction,final_kl" + ",kl_coef" * bool(args)
    lines = [f"{s},1,1000,{2 - s / 1e3},{s / 1e4},{0.01 * rng.uniform(0.5, 2):.4f}"
             f"{',1.5' * bool(args)}\n" for s in range(50, 1001, 50)]  # fmt: skip
    (folder / "metrics.csv").write_text(head + "\n" + "".join(lines))
    facts = dict(command=["x.py", "--seed", str(seed)], versions={"python": "3"}, git_commit="abc")
    (folder / "args.json").write_text(json.dumps(facts | dict(total_timesteps=1000) | args))
    if status:
        summary = dict(status=status, score=score, score_all=float(returns.mean()), episodes=20,
                       seconds=1.0, sps=1000, global_step=1000)  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))


def make_runs(folder, settings, tasks, seeds=3):
    """Runs of settings that score the less the later they are named."""
    for (i, setting), task, seed in itertools.product(
        enumerate(settings), tasks, range(1, seeds + 1)
    ):
        adaptive = setting in ("adaptive-kl-0.01", "defaults", "factor-4", "beta-10")
        args = dict(adapt_kl_coef=True, kl_target=0.01) if adaptive else {}
        make_run(folder / setting / task / str(seed), seed, 2000.0 - 100 * i - 60 * seed, **args)


def make_report(monkeypatch, folder, name, runs="runs", out="out"):
    """Runs the program; what it complains of, or None, and the files that it made."""
    arguments = ["report.py", name, "--runs", folder / runs, "--out", folder / out]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    result = None
    try:
        with redirect_stderr(StringIO()) as errors:
            report.main()
    except SystemExit as error:
        assert error.code == 2
        result = errors.getvalue().removesuffix("\n")
    return result, {p.name: p.read_bytes() for p in (folder / out).glob("*.*")}


def test_curve_is_the_mean_of_each_hundredth():
    episodes = pd.DataFrame(dict(global_step=["5", "10", "11"], episodic_return=["1", "3", "7"]))
    metrics = pd.DataFrame(dict(global_step=["10", "20"], final_kl=["0.1", "0.2"], entropy="3"))
    found = report.curve(episodes, metrics.assign(kl_coef=["1", ""]), 1000)
    assert found.columns.tolist() == ["step", "return", "kl", "kl_max", "kl_coef", "entropy"]
    assert found.iloc[0, :5].tolist() == [10, 2, 0.1, 0.1, 1]
    assert found.iloc[1, :4].tolist() == [20, 7, 0.2, 0.2] and np.isnan(found["kl_coef"].iloc[1])
    assert found["entropy"].tolist() == [3, 3]
    assert len(report.curve(pd.DataFrame(), pd.DataFrame(), 1000)) == 0


def test_what_runs_csv_says_of_the_kl(tmp_path):
    """Mean and highest of the updates, the share within 1.5 times d_targ, the last entropy."""
    make_run(tmp_path / "run", 1, 0.0, adapt_kl_coef=True, kl_target=0.01)
    rows = ["250,4,.1,.014", "500,3,.2,.016", "750,2,.3,.007", "1000,1,.4,.006"]
    head = "global_step,entropy,clip_fraction,final_kl"
    (tmp_path / "run/metrics.csv").write_text("\n".join([head, *rows, ""]))
    row, _ = report.collect_run(tmp_path / "run")
    found = [row[x] for x in ("kl_held", "kl_mean", "kl_max", "clip_fraction", "entropy")]
    assert found == pytest.approx([0.5, 0.01075, 0.016, 0.25, 1])


@pytest.fixture
def sweep(tmp_path):
    """A Sweep of runs of which one diverged and two have not ended."""
    runs = tmp_path / "runs"
    make_runs(runs, ["clip-0.2", "no-clip", "adaptive-kl-0.01"], ["Hopper", "Reacher"])
    for path, status in (("no-clip/Hopper/3", "diverged"), ("no-clip/Hopper/2", "diverged")):
        summary = json.loads((runs / path / "summary.json").read_text()) | dict(status=status)
        summary |= dict(score=-1e6 if path.endswith("3") else None)  # None: no episode ended
        (runs / path / "summary.json").write_text(json.dumps(summary))
    make_run(runs / "clip-0.2/Hopper/4", 4, 1e9, "interrupted")
    make_run(runs / "clip-0.2/Hopper/5", 5, 1e9, None)
    found, curves = report.collect(runs)
    report.write(tmp_path / "runs.csv", found)
    report.write(tmp_path / "curves.csv", curves)
    return report.Sweep(tmp_path, tmp_path, "clip-0.2")


def test_what_counts_as_a_score(capsys, sweep):
    table = sweep.table()
    assert list(table.index) == ["no-clip", "clip-0.2", "adaptive-kl-0.01"]
    assert table.loc["clip-0.2", "Hopper"].tolist() == [1940, 1880, 1820]  # none unfinished
    random = sweep.random["Hopper"]
    assert table.loc["no-clip", "Hopper"].tolist() == [1840, random, -1e6]  # what it had
    whole = sweep.table("score_all").loc["clip-0.2", "Hopper"]
    assert whole == pytest.approx([0.25 * (-100 + x) + 0.5 * x for x in (1940, 1880, 1820)])
    made = report.how("table1", sweep)
    assert "diverged: no-clip/Hopper/2, no-clip/Hopper/3" in made
    assert "runs/clip-0.2/Hopper/4, interrupted\n" in capsys.readouterr().out


def test_runs_of_other_machines_stay(tmp_path):
    """What is in the CSV and not in the folder is kept; what is in both is read anew."""
    make_runs(tmp_path, ["clip-0.2"], ["Hopper"], seeds=10)
    rows, _ = report.collect(tmp_path)
    old = rows[:1].assign(score="7")
    old = pd.concat([old, old.assign(task="Ant")])
    found = report.merged(old, rows, rows)
    assert found[report.KEY].to_numpy().tolist()[0] == ["clip-0.2", "Ant", "1"]
    assert found["seed"].tolist()[1:] == [str(i) for i in range(1, 11)]
    assert found["score"].tolist()[:2] == ["7", 1940]
    assert report.merged(found, rows, rows).equals(found)
    rows = rows.assign(score=1 / 3)  # among text, too, floats have six digits
    report.write(tmp_path / "runs.csv", report.merged(old[1:], rows, rows))
    assert report.read(tmp_path / "runs.csv")["score"].tolist() == ["7"] + ["0.333333"] * 10
    first = report.merged(pd.DataFrame(), rows, rows)
    assert first.equals(rows.sort_values("seed", key=pd.to_numeric))


# ---------------------------------------------------------------------------------- pages

ROWS = "no-clip clip-0.1 clip-0.2 adaptive-kl-0.01 fixed-kl-1 pg log-clip-0.2".split()
GAMES = [x.split(",")[0] for x in (BENCHMARK / "paper_atari.csv").read_text().splitlines()[1:13]]
SWEEPS = {  # what a made-up sweep has, and what its page must say
    "mujoco": (["ppo_continuous"], ["Hopper", "Walker2d"], "1,940, 1,880, 1,820"),
    "table1": (ROWS, ["Hopper", "Walker2d"], "clipping in log space"),
    "table1-2017": (ROWS, ["Hopper", "Walker2d"], "Rank correlation with the paper's column"),
    "held-out": ([*ROWS, "trpo", "vpg"], ["Ant", "Humanoid"], "How likely a run of clipping"),
    "rivals": (["ppo", "trpo", "vpg", "a2c", "a2c-tr", "cem"], ["Hopper", "Swimmer"],
               "| *in the paper* | 2,141 | 106 |"),
    "ablation": ([f"{x}-{y}" for x in ("defaults", "raw-rewards") for y in ("clip", "no-clip")],
                 ["Hopper", "Walker2d"], "| rewards not scaled |"),
    "kl-constants": (["defaults", "factor-4", "beta-10"], ["Hopper", "Walker2d"],
                     "P(the defaults > it)"),
    "no-clip": (["2017-code", "30-epochs"], ["Hopper", "Walker2d"], "the code of July 2017"),
    "bfloat16": (["float32", "bf16"], ["Krull", "Pong"], "minus float32"),
    "atari": (["ppo", "a2c", "acer"], GAMES, "Games won, of 12"),
    "another": (["x", "y"], ["Hopper"], "## How it was made"),
}  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_the_csv_alone_makes_the_same_page(name, tmp_path, monkeypatch):
    settings, tasks, says = SWEEPS[name]
    monkeypatch.setattr(stats, "RESAMPLES", 100)
    if name not in ("mujoco", "ablation", "kl-constants"):  # writing takes most of the time
        monkeypatch.setattr(plots, "save", lambda x, path: plots.plt.close(x) or path.touch())
    make_runs(tmp_path / "runs", settings, tasks)
    result, out = make_report(monkeypatch, tmp_path, name)
    assert result is None and says in out["README.md"].decode()
    for path in (tmp_path / "out").iterdir():
        if path.suffix != ".csv":
            path.unlink()
    (tmp_path / "runs").rename(tmp_path / "gone")
    assert make_report(monkeypatch, tmp_path, name) == (None, out)
    assert {"README.md", "runs.csv", "curves.csv"} < set(out)


def test_what_atari_pages_leave_out(tmp_path, monkeypatch):
    """Two games: no winners, no games that have no run; two seeds: no interval."""
    make_runs(tmp_path / "runs", ["ppo", "a2c"], ["Pong", "Breakout"], seeds=2)
    text = make_report(monkeypatch, tmp_path, "atari")[1]["README.md"].decode()
    assert "Alien" not in text and "Games won" not in text and "missing" not in text
    assert "| Breakout | 1,910 | 1,408 | 2 |" in text and " to " not in text


def test_a_page_has_the_answer_first_and_parts_as_sections(tmp_path, monkeypatch):
    make_runs(tmp_path / "runs", ["ppo"], ["Pong"])
    make_runs(tmp_path / "part", ["ppo"], ["Breakout"])
    out = tmp_path / "out"
    for name, rows in zip(("runs.csv", "curves.csv"), report.collect(tmp_path / "part")):
        report.write(out / "500k" / name, rows)
    for name in ("answer", "500k/answer", "notes"):
        (out / f"{name}.md").write_text(f"# {name} by hand\n")
    text = make_report(monkeypatch, tmp_path, "atari")[1]["README.md"].decode()
    order = ["# answer by", "| Pong |", "(curves.png)", "## How it was made", "# 500k/answer by",
             "| Breakout |", "(500k/curves.png)", "### How it was made", "# notes by"]  # fmt: skip
    places = [text.index(x) for x in order]
    assert places == sorted(places)


def test_says_what_is_missing(tmp_path, monkeypatch):
    says = f"report.py: no {tmp_path}/out/runs.csv; runs that have ended in {tmp_path}/runs: 0"
    assert make_report(monkeypatch, tmp_path, "mujoco")[0] == says


def test_runs_that_have_just_begun_spoil_no_page(tmp_path, monkeypatch):
    """No episode, no iteration, no summary, or diverged at once; if none has ended, no page."""
    monkeypatch.setattr(plots, "save", lambda x, path: plots.plt.close(x) or path.touch())
    make_runs(tmp_path / "runs", ["ppo"], ["Hopper"], seeds=4)
    head = "global_step,episodic_return,episodic_length\n"
    for seed, episodes, metrics in ((1, head, None), (2, "", ""), (3, head, "")):
        for name, text in (("episodes.csv", episodes), ("metrics.csv", metrics)):
            if text is not None:
                (tmp_path / f"runs/ppo/Hopper/{seed}" / name).write_text(text)
        (tmp_path / f"runs/ppo/Hopper/{seed}/summary.json").unlink()
    shutil.copytree(tmp_path / "runs/ppo/Hopper/3", tmp_path / "runs/ppo/Reacher/1")
    summary = dict(status="diverged", seconds=1.0)
    (tmp_path / "runs/ppo/Reacher/1/summary.json").write_text(json.dumps(summary))
    result, files = make_report(monkeypatch, tmp_path, "mujoco")
    page = files["README.md"].decode()
    assert result is None and "| Hopper | 1,760 |" in page
    assert "\n- 2 runs, seeds 1, 4, not all of every row;" in page
    assert "\n- diverged: ppo/Reacher/1" in page
    shutil.rmtree(tmp_path / "runs/ppo/Reacher")
    (tmp_path / "runs/ppo/Hopper/4/summary.json").unlink()
    shutil.rmtree(tmp_path / "out")
    result, files = make_report(monkeypatch, tmp_path, "mujoco")
    assert result.endswith("/runs: 0") and not files


def test_an_interrupted_run_replaces_none_that_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda x, path: plots.plt.close(x) or path.touch())
    make_runs(tmp_path / "runs", ["ppo"], ["Hopper"])
    _, before = make_report(monkeypatch, tmp_path, "mujoco")
    shutil.rmtree(tmp_path / "runs")
    make_run(tmp_path / "runs/ppo/Hopper/1", 7, 1e9, None)
    assert make_report(monkeypatch, tmp_path, "mujoco") == (None, before)
    make_run(tmp_path / "runs/ppo/Hopper/2", 7, 5.0)
    page = make_report(monkeypatch, tmp_path, "mujoco")[1]["README.md"].decode()
    assert "1,940, 5.0, 1,820" in page
    for name in ("episodes.csv", "metrics.csv"):  # diverged before its first episode
        (tmp_path / f"runs/ppo/Hopper/2/{name}").write_text("")
    (tmp_path / "runs/ppo/Hopper/2/summary.json").write_text('{"status": "diverged"}')
    curves = make_report(monkeypatch, tmp_path, "mujoco")[1]["curves.csv"].decode()
    assert "ppo,Hopper,1," in curves and "ppo,Hopper,2," not in curves
    (tmp_path / "out/curves.csv").unlink()
    shutil.rmtree(tmp_path / "runs")
    assert "no " in (complaint := make_report(monkeypatch, tmp_path, "mujoco")[0])
    assert "curves.csv; runs that have ended" in complaint


def test_settings_may_be_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda x, path: plots.plt.close(x) or path.touch())
    make_runs(tmp_path / "runs", ["0.10", "2"], ["Hopper"])
    page = make_report(monkeypatch, tmp_path, "learning-rates")[1]["README.md"].decode()
    assert "| 0.10 |" in page and "| 2 |" in page


@pytest.mark.parametrize("name", [x for x in SWEEPS if x not in ("mujoco", "atari", "another")])
def test_pages_of_the_first_runs_of_a_sweep(name, tmp_path, monkeypatch):
    """Of one setting, of two, and of two that have no task in common."""
    monkeypatch.setattr(stats, "RESAMPLES", 100)
    monkeypatch.setattr(plots, "save", lambda x, path: plots.plt.close(x) or path.touch())
    settings, tasks, _ = SWEEPS[name]
    make_runs(tmp_path / "runs", settings[:1], tasks[:1], seeds=1)
    for setting, task in ((settings[-1], tasks[1]), (settings[-1], tasks[0])):
        result, files = make_report(monkeypatch, tmp_path, name)
        assert result is None and "| 1,940 |" in files["README.md"].decode()
        make_runs(tmp_path / "runs", [setting], [task], seeds=1)
    assert make_report(monkeypatch, tmp_path, name)[0] is None


@pytest.mark.parametrize(
    "file, text",
    [
        ("args.json", ""), ("args.json", "{}"), ("args.json", "[]"), ("summary.json", ""),
        ("summary.json", '{"a": 1}'), ("summary.json", "[1]"), ("episodes.csv", "a,b\n1,2\n"),
        ("episodes.csv", "\udcff\udcfe"), ("metrics.csv", "global_step,final_kl\nx,y\n"),
    ],
)  # fmt: skip
def test_a_directory_that_is_no_runs_is_named(file, text, tmp_path, monkeypatch):
    make_runs(tmp_path / "runs", ["ppo"], ["Hopper"], seeds=2)
    path = tmp_path / "runs/ppo/Hopper/2"
    (path / file).write_bytes(text.encode(errors="surrogateescape"))
    result, files = make_report(monkeypatch, tmp_path, "mujoco")
    assert str(path) in result and "\n" not in result and not files


COMMITTED = [x for x in report.PAGES if (BENCHMARK / "results" / x / "README.md").exists()]


def test_a_section_of_another_start_of_a_task(tmp_path, monkeypatch):
    """TASK@START is a column of its own, with TASK's random score, on the page of held-out."""
    monkeypatch.setattr(plots, "save", lambda x, path: plots.plt.close(x) or path.touch())
    tasks = {"held-out/log-std": ["Ant@-0.5", "Ant@-1"], "held-out": ["Ant", "Humanoid"]}
    for name in tasks:
        make_runs(tmp_path / "runs" / name, ["clip-0.2", "no-clip"], tasks[name])
        found, _ = make_report(monkeypatch, tmp_path, name, f"runs/{name}", name)
        assert found is None or name == "held-out/log-std" and found.endswith("log-std: 12")
    page = (tmp_path / "held-out/README.md").read_text()
    assert not (tmp_path / "held-out/log-std/README.md").exists()
    table = page[page.index("|  | Ant | Ant@-0.5 | Ant@-1 | Humanoid |") :].splitlines()
    random = report.short(report.known("random_policy", "task")["score"]["Ant"])
    assert table[2].startswith(f"| random policy | {random} | {random} | {random} |")
    assert table[4] == "| clipping, ε = 0.2 | " + " | ".join(["1,880<br>1,731 to 2,029"] * 4) + " |"
    assert "SEEDS=3 bash benchmark/log_std.sh" in page and "- 12 runs, seeds 1, 2, 3" in page

    sweep = report.Sweep(tmp_path / "held-out/log-std", tmp_path, with_page=".*")
    monkeypatch.setattr(noise, "HALFWAY", 500)
    assert noise.points(sweep, "clip-0.2", "Ant") == [(1.5, pytest.approx(1880))] * 3
    assert len(noise.points(sweep, "clip-0.2", "Humanoid")) == 1
    monkeypatch.setattr(noise, "PAGE", tmp_path / "held-out")
    monkeypatch.setattr(sys, "argv", ["noise.py"])
    noise.main()
    assert (tmp_path / "held-out/log-std/noise.png").exists()


def test_a_section_shows_rows_of_its_page():
    """Of table1 the row whose start is 0, beside the other starts of log std."""
    folder = report.HERE / "results/table1"
    sweep = report.Sweep(folder / "log-std", folder, **report.PAGES["table1/log-std"][2])
    assert list(sweep.label)[0] == "clip-0.2" and len(sweep.table(common=False).iloc[0, 0]) > 1
    assert all(x.startswith("log-std-") for x in list(sweep.label)[1:]) and len(sweep.label) > 1


def test_what_the_clip_and_a_change_add(tmp_path, monkeypatch):
    """Best run 1, random play 0: of means 1, 0.75, 0.5, 0.25 the clip adds a quarter each."""
    settings = [f"{x}-{y}" for x in ("defaults", "raw-rewards") for y in ("clip", "no-clip")]
    random = float(report.known("random_policy", "task")["score"]["Hopper"])
    for i, setting in enumerate(settings):
        for seed in (1, 2, 3):
            score = random + 1000 * (1 - i / 4)
            make_run(tmp_path / "runs" / setting / "Hopper" / str(seed), seed, score)
    make_run(tmp_path / "runs/defaults-clip/Walker2d/1", 1, 0.0)
    page = make_report(monkeypatch, tmp_path, "ablation")[1]["README.md"].decode()
    row = "| rewards not scaled | 0.50 (0.50 to 0.50) | 0.25 (0.25 to 0.25) | 0.25 (0.25 to 0.25) |"
    assert f"{row} -0.50 (-0.50 to -0.50) | -0.50 (-0.50 to -0.50) |" in page
    assert "Mean of what the clip adds: 0.25 (0.25 to 0.25)." in page
    assert "Means are of the tasks that every row has: Hopper." in page
    assert "- 13 runs, seeds 1, 2, 3, not all of every row; " in page


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_pages_are_those_of_the_committed_csv(name, tmp_path, monkeypatch):
    """Byte for byte, every number of the tables, from runs.csv and curves.csv alone."""
    for drawn in ("curves", "kl", "scores"):
        monkeypatch.setattr(plots, drawn, lambda path, *args, **kwargs: pictures.append(path))
    pictures, out = [], tmp_path / name
    shutil.copytree(BENCHMARK / "results" / name, out)
    committed = (out / "README.md").read_bytes()
    assert make_report(monkeypatch, tmp_path, name, "none", name)[0] is None
    assert (out / "README.md").read_bytes() == committed
    assert pictures and set(pictures) <= set(out.rglob("*.png"))


def test_committed_numbers_of_the_paper():
    table = report.known("paper_table1", "setting")["score"]
    assert set(table.index) <= set(plots.STYLE) and table.idxmax() == "clip-0.2"
    labels = report.known("labels", "setting")["label"]
    assert labels[table.index].equals(report.known("paper_table1", "setting")["label"])
    random = set(report.known("random_policy", "task").index)
    figure3 = report.known("paper_fig3", "task", "setting")["score"].unstack()
    assert figure3.shape == (7, 6) and set(figure3.index) | {"Ant", "Humanoid"} == random
    ppo2 = report.known("paper_mujoco", "column", "task")["score"]["paper, Fig. 3"]
    assert ppo2.equals(figure3["ppo"].loc[ppo2.index])


def test_figure_2_is_what_training_sees():
    """At theta_old nothing has changed; at theta_new the KL is the one that train() logs."""
    figures = pytest.importorskip("figures")
    args = figures.ppo.Args(env_id="Hopper-v4", total_timesteps=2048)
    agent, old, new, batch, kl = figures.first_update(args)
    assert [len(x) for x in batch] == [2048] * 4
    (_, *zero), (_, *one) = figures.along_the_line(agent, old, new, batch, 0.2, (0.0, 1.0))
    assert zero == pytest.approx([0, 0, 0, 0], abs=1e-6)
    assert one[0] == pytest.approx(kl, rel=1e-4) and 0 < one[3] <= min(one[1:3])
