#include "image_file.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <opencv2/videoio.hpp>

#include "output_file.hpp"
#include "text.hpp"

namespace fs = std::filesystem;
using ilat::InputError;
using ilat::detail::cat;

namespace {

constexpr std::int64_t kMaxPixels = 128 << 20, kMaxSide = 32768;
constexpr std::size_t kMaxBytes = std::size_t{1} << 30;

cv::Mat decoded(const std::string& path, int flags) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) throw InputError(path + ": no such file");
  if (!fs::is_regular_file(path, ignored)) throw InputError(path + ": not a file");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw InputError(cat(path, ": cannot be read: ", ilat::detail::system_error(errno)));
  const std::uintmax_t bytes = fs::file_size(path, ignored);
  if (bytes > kMaxBytes) throw InputError(cat(path, ": the file is larger than ", kMaxBytes >> 30, " GB"));
  std::vector<unsigned char> data(bytes);
  file.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(bytes));
  data.resize(static_cast<std::size_t>(file.gcount()));
  std::pair<std::int64_t, std::int64_t> size;
  try {
    size = image_size(data);
  } catch (const std::runtime_error& error) {
    throw InputError(cat(path, ": ", error.what()));
  }
  const auto [width, height] = size;
  if (width > kMaxSide || height > kMaxSide || width * height > kMaxPixels) {
    throw InputError(cat(path, ": ", width, "x", height, " pixels are too many, at most ", kMaxPixels / 1000000,
                         " million and ", kMaxSide, " along a side are accepted"));
  }
  cv::Mat image;
  try {
    image = cv::imdecode(data, flags);
  } catch (const cv::Exception&) {
    image.release();
  }
  if (image.empty() || std::int64_t{image.rows} * image.cols != width * height) {
    throw InputError(path + ": cannot be decoded, the file is damaged");
  }
  return image;
}

/// The pixels as OpenCV has them: BGR. Made even by repeating the last column or row, as video asks for.
cv::Mat to_bgr(const ilat::Image& image, bool even = false) {
  const bool grey = image.channels == 1;
  const cv::Mat pixels(image.height, image.width, grey ? CV_8UC1 : CV_8UC3,
                       const_cast<std::uint8_t*>(image.pixels.data()));
  cv::Mat bgr;
  cv::cvtColor(pixels, bgr, grey ? cv::COLOR_GRAY2BGR : cv::COLOR_RGB2BGR);
  if (even) cv::copyMakeBorder(bgr, bgr, 0, bgr.rows % 2, 0, bgr.cols % 2, cv::BORDER_REPLICATE);
  return bgr;
}

/// Whether an mp4 has all its top-level boxes and frames: OpenCV does not report failed writes.
bool complete(const std::string& path, int frames) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff end = file.tellg();
  std::vector<std::string> kinds;
  std::streamoff position = 0;
  while (file && position < end) {
    unsigned char head[16] = {};
    file.seekg(position);
    if (!file.read(reinterpret_cast<char*>(head), 8)) return false;
    std::uint64_t length = 0;
    for (int i = 0; i < 4; ++i) length = length << 8 | head[i];
    if (length == 1 && !file.read(reinterpret_cast<char*>(head) + 8, 8)) return false;
    if (length == 1) {
      length = 0;
      for (int i = 8; i < 16; ++i) length = length << 8 | head[i];
    }
    if (length < 8 || length > static_cast<std::uint64_t>(end)) return false;
    kinds.emplace_back(reinterpret_cast<char*>(head) + 4, 4);
    position += static_cast<std::streamoff>(length);
  }
  for (const char* kind : {"ftyp", "mdat", "moov"}) {
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) return false;
  }
  cv::VideoCapture reader(path);
  return position == end && reader.isOpened() && static_cast<int>(reader.get(cv::CAP_PROP_FRAME_COUNT)) == frames;
}

}  // namespace

ilat::Image read_image(const std::string& given) {
  cv::Mat rgb;
  cv::cvtColor(decoded(ilat::detail::tidy_path(given), cv::IMREAD_COLOR), rgb, cv::COLOR_BGR2RGB);
  return {rgb.cols, rgb.rows, 3, {rgb.data, rgb.data + rgb.total() * 3}};
}

/// One channel, of the image's size; `what` it is is for the message.
static ilat::Image read_grey(const std::string& path, const ilat::Image& image, const char* what) {
  const cv::Mat grey = decoded(path, cv::IMREAD_GRAYSCALE);
  if (grey.cols != image.width || grey.rows != image.height) {
    throw InputError(cat(path, ": the ", what, " is ", grey.cols, "x", grey.rows, " pixels, expected ", image.width,
                         "x", image.height, " as the image"));
  }
  return {grey.cols, grey.rows, 1, {grey.data, grey.data + grey.total()}};
}

ilat::Image read_mask(const std::string& given, const ilat::Image& image) {
  const std::string path = ilat::detail::tidy_path(given);
  ilat::Image mask = read_grey(path, image, "mask");
  const int brightest = *std::max_element(mask.pixels.begin(), mask.pixels.end());
  if (brightest > 0 && brightest <= 127) {
    throw InputError(
        cat(path, ": the mask's brightest value is ", brightest, ", expected 255 where the image is to be edited"));
  }
  for (auto& value : mask.pixels) value = value > 127;
  return mask;
}

ilat::Image read_sketch(const std::string& given, const ilat::Image& image) {
  return read_grey(ilat::detail::tidy_path(given), image, "sketch");
}

std::size_t write_image(const std::string& given, const ilat::Image& image, bool force) {
  const std::string path = check_output(given, kImageSuffixes, force), suffix = suffix_of(path);
  const bool jpeg = suffix == ".jpg" || suffix == ".jpeg";
  std::vector<unsigned char> data;
  bool done = false;
  try {
    done = cv::imencode(suffix, to_bgr(image), data,
                        jpeg ? std::vector<int>{cv::IMWRITE_JPEG_QUALITY, 95} : std::vector<int>{});
  } catch (const cv::Exception&) {
    done = false;
  }
  if (!done) throw OutputError(cat(suffix, ": cannot hold an image of ", image.width, "x", image.height, " pixels"));
  write_bytes(path, data);
  return data.size();
}

struct VideoWriter::State {
  std::string path;
  double fps;
  Replacing file;
  cv::VideoWriter writer;
  int frames = 0;
};

VideoWriter::VideoWriter(const std::string& given, double fps, bool force) {
  const std::string path = check_output(given, kVideoSuffixes, force);
  if (!(std::isfinite(fps) && fps > 0 && fps <= 1000)) {
    throw InputError(cat("fps: ", ilat::detail::repr(fps), ", expected frames per second from just above 0 to 1000"));
  }
  state_.reset(new State{path, fps, Replacing(path), {}});
}

VideoWriter::~VideoWriter() = default;

void VideoWriter::write(const ilat::Image& frame) {
  State& s = *state_;
  const cv::Mat even = to_bgr(frame, true);
  if (s.frames++ == 0) {
    // H.264 would play in more places, but OpenCV's usual builds cannot encode it.
    const int codec = cv::VideoWriter::fourcc('m', 'p', '4', 'v');
    if (!s.writer.open(s.file.temporary(), codec, s.fps, even.size())) {
      throw OutputError(s.path + ": the video cannot be started (disk full, or OpenCV without FFmpeg?)");
    }
  }
  s.writer.write(even);
}

std::size_t VideoWriter::finish() {
  State& s = *state_;
  s.writer.release();
  if (s.frames == 0) throw InputError(s.path + ": a video needs at least one frame");
  if (!complete(s.file.temporary(), s.frames)) {
    throw OutputError(s.path + ": the video could not be written completely; is the disk full?");
  }
  s.file.commit();
  return fs::file_size(s.path);
}
