#include "backend.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <functional>
#include <ilat/editor.hpp>

#include "text.hpp"

namespace ilat::detail {

namespace {

using Make = std::function<std::unique_ptr<Backend>(const Options&)>;

/// What exists, the first choice of "auto" first.
const std::vector<std::pair<std::string, Make>> kBackends = {
    {"onnxruntime", make_onnxruntime},
#ifdef ILAT_WITH_TENSORRT
    {"tensorrt", make_tensorrt},
#endif
};
/// Named so that asking for one is answered precisely.
const std::vector<std::string> kPlanned = {"onnxruntime-cuda", "tensorrt", "tensorrt-rtx"};

}  // namespace

Choice choose(const Options& options) {
  if (options.threads.value_or(1) < 1)
    throw BackendError(cat("threads: ", *options.threads, ", expected a whole number from 1"));
  std::vector<std::string> names;
  for (const auto& [name, make] : kBackends) names.push_back(name);
  if (options.backend == "auto") {
    std::string failures, order;
    for (const auto& name : names) order += (order.empty() ? "" : ", ") + name;
    for (const auto& [name, make] : kBackends) {
      try {
        return {make(options),
                "auto takes the first that works here of: " + order + (failures.empty() ? "" : " (" + failures + ")")};
      } catch (const BackendError& error) {
        failures += (failures.empty() ? "" : "; ") + std::string(error.what());
      }
    }
    throw BackendError("backend: none works here: " + failures);
  }
  std::string existing = "auto";
  for (const auto& [name, make] : kBackends) {
    if (name == options.backend) return {make(options), name + " was asked for"};
    existing += ", " + name;
  }
  if (std::find(kPlanned.begin(), kPlanned.end(), options.backend) != kPlanned.end()) {
    throw BackendError(cat("backend: ", options.backend, " is not in this version of ilat; there is ", existing));
  }
  names.emplace_back("auto");
  const std::string near = close_match(options.backend, names);
  throw BackendError(cat("backend: ", repr(options.backend), " does not exist",
                         near.empty() ? "" : ", did you mean " + near + "?", "; there is ", existing));
}

std::size_t size_of(const std::string& dtype) {
  static const std::map<std::string, std::size_t> sizes = {{"uint8", 1}, {"bool", 1},    {"int32", 4},
                                                           {"int64", 8}, {"float16", 2}, {"float32", 4}};
  return sizes.at(dtype);
}

std::size_t count_of(const std::vector<std::int64_t>& shape) {
  std::size_t count = 1;
  for (const auto extent : shape) count *= static_cast<std::size_t>(extent);
  return count;
}

std::vector<std::int64_t> cache_shape(const TensorRecord& record) {
  std::vector<std::int64_t> shape;
  for (const auto& dimension : record.shape) shape.push_back(dimension.name.empty() ? dimension.size : 1);
  return shape;
}

void* open_library(const std::vector<std::string>& names, const std::string& what) {
  std::string reasons;
  for (const auto& name : names) {
    // Never unloaded: the library's threads and thread-local data may outlive an editor.
    if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) return handle;
    reasons += (reasons.empty() ? "" : "; ") + one_line(dlerror());
  }
  throw BackendError(cat(what, " (", reasons, ")"));
}

}  // namespace ilat::detail
