"""Python runs this whenever it starts, in the processes of tests too: UBSan's reports go to a file.

Beside ASan, UBSan's runtime does not heed log_path, and pytest throws away what a test that passes prints.
"""

import ctypes
import os

if path := os.environ.get("STCA_UBSAN_LOG"):
    ctypes.CDLL("libubsan.so.1").__sanitizer_set_report_path(path.encode())
