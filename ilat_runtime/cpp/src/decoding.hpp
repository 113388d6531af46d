// The decoding loop: feed what a plan says to a transformer graph with a cache; the twin of ilat_runtime/decoding.py.
#pragma once

#include <memory>
#include <vector>

#include "backend.hpp"
#include "jobs.hpp"
#include "segments.hpp"

namespace ilat::detail {

/// What was generated, in raster order.
struct Generated {
  std::vector<std::int64_t> tokens;
  std::vector<float> log_probability;
  std::int64_t calls = 0;  ///< of the transformer after the prefill
};

/// A transformer graph with the cache of one sequence. For one thread at a time.
class Decoder {
 public:
  Decoder(const Manifest& manifest, const Graph& transformer);

  /// Prefill the condition, replacing what the cache held: the reference's tokens (not read when the model has no
  /// condition) and its crop-relative pose, for models with a `source_pose`.
  void condition(const std::vector<std::int64_t>& tokens, const std::optional<Pose>& pose);

  /// Generate the masked tokens of an image whose other tokens are `tokens`. Afterwards, and also when it was cancelled
  /// or failed, the decoder is ready for another call. Throws Cancelled.
  Generated generate(const std::vector<bool>& masked, std::vector<std::int64_t> tokens, const std::optional<Pose>& pose,
                     const Sampling& sampling, const Progress& progress);

  double prefill_seconds() const { return prefill_seconds_; }

 private:
  /// One token to feed; `read` is the image token that its output predicts, or -1.
  struct Row {
    std::int64_t token, position;
    std::int32_t segment;
    Landmark landmark = {};
    std::int64_t read = -1;
  };
  struct Answer {
    std::int64_t read, token;
    float log_probability;
  };

  static void add_landmarks(std::vector<Row>& rows, const Manifest& m, const char* block, const Pose& pose,
                            int segment);
  void rewind(std::size_t length);
  /// Append rows to the cache in one call; what is read.
  std::vector<Answer> feed(const std::vector<Row>& rows, const Sampling& sampling);

  const Manifest& manifest_;
  std::unique_ptr<Graph> graph_;
  std::vector<std::int32_t> slots_;
  std::size_t filled_ = 0, condition_ = 0;
  double prefill_seconds_ = 0;
};

/// Seconds from some moment in the past.
double now();

}  // namespace ilat::detail
