// The bundle's manifest (docs/bundle.md), strict and verified; the twin of ilat_runtime/manifest.py.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace ilat::detail {

/// A dimension: a number, or a name where it differs from call to call.
struct Dimension {
  std::int64_t size = -1;
  std::string name;
};

struct TensorRecord {
  std::string dtype;
  std::vector<Dimension> shape;
};

/// Tensors by name, in the order of the manifest.
using Tensors = std::vector<std::pair<std::string, TensorRecord>>;

struct GraphRecord {
  std::string file;
  std::int64_t opset = 0;
  Tensors inputs, outputs;
  bool takes(const std::string& input) const;
  /// Whether past_* and present_* are to be the same memory; older graphs write the cache anew, to other memory.
  bool in_place() const { return opset >= 24; }
};

struct FileRecord {
  std::string sha256;
  std::int64_t bytes = 0;
};

struct CropRule {
  double margin = 1.3;
  double dilation = 0;
};

struct Manifest {
  std::string name, kind, created_with, numbering;
  std::int64_t image_size = 0, factor = 0, codebook_size = 0, condition_vocabulary = 0, latent_channels = 0;
  std::int64_t cache_capacity = 0, layers = 0, heads = 0, head_size = 0;
  std::optional<std::vector<std::string>> joints;
  std::vector<std::string> layout;
  std::int64_t target_offset = 0, start_condition = 0, start_target = 0, pose = 0;
  std::optional<CropRule> crop;
  std::string compute, weights;
  bool leak_free = false;
  std::vector<std::pair<std::string, GraphRecord>> graphs;
  std::vector<std::pair<std::string, FileRecord>> files;

  std::int64_t grid() const { return image_size / factor; }
  std::int64_t image_tokens() const { return grid() * grid(); }
  bool has_graph(const std::string& name) const;
  const GraphRecord& graph(const std::string& name) const;
  bool has(const std::string& block) const;
  /// Tokens of a block; 0 when the layout lacks it.
  std::int64_t size(const std::string& block) const;
  /// The position of a block's first token.
  std::int64_t start(const std::string& block) const;
  std::int64_t length() const;
};

/// The manifest in `text`, checked in itself; `where` names the file in errors. Throws BundleError.
Manifest parse_manifest(const std::string& text, const std::string& where);

/// Read and check the manifest of a bundle. Throws BundleError.
Manifest load_manifest(const std::string& folder);

/// Check that every file is there, inside the folder, and unchanged. Throws BundleError.
void verify_files(const std::string& folder, const Manifest& manifest);

/// `['B', 16]`
std::string repr(const std::vector<Dimension>& shape);

}  // namespace ilat::detail
