#include "jobs.hpp"

#include <algorithm>
#include <cmath>

#include "text.hpp"

namespace ilat::detail {

namespace {

constexpr std::int64_t kMaxPixels = 128 << 20, kMaxSide = 32768, kMaxCrop = 8192;

/// x0, y0, x1, y1 in pixels.
struct Box {
  double x0, y0, x1, y1;
  double longer() const { return std::max(x1 - x0, y1 - y0); }
};

void extend(std::optional<Box>& box, double x, double y) {
  if (!box) box = Box{x, y, x, y};
  box = Box{std::min(box->x0, x), std::min(box->y0, y), std::max(box->x1, x), std::max(box->y1, y)};
}

std::optional<Box> visible_box(const std::vector<Pose>& poses) {
  std::optional<Box> box;
  for (const Pose& pose : poses) {
    for (const Landmark& point : pose) {
      if (point.visibility > 0.5F) extend(box, point.x, point.y);
    }
  }
  return box;
}

/// Joins the box of what is masked, the far edge exclusive.
void extend(std::optional<Box>& box, const Pixels& mask) {
  for (int y = 0; y < mask.height; ++y) {
    const std::uint8_t *row = mask.row(y), *end = row + mask.width;
    const auto masked = [](std::uint8_t value) { return value != 0; };
    const std::uint8_t* first = std::find_if(row, end, masked);
    if (first == end) continue;
    while (end[-1] == 0) --end;
    extend(box, static_cast<double>(first - row), y);
    extend(box, static_cast<double>(end - row), y + 1);
  }
}

std::int64_t count_masked(const Pixels& mask, std::int64_t x0, std::int64_t y0, std::int64_t x1, std::int64_t y1) {
  std::int64_t count = 0;
  for (std::int64_t y = std::max<std::int64_t>(y0, 0); y < std::min<std::int64_t>(y1, mask.height); ++y) {
    const std::uint8_t* row = mask.row(static_cast<int>(y));
    for (std::int64_t x = std::max<std::int64_t>(x0, 0); x < std::min<std::int64_t>(x1, mask.width); ++x) {
      count += row[x] != 0;
    }
  }
  return count;
}

double checked_number(double value, const std::string& name, double least, double most) {
  if (value >= least && value <= most) return value;
  throw InputError(cat(name, ": ", shortest(value), ", expected a number from ", least, " to ", most));
}

std::string repr(const Crop& crop) { return cat("Crop(x=", crop.x, ", y=", crop.y, ", side=", crop.side, ")"); }

std::string size_text(const Pixels& image) { return cat(image.width, "x", image.height, " pixels"); }

/// The square around a box: `margin` times its longer side, at least `least` pixels where the image has them.
Crop crop_around(const Box& box, const Pixels& image, double margin, std::int64_t least) {
  const std::int64_t width = image.width, height = image.height;
  auto side = static_cast<std::int64_t>(std::nearbyint(margin * box.longer()));  // half to even, as Python rounds
  side = std::max({side, std::min({least, width, height}), std::int64_t{1}});
  // More than the image's longer side would only add repeated edges.
  side = std::min(side, std::max({width, height, least}));
  const auto start = [side](double centre, std::int64_t extent) {
    if (side >= extent) return -((side - extent) / 2);
    const auto left = static_cast<std::int64_t>(std::nearbyint(centre - static_cast<double>(side) / 2));
    return std::clamp(left, std::int64_t{0}, extent - side);
  };
  if (side > kMaxCrop) side = std::min<std::int64_t>(side, INT32_MAX);
  return {static_cast<int>(start((box.x0 + box.x1) / 2, width)), static_cast<int>(start((box.y0 + box.y1) / 2, height)),
          static_cast<int>(side)};
}

}  // namespace

Pixels checked_image(const ImageView& image) {
  if (image.width < 1 || image.height < 1 || !image.data) {
    throw InputError(cat("image: shape (", image.height, ", ", image.width, ", 3) has no pixels"));
  }
  const Pixels pixels{image.data, image.width, image.height, 3, image.stride ? image.stride : 3L * image.width};
  if (std::int64_t{image.width} * image.height > kMaxPixels || std::max(image.width, image.height) > kMaxSide) {
    throw InputError(cat("image: ", size_text(pixels), " are too many, at most ", kMaxPixels / 1000000, " million and ",
                         kMaxSide, " along a side are accepted"));
  }
  if (std::abs(pixels.stride) < 3L * image.width) {
    throw InputError(
        cat("image: stride ", image.stride, ", expected at least 3 bytes for each of ", image.width, " pixels"));
  }
  return pixels;
}

Pixels checked_grey(const GreyView& view, const Pixels& image, const std::string& name) {
  if (!view.data || view.width != image.width || view.height != image.height) {
    throw InputError(cat(name, ": height and width (", view.height, ", ", view.width, "), expected (", image.height,
                         ", ", image.width, ") as the image"));
  }
  const Pixels pixels{view.data, view.width, view.height, 1, view.stride ? view.stride : view.width};
  if (std::abs(pixels.stride) < view.width) {
    throw InputError(cat(name, ": stride ", view.stride, ", expected at least ", view.width, " bytes"));
  }
  return pixels;
}

std::string wanted(const Manifest& m) {
  const char* takes = m.kind == "pose"     ? "wants a target pose"
                      : m.kind == "sketch" ? "wants a mask and takes a sketch"
                                           : "wants only a mask";
  return cat("the bundle ", repr(m.name), " (kind ", repr(m.kind), ") ", takes);
}

void check_kind(const Manifest& m, bool pose, bool reference_pose, bool sketch) {
  if (pose && m.kind != "pose") throw InputError(cat("pose: ", wanted(m), ", it takes no pose"));
  if (reference_pose && m.kind != "pose")
    throw InputError(cat("reference_pose: ", wanted(m), ", it takes no reference pose"));
  if (sketch && m.kind != "sketch") throw InputError(cat("sketch: ", wanted(m), ", it takes no sketch"));
}

Pose checked_pose(const Pose& pose, const Pixels& image, const std::string& name) {
  for (std::size_t i = 0; i < pose.size(); ++i) {
    const Landmark& p = pose[i];
    if (std::isfinite(p.x) && std::isfinite(p.y) && std::isfinite(p.visibility)) continue;
    throw InputError(cat(name, ": ", joints[i],
                         " is not finite, expected float32 (13, 3): x, y in pixels and visibility "
                         "of 13 landmarks"));
  }
  for (std::size_t i = 0; i < pose.size(); ++i) {
    if (pose[i].visibility == 0 || pose[i].visibility == 1) continue;
    throw InputError(
        cat(name, ": the visibility of ", joints[i], " is ", shortest(pose[i].visibility), ", expected 0 or 1"));
  }
  const auto width = static_cast<float>(image.width), height = static_cast<float>(image.height);
  const std::string where = "the image of " + size_text(image);
  bool any = false;
  for (std::size_t i = 0; i < pose.size(); ++i) {
    const Landmark& p = pose[i];
    if (p.visibility != 1) continue;
    const float outside = std::max({-p.x, p.x - width, -p.y, p.y - height});
    any = any || outside <= 0;
    if (outside > std::max(width, height)) {
      throw InputError(
          cat(name, ": ", joints[i], " at (", shortest(p.x), ", ", shortest(p.y), ") is too far outside ", where));
    }
  }
  if (!any) throw InputError(cat(name, ": no visible landmark lies inside ", where));
  return pose;
}

Crop checked_crop(const Crop& crop, const Pixels& image, const std::string& name) {
  if (crop.side < 1 || crop.side > kMaxCrop) {
    throw InputError(cat(name, ": the edit needs a square of ", crop.side, " pixels, expected 1 to ", kMaxCrop,
                         "; reduce the image"));
  }
  if (crop.x >= image.width || crop.y >= image.height || std::int64_t{crop.x} + crop.side <= 0 ||
      std::int64_t{crop.y} + crop.side <= 0) {
    throw InputError(cat(name, ": ", repr(crop), " lies outside the image of ", size_text(image)));
  }
  return crop;
}

void check_sampling(const Sampling& sampling, std::int64_t codebook_size) {
  if (!(sampling.temperature >= 1e-3 && sampling.temperature <= 1e3)) {
    throw InputError(
        cat("temperature: ", repr(sampling.temperature), ", expected a number from 0.001 to 1000 (top_k=1 is greedy)"));
  }
  if (sampling.top_k < 1 || sampling.top_k > codebook_size) {
    throw InputError(cat("top_k: ", sampling.top_k, ", expected a whole number from 1 to ", codebook_size));
  }
}

Crop find_crop(const Manifest& manifest, const Pixels& image, const std::vector<Pose>& poses,
               const std::optional<Pixels>& mask, const std::optional<double>& margin) {
  // Models of sketches see whole portraits: the largest square in the image, unless a margin is asked for.
  const bool whole_image = manifest.kind == "sketch" && !margin;
  const std::int64_t least = whole_image ? std::min(image.width, image.height) : manifest.image_size;
  const double trained = whole_image ? 1 : manifest.crop ? manifest.crop->margin : CropRule().margin;
  const double factor = margin ? checked_number(*margin, "margin", 1, 100) : trained;
  std::optional<Box> box = visible_box(poses);
  if (mask) extend(box, *mask);
  const Box whole{0, 0, static_cast<double>(image.width), static_cast<double>(image.height)};
  const Crop crop = box ? crop_around(*box, image, factor, least) : crop_around(whole, image, 1, 1);
  return checked_crop(crop, image, "image");
}

Job checked_job(const Manifest& manifest, const Pixels& image, const Edit& edit, const std::optional<Pose>& reference,
                const std::optional<Crop>& crop, bool session) {
  const bool posed = manifest.kind == "pose";
  const std::string bundle = cat("the bundle ", repr(manifest.name), " (kind ", repr(manifest.kind), ")");
  check_kind(manifest, edit.pose.has_value(), reference.has_value(), edit.sketch.has_value());
  if (posed && !edit.pose) throw InputError(cat("pose: missing, ", bundle, " needs a target pose: float32 (13, 3)"));
  if (posed && !reference && manifest.has("source_pose")) {
    throw InputError(cat("reference_pose: missing, ", bundle, " needs the pose of the person in the image"));
  }
  if (!posed && !edit.mask) throw InputError(cat("mask: missing, ", bundle, " needs a mask: bool HW of what to edit"));
  Job job;
  job.image = image;
  std::vector<Pose> poses;
  if (posed) poses.push_back(*(job.pose = checked_pose(*edit.pose, image, "pose")));
  if (reference) poses.push_back(*(job.reference_pose = checked_pose(*reference, image, "reference_pose")));
  if (edit.mask) job.mask = checked_grey(*edit.mask, image, "mask");
  if (edit.sketch) job.sketch = checked_grey(*edit.sketch, image, "sketch");
  job.crop = crop ? checked_crop(*crop, image, "crop") : find_crop(manifest, image, poses, job.mask, edit.margin);
  const Crop& square = job.crop;
  if (job.mask) {
    const std::int64_t x = square.x, y = square.y, all = count_masked(*job.mask, 0, 0, image.width, image.height);
    const std::int64_t outside = all - count_masked(*job.mask, x, y, x + square.side, y + square.side);
    if (outside) throw InputError(cat("mask: ", outside, " masked pixels lie outside the crop ", repr(square)));
  } else {
    const double trained = manifest.crop ? manifest.crop->dilation : 0;
    const double factor = edit.dilation ? checked_number(*edit.dilation, "dilation", 0, 1) : trained;
    const Box box = visible_box(poses).value_or(Box{0, 0, 0, 0});
    job.radius = static_cast<float>(factor * box.longer() / square.side);
    if (!reference) job.notices.emplace_back("no reference pose was given: only the target's skeleton is masked");
  }
  const auto outside = [](const Landmark& p) {
    return p.visibility > 0.5F && (p.x < 0 || p.x > 1 || p.y < 0 || p.y > 1);
  };
  if (session && job.pose) {
    const Pose inside = relative(*job.pose, square);
    if (std::any_of(inside.begin(), inside.end(), outside)) {
      job.notices.emplace_back("part of the target pose lies outside the session's crop and is not drawn");
    }
  }
  return job;
}

Pose relative(const Pose& pose, const Crop& crop) {
  Pose result = pose;
  for (Landmark& point : result) {
    point.x = (point.x - static_cast<float>(crop.x)) / static_cast<float>(crop.side);
    point.y = (point.y - static_cast<float>(crop.y)) / static_cast<float>(crop.side);
  }
  return result;
}

Bytes take(const Pixels& image, const Crop& crop) {
  const auto side = static_cast<std::size_t>(crop.side), channels = static_cast<std::size_t>(image.channels);
  Bytes result(side * side * channels);
  std::uint8_t* out = result.data();
  for (int y = 0; y < crop.side; ++y) {
    const std::uint8_t* row = image.row(std::clamp(crop.y + y, 0, image.height - 1));
    for (int x = 0; x < crop.side; ++x, out += channels) {
      const std::uint8_t* pixel = row + std::ptrdiff_t{std::clamp(crop.x + x, 0, image.width - 1)} * image.channels;
      std::copy(pixel, pixel + channels, out);
    }
  }
  return result;
}

Bytes take_mask(const std::optional<Pixels>& mask, const Crop& crop) {
  Bytes result(static_cast<std::size_t>(crop.side) * static_cast<std::size_t>(crop.side));
  for (int y = 0; mask && y < crop.side; ++y) {
    for (int x = 0; x < crop.side; ++x) {
      const int row = crop.y + y, column = crop.x + x;
      if (row < 0 || row >= mask->height || column < 0 || column >= mask->width) continue;
      result[static_cast<std::size_t>(y) * static_cast<std::size_t>(crop.side) + static_cast<std::size_t>(x)] =
          mask->row(row)[column] != 0;
    }
  }
  return result;
}

Image copied(const Pixels& pixels) {
  Image result{pixels.width, pixels.height, pixels.channels, {}};
  const std::ptrdiff_t length = std::ptrdiff_t{pixels.width} * pixels.channels;
  result.pixels.reserve(static_cast<std::size_t>(length) * static_cast<std::size_t>(pixels.height));
  for (int y = 0; y < pixels.height; ++y) {
    result.pixels.insert(result.pixels.end(), pixels.row(y), pixels.row(y) + length);
  }
  return result;
}

void put(Image& image, const std::uint8_t* patch, const Crop& crop) {
  const int x0 = std::max(crop.x, 0), x1 = std::min(crop.x + crop.side, image.width);
  for (int y = std::max(crop.y, 0); y < std::min(crop.y + crop.side, image.height); ++y) {
    const std::ptrdiff_t from = (static_cast<std::ptrdiff_t>(y - crop.y) * crop.side + x0 - crop.x) * image.channels;
    const std::ptrdiff_t to = (static_cast<std::ptrdiff_t>(y) * image.width + x0) * image.channels;
    std::copy(patch + from, patch + from + static_cast<std::ptrdiff_t>(x1 - x0) * image.channels,
              image.pixels.data() + to);
  }
}

}  // namespace ilat::detail
