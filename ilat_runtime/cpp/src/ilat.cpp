// The C header: handles around ilat/editor.hpp, statuses instead of exceptions.
#include <ilat/ilat.h>

#include <cstdlib>
#include <cstring>
#include <ilat/editor.hpp>

struct ilat_editor {
  ilat::Editor editor;
};
struct ilat_session {
  ilat::Session session;
};
struct ilat_result {
  ilat::Result result;
  int grid;
};

namespace {

/// Runs `work`; what it throws becomes a status and a message.
template <typename Work>
ilat_status guarded(char** message, const Work& work) noexcept {
  const auto failed = [message](ilat_status status, const char* text) {
    // Not strdup, which C++17 does not know.
    const std::size_t size = std::strlen(text) + 1;
    if (message && (*message = static_cast<char*>(std::malloc(size)))) std::memcpy(*message, text, size);
    return status;
  };
  if (message) *message = nullptr;
  try {
    work();
    return ILAT_OK;
  } catch (const ilat::InputError& error) {
    return failed(ILAT_INPUT_ERROR, error.what());
  } catch (const ilat::BundleError& error) {
    return failed(ILAT_BUNDLE_ERROR, error.what());
  } catch (const ilat::BackendError& error) {
    return failed(ILAT_BACKEND_ERROR, error.what());
  } catch (const ilat::Cancelled& error) {
    return failed(ILAT_CANCELLED, error.what());
  } catch (const std::exception& error) {
    return failed(ILAT_FAILED, error.what());
  } catch (...) {
    return failed(ILAT_FAILED, "an unknown error");
  }
}

template <typename T>
const T& required(const T* pointer, const char* name) {
  if (!pointer) throw ilat::InputError(std::string(name) + ": NULL");
  return *pointer;
}

template <typename To, typename From>
std::optional<To> optional(const From* pointer) {
  return pointer ? std::optional<To>(*pointer) : std::nullopt;
}

ilat::Pose to_pose(const ilat_pose& pose) {
  ilat::Pose result;
  for (std::size_t i = 0; i < result.size(); ++i) result[i] = {pose.points[i][0], pose.points[i][1], pose.points[i][2]};
  return result;
}

std::optional<ilat::Pose> to_pose(const ilat_pose* pose) { return pose ? std::optional(to_pose(*pose)) : std::nullopt; }

std::optional<ilat::Crop> to_crop(const ilat_crop* crop) {
  return crop ? std::optional(ilat::Crop{crop->x, crop->y, crop->side}) : std::nullopt;
}

ilat::ImageView to_image(const ilat_pixels* p) { return {required(p, "image").data, p->width, p->height, p->stride}; }

std::optional<ilat::GreyView> to_grey(const ilat_pixels& p) {
  return p.data ? std::optional(ilat::GreyView{p.data, p.width, p.height, p.stride}) : std::nullopt;
}

ilat::Edit to_edit(const ilat_edit_options* given) {
  const ilat_edit_options none = {};
  const ilat_edit_options& o = given ? *given : none;
  ilat::Edit edit;
  edit.pose = to_pose(o.pose);
  edit.reference_pose = to_pose(o.reference_pose);
  edit.mask = to_grey(o.mask);
  edit.sketch = to_grey(o.sketch);
  edit.seed = o.seed;
  edit.temperature = o.temperature == 0 ? 1 : o.temperature;
  edit.top_k = o.top_k == 0 ? 1 : o.top_k;
  edit.dilation = optional<double>(o.dilation);
  edit.margin = optional<double>(o.margin);
  edit.crop = to_crop(o.crop);
  if (o.blend) edit.blend = *o.blend != 0;
  if (o.progress) {
    edit.progress = [callback = o.progress, user = o.user](std::int64_t done, std::int64_t total) {
      return callback(done, total, user) != 0;
    };
  }
  return edit;
}

ilat_pixels to_pixels(const ilat::Image& image) {
  return {image.pixels.data(), image.width, image.height, static_cast<std::ptrdiff_t>(image.width) * image.channels};
}

}  // namespace

const char* ilat_version(void) { return ilat::version(); }

ilat_status ilat_open(const char* bundle, const ilat_options* given, ilat_editor** editor, char** message) {
  return guarded(message, [&] {
    ilat::Options options;
    if (given && given->backend) options.backend = given->backend;
    if (given && given->threads != 0) options.threads = given->threads;
    if (given && given->library) options.library = given->library;
    *editor = new ilat_editor{ilat::Editor(&required(bundle, "bundle"), options)};
  });
}

ilat_status ilat_edit(const ilat_editor* editor, const ilat_pixels* image, const ilat_edit_options* edit,
                      ilat_result** result, char** message) {
  return guarded(message, [&] {
    const ilat::Editor& e = required(editor, "editor").editor;
    *result = new ilat_result{e.edit(to_image(image), to_edit(edit)), e.bundle().grid};
  });
}

ilat_status ilat_reference(const ilat_editor* editor, const ilat_pixels* image, const ilat_edit_options* options,
                           ilat_session** session, char** message) {
  return guarded(message, [&] {
    const ilat::Edit o = to_edit(options);
    *session = new ilat_session{
        required(editor, "editor").editor.reference(to_image(image), o.reference_pose, o.crop, o.sketch)};
  });
}

ilat_status ilat_session_edit(ilat_session* session, const ilat_edit_options* edit, ilat_result** result,
                              char** message) {
  return guarded(message, [&] {
    required(session, "session");
    ilat::Result done = session->session.edit(to_edit(edit));
    const auto tokens = done.token_mask.size();
    int grid = 0;
    while (static_cast<std::size_t>(grid) * static_cast<std::size_t>(grid) < tokens) ++grid;
    *result = new ilat_result{std::move(done), grid};
  });
}

ilat_status ilat_crop_for(const ilat_editor* editor, const ilat_pixels* image, const ilat_pose* poses, size_t count,
                          const ilat_edit_options* options, ilat_crop* crop, char** message) {
  return guarded(message, [&] {
    std::vector<ilat::Pose> all;
    for (std::size_t i = 0; i < count; ++i) all.push_back(to_pose((&required(poses, "poses"))[i]));
    const ilat::Edit o = to_edit(options);
    const ilat::Crop found = required(editor, "editor").editor.crop_for(to_image(image), all, o.mask, o.margin);
    *crop = {found.x, found.y, found.side};
  });
}

ilat_view_of_result ilat_view(const ilat_result* result) {
  const ilat::Result& r = result->result;
  return {to_pixels(r.image),
          to_pixels(r.mask),
          r.sketch ? to_pixels(*r.sketch) : ilat_pixels{},
          r.tokens.data(),
          r.log_probability.data(),
          r.tokens.size(),
          r.token_mask.data(),
          result->grid,
          r.transformer_calls,
          {r.crop.x, r.crop.y, r.crop.side},
          r.timings.total,
          r.backend.c_str(),
          r.notice.c_str()};
}

void ilat_close(ilat_editor* editor) { delete editor; }
void ilat_close_session(ilat_session* session) { delete session; }
void ilat_free_result(ilat_result* result) { delete result; }
void ilat_free(char* message) { std::free(message); }
