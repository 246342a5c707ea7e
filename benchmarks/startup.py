"""How long the commands take that people type to look around: python -m benchmarks.startup

Prints the best and the median of twenty starts of a process each and writes benchmarks/results/startup.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.saving import save

COMMANDS = {"python (nothing imported)": ["-c", "pass"], "fourd --help": ["--help"], "fourd list": ["list"]}
TRIES = 20


def seconds(words: list[str]) -> list[float]:
    """Wall-clock times of a command, sorted; the first start, which may fill caches, is not counted."""
    command = [sys.executable, *words] if words[0] == "-c" else [sys.executable, "-m", "fourd_core", *words]
    times = []
    for _ in range(TRIES + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])


def main() -> None:
    rows = []
    for name, words in COMMANDS.items():
        times = seconds(words)
        rows.append({"command": name, "best": round(times[0], 3), "median": round(statistics.median(times), 3)})
    save("startup", rows, "python -m benchmarks.startup")


if __name__ == "__main__":
    main()
