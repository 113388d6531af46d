// TensorRT without ONNX Runtime, as on Jetson: runs engines that lie beside the bundle. Compiled where its headers are
// found; its libraries are loaded when it is asked for. Not yet run on a GPU.
#include <NvInfer.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <ilat/editor.hpp>
#include <mutex>
#include <sstream>

#include "backend.hpp"
#include "sha256.hpp"
#include "text.hpp"

namespace ilat::detail {

namespace {

namespace trt = nvinfer1;
using Dims = std::vector<std::int64_t>;

/// The functions of libcudart that are needed.
struct Cuda {
  explicit Cuda(void* library) : library_(library) {}

  template <typename Function, typename... Arguments>
  void call(const char* name, Arguments... arguments) const {
    const auto function = reinterpret_cast<Function*>(dlsym(library_, name));
    const cudaError_t status = function ? function(arguments...) : cudaErrorSharedObjectSymbolNotFound;
    if (status != cudaSuccess)
      throw std::runtime_error(cat(name, " failed with CUDA error ", static_cast<int>(status)));
  }

 private:
  void* library_;
};

// Only the type of the function is taken: nothing is linked.
#define ILAT_CUDA(cuda, function, ...) (cuda).call<decltype(function)>(#function, __VA_ARGS__)

/// Keeps what went wrong, so that it can be told.
class Log : public trt::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    if (severity > Severity::kERROR) return;
    try {
      const std::lock_guard lock(mutex_);
      last_ = one_line(text);
    } catch (const std::exception&) {
      return;
    }
  }
  std::string last() {
    const std::lock_guard lock(mutex_);
    return last_.empty() ? "no reason was given" : last_;
  }

 private:
  std::mutex mutex_;
  std::string last_;
};

/// The libraries and what engines must be made for.
struct Runtime {
  std::unique_ptr<Cuda> cuda;
  Log log;
  std::unique_ptr<trt::IRuntime> runtime;
  std::string version, architecture;
};

/// Device memory that grows when it is needed.
class Buffer {
 public:
  explicit Buffer(const Cuda& cuda) : cuda_(cuda) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    try {
      ILAT_CUDA(cuda_, cudaFree, data_);
    } catch (const std::exception&) {
      data_ = nullptr;  // a destructor cannot tell
    }
  }
  void* reserve(std::size_t bytes) {
    if (bytes > size_) {
      ILAT_CUDA(cuda_, cudaFree, data_);
      data_ = nullptr, size_ = 0;
      ILAT_CUDA(cuda_, cudaMalloc, &data_, bytes);
      size_ = bytes;
    }
    return data_;
  }

 private:
  const Cuda& cuda_;
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

trt::Dims to_dims(const Dims& shape) {
  trt::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
  return dims;
}

struct Engine {
  std::shared_ptr<Runtime> runtime;
  std::string path;
  GraphRecord record;
  Json profiles;
  std::unique_ptr<trt::ICudaEngine> engine;

  Engine() {}  // "= default" would promise that the JSON library does not throw
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// The first profile that takes inputs of these shapes. Shape tensors are not looked at.
  std::int32_t profile(const std::map<std::string, Dims>& shapes) const {
    for (std::size_t i = 0; i < profiles.size(); ++i) {
      const auto takes = [&](const auto& input) {
        const Json& range = profiles[i].at("inputs").at(input.first);
        const Dims least = range.at("min"), most = range.at("max"), &shape = input.second;
        bool inside = least.size() == shape.size() && most.size() == shape.size();
        for (std::size_t d = 0; inside && d < shape.size(); ++d) inside = least[d] <= shape[d] && shape[d] <= most[d];
        return inside;
      };
      if (std::all_of(shapes.begin(), shapes.end(), takes)) return static_cast<std::int32_t>(i);
    }
    throw std::runtime_error("its engine takes no inputs of these shapes");
  }
};

class TensorRtGraph : public Graph {
 public:
  explicit TensorRtGraph(std::shared_ptr<const Engine> engine)
      : engine_(std::move(engine)),
        cuda_(*engine_->runtime->cuda),
        context_(engine_->engine->createExecutionContext()) {
    if (!context_) fail();
    ILAT_CUDA(cuda_, cudaStreamCreate, &stream_);
  }
  TensorRtGraph(const TensorRtGraph&) = delete;
  TensorRtGraph& operator=(const TensorRtGraph&) = delete;
  ~TensorRtGraph() override {
    try {
      ILAT_CUDA(cuda_, cudaStreamDestroy, stream_);
    } catch (const std::exception&) {
      stream_ = nullptr;  // a destructor cannot tell
    }
  }

  Outputs run(const Inputs& inputs) const override {
    const std::lock_guard lock(mutex_);  // a context runs one call at a time
    try {
      std::map<std::string, Dims> shapes;
      for (const auto& [name, record] : engine_->record.inputs) {
        const auto input = inputs.find(name);
        const bool cached = caches_[0].count(name) != 0;
        if (!cached && input == inputs.end()) throw std::runtime_error("input " + name + " is missing");
        if (!host(name)) shapes[name] = cached ? cache_shape(record) : input->second.shape;
      }
      if (const std::int32_t wanted = engine_->profile(shapes); wanted != profile_) {
        require(context_->setOptimizationProfileAsync(wanted, stream_));
        profile_ = wanted;
      }
      const bool in_place = engine_->record.in_place();
      for (const auto& [name, record] : engine_->record.inputs) {
        const auto cache = caches_[0].find(name);
        if (cache != caches_[0].end()) {
          const std::string present = "present_" + name.substr(5);
          require(context_->setInputShape(name.c_str(), to_dims(shapes[name])));
          require(context_->setTensorAddress(name.c_str(), cache->second->reserve(0)));
          require(context_->setTensorAddress(present.c_str(), caches_[in_place ? 0 : 1].at(name)->reserve(0)));
          continue;
        }
        const Input& input = inputs.at(name);
        const std::size_t bytes = count_of(input.shape) * size_of(record.dtype);
        void* data = const_cast<void*>(input.data);  // inputs are not written
        if (!host(name)) {
          data = buffer(name).reserve(bytes);
          ILAT_CUDA(cuda_, cudaMemcpyAsync, data, input.data, bytes, cudaMemcpyHostToDevice, stream_);
        }
        require(context_->setInputShape(name.c_str(), to_dims(input.shape)));
        require(context_->setTensorAddress(name.c_str(), data));
      }
      std::vector<std::pair<std::string, std::size_t>> results;
      Outputs outputs;
      for (const auto& [name, record] : engine_->record.outputs) {
        if (name.compare(0, 8, "present_") == 0 && !caches_[0].empty()) continue;
        const trt::Dims dims = context_->getTensorShape(name.c_str());
        Output& output = outputs[name];
        for (std::int32_t i = 0; i < dims.nbDims; ++i) output.shape.push_back(dims.d[i]);
        if (dims.nbDims < 0) fail();
        results.emplace_back(name, count_of(output.shape) * size_of(record.dtype));
        require(context_->setTensorAddress(name.c_str(), buffer(name).reserve(results.back().second)));
      }
      require(context_->enqueueV3(stream_));
      for (const auto& [name, bytes] : results) {
        auto memory = std::make_shared<std::vector<std::byte>>(bytes);
        ILAT_CUDA(cuda_, cudaMemcpyAsync, memory->data(), buffer(name).reserve(bytes), bytes, cudaMemcpyDeviceToHost,
                  stream_);
        outputs[name].data = std::shared_ptr<const void>(memory, memory->data());
      }
      ILAT_CUDA(cuda_, cudaStreamSynchronize, stream_);
      if (!in_place) std::swap(caches_[0], caches_[1]);
      return outputs;
    } catch (const std::exception& error) {
      throw BundleError(cat(engine_->path, ": the graph failed: ", error.what()));
    }
  }

  std::unique_ptr<Graph> with_cache() const override {
    try {
      auto graph = std::make_unique<TensorRtGraph>(engine_);
      for (const auto& [name, record] : engine_->record.inputs) {
        if (name.compare(0, 5, "past_") == 0) graph->bind_cache(name, record);
      }
      return graph;
    } catch (const std::runtime_error& error) {
      throw BundleError(cat(engine_->path, ": the cache cannot be made: ", error.what()));
    }
  }

 private:
  /// One buffer where past_* and present_* are the same memory, so that appending copies nothing; else two.
  void bind_cache(const std::string& name, const TensorRecord& record) {
    const std::size_t bytes = count_of(cache_shape(record)) * size_of(record.dtype);
    for (std::size_t i = 0; i < (engine_->record.in_place() ? 1 : 2); ++i) {
      auto memory = std::make_unique<Buffer>(cuda_);
      ILAT_CUDA(cuda_, cudaMemsetAsync, memory->reserve(bytes), 0, bytes, stream_);
      caches_[i][name] = std::move(memory);
    }
  }
  /// Whether the input is a shape tensor, which TensorRT reads from host memory.
  bool host(const std::string& name) const { return engine_->engine->isShapeInferenceIO(name.c_str()); }
  [[noreturn]] void fail() const { throw std::runtime_error(engine_->runtime->log.last()); }
  void require(bool holds) const {
    if (!holds) fail();
  }
  Buffer& buffer(const std::string& name) const {
    auto& buffer = buffers_[name];
    if (!buffer) buffer = std::make_unique<Buffer>(cuda_);
    return *buffer;
  }

  std::shared_ptr<const Engine> engine_;
  const Cuda& cuda_;
  std::unique_ptr<trt::IExecutionContext> context_;
  cudaStream_t stream_ = nullptr;
  using Buffers = std::map<std::string, std::unique_ptr<Buffer>>;
  mutable std::array<Buffers, 2> caches_;  // what is read, and, where it is not written in place, what is written
  mutable std::int32_t profile_ = 0;
  mutable std::mutex mutex_;
  mutable Buffers buffers_;
};

class TensorRt : public Backend {
 public:
  TensorRt(const std::string& folder, const Manifest& manifest) : manifest_(manifest) {
    const std::string missing = "backend: tensorrt: a library cannot be loaded";
    void* library = open_library({cat("libnvinfer.so.", NV_TENSORRT_MAJOR)}, missing);
    runtime_->cuda = std::make_unique<Cuda>(open_library({"libcudart.so.13", "libcudart.so.12"}, missing));
    const auto create = reinterpret_cast<void* (*)(void*, std::int32_t)>(dlsym(library, "createInferRuntime_INTERNAL"));
    const auto version = reinterpret_cast<std::int32_t (*)()>(dlsym(library, "getInferLibVersion"));
    trt::ILogger* log = &runtime_->log;
    if (create && version) runtime_->runtime.reset(static_cast<trt::IRuntime*>(create(log, NV_TENSORRT_VERSION)));
    if (!runtime_->runtime) throw BackendError("backend: tensorrt cannot be started: " + runtime_->log.last());
    const std::int32_t found = version();
    runtime_->version = cat(found / 10000, ".", found / 100 % 100, ".", found % 100);
    int device = 0, major = 0, minor = 0;
    try {
      const Cuda& cuda = *runtime_->cuda;
      ILAT_CUDA(cuda, cudaGetDevice, &device);
      ILAT_CUDA(cuda, cudaDeviceGetAttribute, &major, cudaDevAttrComputeCapabilityMajor, device);
      ILAT_CUDA(cuda, cudaDeviceGetAttribute, &minor, cudaDevAttrComputeCapabilityMinor, device);
    } catch (const std::runtime_error& error) {
      throw BackendError(cat("backend: tensorrt finds no GPU: ", error.what()));
    }
    runtime_->architecture = cat("sm", major, minor);
    find_engines(tidy_path(folder));
  }

  std::string description() const override {
    return cat("tensorrt ", runtime_->version, " (", runtime_->architecture, ")");
  }

  std::unique_ptr<Graph> load(const std::string& graph) const override {
    auto engine = std::make_shared<Engine>();
    engine->runtime = runtime_;
    engine->record = manifest_.graph(graph);
    const Json& entry = record_.at("engines").at(graph);
    engine->path = folder_ + "/" + entry.at("file").get<std::string>();
    engine->profiles = entry.at("profiles");
    std::ifstream file(engine->path, std::ios::binary | std::ios::ate);
    if (!file) throw BundleError(cat(engine->path, ": cannot be read: ", system_error(errno), "; ", build_));
    if (sha256_of_file(engine->path) != entry.at("sha256")) {
      throw BundleError(cat(engine->path, ": its contents have changed, the sha256 is another; ", build_));
    }
    std::vector<char> data(static_cast<std::size_t>(file.tellg()));
    file.seekg(0).read(data.data(), static_cast<std::streamsize>(data.size()));
    engine->engine.reset(runtime_->runtime->deserializeCudaEngine(data.data(), data.size()));
    if (!engine->engine) throw BundleError(cat(engine->path, ": cannot be loaded: ", runtime_->log.last()));
    for (const Tensors& tensors : {engine->record.inputs, engine->record.outputs}) {
      for (const auto& [name, record] : tensors) {
        if (engine->engine->getTensorIOMode(name.c_str()) != trt::TensorIOMode::kNONE) continue;
        throw BundleError(cat(engine->path, ": ", name, " is in the manifest only"));
      }
    }
    try {
      return std::make_unique<TensorRtGraph>(engine);
    } catch (const std::runtime_error& error) {
      throw BundleError(cat(engine->path, ": cannot be loaded: ", error.what()));
    }
  }

 private:
  /// Which part of the engines' key differs from what is needed here, for people; empty when none does.
  std::string difference(const Json& record) const {
    const std::vector<std::string> targets = record.at("targets");
    const std::string version = record.at("version"), precision = record.at("precision");
    // The library tells three numbers, the record has four.
    if ((version + ".").compare(0, runtime_->version.size() + 1, runtime_->version + ".") != 0)
      return cat("built with tensorrt ", version, ", installed is ", runtime_->version);
    if (std::find(targets.begin(), targets.end(), runtime_->architecture) == targets.end())
      return cat("built for ", repr(targets), ", this GPU is ", runtime_->architecture);
    if (precision != manifest_.compute)
      return cat("built in ", precision, ", the bundle computes in ", manifest_.compute);
    for (const auto& [name, graph] : manifest_.graphs) {
      if (!record.at("engines").contains(name)) return "there is no engine of the graph " + name;
      const Json& entry = record.at("engines").at(name);
      const std::string file = entry.at("file");
      if (file.empty() || file.find('/') != file.npos) return cat("the engine of ", name, " lies in another folder");
      for (const auto& [path, listed] : manifest_.files) {
        if (path == graph.file && entry.at("graph_sha256") != listed.sha256)
          return cat("the engine of ", name, " was built from another ", path);
      }
      if (!entry.at("sha256").is_string() || !entry.at("profiles").is_array())
        throw std::runtime_error(cat("engines.", name, ": sha256 is a text and profiles a list"));
    }
    return "";
  }

  /// Finds the bundle's engines that may be loaded here by their records, engines.json (docs/bundle.md).
  void find_engines(const std::string& bundle) {
    namespace fs = std::filesystem;
    build_ = cat("build them with `ilat-export ", bundle, " --engine tensorrt --out ", bundle, " --force`");
    std::error_code missing;
    std::vector<fs::path> folders;
    for (const auto& item : fs::directory_iterator(bundle + "/engines", missing)) folders.push_back(item.path());
    std::sort(folders.begin(), folders.end());
    std::string differences;
    for (const fs::path& folder : folders) {
      std::ifstream file(folder / "engines.json", std::ios::binary);
      std::ostringstream text;
      text << file.rdbuf();
      if (!file) continue;
      try {
        record_ = parse_json(text.str());
        if (record_.at("format") != "ilat-engines" || record_.at("format_version") != 1)
          throw std::runtime_error("not a record of engines, format version 1");
        if (record_.at("flavour") != "tensorrt") continue;
        const std::string problem = difference(record_);
        folder_ = folder.string();
        if (problem.empty()) return;
        differences += cat(folder_, ": ", problem, "; ");
      } catch (const std::exception& error) {
        throw BundleError(cat((folder / "engines.json").string(), ": ", one_line(error.what())));
      }
    }
    throw BackendError(
        cat("backend: tensorrt: ", differences.empty() ? bundle + " holds no engines of it; " : differences, build_));
  }

  Manifest manifest_;
  std::string folder_, build_;
  Json record_;
  std::shared_ptr<Runtime> runtime_ = std::make_shared<Runtime>();
};

}  // namespace

std::unique_ptr<Backend> make_tensorrt(const Options&, const std::string& folder, const Manifest& manifest) {
  return std::make_unique<TensorRt>(folder, manifest);
}

}  // namespace ilat::detail
