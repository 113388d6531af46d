#include "segments.hpp"

namespace ilat::detail {

namespace {

std::uint64_t mix(std::uint64_t z) {  // splitmix64
  z += 0x9E3779B97F4A7C15U;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

}  // namespace

DecodePlan decode_plan(const std::vector<bool>& masked, const std::string& numbering) {
  DecodePlan plan;
  std::vector<std::int64_t> waiting;  // causal rows not fed yet
  std::int32_t next = kFirstCausal;
  for (std::size_t row = 0; row <= masked.size(); ++row) {
    const bool generated = row > 0 && masked[row - 1], predicts = row < masked.size() && masked[row];
    const bool causal = numbering == "vanilla" || generated || (numbering == "local" && predicts);
    const auto index = static_cast<std::int64_t>(row);
    plan.segment.push_back(causal ? next++ : kGlobal);
    if (causal) waiting.push_back(index);
    if (!causal) plan.prefill.push_back(index), plan.prefill_read.push_back(predicts ? index : -1);
    if (causal && predicts) {
      plan.steps.push_back({waiting, index});
      waiting.clear();
    }
  }
  return plan;
}

void uniform(std::uint64_t seed, std::int64_t token, std::int64_t vocabulary, float* out) {
  const std::uint64_t row = mix(mix(seed) ^ static_cast<std::uint64_t>(token));
  for (std::int64_t entry = 0; entry < vocabulary; ++entry) {
    const std::uint64_t bits = mix(row ^ static_cast<std::uint64_t>(entry)) >> 41;
    out[entry] = (static_cast<float>(bits) + 0.5F) * 0x1p-23F;
  }
}

}  // namespace ilat::detail
