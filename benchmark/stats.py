"""Statistics of scores. A table is settings x tasks; its cells are arrays of scores, one a seed."""

from itertools import combinations

import numpy as np
from scipy import stats

RESAMPLES = 10_000
FEWEST = 3  # seeds from which an interval is given


def t_interval(x):
    """Ends of the 95% interval by Student's t for the mean of x; NaN for too few values."""
    half = stats.t.ppf(0.975, len(x) - 1) * stats.sem(x) if len(x) >= FEWEST else np.nan
    return x.mean() - half, x.mean() + half


def normalised(table, random, best):
    """The table with random, a Series, at 0, best, np.max (a run) or np.mean, at 1; -1 if below."""
    random = random[table.columns]
    return (table - random) / (table.map(best).max() - random).abs()


def bootstrap(table, rng=0, **statistics):
    """{name: [K, 4]}: K values of each statistic, interval's low and high end, mean of the draws.

    A statistic gets S rows of T cells [..., seeds] and returns [K, ...]. The seeds of every cell
    are drawn anew; the interval is of 95% percentiles. With fewer than three seeds it is NaN.
    """
    cells, width = list(table.to_numpy().flat), table.shape[1]

    def measure(*cells, axis=-1):
        rows = [cells[i : i + width] for i in range(0, len(cells), width)]
        return np.concatenate([list(statistic(rows)) for statistic in statistics.values()])

    found = np.full((len(values := measure(*cells)), 4), np.nan)
    found[:, 0] = values
    if min(map(len, cells)) >= FEWEST:
        drawn = stats.bootstrap(cells, measure, n_resamples=RESAMPLES, method="percentile", rng=rng)
        found[:, 1:3] = np.transpose(drawn.confidence_interval)
        found[:, 3] = drawn.bootstrap_distribution.mean(-1)
    ends = np.cumsum([len(statistic(table.to_numpy())) for statistic in statistics.values()])
    return dict(zip(statistics, np.split(found, ends)))


def mean_scores(rows):
    """[S, ...]: mean over tasks of the mean over seeds."""
    return np.array([np.mean([x.mean(-1) for x in row], axis=0) for row in rows])


def iqm_scores(rows):
    """[S, ...]: interquartile mean of all runs of a setting."""
    return [stats.trim_mean(np.concatenate(row, -1), 0.25, axis=-1) for row in rows]


def beats(x_row, y_row):
    """[T, ...]: probability that a run of x scores more than one of y on a task, ties half."""
    pairs = [(x[..., :, None], y[..., None, :]) for x, y in zip(x_row, y_row)]
    return np.array([((x > y) + 0.5 * (x == y)).mean((-2, -1)) for x, y in pairs])


def all_pairs(rows):
    """[S (S-1) / 2 (T+1), ...]: beats() by task, then its mean, for combinations() of rows."""
    found = [beats(x, y) for x, y in combinations(rows, 2)]
    return np.concatenate([[*x, x.mean(0)] for x in found])


def wins(rows):
    """[2 S, ...]: tasks that a setting wins by its mean, a tie shared; and 1 if it wins most."""
    x = np.array([[cell.mean(-1) for cell in row] for row in rows])
    won = ((best := x == x.max(0)) / best.sum(0)).sum(1)
    return np.concatenate([won, (most := won == won.max(0)) / most.sum(0)])


def spearman(x, y):
    """[...]: Spearman's rank correlation of x [n, ...] with y [n]."""
    x, y = (stats.zscore(stats.rankdata(z, axis=0), axis=0) for z in (x, y))
    return np.tensordot(y, x, 1) / len(y)


def lead(x, y):
    """Lead of x over y, Series by game, as a share of the larger, and p of a sign test."""
    gap = ((x - y) / np.maximum(x.abs(), y.abs())).fillna(0)  # 0 of 0 is a tie
    return gap, stats.binomtest(sum(gap > 0), sum(gap != 0)).pvalue
