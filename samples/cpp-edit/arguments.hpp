// The command line, read as ilat-edit's argparse reads it.
#pragma once

#include <ilat/editor.hpp>
#include <optional>
#include <string>

/// Flags that do not go together; the program ends with exit code 2.
struct UsageError : ilat::Error {
  using Error::Error;
};

struct Arguments {
  std::string image, bundle, out, backend = "auto";
  std::optional<std::string> pose, poses, reference_pose, mask, sketch, save_sketch, compare;
  std::optional<std::string> seed;  ///< a whole number of any size
  std::optional<double> fps, temperature, dilation, margin;
  std::optional<int> threads;
  std::int64_t top_k = 1;
  std::optional<bool> blend;
  bool force = false, json = false, quiet = false;
};

/// The arguments, or nothing where --help or --version printed what was asked for. Throws UsageError.
std::optional<Arguments> parse_arguments(int count, const char* const* words);

std::string usage();
