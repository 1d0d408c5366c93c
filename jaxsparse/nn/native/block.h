// Convolution, batch norm, ReLU and 2x2 max-pool as one operation. The convolution uses Winograd's
// 2x2 tiles, which are also the windows of the pooling.
//
//   out = maxpool(relu(scale (y - mean(y)) / sqrt(var(y) + eps) + bias)),  y = images * kernel
//
// images [n, height, width, inputs], kernel [3, 3, inputs, outputs], stride 1, padding 1. Among
// equal entries of a window, the first in row order receives the gradient. NaN and infinity
// propagate, also through ReLU.

#pragma once

#include "convolve.h"

namespace jaxsparse {

constexpr uint8_t kOff = 4;  // stored instead of the place of a maximum that ReLU sets to zero

// Residuals for the backward pass.
struct Saved {
  float* y;        // [n, tiles, 4, out()]
  float* unit;     // [n, windows, out()]: the normalised maximum of each window
  uint8_t* place;  // [n, windows, out()]: its place in the window, 0 to 3, or kOff
  float* mean;     // [outputs]
  float* inverse;  // [outputs]: 1 / sqrt(var(y) + eps)
};

// The largest entry of each window after norm and ReLU. It is found before the norm: the maximum,
// or the minimum if the scale is negative.
inline void pool(Shape s, Range range, const float* scale, const float* bias, float* out,
                 const Saved& saved) {
  const int64_t height = s.height / 2, width = s.width / 2;
  for (int64_t n = range.first, w = n * height * width; n < range.last; ++n) {
    for (int64_t i = 0; i < height; ++i) {
      for (int64_t j = 0; j < width; ++j, ++w) {
        const int64_t tile = (n * s.tile_rows() + i) * s.tile_columns() + j;
        for (int64_t o = 0; o < s.outputs; o += kLanes) {
          const int64_t left = s.outputs - o;
          const float* at = saved.y + tile * kQuads * s.out() + o;
          const Vec slope = load_some(scale + o, left);
          Vec best = load(at);
          IntVec where = {};
#pragma GCC unroll 16
          for (int q = 1; q < kQuads; ++q) {
            const Vec other = load(at + q * s.out());
            const IntVec better = slope >= 0 ? other > best : other < best;
            best = better ? other : best;
            where = better ? IntVec{} + q : where;
          }
          const Vec middle = load_some(saved.mean + o, left);
          const Vec unit = (best - middle) * load_some(saved.inverse + o, left);
          const Vec value = unit * slope + load_some(bias + o, left);
          where = value <= 0 ? IntVec{} + kOff : where;
          store_some(out + w * s.outputs + o, value <= 0 ? Vec{} : value, left);
          store(saved.unit + w * s.out() + o, unit);
          store_bytes(saved.place + w * s.out() + o, where);
        }
      }
    }
  }
}

inline void block_forward(Shape s, const float* images, const float* kernel, const float* scale,
                          const float* bias, float eps, float* out, const Saved& saved,
                          const Helpers& helpers) {
  const int shares = convolution_shares(s);
  std::vector<double> statistics(s.images * 2 * s.out());
  const float* weights = weights_of(s, kernel, helpers);
  helpers.run(shares, [&](int k) {
    convolve(s, s.by_tile(), share_of(s.images, k, shares), images, weights, saved.y,
             statistics.data());
  });
  finish_statistics(s, statistics.data(), eps, saved.mean, saved.inverse);
  helpers.run(shares,
              [&](int k) { pool(s, share_of(s.images, k, shares), scale, bias, out, saved); });
}

// Sums of gradient and of gradient * unit per channel, where ReLU is active.
inline void gradient_sums(Shape s, const float* gradient, const Saved& saved, float* d_bias,
                          float* d_scale) {
  const int64_t windows = (s.height / 2) * (s.width / 2);
  for (int64_t o = 0; o < s.outputs; o += kLanes) {
    double sums[2][kLanes] = {};
    for (int64_t n = 0; n < s.images; ++n) {
      Vec sum = {}, product = {};
      for (int64_t w = n * windows; w < (n + 1) * windows; ++w) {
        Vec g = load_some(gradient + w * s.outputs + o, s.outputs - o);
        g = load_bytes(saved.place + w * s.out() + o) < kOff ? g : Vec{};
        sum += g, product += g * load(saved.unit + w * s.out() + o);
      }
      for (int k = 0; k < kLanes; ++k) sums[0][k] += sum[k], sums[1][k] += product[k];
    }
    for (int64_t k = 0; k < std::min<int64_t>(kLanes, s.outputs - o); ++k)
      d_bias[o + k] = sums[0][k], d_scale[o + k] = sums[1][k];
  }
}

// dy of a tile, by the gradient of batch norm; dz is zero except at the maxima.
struct PooledGradient {
  Shape s;
  const float *y, *gradient, *factors;
  const uint8_t* place;

  void operator()(int64_t n, int64_t i, int64_t j, int64_t o, Vec* d) const {
    const int64_t height = s.height / 2, width = s.width / 2;
    const int64_t tile = (n * s.tile_rows() + i) * s.tile_columns() + j;
    const int64_t window = (n * height + i) * width + j;
    const bool low = 2 * i + 1 < s.height, right = 2 * j + 1 < s.width;
    const Vec gain = load(factors + o), level = load(factors + s.out() + o);
    const Vec slope = load(factors + 2 * s.out() + o);
    Vec dz = {};
    IntVec where = IntVec{} + kOff;
    if (i < height && j < width) {
      dz = gain * load_some(gradient + window * s.outputs + o, s.outputs - o);
      where = load_bytes(place + window * s.out() + o);
    }
#pragma GCC unroll 16
    for (int q = 0; q < kQuads; ++q) {
      if ((q / 2 && !low) || (q % 2 && !right)) continue;
      const Vec value = load(y + (tile * kQuads + q) * s.out() + o);
      d[q] = (where == q ? dz : Vec{}) - level - value * slope;
    }
  }
};

inline void block_backward(Shape s, const float* images, const float* kernel, const float* scale,
                           const Saved& saved, const float* gradient, float* d_images,
                           float* d_kernel, float* d_scale, float* d_bias, const Helpers& helpers) {
  const int shares = convolution_shares(s);
  float* factors = scratch(Slot::kFactors, 3 * s.out());
  gradient_sums(s, gradient, saved, d_bias, d_scale);
  norm_factors(s, scale, saved.mean, saved.inverse, d_scale, d_bias, factors);
  const PooledGradient dy{s, saved.y, gradient, factors, saved.place};
  convolution_back(s, shares, images, kernel, dy, d_images, d_kernel, helpers);
}

}  // namespace jaxsparse
