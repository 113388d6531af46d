// Text as Python writes it, so that both runtimes say the same.
#pragma once

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace ilat::detail {

using Json = nlohmann::ordered_json;

template <typename... Parts>
std::string cat(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

/// Python's repr() of a text, a number, or what JSON holds.
std::string repr(const std::string& text);
std::string repr(double value);
std::string repr(const Json& value);
std::string repr(const std::vector<std::string>& list);

/// "%g".
std::string shortest(double value);

/// As `repr(value)[:count]`; characters, not bytes.
std::string head(const std::string& text, std::size_t count);
std::size_t characters(std::string_view text);

/// Without line breaks, and not too long.
std::string one_line(std::string_view text, std::size_t most = 300);

/// difflib.get_close_matches(word, candidates, 1), or empty.
std::string close_match(const std::string& word, const std::vector<std::string>& candidates);

/// str(pathlib.PurePosixPath(path)), which drops empty parts and ".".
std::string tidy_path(const std::string& path);

/// What the system calls an error number.
std::string system_error(int number);

/// Parses strict JSON: no key twice, no NaN. Throws std::runtime_error with what is wrong, without the file's name.
Json parse_json(const std::string& text);

}  // namespace ilat::detail
