"""The parts of examples/rlb_savings.py: both forms are the same training, and the table says what was measured."""

import rlb_savings
import torch

from stca.batch import bce_loss


def test_both_forms_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    model = rlb_savings.Model()
    batch = rlb_savings.make_requests(3, 4, 50)
    results = []
    for pointwise in (False, True):
        form = rlb_savings.in_form(batch, pointwise).validate()
        loss = bce_loss(model(form), form.labels["label"], form)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append([loss, *(x.to_dense() if x.is_sparse else x for x in gradients)])
        assert (600 if pointwise else 150) == form.N
    for shared, copied in zip(*results, strict=True):
        torch.testing.assert_close(shared, copied, rtol=1e-4, atol=1e-5)


def test_the_table_says_what_was_measured() -> None:
    cases = []
    for length in (50, 1050):
        batch = rlb_savings.make_requests(4, 8, length)
        case: dict[str, object] = {"targets": 8, "length": length}
        for form in ("point-wise", "request-level"):
            rows = rlb_savings.in_form(batch, form == "point-wise").N
            case[form] = {
                "disk_bytes": rlb_savings.bytes_on_disk(batch, form == "point-wise"),
                "batch_bytes": rows * 10,
                "rows": rows,
                "targets_per_s": 1e6 / rows,
                "peak_memory_mb": 6 + rows / 100,
            }
        assert case["point-wise"]["disk_bytes"] > case["request-level"]["disk_bytes"]  # type: ignore[index]
        cases.append(case)
    assert rlb_savings.longest_histories(cases) == {8: {"point-wise": 12_781, "request-level": 102_250}}
    text = rlb_savings.table(cases)
    assert "| 336 -> 42.0 (-88%) | 33,600 -> 4,200 (-88%) | 30 -> 238 (x8.0) | 342 -> 48 MB |" in text
    assert "| 8 | 12,781 | 102,250 | x8.0 |" in text
    assert "| x2.2; x5.1 with its kernels | x8.0 at L = 50, x8.0 at L = 1,050, our kernels in both forms |" in text
    assert "| about 8x | x8.0 |" in text


def test_a_step_is_measured() -> None:
    result = rlb_savings.train_steps(2, 64, pointwise=False, threads=torch.get_num_threads(), steps=1)
    assert result["targets_per_s"] > 0
    assert 0 <= result["peak_memory_mb"] < 1024
