// Batch norm: the statistics of a batch, from those of its images, and the gradient of its input.

#pragma once

#include <cmath>

#include "winograd.h"

namespace jaxsparse {

// 1 / deviation; NaN if the variance is not finite, as zero would hide that.
inline double inverse_deviation(double variance, float eps) {
  return std::isfinite(variance) ? 1 / std::sqrt(variance + eps) : NAN;
}

// The mean of an image and the sum of squared differences from it: [2, out()]. Outputs outside the
// image are not counted.
inline void image_statistics(Shape s, Layout at, const float* y, double* to) {
  const double count = s.height * s.width;
  for (int64_t o = 0; o < s.out(); o += kLanes) {
    // A value of the channel is subtracted first, to avoid cancellation if the mean is large.
    const Vec start = load(y + o);
    Vec sum = {}, square = {};
    for (int64_t i = 0; i < s.tile_rows(); ++i) {
      for (int64_t j = 0; j < s.tile_columns(); ++j) {
        const bool low = 2 * i + 1 < s.height, right = 2 * j + 1 < s.width;
#pragma GCC unroll 16
        for (int q = 0; q < kQuads; ++q) {
          if ((q / 2 && !low) || (q % 2 && !right)) continue;
          const Vec d = load(y + at.pixel(i, j, q) * s.out() + o) - start;
          sum += d, square += d * d;
        }
      }
    }
    for (int k = 0; k < kLanes; ++k) {
      const double shift = sum[k] / count;
      to[o + k] = start[k] + shift;
      to[s.out() + o + k] = square[k] - shift * sum[k];
    }
  }
}

// Mean and 1 / deviation of the batch, from the statistics of its images.
inline void finish_statistics(Shape s, const double* statistics, float eps, float* mean,
                              float* inverse) {
  const double count = s.height * s.width;
  for (int64_t o = 0; o < s.outputs; ++o) {
    double middle = 0, square = 0;
    for (int64_t n = 0; n < s.images; ++n) {
      const double* own = statistics + n * 2 * s.out() + o;
      const double apart = own[0] - middle;
      square += own[s.out()] + apart * apart * count * n / (n + 1);
      middle += apart / (n + 1);
    }
    mean[o] = middle;
    inverse[o] = inverse_deviation(square / (count * s.images), eps);
  }
}

// The factors of the gradient of batch norm, [3, out()]: dy = gain dz - level - y slope, which is
// gain (dz - mean(dz) - unit mean(dz unit)).
inline void norm_factors(Shape s, const float* scale, const float* mean, const float* inverse,
                         const float* d_scale, const float* d_bias, float* to) {
  std::memset(to, 0, 3 * s.out() * sizeof(float));
  const double count = s.images * s.height * s.width;
  for (int64_t o = 0; o < s.outputs; ++o) {
    const double gain = double(scale[o]) * inverse[o];
    const double slope = gain * inverse[o] * d_scale[o] / count;
    to[o] = gain;
    to[s.out() + o] = gain * d_bias[o] / count - mean[o] * slope;
    to[2 * s.out() + o] = slope;
  }
}

}  // namespace jaxsparse
