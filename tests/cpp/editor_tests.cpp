// The editor on a bundle: the folder in $ILAT_TEST_BUNDLE, of any kind. Run under the sanitizers too.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cstdlib>
#include <ilat/editor.hpp>
#include <thread>

namespace {

const char* bundle() {
  const char* folder = std::getenv("ILAT_TEST_BUNDLE");
  REQUIRE_MESSAGE(folder, "set ILAT_TEST_BUNDLE to a bundle's folder");
  return folder;
}

ilat::Options one_thread() {
  ilat::Options options;
  options.threads = 1;
  return options;
}

/// A smooth picture.
ilat::Image picture(int width, int height, int shade) {
  ilat::Image image{width, height, 3, {}};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (const int value : {x * 2, y * 2, (x + y + shade) % 256})
        image.pixels.push_back(static_cast<std::uint8_t>(value));
    }
  }
  return image;
}

ilat::Image right_half(const ilat::Image& image) {
  ilat::Image mask{image.width, image.height, 1, {}};
  for (int i = 0; i < image.width * image.height; ++i) mask.pixels.push_back(i % image.width >= image.width / 2);
  return mask;
}

ilat::Pose standing(float x) {
  ilat::Pose pose;
  for (std::size_t i = 0; i < pose.size(); ++i) {
    pose[i] = {x + static_cast<float>(i % 2) * 8, 10 + 5 * static_cast<float>(i), 1};
  }
  return pose;
}

/// An edit that a bundle of this kind takes; the mask must stay.
ilat::Edit edit_for(const ilat::Editor& editor, const ilat::Image& mask) {
  ilat::Edit edit;
  if (editor.bundle().kind == "pose") edit.pose = standing(40);
  edit.mask = mask;
  return edit;
}

void same(const ilat::Result& a, const ilat::Result& b) {
  CHECK(a.tokens == b.tokens);
  CHECK(a.image.pixels == b.image.pixels);
  CHECK(a.token_mask == b.token_mask);
}

}  // namespace

TEST_CASE("an edit changes the mask only, and a session, a stride and another thread change nothing") {
  ilat::Editor loaded(bundle(), one_thread());
  const ilat::Editor editor = std::move(loaded);
  const ilat::Image image = picture(90, 80, 0), mask = right_half(image);
  ilat::Edit edit = edit_for(editor, mask);
  edit.blend = false;
  std::int64_t calls = 0;
  edit.progress = [&calls](std::int64_t done, std::int64_t total) {
    ++calls;
    return done <= total;
  };
  const ilat::Result result = editor.edit(image, edit);
  REQUIRE(!result.tokens.empty());
  CHECK(calls == static_cast<std::int64_t>(result.tokens.size()));
  CHECK(result.transformer_calls <= calls);
  CHECK(result.log_probability.size() == result.tokens.size());
  CHECK(result.mask.pixels == mask.pixels);
  int changed = 0;
  for (std::size_t i = 0; i < image.pixels.size(); ++i) {
    if (!mask.pixels[i / 3]) CHECK(result.image.pixels[i] == image.pixels[i]);
    changed += result.image.pixels[i] != image.pixels[i];
  }
  CHECK(changed > 0);

  std::vector<std::uint8_t> wide;  // the same picture in rows of 400 bytes
  for (int y = 0; y < image.height; ++y) {
    wide.insert(wide.end(), image.pixels.begin() + y * 270, image.pixels.begin() + (y + 1) * 270);
    wide.resize(wide.size() + 130, 255);
  }
  same(editor.edit({wide.data(), 90, 80, 400}, edit), result);

  ilat::Session session = editor.reference(image, {}, result.crop);
  same(session.edit(edit), result);
  edit.progress = [](std::int64_t done, std::int64_t) { return done < 2; };
  CHECK_THROWS_AS(session.edit(edit), ilat::Cancelled);
  edit.progress = nullptr;
  same(session.edit(edit), result);
  edit.margin = 2;
  CHECK_THROWS_WITH_AS(session.edit(edit), "margin: is the session's, give it to Editor::reference", ilat::InputError);
}

TEST_CASE("many threads use one editor") {
  const ilat::Editor editor(bundle(), one_thread());
  constexpr int kThreads = 4;
  std::vector<ilat::Image> images, masks;
  for (int i = 0; i < kThreads; ++i)
    images.push_back(picture(80, 80, 60 * i)), masks.push_back(right_half(images.back()));
  std::vector<ilat::Result> results(kThreads), alone;
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      ilat::Edit edit = edit_for(editor, masks[i]);
      edit.top_k = 5;
      edit.seed = i;
      if (i % 2) {
        ilat::Session session = editor.reference(images[i], {}, editor.crop_for(images[i], {}, edit.mask));
        results[i] = session.edit(edit);
      } else {
        edit.crop = editor.crop_for(images[i], {}, edit.mask);
        results[i] = editor.edit(images[i], edit);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (std::size_t i = 0; i < kThreads; ++i) {
    ilat::Edit edit = edit_for(editor, masks[i]);
    edit.top_k = 5;
    edit.seed = i;
    edit.crop = results[i].crop;
    same(editor.edit(images[i], edit), results[i]);
  }
}

TEST_CASE("a session outlives its editor") {
  const ilat::Image image = picture(80, 80, 0), mask = right_half(image);
  ilat::Edit edit;
  std::unique_ptr<ilat::Session> session;
  {
    const ilat::Editor editor(bundle(), one_thread());
    edit = edit_for(editor, mask);
    session = std::make_unique<ilat::Session>(editor.reference(image));
  }
  CHECK(!session->edit(edit).tokens.empty());
}

TEST_CASE("the editor's own sampling is what its edits take") {
  const ilat::Image image = picture(80, 80, 0), mask = right_half(image);
  ilat::Options options = one_thread();
  options.top_k = 7;
  options.seed = 3;
  const ilat::Editor sampling(bundle(), options), greedy(bundle(), one_thread());
  ilat::Edit edit = edit_for(greedy, mask);
  const ilat::Result sampled = sampling.edit(image, edit), plain = greedy.edit(image, edit);
  edit.top_k = 7;
  edit.seed = 3;
  same(greedy.edit(image, edit), sampled);
  edit.top_k = 1;
  same(sampling.edit(image, edit), plain);
  options.top_k = 1 << 30;
  CHECK_THROWS_AS(ilat::Editor(bundle(), options), ilat::InputError);
}

TEST_CASE("a library that is missing or none is a clear error") {
  ilat::Options options;
  options.library = "/nonexistent/libonnxruntime.so";
  CHECK_THROWS_WITH_AS(ilat::Editor(bundle(), options), doctest::Contains("/nonexistent/libonnxruntime.so"),
                       ilat::BackendError);
  options.backend = "onnxruntime";
  options.library = "libm.so.6";
  CHECK_THROWS_WITH_AS(ilat::Editor(bundle(), options), "backend: onnxruntime: libm.so.6 is not ONNX Runtime",
                       ilat::BackendError);
  options.backend = "onnxruntim";
  CHECK_THROWS_WITH_AS(ilat::Editor(bundle(), options), doctest::Contains("did you mean onnxruntime?"),
                       ilat::BackendError);
}
