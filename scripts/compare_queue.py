#!/usr/bin/env python3
"""Measures the tensor queue beside other ways between two processes: plain unix sockets, HTTP, gRPC and iceoryx2.

A trip hands a tensor to another process and gets one of the same size back; both ends of it are checked. All ways take turns, round
after round, so that a busy neighbour hits all; reported are medians of the rounds' p50 and p99. What each way does is told in
runtime/cli/src/commands/bench/queue.rs (`rustai bench queue`) and scripts/peers/programs/queue/src/main.rs.

    scripts/compare_queue.py                             builds what it needs, writes tests/results/queue
    scripts/compare_queue.py --before "chrt -f 3"        measured processes go before all others
    scripts/compare_queue.py --model default             also what a token through the queue costs
    scripts/compare_queue.py --ours                      only the queue and the sockets; peers stay as they were measured

Writes results.json, README.md and tensors.svg. This is a measurement, not a test; run it on a quiet machine.
"""

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from peers.common import PEERS, PROGRAMS, ROOT, say

SIZES = [4 << 10, 1 << 20, 64 << 20]
# Trips of a peer for each size: about a second at most.
TRIPS = {"http": [2000, 200, 4], "grpc": [2000, 100, 4], "iceoryx2": [50000] * 3, "iceoryx2-events": [5000] * 3}
NAMES = {
    "queue": "rustai queue",
    "socket": "unix socket",
    "http": "HTTP (reqwest, axum)",
    "grpc": "gRPC (tonic)",
    "iceoryx2": "iceoryx2, both sides spin",
    "iceoryx2-events": "iceoryx2, sleeping on events",
}
COLORS = {
    "queue": "#c0392b",
    "socket": "#7f8c8d",
    "http": "#2980b9",
    "grpc": "#8e44ad",
    "iceoryx2": "#27ae60",
    "iceoryx2-events": "#d68910",
}
OURS = {"tensor through the queue": "queue", "tensor copied by a socket": "socket"}


def build(ours):
    say("building rustai and the peers (some minutes the first time)")
    for folder, target in [(ROOT, ROOT / "target"), (PROGRAMS / "queue", PEERS / "queue")][: 1 if ours else None]:
        environment = dict(os.environ, CARGO_TARGET_DIR=str(target))
        subprocess.run(["cargo", "build", "--release", "--quiet", "--locked"], check=True, cwd=folder, env=environment)


def ask(before, *words):
    command = [*before, *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=600)
    return json.loads(done.stdout.splitlines()[-1] if b"\n{" in done.stdout else done.stdout)


def measure(args):
    """One round: small jobs by name, tensors by (way, size), and tokens."""
    small, tensors = {}, {}
    words = ["--quick"] if args.quick else []
    ours = ask(args.before, ROOT / "target/release/rustai", "bench", "queue", "--json", *words)
    for row in ours["rows"]:
        if "bytes" in row:
            tensors[OURS[row["what"]], row["bytes"]] = row
        else:
            small[row["what"]] = row
    for peer, trips in {} if args.ours else TRIPS.items():
        for size, count in zip(SIZES, trips):
            count = max(3, count // 20) if args.quick else count
            tensors[peer, size] = ask(args.before, PEERS / "queue/release/queue-peers", peer, size, count)
    tokens = None
    if args.model:
        # The model's threads must not keep the server's from running, so this goes without `before`.
        tokens = ask([], ROOT / "target/release/rustai", "bench", "queue", "--json", "--model", args.model, *words)
    return small, tensors, ours["server_copied_bytes"], tokens


def middle(rounds, key):
    """Medians over the rounds of a row's fields."""
    rows = [found[key] for found in rounds]
    fields = [field for field in ("p50_ns", "p99_ns", "jobs_per_second") if field in rows[0]]
    return {field: statistics.median(row[field] for row in rows) for field in fields}


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def time(ns):
    for unit, factor in (("ms", 1e6), ("us", 1e3)):
        if ns >= factor:
            return f"{ns / factor:.{max(0, 2 - int(math.log10(ns / factor)))}f} {unit}"
    return f"{ns:.0f} ns"


def size(count):
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def table(results):
    lines = [
        "# The tensor queue beside other ways between two processes",
        "",
        "Written by `scripts/compare_queue.py`, which tells how. Medians of "
        f"{results['rounds']} rounds in which all ways took turns; {results['processor']}, {results['cores']} cores, Linux "
        f"{results['kernel']}, {results['date']}. The queue goes over its socket, without the kernel module.",
        "",
        "## Small round trips",
        "",
        "| | p50 | p99 | over the sleeping socket (p50) | jobs/s |",
        "|---|---:|---:|---:|---:|",
    ]
    if peers := results.get("peers"):
        lines[3:3] = [
            f"The figures of {'; '.join(NAMES[way] for way in TRIPS)} are those of {peers['date']}, when the unix socket's 64 bytes "
            f"took {time(peers['socket_ns'])}."
        ]
    base = results["small"]["unix socket, 64 bytes"]["p50_ns"]
    for name, row in results["small"].items():
        rate = f"{row['jobs_per_second']:,.0f}" if "jobs_per_second" in row else ""
        ratio = "" if rate else f"{base / row['p50_ns']:.2f} x"
        lines.append(f"| {name} | {time(row['p50_ns'])} | {time(row['p99_ns'])} | {ratio} | {rate} |")
    lines += [
        "",
        "A batch's time is that of the whole batch. `one call` is what clients get by default: each side spins as long as its waits",
        "end within 50 microseconds, and sleeps otherwise.",
        "",
        "## Tensors there and back (p50 / p99)",
        "",
        "| | " + " | ".join(size(count) for count in SIZES) + " | 64 MiB over 4 KiB |",
        "|---|" + "---:|" * (len(SIZES) + 1),
    ]
    for way, name in NAMES.items():
        rows = [results["tensors"][f"{way} {count}"] for count in SIZES]
        cells = [f"{time(row['p50_ns'])} / {time(row['p99_ns'])}" for row in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {rows[-1]['p50_ns'] / rows[0]['p50_ns']:.1f} x |")
    lines += [
        "",
        f"Payload that the queue's server copied: {results['server_copied_bytes']} bytes.",
        "",
        "![Round trip of a tensor by its size](tensors.svg)",
        "",
    ]
    if tokens := results.get("tokens"):
        step, adds = tokens["step_ns"], tokens["queue_adds_ns"]
        lines += [
            "## A generated token",
            "",
            f"{tokens['model']}, {tokens['threads']} threads: a decode step of the model alone takes {time(step)}, a token by the "
            f"engine {time(tokens['engine_ns'])}, through the queue {time(tokens['queue_ns'])}. What the queue adds to the engine, "
            f"taken within each turn: {adds / 1e3:.1f} us = {100 * adds / step:.2f} % of a step (medians of "
            f"{results['rounds']} x {tokens['turns']} turns of {tokens['tokens']} tokens).",
        ]
        if time_used := tokens.get("server_cpu_ns"):
            lines.append(
                f"The queue's and the server's threads take {time_used / 1e3:.1f} us of a processor for it = "
                f"{100 * time_used / step:.2f} % of a step."
            )
        lines.append("")
    return "\n".join(lines)


def picture(results):
    """Time over size, both in powers of ten."""
    width, height, left, right, top, bottom = 760, 430, 70, 210, 40, 50
    low, high = 0, 9
    times = [row["p50_ns"] for row in results["tensors"].values()]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))

    def x(count):
        return left + (width - left - right) * math.log2(count / SIZES[0]) / math.log2(SIZES[-1] / SIZES[0])

    def y(ns):
        return height - bottom - (height - top - bottom) * (math.log10(ns) - low) / (high - low)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22" font-size="15">Round trip of a tensor between two processes (p50)</text>',
    ]
    for power in range(low, high + 1):
        at = y(10**power)
        label = {0: "1 ns", 1: "10 ns", 2: "100 ns", 3: "1 us", 4: "10 us", 5: "100 us", 6: "1 ms", 7: "10 ms", 8: "100 ms", 9: "1 s"}
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{label.get(power, f"1e{power} ns")}</text>')
    for count in SIZES:
        out.append(f'<text x="{x(count):.1f}" y="{height - bottom + 22}" text-anchor="middle">{size(count)}</text>')
        out.append(f'<line x1="{x(count):.1f}" x2="{x(count):.1f}" y1="{top}" y2="{height - bottom}" stroke="#eee"/>')
    ends = sorted(NAMES, key=lambda way: results["tensors"][f"{way} {SIZES[-1]}"]["p50_ns"])
    labels, last = {}, None
    for way in ends:
        # Names keep apart from each other.
        at = y(results["tensors"][f"{way} {SIZES[-1]}"]["p50_ns"])
        last = at if last is None else min(at, last - 15)
        labels[way] = last
    for way, name in NAMES.items():
        points = [(x(count), y(results["tensors"][f"{way} {count}"]["p50_ns"])) for count in SIZES]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        thick = 3 if way == "queue" else 1.8
        out.append(f'<polyline points="{line}" fill="none" stroke="{COLORS[way]}" stroke-width="{thick}"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{COLORS[way]}"/>' for a, b in points]
        out.append(f'<text x="{width - right + 10}" y="{labels[way] + 4:.1f}" fill="{COLORS[way]}">{name}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is measured [5]")
    parser.add_argument("--before", type=shlex.split, default=[], help='words before each command, such as "chrt -f 3"')
    parser.add_argument("--model", help="a model, such as default: also measures tokens through the queue")
    parser.add_argument("--ours", action="store_true", help="measures no peers, and takes their figures from --out")
    parser.add_argument("--quick", action="store_true", help="fewer trips: a first impression")
    parser.add_argument("--no-build", action="store_true", help="measures what was built before")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/results/queue", help="folder for what is written")
    args = parser.parse_args()
    if not args.no_build:
        build(args.ours)
    rounds = []
    for number in range(args.rounds):
        say(f"round {number + 1} of {args.rounds}")
        rounds.append(measure(args))
    small, tensors, copied, tokens = zip(*rounds)
    results = {
        "date": subprocess.run(["date", "-u", "+%Y-%m-%d"], check=True, capture_output=True, text=True).stdout.strip(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release().split("-")[0],
        "rounds": args.rounds,
        "small": {name: middle(small, name) for name in small[0]},
        "tensors": {f"{way} {count}": middle(tensors, (way, count)) for way, count in tensors[0]},
        "server_copied_bytes": max(copied),
    }
    if args.model:
        fields = ("step_ns", "engine_ns", "queue_ns", "queue_adds_ns", "server_cpu_ns")
        times = {field: statistics.median(report[field] for report in tokens) for field in fields if field in tokens[0]}
        results["tokens"] = {**tokens[0], **times}
    if args.ours:
        before = json.loads((args.out / "results.json").read_text())
        socket_ns = before["small"]["unix socket, 64 bytes"]["p50_ns"]
        results["peers"] = before.get("peers", {"date": before["date"], "socket_ns": socket_ns})
        results["tensors"] |= {way: row for way, row in before["tensors"].items() if way.split()[0] in TRIPS}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "tensors.svg").write_text(picture(results))
    text = table(results)
    (args.out / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
