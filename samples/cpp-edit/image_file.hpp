// Images and masks from files, bounded before they are decoded; images and video to files.
#pragma once

#include <ilat/editor.hpp>
#include <memory>
#include <string>
#include <vector>

inline const std::vector<std::string> kImageSuffixes = {".png", ".jpg", ".jpeg", ".webp", ".bmp"};
inline const std::vector<std::string> kVideoSuffixes = {".mp4"};

/// PNG, JPEG, WebP or BMP as RGB. Throws ilat::InputError.
ilat::Image read_image(const std::string& path);

/// 1 where the picture is brighter than 127 of 255; of the image's size. Throws ilat::InputError.
ilat::Image read_mask(const std::string& path, const ilat::Image& image);

/// Dark lines (0) on white (255), of the image's size. Throws ilat::InputError.
ilat::Image read_sketch(const std::string& path, const ilat::Image& image);

/// Writes RGB as the suffix says; the bytes written. Throws OutputError.
std::size_t write_image(const std::string& path, const ilat::Image& image, bool force);

/// Frames of one size to an mp4 file, which appears when it is complete.
class VideoWriter {
 public:
  VideoWriter(const std::string& path, double fps, bool force);
  ~VideoWriter();
  void write(const ilat::Image& frame);
  /// Puts the file in place; the bytes written.
  std::size_t finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Width and height of a complete encoded image, from its bytes and without decoding it. Throws std::runtime_error.
std::pair<std::int64_t, std::int64_t> image_size(const std::vector<unsigned char>& data);
