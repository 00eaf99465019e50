"""Reads the machine code of Hopper's own kernels, and says what of it is not as it should be: `make kernels`.

    python tools/sm90_code.py build/kernels/libstca_cuda.a

Each of a kernel's loops of products must use those of a warpgroup (HGMMA) and no others, several between two fences,
since where ptxas makes each wait for the one before it fences each. No thread may have local memory.
"""

import argparse
import sys

import sass

# Loops that make products, by a part of the kernel's name as C++ mangles it, the first that is in it: of a block's
# warpgroups that do different work each has its own, and the pass of the history makes dq of what it keeps besides.
LOOPS = {
    "target_attention_sm90_kernelILNS1_4PassE1": 3,
    "target_attention_sm90_kernel": 2,
    "target_attention_projected_sm90_kernel": 1,
    "target_attention_projected_dkv_sm90_kernel": 1,
    "ffn_product_sm90_kernel": 1,
}


def _count(code: list[sass.Instruction], *starts: str) -> int:
    return sum(each.opcode.startswith(starts) for each in code)


def product_loops(code: list[sass.Instruction]) -> list[list[sass.Instruction]]:
    """The innermost loops with products of either kind."""
    found = sass.loops(code)
    bodies = {(b, e): code[b : e + 1] for b, e in found if _count(code[b : e + 1], "HGMMA", "HMMA")}
    return [
        body
        for (begin, end), body in bodies.items()
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in bodies)
    ]


def faults_of(name: str, code: list[sass.Instruction]) -> list[str]:
    """What is wrong with a kernel."""
    wanted = next((loops for kernel, loops in LOOPS.items() if kernel in name), None)
    if wanted is None:
        return ["has no place in LOOPS of tools/sm90_code.py"]
    faults = []
    loops = product_loops(code)
    if len(loops) < wanted:
        faults.append(f"has {len(loops)} loops of products, expected {wanted}")
    if any(not _count(body, "HGMMA") for body in loops) or _count(code, "HMMA"):
        faults.append("has products of a warp (HMMA)")
    if any(_count(body, "HGMMA") < 2 * _count(body, "WARPGROUP.ARRIVE") for body in loops):
        faults.append("has products that are made one after the other")
    if local := _count(code, "LDL", "STL"):
        faults.append(f"has {local} accesses of local memory")
    return faults


def faults(kernels: dict[str, list[sass.Instruction]]) -> list[str]:
    """What is wrong with those of Hopper among the kernels of sm_90a, a line each."""
    own = {name: code for name, code in kernels.items() if "_sm90_kernel" in name}
    missing = [kernel for kernel in LOOPS if not any(kernel in name for name in own)]
    return [f"{kernel}: is not there" for kernel in missing] + [
        f"{name}: {fault}" for name, code in own.items() for fault in faults_of(name, code)
    ]


def main() -> None:
    """Exits with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", help="where `make kernels` has put the kernels")
    kernels = sass.kernels(parser.parse_args().library, "90a")
    found = faults(kernels)
    print(
        *found,
        f"{sum('_sm90_kernel' in name for name in kernels)} kernels of Hopper's own, {len(found)} faults",
        sep="\n",
    )
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
