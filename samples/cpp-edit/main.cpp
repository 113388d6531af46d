// cpp-edit: the C++ twin of ilat-edit, with the same flags, the same JSON, the same messages and exit codes.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <map>
#include <set>

#include "arguments.hpp"
#include "image_file.hpp"
#include "output_file.hpp"
#include "pose_file.hpp"
#include "sheet.hpp"
#include "text.hpp"

using ilat::InputError;
using ilat::detail::cat;
using ilat::detail::Json;

namespace {

constexpr int kDone = 0, kFailed = 1, kWrongUse = 2;
constexpr double kDefaultFps = 25;
constexpr std::size_t kSheetRows = 5;  // frames of a sequence that a comparison shows

std::atomic<int> stop_signal{0};
extern "C" void on_signal(int number) { stop_signal = number; }

/// Ctrl-C or a request to terminate; unfinished files are deleted on the way out.
struct Interrupted {};

void heed_signals() {
  if (stop_signal) throw Interrupted();
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// A bar on stderr, where that is a terminal.
class Bar {
 public:
  Bar(const Arguments& args, std::string title)
      : shown_(!args.quiet && isatty(STDERR_FILENO)), title_(std::move(title)) {}
  Bar(const Bar&) = delete;
  Bar& operator=(const Bar&) = delete;
  ~Bar() {
    if (shown_) std::fputs("\r\x1b[K", stderr);
  }
  void update(std::int64_t done, std::int64_t total) const {
    if (!shown_ || total < 1) return;
    const std::string bar(static_cast<std::size_t>(done * 30 / total), '#');
    std::fprintf(stderr, "\r%s: %3d%% |%-30s| %d/%d", title_.c_str(), static_cast<int>(100 * done / total), bar.c_str(),
                 static_cast<int>(done), static_cast<int>(total));
    std::fflush(stderr);
  }

 private:
  bool shown_;
  std::string title_;
};

std::string human_size(double count) {
  char text[32];
  const char* units[] = {"B", "kB", "MB", "GB"};
  int unit = 0;
  for (; unit < 3 && count >= 999.5; ++unit) count /= 1000;
  std::snprintf(text, sizeof text, unit == 0 || count >= 99.95 ? "%.0f %s" : "%.1f %s", count, units[unit]);
  return text;
}

std::string human_time(double time) {
  char text[32];
  const auto minutes = static_cast<int>(std::nearbyint(time)) / 60, rest = static_cast<int>(std::nearbyint(time)) % 60;
  if (time < 0.9995) {
    std::snprintf(text, sizeof text, "%.0f ms", time * 1000);
  } else if (time < 59.95) {
    std::snprintf(text, sizeof text, "%.1f s", time);
  } else if (minutes < 60) {
    std::snprintf(text, sizeof text, "%d min %02d s", minutes, rest);
  } else {
    const auto all = static_cast<int>(std::nearbyint(minutes + rest / 60.0));
    std::snprintf(text, sizeof text, "%d h %02d min", all / 60, all % 60);
  }
  return text;
}

Json milliseconds(const ilat::Timings& t) {
  const auto rounded = [](double value) { return std::nearbyint(value * 1e6) / 1e3; };
  return {{"encode", rounded(t.encode)},
          {"prefill", rounded(t.prefill)},
          {"decode", rounded(t.decode)},
          {"decoder", rounded(t.decoder)},
          {"total", rounded(t.total)}};
}

void check_usage(const Arguments& args) {
  const bool video = suffix_of(args.out) == kVideoSuffixes[0];
  if (args.poses && !video) {
    throw UsageError(cat("--out ", args.out, ": --poses makes a video, expected a name that ends in .mp4"));
  }
  if (!args.poses && video)
    throw UsageError(cat("--out ", args.out, ": a video needs --poses, a pose file with a sequence"));
  if (args.reference_pose && !args.pose && !args.poses) {
    throw UsageError("--reference-pose: only with --pose or --poses");
  }
  if (args.fps && !args.poses) throw UsageError("--fps: only with --poses");
  std::map<std::string, std::string> written = {{ilat::detail::tidy_path(args.out), "--out"}};
  for (const auto& [flag, path] :
       {std::pair("--compare", args.compare), std::pair("--save-sketch", args.save_sketch)}) {
    if (!path) continue;
    const auto [other, fresh] = written.emplace(ilat::detail::tidy_path(*path), flag);
    if (!fresh) throw UsageError(cat(flag, ": ", *path, " is also ", other->second));
  }
}

PoseFile matching(const std::string& path, const ilat::Image& image) {
  PoseFile file = read_poses(path);
  if (file.image_size && *file.image_size != std::pair<std::int64_t, std::int64_t>(image.width, image.height)) {
    throw InputError(cat(path, ": image_size: the poses belong to an image of ", file.image_size->first, "x",
                         file.image_size->second, " pixels, this one has ", image.width, "x", image.height));
  }
  return file;
}

/// The pose file with the reference's pose; checked against the image as far as the editor does not.
std::optional<PoseFile> read_pose_files(const Arguments& args, const ilat::Image& image) {
  const auto& path = args.poses ? args.poses : args.pose;
  if (!path) return {};
  PoseFile file = matching(*path, image);
  if (args.pose && file.poses.size() != 1) {
    throw InputError(cat(*path, ": holds ", file.poses.size(), " poses, --pose takes one; use --poses for a sequence"));
  }
  for (std::size_t i = 0; i < file.poses.size(); ++i)
    ilat::check_pose(file.poses[i], image, cat(*path, ": poses[", i, "]"));
  std::string source = *path + ": reference";
  if (args.reference_pose) {
    const PoseFile other = matching(*args.reference_pose, image);
    if (other.poses.size() != 1) {
      throw InputError(cat(*args.reference_pose, ": holds ", other.poses.size(), " poses, --reference-pose takes one"));
    }
    file.reference = other.poses[0];
    source = *args.reference_pose + ": poses[0]";
  }
  if (file.reference) ilat::check_pose(*file.reference, image, source);
  return file;
}

ilat::Edit options(const Arguments& args) {
  ilat::Edit edit;
  if (args.seed) {
    const std::string &text = *args.seed, most = "18446744073709551615";
    if (text[0] == '-' || text.size() > most.size() || (text.size() == most.size() && text > most)) {
      throw InputError(cat("seed: ", text, ", expected a whole number from 0 to 2^64 - 1"));
    }
    edit.seed = std::stoull(text);
  }
  edit.temperature = args.temperature;
  edit.top_k = args.top_k;
  edit.dilation = args.dilation;
  edit.blend = args.blend;
  return edit;
}

/// The distinct notices of the results, and what the flags themselves call for.
Json notice(const Arguments& args, const std::vector<std::string>& notices) {
  std::vector<std::string> found;
  const auto add = [&](const std::string& part) {
    if (!part.empty() && std::find(found.begin(), found.end(), part) == found.end()) found.push_back(part);
  };
  for (const std::string& all : notices) {
    for (std::size_t start = 0; start != all.npos;) {
      const std::size_t end = all.find("; ", start);
      add(all.substr(start, end == all.npos ? end : end - start));
      start = end == all.npos ? end : end + 2;
    }
  }
  if (args.top_k == 1 && (args.seed || args.temperature)) add("--seed and --temperature have no effect with --top-k 1");
  std::string text;
  for (const auto& part : found) text += (text.empty() ? "" : "; ") + part;
  return text.empty() ? Json() : Json(text);
}

void tell(const Arguments& args, std::string text, double duration, const Json& data, const std::string& kind) {
  if (args.json) {
    std::cout << data.dump() << std::endl;
  } else if (!args.quiet) {
    text += human_time(duration) + " on " + data["backend"].get<std::string>();
    const char* condition = kind == "pose" ? "target pose, " : kind == "sketch" ? "sketch, " : "";
    if (args.compare) text += cat("\n", *args.compare, ": reference, ", condition, "mask and result");
    if (args.save_sketch) text += "\n" + *args.save_sketch + ": the sketch; draw on it and pass it as --sketch";
    if (!data["notice"].is_null()) text += "\nnote: " + data["notice"].get<std::string>();
    std::cout << text << std::endl;
  }
}

void write_sheet(const Arguments& args, const ilat::Image& image, const std::vector<ilat::Result>& results,
                 const std::vector<std::optional<ilat::Pose>>& poses) {
  if (args.compare) write_image(*args.compare, comparison(image, results, poses), args.force);
}

int single(const Arguments& args, const std::string& out, const ilat::Editor& editor, const ilat::Image& image,
           ilat::Edit edit) {
  ilat::Result result;
  {
    const Bar bar(args, "tokens");
    edit.margin = args.margin;
    edit.progress = [&bar](std::int64_t done, std::int64_t total) {
      bar.update(done, total);
      return stop_signal == 0;
    };
    result = editor.edit(image, edit);
  }
  heed_signals();
  const std::size_t size = write_image(out, result.image, args.force);
  write_sheet(args, image, {result}, {edit.pose});
  if (args.save_sketch && result.sketch) write_image(*args.save_sketch, *result.sketch, args.force);
  const Json data = {{"out", out},
                     {"tokens", result.tokens},
                     {"masked_tokens", result.tokens.size()},
                     {"transformer_calls", result.transformer_calls},
                     {"timings_ms", milliseconds(result.timings)},
                     {"backend", result.backend},
                     {"bytes", size},
                     {"notice", notice(args, {result.notice})}};
  tell(args,
       cat(out, ": ", human_size(static_cast<double>(size)), ", ", result.tokens.size(), " of ",
           result.token_mask.size(), " tokens generated in "),
       result.timings.total, data, editor.bundle().kind);
  return kDone;
}

int sequence(const Arguments& args, const std::string& out, const ilat::Editor& editor, const ilat::Image& image,
             const PoseFile& file, double fps, ilat::Edit edit) {
  const double started = seconds();
  std::vector<ilat::Pose> all = file.poses;
  if (file.reference) all.push_back(*file.reference);
  const ilat::Crop crop = editor.crop_for(image, all, edit.mask, args.margin);
  const std::size_t count = file.poses.size(), rows = std::min(kSheetRows, count);
  std::set<std::size_t> shown;
  for (std::size_t i = 0; i < rows; ++i) {
    const double place =
        rows > 1 ? static_cast<double>(count - 1) * static_cast<double>(i) / static_cast<double>(rows - 1) : 0;
    shown.insert(static_cast<std::size_t>(std::nearbyint(place)));
  }
  std::vector<ilat::Result> kept;
  std::vector<std::optional<ilat::Pose>> kept_poses;
  std::vector<std::string> notices;
  Json tokens = Json::array();
  std::int64_t calls = 0, masked = 0;
  ilat::Timings timings;
  std::size_t size = 0;
  {
    VideoWriter video(out, fps, args.force);
    ilat::Session session = editor.reference(image, file.reference, crop);
    timings = session.timings();
    const Bar bar(args, "frames");
    for (std::size_t i = 0; i < count; ++i) {
      heed_signals();
      edit.pose = file.poses[i];
      edit.progress = [](std::int64_t, std::int64_t) { return stop_signal == 0; };
      ilat::Result result = session.edit(edit);
      video.write(result.image);
      tokens.push_back(result.tokens);
      notices.push_back(result.notice);
      calls += result.transformer_calls;
      masked += static_cast<std::int64_t>(result.tokens.size());
      const ilat::Timings& t = result.timings;
      timings.encode += t.encode, timings.prefill += t.prefill, timings.decode += t.decode,
          timings.decoder += t.decoder;
      if (args.compare && shown.count(i)) kept.push_back(std::move(result)), kept_poses.emplace_back(file.poses[i]);
      bar.update(static_cast<std::int64_t>(i) + 1, static_cast<std::int64_t>(count));
    }
    heed_signals();
    size = video.finish();
  }
  timings.total = seconds() - started;
  write_sheet(args, image, kept, kept_poses);
  const Json data = {{"out", out},
                     {"tokens", tokens},
                     {"masked_tokens", masked},
                     {"transformer_calls", calls},
                     {"timings_ms", milliseconds(timings)},
                     {"backend", editor.backend()},
                     {"frames", count},
                     {"bytes", size},
                     {"notice", notice(args, notices)}};
  tell(args,
       cat(out, ": ", human_size(static_cast<double>(size)), ", ", count, " frames at ", ilat::detail::shortest(fps),
           " a second, ", masked, " tokens generated in "),
       timings.total, data, editor.bundle().kind);
  return kDone;
}

/// The flags that give a condition against what the bundle wants.
void check_kind(const Arguments& args, const ilat::BundleInfo& bundle) {
  const std::string &kind = bundle.kind, &wanted = bundle.wanted;
  const std::string pose = args.pose ? "--pose" : args.poses ? "--poses" : "";
  const std::string sketch = args.sketch ? "--sketch" : args.save_sketch ? "--save-sketch" : "";
  if (!pose.empty() && kind != "pose") throw UsageError(cat(pose, ": ", wanted, ", it takes no pose"));
  if (!sketch.empty() && kind != "sketch") throw UsageError(cat(sketch, ": ", wanted, ", it takes no sketch"));
  if (kind == "pose" && pose.empty()) throw UsageError("--pose or --poses is missing: " + wanted);
  if (kind != "pose" && !args.mask) throw UsageError("--mask is missing: " + wanted);
}

int run(const Arguments& args) {
  check_usage(args);
  const std::string out = check_output(args.out, args.poses ? kVideoSuffixes : kImageSuffixes, args.force);
  if (args.compare) check_output(*args.compare, kImageSuffixes, args.force);
  if (args.save_sketch) check_output(*args.save_sketch, kImageSuffixes, args.force);
  check_kind(args, ilat::bundle_info(args.bundle));
  const ilat::Image image = read_image(args.image);
  std::optional<ilat::Image> mask, sketch;
  if (args.mask) mask = read_mask(*args.mask, image);
  if (args.sketch) sketch = read_sketch(*args.sketch, image);
  const std::optional<PoseFile> file = read_pose_files(args, image);
  heed_signals();
  ilat::Options loading;
  loading.backend = args.backend;
  loading.threads = args.threads;
  const ilat::Editor editor(args.bundle, loading);
  heed_signals();
  ilat::Edit edit = options(args);
  if (mask) edit.mask = *mask;
  if (sketch) edit.sketch = *sketch;
  if (args.poses) {
    const double fps = args.fps.value_or(0) != 0 ? *args.fps : file->fps.value_or(kDefaultFps);
    return sequence(args, out, editor, image, *file, fps, edit);
  }
  if (file) edit.pose = file->poses[0], edit.reference_pose = file->reference;
  return single(args, out, editor, image, edit);
}

int report(const std::string& message, int code) {
  std::cerr << "cpp-edit: error: " << ilat::detail::one_line(message, message.size()) << std::endl;
  return code;
}

}  // namespace

int main(int count, char** words) {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  // Writing beyond a limit of the file's size is then an error that can be told.
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
  bool parsed = false;
  try {
    const std::optional<Arguments> args = parse_arguments(count, words);
    parsed = true;
    return args ? run(*args) : kDone;
  } catch (const UsageError& error) {
    if (!parsed) std::cerr << usage() << "\n";
    return report(error.what(), kWrongUse);
  } catch (const Interrupted&) {
    // Below.
  } catch (const ilat::Cancelled&) {
    // Only a signal cancels.
  } catch (const std::bad_alloc&) {
    return report("out of memory", kFailed);
  } catch (const std::exception& error) {
    return report(error.what(), kFailed);
  }
  if (stop_signal == SIGTERM) return 128 + SIGTERM;
  return report("interrupted", 128 + SIGINT);
}
