// Pose files: ours, COCO-17 and OpenPose; the twin of ilat_runtime/pose_file.py.
#pragma once

#include <ilat/editor.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

struct PoseFile {
  std::vector<ilat::Pose> poses;
  std::optional<std::pair<std::int64_t, std::int64_t>> image_size;
  std::optional<ilat::Pose> reference;
  std::optional<double> fps;
};

/// Throws ilat::InputError that names the file and the key.
PoseFile read_poses(const std::string& path);

/// The poses in the text of a file called `path`.
PoseFile parse_poses(const std::string& text, const std::string& path);
