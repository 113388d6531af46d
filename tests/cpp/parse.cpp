// parse manifest|poses|image FILE...: what the parsers say to each file, one JSON text a line; null where they take it.
#include <fstream>
#include <iostream>
#include <sstream>

#include "image_file.hpp"
#include "manifest.hpp"
#include "pose_file.hpp"
#include "text.hpp"

int main(int count, char** words) {
  const std::string what = count > 1 ? words[1] : "";
  for (int i = 2; i < count; ++i) {
    std::ifstream file(words[i], std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    ilat::detail::Json answer;
    try {
      if (what == "manifest") ilat::detail::parse_manifest(text.str(), "manifest.json");
      if (what == "poses") parse_poses(text.str(), "poses.json");
      const std::string bytes = text.str();
      if (what == "image") image_size({bytes.begin(), bytes.end()});
    } catch (const std::exception& error) {
      answer = error.what();
    }
    std::cout << answer.dump() << "\n";
  }
  return 0;
}
