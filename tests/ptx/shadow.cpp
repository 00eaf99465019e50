#include "shadow.h"

#include <algorithm>

#include "machine.h"

namespace ptx {

Shadow::~Shadow() {
  for (auto& page : pages_) {
    if (page != nullptr) spare_pages().push_back(std::move(page));
  }
}

std::vector<std::unique_ptr<Shadow::Page>>& Shadow::spare_pages() {
  static auto& pages = *new std::vector<std::unique_ptr<Page>>();
  return pages;
}

Shadow::Page& Shadow::page(size_t offset) {
  const size_t number = offset / kPageBytes;
  if (number >= pages_.size()) pages_.resize(number + 1);
  std::unique_ptr<Page>& page = pages_[number];
  if (page != nullptr) return *page;
  auto& spare = spare_pages();
  if (spare.empty()) {
    page = std::make_unique<Page>();
  } else {
    page = std::move(spare.back());
    spare.pop_back();
    page->shift = 1;
    page->readers.clear();
  }
  page->granules.assign(kPageBytes / 2, {});
  return *page;
}

// Every granule becomes two.
void Shadow::Page::split() {
  std::vector<Granule> single(kPageBytes);
  for (size_t g = 0; g < single.size(); ++g) {
    single[g] = granules[g / 2];
    if (g % 2 == 0 || single[g].readers < 0) continue;
    readers.push_back(readers[size_t(single[g].readers)]);
    single[g].readers = int32_t(readers.size()) - 1;
  }
  granules = std::move(single);
  shift = 0;
}

template <class F>
void Shadow::for_granules(size_t offset, int bytes, F f) {
  Page& of = page(offset);
  if (bytes == 1 && of.shift == 1) of.split();
  const size_t at = offset % kPageBytes;
  for (size_t g = at >> of.shift; g <= (at + size_t(bytes) - 1) >> of.shift; ++g) {
    if (!f(of.granules[g], of)) return;
  }
}

bool Shadow::is_ordered(const Stamp& before, const Warp& now, int lane) {
  if (before.bits == 0) return true;
  const int64_t rank = int64_t(before.block()) - 1 - now.block.cluster.blocks[0]->number;
  if (rank < 0 || rank >= int64_t(now.block.cluster.blocks.size())) return false;  // clusters of a grid have no order
  const bool seen = before.clock() < now.seen[size_t(rank * kMaxWarps + before.warp())];
  if (rank != now.block.rank || before.warp() != now.number) return seen;
  return seen || (before.lane() == lane && !before.several()) || before.clock() < now.synced;
}

// A fence of the proxy after the write, by who wrote or by who comes now.
bool Shadow::is_fenced(const Granule& granule, const Warp& now, int lane) {
  if (granule.time == 0 || now.fences[size_t(lane)] >= granule.time) return true;
  const auto& blocks = now.block.cluster.blocks;
  const Stamp& write = granule.write;
  const Block& block = *blocks[size_t(int64_t(write.block()) - 1 - blocks[0]->number)];
  return block.warps[size_t(write.warp())]->fences[size_t(write.lane())] >= granule.time;
}

Shadow::Conflict Shadow::touch(const Warp& warp, int lane, size_t offset, int bytes, bool writes, bool is_fresh,
                               bool is_async) {
  const Stamp own = Stamp::of(uint64_t(warp.block.number) + 1, warp.number, lane, warp.clock);
  Conflict conflict;
  auto check = [&](const Stamp& before) {
    if (!is_ordered(before, warp, lane)) conflict = {Conflict::kUnordered, before};
  };
  auto read = [&](Granule& granule, Page& of) {
    if (granule.readers < 0) {
      if (is_ordered(granule.read, warp, lane)) {
        granule.read = own;
        return;
      }
      granule.readers = int32_t(of.readers.size());
      of.readers.emplace_back();
    }
    Stamp& of_warp = of.readers[size_t(granule.readers)][size_t(warp.index())];
    const bool others = of_warp.bits != 0 && of_warp.clock() >= warp.synced;
    const bool several = others && (of_warp.several() || of_warp.lane() != lane);
    of_warp = Stamp::of(own.block(), warp.number, lane, warp.clock, several);
  };
  auto write = [&](Granule& granule, Page& of) {
    check(granule.read);
    if (granule.readers >= 0) {
      for (Stamp& reader : of.readers[size_t(granule.readers)]) {
        check(reader);
        reader = {};
      }
    }
    granule.write = own;
    granule.read = {};
    granule.time = is_async ? 0 : warp.block.cluster.time;
  };
  for_granules(offset, bytes, [&](Granule& granule, Page& of) {
    check(granule.write);
    if (granule.copies > 0) conflict = {Conflict::kInCopy, {}};
    if (is_fresh && !writes && granule.write.bits == 0) conflict = {Conflict::kUnwritten, {}};
    if (is_async && conflict.kind == Conflict::kNone && !is_fenced(granule, warp, lane)) {
      conflict = {Conflict::kUnfenced, granule.write};
    }
    if (conflict.kind != Conflict::kNone) return false;
    writes ? write(granule, of) : read(granule, of);
    return conflict.kind == Conflict::kNone;
  });
  return conflict;
}

Shadow::Conflict Shadow::begin_copy(const Warp& warp, int lane, size_t offset, int bytes, bool is_async) {
  const Conflict conflict = touch(warp, lane, offset, bytes, true, false, is_async);
  for_granules(offset, bytes, [](Granule& granule, Page&) { return ++granule.copies > 0; });
  return conflict;
}

void Shadow::end_copy(const Warp& warp, int lane, size_t offset, int bytes, bool is_async) {
  const Stamp own = Stamp::of(uint64_t(warp.block.number) + 1, warp.number, lane, warp.clock);
  for_granules(offset, bytes, [&](Granule& granule, Page&) {
    --granule.copies;
    granule.write = own;
    granule.time = is_async ? 0 : warp.block.cluster.time;
    return true;
  });
}

}  // namespace ptx
