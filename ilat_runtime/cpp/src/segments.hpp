// Segments, the decode plan and the noise; the twin of ilat_runtime/segments.py and sampling.py.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "manifest.hpp"

namespace ilat::detail {

constexpr std::int32_t kCondition = 0, kPose = 1, kGlobal = 2, kFirstCausal = 3;
constexpr std::int32_t kUnfilled = INT32_MAX;

/// One call of the transformer: feed target rows (0 is t[s], j + 1 is token j), then read image token `read`.
struct Step {
  std::vector<std::int64_t> feed;
  std::int64_t read;
};

/// How to generate the masked tokens of one image.
struct DecodePlan {
  std::vector<std::int32_t> segment;       ///< of each target row
  std::vector<std::int64_t> prefill;       ///< target rows known before decoding starts, in raster order
  std::vector<std::int64_t> prefill_read;  ///< for each of those the image token read there, or -1
  std::vector<Step> steps;
};

/// `masked`: for each image token whether it is generated. Each masked token m is read at target row m.
DecodePlan decode_plan(const std::vector<bool>& masked, const std::string& numbering);

/// The noise of (seed, image token, entry) for all entries of the vocabulary, in (0, 1).
void uniform(std::uint64_t seed, std::int64_t token, std::int64_t vocabulary, float* out);

}  // namespace ilat::detail
