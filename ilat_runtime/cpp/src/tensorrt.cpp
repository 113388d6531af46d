// TensorRT without ONNX Runtime, as on Jetson: runs engines that lie beside the bundle. Compiled where its headers are
// found; its libraries are loaded when it is asked for. Not yet run on a GPU.
#include <NvInfer.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <filesystem>
#include <fstream>
#include <ilat/editor.hpp>
#include <mutex>

#include "backend.hpp"
#include "text.hpp"

namespace ilat::detail {

namespace {

namespace trt = nvinfer1;
using Dims = std::vector<std::int64_t>;

/// The functions of libcudart that are needed.
struct Cuda {
  explicit Cuda(void* library) : library_(library) {}

  template <typename Function, typename... Arguments>
  void operator()(Function*, const char* name, Arguments... arguments) const {
    const auto function = reinterpret_cast<Function*>(dlsym(library_, name));
    const cudaError_t status = function ? function(arguments...) : cudaErrorSharedObjectSymbolNotFound;
    if (status != cudaSuccess)
      throw std::runtime_error(cat(name, " failed with CUDA error ", static_cast<int>(status)));
  }

 private:
  void* library_;
};

#define ILAT_CUDA(cuda, function, ...) (cuda)(&(function), #function, __VA_ARGS__)

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
  std::unique_ptr<trt::ICudaEngine> engine;
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
      for (const auto& [name, record] : engine_->record.inputs) {
        if (cache_.count(name)) continue;
        const auto input = inputs.find(name);
        if (input == inputs.end()) throw std::runtime_error("input " + name + " is missing");
        const std::size_t bytes = count_of(input->second.shape) * size_of(record.dtype);
        void* device = buffer(name).reserve(bytes);
        ILAT_CUDA(cuda_, cudaMemcpyAsync, device, input->second.data, bytes, cudaMemcpyHostToDevice, stream_);
        require(context_->setInputShape(name.c_str(), to_dims(input->second.shape)));
        require(context_->setTensorAddress(name.c_str(), device));
      }
      std::vector<std::pair<std::string, std::size_t>> results;
      Outputs outputs;
      for (const auto& [name, record] : engine_->record.outputs) {
        if (cache_.count(name)) continue;
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
      return outputs;
    } catch (const std::runtime_error& error) {
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
  /// Input and output at the same address: appending to the cache copies nothing.
  void bind_cache(const std::string& name, const TensorRecord& record) {
    const Dims shape = cache_shape(record);
    const std::string present = "present_" + name.substr(5);
    const std::size_t bytes = count_of(shape) * size_of(record.dtype);
    void* device = buffer(name).reserve(bytes);
    ILAT_CUDA(cuda_, cudaMemsetAsync, device, 0, bytes, stream_);
    require(context_->setInputShape(name.c_str(), to_dims(shape)));
    require(context_->setTensorAddress(name.c_str(), device));
    require(context_->setTensorAddress(present.c_str(), device));
    cache_[name] = cache_[present] = true;
  }
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
  std::map<std::string, bool> cache_;
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::unique_ptr<Buffer>> buffers_;
};

class TensorRt : public Backend {
 public:
  TensorRt() : runtime_(std::make_shared<Runtime>()) {
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
  }

  std::string description() const override {
    return cat("tensorrt ", runtime_->version, " (", runtime_->architecture, ")");
  }

  std::unique_ptr<Graph> load(const std::string& folder, const std::string& graph,
                              const Manifest& manifest) const override {
    auto engine = std::make_shared<Engine>();
    engine->runtime = runtime_;
    engine->record = manifest.graph(graph);
    engine->path = engine_path(folder, graph, manifest);
    std::ifstream file(engine->path, std::ios::binary | std::ios::ate);
    if (!file) {
      throw BackendError(cat(engine->path, ": no such engine; make it on this machine with ilat-export --engine"));
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
  /// BUNDLE.engines/GRAPH-SHA256-tensorrt-VERSION-ARCHITECTURE-PRECISION.engine: all that makes an engine valid.
  std::string engine_path(const std::string& folder, const std::string& graph, const Manifest& manifest) const {
    std::string digest;
    for (const auto& [path, record] : manifest.files) {
      if (path == manifest.graph(graph).file) digest = record.sha256.substr(0, 16);
    }
    return cat(tidy_path(folder), ".engines/", graph, "-", digest, "-tensorrt-", runtime_->version, "-",
               runtime_->architecture, "-", manifest.compute, ".engine");
  }

  std::shared_ptr<Runtime> runtime_;
};

}  // namespace

std::unique_ptr<Backend> make_tensorrt(const Options&) { return std::make_unique<TensorRt>(); }

}  // namespace ilat::detail
