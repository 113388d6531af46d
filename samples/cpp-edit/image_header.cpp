// Size and completeness of an encoded image; the twin of ilat_runtime/image_header.py.
#include <cstring>
#include <optional>
#include <stdexcept>

#include "image_file.hpp"

namespace {

using Size = std::pair<std::int64_t, std::int64_t>;
const char* const kTruncated = "the file is truncated";

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error(message); }

/// The bytes; reading past their end says that the file is truncated.
struct Reader {
  const std::vector<unsigned char>& data;

  std::uint64_t byte(std::uint64_t at) const {
    if (at >= data.size()) fail(kTruncated);
    return data[at];
  }
  std::uint64_t big(std::uint64_t at, int count) const {
    std::uint64_t value = 0;
    for (int i = 0; i < count; ++i) value = value << 8 | byte(at + static_cast<std::uint64_t>(i));
    return value;
  }
  std::uint64_t little(std::uint64_t at, int count) const {
    std::uint64_t value = 0;
    for (int i = count; i-- > 0;) value = value << 8 | byte(at + static_cast<std::uint64_t>(i));
    return value;
  }
  bool has(std::uint64_t at, const char* text) const {
    const std::size_t size = std::strlen(text);
    return at + size <= data.size() && std::memcmp(data.data() + at, text, size) == 0;
  }
};

std::uint32_t crc32(const unsigned char* data, std::size_t size) {
  std::uint32_t crc = ~0U;
  for (std::size_t i = 0; i < size; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320U : 0U);
  }
  return ~crc;
}

Size png(const Reader& r) {
  std::optional<Size> size;
  for (std::uint64_t position = 8;;) {
    const std::uint64_t length = r.big(position, 4), end = position + 8 + length, checksum = r.big(end, 4);
    if (crc32(r.data.data() + position + 4, length + 4) != checksum)
      fail("the file is damaged (a PNG checksum is wrong)");
    if (!size) {
      if (!r.has(position + 4, "IHDR") || length != 13) fail("the file is damaged (no PNG header)");
      size = Size(r.big(position + 8, 4), r.big(position + 12, 4));
    }
    if (r.has(position + 4, "IEND")) return *size;
    position = end + 4;
  }
}

Size jpeg(const Reader& r) {
  std::optional<Size> size;
  for (std::uint64_t position = 2;;) {
    if (r.byte(position) != 0xFF) fail("the file is damaged (no JPEG marker where one is due)");
    while (r.byte(position) == 0xFF) ++position;
    const std::uint64_t marker = r.byte(position++);
    if (marker == 0xD9) break;
    if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD7)) continue;
    const std::uint64_t length = r.big(position, 2);
    if (length < 2) fail("the file is damaged (a JPEG segment without a length)");
    if (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC) {
      const Size found(r.big(position + 5, 2), r.big(position + 3, 2));
      if (size && *size != found) fail("the file is damaged (two JPEG frames of different sizes)");
      size = found;
    }
    position += length;
    if (marker != 0xDA) continue;
    // In entropy-coded data 0xFF is followed by 0 or is a restart marker (or fill); anything else ends the scan.
    for (;; ++position) {
      if (r.byte(position) != 0xFF) continue;
      std::uint64_t next = position;
      while (r.byte(next) == 0xFF) ++next;
      const std::uint64_t code = r.byte(next);
      if (code != 0 && !(code >= 0xD0 && code <= 0xD7)) break;
      position = next;
    }
  }
  if (!size) fail("the file is damaged (a JPEG without a frame)");
  return *size;
}

Size webp(const Reader& r) {
  if (r.data.size() < 8 + r.little(4, 4)) fail(kTruncated);
  if (r.has(12, "VP8X")) return {1 + r.little(24, 3), 1 + r.little(27, 3)};
  if (r.has(12, "VP8L")) {
    const std::uint64_t bits = r.little(21, 4);
    return {1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)};
  }
  if (r.has(12, "VP8 ") && r.has(23, "\x9d\x01\x2a")) return {r.little(26, 2) & 0x3FFF, r.little(28, 2) & 0x3FFF};
  fail("the file is damaged (no WebP frame)");
}

Size bmp(const Reader& r) {
  const std::uint64_t start = r.little(10, 4);
  std::int64_t width = 0, height = 0, bits = 0, compression = 0;
  if (r.little(14, 4) == 12) {
    width = static_cast<std::int64_t>(r.little(18, 2)), height = static_cast<std::int64_t>(r.little(20, 2));
    bits = static_cast<std::int64_t>(r.little(24, 2));
  } else {
    width = static_cast<std::int32_t>(r.little(18, 4)), height = static_cast<std::int32_t>(r.little(22, 4));
    bits = static_cast<std::int64_t>(r.little(28, 2)), compression = static_cast<std::int64_t>(r.little(30, 4));
  }
  height = std::abs(height);
  const std::int64_t row = (width * bits + 31) / 32 * 4;
  // At most 2^31 each, so this needs less than 2^64 only where the row is sensible.
  const bool fits = height == 0 || row <= INT64_MAX / 2 / height;
  if ((compression == 0 || compression == 3) && width >= 0 &&
      (!fits || static_cast<std::int64_t>(r.data.size()) < static_cast<std::int64_t>(start) + row * height)) {
    fail(kTruncated);
  }
  return {width, height};
}

}  // namespace

Size image_size(const std::vector<unsigned char>& data) {
  const Reader r{data};
  Size size;
  if (r.has(0, "\x89PNG\r\n\x1a\n")) {
    size = png(r);
  } else if (r.has(0, "\xff\xd8\xff")) {
    size = jpeg(r);
  } else if (r.has(0, "RIFF") && r.has(8, "WEBP")) {
    size = webp(r);
  } else if (r.has(0, "BM")) {
    size = bmp(r);
  } else {
    fail(data.empty() ? "empty" : "not a PNG, JPEG, WebP or BMP image");
  }
  if (size.first < 1 || size.second < 1) {
    fail("its header gives the size " + std::to_string(size.first) + "x" + std::to_string(size.second));
  }
  return size;
}
