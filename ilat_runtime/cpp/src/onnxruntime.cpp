// ONNX Runtime on the CPU, found when it is needed: one build serves any library new enough.
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <ilat/editor.hpp>
#include <set>

#include "backend.hpp"
#include "text.hpp"

namespace ilat::detail {

namespace {

// The interface asked for, so that libraries older than the headers serve; and the release of the in-place cache.
constexpr int kApi = ORT_API_VERSION < 20 ? ORT_API_VERSION : 20, kInPlace = 25;
constexpr auto kSilent = ORT_LOGGING_LEVEL_FATAL;  // errors come as exceptions; the log would say them twice

/// The library and its environment, which all graphs share.
struct Runtime {
  const OrtApi* api = nullptr;
  std::string description;
  OrtEnv* env = nullptr;
  OrtMemoryInfo* memory = nullptr;

  Runtime() = default;
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;
  ~Runtime() {
    if (memory) api->ReleaseMemoryInfo(memory);
    if (env) api->ReleaseEnv(env);
  }

  /// Throws std::runtime_error for a status that is an error.
  void check(OrtStatus* status) const {
    if (!status) return;
    const std::string message = one_line(api->GetErrorMessage(status));
    api->ReleaseStatus(status);
    throw std::runtime_error(message);
  }

  using Value = std::unique_ptr<OrtValue, void (*)(OrtValue*)>;
  Value tensor(const void* data, const std::vector<std::int64_t>& shape, const std::string& dtype) const {
    static const std::map<std::string, ONNXTensorElementDataType> types = {
        {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},     {"bool", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL},
        {"int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},     {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},
        {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16}, {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}};
    OrtValue* value = nullptr;
    // The interface takes no constant memory; inputs are not written.
    check(api->CreateTensorWithDataAsOrtValue(memory, const_cast<void*>(data), count_of(shape) * size_of(dtype),
                                              shape.data(), shape.size(), types.at(dtype), &value));
    return {value, api->ReleaseValue};
  }
};

std::string dtype_name(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8: return "uint8";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL: return "bool";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return "int32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return "int64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return "float16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return "float32";
    default: return cat("type ", static_cast<int>(type));
  }
}

/// A session of a graph.
struct Session {
  std::shared_ptr<const Runtime> runtime;
  std::string path;
  GraphRecord record;
  OrtSession* session = nullptr;

  Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() {
    if (session) runtime->api->ReleaseSession(session);
  }
};

class OnnxGraph : public Graph {
 public:
  explicit OnnxGraph(std::shared_ptr<const Session> session) : session_(std::move(session)) {}

  Outputs run(const Inputs& inputs) const override {
    const Runtime& runtime = *session_->runtime;
    try {
      std::vector<Runtime::Value> tensors;
      std::vector<const char*> input_names, output_names;
      std::vector<const OrtValue*> input_values;
      std::vector<OrtValue*> output_values;
      for (const auto& [name, record] : session_->record.inputs) {
        const auto input = inputs.find(name);
        const auto cache = caches_[0].find(name);
        if (cache != caches_[0].end()) {
          input_values.push_back(cache->second.value.get());
        } else if (input != inputs.end()) {
          tensors.push_back(runtime.tensor(input->second.data, input->second.shape, record.dtype));
          input_values.push_back(tensors.back().get());
        } else {
          throw std::runtime_error("input " + name + " is missing");
        }
        input_names.push_back(name.c_str());
      }
      for (const auto& [name, record] : session_->record.outputs) {
        const Caches& to = caches_[session_->record.in_place() ? 0 : 1];
        const auto cache = to.find(past(name));
        output_names.push_back(name.c_str());
        output_values.push_back(cache == to.end() ? nullptr : cache->second.value.get());
      }
      runtime.check(runtime.api->Run(session_->session, nullptr, input_names.data(), input_values.data(),
                                     input_names.size(), output_names.data(), output_names.size(),
                                     output_values.data()));
      Outputs outputs;
      for (std::size_t i = 0; i < output_names.size(); ++i) {
        if (caches_[0].count(past(output_names[i])) == 0) outputs.emplace(output_names[i], take(output_values[i]));
      }
      if (!session_->record.in_place()) std::swap(caches_[0], caches_[1]);
      return outputs;
    } catch (const std::runtime_error& error) {
      throw BundleError(cat(session_->path, ": the graph failed: ", one_line(error.what())));
    }
  }

  std::unique_ptr<Graph> with_cache() const override {
    auto graph = std::make_unique<OnnxGraph>(session_);
    for (const auto& [name, record] : session_->record.inputs) {
      if (name.compare(0, 5, "past_") != 0) continue;
      const auto shape = cache_shape(record);
      // One where input and output are the same address, so that appending to it copies nothing; else two.
      for (std::size_t i = 0; i < (session_->record.in_place() ? 1 : 2); ++i) {
        std::vector<std::byte> memory(count_of(shape) * size_of(record.dtype));
        auto value = session_->runtime->tensor(memory.data(), shape, record.dtype);
        graph->caches_[i].emplace(name, Cache{std::move(memory), std::move(value)});
      }
    }
    return graph;
  }

 private:
  struct Cache {
    std::vector<std::byte> memory;
    Runtime::Value value;
  };
  using Caches = std::map<std::string, Cache>;

  /// The input of a cache's output.
  static std::string past(const std::string& name) {
    return name.compare(0, 8, "present_") == 0 ? "past_" + name.substr(8) : "";
  }

  Output take(OrtValue* value) const {
    const Runtime& runtime = *session_->runtime;
    const std::shared_ptr<OrtValue> owner(
        value, [session = session_](OrtValue* v) { session->runtime->api->ReleaseValue(v); });
    OrtTensorTypeAndShapeInfo* info = nullptr;
    void* data = nullptr;
    std::size_t rank = 0;
    runtime.check(runtime.api->GetTensorMutableData(value, &data));
    runtime.check(runtime.api->GetTensorTypeAndShape(value, &info));
    const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> guard(
        info, runtime.api->ReleaseTensorTypeAndShapeInfo);
    runtime.check(runtime.api->GetDimensionsCount(info, &rank));
    Output output{std::shared_ptr<const void>(owner, data), std::vector<std::int64_t>(rank)};
    runtime.check(runtime.api->GetDimensions(info, output.shape.data(), rank));
    return output;
  }

  std::shared_ptr<const Session> session_;
  mutable std::array<Caches, 2> caches_;  // what is read, and, where it is not written in place, what is written
};

/// What of a session's inputs or outputs contradicts the manifest; empty when nothing does.
std::string difference(const Session& s, bool input) {
  const OrtApi& api = *s.runtime->api;
  const auto check = [&](OrtStatus* status) { s.runtime->check(status); };
  const Tensors& tensors = input ? s.record.inputs : s.record.outputs;
  std::size_t count = 0;
  check((input ? api.SessionGetInputCount : api.SessionGetOutputCount)(s.session, &count));
  OrtAllocator* allocator = nullptr;
  check(api.GetAllocatorWithDefaultOptions(&allocator));
  std::map<std::string, std::pair<std::string, std::vector<Dimension>>> nodes;
  for (std::size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    check((input ? api.SessionGetInputName : api.SessionGetOutputName)(s.session, i, allocator, &name));
    auto& [dtype, shape] = nodes[name];
    check(api.AllocatorFree(allocator, name));
    OrtTypeInfo* type = nullptr;
    check((input ? api.SessionGetInputTypeInfo : api.SessionGetOutputTypeInfo)(s.session, i, &type));
    const std::unique_ptr<OrtTypeInfo, void (*)(OrtTypeInfo*)> guard(type, api.ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* info = nullptr;
    ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    std::size_t rank = 0;
    check(api.CastTypeInfoToTensorInfo(type, &info));
    if (!info) return cat("has no tensor as ", input ? "input " : "output ", i);
    check(api.GetTensorElementType(info, &element));
    check(api.GetDimensionsCount(info, &rank));
    std::vector<std::int64_t> sizes(rank);
    std::vector<const char*> symbols(rank);
    check(api.GetDimensions(info, sizes.data(), rank));
    check(api.GetSymbolicDimensions(info, symbols.data(), rank));
    dtype = dtype_name(element);
    for (std::size_t d = 0; d < rank; ++d) shape.push_back({sizes[d], sizes[d] >= 0 ? "" : symbols[d]});
  }
  std::map<std::string, TensorRecord> wanted(tensors.begin(), tensors.end());
  std::set<std::string> names;
  for (const auto& [name, node] : nodes) names.insert(name);
  for (const auto& [name, tensor] : wanted) names.insert(name);
  for (const auto& name : names) {
    if (nodes.count(name) != wanted.count(name))
      return name + " is in the " + (nodes.count(name) ? "graph" : "manifest") + " only";
  }
  for (const auto& [name, tensor] : wanted) {
    const auto& [dtype, shape] = nodes[name];
    // A dimension without a number may be inferred less exactly than the manifest says.
    const bool same = std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end(),
                                 [](const Dimension& a, const Dimension& b) { return a.size < 0 || a.size == b.size; });
    if (dtype != tensor.dtype || !same) {
      return cat(name, " is ", dtype, " ", repr(shape), " in the graph, ", tensor.dtype, " ", repr(tensor.shape),
                 " in the manifest");
    }
  }
  return "";
}

class OnnxRuntime : public Backend {
 public:
  OnnxRuntime(const Options& options, const std::string& folder, const Manifest& manifest)
      : threads_(options.threads), folder_(tidy_path(folder)), manifest_(manifest) {
    const char* environment = std::getenv("ILAT_ONNXRUNTIME");
    std::vector<std::string> names = {"libonnxruntime.so.1", "libonnxruntime.so"};
    if (environment && *environment) names = {environment};
    if (!options.library.empty()) names = {options.library};
    void* library = open_library(names,
                                 "backend: onnxruntime: the library cannot be loaded, name its file in "
                                 "$ILAT_ONNXRUNTIME");
    const auto get_base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
    if (!get_base) throw BackendError(cat("backend: onnxruntime: ", names[0], " is not ONNX Runtime"));
    const std::string version = get_base()->GetVersionString();
    runtime_->api = get_base()->GetApi(kApi);
    if (!runtime_->api) {
      throw BackendError(cat("backend: onnxruntime ", version, " is too old, 1.", kApi, " or newer is needed"));
    }
    int major = 0, minor = 0;
    std::sscanf(version.c_str(), "%d.%d", &major, &minor);
    in_place_ = major > 1 || minor >= kInPlace;
    runtime_->description = cat("onnxruntime ", version, " (CPU)");
    try {
      runtime_->check(runtime_->api->CreateEnv(kSilent, "ilat", &runtime_->env));
      runtime_->check(runtime_->api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &runtime_->memory));
    } catch (const std::runtime_error& error) {
      throw BackendError(cat("backend: onnxruntime cannot be started: ", error.what()));
    }
  }

  std::string description() const override { return runtime_->description; }

  std::unique_ptr<Graph> load(const std::string& graph) const override {
    const OrtApi& api = *runtime_->api;
    auto session = std::make_shared<Session>();
    session->runtime = runtime_;
    session->record = manifest_.graph(graph);
    session->path = folder_ + "/" + session->record.file;
    if (session->record.in_place() && !in_place_) {
      throw BackendError(cat("backend: ", description(), " is too old, the in-place cache (opset 24) needs 1.",
                             kInPlace,
                             " or newer; it runs the bundles that `ilat-export BUNDLE --kv-cache concat` writes"));
    }
    std::string problem;
    try {
      OrtSessionOptions* options = nullptr;
      runtime_->check(api.CreateSessionOptions(&options));
      const std::unique_ptr<OrtSessionOptions, void (*)(OrtSessionOptions*)> guard(options, api.ReleaseSessionOptions);
      runtime_->check(api.SetSessionLogSeverityLevel(options, kSilent));
      // Threads that wait by spinning take the time of others, as ilat_runtime/backends/onnxruntime.py measured.
      runtime_->check(api.AddSessionConfigEntry(options, "session.intra_op.allow_spinning", "0"));
      if (threads_) runtime_->check(api.SetIntraOpNumThreads(options, *threads_));
      runtime_->check(api.CreateSession(runtime_->env, session->path.c_str(), options, &session->session));
    } catch (const std::runtime_error& error) {
      throw BundleError(cat(session->path, ": ", description(), " cannot load the graph: ", error.what()));
    }
    for (const bool input : {true, false}) {
      problem = difference(*session, input);
      if (!problem.empty()) throw BundleError(cat(session->path, ": ", input ? "input " : "output ", problem));
    }
    return std::make_unique<OnnxGraph>(session);
  }

 private:
  std::optional<int> threads_;
  std::string folder_;
  Manifest manifest_;
  bool in_place_ = false;
  std::shared_ptr<Runtime> runtime_ = std::make_shared<Runtime>();
};

}  // namespace

std::unique_ptr<Backend> make_onnxruntime(const Options& options, const std::string& folder, const Manifest& manifest) {
  return std::make_unique<OnnxRuntime>(options, folder, manifest);
}

}  // namespace ilat::detail
