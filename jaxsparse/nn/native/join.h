// The end of a residual block: out = maxpool(leaky(a + b)), 2x2 with stride 2.
//
// Among equal entries of a window, the first in row order receives the gradient. NaN counts as the
// largest. Leaky ReLU is monotonic, so it is applied after the maximum.

#pragma once

#include "sharing.h"
#include "vectors.h"

namespace jaxsparse {

struct JoinShape {
  int64_t images, height, width, channels, padding;

  int64_t rows() const { return (height + 2 * padding) / 2; }
  int64_t columns() const { return (width + 2 * padding) / 2; }
  int64_t wide() const { return padded(channels); }
  int shares() const {
    return std::clamp<int64_t>(images * height * width / 256, 1, std::min<int64_t>(images, 4));
  }
  // The pixel of an image at a place of a window; -1 if it is outside the image.
  int64_t pixel(int64_t i, int64_t j, int q) const {
    const int64_t y = 2 * i - padding + q / 2, x = 2 * j - padding + q % 2;
    return y < 0 || x < 0 || y >= height || x >= width ? -1 : y * width + x;
  }
};

// place [n, rows, columns, wide()]: the place of the maximum in the window, 0 to 3.
inline void join(JoinShape s, Range range, const float* a, const float* b, float slope, float* out,
                 uint8_t* place) {
  for (int64_t n = range.first, w = n * s.rows() * s.columns(); n < range.last; ++n) {
    const int64_t image = n * s.height * s.width;
    for (int64_t i = 0; i < s.rows(); ++i) {
      for (int64_t j = 0; j < s.columns(); ++j, ++w) {
        for (int64_t o = 0; o < s.channels; o += kLanes) {
          const int64_t left = s.channels - o;
          Vec best = {};
          IntVec where = IntVec{} - 1;
#pragma GCC unroll 16
          for (int q = 0; q < 4; ++q) {
            const int64_t pixel = s.pixel(i, j, q);
            if (pixel < 0) continue;
            const int64_t at = (image + pixel) * s.channels + o;
            const Vec sum = load_some(a + at, left) + load_some(b + at, left);
            const IntVec better = (where < 0) | (~(sum <= best) & (best == best));
            best = better ? sum : best;
            where = better ? IntVec{} + q : where;
          }
          store_some(out + w * s.channels + o, best >= 0 ? best : best * slope, left);
          store_bytes(place + w * s.wide() + o, where);
        }
      }
    }
  }
}

// The gradient of a + b.
inline void join_back(JoinShape s, Range range, const float* out, const uint8_t* place,
                      const float* gradient, float slope, float* d) {
  const int64_t pixels = s.height * s.width;
  std::memset(d + range.first * pixels * s.channels, 0,
              (range.last - range.first) * pixels * s.channels * sizeof(float));
  for (int64_t n = range.first, w = n * s.rows() * s.columns(); n < range.last; ++n) {
    for (int64_t i = 0; i < s.rows(); ++i) {
      for (int64_t j = 0; j < s.columns(); ++j, ++w) {
        for (int64_t o = 0; o < s.channels; o += kLanes) {
          const int64_t left = s.channels - o;
          const Vec g = load_some(gradient + w * s.channels + o, left);
          const Vec dz = load_some(out + w * s.channels + o, left) >= 0 ? g : g * slope;
          const IntVec where = load_bytes(place + w * s.wide() + o);
#pragma GCC unroll 16
          for (int q = 0; q < 4; ++q) {
            const int64_t pixel = s.pixel(i, j, q);
            if (pixel < 0) continue;
            store_some(d + (n * pixels + pixel) * s.channels + o, where == q ? dz : Vec{}, left);
          }
        }
      }
    }
  }
}

}  // namespace jaxsparse
