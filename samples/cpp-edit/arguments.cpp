#include "arguments.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "text.hpp"

using ilat::detail::cat;
using ilat::detail::repr;

namespace {

struct Flag {
  std::string name, metavar, help;
  std::function<void(const std::string&)> set;
};

bool is_number(const std::string& word) {  // as argparse: -3, -.5, -1.5
  const std::size_t dot = word.find('.');
  std::string digits = word.substr(1);
  if (dot != word.npos) digits.erase(dot - 1, 1);
  return word[0] == '-' && !digits.empty() && digits.find_first_not_of("0123456789") == digits.npos;
}

bool is_flag(const std::string& word) {
  return word.size() > 1 && word[0] == '-' && !is_number(word) && word.find(' ') == word.npos;
}

std::string whole(const std::string& flag, const std::string& text) {
  const std::size_t sign = text[0] == '-' || text[0] == '+' ? 1 : 0;
  if (text.size() == sign || text.find_first_not_of("0123456789", sign) != text.npos) {
    throw UsageError(cat("argument ", flag, ": invalid int value: ", repr(text)));
  }
  std::size_t zeros = sign;
  while (zeros + 1 < text.size() && text[zeros] == '0') ++zeros;
  return (text[0] == '-' && text[zeros] != '0' ? "-" : "") + text.substr(zeros);
}

/// A whole number; one that is out of range becomes the nearest that is not.
template <typename T>
T clamped(const std::string& flag, const std::string& text) {
  const long long value = std::strtoll(whole(flag, text).c_str(), nullptr, 10);
  return static_cast<T>(std::clamp<long long>(value, std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
}

double number(const std::string& flag, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || text.find_first_of("xX") != text.npos) {
    throw UsageError(cat("argument ", flag, ": invalid float value: ", repr(text)));
  }
  return value;
}

std::vector<Flag> flags(Arguments& a) {
  const auto text = [](auto& out) { return [&out](const std::string& value) { out = value; }; };
  const auto real = [](const char* flag, auto& out) {
    return [flag, &out](const std::string& value) { out = number(flag, value); };
  };
  const auto set = [](auto& out, bool value) { return [&out, value](const std::string&) { out = value; }; };
  return {
      {"--bundle", "DIR", "the model: a folder that ilat-export wrote", text(a.bundle)},
      {"--pose", "FILE", "pose file with the target pose, in pixels of IMAGE", text(a.pose)},
      {"--poses", "FILE", "pose file with a sequence of target poses; --out is then a video", text(a.poses)},
      {"--reference-pose", "FILE", "pose of the person in IMAGE; default: 'reference' of the pose file",
       text(a.reference_pose)},
      {"--mask", "FILE", "white where IMAGE is to be edited; default, with poses only: the skeletons of both poses",
       text(a.mask)},
      {"--sketch", "FILE",
       "dark lines on white, of IMAGE's size; bundles of kind 'sketch' by default draw it from IMAGE", text(a.sketch)},
      {"--save-sketch", "FILE", "also write the sketch that was followed: draw on it, pass it as --sketch",
       text(a.save_sketch)},
      {"--out", "FILE", ".png, .jpg, .jpeg, .webp, .bmp; with --poses .mp4", text(a.out)},
      {"--compare", "FILE", "also write reference, target pose or sketch, mask and result side by side",
       text(a.compare)},
      {"--fps", "N", "with --poses: frames per second; default: the pose file's, else 25", real("--fps", a.fps)},
      {"--seed", "N", "of the random choice among --top-k candidates (default 0)",
       [&a](const std::string& value) { a.seed = whole("--seed", value); }},
      {"--top-k", "K", "candidates for each token; 1 (default) takes the likeliest",
       [&a](const std::string& value) { a.top_k = clamped<std::int64_t>("--top-k", value); }},
      {"--temperature", "T", "of the random choice: larger is more varied (default 1)",
       real("--temperature", a.temperature)},
      {"--dilation", "D", "thickness of the skeletons' mask; default: as in training", real("--dilation", a.dilation)},
      {"--margin", "M", "size of the crop around poses and mask; default: as in training", real("--margin", a.margin)},
      {"--blend", "", "blend across the mask's border (default for bundles of kind 'sketch' only)", set(a.blend, true)},
      {"--no-blend", "", "leave every pixel outside the mask as it is", set(a.blend, false)},
      {"--backend", "BACKEND", "what runs the model (default auto)", text(a.backend)},
      {"--threads", "N", "CPU threads (default: the physical cores)",
       [&a](const std::string& value) { a.threads = clamped<int>("--threads", value); }},
      {"--force", "", "overwrite existing files", set(a.force, true)},
      {"--json", "", "print one JSON object instead of text", set(a.json, true)},
      {"--quiet", "", "no progress bar and no text, errors only", set(a.quiet, true)},
  };
}

void print_help() {
  Arguments ignored;
  std::printf("%s\n\nEdit a photograph with a bundle: only what is masked is generated.\n\n", usage().c_str());
  std::printf("  %-26s%s\n", "IMAGE", "PNG, JPEG, WebP or BMP");
  for (const Flag& flag : flags(ignored)) {
    std::printf("  %-26s%s\n", (flag.name + " " + flag.metavar).c_str(), flag.help.c_str());
  }
  std::printf("  %-26s%s\n", "--version", "print the version");
  std::printf("\nexample: cpp-edit photo.jpg --bundle samples/bundles/pose-demo --pose target.json --out edited.png\n");
}

}  // namespace

std::string usage() { return "usage: cpp-edit IMAGE --bundle DIR --out FILE [--pose FILE | --poses FILE] [options]"; }

std::optional<Arguments> parse_arguments(int count, const char* const* words) {
  Arguments result;
  std::vector<std::string> unknown, names = {"-h", "--help", "--version"}, given;
  const std::vector<Flag> known = flags(result);
  for (const Flag& flag : known) names.push_back(flag.name);
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (!is_flag(word)) {
      if (result.image.empty() && !word.empty()) {
        result.image = word;
      } else {
        unknown.push_back(word);
      }
      continue;
    }
    const std::size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    if (name == "-h" || name == "--help") return print_help(), std::nullopt;
    if (name == "--version") return std::printf("cpp-edit %s\n", ilat::version()), std::nullopt;
    const auto flag = std::find_if(known.begin(), known.end(), [&](const Flag& f) { return f.name == name; });
    if (flag == known.end()) {
      unknown.push_back(word);
      continue;
    }
    std::string value;
    if (flag->metavar.empty()) {
      if (equals != word.npos) {
        throw UsageError(cat("argument ", name, ": ignored explicit argument ", repr(word.substr(equals + 1))));
      }
    } else if (equals != word.npos) {
      value = word.substr(equals + 1);
    } else if (i + 1 < count && !is_flag(words[i + 1])) {
      value = words[++i];
    } else {
      throw UsageError(cat("argument ", name, ": expected one argument"));
    }
    flag->set(value);
    for (const auto& [one, other] : {std::pair("--pose", "--poses"), std::pair("--poses", "--pose")}) {
      if (name == one && std::find(given.begin(), given.end(), other) != given.end()) {
        throw UsageError(cat("argument ", one, ": not allowed with argument ", other));
      }
    }
    given.push_back(name);
  }
  std::string missing;
  const auto require = [&](bool there, const char* name) {
    if (!there) missing += (missing.empty() ? "" : ", ") + std::string(name);
  };
  require(!result.image.empty(), "IMAGE");
  require(std::find(given.begin(), given.end(), "--bundle") != given.end(), "--bundle");
  require(std::find(given.begin(), given.end(), "--out") != given.end(), "--out");
  if (!missing.empty()) throw UsageError("the following arguments are required: " + missing);
  if (!unknown.empty()) {
    std::string all;
    for (const auto& word : unknown) all += (all.empty() ? "" : " ") + word;
    std::sort(names.begin(), names.end());
    const std::string near = ilat::detail::close_match(unknown[0].substr(0, unknown[0].find('=')), names);
    throw UsageError(cat("unrecognized arguments: ", all, near.empty() ? "" : " (did you mean " + near + "?)"));
  }
  return result;
}
