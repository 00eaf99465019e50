"""A plugin of pytest: tests that run once for each instruction set take those that are compiled with sanitizers.

Leaks are looked for in pytest's own process, whose options are read already, and not in those that tests start: each
would take a minute to tell of thousands that are Python's and torch's.
"""

import os

import cases

cases.ISAS[:] = os.environ["STCA_SANITIZED_ISAS"].split()
os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
