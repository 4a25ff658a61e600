"""What `import brenier` costs beyond `import torch`, in milliseconds of `-X importtime`.

Each run is a fresh interpreter that imports torch, then brenier, so that brenier's cumulative time holds only what
torch has not loaded already. Prints the median of several runs, the slowest parts of the median run, and the packages
outside the standard library of which brenier loads something.

    python benchmarks/import_time.py [--runs 7] [--limit-ms 200]

With a limit, the exit code is 1 when the median exceeds it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

STATEMENT = "import torch; known = set(__import__('sys').modules); import brenier; import sys; "
STATEMENT += "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - known} - set(sys.stdlib_module_names)))"


def measure() -> tuple[dict[str, float], list[str]]:
    """Cumulative milliseconds of each module of one run, and the packages that came with brenier."""
    command = [sys.executable, "-X", "importtime", "-c", STATEMENT]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    times = {}
    for line in ran.stderr.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[1].strip().isdecimal():
            times[parts[2].strip()] = int(parts[1]) / 1000
    return times, ran.stdout.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--limit-ms", type=float)
    options = parser.parse_args()
    measure()  # fills the caches of the disk and of compiled Python
    runs = [measure() for _ in range(options.runs)]
    ours = [times["brenier"] for times, _ in runs]
    median = statistics.median(ours)
    times, packages = min(runs, key=lambda run: abs(run[0]["brenier"] - median))
    torch = statistics.median(t["torch"] for t, _ in runs)
    print(f"import torch:            {torch:7.1f} ms (median of {options.runs})")
    print(f"import brenier after it: {median:7.1f} ms ({min(ours):.1f} to {max(ours):.1f})")
    inside = list(times).index("torch") + 1  # modules are listed as they finish
    slowest = sorted(list(times.items())[inside:-1], key=lambda item: -item[1])[:6]
    print("of which: " + ", ".join(f"{name} {ms:.1f}" for name, ms in slowest if name != "brenier"))
    print("packages: " + " ".join(packages))
    if options.limit_ms is not None and median > options.limit_ms:
        raise SystemExit(f"expected at most {options.limit_ms:g} ms, got {median:.1f} ms")


if __name__ == "__main__":
    main()
