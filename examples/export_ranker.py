"""Makes of a trained ranker what a server without Python runs: a package of compiled code and weights.

    python examples/train.py                                trains; build/train/checkpoint.pt
    python examples/export_ranker.py                        build/train/ranker.pt2, and a request to try it on
    examples/cpp (see there) scores the request in C++

One package takes any number of requests, targets and history rows. It is made for this kind of CPU, and calls the
operators of stca, which whoever loads it must have loaded.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from ranker.checkpoint import load_checkpoint, whole_checkpoint
from torch import Tensor, nn
from train import Ranker

from stca.files import check_output, whole_file

# Arguments of a call, each int64, ages in seconds; and by which size each goes, R for the R + 1 of offsets.
ARGUMENTS = ("item_id", "user_id", "event_item_id", "event_label", "event_age", "target_offsets", "history_offsets")
DIMENSIONS = "TTNNNRR"


class Scorer(nn.Module):
    """A ranker over the tensors of a request, in the order of `ARGUMENTS`."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, *tensors: Tensor) -> Tensor:
        """Logits [T]."""
        return self.ranker.score(*tensors)


def random_request(targets: list[int], events: list[int], seed: int = 0) -> tuple[Tensor, ...]:
    """Arguments of so many targets and events a request."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(most: int, count: int) -> Tensor:
        return torch.randint(most, (count,), generator=generator)

    def offsets(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *lengths]).cumsum(0)

    T, N = sum(targets), sum(events)
    of_events = numbers(10**6, N), numbers(2, N), numbers(10**7, N)
    return numbers(10**6, T), numbers(10**4, T), *of_events, offsets(targets), offsets(events)


def graph(module: nn.Module, request: tuple[Tensor, ...], dimensions: str) -> torch.export.ExportedProgram:
    """A module over a request as a graph, for any first sizes of its tensors: a letter each, equal where these are."""
    sizes = {name: torch.export.Dim(name, min=1 if name == "R" else 0) for name in dimensions}
    with torch.no_grad():
        shapes = (tuple({0: sizes[name]} for name in dimensions),)
        return torch.export.export(module.eval(), request, dynamic_shapes=shapes)


def export(ranker: Ranker) -> torch.export.ExportedProgram:
    """The scorer as a graph, for any number of targets T, events N and requests R, 0 among them."""
    return graph(Scorer(ranker), random_request([3, 4], [20, 11]), DIMENSIONS)


def inputs_of(program: torch.export.ExportedProgram) -> str:
    """What a program takes, a word for each argument, as `int64[s0,9]`: sizes that are free have names."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values[name] for name in program.graph_signature.user_inputs]
    return " ".join(f"{str(x.dtype).removeprefix('torch.')}[{','.join(map(str, x.shape))}]" for x in inputs)


def package(program: torch.export.ExportedProgram, request: tuple[Tensor, ...], out: Path) -> None:
    """Writes the program as a package, a request of its arguments, and the logits that it gives for them.

    Args:
        program: of flat arguments. What they must be goes with it, as `inputs`: its code looks at one size of each
            name and at no dtype.
        request: arguments.
        out: the package; the others are .request.pt and .logits.txt beside it.
    """
    settings = {"aot_inductor.metadata": {"inputs": inputs_of(program)}}
    check_output(out)
    with tempfile.TemporaryDirectory() as folder:  # torch packs into names that end with .pt2 alone
        made = torch._inductor.aoti_compile_and_package(
            program, package_path=f"{folder}/ranker.pt2", inductor_configs=settings
        )
        with torch.no_grad():
            logits = torch._inductor.aoti_load_package(made)(*request)
        with whole_file(out) as part:
            shutil.copyfile(made, part)
    with whole_file(out.with_suffix(".request.pt")) as part:
        torch.save(list(request), part)
    with whole_file(out.with_suffix(".logits.txt")) as part:
        part.write_text("".join(f"{x.hex()}\n" for x in logits.tolist()))
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MB; {logits.numel()} targets, logits {logits[:3].tolist()} ...")


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("build/train/checkpoint.pt"), help="of examples/train.py"
    )
    parser.add_argument("--out", type=Path, help="the package; ranker.pt2 beside the checkpoint")
    args = parser.parse_args(arguments)
    out: Path = args.out or args.checkpoint.with_name("ranker.pt2")

    ranker = Ranker()
    saved = load_checkpoint(args.checkpoint, ["model"])
    with whole_checkpoint(args.checkpoint):
        ranker.load_state_dict(saved["model"])
    package(export(ranker), random_request([200], [10_000]), out)


if __name__ == "__main__":
    main()
