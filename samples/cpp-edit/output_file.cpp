#include "output_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <random>

#include "text.hpp"

namespace fs = std::filesystem;
using ilat::detail::cat;

std::string suffix_of(const std::string& path) {
  std::string suffix = fs::path(path).extension().string();
  std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return std::tolower(c); });
  return suffix == "." ? "" : suffix;
}

std::string check_output(const std::string& given, const std::vector<std::string>& suffixes, bool force) {
  const std::string path = ilat::detail::tidy_path(given);
  std::error_code ignored;
  if (std::find(suffixes.begin(), suffixes.end(), suffix_of(path)) == suffixes.end()) {
    std::string list;
    for (const auto& suffix : suffixes) list += (list.empty() ? "" : ", ") + suffix;
    const std::string found = fs::path(path).extension().string();
    throw OutputError(
        cat(path, ": cannot write ", found.empty() ? "a file without a suffix" : found, ", expected ", list));
  }
  if (fs::is_directory(path, ignored)) throw OutputError(path + ": is a folder, expected the name of a file");
  const std::string folder = fs::path(path).has_parent_path() ? fs::path(path).parent_path().string() : ".";
  if (!fs::is_directory(folder, ignored)) throw OutputError(cat(path, ": the folder ", folder, " does not exist"));
  if (access(folder.c_str(), W_OK | X_OK) != 0)
    throw OutputError(cat(path, ": the folder ", folder, " is not writable"));
  if (fs::exists(path, ignored) && !force) {
    throw OutputError(path + ": exists already; overwrite it with --force (force=True in Python)");
  }
  return path;
}

Replacing::Replacing(const std::string& path) : path_(path) {
  const fs::path name(path);
  char token[9];
  std::snprintf(token, sizeof token, "%08x", std::random_device()());
  const std::string stem = name.stem().string().substr(0, 64);
  temporary_ = (name.parent_path() / cat(".", stem, ".", token, ".part", name.extension().string())).string();
}

Replacing::~Replacing() { unlink(temporary_.c_str()); }

void Replacing::commit() {
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail();
}

void Replacing::fail() const {
  throw OutputError(cat(path_, ": cannot be written: ", ilat::detail::system_error(errno)));
}

void write_bytes(const std::string& path, const std::vector<unsigned char>& data) {
  Replacing file(path);
  const int handle = open(file.temporary().c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (handle < 0) file.fail();
  std::size_t written = 0;
  bool good = true;
  while (good && written < data.size()) {
    const ssize_t count = write(handle, data.data() + written, data.size() - written);
    good = count > 0 || (count < 0 && errno == EINTR);
    written += count > 0 ? static_cast<std::size_t>(count) : 0;
  }
  // A full disk or quota may only show when the data is flushed.
  good = good && fsync(handle) == 0;
  const int reason = errno;
  close(handle);
  errno = reason;
  if (!good) file.fail();
  file.commit();
}
