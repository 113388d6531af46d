// SHA-256 (FIPS 180-4): forty lines instead of a library that every app would have to install.
#pragma once

#include <string>

namespace ilat::detail {

/// The digest of a file in hexadecimal digits; an empty text with errno set when it cannot be read.
std::string sha256_of_file(const std::string& path);

}  // namespace ilat::detail
