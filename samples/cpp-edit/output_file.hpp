// Writing files so that a reader sees the whole new file or the old one, never half of one.
#pragma once

#include <ilat/editor.hpp>
#include <string>
#include <vector>

/// A file cannot be written: it exists, the folder is not writable, the disk is full.
struct OutputError : ilat::Error {
  using Error::Error;
};

/// The tidied path, after what can be checked before the work is done: suffix, folder, no overwriting.
std::string check_output(const std::string& path, const std::vector<std::string>& suffixes, bool force);

/// In lower case, with its dot.
std::string suffix_of(const std::string& path);

/// A temporary file beside `path`; `commit` puts it in place, otherwise it is deleted.
class Replacing {
 public:
  explicit Replacing(const std::string& path);
  Replacing(const Replacing&) = delete;
  Replacing& operator=(const Replacing&) = delete;
  ~Replacing();

  const std::string& temporary() const { return temporary_; }
  void commit();
  /// Throws OutputError with the system's reason, by default that of errno.
  [[noreturn]] void fail() const;

 private:
  std::string path_, temporary_;
};

/// Throws OutputError.
void write_bytes(const std::string& path, const std::vector<unsigned char>& data);
