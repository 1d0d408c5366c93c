// Patches of images of few channels: what each output of a 3x3 convolution sees.

#pragma once

#include "winograd.h"

namespace jaxsparse {

struct PatchShape : Shape {
  int64_t taps() const { return 9 * inputs; }
  int64_t wide() const { return padded(taps()); }  // of a row of patches
  int64_t line() const { return (width + 2) * inputs; }
  // Of an image with its border, and what the last vector of its last patch reads beyond.
  int64_t bordered() const { return (height + 2) * line() + kLanes; }
};

// The patch around a pixel, in whole vectors: what lies behind its taps is of no meaning, and may
// be the beginning of the next patch, which is to be written after this one.
inline void patch(PatchShape s, const float* bordered, int64_t y, int64_t x, float* to) {
  const float* corner = bordered + y * s.line() + x * s.inputs;
  for (int64_t i = 0; i < 3; ++i, corner += s.line(), to += 3 * s.inputs)
    for (int64_t k = 0; k < 3 * s.inputs; k += kLanes) store(to + k, load(corner + k));
}

}  // namespace jaxsparse
