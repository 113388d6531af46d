// Whatever the bytes, the pose file's parser takes them or throws an InputError that names the file.
#include <cmath>
#include <cstdlib>

#include "pose_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const PoseFile file = parse_poses({reinterpret_cast<const char*>(data), size}, "poses.json");
    for (const auto& pose : file.poses) {
      for (const auto& p : pose) {
        if (!std::isfinite(p.x) || !std::isfinite(p.y) || (p.visibility != 0 && p.visibility != 1)) std::abort();
      }
    }
    if (file.poses.empty()) std::abort();
  } catch (const ilat::InputError& error) {
    if (std::string(error.what()).compare(0, 12, "poses.json: ") != 0) std::abort();
  }
  return 0;
}
