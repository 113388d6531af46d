// Whatever the bytes, the manifest's parser takes them or throws a BundleError of one line.
#include "manifest.hpp"

#include <cstdlib>
#include <ilat/editor.hpp>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto manifest = ilat::detail::parse_manifest({reinterpret_cast<const char*>(data), size}, "manifest.json");
    if (manifest.length() > manifest.cache_capacity) std::abort();
  } catch (const ilat::BundleError& error) {
    if (std::string(error.what()).compare(0, 15, "manifest.json: ") != 0) std::abort();
  }
  return 0;
}
