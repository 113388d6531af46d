#include "pose_file.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "text.hpp"

using ilat::detail::cat;
using ilat::detail::head;
using ilat::detail::Json;
using ilat::detail::repr;

namespace {

constexpr std::size_t kLargest = 256U << 20, kCount = ilat::joints.size();

// Where each of our joints lies in the other formats; the nose stands for the head.
using Picks = std::array<std::size_t, kCount>;
constexpr Picks kCoco17 = {0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
constexpr Picks kOpenPose18 = {0, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10};
constexpr Picks kOpenPose25 = {0, 5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11};

std::string joint_names() {
  std::string names;
  for (const char* joint : ilat::joints) names += (names.empty() ? "" : ", ") + std::string(joint);
  return names;
}

/// Reads one file; every error names it.
class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path) {}

  [[noreturn]] void fail(const std::string& message) const { throw ilat::InputError(path_ + ": " + message); }

  PoseFile own(const Json& data) const {
    if (data["format"] != "ilat-pose") fail(cat("format: ", repr(data["format"]), ", expected 'ilat-pose'"));
    const Json version = data.value("version", Json());
    if (version.is_number_integer() && version > 1) {
      fail(cat("version: ", repr(version), " is newer than 1, the newest this program reads; update ilat"));
    }
    if (!version.is_number() || version != 1) fail(cat("version: ", repr(version), ", expected 1"));
    const std::vector<std::string> known = {"format", "fps", "image_size", "joints", "poses", "reference", "version"};
    for (const auto& [key, value] : data.items()) {
      if (std::find(known.begin(), known.end(), key) != known.end()) continue;
      fail(cat("unknown key ", repr(key),
               ", expected one of format, fps, image_size, joints, poses, reference, version"));
    }
    const Picks order = joint_order(data.value("joints", Json()));
    const Json poses = data.value("poses", Json());
    if (!poses.is_array() || poses.empty()) fail("poses: expected a list of one pose or more");
    PoseFile file;
    for (std::size_t i = 0; i < poses.size(); ++i) file.poses.push_back(pose(cat("poses[", i, "]"), poses[i], order));
    const Json fps = data.value("fps", Json());
    if (!fps.is_null() && !(is_number(fps) && fps.get<double>() > 0)) {
      fail(cat("fps: ", repr(fps), ", expected a number above 0"));
    }
    const Json size = data.value("image_size", Json()), reference = data.value("reference", Json());
    if (!size.is_null()) file.image_size = image_size(size, "image_size");
    if (!reference.is_null()) file.reference = pose("reference", reference, order);
    if (!fps.is_null()) file.fps = fps.get<double>();
    return file;
  }

  PoseFile coco(const Json& data) const {
    const bool listed = data.is_object() && data.contains("annotations");
    const Json annotations = data.is_array() ? data : listed ? data["annotations"] : Json::array({data});
    const std::string prefix = listed ? "annotations" : "";
    if (!annotations.is_array() || annotations.empty()) {
      fail(cat(prefix.empty() ? "annotations" : prefix, ": expected a list of one annotation or more"));
    }
    PoseFile file;
    std::set<std::string> seen;
    for (std::size_t i = 0; i < annotations.size(); ++i) {
      const std::string key = cat(prefix, "[", i, "]");
      const Json& annotation = annotations[i];
      if (!annotation.is_object() || !annotation.contains("keypoints")) {
        fail(key + ": no 'keypoints', expected 51 numbers of COCO-17");
      }
      const std::string image = repr(annotation.value("image_id", Json(i)));
      if (!seen.insert(image).second) {
        fail(cat(key, ".image_id: ", image, " has a second person, expected one for each image"));
      }
      file.poses.push_back(keypoints(key + ".keypoints", annotation["keypoints"], {{17, kCoco17}}));
    }
    std::set<std::pair<std::int64_t, std::int64_t>> sizes;
    const Json images = data.is_object() ? data.value("images", Json()) : Json();
    for (std::size_t i = 0; images.is_array() && i < images.size(); ++i) {
      const Json& image = images[i];
      if (!image.is_object() || seen.count(repr(image.value("id", Json()))) == 0) continue;
      sizes.insert(image_size(Json::array({image.value("width", Json()), image.value("height", Json())}),
                              "images[].width, height", true));
    }
    if (sizes.size() > 1) fail(cat("images: ", sizes.size(), " different sizes, expected one size for a sequence"));
    if (!sizes.empty()) file.image_size = *sizes.begin();
    return file;
  }

  PoseFile openpose(const Json& data) const {
    const Json& people = data["people"];
    if (!people.is_array() || people.size() != 1 || !people[0].is_object()) {
      fail(cat("people: ", people.is_array() ? cat(people.size()) : head(repr(people), 40),
               ", expected exactly one person"));
    }
    return {{keypoints("people[0].pose_keypoints_2d", people[0].value("pose_keypoints_2d", Json()),
                       {{18, kOpenPose18}, {25, kOpenPose25}})},
            {},
            {},
            {}};
  }

 private:
  /// Beyond 1e9 a float32 pixel position means nothing (and larger ones overflow).
  static bool is_number(const Json& value) { return value.is_number() && std::fabs(value.get<double>()) < 1e9; }

  Picks joint_order(const Json& names) const {
    const bool texts =
        names.is_array() && std::all_of(names.begin(), names.end(), [](const Json& name) { return name.is_string(); });
    if (!texts) fail(cat("joints: expected a list of the ", kCount, " landmark names"));
    for (const Json& name : names) {
      if (std::find(ilat::joints.begin(), ilat::joints.end(), name.get<std::string>()) == ilat::joints.end()) {
        fail(cat("joints: unknown landmark ", repr(name), ", expected ", joint_names()));
      }
    }
    const std::set<std::string> distinct(names.begin(), names.end());
    if (names.size() != kCount || distinct.size() != kCount) {
      fail(cat("joints: ", names.size(), " names, ", distinct.size(), " distinct; expected each of ", joint_names(),
               " once"));
    }
    Picks order{};
    for (std::size_t i = 0; i < kCount; ++i) {
      order[i] = static_cast<std::size_t>(std::find(names.begin(), names.end(), ilat::joints[i]) - names.begin());
    }
    return order;
  }

  ilat::Pose pose(const std::string& key, const Json& value, const Picks& order) const {
    if (!value.is_array() || value.size() != kCount) {
      const std::string found = value.is_array() ? cat(value.size(), " landmarks") : head(repr(value), 40);
      fail(cat(key, ": ", found, ", expected ", kCount, " landmarks [x, y, visibility]"));
    }
    for (std::size_t i = 0; i < value.size(); ++i) {
      const Json& point = value[i];
      if (!point.is_array() || point.size() != 3 || !std::all_of(point.begin(), point.end(), is_number)) {
        fail(cat(key, "[", i, "]: ", head(repr(point), 60), ", expected three finite numbers [x, y, visibility]"));
      }
      if (point[2] != 0 && point[2] != 1) fail(cat(key, "[", i, "]: visibility ", repr(point[2]), ", expected 0 or 1"));
    }
    ilat::Pose result;
    for (std::size_t i = 0; i < kCount; ++i) {
      const Json& point = value[order[i]];
      result[i] = {to_float(point[0]), to_float(point[1]), to_float(point[2])};
    }
    return result;
  }

  static float to_float(const Json& value) { return static_cast<float>(value.get<double>()); }

  std::pair<std::int64_t, std::int64_t> image_size(const Json& value, const std::string& key,
                                                   bool tuple = false) const {
    const auto extent = [](const Json& item) { return item.is_number_integer() && item > 0; };
    if (!value.is_array() || value.size() != 2 || !extent(value[0]) || !extent(value[1])) {
      std::string shown = repr(value);
      if (tuple) shown = "(" + shown.substr(1, shown.size() - 2) + ")";
      fail(cat(key, ": ", head(shown, 60), ", expected [width, height] in pixels"));
    }
    return {value[0].get<std::int64_t>(), value[1].get<std::int64_t>()};
  }

  /// A flat list x, y, confidence, … as a pose; `picks` says where our joints are for each number of landmarks.
  ilat::Pose keypoints(const std::string& key, const Json& values,
                       const std::vector<std::pair<std::size_t, Picks>>& picks) const {
    const Picks* chosen = nullptr;
    std::string expected;
    for (const auto& [count, pick] : picks) {
      expected += (expected.empty() ? "" : " or ") + cat(3 * count);
      if (values.is_array() && values.size() == 3 * count) chosen = &pick;
    }
    if (!chosen) {
      const std::string found = values.is_array() ? cat(values.size(), " numbers") : head(repr(values), 40);
      fail(cat(key, ": ", found, ", expected ", expected, " (x, y, confidence of each landmark)"));
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (!is_number(values[i])) fail(cat(key, "[", i, "]: ", repr(values[i]), ", expected a finite number"));
    }
    ilat::Pose result;
    for (std::size_t i = 0; i < kCount; ++i) {
      const std::size_t at = 3 * (*chosen)[i];
      result[i] = {to_float(values[at]), to_float(values[at + 1]), to_float(values[at + 2]) > 0 ? 1.0F : 0.0F};
    }
    return result;
  }

  std::string path_;
};

}  // namespace

PoseFile parse_poses(const std::string& text, const std::string& path) {
  const Reader reader(path);
  Json data;
  try {
    data = ilat::detail::parse_json(text);
  } catch (const std::domain_error& error) {
    const std::string message = error.what();
    reader.fail(cat("holds ", message.substr(0, message.find(' ')), "; every number must be finite"));
  } catch (const std::exception& error) {
    reader.fail(cat("not JSON: ", error.what()));
  }
  if (data.is_object() && data.contains("format")) return reader.own(data);
  if (data.is_object() && data.contains("people")) return reader.openpose(data);
  if (data.is_array() || (data.is_object() && (data.contains("annotations") || data.contains("keypoints")))) {
    return reader.coco(data);
  }
  reader.fail(
      "not a pose file: expected {\"format\": \"ilat-pose\", …}, COCO keypoints or an OpenPose \"people\" object");
}

PoseFile read_poses(const std::string& given) {
  const std::string path = ilat::detail::tidy_path(given);
  const Reader reader(path);
  std::error_code failed;
  const std::uintmax_t size = std::filesystem::file_size(path, failed);
  if (!failed && size > kLargest) reader.fail(cat("larger than ", kLargest, " bytes, not a pose file"));
  std::ifstream file(path, std::ios::binary);
  if (failed || !file)
    reader.fail("cannot be read: " + (failed ? failed.message() : ilat::detail::system_error(errno)));
  std::ostringstream text;
  text << file.rdbuf();
  return parse_poses(text.str(), path);
}
