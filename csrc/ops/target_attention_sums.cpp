#include "target_attention_sums.h"

#include <ATen/ops/zeros.h>

#include <vector>

#include "rows.h"
#include "target_attention_launch.h"

namespace stca {
namespace {

using at::Tensor;

constexpr int64_t kTogether = 16 * 1024;  // elements of sums that are made, in cache, before they are added

// Groups history rows by the row of k that they stand for, one range of them at a time.
class Groups {
 public:
  Groups(const int64_t* index, int64_t rows) : index_(index), group_(rows) {}

  // Groups history rows [begin, end) by their row of k.
  void find(int64_t begin, int64_t end) {
    const int64_t* index = index_ + begin;
    rows_.clear();
    offsets_.assign(1, 0);
    order_.resize(end - begin);
    for (int64_t i = 0; i < end - begin; ++i) {
      // For a row that this range has not met yet, group_ may still hold its group of an earlier range.
      int32_t& group = group_[index[i]];
      if (size_t(group) >= rows_.size() || rows_[group] != index[i]) {
        group = int32_t(rows_.size());
        rows_.push_back(index[i]);
        offsets_.push_back(0);
      }
      ++offsets_[group + 1];
    }
    for (size_t g = 0; g < rows_.size(); ++g) offsets_[g + 1] += offsets_[g];
    next_.assign(offsets_.begin(), offsets_.end() - 1);
    for (int64_t i = 0; i < end - begin; ++i) order_[next_[group_[index[i]]]++] = i;
  }

  // sums[row] += the gradients of its history rows. Few groups feed all threads too, by pieces of columns.
  void add(const Tensor& gradients, const Tensor& sums, Dtype dtype) const {
    const int64_t count = rows_.size(), width = row_width(sums), threads = at::get_num_threads();
    const int64_t wanted = count >= 4 * threads ? 1 : std::min<int64_t>(threads, (width + 255) / 256);
    const int64_t columns = (width + wanted - 1) / wanted, pieces = (width + columns - 1) / columns;
    const int64_t together = std::max<int64_t>(1, kTogether / width), blocks = (count + together - 1) / together;
    const CpuIsa isa = cpu_isa(dtype);
    const auto sum_kernel = STCA_CPU_KERNEL(isa, segment_sum);
    const auto add_kernel = STCA_CPU_KERNEL(isa, target_attention_add_rows);
    for_each_item(blocks * pieces, together * width * accumulator_size(dtype), [&](int64_t i, void* scratch) {
      const int64_t group = i / pieces * together, groups = std::min(together, count - group);
      const int64_t column = i % pieces * columns, end = std::min(column + columns, width);
      const SegmentSumParams p{dtype, width,  gradients.const_data_ptr(), order_.data(), offsets_.data() + group,
                               false, scratch};
      sum_kernel(p, 0, groups, column, end);
      add_kernel(dtype, scratch, rows_.data() + group, groups, width, column, end, sums.mutable_data_ptr());
    });
  }

 private:
  const int64_t* index_;
  std::vector<int32_t> group_;  // [P] the group of a row of k; it holds where rows_[group] is that row
  std::vector<int64_t> rows_;   // the row of k of each group
  std::vector<int64_t> offsets_, order_, next_;
};

}  // namespace

std::pair<Tensor, Tensor> launch_indexed_target_attention_backward(TargetAttentionBackwardParams p, CpuIsa isa,
                                                                   const Tensor& index, const Tensor& k,
                                                                   const Tensor& v) {
  const bool on_cuda = runs_on_cuda(k);
  const int64_t threads = at::get_num_threads();
  const int64_t rows =
      on_cuda ? p.forward.num_rows : std::min(p.forward.num_rows, target_attention_rows_at_once(p.forward, threads));
  const Dtype dtype = accumulator_dtype(p.forward.dtype);
  const auto wide = k.options().dtype(accumulation_type(k));
  auto gradient = [&](const Tensor& like) {
    return like.defined() ? at::empty({rows, like.size(1), like.size(2)}, wide) : Tensor();
  };
  const Tensor dk_rows = gradient(k), dv_rows = gradient(v);
  p.wide = true;
  p.dk = dk_rows.mutable_data_ptr();
  p.dv = v.defined() ? dv_rows.mutable_data_ptr() : nullptr;
  Tensor dk, dv;
  if (on_cuda) {
    launch_target_attention_backward(p, k, isa, rows, [&](int64_t, int64_t) {
      const InverseIndex places = inverse_index_of(index, k.size(0));
      auto sums = [&](const Tensor& gradients) {
        return launch_segment_sum("target_attention", gradients, places.order.const_data_ptr<int64_t>(),
                                  places.offsets.const_data_ptr<int64_t>(), k.size(0), false, dtype);
      };
      dk = sums(dk_rows);
      if (v.defined()) dv = sums(dv_rows);
    });
  } else {
    dk = at::zeros(k.sizes(), wide);
    if (v.defined()) dv = at::zeros(v.sizes(), wide);
    Groups groups(index.const_data_ptr<int64_t>(), k.size(0));
    launch_target_attention_backward(p, k, isa, rows, [&](int64_t begin, int64_t end) {
      groups.find(begin, end);
      groups.add(dk_rows, dk, dtype);
      if (v.defined()) groups.add(dv_rows, dv, dtype);
    });
  }
  return {dk.to(k.scalar_type()), v.defined() ? dv.to(v.scalar_type()) : dv};
}

}  // namespace stca
