#include "backend.hpp"

#include <dlfcn.h>

#include <ilat/editor.hpp>

#include "text.hpp"

namespace ilat::detail {

namespace {

using Make = std::unique_ptr<Backend> (*)(const Options&, const std::string&, const Manifest&);

#ifdef ILAT_WITH_TENSORRT
constexpr Make kTensorRt = make_tensorrt;
#else
constexpr Make kTensorRt = nullptr;
#endif

/// All that Python has, the first choice of "auto" first: what makes each, or how to get it where nothing here does.
struct Known {
  const char* name;
  Make make;
  const char* otherwise;
};
constexpr Known kBackends[] = {{"tensorrt", kTensorRt,
                                "is not compiled into this library; build ilat where NvInfer.h and CUDA's headers are, "
                                "or with -DILAT_TENSORRT_INCLUDE=DIR -DILAT_CUDA_INCLUDE=DIR"},
                               {"tensorrt-rtx", nullptr, "is not in the C++ library; the Python runtime has it"},
                               {"onnxruntime-cuda", nullptr, "is not in the C++ library; the Python runtime has it"},
                               {"onnxruntime", make_onnxruntime, ""}};

}  // namespace

Choice choose(const Options& options, const std::string& folder, const Manifest& manifest) {
  if (options.threads.value_or(1) < 1)
    throw BackendError(cat("threads: ", *options.threads, ", expected a whole number from 1"));
  std::vector<std::string> names;
  std::string all = "auto", here, failures;
  for (const Known& known : kBackends) {
    names.emplace_back(known.name);
    all += cat(", ", known.name);
    if (known.make) here += cat(here.empty() ? "" : ", ", known.name);
  }
  for (const Known& known : kBackends) {
    if (options.backend == known.name) {
      if (!known.make) throw BackendError(cat("backend: ", known.name, " ", known.otherwise));
      return {known.make(options, folder, manifest), cat(known.name, " was asked for")};
    }
    if (options.backend != "auto" || !known.make) continue;
    try {
      return {known.make(options, folder, manifest),
              cat("auto takes the first that works here of: ", here, failures.empty() ? "" : " (" + failures + ")")};
    } catch (const BackendError& error) {
      failures += (failures.empty() ? "" : "; ") + std::string(error.what());
    }
  }
  if (options.backend == "auto") throw BackendError("backend: none works here: " + failures);
  names.emplace_back("auto");
  const std::string near = close_match(options.backend, names);
  throw BackendError(cat("backend: ", repr(options.backend), " does not exist",
                         near.empty() ? "" : ", did you mean " + near + "?", "; there is ", all));
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
