"""The Python side of example 4, which starts it: `numpy` and `joblib` at the same work as the Rust side.

Reads one task per line and answers each with `seconds checksum`. The first line that it writes names its versions.
Exit status 3: a package is missing.
"""

import os
import sys
import time

# The same number of threads as the Rust side, wherever the BLAS of this numpy reads it.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ[name] = sys.argv[1]

try:
    import joblib
    import numpy as np
except ImportError:
    sys.exit(3)

SIZE = 500
# Pure Python takes long: it does this many rows, and the time is scaled up.
LOOP_ROWS = 100


def numbers(seed, count):
    """What `numbers` of the Rust side gives, bit for bit."""
    i = np.arange(count, dtype=np.uint32) + np.uint32(seed * 1_000_003)
    i = i * np.uint32(2_654_435_761)
    i ^= i >> np.uint32(15)
    return (i >> np.uint32(8)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def steps(chunk, length, count):
    x = np.arange(chunk * length, (chunk + 1) * length, dtype=np.float64)
    for _ in range(count):
        x *= 0.999
        x += 0.5
    return float(x.sum())


def dot_row(row, columns):
    return [sum(x * y for x, y in zip(row, column)) for column in columns]


def main():
    threads = int(sys.argv[1])
    a, w = numbers(1, SIZE * SIZE).reshape(SIZE, SIZE), numbers(2, SIZE * SIZE).reshape(SIZE, SIZE)
    a_lists, w_lists = a[:LOOP_ROWS].tolist(), w.tolist()
    exact = a.astype(np.float64) @ w.astype(np.float64).T
    scale = SIZE / LOOP_ROWS
    with joblib.Parallel(n_jobs=threads) as pool:

        def operations():
            return sum(pool(joblib.delayed(steps)(chunk, 4000, 1000) for chunk in range(125)))

        def product():
            return (a @ w.T).sum(dtype=np.float64)

        def in_parallel():
            size = (LOOP_ROWS + threads - 1) // threads
            parts = [a_lists[i : i + size] for i in range(0, LOOP_ROWS, size)]
            rows = sum(pool(joblib.delayed(dot_rows)(part, w_lists) for part in parts), [])
            return sum(map(sum, rows))

        def alone():
            return sum(map(sum, dot_rows(a_lists, w_lists)))

        tasks = {"operations": (operations, 1), "numpy": (product, 1), "joblib": (in_parallel, scale), "loops": (alone, scale)}
        try:
            blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
            blas = f"{blas['name']} {blas['version']}"
        except (KeyError, TypeError):
            blas = "an unknown BLAS"
        version = ".".join(map(str, sys.version_info[:3]))
        print(f"Python {version}, numpy {np.__version__} with {blas}, joblib {joblib.__version__}", flush=True)
        # The part of the product that the pure loops compute, for their check.
        print(float(exact[:LOOP_ROWS].sum()), flush=True)
        for line in sys.stdin:
            task, factor = tasks[line.strip()]
            start = time.perf_counter()
            checksum = task()
            print((time.perf_counter() - start) * factor, checksum, flush=True)


def dot_rows(rows, columns):
    return [dot_row(row, columns) for row in rows]


if __name__ == "__main__":
    main()
