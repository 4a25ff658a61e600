"""Run the smoke preset of every system on the shelf; fails if one does."""

from __future__ import annotations

import time
from pathlib import Path

from brenier.experiments import start
from brenier.systems.catalogue import CATALOGUE


def main() -> None:
    for system in CATALOGUE:
        if not system.on_shelf:
            continue
        begin = time.perf_counter()
        report = start(system.slug, "smoke")
        path = report.save(Path("build/smoke"))
        print(f"{system.slug}: {len(report.claims)} claims measured in {time.perf_counter() - begin:.1f} s ({path})")


if __name__ == "__main__":
    main()
