// target_attention: tensors to plain structs, for the CPU and CUDA. Formula and shapes: ../kernels/target_attention.h.
#include "target_attention_launch.h"

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "register.h"
#include "target_attention_sums.h"

namespace stca {
namespace {

using at::Tensor;
using std::optional;

constexpr const char* kOp = "target_attention";

// The checked inputs, kept alive while `params` points into them.
struct Inputs {
  Tensor q, k, v, target_offsets, history_offsets, visible, history_index;
  std::vector<int64_t> pair_offsets;
  TargetAttentionParams params{};
};

Tensor checked_visible(const Tensor& visible, const Tensor& q, const Tensor& target_offsets,
                       const Tensor& history_offsets) {
  STCA_CHECK(visible.dim() == 2 && visible.size(0) == q.size(0) && visible.size(1) == 2, kOp,
             "visible must be [T, 2] = [", q.size(0), ", 2], got ", visible.sizes());
  const Tensor checked = checked_integers(kOp, "visible", visible, "q", q);
  const optional<Tensor> values = values_to_check(checked);
  if (!values.has_value()) return checked;
  const Tensor target_values = target_offsets.cpu(), history_values = history_offsets.cpu();
  const int64_t* ranges = values->const_data_ptr<int64_t>();
  const int64_t* targets = target_values.const_data_ptr<int64_t>();
  const int64_t* rows = history_values.const_data_ptr<int64_t>();
  for (int64_t r = 0; r + 1 < target_offsets.size(0); ++r) {
    const int64_t length = rows[r + 1] - rows[r];
    for (int64_t t = targets[r]; t < targets[r + 1]; ++t) {
      const int64_t begin = ranges[2 * t], end = ranges[2 * t + 1];
      STCA_CHECK(0 <= begin && begin <= end && end <= length, kOp, "visible[", t, "] must be a range within the ",
                 length, " history rows of request ", r, ", got [", begin, ", ", end, ")");
    }
  }
  return checked;
}

Tensor checked_history_index(const Tensor& history_index, const Tensor& q, const Tensor& k) {
  STCA_CHECK(history_index.dim() == 1, kOp, "history_index must be [N], got ", history_index.sizes());
  const Tensor checked = checked_integers(kOp, "history_index", history_index, "q", q);
  STCA_CHECK(k.size(0) > 0 || checked.size(0) == 0, kOp, "history_index must be empty where k has no rows, got ",
             checked.sizes());
  const optional<Tensor> values = values_to_check(checked);
  if (!values.has_value()) return checked;
  const int64_t* index = values->const_data_ptr<int64_t>();
  const uint64_t last = uint64_t(k.size(0)) - 1;
  uint64_t signs = 0;  // by arithmetic, of which compilers make vectors: histories are long
  for (int64_t n = 0; n < checked.size(0); ++n) signs |= uint64_t(index[n]) | (last - uint64_t(index[n]));
  for (int64_t n = 0; int64_t(signs) < 0 && n < checked.size(0); ++n) {
    STCA_CHECK(0 <= index[n] && index[n] < k.size(0), kOp, "history_index[", n, "] must be a row of k in [0, ",
               k.size(0), "), got ", index[n]);
  }
  return checked;
}

// Checks k or v, which is int8 where it has a scale for each row and head.
RowScales checked_scale(const char* name, const Tensor& rows, const optional<Tensor>& scale, const Tensor& q) {
  const std::string scale_name = std::string(name) + "_scale";
  if (!scale.has_value()) {
    STCA_CHECK(rows.scalar_type() != at::kChar, kOp, scale_name, " must be given where ", name, " is int8, got None");
    check_same(kOp, name, rows, "q", q);
    return {};
  }
  STCA_CHECK(rows.scalar_type() == at::kChar, kOp, name, " must be int8 where ", scale_name, " is given, got ",
             rows.scalar_type());
  STCA_CHECK(scale->scalar_type() == at::kFloat && scale->sizes() == rows.sizes().slice(0, 2), kOp, scale_name,
             " must be float32 [N, Hk] = ", rows.sizes().slice(0, 2), ", as ", name, " is, got ", scale->scalar_type(),
             " ", scale->sizes());
  STCA_CHECK(rows.device() == q.device() && scale->device() == q.device(), kOp, name, " and ", scale_name,
             " must be on the device of q, ", q.device(), ", got ", rows.device(), " and ", scale->device());
  return {scale->const_data_ptr<float>(), scale->stride(0), scale->stride(1)};
}

Inputs checked_inputs(const Tensor& q, const Tensor& k, const optional<Tensor>& v, const Tensor& target_offsets,
                      const Tensor& history_offsets, const optional<Tensor>& visible,
                      const optional<Tensor>& history_index, optional<double> scale,
                      const optional<Tensor>& k_scale = {}, const optional<Tensor>& v_scale = {}) {
  Inputs in;
  TargetAttentionParams& p = in.params;
  p.dtype = checked_dtype(kOp, "q", q);
  check_dims(kOp, "q", q, "[T, H, Dk]", 3);
  check_dims(kOp, "k", k, "[N, Hk, Dk]", 3);
  p.k_scale = checked_scale("k", k, k_scale, q);
  STCA_CHECK(k.size(2) == q.size(2), kOp, "k must be [N, Hk, Dk] with q's Dk = ", q.size(2), ", got ", k.sizes());
  STCA_CHECK(q.size(2) > 0, kOp, "q must have a head width Dk of at least 1, got ", q.sizes());
  STCA_CHECK(k.size(1) > 0 && q.size(1) > 0 && q.size(1) % k.size(1) == 0, kOp,
             "the heads Hk of k must divide the heads H of q, got Hk = ", k.size(1), " and H = ", q.size(1));
  if (v.has_value()) {
    check_dims(kOp, "v", *v, "[N, Hk, Dv]", 3);
    p.v_scale = checked_scale("v", *v, v_scale, q);
    STCA_CHECK(v->size(0) == k.size(0) && v->size(1) == k.size(1), kOp,
               "v must be [N, Hk, Dv] with k's N = ", k.size(0), " and Hk = ", k.size(1), ", got ", v->sizes());
    STCA_CHECK(v->size(2) > 0, kOp, "v must have a head width Dv of at least 1, got ", v->sizes());
  }
  STCA_CHECK(!runs_on_cuda(q) || !v.has_value() || v->scalar_type() == k.scalar_type(), kOp,
             "v must have the dtype of k on CUDA, ", k.scalar_type(), ", got ", v->scalar_type());
  STCA_CHECK(v.has_value() || !v_scale.has_value(), kOp, "v_scale must be None where v is None, got ",
             v_scale->sizes());
  in.q = with_contiguous_rows(q);
  in.k = with_contiguous_rows(k);
  in.v = v.has_value() ? with_contiguous_rows(*v) : in.k;
  in.target_offsets = checked_offsets(kOp, "target_offsets", target_offsets, q.size(0), "q", q);
  if (history_index.has_value()) in.history_index = checked_history_index(*history_index, q, k);
  p.pool_rows = k.size(0);
  p.num_rows = history_index.has_value() ? in.history_index.size(0) : k.size(0);
  in.history_offsets = checked_offsets(kOp, "history_offsets", history_offsets, p.num_rows,
                                       history_index.has_value() ? "history_index" : "k", q);
  STCA_CHECK(in.target_offsets.size(0) == in.history_offsets.size(0), kOp,
             "target_offsets and history_offsets must have the same length R + 1, got ", in.target_offsets.size(0),
             " and ", in.history_offsets.size(0));
  if (visible.has_value()) in.visible = checked_visible(*visible, q, in.target_offsets, in.history_offsets);

  p.num_requests = in.target_offsets.size(0) - 1;
  p.num_targets = q.size(0);
  p.heads = q.size(1);
  p.kv_heads = k.size(1);
  p.key_dim = q.size(2);
  p.value_dim = in.v.size(2);
  p.scale = scale.has_value() ? *scale : 1.0 / std::sqrt(double(p.key_dim));
  p.shared = !v.has_value();
  p.q = in.q.const_data_ptr();
  p.k = in.k.const_data_ptr();
  p.v = in.v.const_data_ptr();
  p.q_target_stride = in.q.stride(0);
  p.q_head_stride = in.q.stride(1);
  p.k_row_stride = in.k.stride(0);
  p.k_head_stride = in.k.stride(1);
  p.v_row_stride = in.v.stride(0);
  p.v_head_stride = in.v.stride(1);
  p.target_offsets = in.target_offsets.const_data_ptr<int64_t>();
  p.history_offsets = in.history_offsets.const_data_ptr<int64_t>();
  p.visible = visible.has_value() ? in.visible.const_data_ptr<int64_t>() : nullptr;
  p.history_index = history_index.has_value() ? in.history_index.const_data_ptr<int64_t>() : nullptr;
  return in;
}

// Number of scores to keep. They serve where v is k and all rows are seen.
int64_t count_scores(Inputs& in) {
  const TargetAttentionParams& p = in.params;
  STCA_CHECK(p.shared && p.visible == nullptr, kOp, "scores are kept where v and visible are None, got one of them");
  in.pair_offsets.assign(1, 0);
  for (int64_t r = 0; r < p.num_requests; ++r) {
    in.pair_offsets.push_back(in.pair_offsets[r] + (p.target_offsets[r + 1] - p.target_offsets[r]) *
                                                       (p.history_offsets[r + 1] - p.history_offsets[r]));
  }
  in.params.pair_offsets = in.pair_offsets.data();
  return p.heads * in.pair_offsets.back();
}

// Behind the kept scores stands the number of the set that wrote them: which scores are written, and in what unit, is a
// matter of the set, so a backward pass on another one computes them again.
Tensor set_of_scores(const Tensor& scores) { return scores.narrow(0, scores.numel() - 1, 1); }

std::tuple<Tensor, Tensor, Tensor, Tensor> target_attention(const Tensor& q, const Tensor& k, const optional<Tensor>& v,
                                                            const Tensor& target_offsets, const Tensor& history_offsets,
                                                            const optional<Tensor>& visible,
                                                            const optional<Tensor>& history_index,
                                                            optional<double> scale, bool backward,
                                                            const optional<Tensor>& k_scale,
                                                            const optional<Tensor>& v_scale, bool keep) {
  Inputs in = checked_inputs(q, k, v, target_offsets, history_offsets, visible, history_index, scale, k_scale, v_scale);
  STCA_CHECK(!backward || !(k_scale.has_value() || v_scale.has_value()), kOp,
             "no input must require a gradient where k or v is int8, got one that does");
  TargetAttentionParams& p = in.params;
  const Tensor out = at::empty({p.num_targets, p.heads, p.value_dim}, q.options());
  const Tensor lse = at::empty({p.num_targets, p.heads}, q.options().dtype(accumulation_type(q)));
  p.out = out.mutable_data_ptr();
  const Tensor max_and_sum = at::empty({p.num_targets, p.heads, 2}, lse.options());
  p.lse = lse.mutable_data_ptr();
  p.max_and_sum = max_and_sum.mutable_data_ptr();
  const bool keeps = keep && !runs_on_cuda(q);
  const Tensor scores = at::empty({keeps ? count_scores(in) + 1 : 0}, lse.options());
  p.scores = keeps ? scores.mutable_data_ptr() : nullptr;
  const CpuIsa isa = cpu_isa(p.dtype);
  if (keeps) set_of_scores(scores).fill_(int(isa));

  launch_target_attention(p, q, isa, backward);
  return {out, lse, max_and_sum, scores};
}

void check_like(const char* name, const Tensor& tensor, at::IntArrayRef sizes, at::ScalarType dtype, const Tensor& q) {
  STCA_CHECK(tensor.sizes() == sizes && tensor.scalar_type() == dtype && tensor.device() == q.device(), kOp, name,
             " must be ", sizes, " of ", dtype, " on ", q.device(), ", got ", tensor.sizes(), " of ",
             tensor.scalar_type(), " on ", tensor.device());
}

std::tuple<Tensor, Tensor, Tensor> target_attention_backward(
    const Tensor& dout, const optional<Tensor>& dlse, const Tensor& q, const Tensor& k, const optional<Tensor>& v,
    const Tensor& target_offsets, const Tensor& history_offsets, const optional<Tensor>& visible,
    const optional<Tensor>& history_index, const Tensor& out, const Tensor& max_and_sum, optional<double> scale,
    bool history_grads, const optional<Tensor>& scores) {
  Inputs in = checked_inputs(q, k, v, target_offsets, history_offsets, visible, history_index, scale);
  const CpuIsa isa = cpu_isa(in.params.dtype);
  Tensor kept;
  if (scores.has_value() && !runs_on_cuda(q)) {
    check_like("scores", *scores, {count_scores(in) + 1}, accumulation_type(q), q);
    kept = scores->contiguous();
    in.params.scores = set_of_scores(kept).item().toDouble() == int(isa) ? kept.data_ptr() : nullptr;
  }
  TargetAttentionBackwardParams p{};
  p.forward = in.params;
  const int64_t T = q.size(0), H = q.size(1), Dv = p.forward.value_dim;
  check_like("out", out, {T, H, Dv}, q.scalar_type(), q);
  check_like("dout", dout, {T, H, Dv}, q.scalar_type(), q);
  check_like("max_and_sum", max_and_sum, {T, H, 2}, accumulation_type(q), q);
  if (dlse.has_value()) check_like("dlse", *dlse, {T, H}, accumulation_type(q), q);
  const Tensor out_rows = out.contiguous(), max_and_sum_rows = max_and_sum.contiguous(), dout_rows = dout.contiguous();
  const Tensor dlse_rows = dlse.has_value() ? dlse->contiguous() : Tensor();
  const Tensor dq = at::empty(q.sizes(), q.options());
  const auto none = [&] { return at::empty({0}, q.options()); };
  p.forward.out = out_rows.data_ptr();
  p.forward.max_and_sum = max_and_sum_rows.data_ptr();
  p.dout = dout_rows.const_data_ptr();
  p.dlse = dlse.has_value() ? dlse_rows.const_data_ptr() : nullptr;
  p.dq = dq.mutable_data_ptr();
  const Tensor own_v = v.has_value() ? *v : Tensor();
  if (history_grads && history_index.has_value()) {
    const auto [dk, dv] = launch_indexed_target_attention_backward(p, isa, in.history_index, k, own_v);
    return {dq, dk, v.has_value() ? dv : none()};
  }
  const bool made = history_grads || runs_on_cuda(q);  // the CUDA kernels write them whether wanted or not
  auto history_gradient = [&](const Tensor& like) {
    return at::empty({p.forward.num_rows, like.size(1), like.size(2)}, like.options());
  };
  const Tensor dk = made ? history_gradient(k) : none(), dv = made && v.has_value() ? history_gradient(*v) : none();
  p.dk = made ? dk.mutable_data_ptr() : nullptr;
  p.dv = made && v.has_value() ? dv.mutable_data_ptr() : nullptr;
  launch_target_attention_backward(p, q, isa, p.forward.num_rows, [](int64_t, int64_t) {});
  if (!history_grads) return {dq, none(), none()};
  return {dq, dk, dv};
}

}  // namespace

STCA_REGISTER(m) {
  m.impl("target_attention", &target_attention);
  m.impl("target_attention_backward", &target_attention_backward);
}

}  // namespace stca
