"""One reproduction per system: data in, report out, claims checked.

A module `experiments/<slug>.py` has `PRESETS`, a dict of typed configs named smoke, quick and full, and
`run(config, log) -> Report`. `start` finds and runs it.
"""

from .report import Claim, Report, Table
from .runner import Config, start

__all__ = ["Claim", "Config", "Report", "Table", "start"]
