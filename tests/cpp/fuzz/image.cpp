// Whatever the bytes, the size of an encoded image is at least 1x1 or an error says why there is none.
#include <cstdlib>
#include <stdexcept>

#include "image_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto [width, height] = image_size({data, data + size});
    if (width < 1 || height < 1) std::abort();
  } catch (const std::runtime_error&) {
    return 0;
  }
  return 0;
}
