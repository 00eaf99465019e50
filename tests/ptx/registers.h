// The registers that every kernel has, and where they lie: 32 lanes of 4 bytes each, at the begin of a warp's
// registers.
#pragma once

#include <string_view>

namespace ptx {

enum class Special : int {
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  warpid,
  cluster_ctarank,
  cluster_nctarank,
  cluster_ctaid_x,
  cluster_nctaid_x,
  clusterid_x,
  nclusterid_x,
  count,
};

constexpr std::string_view kSpecialNames[] = {
    "%tid.x",       "%tid.y",        "%tid.z",           "%ntid.x",           "%ntid.y",          "%ntid.z",
    "%ctaid.x",     "%ctaid.y",      "%ctaid.z",         "%nctaid.x",         "%nctaid.y",        "%nctaid.z",
    "%laneid",      "%warpid",       "%cluster_ctarank", "%cluster_nctarank", "%cluster_ctaid.x", "%cluster_nctaid.x",
    "%clusterid.x", "%nclusterid.x",
};
static_assert(sizeof(kSpecialNames) / sizeof(kSpecialNames[0]) == int(Special::count));

constexpr int kSpecialBytes = 32 * 4;
constexpr int special_slot(Special name) { return int(name) * kSpecialBytes; }

}  // namespace ptx
