// Jobs to results: encode, decode the masked tokens, compose; the twin of ilat_runtime/pipeline.py.
#include <algorithm>
#include <ilat/editor.hpp>
#include <mutex>

#include "decoding.hpp"
#include "text.hpp"

namespace ilat {

namespace detail {

namespace {

struct Encoded {
  Output latent, tokens, token_mask, edit_mask, condition;
  std::vector<bool> masked;
  bool any = false;  ///< a thin skeleton in a tiny crop can mask a token and yet no pixel
};

/// Adds the seconds that its scope takes.
class Clock {
 public:
  explicit Clock(double& seconds) : seconds_(seconds), started_(now()) {}
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;
  ~Clock() { seconds_ += now() - started_; }

 private:
  double& seconds_;
  double started_;
};

BundleInfo info_of(const Manifest& m) {
  return {m.name, m.kind, static_cast<int>(m.image_size), static_cast<int>(m.grid()), m.codebook_size, wanted(m)};
}

Sampling sampling(const Options& defaults, const Edit& edit) {
  return {edit.seed.value_or(defaults.seed), edit.temperature.value_or(defaults.temperature),
          edit.top_k.value_or(defaults.top_k)};
}

}  // namespace

/// The loaded graphs of a bundle, and the way of an edit through them.
class Pipeline {
 public:
  Pipeline(const std::string& folder, const Options& given)
      : options(given),
        manifest(load_manifest(folder)),
        choice((verify_files(folder, manifest), choose(given, folder, manifest))) {
    for (const auto& [name, record] : manifest.graphs) graphs_[name] = choice.backend->load(name);
    description = choice.backend->description();
    info = info_of(manifest);
    check_sampling(sampling(options, {}), manifest.codebook_size);
  }

  /// Edit; `prepared` holds the reference where a session has it.
  Result edit(Job job, const Edit& wanted, Decoder* prepared) const {
    const double started = now();
    Result result;
    Timings& t = result.timings;
    result.sketch = sketched(job, t.encode);
    const Encoded encoded = encode(job, t.encode);
    const Pixels& image = job.image;
    result.image = copied(image);
    result.mask = {image.width, image.height, 1, Bytes(result.image.pixels.size() / 3)};
    result.token_mask.assign(encoded.masked.size(), 0);
    std::vector<std::string> notices = job.notices;
    if (encoded.any) {
      std::unique_ptr<Decoder> own = prepared ? nullptr : prefilled(job, t, encoded.condition);
      Decoder& decoder = prepared ? *prepared : *own;
      const auto* first = encoded.tokens.as<std::int64_t>();
      std::vector<std::int64_t> tokens(first, first + encoded.masked.size());
      const std::optional<Pose> pose = job.pose ? std::optional(relative(*job.pose, job.crop)) : std::nullopt;
      Generated generated;
      {
        const Clock clock(t.decode);
        generated = decoder.generate(encoded.masked, tokens, pose, sampling(options, wanted), wanted.progress);
      }
      t.decode -= decoder.prefill_seconds();
      t.prefill += decoder.prefill_seconds();
      for (std::size_t i = 0, next = 0; i < tokens.size(); ++i) {
        if (!encoded.masked[i]) continue;
        tokens[i] = generated.tokens[next++];
        result.token_mask[i] = 1;
      }
      const Clock clock(t.decoder);
      const Output edited = compose(job, encoded, tokens, wanted.blend.value_or(manifest.kind == "sketch"));
      put(result.image, edited.as<std::uint8_t>(), job.crop);
      put(result.mask, encoded.edit_mask.as<std::uint8_t>(), job.crop);
      for (auto& value : result.mask.pixels) value = value > 0;
      result.tokens = std::move(generated.tokens);
      result.log_probability = std::move(generated.log_probability);
      result.transformer_calls = generated.calls;
    } else {
      notices.emplace_back("nothing is masked: the image is returned unchanged");
    }
    for (const auto& notice : notices) result.notice += (result.notice.empty() ? "" : "; ") + notice;
    result.backend = description;
    result.crop = job.crop;
    t.total = now() - started;
    return result;
  }

  /// The sketch of an image, white outside the crop. Throws InputError where the kind has none.
  Image draw(const Pixels& image, const Crop& crop) const {
    if (!manifest.has_graph("sketch")) throw InputError(cat("sketch: ", wanted(manifest), ", it draws no sketch"));
    const Bytes square = take(image, crop);
    const Outputs outputs = graphs_.at("sketch")->run({{"image", {square.data(), {1, crop.side, crop.side, 3}}}});
    Image result{image.width, image.height, 1, {}};
    result.pixels.assign(static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height), 255);
    put(result, outputs.at("sketch").as<std::uint8_t>(), crop);
    return result;
  }

  /// Gives the job a sketch where the bundle takes one and the job has none; what the edit follows.
  std::optional<Image> sketched(Job& job, double& seconds) const {
    if (!manifest.has_graph("sketch")) return {};
    const Clock clock(seconds);
    Image result = job.sketch ? copied(*job.sketch) : draw(job.image, job.crop);
    job.sketch = Pixels{result.pixels.data(), result.width, result.height, 1, result.width};
    return result;
  }

  /// A decoder that holds the job's condition, whose tokens are known where the job's sketch has been encoded.
  std::unique_ptr<Decoder> prefilled(const Job& job, Timings& timings, Output known = {}) const {
    auto decoder = std::make_unique<Decoder>(manifest, *graphs_.at("transformer"));
    std::vector<std::int64_t> tokens;
    if (manifest.has("condition")) {
      if (!known.data) {
        Job whole;  // the reference is seen whole: nothing of it is masked
        whole.image = job.image, whole.crop = job.crop, whole.sketch = job.sketch;
        const Encoded encoded = encode(whole, timings.encode);
        known = encoded.condition.data ? encoded.condition : encoded.tokens;
      }
      tokens.assign(known.as<std::int64_t>(), known.as<std::int64_t>() + manifest.image_tokens());
    }
    const Clock clock(timings.prefill);
    decoder->condition(tokens,
                       job.reference_pose ? std::optional(relative(*job.reference_pose, job.crop)) : std::nullopt);
    return decoder;
  }

  const Options options;
  const Manifest manifest;
  const Choice choice;
  std::string description;
  BundleInfo info;

 private:
  Encoded encode(const Job& job, double& seconds) const {
    const Clock clock(seconds);
    const std::int64_t side = job.crop.side;
    const Bytes image = take(job.image, job.crop), mask = take_mask(job.mask, job.crop);
    const Bytes sketch = job.sketch ? take(*job.sketch, job.crop) : Bytes();
    std::array<Pose, 2> poses = {};
    // A mask from the user says exactly what to edit, so no skeleton is added to it.
    if (!job.mask && job.pose) poses[0] = relative(*job.pose, job.crop);
    if (!job.mask && job.reference_pose) poses[1] = relative(*job.reference_pose, job.crop);
    Inputs inputs = {{"image", {image.data(), {1, side, side, 3}}}, {"mask", {mask.data(), {1, side, side}}}};
    if (manifest.graph("encoder").takes("poses")) {
      inputs["poses"] = {poses.data(), {1, 2, static_cast<std::int64_t>(joints.size()), 3}};
      inputs["radius"] = {&job.radius, {1}};
    }
    if (job.sketch) inputs["sketch"] = {sketch.data(), {1, side, side}};
    const Outputs outputs = graphs_.at("encoder")->run(inputs);
    Encoded e{
        outputs.at("latent"), outputs.at("tokens"), outputs.at("token_mask"), outputs.at("edit_mask"), {}, {}, false};
    if (outputs.count("condition")) e.condition = outputs.at("condition");
    const auto* tokens = e.token_mask.as<bool>();
    const auto* pixels = e.edit_mask.as<std::uint8_t>();
    e.masked.assign(tokens, tokens + manifest.image_tokens());
    e.any = std::find(tokens, tokens + manifest.image_tokens(), true) != tokens + manifest.image_tokens() &&
            std::any_of(pixels, pixels + side * side, [](std::uint8_t value) { return value != 0; });
    return e;
  }

  Output compose(const Job& job, const Encoded& encoded, const std::vector<std::int64_t>& tokens, bool blend) const {
    const Bytes image = take(job.image, job.crop);
    const auto same = [](const Output& output) { return Input{output.data.get(), output.shape}; };
    Outputs outputs = graphs_.at("decoder")->run({{"latent", same(encoded.latent)},
                                                  {"tokens", {tokens.data(), encoded.tokens.shape}},
                                                  {"token_mask", same(encoded.token_mask)},
                                                  {"image", {image.data(), {1, job.crop.side, job.crop.side, 3}}},
                                                  {"edit_mask", same(encoded.edit_mask)},
                                                  {"blend", {&blend, {1}}}});
    return outputs.at("edited");
  }

  std::map<std::string, std::unique_ptr<Graph>> graphs_;
};

/// What a session keeps.
class SessionState {
 public:
  SessionState(std::shared_ptr<const Pipeline> given, const ImageView& view, const std::optional<Pose>& reference,
               const std::optional<Crop>& wanted, const std::optional<GreyView>& drawing)
      : pipeline(std::move(given)) {
    const Manifest& manifest = pipeline->manifest;
    const Pixels pixels = checked_image(view);
    check_kind(manifest, reference.has_value(), false, drawing.has_value());
    if (reference) pose = checked_pose(*reference, pixels, "pose");
    const std::vector<Pose> poses(pose ? 1 : 0, pose.value_or(Pose()));
    crop = checked_crop(wanted ? *wanted : find_crop(manifest, pixels, poses, {}, {}), pixels, "crop");
    // A copy: what was encoded stays what is edited, whatever the caller does to the pixels.
    image = copied(pixels);
    Job job;
    job.image = checked_image(image), job.crop = crop, job.reference_pose = pose;
    if (drawing) job.sketch = checked_grey(*drawing, pixels, "sketch");
    const double started = now();
    sketch = pipeline->sketched(job, timings.encode);
    decoder = pipeline->prefilled(job, timings);
    timings.total = now() - started;
  }

  std::shared_ptr<const Pipeline> pipeline;
  Image image;
  std::optional<Image> sketch;
  std::optional<Pose> pose;
  Crop crop;
  Timings timings;
  std::unique_ptr<Decoder> decoder;
  std::mutex mutex;
};

}  // namespace detail

const char* version() noexcept { return ILAT_VERSION; }

BundleInfo bundle_info(const std::string& bundle) { return detail::info_of(detail::load_manifest(bundle)); }

void check_pose(const Pose& pose, const ImageView& image, const std::string& name) {
  detail::checked_pose(pose, detail::checked_image(image), name);
}

Session::Session(std::unique_ptr<detail::SessionState> state) : state_(std::move(state)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Result Session::edit(const Edit& edit) {
  detail::SessionState& s = *state_;
  const std::pair<bool, const char*> before[] = {{edit.reference_pose.has_value(), "reference_pose"},
                                                 {edit.margin.has_value(), "margin"},
                                                 {edit.crop.has_value(), "crop"},
                                                 {edit.sketch.has_value(), "sketch"}};
  for (const auto& [given, name] : before) {
    if (given) throw InputError(detail::cat(name, ": is the session's, give it to Editor::reference"));
  }
  detail::check_sampling(detail::sampling(s.pipeline->options, edit), s.pipeline->manifest.codebook_size);
  // Meant for one thread; edits from several are done one after the other.
  const std::lock_guard lock(s.mutex);
  Edit all = edit;
  if (s.sketch) all.sketch = *s.sketch;
  const detail::Pixels image = detail::checked_image(s.image);
  return s.pipeline->edit(detail::checked_job(s.pipeline->manifest, image, all, s.pose, s.crop, true), edit,
                          s.decoder.get());
}

Crop Session::crop() const { return state_->crop; }
const Timings& Session::timings() const { return state_->timings; }

Editor::Editor(const std::string& bundle, const Options& options)
    : pipeline_(std::make_shared<detail::Pipeline>(bundle, options)) {}
Editor::Editor(Editor&&) noexcept = default;
Editor& Editor::operator=(Editor&&) noexcept = default;
Editor::~Editor() = default;

Result Editor::edit(const ImageView& image, const Edit& edit) const {
  const detail::Pipeline& p = *pipeline_;
  detail::check_sampling(detail::sampling(p.options, edit), p.manifest.codebook_size);
  const detail::Pixels pixels = detail::checked_image(image);
  return p.edit(detail::checked_job(p.manifest, pixels, edit, edit.reference_pose, edit.crop, false), edit, nullptr);
}

Session Editor::reference(const ImageView& image, const std::optional<Pose>& pose, const std::optional<Crop>& crop,
                          const std::optional<GreyView>& sketch) const {
  return Session(std::make_unique<detail::SessionState>(pipeline_, image, pose, crop, sketch));
}

Image Editor::sketch(const ImageView& image, const std::optional<GreyView>& mask, const std::optional<double>& margin,
                     const std::optional<Crop>& crop) const {
  const detail::Pixels pixels = detail::checked_image(image);
  return pipeline_->draw(pixels,
                         crop ? detail::checked_crop(*crop, pixels, "crop") : crop_for(image, {}, mask, margin));
}

Crop Editor::crop_for(const ImageView& image, const std::vector<Pose>& poses, const std::optional<GreyView>& mask,
                      const std::optional<double>& margin) const {
  const detail::Pixels pixels = detail::checked_image(image);
  for (std::size_t i = 0; i < poses.size(); ++i) detail::checked_pose(poses[i], pixels, detail::cat("poses[", i, "]"));
  const auto checked = mask ? std::optional(detail::checked_grey(*mask, pixels, "mask")) : std::nullopt;
  return detail::find_crop(pipeline_->manifest, pixels, poses, checked, margin);
}

const BundleInfo& Editor::bundle() const { return pipeline_->info; }
const std::string& Editor::backend() const { return pipeline_->description; }
const std::string& Editor::backend_reason() const { return pipeline_->choice.reason; }

}  // namespace ilat
