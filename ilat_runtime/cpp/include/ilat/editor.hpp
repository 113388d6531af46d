/// ilat: edit images with a bundle, generating only the masked tokens.
///
///     ilat::Editor editor("samples/bundles/pose-demo");
///     ilat::Result result = editor.edit(image, {.pose = pose, .mask = mask});
///
/// The header is C++17; the designated initializers above need C++20 of the caller. Everything thrown for a caller's
/// mistake derives from ilat::Error, with a message of one line. Nothing is written to stdout or stderr.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#ifndef ILAT_API
#define ILAT_API __attribute__((visibility("default")))
#endif

namespace ilat {

/// The version of the library, such as "0.1.0".
ILAT_API const char* version() noexcept;

/// Base class of what is thrown. The message names the file, key or argument and what was expected.
struct ILAT_API Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// An image, mask, pose or option is not what the call takes.
struct ILAT_API InputError : Error {
  using Error::Error;
};
/// A bundle's manifest or one of its files is missing, changed or not understood.
struct ILAT_API BundleError : Error {
  using Error::Error;
};
/// A backend that was asked for cannot run here.
struct ILAT_API BackendError : Error {
  using Error::Error;
};
/// The progress callback asked to stop.
struct ILAT_API Cancelled : Error {
  using Error::Error;
};

/// Pixels of the caller: uint8 HWC RGB. Nothing is copied; they must stay during the call.
struct ImageView {
  const std::uint8_t* data = nullptr;
  int width = 0;
  int height = 0;
  std::ptrdiff_t stride = 0;  ///< bytes from a row to the next; 0: 3 * width
};

/// A mask or a sketch of the caller: uint8 HW.
struct GreyView {
  const std::uint8_t* data = nullptr;
  int width = 0;
  int height = 0;
  std::ptrdiff_t stride = 0;  ///< bytes from a row to the next; 0: width
};

/// uint8 HWC of one (mask, sketch) or three (RGB) channels, rows without gaps.
struct Image {
  int width = 0;
  int height = 0;
  int channels = 3;
  std::vector<std::uint8_t> pixels;

  operator ImageView() const { return {pixels.data(), width, height, 0}; }
  operator GreyView() const { return {pixels.data(), width, height, 0}; }
};

/// x and y in pixels of the image (origin top left), visibility 0 or 1.
struct Landmark {
  float x = 0;
  float y = 0;
  float visibility = 0;
};

/// The 13 landmarks of a person, in the order of `joints`.
using Pose = std::array<Landmark, 13>;

/// Penn Action's body landmarks; left and right are the person's own.
inline constexpr std::array<const char*, 13> joints = {
    "head",     "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip",     "left_knee",      "right_knee", "left_ankle",  "right_ankle"};

/// A square of `side` pixels with its top left corner at (x, y); it may reach beyond the image.
struct Crop {
  int x = 0;
  int y = 0;
  int side = 0;
};

/// Called with (tokens generated, tokens to generate) after each token; returning false cancels.
using Progress = std::function<bool(std::int64_t, std::int64_t)>;

/// How an editor runs. The last three are what its edits take where they do not say otherwise.
struct Options {
  std::string backend = "auto";  ///< "auto" takes the first that works here; or the name of one
  std::optional<int> threads;    ///< CPU threads; without it the backend chooses
  std::string library;     ///< file of ONNX Runtime; default: $ILAT_ONNXRUNTIME, else what the system finds by its name
  std::uint64_t seed = 0;  ///< for top_k above 1; the same seed gives the same tokens
  double temperature = 1.0;  ///< 0.001 to 1000; larger is more varied; without effect when top_k is 1
  std::int64_t top_k = 1;    ///< likeliest candidates for each token to choose from; 1 takes the likeliest
};

/// One edit of an image.
struct Edit {
  std::optional<Pose> pose;            ///< to give the person; needed by bundles of kind "pose", taken by no other
  std::optional<GreyView> mask;        ///< edited where not 0; without one, kind "pose" masks both skeletons
  std::optional<Pose> reference_pose;  ///< of the person in the image, where it is to be erased; not in a session
  std::optional<GreyView> sketch;      ///< of the result, dark lines on white, taken by kind "sketch", which without
                                       ///< one draws it from the image; not in a session
  std::optional<std::uint64_t> seed;
  std::optional<double> temperature;
  std::optional<std::int64_t> top_k;
  std::optional<double> dilation;  ///< radius of the skeletons' mask over the longer side of the poses' box
  std::optional<double> margin;    ///< side of the crop over the longer side of the box; not in a session
  std::optional<Crop> crop;        ///< where to edit, instead of what `margin` gives; not in a session
  std::optional<bool> blend;       ///< across the mask's border, which changes pixels outside the mask; by default
                                   ///< for kind "sketch" only
  Progress progress;
};

/// Seconds of an edit's parts.
struct Timings {
  double encode = 0;
  double prefill = 0;
  double decode = 0;
  double decoder = 0;
  double total = 0;
};

/// An edited image and how it came about.
struct Result {
  Image image;                           ///< RGB, the size of the input; outside `mask` the input unless blended
  Image mask;                            ///< one channel, 1 where pixels were edited
  std::vector<std::int64_t> tokens;      ///< the generated image tokens, in raster order
  std::vector<std::uint8_t> token_mask;  ///< of the model's grid, rows by columns: 1 where a token was generated
  std::vector<float> log_probability;    ///< of each generated token under the model (temperature 1, all candidates)
  Timings timings;
  std::int64_t transformer_calls = 0;  ///< after the prefill; never more than there are tokens
  std::string backend;                 ///< what ran the graphs, with its version and device
  Crop crop;                           ///< where the edit happened
  std::optional<Image> sketch;         ///< one channel: what the edit followed, given or drawn; for kind "sketch"
  std::string notice;                  ///< what the caller should know, or empty
};

/// Facts of a bundle; docs/bundle.md explains them.
struct BundleInfo {
  std::string name;
  std::string kind;
  int image_size = 0;
  int grid = 0;  ///< tokens along each side of the image
  std::int64_t codebook_size = 0;
  std::string wanted;  ///< the bundle and the condition that its kind wants, for messages
};

/// Throws the InputError, beginning with `name`, that an edit of `image` with this pose would throw.
ILAT_API void check_pose(const Pose& pose, const ImageView& image, const std::string& name = "pose");

/// Reads a bundle's manifest alone. Throws BundleError.
ILAT_API BundleInfo bundle_info(const std::string& bundle);

namespace detail {
class Pipeline;
class SessionState;
}  // namespace detail

/// A reference image, encoded and prefilled once, for any number of edits of it; made by Editor::reference.
///
/// For one thread at a time. It keeps a copy of the image and what it needs of the editor, which may be destroyed
/// before it. After a cancelled or failed edit it can be used again.
class ILAT_API Session {
 public:
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  /// Edit the reference image. Throws as Editor::edit; options that are "not in a session" are refused.
  Result edit(const Edit& edit);

  Crop crop() const;               ///< where all its edits happen
  const Timings& timings() const;  ///< of preparing the reference

 private:
  friend class Editor;
  explicit Session(std::unique_ptr<detail::SessionState> state);
  std::unique_ptr<detail::SessionState> state_;
};

/// Edits images with the model of a bundle. May be used from several threads at once.
class ILAT_API Editor {
 public:
  /// Load the bundle in a folder. Throws BundleError (incomplete, changed, newer than this library, contradicts itself)
  /// or BackendError (does not exist, does not work here).
  explicit Editor(const std::string& bundle, const Options& options = {});
  Editor(Editor&&) noexcept;
  Editor& operator=(Editor&&) noexcept;
  ~Editor();

  /// Edit one image of any size up to 134 million pixels. Throws InputError or Cancelled.
  Result edit(const ImageView& image, const Edit& edit) const;

  /// Encode and prefill an image once, for any number of edits of it.
  ///
  /// `pose` is that of the person in it. `crop` is the square in which all edits happen (`crop_for` finds one for a
  /// sequence of poses); without it, the one for `pose` alone, or the whole image. All edits follow `sketch`, as in
  /// Edit. Throws InputError.
  Session reference(const ImageView& image, const std::optional<Pose>& pose = {}, const std::optional<Crop>& crop = {},
                    const std::optional<GreyView>& sketch = {}) const;

  /// The sketch that an edit follows when it is given none, as large as the image, to be changed and given. The others
  /// say in which square it is drawn. Throws InputError where the bundle's kind is not "sketch".
  Image sketch(const ImageView& image, const std::optional<GreyView>& mask = {},
               const std::optional<double>& margin = {}, const std::optional<Crop>& crop = {}) const;

  /// The square in which an edit with these poses and this mask happens, by the rule of the model's training.
  Crop crop_for(const ImageView& image, const std::vector<Pose>& poses, const std::optional<GreyView>& mask = {},
                const std::optional<double>& margin = {}) const;

  const BundleInfo& bundle() const;
  const std::string& backend() const;         ///< what runs the graphs, with its version and device
  const std::string& backend_reason() const;  ///< why this one

 private:
  std::shared_ptr<const detail::Pipeline> pipeline_;
};

}  // namespace ilat
