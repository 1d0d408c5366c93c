// The input patches of a 3x3 convolution, for images with few channels.

#pragma once

#include "winograd.h"

namespace jaxsparse {

struct PatchShape : Shape {
  int64_t taps() const { return 9 * inputs; }
  int64_t wide() const { return padded(taps()); }        // floats per patch
  int64_t line() const { return (width + 2) * inputs; }  // floats per row of a bordered image
  // Floats of an image with its border. The last vector of the last patch reads beyond its end.
  int64_t bordered() const { return (height + 2) * line() + kLanes; }
};

// The patch around a pixel, written in whole vectors. The floats after its taps are not used; they
// may overlap the next patch, which must be written after this one.
inline void patch(PatchShape s, const float* bordered, int64_t y, int64_t x, float* to) {
  const float* corner = bordered + y * s.line() + x * s.inputs;
  for (int64_t i = 0; i < 3; ++i, corner += s.line(), to += 3 * s.inputs)
    for (int64_t k = 0; k < 3 * s.inputs; k += kLanes) store(to + k, load(corner + k));
}

}  // namespace jaxsparse
