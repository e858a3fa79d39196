"""How often drift is found, how often it is only believed to be, and what a comparison costs.

    python benchmarks/observe/drift.py            about 6 minutes of CPU
    python benchmarks/observe/drift.py --quick    about 1 minute

Prints the tables of docs/decisions/drift-calibration.md. Every number follows from fixed seeds,
but for the CPU times.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import time
from collections.abc import Callable

import numpy as np
from scipy import stats

from fairlead.measure.drift import DriftLimits, DriftReference, compare
from fairlead.measure.profile import build_profile

LIMITS = DriftLimits()
N_REFERENCE = 50_000


def named(table):
    return {f"c{i}": np.ascontiguousarray(table[:, i]) for i in range(table.shape[1])}


def correlated(rng, n):
    """40 columns; the first four have correlation 0.6."""
    table = rng.normal(size=(n, 40))
    mix = np.linalg.cholesky(np.full((4, 4), 0.6) + 0.4 * np.eye(4))
    table[:, :4] = table[:, :4] @ mix.T
    return table


def shift(size):
    def change(_, table):
        table[:, 7] += size
        return table

    return change


def broken(rng, table):
    table[:, 0] = rng.permutation(table[:, 0])
    return table


CHANGES: dict[str, Callable] = {
    "quiet": lambda _, table: table,
    "0.1 sd": shift(0.1),
    "0.2 sd": shift(0.2),
    "0.5 sd": shift(0.5),
    "broken correlation": broken,
    "0.01 sd in all": lambda _, table: table + 0.01,
}


def detection(repeats):
    rng = np.random.default_rng(0)
    before = DriftReference.of(build_profile(named(correlated(rng, N_REFERENCE)), {}, ""))
    print(f"\nShare of windows flagged; 40 columns, reference {N_REFERENCE:,} rows")
    print(f"{'rows':>8s}  " + "  ".join(f"{name:>18s}" for name in CHANGES))
    for n, count in ((100, repeats), (1000, repeats), (10_000, repeats // 4)):
        shares = []
        for change in CHANGES.values():
            flagged = sum(
                compare(before, named(change(rng, correlated(rng, n))), {}, LIMITS).is_drifted
                for _ in range(count)
            )
            shares.append(flagged / count)
        print(f"{n:8d}  " + "  ".join(f"{share:18.3f}" for share in shares), flush=True)


def nasty(rng, n):
    text = np.array(["red", "green", "blue", "grey"], dtype=object)
    return {
        "constant": np.zeros(n),
        "rare": (rng.random(n) < 0.003).astype(float),
        "binary": (rng.random(n) < 0.3).astype(float),
        "pixels": np.where(rng.random(n) < 0.95, 0, rng.integers(1, 17, n)).astype(float),
        "poisson": rng.poisson(3, n).astype(float),
        "lognormal": rng.lognormal(0, 2, n),
        "cauchy": rng.standard_cauchy(n),
        "mostly zero": np.where(rng.random(n) < 0.9, 0.0, rng.lognormal(size=n)),
        "gaps": np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n)),
        "rounded": np.round(rng.normal(size=n), 1),
        "text": text[rng.choice(4, n, p=[0.7, 0.2, 0.099, 0.001])],
        "ids": rng.integers(0, 10**9, n).astype(str).astype(object),
        "cities": rng.zipf(1.5, n).clip(max=10**6).astype(str).astype(object),
    }


def digits():
    from sklearn.datasets import load_digits

    pixels = load_digits().data

    def draw(rng, n):
        # Rows are drawn with replacement: two such samples differ by chance alone.
        return named(pixels[rng.integers(0, len(pixels), n)])

    return draw


def normal(n_columns):
    return lambda rng, n: named(rng.normal(size=(n, n_columns)))


def false_alarms(repeats):
    rng = np.random.default_rng(1)
    sources = {
        "1 normal column": normal(1),
        "40 normal columns": normal(40),
        "300 normal columns": normal(300),
        "13 odd columns": nasty,
        "64 pixels of digits": digits(),
    }
    sizes = ((300, 40), (1000, 200), (5000, 1000), (500, 3000))
    print("\nShare of windows falsely flagged, by (reference rows, window rows); accepted: 0.05")
    print(f"{'':>22s}  " + "  ".join(f"{size!s:>12s}" for size in sizes))
    for name, draw in sources.items():
        shares = []
        for n_ref, n_cur in sizes:
            flagged = 0
            for _ in range(repeats // 4):
                before = DriftReference.of(build_profile(draw(rng, n_ref), {}, ""))
                for _ in range(4):
                    flagged += compare(before, draw(rng, n_cur), {}, LIMITS).is_drifted
            shares.append(flagged / (repeats // 4 * 4))
        print(f"{name:>22s}  " + "  ".join(f"{share:12.3f}" for share in shares), flush=True)


def cpu_times():
    rng = np.random.default_rng(2)
    letters = np.array(list("abcdefghij"), dtype=object)

    def draw(n):
        window = {f"n{i}": rng.normal(size=n) for i in range(30)}
        window |= {f"k{i}": letters[rng.integers(0, 10, n)] for i in range(10)}
        return window

    rows = draw(N_REFERENCE)
    before = DriftReference.of(build_profile(rows, {}, ""))
    print("\nCPU seconds per window of 30 numeric and 10 categorical columns (median of 9)")
    print(f"{'rows':>8s}  {'fairlead':>10s}  {'scipy loop':>10s}")
    for n in (1000, 10_000, 100_000):
        window = draw(n)
        ours = _median(lambda w=window: compare(before, w, {}, LIMITS))
        theirs = _median(lambda w=window: _scipy_loop(rows, w), repeats=3)
        print(f"{n:8d}  {ours:10.4f}  {theirs:10.4f}", flush=True)


def _scipy_loop(rows, window):
    for name, values in window.items():
        if values.dtype == object:
            table = [
                np.unique(np.concatenate([part, letters_of(rows[name])]), return_counts=True)[1]
                for part in (rows[name], values)
            ]
            stats.chi2_contingency(table)
        else:
            stats.ks_2samp(rows[name], values, method="asymp")


def letters_of(column):
    return np.unique(column)


def _median(call, repeats=9):
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return float(np.median(times))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the repetitions")
    repeats = 60 if parser.parse_args().quick else 300
    cpu_times()
    detection(repeats)
    false_alarms(repeats)
