#include "sheet.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <opencv2/imgproc.hpp>
#include <string>
#include <utility>

namespace {

constexpr int kCell = 384;  // longest side of a picture, in pixels
constexpr int kGap = 6, kHeading = 26;
const cv::Scalar kLeft(255, 160, 0), kRight(0, 170, 255), kMiddle(235, 235, 235);
const cv::Vec3f kMasked(255, 0, 90);

// Without the diagonals of the torso.
constexpr std::array<std::pair<std::size_t, std::size_t>, 14> kLimbs = {{{0, 1},
                                                                         {0, 2},
                                                                         {1, 2},
                                                                         {1, 3},
                                                                         {3, 5},
                                                                         {2, 4},
                                                                         {4, 6},
                                                                         {1, 7},
                                                                         {2, 8},
                                                                         {7, 8},
                                                                         {7, 9},
                                                                         {9, 11},
                                                                         {8, 10},
                                                                         {10, 12}}};

cv::Scalar colour(std::size_t a, std::size_t b) {
  bool left = false, right = false;
  for (const std::string name : {ilat::joints[a], ilat::joints[b]}) {
    left = left || name.compare(0, 4, "left") == 0;
    right = right || name.compare(0, 5, "right") == 0;
  }
  return left == right ? kMiddle : left ? kLeft : kRight;
}

cv::Mat view(const ilat::Image& image) {
  return {image.height, image.width, image.channels == 3 ? CV_8UC3 : CV_8UC1,
          const_cast<std::uint8_t*>(image.pixels.data())};
}

/// The image, darkened, with the skeleton drawn on it: left orange, right blue.
cv::Mat with_pose(const cv::Mat& image, const ilat::Pose& pose) {
  cv::Mat canvas;
  image.convertTo(canvas, CV_32FC3, 0.6);
  for (auto value = canvas.begin<cv::Vec3f>(); value != canvas.end<cv::Vec3f>(); ++value) {
    for (int c = 0; c < 3; ++c) (*value)[c] = std::floor((*value)[c]);
  }
  canvas.convertTo(canvas, CV_8UC3);
  const int thickness = std::max(2, static_cast<int>(std::nearbyint(std::max(image.rows, image.cols) / 110.0)));
  const auto point = [&](std::size_t joint) {
    const auto round = [](float v) { return static_cast<int>(std::nearbyint(std::clamp(v, -32000.0F, 32000.0F))); };
    return cv::Point(round(pose[joint].x), round(pose[joint].y));
  };
  for (const auto& [a, b] : kLimbs) {
    if (pose[a].visibility > 0.5F && pose[b].visibility > 0.5F) {
      cv::line(canvas, point(a), point(b), colour(a, b), thickness, cv::LINE_AA);
    }
  }
  for (std::size_t joint = 0; joint < pose.size(); ++joint) {
    if (pose[joint].visibility > 0.5F)
      cv::circle(canvas, point(joint), thickness, colour(joint, joint), -1, cv::LINE_AA);
  }
  return canvas;
}

cv::Mat with_mask(const cv::Mat& image, const cv::Mat& mask) {
  cv::Mat result = image.clone();
  for (int y = 0; y < image.rows; ++y) {
    for (int x = 0; x < image.cols; ++x) {
      if (!mask.at<std::uint8_t>(y, x)) continue;
      auto& pixel = result.at<cv::Vec3b>(y, x);
      for (int c = 0; c < 3; ++c) {
        pixel[c] = static_cast<std::uint8_t>(0.35F * static_cast<float>(pixel[c]) + 0.65F * kMasked[c]);
      }
    }
  }
  return result;
}

cv::Mat fitted(const cv::Mat& image) {
  const double scale = static_cast<double>(kCell) / std::max(image.rows, image.cols);
  const auto length = [scale](int extent) { return std::max(1, static_cast<int>(std::nearbyint(extent * scale))); };
  cv::Mat result;
  cv::resize(image, result, {length(image.cols), length(image.rows)}, 0, 0,
             scale < 1 ? cv::INTER_AREA : cv::INTER_CUBIC);
  return result;
}

}  // namespace

ilat::Image comparison(const ilat::Image& image, const std::vector<ilat::Result>& results,
                       const std::vector<std::optional<ilat::Pose>>& poses) {
  const bool posed = std::all_of(poses.begin(), poses.end(), [](const auto& pose) { return pose.has_value(); });
  std::vector<std::string> labels = {"reference", "mask", "result"};
  const bool sketched = std::all_of(results.begin(), results.end(), [](const auto& r) { return r.sketch.has_value(); });
  if (posed || sketched) labels.insert(labels.begin() + 1, posed ? "target pose" : "sketch");
  const cv::Mat reference = view(image);
  std::vector<std::vector<cv::Mat>> rows;
  std::vector<int> widths(labels.size()), heights;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const ilat::Result& result = results[i];
    std::vector<cv::Mat> pictures = {reference, with_mask(reference, view(result.mask)), view(result.image)};
    if (posed) {
      pictures.insert(pictures.begin() + 1, with_pose(reference, *poses[i]));
    } else if (sketched) {
      cv::Mat drawing;
      cv::cvtColor(view(*result.sketch), drawing, cv::COLOR_GRAY2BGR);
      pictures.insert(pictures.begin() + 1, drawing);
    }
    // The crop in which the edit happened, as far as it lies inside the image.
    const cv::Rect visible = cv::Rect(result.crop.x, result.crop.y, result.crop.side, result.crop.side) &
                             cv::Rect(0, 0, image.width, image.height);
    heights.push_back(0);
    for (std::size_t column = 0; column < pictures.size(); ++column) {
      pictures[column] = fitted(pictures[column](visible));
      widths[column] = std::max(widths[column], pictures[column].cols);
      heights.back() = std::max(heights.back(), pictures[column].rows);
    }
    rows.push_back(pictures);
  }
  int width = kGap, height = kHeading;
  for (const int w : widths) width += w + kGap;
  for (const int h : heights) height += h + kGap;
  cv::Mat sheet(height, width, CV_8UC3, cv::Scalar(255, 255, 255));
  int left = kGap;
  for (std::size_t column = 0; column < labels.size(); ++column) {
    int baseline = 0;
    const int text = cv::getTextSize(labels[column], cv::FONT_HERSHEY_SIMPLEX, 0.55, 1, &baseline).width;
    const double scale = std::min(0.55, 0.55 * widths[column] / std::max(1, text));
    cv::putText(sheet, labels[column], {left, kHeading - 9}, cv::FONT_HERSHEY_SIMPLEX, scale, {30, 30, 30}, 1,
                cv::LINE_AA);
    int top = kHeading;
    for (std::size_t row = 0; row < rows.size(); ++row) {
      const cv::Mat& picture = rows[row][column];
      picture.copyTo(sheet(cv::Rect(left, top, picture.cols, picture.rows)));
      top += heights[row] + kGap;
    }
    left += widths[column] + kGap;
  }
  return {sheet.cols, sheet.rows, 3, {sheet.data, sheet.data + sheet.total() * 3}};
}
