// A template: edits a picture with a bundle, without any library but ilat.
//
//     cpp-app BUNDLE IN.ppm OUT.ppm [POSE.txt]
//
// The pictures are binary PPM (P6). POSE.txt holds 13 lines "x y visibility"; without one the right half is edited,
// which needs a bundle of kind "none" or "sketch". The generated tokens go to stdout.
#include <fstream>
#include <ilat/editor.hpp>
#include <iostream>

static ilat::Image read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  ilat::Image image;
  int most = 0;
  file >> magic >> image.width >> image.height >> most;
  const bool good = file && magic == "P6" && most == 255 && image.width > 0 && image.height > 0 &&
                    image.width <= 16384 && image.height <= 16384;
  if (!good) throw std::runtime_error(path + ": expected a binary PPM file (P6) with 255 levels");
  file.get();
  image.pixels.resize(3UL * static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height));
  file.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
  if (!file) throw std::runtime_error(path + ": the file is truncated");
  return image;
}

static ilat::Pose read_pose(const std::string& path) {
  std::ifstream file(path);
  ilat::Pose pose;
  for (ilat::Landmark& point : pose) file >> point.x >> point.y >> point.visibility;
  if (!file) throw std::runtime_error(path + ": expected 13 lines \"x y visibility\"");
  return pose;
}

int main(int count, char** words) {
  if (count < 4 || count > 5) {
    std::cerr << "usage: cpp-app BUNDLE IN.ppm OUT.ppm [POSE.txt]\n";
    return 2;
  }
  try {
    const ilat::Editor editor(words[1], {.threads = 1});
    const ilat::Image image = read_ppm(words[2]);
    ilat::Result result;
    if (count == 5) {
      result = editor.edit(image, {.pose = read_pose(words[4])});
    } else {
      ilat::Image mask{image.width, image.height, 1, {}};
      for (int i = 0; i < image.width * image.height; ++i) mask.pixels.push_back(i % image.width >= image.width / 2);
      result = editor.edit(image, {.mask = mask});
    }
    std::ofstream out(words[3], std::ios::binary);
    out << "P6\n" << result.image.width << " " << result.image.height << "\n255\n";
    out.write(reinterpret_cast<const char*>(result.image.pixels.data()),
              static_cast<std::streamsize>(result.image.pixels.size()));
    if (!out.flush()) throw std::runtime_error(std::string(words[3]) + ": cannot be written");
    for (const auto token : result.tokens) std::cout << token << "\n";
    std::cerr << result.tokens.size() << " tokens on " << result.backend << "\n";
  } catch (const std::exception& error) {
    std::cerr << "cpp-app: error: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
