"""Looks at a build against a torch with CUDA: what is registered, and its machine code. Needs no GPU."""

import re
import sys
from collections import Counter

import sass
import sm90_code
import torch

import stca

OPS = sorted(schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("stca::"))


def machine_code(library: str, arch: str) -> dict[str, Counter[str]]:
    """How often each instruction occurs, by kernel."""
    return {name: Counter(each.opcode for each in code) for name, code in sass.kernels(library, arch).items()}


def count(kernel: Counter[str], *starts: str) -> int:
    """Instructions that start with one of `starts`."""
    return sum(n for name, n in kernel.items() if name.startswith(starts))


class Report:
    """What holds and what does not, printed as it is found."""

    failures = 0

    def check(self, condition: bool, what: str) -> None:
        """Prints one line."""
        print(("ok   " if condition else "FAIL ") + what)
        self.failures += not condition


def main() -> None:
    """Prints what was found; exits with 1 where something is missing."""
    report = Report()
    check = report.check
    info = stca.build_info()
    print(info)
    check(torch.version.cuda is not None, f"torch {torch.__version__} has CUDA {torch.version.cuda}")
    check(info["cuda_archs"] == ["80", "90a", "100"], "CUDA kernels for 80, 90a and 100 are linked")
    print(f"     on by default among Hopper's own kernels: {', '.join(info['sm90_kernels']) or 'none'}")
    for op in OPS:
        check(torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA"), f"{op} is registered for CUDA")
    if not torch.cuda.is_available():
        try:
            torch.zeros(1, device="cuda")
        except RuntimeError as error:
            print(f"     no GPU here: {error}")
    for arch in info["cuda_archs"]:
        kernels = machine_code(str(stca.native.LIBRARY), arch)
        check(len(kernels) > 0, f"sm_{arch}: {len(kernels)} kernels")
        local = [name for name, kernel in kernels.items() if count(kernel, "LDL", "STL")]
        check(not local, f"sm_{arch}: none uses local memory{''.join(f' {name}' for name in local)}")
        hopper = sum("_sm90_kernel" in name for name in kernels)
        check(bool(hopper) == (arch == "90a"), f"sm_{arch}: {hopper} kernels of Hopper's own")
        if arch == "90a":
            faults = sm90_code.faults(sass.kernels(str(stca.native.LIBRARY), arch))
            check(not faults, f"sm_{arch}: their machine code is as it should be{''.join(f' {x}' for x in faults)}")
        attention = {n: k for n, k in kernels.items() if re.search(r"target_attention_(fwd|bwd_dkv|bwd_dq)_kernel", n)}
        half = {n: k for n, k in attention.items() if "float16" in n}
        check(
            len(half) > 0 and all(count(k, "HMMA.16816.F32") for k in half.values()),
            f"sm_{arch}: {len(half)} kernels of 16-bit types use tensor cores (HMMA.16816.F32)",
        )
        check(
            all(count(k, "LDGSTS.E.BYPASS.128", "LDGSTS.E.BYPASS.LTC128B.128") for k in attention.values()),
            f"sm_{arch}: all {len(attention)} copy 16 bytes at a time, past the registers (LDGSTS 128)",
        )
    sys.exit(report.failures > 0)


if __name__ == "__main__":
    main()
