"""A plugin of pytest: tests that run once for each instruction set take those that are compiled with sanitizers."""

import os

import cases

cases.ISAS[:] = os.environ["STCA_SANITIZED_ISAS"].split()
