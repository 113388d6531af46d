// One checked edit and the square in which it happens; the twin of ilat_runtime/crop.py, checks.py and jobs.py.
#pragma once

#include <ilat/editor.hpp>
#include <optional>
#include <string>
#include <vector>

#include "manifest.hpp"

namespace ilat::detail {

using Bytes = std::vector<std::uint8_t>;

/// Pixels of one or three channels; the stride is never 0.
struct Pixels {
  const std::uint8_t* data = nullptr;
  int width = 0, height = 0, channels = 3;
  std::ptrdiff_t stride = 0;
  const std::uint8_t* row(int y) const { return data + y * stride; }
};

/// How a token is chosen from its distribution.
struct Sampling {
  std::uint64_t seed = 0;
  double temperature = 1;
  std::int64_t top_k = 1;
};

struct Job {
  Pixels image;
  Crop crop;
  std::optional<Pose> pose, reference_pose;
  std::optional<Pixels> mask, sketch;
  float radius = 0;  ///< of the skeletons' mask, in units of the crop's side
  std::vector<std::string> notices;
};

/// The checked image; throws InputError.
Pixels checked_image(const ImageView& image);
/// Throws InputError that names `name`.
Pose checked_pose(const Pose& pose, const Pixels& image, const std::string& name);
Crop checked_crop(const Crop& crop, const Pixels& image, const std::string& name);
Pixels checked_grey(const GreyView& view, const Pixels& image, const std::string& name);
void check_sampling(const Sampling& sampling, std::int64_t codebook_size);

/// The bundle and the condition that its kind wants, for messages.
std::string wanted(const Manifest& manifest);
/// Throws InputError when one of the conditions is given that the kind has not.
void check_kind(const Manifest& manifest, bool pose, bool reference_pose, bool sketch);

/// The checked edit. `session`: the image, the reference's pose and the crop were given before.
Job checked_job(const Manifest& manifest, const Pixels& image, const Edit& edit, const std::optional<Pose>& reference,
                const std::optional<Crop>& crop, bool session);

/// The square of an edit with these checked poses and this mask, by the rule of the model's training.
Crop find_crop(const Manifest& manifest, const Pixels& image, const std::vector<Pose>& poses,
               const std::optional<Pixels>& mask, const std::optional<double>& margin);

/// x and y from pixels of the image to the square: 0 to 1 inside it.
Pose relative(const Pose& pose, const Crop& crop);

/// The square's pixels; what lies outside the image repeats its edge.
Bytes take(const Pixels& image, const Crop& crop);
/// The square's part of a mask as 0 and 1; outside the image nothing is masked.
Bytes take_mask(const std::optional<Pixels>& mask, const Crop& crop);
/// The pixels, without gaps.
Image copied(const Pixels& pixels);
/// Writes the square's part that lies inside the image.
void put(Image& image, const std::uint8_t* patch, const Crop& crop);

}  // namespace ilat::detail
