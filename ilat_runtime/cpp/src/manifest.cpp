#include "manifest.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <ilat/editor.hpp>
#include <set>

#include "sha256.hpp"
#include "text.hpp"

namespace ilat::detail {

namespace {

constexpr std::int64_t kVersion = 1, kMost = std::int64_t{1} << 31, kMostLayers = 1000;
constexpr std::size_t kMaxBytes = 16U << 20;
const std::string kFileName = "manifest.json", kSketch = "sketch";
using Names = std::vector<std::string>;
const Names kBlocks = {"source_pose", "condition", "pose", "target"};

/// One problem: the place of a key, and what is wrong with it.
struct Problem {
  std::string place, message;
};
using Problems = std::vector<Problem>;

std::string found(const Json& value) {
  const std::string text = repr(value);
  return ", found " + (characters(text) <= 60 ? text : head(text, 57) + "...");
}

std::string one_of(const Names& names) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == names.size() ? " or " : ", ") + repr(names[i]);
  }
  return "Input should be " + text;
}

bool is_identifier(const std::string& text) {
  const auto letter = [](char c) { return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  return !text.empty() && letter(text[0]) &&
         std::all_of(text.begin(), text.end(), [&](char c) { return letter(c) || (c >= '0' && c <= '9'); });
}

/// Whether a path lies below the bundle's folder, with forward slashes on every system.
bool is_relative(const std::string& path) {
  if (path.empty() || path == "." || path[0] == '/' || tidy_path(path) != path) return false;
  for (const char c : path) {
    if (std::strchr("\\:*?\"<>|\x7f", c) || static_cast<unsigned char>(c) < 0x20) return false;
  }
  const std::string parts = "/" + path + "/";
  return parts.find("/../") == parts.npos;
}

const char* const kPathExpected =
    "Value error, expected a path below the bundle's folder, with forward slashes and no '..'";

/// Reads the fields of a JSON object, in the order in which problems are to be told; what is wrong is collected.
class Fields {
 public:
  Fields(const Json& value, std::string place, Problems& problems)
      : value_(value), place_(std::move(place)), problems_(problems), is_object_(value.is_object()) {
    if (!is_object_) add("", "Input should be an object" + found(value));
  }

  void integer(const char* key, std::int64_t& out, std::int64_t least, std::int64_t below = kMost) {
    if (const Json* value = take(key)) check_integer(place(key), *value, out, least, below);
  }

  void exactly(const char* key, std::int64_t expected) {
    const Json* value = take(key);
    if (value && *value != expected) add(key, cat("Input should be ", expected, found(*value)));
  }

  void number(const char* key, double& out, double least, bool above, double most) {
    const Json* value = take(key);
    if (!value) return;
    if (!value->is_number()) return add(key, "Input should be a valid number" + found(*value));
    out = value->get<double>();
    if (above ? out <= least : out < least) {
      const char* relation = above ? "Input should be greater than " : "Input should be greater than or equal to ";
      return add(key, cat(relation, least, found(*value)));
    }
    if (out > most) add(key, cat("Input should be less than or equal to ", most, found(*value)));
  }

  void boolean(const char* key, bool& out) {
    const Json* value = take(key);
    if (value && !value->is_boolean()) add(key, "Input should be a valid boolean" + found(*value));
    if (value && value->is_boolean()) out = value->get<bool>();
  }

  void text(const char* key, std::string& out) {
    if (const Json* value = take(key)) check_text(place(key), *value, out);
  }

  void path(const char* key, std::string& out) {
    if (const Json* value = take(key)) check_string(place(key), *value, out, is_relative, kPathExpected);
  }

  void digest(const char* key, std::string& out) {
    const auto is_digest = [](const std::string& text) {
      return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == text.npos;
    };
    const char* expected = "String should match pattern '^[0-9a-f]{64}$'";
    if (const Json* value = take(key)) check_string(place(key), *value, out, is_digest, expected);
  }

  void choice(const char* key, std::string& out, const Names& choices) {
    if (const Json* value = take(key)) check_choice(place(key), *value, out, choices);
  }

  void texts(const char* key, Names& out, const Names& choices = {}) {
    const Json* value = take(key);
    if (value && !value->is_array()) return add(key, "Input should be a valid array" + found(*value));
    for (std::size_t i = 0; value && i < value->size(); ++i) {
      const std::string where = cat(place(key), ".", i);
      out.emplace_back();
      if (choices.empty()) check_text(where, value->at(i), out.back());
      if (!choices.empty()) check_choice(where, value->at(i), out.back(), choices);
    }
  }

  void shape(const char* key, std::vector<Dimension>& out) {
    const Json* value = take(key);
    if (value && !value->is_array()) return add(key, "Input should be a valid array" + found(*value));
    for (std::size_t i = 0; value && i < value->size(); ++i) {
      const Json& item = value->at(i);
      const std::string where = cat(place(key), ".", i);
      out.emplace_back();
      if (item.is_string() && is_identifier(item.get<std::string>())) {
        out.back().name = item.get<std::string>();
      } else if (!item.is_number_integer() || item < 1) {
        check_integer(where, item, out.back().size, 1, 0);
        const bool text = item.is_string();
        add_at(where,
               (text ? "String should match pattern '^[A-Za-z_][A-Za-z0-9_]*$'" : "Input should be a valid string") +
                   found(item));
      } else {
        out.back().size = item.get<std::int64_t>();
      }
    }
  }

  /// An object of its own.
  template <typename Read>
  void object(const char* key, const Read& read) {
    const Json* value = take(key);
    if (!value) return;
    Fields fields(*value, place(key), problems_);
    read(fields);
    fields.finish();
  }

  /// An object of anything.
  void anything(const char* key) {
    const Json* value = take(key);
    if (value && !value->is_object()) add(key, "Input should be an object" + found(*value));
  }

  /// An object of objects by name; `read` takes a name and its fields.
  template <typename Read>
  void objects(const char* key, bool paths, const Read& read) {
    const Json* value = take(key);
    if (value && !value->is_object()) return add(key, "Input should be an object" + found(*value));
    for (std::size_t i = 0; value && i < value->size(); ++i) {
      const auto item = std::next(value->begin(), static_cast<std::ptrdiff_t>(i));
      const std::string where = place(key) + "." + item.key();
      if (paths && !is_relative(item.key())) add_at(where, kPathExpected + found(Json(item.key())));
      Fields fields(item.value(), where, problems_);
      read(item.key(), fields);
      fields.finish();
    }
  }

  /// Whether the key's value is null, which is then read.
  bool null(const char* key) {
    const bool is_null = is_object_ && value_.contains(key) && value_.at(key).is_null();
    if (is_null) known_.emplace_back(key);
    return is_null;
  }

  /// Whether the key, which may be missing, is missing or null.
  bool absent(const char* key) {
    known_.emplace_back(key);
    return null(key) || (is_object_ && !value_.contains(key));
  }

  /// To be called last: whatever was not read is unknown.
  void finish() {
    if (!is_object_) return;
    for (const auto& [key, item] : value_.items()) {
      if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
      const std::string near = close_match(key, known_);
      add(key, "unknown key" + (near.empty() ? "" : ", did you mean " + repr(near) + "?"));
    }
  }

 private:
  std::string place(const std::string& key) const {
    return place_.empty() ? key : key.empty() ? place_ : place_ + "." + key;
  }
  void add(const std::string& key, const std::string& message) { add_at(place(key), message); }
  void add_at(const std::string& place, const std::string& message) { problems_.push_back({place, message}); }

  const Json* take(const char* key) {
    known_.emplace_back(key);
    if (!is_object_) return nullptr;
    const auto item = value_.find(key);
    if (item == value_.end()) add(key, "this key is missing");
    return item == value_.end() ? nullptr : &*item;
  }

  void check_integer(const std::string& where, const Json& value, std::int64_t& out, std::int64_t least,
                     std::int64_t below) {
    if (!value.is_number_integer()) return add_at(where, "Input should be a valid integer" + found(value));
    const bool huge = value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX;
    out = huge ? INT64_MAX : value.get<std::int64_t>();
    if (out < least) return add_at(where, cat("Input should be greater than or equal to ", least, found(value)));
    if (below > 0 && out >= below) {
      const bool most = below == kMostLayers + 1;  // declared as "at most 1000"
      add_at(where, cat(most ? "Input should be less than or equal to " : "Input should be less than ",
                        most ? below - 1 : below, found(value)));
    }
  }

  void check_string(const std::string& where, const Json& value, std::string& out,
                    const std::function<bool(const std::string&)>& holds, const char* expected) {
    if (!value.is_string()) return add_at(where, "Input should be a valid string" + found(value));
    out = value.get<std::string>();
    if (!holds(out)) add_at(where, expected + found(value));
  }

  void check_text(const std::string& where, const Json& value, std::string& out) {
    const auto any = [](const std::string& text) { return !text.empty(); };
    check_string(where, value, out, any, "String should have at least 1 character");
  }

  void check_choice(const std::string& where, const Json& value, std::string& out, const Names& choices) {
    if (!value.is_string() || std::find(choices.begin(), choices.end(), value.get<std::string>()) == choices.end()) {
      return add_at(where, one_of(choices) + found(value));
    }
    out = value.get<std::string>();
  }

  const Json& value_;
  std::string place_;
  Problems& problems_;
  bool is_object_;
  Names known_;
};

void read_tensors(Fields& graph, const char* key, Tensors& out) {
  graph.objects(key, false, [&](const std::string& name, Fields& fields) {
    TensorRecord tensor;
    fields.choice("dtype", tensor.dtype, {"uint8", "bool", "int32", "int64", "float16", "float32"});
    fields.shape("shape", tensor.shape);
    out.emplace_back(name, tensor);
  });
}

Manifest read_fields(const Json& json, Problems& problems) {
  Manifest m;
  std::string ignored;
  Fields top(json, "", problems);
  top.choice("format", ignored, {"ilat-bundle"});
  top.exactly("format_version", kVersion);
  top.text("name", m.name);
  top.choice("kind", m.kind, {"pose", "sketch", "none"});
  top.text("created_with", m.created_with);
  top.integer("image_size", m.image_size, 1);
  top.integer("factor", m.factor, 1);
  top.integer("codebook_size", m.codebook_size, 1);
  top.integer("condition_vocabulary", m.condition_vocabulary, 0);
  top.integer("latent_channels", m.latent_channels, 1);
  if (!top.null("joints")) top.texts("joints", m.joints.emplace());
  top.text("numbering", m.numbering);
  top.texts("layout", m.layout, kBlocks);
  top.integer("cache_capacity", m.cache_capacity, 1);
  top.integer("layers", m.layers, 1, kMostLayers + 1);
  top.integer("heads", m.heads, 1);
  top.integer("head_size", m.head_size, 1);
  top.object("vocabulary", [&](Fields& fields) {
    fields.integer("target_offset", m.target_offset, 0);
    fields.integer("start_condition", m.start_condition, 0);
    fields.integer("start_target", m.start_target, 0);
    fields.integer("pose", m.pose, 0);
  });
  if (!top.null("crop")) {
    top.object("crop", [&, &rule = m.crop.emplace()](Fields& fields) {
      fields.number("margin", rule.margin, 1, false, 100);
      fields.number("dilation", rule.dilation, 0, true, 1);
    });
  }
  top.object("precision", [&](Fields& fields) {
    fields.choice("compute", m.compute, {"float32", "float16"});
    fields.choice("weights", m.weights, {"float32", "float16", "int8", "int4"});
  });
  top.boolean("leak_free", m.leak_free);
  top.object("graphs", [&](Fields& fields) {
    for (const char* name : {"encoder", "transformer", "decoder", "sketch"}) {
      if (name == kSketch && fields.absent(name)) continue;
      GraphRecord graph;
      fields.object(name, [&](Fields& inner) {
        inner.path("file", graph.file);
        inner.integer("opset", graph.opset, 1);
        read_tensors(inner, "inputs", graph.inputs);
        read_tensors(inner, "outputs", graph.outputs);
      });
      m.graphs.emplace_back(name, graph);
    }
  });
  top.objects("files", true, [&](const std::string& path, Fields& fields) {
    FileRecord record;
    fields.digest("sha256", record.sha256);
    fields.integer("bytes", record.bytes, 0, 0);
    m.files.emplace_back(path, record);
  });
  top.anything("verification");
  top.object("licence", [&](Fields& fields) {
    fields.text("weights", ignored);
    fields.text("data", ignored);
  });
  top.anything("provenance");
  top.finish();
  return m;
}

/// What a bundle's graphs take and give, as in docs/bundle.md; `*` stands for what follows, once for each layer.
struct Signature {
  const char *inputs, *outputs;
};
const std::map<std::string, Signature> kSignatures = {
    {"encoder",
     {"image uint8 B h w 3; mask uint8 B h w; poses float32 B P 13 3; radius float32 B; sketch uint8 B h w",
      "latent float32 B C g g; tokens int64 B n; token_mask bool B n; edit_mask uint8 B h w; condition int64 B n"}},
    {"transformer",
     {"tokens int64 B q; positions int64 B q; query_segment int32 B q; slot_segment int32 B T; write_index int64 B; "
      "top_k int64 1; temperature float32 B; uniform float32 B u v; landmarks float32 B q 3; "
      "past_key_* compute B H T d; past_value_* compute B H T d",
      "next_token int64 B q; log_probability float32 B q; "
      "present_key_* compute B H T d; present_value_* compute B H T d"}},
    {"decoder",
     {"latent float32 B C g g; tokens int64 B n; token_mask bool B n; image uint8 B h w 3; edit_mask uint8 B h w; "
      "blend bool 1",
      "edited uint8 B h w 3"}},
    {"sketch", {"image uint8 B h w 3", "sketch uint8 B h w"}}};

/// The tensors of a signature with this bundle's numbers; those of poses and sketches only where there are any.
Tensors expected_tensors(const Manifest& m, const char* signature) {
  const std::map<std::string, std::int64_t> sizes = {{"C", m.latent_channels}, {"g", m.grid()}, {"n", m.image_tokens()},
                                                     {"T", m.cache_capacity},  {"H", m.heads},  {"d", m.head_size}};
  Tensors result, cache;
  std::istringstream list(signature);
  for (std::string entry, word; std::getline(list, entry, ';');) {
    std::istringstream words(entry);
    std::string name;
    TensorRecord tensor;
    words >> name >> tensor.dtype;
    if (tensor.dtype == "compute") tensor.dtype = m.compute;
    while (words >> word) {
      const auto size = sizes.find(word);
      const bool digits = std::isdigit(static_cast<unsigned char>(word[0])) != 0;
      const bool fixed = digits || size != sizes.end();
      tensor.shape.push_back({digits ? std::stoll(word) : fixed ? size->second : -1, fixed ? "" : word});
    }
    if ((name == "poses" || name == "radius") && m.kind != "pose") continue;
    if ((name == "sketch" || name == "condition") && m.kind != "sketch") continue;
    if (name == "landmarks" && !m.has("pose") && !m.has("source_pose")) continue;
    (name.back() == '*' ? cache : result).emplace_back(name, tensor);
  }
  for (std::int64_t layer = 0; !cache.empty() && layer < m.layers; ++layer) {
    for (const auto& [name, tensor] : cache) result.emplace_back(cat(name.substr(0, name.size() - 1), layer), tensor);
  }
  return result;
}

const TensorRecord* find(const Tensors& tensors, const std::string& name) {
  const auto item =
      std::find_if(tensors.begin(), tensors.end(), [&](const auto& entry) { return entry.first == name; });
  return item == tensors.end() ? nullptr : &item->second;
}

/// The first tensor that differs, as "name: what is wrong"; empty when there is none.
std::string difference(const Tensors& expected, const Tensors& found) {
  for (const auto& [name, tensor] : expected) {
    if (!find(found, name)) return name + ": is missing";
  }
  for (const auto& [name, tensor] : found) {
    const TensorRecord* wanted = find(expected, name);
    if (!wanted) return name + ": is not an input or output that this runtime knows";
    const bool same = std::equal(tensor.shape.begin(), tensor.shape.end(), wanted->shape.begin(), wanted->shape.end(),
                                 [](const Dimension& a, const Dimension& b) {
                                   return a.name.empty() == b.name.empty() && (!a.name.empty() || a.size == b.size);
                                 });
    if (tensor.dtype != wanted->dtype || !same) {
      return cat(name, ": is ", tensor.dtype, " ", repr(tensor.shape), ", expected ", wanted->dtype, " ",
                 repr(wanted->shape));
    }
  }
  return "";
}

/// Throws a BundleError that names the first key whose value contradicts the others.
void check(const Manifest& m, const std::string& where) {
  const auto require = [&](bool holds, const std::string& key, const std::string& expectation) {
    if (!holds) throw BundleError(cat(where, ": ", key, ": ", expectation));
  };
  require(m.image_size % m.factor == 0, "factor", cat(m.factor, " does not divide image_size ", m.image_size));
  Names blocks = m.layout, needed = {"target"};
  std::sort(blocks.begin(), blocks.end());
  blocks.erase(std::unique(blocks.begin(), blocks.end()), blocks.end());
  const bool posed = m.kind == "pose", distinct = blocks.size() == m.layout.size();
  if (posed) blocks.erase(std::remove(blocks.begin(), blocks.end(), "source_pose"), blocks.end());
  if (posed) needed = {"condition", "pose", "target"};
  if (m.kind == "sketch") needed = {"condition", "target"};
  const std::string kind = repr(m.kind);
  require(blocks == needed, "layout", cat(repr(m.layout), ", expected the blocks ", repr(needed), " for kind ", kind));
  const Names ours(joints.begin(), joints.end());
  if (posed) {
    require(m.joints == ours, "joints", cat("expected ", repr(ours), " for kind 'pose'"));
    require(m.crop.has_value(), "crop", "kind 'pose' needs margin and dilation");
  } else {
    require(!m.joints, "joints", cat("expected null for kind ", kind));
  }
  const Names numberings = {"local", "released", "vanilla"};
  require(std::find(numberings.begin(), numberings.end(), m.numbering) != numberings.end(), "numbering",
          cat(repr(m.numbering), ", expected one of ", repr(numberings)));
  const auto tuple = [](const std::string& list) { return "(" + list.substr(1, list.size() - 2) + ")"; };
  require(distinct, "layout",
          cat("blocks ", tuple(repr(m.layout)), " must be distinct ones of ", tuple(repr(kBlocks)),
              " and include 'target'"));
  // Beyond this the number of tokens would not fit.
  const bool countable = m.grid() < std::int64_t{1} << 30;
  require(countable && m.cache_capacity >= m.length(), "cache_capacity",
          cat(m.cache_capacity, " is too small for the layout's ", countable ? cat(m.length()) : "many", " tokens"));
  const std::int64_t end = std::max(m.target_offset + m.codebook_size, m.condition_vocabulary);
  // An offset of 0 is a vocabulary that condition and target share.
  require(m.target_offset == 0 || m.target_offset == m.condition_vocabulary, "vocabulary.target_offset",
          cat(m.target_offset, ", expected condition_vocabulary ", m.condition_vocabulary, ", or 0 if it is shared"));
  const std::vector<std::pair<std::string, std::int64_t>> special = {
      {"start_condition", m.start_condition}, {"start_target", m.start_target}, {"pose", m.pose}};
  for (const auto& [key, value] : special) {
    require(value >= end, "vocabulary." + key, cat(value, " is the id of an image token, expected at least ", end));
    const auto same =
        std::count_if(special.begin(), special.end(), [v = value](const auto& s) { return s.second == v; });
    require(same == 1, "vocabulary." + key, cat(value, " is used twice"));
  }
  const bool sketched = m.kind == kSketch;
  require(m.has_graph(kSketch) == sketched, "graphs.sketch",
          cat("is ", sketched ? "missing" : "not a graph", " for kind ", kind));
  for (const auto& [name, graph] : m.graphs) {
    const auto listed = [&file = graph.file](const auto& entry) { return entry.first == file; };
    require(std::any_of(m.files.begin(), m.files.end(), listed), cat("graphs.", name, ".file"),
            cat(repr(graph.file), " is not listed under 'files'"));
    const Signature& wanted = kSignatures.at(name);
    const std::pair<const char*, std::string> problems[] = {
        {".inputs.", difference(expected_tensors(m, wanted.inputs), graph.inputs)},
        {".outputs.", difference(expected_tensors(m, wanted.outputs), graph.outputs)}};
    for (const auto& [part, problem] : problems) {
      if (!problem.empty()) throw BundleError(cat(where, ": graphs.", name, part, problem));
    }
  }
  for (const auto& [path, record] : m.files) require(path != kFileName, "files", repr(path) + " cannot list itself");
}

}  // namespace

bool GraphRecord::takes(const std::string& input) const { return find(inputs, input) != nullptr; }

bool Manifest::has_graph(const std::string& wanted) const {
  return std::any_of(graphs.begin(), graphs.end(), [&](const auto& g) { return g.first == wanted; });
}

const GraphRecord& Manifest::graph(const std::string& wanted) const {
  return std::find_if(graphs.begin(), graphs.end(), [&](const auto& g) { return g.first == wanted; })->second;
}

bool Manifest::has(const std::string& block) const {
  return std::find(layout.begin(), layout.end(), block) != layout.end();
}

std::int64_t Manifest::size(const std::string& block) const {
  if (!has(block)) return 0;
  if (block == "condition" || block == "target") return image_tokens() + 1;
  return joints ? static_cast<std::int64_t>(joints->size()) : 0;
}

std::int64_t Manifest::start(const std::string& block) const {
  std::int64_t position = 0;
  for (const auto& name : layout) {
    if (name == block) break;
    position += size(name);
  }
  return position;
}

std::int64_t Manifest::length() const {
  std::int64_t total = 0;
  for (const auto& block : layout) total += size(block);
  return total;
}

std::string repr(const std::vector<Dimension>& shape) {
  Json list = Json::array();
  for (const auto& d : shape) list.push_back(d.name.empty() ? Json(d.size) : Json(d.name));
  return repr(list);
}

Manifest parse_manifest(const std::string& text, const std::string& where) {
  Json json;
  try {
    json = parse_json(text);
  } catch (const std::length_error& error) {
    throw BundleError(cat(where, ": not a manifest: ", error.what()));
  } catch (const std::exception& error) {
    throw BundleError(cat(where, ": not valid JSON: ", error.what()));
  }
  if (!json.is_object() || json.value("format", Json()) != "ilat-bundle") {
    throw BundleError(where + ": format: not a bundle's manifest, expected \"format\": \"ilat-bundle\"");
  }
  if (!json.contains("format_version")) throw BundleError(where + ": format_version: this key is missing");
  const Json& version = json["format_version"];
  if (version.is_number_integer() && version > kVersion) {
    throw BundleError(cat(where, ": format_version: the bundle has version ", version.dump(), ", this runtime (ilat ",
                          ilat::version(), ") reads version ", kVersion, "; update ilat"));
  }
  Problems problems;
  Manifest manifest = read_fields(json, problems);
  if (!problems.empty()) {
    const std::string more = problems.size() > 1 ? cat(" (and ", problems.size() - 1, " more)") : "";
    throw BundleError(cat(where, ": ", problems[0].place, ": ", problems[0].message, more));
  }
  check(manifest, where);
  return manifest;
}

Manifest load_manifest(const std::string& folder) {
  const std::string shown = tidy_path(folder), path = shown + "/" + kFileName;
  std::error_code ignored;
  if (!std::filesystem::is_directory(shown, ignored)) {
    throw BundleError(cat(shown, ": no such bundle, expected a folder with ", kFileName));
  }
  if (!std::filesystem::is_regular_file(path, ignored)) {
    throw BundleError(cat(path, ": missing, a bundle is a folder with ", kFileName));
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxBytes + 1, '\0');
  if (file) file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.eof() && !file) throw BundleError(cat(path, ": cannot be read: ", system_error(errno)));
  text.resize(static_cast<std::size_t>(file.gcount()));
  if (text.size() > kMaxBytes) throw BundleError(cat(path, ": larger than ", kMaxBytes >> 20, " MB, not a manifest"));
  return parse_manifest(text, path);
}

void verify_files(const std::string& folder, const Manifest& manifest) {
  namespace fs = std::filesystem;
  const std::string root = tidy_path(folder);
  std::error_code failed;
  const std::string inside = fs::weakly_canonical(root, failed).string() + "/";
  for (const auto& [name, record] : manifest.files) {
    const std::string path = cat(root, "/", name), key = cat(kFileName, ": files[\"", name, "\"]");
    if (fs::weakly_canonical(path, failed).string().compare(0, inside.size(), inside) != 0) {
      throw BundleError(cat(path, ": a link that leaves the bundle's folder (", key, ")"));
    }
    if (!fs::is_regular_file(path, failed)) throw BundleError(cat(path, ": missing (", key, ")"));
    const auto size = static_cast<std::int64_t>(fs::file_size(path, failed));
    if (!failed && size != record.bytes) {
      throw BundleError(cat(path, ": has ", size, " bytes, expected ", record.bytes, " (", key, ".bytes)"));
    }
    const std::string digest = sha256_of_file(path);
    if (digest.empty()) throw BundleError(cat(path, ": cannot be read: ", system_error(errno), " (", key, ")"));
    if (digest != record.sha256) {
      throw BundleError(cat(path, ": its contents have changed, the sha256 is another (", key, ".sha256)"));
    }
  }
}

}  // namespace ilat::detail
