// Reference, target pose, mask and result side by side; the twin of ilat_runtime/sheet.py.
#pragma once

#include <ilat/editor.hpp>
#include <optional>
#include <vector>

/// Reference, target pose or sketch (where there is one), mask and result: a row for each result.
ilat::Image comparison(const ilat::Image& image, const std::vector<ilat::Result>& results,
                       const std::vector<std::optional<ilat::Pose>>& poses);
