"""The benchmarks run, check what they time, and the report says what their JSON holds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import compare
import growth
import problem
import pytest
import readme
import report
import serving
import torch
from grid import all_cases
from problem import Case, Implementation, Problem, check

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
KEYS = {"op", "case", "dtype", "direction", "stca_ms", "best_peer", "best_peer_ms", "ratio", "floor_share", "peak_mb"}


def _run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_compare(tmp_path: Path) -> None:
    out = tmp_path / "a" / "cpu.json"
    text = _run("compare.py", "--quick", "--only", "small call", "--seconds", "0.05", "--json", str(out))
    rows = json.loads(out.read_text())
    assert [row["direction"] for row in rows] == ["forward", "forward+backward"]
    for row in rows:
        assert row.keys() >= KEYS | {"peer_peak_mb"}
        assert row["ratio"] == row["best_peer_ms"] / row["stca_ms"]
        assert row["best_peer_ms"] == min(ms for name, ms in row["all_ms"].items() if name != "stca")
        assert f"x as fast as {row['best_peer']}" in text
        assert row["cannot"].keys() == {"nn.MultiheadAttention", "sdpa nested"}
    assert "\nMore than 5 % behind the best peer in two runs: " in text
    beside = out.with_suffix(".machine.json")
    machine = json.loads(beside.read_text())
    assert machine["gemm_gflops"] > 0
    other = {"op": rows[0]["op"], "case": rows[0]["case"], "dtype": "bfloat16"}  # what this run does not measure stays
    beside.write_text(json.dumps(machine | {"behind": [other, rows[0] | {"dtype": "float32"}]}))
    _run("compare.py", "--quick", "--only", "small call", "--seconds", "0.05", "--resume", "--json", str(out))
    behind = json.loads(beside.read_text())["behind"]
    assert behind[0] == other
    assert all("leads" in each for each in behind[1:])
    assert machine["build_info"]["torch"] == torch.__version__


def test_cases_behind_their_best_peer_in_two_runs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [Case("op", name, torch.float32, lambda: pytest.fail("is not built"), True) for name in "abcde"]

    def row(name: str, peer_ms: float, **ours: float) -> dict[str, Any]:
        about = {"op": "op", "case": name, "dtype": "float32", "direction": "forward", "best_peer": "peer"}
        times = {"stca": 10.0, "peer": peer_ms, **ours}
        return about | {"best_peer_ms": peer_ms, "ratio": peer_ms / 10.0, "all_ms": times}

    first = [row("a", 9.0), row("b", 9.0), row("c", 9.6), row("d", 9.0, **{"stca, hidden rows kept": 5.0})]
    first += [row("e", 9.0, **{"stca reordered": 5.0}), row("of another run", 1.0)]
    second = {"a": row("a", 8.0), "b": row("b", 11.0), "e": row("e", 9.3)}
    behind = compare.find_behind(first, cases, lambda case, direction: second[case.name])
    assert [(each["case"], each["leads"]) for each in behind] == [("a", [0.9, 0.8]), ("e", [0.9, 0.93])]
    assert capsys.readouterr().out.splitlines() == [
        "More than 5 % behind the best peer in two runs: 2 of 6",
        "  0.90, 0.80  op, a, float32, forward: peer",
        "  0.90, 0.93  op, e, float32, forward: peer",
    ]


def test_gpu_program_on_small_shapes(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    text = _run("gpu.py", "--device", "cpu", "--only", "request_gather.*bfloat16|m=8 L=200 R=1,", "--json", str(out))
    rows = json.loads(out.read_text())
    assert {row["op"] for row in rows} == {"request_gather", "target_attention reordered"}
    for row in rows:
        assert row.keys() >= KEYS | {"tflops", "gbs", "gemm_share", "copy_share"}
    assert "FAILED" not in text


def test_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It checks that all ways score alike; cached rows of a few events are not measured against anything here."""
    monkeypatch.setattr(sys, "argv", f"serving.py --quick --events 50 --json {tmp_path / 'serving.json'}".split())
    serving.main()
    for row in json.loads((tmp_path / "serving.json").read_text()):
        assert len(row["ms"]) == 5
        assert row["append_ms"].keys() == {"rows", "keys_values"}
        load = row["at_60_percent"]["p50_ms"], row["at_60_percent"]["p99_ms"]
        assert all(ms > 0 for ms in (*row["ms"].values(), *row["append_ms"].values(), *load))
        assert row["bytes_per_user"]["keys_values"] == 2 * row["bytes_per_user"]["rows"]


@pytest.mark.parametrize("quick", [False, True])
def test_the_grid(quick: bool) -> None:
    cases = all_cases(quick)
    assert len({(case.op, case.name, case.dtype) for case in cases}) == len(cases)
    ops = {case.op.split()[0] for case in cases}
    assert ops == {"target_attention", "TargetAttention", "swiglu_ffn_norm", "request_gather", "jagged_select", "STCA"}


def _problem(theirs: float) -> Problem:
    x = torch.ones(4)
    return Problem([x], {"stca": Implementation(lambda x: x * 2), "peer": Implementation(lambda x: x * theirs)}, 1, 1)


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_a_wrong_peer_is_not_timed(direction: Any) -> None:
    runners, _ = check(_problem(2.0), direction, 1e-3)
    assert runners.keys() == {"stca", "peer"}
    for wrong in (2.1, float("nan")):
        with pytest.raises(AssertionError, match=r"peer, forward.*: differs from stca by"):
            check(_problem(wrong), direction, 1e-3)


def test_a_gradient_that_torch_loses_is_left_out_and_no_other() -> None:
    def peer(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return x + bias.detach() + 0 * bias

    leaves = [torch.ones(4), torch.ones(4)]
    ways = {"stca": Implementation(lambda x, bias: x + bias), "peer": Implementation(peer)}
    check(Problem(leaves, ways, 1, 1, lost_by_torch=frozenset({1})), "forward+backward", 1e-3)
    for lost in ((), (0,)):
        with pytest.raises(AssertionError, match=r"peer, forward\+backward: differs from stca by"):
            check(Problem(leaves, ways, 1, 1, lost_by_torch=frozenset(lost)), "forward+backward", 1e-3)


@pytest.mark.parametrize(("flops", "expected"), [(1, torch.float32), (0, torch.bfloat16)])
def test_peers_multiply_in_float32_on_a_slow_cpu(
    monkeypatch: pytest.MonkeyPatch, flops: int, expected: torch.dtype
) -> None:
    seen = set()

    def peer(x: torch.Tensor) -> torch.Tensor:
        seen.add(x.dtype)
        return x * 2

    ways = {
        "stca": Implementation(lambda x: x * 2),
        "also": Implementation(lambda x: x + x, ours=True),
        "peer": Implementation(peer),
    }
    monkeypatch.setattr(problem, "SLOW_ON_CPU", frozenset({torch.bfloat16}))
    runners, _ = check(Problem([torch.ones(4).bfloat16()], ways, flops, 1), "forward+backward", 1e-3)
    assert seen == {expected}
    assert {name: runner.own[0].dtype for name, runner in runners.items()} == {
        "stca": torch.bfloat16,
        "also": torch.bfloat16,
        "peer": expected,
    }


def test_exponents() -> None:
    values = [1, 2, 4, 8, 16, 32]
    assert growth.exponent(values, [9.0, 9.0, 9.0, *(0.5 * v**1.5 for v in values[3:])]) == pytest.approx(1.5)


def test_the_report_says_what_the_json_holds(tmp_path: Path) -> None:
    times = {"stca": 2.0, "stca reordered": 2.0, "stca projected": 1.0, "peer": 3.0}
    row = {
        "op": "TargetAttention",
        "case": "D=8 H=2 m=1 L=9 R=1",
        "dtype": "float32",
        "direction": "forward",
        "stca_ms": 2.0,
    }
    row |= {"best_peer": "peer", "best_peer_ms": 3.0, "ratio": 1.5, "floor_share": 0.8, "peak_mb": 1.0}
    rows = [row | {"peer_peak_mb": 4.0, "all_ms": times, "cannot": {}}]
    rows.append(rows[0] | {"op": "target_attention reordered", "ratio": 6.0, "all_ms": {"stca": 2.0, "peer": 12.0}})
    curve = {"op": "STCA", "direction": "forward", "variable": "L", "values": [1, 2, 4]}
    machine = {"cpu": "C", "threads": 2, "torch": "T", "gemm_gflops": 1, "read_gbs": 1, "date": "D"}
    trained = rows[0] | {"direction": "forward+backward", "all_ms": times | {"stca, scores kept": 1.5}}
    behind = {key: trained[key] for key in ("op", "case", "dtype", "direction", "best_peer")} | {"leads": [0.5, 0.625]}
    own = {"build_info": {"cpu_isa": "I"}, "bfloat16_peers": "float32", "behind": [behind]}
    for name, content in {
        "cpu-I.json": [*rows, trained],
        "cpu-I.machine.json": machine | own,
        "cpu-J.json": [rows[0] | {"ratio": 0.75}, rows[1]],
        "cpu-J.machine.json": machine | {"build_info": {"cpu_isa": "J"}, "bfloat16_peers": "bfloat16"},
        "gpu-G.json": [rows[0] | {"ratio": 0.5, "tflops": 3, "gbs": 4}],
        "gpu-G.machine.json": {"device": "G", "torch": "T", "date": "D", "gemm_tflops_bfloat16": 1, "copy_gbs": 1},
        "growth.json": [curve | {"ms": [1.0, 2.0, 4.0], "peak_mb": [1, 1, 1], "exponent": 1.0}],
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    front, full = tmp_path / "README.md", tmp_path / "RESULTS.md"
    front.write_text(f"before\n{readme.BEGIN}old\n{readme.END}after\n")
    _run("report.py", "--results", str(tmp_path), "--readme", str(front), "--full", str(full))
    text = full.read_text()
    assert "| TargetAttention, forward | float32 | 1 | 1.50 (1.50) |  | 0 | 80% | 0.25 |" in text
    assert "| TargetAttention, forward+backward | float32 | 1 | 1.50 (1.50) | 2.00 (2.00) | 0 | 80% | 0.25 |" in text
    assert "| TargetAttention, D=8 H=2 m=1 L=9 R=1, forward+backward | float32 | peer | 0.50, 0.62 |" in text
    assert "| TargetAttention, forward | float32 | 1 | 0.75 (0.75) |  | 1 | 80% | 0.25 |" in text
    assert text.count("ran in float32") == 1
    assert "ours: forward 6.00." in text
    assert "in 0 of 2 cases; at worst it takes 2.00 times as long." in " ".join(text.split())
    assert "| STCA, forward | L^1.00 |" in text
    assert "| TargetAttention, D=8 H=2 m=1 L=9 R=1, float32, forward | 2.000 | 3 | 4 | peer | 0.50 |" in text
    for isa in "IJ":
        assert f"results/ratios-{isa}.png" in text
        assert (tmp_path / f"ratios-{isa}.png").stat().st_size > 5000
    assert (tmp_path / "speed.png").stat().st_size > 5000
    text = front.read_text()
    assert "| `TargetAttention` | **1.50** (1.50), 0 of 1 | **1.50** (1.50), 0 of 1 | **0.75** (0.75), 1 of 1 |" in text
    assert "| `target_attention`, reordered | **6.00** (6.00), 0 of 1 |  | **6.00** (6.00), 0 of 1 |" in text
    joined = " ".join(text.split())
    assert "kept (`recompute=False`): `TargetAttention` 2.00 (2.00). More than 5 % behind" in joined
    assert "in two runs, kept or not: 1 of 3 cases, 1 of them in float32" in joined
    assert "Slower than the best peer on average: `TargetAttention` forward (0.75 to 1.50)." in text
    assert "G, D, over the best peer: **0.50** (0.50), 1 of 1 cases lost." in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text


def test_readme_and_results_are_what_the_report_prints() -> None:
    results, front = BENCHMARKS / "results", BENCHMARKS.parent / "README.md"
    assert front.read_text() == readme.with_section(front, readme.readme_section(results))
    assert (BENCHMARKS / "RESULTS.md").read_text() == "\n".join(report.full_report(results)) + "\n"
