#include "decoding.hpp"

#include <algorithm>
#include <chrono>

#include "text.hpp"

namespace ilat::detail {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

Decoder::Decoder(const Manifest& manifest, const Graph& transformer)
    : manifest_(manifest),
      graph_(transformer.with_cache()),
      slots_(static_cast<std::size_t>(manifest.cache_capacity), kUnfilled) {}

void Decoder::add_landmarks(std::vector<Row>& rows, const Manifest& m, const char* block, const Pose& pose,
                            int segment) {
  std::int64_t position = m.start(block);
  for (const Landmark& point : pose) rows.push_back({m.pose, position++, segment, point});
}

void Decoder::rewind(std::size_t length) {
  std::fill(slots_.begin() + static_cast<std::ptrdiff_t>(length), slots_.end(), kUnfilled);
  filled_ = length;
}

void Decoder::condition(const std::vector<std::int64_t>& tokens, const std::optional<Pose>& pose) {
  const Manifest& m = manifest_;
  std::vector<Row> rows;
  if (m.has("source_pose")) {
    if (!pose) throw InputError("reference_pose: this bundle needs the pose of the reference image");
    add_landmarks(rows, m, "source_pose", *pose, kCondition);
  }
  if (m.has("condition")) {
    std::int64_t position = m.start("condition");
    rows.push_back({m.start_condition, position++, kCondition});
    for (const auto token : tokens) rows.push_back({token, position++, kCondition});
  }
  rewind(0);
  feed(rows, {});
  condition_ = rows.size();
}

Generated Decoder::generate(const std::vector<bool>& masked, std::vector<std::int64_t> tokens,
                            const std::optional<Pose>& pose, const Sampling& sampling, const Progress& progress) {
  const Manifest& m = manifest_;
  const double started = now();
  const DecodePlan plan = decode_plan(masked, m.numbering);
  const std::int64_t total = std::count(masked.begin(), masked.end(), true), start = m.start("target");
  std::int64_t done = 0;
  std::vector<float> log_probability(tokens.size());
  // Row 0 is t[s], row j + 1 is image token j.
  const auto target_row = [&](std::int64_t row, std::int64_t read) {
    const auto index = static_cast<std::size_t>(row);
    const std::int64_t word = row == 0 ? m.start_target : m.target_offset + tokens[index - 1];
    return Row{word, start + row, plan.segment[index], {}, read};
  };
  const auto store = [&](const std::vector<Answer>& answers) {
    for (const Answer& answer : answers) {
      tokens[static_cast<std::size_t>(answer.read)] = answer.token;
      log_probability[static_cast<std::size_t>(answer.read)] = answer.log_probability;
      ++done;
      if (progress && !progress(done, total)) throw Cancelled(cat("cancelled after ", done, " of ", total, " tokens"));
    }
  };
  rewind(condition_);
  std::vector<Row> rows;
  if (m.has("pose")) {
    if (!pose) throw InputError("pose: this bundle needs a target pose");
    add_landmarks(rows, m, "pose", *pose, kPose);
  }
  for (std::size_t i = 0; i < plan.prefill.size(); ++i)
    rows.push_back(target_row(plan.prefill[i], plan.prefill_read[i]));
  store(feed(rows, sampling));
  prefill_seconds_ = now() - started;
  for (const Step& step : plan.steps) {
    rows.clear();
    for (const auto row : step.feed) rows.push_back(target_row(row, row == step.read ? row : -1));
    store(feed(rows, sampling));
  }
  Generated result;
  result.calls = static_cast<std::int64_t>(plan.steps.size());
  for (std::size_t i = 0; i < masked.size(); ++i) {
    if (masked[i]) result.tokens.push_back(tokens[i]), result.log_probability.push_back(log_probability[i]);
  }
  return result;
}

std::vector<Decoder::Answer> Decoder::feed(const std::vector<Row>& rows, const Sampling& sampling) {
  if (rows.empty()) return {};
  const std::size_t q = rows.size();
  const auto length = static_cast<std::int64_t>(q), entries = manifest_.codebook_size;
  const bool any = std::any_of(rows.begin(), rows.end(), [](const Row& row) { return row.read >= 0; });
  const bool noisy = sampling.top_k > 1 && any;
  std::vector<std::int64_t> tokens(q), positions(q);
  std::vector<std::int32_t> segments(q);
  std::vector<Landmark> landmarks(q);
  // 0.5 has no effect.
  std::vector<float> noise(noisy ? q * static_cast<std::size_t>(entries) : 1, 0.5F);
  for (std::size_t i = 0; i < q; ++i) {
    const Row& row = rows[i];
    tokens[i] = row.token, positions[i] = row.position, segments[i] = row.segment, landmarks[i] = row.landmark;
    slots_[filled_ + i] = row.segment;
    if (noisy && row.read >= 0) {
      uniform(sampling.seed, row.read, entries, noise.data() + i * static_cast<std::size_t>(entries));
    }
  }
  const auto write_index = static_cast<std::int64_t>(filled_);
  const auto temperature = static_cast<float>(sampling.temperature);
  filled_ += q;
  Inputs inputs = {{"tokens", {tokens.data(), {1, length}}},
                   {"positions", {positions.data(), {1, length}}},
                   {"query_segment", {segments.data(), {1, length}}},
                   {"slot_segment", {slots_.data(), {1, manifest_.cache_capacity}}},
                   {"write_index", {&write_index, {1}}},
                   {"top_k", {&sampling.top_k, {1}}},
                   {"temperature", {&temperature, {1}}},
                   {"uniform", {noise.data(), {1, noisy ? length : 1, noisy ? entries : 1}}}};
  if (manifest_.graph("transformer").takes("landmarks")) inputs["landmarks"] = {landmarks.data(), {1, length, 3}};
  const Outputs outputs = graph_->run(inputs);
  std::vector<Answer> answers;
  for (std::size_t i = 0; i < q; ++i) {
    if (rows[i].read < 0) continue;
    answers.push_back(
        {rows[i].read, outputs.at("next_token").as<std::int64_t>()[i], outputs.at("log_probability").as<float>()[i]});
  }
  return answers;
}

}  // namespace ilat::detail
