// The library's parts without a model. What Python computes the same way is compared with it in tests/test_cpp.py.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <ilat/editor.hpp>

#include "jobs.hpp"
#include "segments.hpp"
#include "sha256.hpp"
#include "text.hpp"

using namespace ilat::detail;

TEST_CASE("text is what Python writes") {
  CHECK(repr(0.0) == "0.0");
  CHECK(repr(-3.0) == "-3.0");
  CHECK(repr(0.1) == "0.1");
  CHECK(repr(1e-5) == "1e-05");
  CHECK(repr(1e16) == "1e+16");
  CHECK(repr(123456789012345.0) == "123456789012345.0");
  CHECK(repr(std::nan("")) == "nan");
  CHECK(repr(std::string("it's")) == "\"it's\"");
  CHECK(repr(std::string("a\nb\x01")) == "'a\\nb\\x01'");
  CHECK(repr(Json::parse(R"({"a": [1, 2.5, null, true, "x"]})")) == "{'a': [1, 2.5, None, True, 'x']}");
  CHECK(shortest(1e7) == "1e+07");
  CHECK(shortest(-std::nan("")) == "nan");
  CHECK(head("äöü", 2) == "äö");
  CHECK(characters("äöü") == 3);
  CHECK(one_line(" a \n b\t") == "a b");
}

TEST_CASE("the nearest word is difflib's") {
  CHECK(close_match("--sed", {"--seed", "--pose", "--help"}) == "--seed");
  CHECK(close_match("image_siz", {"image_size", "name"}) == "image_size");
  CHECK(close_match("x", {"name", "kind"}).empty());
}

TEST_CASE("paths lose what pathlib drops") {
  CHECK(tidy_path("a//b/./c/") == "a/b/c");
  CHECK(tidy_path("/a/../b") == "/a/../b");
  CHECK(tidy_path("./") == ".");
}

TEST_CASE("JSON is strict") {
  CHECK_THROWS_WITH(parse_json(R"({"a": 1, "b": {"c": 1, "c": 2}})"), "the key 'c' occurs twice");
  CHECK_THROWS_WITH(parse_json("[1,\n NaN]"), "NaN is not a JSON number");
  CHECK_THROWS_WITH(parse_json("[-Infinity]"), "-Infinity is not a JSON number");
  CHECK_THROWS_WITH(parse_json("[1,\n  x]"), "syntax error at line 2 column 3");
  CHECK_THROWS_WITH(parse_json(std::string(5000, '[')), "nested too deeply");
  CHECK(parse_json(R"({"b": 1, "a": 2})").begin().key() == "b");
}

TEST_CASE("SHA-256 of the standard's examples, and around the block's end") {
  const auto digest = [](const std::string& text) {
    char path[] = "/tmp/ilat-sha256-XXXXXX";
    close(mkstemp(path));
    std::ofstream(path, std::ios::binary) << text;
    const std::string result = sha256_of_file(path);
    std::remove(path);
    return result;
  };
  CHECK(digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(digest(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  CHECK(digest(std::string(55, 'a')) == "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
  CHECK(digest(std::string(56, 'a')) == "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a");
  CHECK(digest(std::string(262144, 'a')) == "dd3dde87623d9a6b354c68c943d189c89c63652d945e7bbdf0986cae91a49521");
}

TEST_CASE("the plan of the paper's figure 3") {
  const std::vector<bool> masked = {false, true, true, false, false, true, false, true, false};
  const DecodePlan plan = decode_plan(masked, "local");
  CHECK(plan.prefill == std::vector<std::int64_t>{0, 4, 9});
  REQUIRE(plan.steps.size() == 4);
  CHECK(plan.steps[0].feed == std::vector<std::int64_t>{1});
  CHECK(plan.steps[2].feed == std::vector<std::int64_t>{3, 5});
  CHECK(plan.steps[2].read == 5);
  CHECK(decode_plan(masked, "released").prefill_read == std::vector<std::int64_t>{-1, 1, -1, 5, 7, -1});
  CHECK(decode_plan(masked, "vanilla").prefill.empty());
}

TEST_CASE("the noise is documented in ilat_runtime/sampling.py") {
  float noise[3];
  uniform(5, 7, 3, noise);
  CHECK(noise[0] == 0x1.0e049c0000000p-2F);
  CHECK(noise[1] == 0x1.8286f80000000p-3F);
  CHECK(noise[2] == 0x1.fc0f6c0000000p-2F);
}

namespace {

Manifest model(std::int64_t size) {
  Manifest manifest;
  manifest.kind = "none";
  manifest.image_size = size;
  manifest.factor = 1;
  return manifest;
}

}  // namespace

TEST_CASE("views of the caller may have a stride, crops may reach beyond the image") {
  const std::vector<std::uint8_t> data = {1, 1, 1, 2, 2, 2, 9, 3, 3, 3, 4, 4, 4, 9};
  const Pixels image = checked_image({data.data(), 2, 2, 7});
  CHECK(copied(image).pixels == std::vector<std::uint8_t>{1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4});
  const Bytes square = take(image, {-1, 0, 3});
  CHECK(square[0] == 1);
  CHECK(square[3] == 1);
  CHECK(square[6] == 2);
  CHECK(square[26] == 4);
  ilat::Image into{2, 2, 3, Bytes(12, 0)};
  put(into, square.data(), {-1, 0, 3});
  CHECK(into.pixels == copied(image).pixels);
  const std::vector<std::uint8_t> mask = {0, 200, 7, 0, 0, 7};
  const Pixels grey = checked_grey({mask.data(), 2, 2, 3}, image, "mask");
  CHECK(take_mask(grey, {1, -1, 2}) == Bytes{0, 0, 1, 0});
  const ilat::Crop crop = find_crop(model(1), image, {}, grey, {});
  CHECK(crop.x == 1);
  CHECK(crop.y == 0);
  CHECK(crop.side == 1);
}

TEST_CASE("bad arguments are named") {
  const std::vector<std::uint8_t> data(300);
  const Pixels image = checked_image({data.data(), 10, 10, 0});
  CHECK_THROWS_WITH(checked_image({nullptr, 0, 3, 0}), "image: shape (3, 0, 3) has no pixels");
  CHECK_THROWS_WITH(checked_image({data.data(), 10, 10, 29}),
                    "image: stride 29, expected at least 3 bytes for each of 10 pixels");
  CHECK_THROWS_WITH(checked_image({data.data(), 20000, 20000, 0}),
                    "image: 20000x20000 pixels are too many, at most 134 million and 32768 along a side are accepted");
  CHECK_THROWS_WITH(checked_grey({data.data(), 9, 10, 0}, image, "mask"),
                    "mask: height and width (10, 9), expected (10, 10) as the image");
  CHECK_THROWS_WITH(checked_crop({0, 0, 9000}, image, "crop"),
                    "crop: the edit needs a square of 9000 pixels, expected 1 to 8192; reduce the image");
  CHECK_THROWS_WITH(checked_crop({INT32_MAX, 0, 5}, image, "crop"),
                    "crop: Crop(x=2147483647, y=0, side=5) lies outside the image of 10x10 pixels");
  CHECK_THROWS_WITH(check_sampling({0, std::nan(""), 1}, 5),
                    "temperature: nan, expected a number from 0.001 to 1000 (top_k=1 is greedy)");
  CHECK_THROWS_WITH(check_sampling({0, 1, 6}, 5), "top_k: 6, expected a whole number from 1 to 5");
  ilat::Pose pose = {};
  CHECK_THROWS_WITH(checked_pose(pose, image, "pose"),
                    "pose: no visible landmark lies inside the image of 10x10 pixels");
  pose[1] = {INFINITY, 0, 1};
  CHECK_THROWS_WITH(checked_pose(pose, image, "pose"),
                    "pose: left_shoulder is not finite, expected float32 (13, 3): x, y in pixels and visibility of 13 "
                    "landmarks");
}
