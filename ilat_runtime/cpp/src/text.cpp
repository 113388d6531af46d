#include "text.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <map>
#include <set>
#include <system_error>

namespace ilat::detail {

namespace {

constexpr std::size_t kDeepest = 900;     // levels; Python's reader stops a little later
constexpr std::size_t kMostKeys = 10000;  // of one object: they are looked up one by one

struct Match {
  std::size_t a, b, size;
};

/// The longest common part of a[a0:a1] and b[b0:b1], the earliest of several.
Match longest(std::string_view a, std::string_view b, std::size_t a0, std::size_t a1, std::size_t b0, std::size_t b1) {
  Match best{a0, b0, 0};
  for (std::size_t i = a0; i < a1; ++i) {
    for (std::size_t j = b0; j < b1; ++j) {
      std::size_t k = 0;
      while (i + k < a1 && j + k < b1 && a[i + k] == b[j + k]) ++k;
      if (k > best.size) best = {i, j, k};
    }
  }
  return best;
}

/// Characters in common blocks, by Ratcliff and Obershelp.
std::size_t matching(std::string_view a, std::string_view b, std::size_t a0, std::size_t a1, std::size_t b0,
                     std::size_t b1) {
  const Match m = longest(a, b, a0, a1, b0, b1);
  if (m.size == 0) return 0;
  return m.size + matching(a, b, a0, m.a, b0, m.b) + matching(a, b, m.a + m.size, a1, m.b + m.size, b1);
}

bool is_utf8(const std::string& text) {
  try {
    return !Json(text).dump().empty();
  } catch (const Json::type_error&) {
    return false;
  }
}

}  // namespace

std::string repr(const std::string& text) {
  const char quote = text.find('\'') != text.npos && text.find('"') == text.npos ? '"' : '\'';
  std::string result(1, quote);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == quote || c == '\\') {
      result += {'\\', c};
    } else if (c == '\n' || c == '\r' || c == '\t') {
      result += {'\\', c == '\n' ? 'n' : c == '\r' ? 'r' : 't'};
    } else if (byte < 0x20 || byte == 0x7F) {
      std::array<char, 5> escaped{};
      std::snprintf(escaped.data(), escaped.size(), "\\x%02x", byte);
      result += escaped.data();
    } else {
      result += c;
    }
  }
  return result + quote;
}

std::string repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::array<char, 40> buffer{};
  const double size = std::fabs(value);
  const auto format =
      size != 0 && (size < 1e-4 || size >= 1e16) ? std::chars_format::scientific : std::chars_format::fixed;
  std::string text(buffer.data(), std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, format).ptr);
  return text.find_first_of(".e") == text.npos ? text + ".0" : text;
}

std::string repr(const std::vector<std::string>& list) { return repr(Json(list)); }

std::string repr(const Json& value) {
  std::string result;
  switch (value.type()) {
    case Json::value_t::null: return "None";
    case Json::value_t::boolean: return value.get<bool>() ? "True" : "False";
    case Json::value_t::string: return repr(value.get_ref<const std::string&>());
    case Json::value_t::number_float: return repr(value.get<double>());
    case Json::value_t::array:
      for (const auto& item : value) result += (result.empty() ? "" : ", ") + repr(item);
      return "[" + result + "]";
    case Json::value_t::object:
      for (const auto& [key, item] : value.items()) {
        result += (result.empty() ? "" : ", ") + repr(std::string(key)) + ": " + repr(item);
      }
      return "{" + result + "}";
    default: return value.dump();
  }
}

std::string shortest(double value) {
  std::array<char, 32> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%g", std::isnan(value) ? std::fabs(value) : value);
  return buffer.data();
}

std::size_t characters(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string head(const std::string& text, std::size_t count) {
  std::size_t end = 0;
  for (std::size_t seen = 0; end < text.size(); ++end) {
    if ((static_cast<unsigned char>(text[end]) & 0xC0) != 0x80 && seen++ == count) break;
  }
  return text.substr(0, end);
}

std::string one_line(std::string_view text, std::size_t most) {
  std::istringstream stream{std::string(text)};
  std::string result;
  for (std::string word; stream >> word;) result += (result.empty() ? "" : " ") + word;
  return head(result, most);
}

std::string close_match(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  double best_ratio = 0.6;
  for (const auto& candidate : candidates) {
    const std::size_t common = matching(candidate, word, 0, candidate.size(), 0, word.size());
    const double ratio = 2.0 * static_cast<double>(common) / static_cast<double>(candidate.size() + word.size());
    // Of equal ones the last in the alphabet, as difflib.
    if (ratio > best_ratio || (ratio == best_ratio && candidate > best)) best = candidate, best_ratio = ratio;
  }
  return best;
}

std::string tidy_path(const std::string& path) {
  std::istringstream stream(path);
  std::string result;
  for (std::string part; std::getline(stream, part, '/');) {
    if (!part.empty() && part != ".") result += (result.empty() ? "" : "/") + part;
  }
  if (!path.empty() && path[0] == '/') return "/" + result;
  return result.empty() ? "." : result;
}

std::string system_error(int number) { return std::generic_category().message(number); }

Json parse_json(const std::string& text) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  std::size_t depth = 0;
  const auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      if (++depth > kDeepest) throw std::length_error("nested too deeply");
      keys.emplace_back();
    } else if (event == Event::object_end || event == Event::array_end) {
      --depth;
      keys.pop_back();
    } else if (event == Event::key) {
      if (!keys.back().insert(parsed.get<std::string>()).second) {
        throw std::runtime_error(cat("the key ", repr(parsed.get<std::string>()), " occurs twice"));
      }
      if (keys.back().size() > kMostKeys) throw std::runtime_error("an object has too many keys");
    }
    return true;
  };
  if (!is_utf8(text)) throw std::runtime_error("not UTF-8 text");
  if (text.compare(0, 3, "\xEF\xBB\xBF") == 0) throw std::runtime_error("it begins with a byte order mark");
  try {
    return Json::parse(text, watch);
  } catch (const Json::parse_error& error) {
    const std::size_t at = std::min(error.byte > 0 ? error.byte - 1 : 0, text.size());
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    const std::size_t start = at == 0 ? text.npos : text.rfind('\n', at - 1);
    const std::size_t column = characters(std::string_view(text).substr(start + 1, at - start - 1)) + 1;
    for (const char* constant : {"NaN", "-Infinity", "Infinity"}) {
      const std::size_t begin = at > 0 && constant[0] == '-' ? at - 1 : at;
      if (text.compare(begin, std::string_view(constant).size(), constant) == 0) {
        throw std::domain_error(cat(constant, " is not a JSON number"));
      }
    }
    throw std::runtime_error(cat("syntax error at line ", line, " column ", column));
  } catch (const Json::exception&) {
    throw std::runtime_error("a number is out of range");
  }
}

}  // namespace ilat::detail
