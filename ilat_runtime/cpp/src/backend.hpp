// Backends: each runs a bundle's graphs on some hardware and knows nothing of images or poses.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "manifest.hpp"

namespace ilat {
struct Options;
}

namespace ilat::detail {

/// An input: memory of the caller, in the dtype of the manifest.
struct Input {
  const void* data;
  std::vector<std::int64_t> shape;
};
using Inputs = std::map<std::string, Input>;

/// An output; `data` keeps its memory alive.
struct Output {
  std::shared_ptr<const void> data;
  std::vector<std::int64_t> shape;

  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data.get());
  }
};
using Outputs = std::map<std::string, Output>;

/// A loaded graph. Safe to run from several threads, unless it came from `with_cache`.
class Graph {
 public:
  virtual ~Graph() = default;
  /// Outputs by name. Throws BundleError that names the file.
  virtual Outputs run(const Inputs& inputs) const = 0;
  /// The same graph with buffers of its own for one sequence, for one thread at a time: each pair past_X/present_X is
  /// one cache, zero at first and updated by every run, which neither takes nor returns it.
  virtual std::unique_ptr<Graph> with_cache() const = 0;
};

/// What runs graphs.
class Backend {
 public:
  virtual ~Backend() = default;
  /// Name, version and device, as results show it.
  virtual std::string description() const = 0;
  /// Load a graph of the bundle that it was made for and check it against the manifest. Throws BundleError naming the
  /// file.
  virtual std::unique_ptr<Graph> load(const std::string& graph) const = 0;
};

struct Choice {
  std::unique_ptr<Backend> backend;
  std::string reason;
};

/// The backend that the options name, for the bundle in `folder`; "auto" takes the first that works here and has what
/// it needs of the bundle, such as engines. Throws BackendError.
Choice choose(const Options& options, const std::string& folder, const Manifest& manifest);

std::unique_ptr<Backend> make_onnxruntime(const Options& options, const std::string& folder, const Manifest& manifest);
#ifdef ILAT_WITH_TENSORRT
std::unique_ptr<Backend> make_tensorrt(const Options& options, const std::string& folder, const Manifest& manifest);
#endif

/// Bytes of an element of a manifest's dtype.
std::size_t size_of(const std::string& dtype);
/// Elements of a shape.
std::size_t count_of(const std::vector<std::int64_t>& shape);
/// The shape of a cache's buffer, a batch of one.
std::vector<std::int64_t> cache_shape(const TensorRecord& record);
/// Handle of a shared library; the first of `names` that loads. Throws BackendError with what `what` misses.
void* open_library(const std::vector<std::string>& names, const std::string& what);

}  // namespace ilat::detail
