// Convolution, batch norm, ReLU and 2x2 max-pool as one operation. The convolution uses Winograd's
// 2x2 tiles, which are also the windows of the pooling.
//
//   out = maxpool(relu(scale (y - mean(y)) / sqrt(var(y) + eps) + bias)),  y = images * kernel
//
// images [n, height, width, inputs], kernel [3, 3, inputs, outputs], stride 1, padding 1. Among
// equal entries of a window, the first in row order receives the gradient. NaN and infinity
// propagate, also through ReLU.

#pragma once

#include <cmath>

#include "sharing.h"
#include "winograd.h"

namespace jaxsparse {

constexpr int kQuads = 4;    // outputs per tile, which is also a window of the pooling
constexpr uint8_t kOff = 4;  // stored instead of the place of a maximum that ReLU sets to zero

// Residuals for the backward pass.
struct Saved {
  float* y;        // [n, tiles, 4, out()]
  float* unit;     // [n, windows, out()]: the normalised maximum of each window
  uint8_t* place;  // [n, windows, out()]: its place in the window, 0 to 3, or kOff
  float* mean;     // [outputs]
  float* inverse;  // [outputs]: 1 / sqrt(var(y) + eps)
};

// The number of shares to divide the images into. It decides the order of sums, so it depends only
// on the sizes. More shares would need too much memory for partial sums.
inline int shares_of(int64_t images, int64_t pieces_of_work) {
  return std::clamp<int64_t>(pieces_of_work, 1, std::min<int64_t>(images, 4));
}

// Writes the four outputs of each tile of an image to [tiles, 4, out()], zero outside the image.
inline void transform_outputs(Shape s, const float* from, int64_t first, int64_t rows, float* to) {
  for (int64_t i = 0, t = 0; i < s.tile_rows(); ++i) {
    for (int64_t j = 0; j < s.tile_columns(); ++j, ++t) {
      const bool low = 2 * i + 1 < s.height, right = 2 * j + 1 < s.width;
      for (int64_t o = 0; o < s.out(); o += kLanes) {
        Vec m[16], half[8], y[4];
#pragma GCC unroll 16
        for (int p = 0; p < 16; ++p) m[p] = load(from + (p * rows + first + t) * s.out() + o);
#pragma GCC unroll 16
        for (int p = 0; p < 4; ++p) output_transform<4>(m + p, half + p);
#pragma GCC unroll 16
        for (int p = 0; p < 2; ++p) output_transform<1>(half + 4 * p, y + 2 * p);
        float* at = to + t * kQuads * s.out() + o;
        store(at, y[0]);
        store(at + s.out(), right ? y[1] : Vec{});
        store(at + 2 * s.out(), low ? y[2] : Vec{});
        store(at + 3 * s.out(), low && right ? y[3] : Vec{});
      }
    }
  }
}

// The mean of an image and the sum of squared differences from it: [2, out()]. Outputs outside the
// image are not counted.
inline void image_statistics(Shape s, const float* y, double* to) {
  const double count = s.height * s.width;
  for (int64_t o = 0; o < s.out(); o += kLanes) {
    // A value of the channel is subtracted first, to avoid cancellation if the mean is large.
    const Vec start = load(y + o);
    Vec sum = {}, square = {};
    for (int64_t i = 0, t = 0; i < s.tile_rows(); ++i) {
      for (int64_t j = 0; j < s.tile_columns(); ++j, ++t) {
        const bool low = 2 * i + 1 < s.height, right = 2 * j + 1 < s.width;
#pragma GCC unroll 16
        for (int q = 0; q < kQuads; ++q) {
          if ((q / 2 && !low) || (q % 2 && !right)) continue;
          const Vec d = load(y + (t * kQuads + q) * s.out() + o) - start;
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

// y = images * kernel in tiles [n, tiles, 4, out()], and the statistics of each image.
inline void convolve(Shape s, Range range, const float* images, const float* weights, float* y,
                     double* statistics) {
  const int64_t piece = s.piece(), rows = piece * s.tiles();
  float* bordered = scratch(Slot::kBordered, s.bordered());
  float* tiles = scratch(Slot::kTiles, kPlaces * rows * s.in());
  float* products = scratch(Slot::kProducts, kPlaces * rows * s.out());
  std::memset(bordered, 0, s.bordered() * sizeof(float));
  for (int64_t n = range.first; n < range.last; n += piece) {
    const int64_t count = std::min(piece, range.last - n), used = count * s.tiles();
    for (int64_t k = 0; k < count; ++k) {
      add_border(s, images + (n + k) * s.height * s.width * s.inputs, bordered);
      transform_image(s, bordered, k * s.tiles(), used, tiles);
    }
    for (int p = 0; p < kPlaces; ++p)
      multiply<false>(used, s.inputs, s.out(), {tiles + p * used * s.in(), s.in(), 1},
                      weights + p * s.inputs * s.out(), products + p * used * s.out());
    for (int64_t k = 0; k < count; ++k) {
      float* own = y + (n + k) * s.tiles() * kQuads * s.out();
      transform_outputs(s, products, k * s.tiles(), used, own);
      image_statistics(s, own, statistics + (n + k) * 2 * s.out());
    }
  }
}

// 1 / deviation; NaN if the variance is not finite, as zero would hide that.
inline double inverse_deviation(double variance, float eps) {
  return std::isfinite(variance) ? 1 / std::sqrt(variance + eps) : NAN;
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
  const int shares = shares_of(s.images, s.images * s.tiles() / 256);
  std::vector<double> statistics(s.images * 2 * s.out());
  float* weights = scratch(Slot::kWeights, kPlaces * s.inputs * s.out());
  transform_kernel(s.inputs, s.outputs, kernel, weights);
  helpers.run(shares, [&](int k) {
    convolve(s, share_of(s.images, k, shares), images, weights, saved.y, statistics.data());
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

// A dy A^T of each tile, as sixteen matrices. dy = gain (dz - mean(dz) - unit mean(dz unit)) is the
// gradient of batch norm; dz is zero except at the maxima.
inline void transform_gradient(Shape s, const float* y, const float* gradient, const uint8_t* place,
                               const float* factors, int64_t first, int64_t rows, float* to) {
  const int64_t height = s.height / 2, width = s.width / 2;
  for (int64_t i = 0, t = 0; i < s.tile_rows(); ++i) {
    for (int64_t j = 0; j < s.tile_columns(); ++j, ++t) {
      const bool low = 2 * i + 1 < s.height, right = 2 * j + 1 < s.width;
      const int64_t window = i * width + j;
      for (int64_t o = 0; o < s.out(); o += kLanes) {
        const Vec gain = load(factors + o), level = load(factors + s.out() + o);
        const Vec slope = load(factors + 2 * s.out() + o);
        Vec dz = {};
        IntVec where = IntVec{} + kOff;
        if (i < height && j < width) {
          dz = gain * load_some(gradient + window * s.outputs + o, s.outputs - o);
          where = load_bytes(place + window * s.out() + o);
        }
        Vec d[4], half[8], x[16];
#pragma GCC unroll 16
        for (int q = 0; q < kQuads; ++q) {
          const Vec value = load(y + (t * kQuads + q) * s.out() + o);
          const bool inside = (low || q < 2) && (right || q % 2 == 0);
          d[q] = inside ? (where == q ? dz : Vec{}) - level - value * slope : Vec{};
        }
#pragma GCC unroll 16
        for (int p = 0; p < 2; ++p) {
          half[p] = d[p], half[2 + p] = d[p] + d[2 + p];
          half[4 + p] = d[p] - d[2 + p], half[6 + p] = -d[2 + p];
        }
#pragma GCC unroll 16
        for (int p = 0; p < 4; ++p) {
          const Vec a = half[2 * p], b = half[2 * p + 1];
          x[4 * p] = a, x[4 * p + 1] = a + b, x[4 * p + 2] = a - b, x[4 * p + 3] = -b;
        }
#pragma GCC unroll 16
        for (int p = 0; p < 16; ++p) store(to + (p * rows + first + t) * s.out() + o, x[p]);
      }
    }
  }
}

// The factors of `transform_gradient`, [3, out()]: dy = gain dz - level - y slope.
inline void norm_factors(Shape s, const float* scale, const Saved& saved, const float* d_scale,
                         const float* d_bias, float* to) {
  std::memset(to, 0, 3 * s.out() * sizeof(float));
  const double count = s.images * s.height * s.width;
  for (int64_t o = 0; o < s.outputs; ++o) {
    const double gain = double(scale[o]) * saved.inverse[o];
    const double slope = gain * saved.inverse[o] * d_scale[o] / count;
    to[o] = gain;
    to[s.out() + o] = gain * d_bias[o] / count - saved.mean[o] * slope;
    to[2 * s.out() + o] = slope;
  }
}

// The gradients of some images, and their part of the gradient of the transformed kernel.
inline void convolve_back(Shape s, Range range, const float* images, const float* weights,
                          const Saved& saved, const float* gradient, const float* factors,
                          float* d_images, float* d_weights) {
  const int64_t piece = s.piece(), rows = piece * s.tiles();
  const int64_t pixels = s.height * s.width, windows = (s.height / 2) * (s.width / 2);
  float* bordered = scratch(Slot::kBordered, s.bordered());
  float* back = scratch(Slot::kBack, s.bordered());
  float* tiles = scratch(Slot::kTiles, kPlaces * rows * s.in());
  float* products = scratch(Slot::kProducts, kPlaces * rows * s.out());
  std::memset(bordered, 0, s.bordered() * sizeof(float));
  std::memset(d_weights, 0, kPlaces * s.inputs * s.out() * sizeof(float));
  for (int64_t n = range.first; n < range.last; n += piece) {
    const int64_t count = std::min(piece, range.last - n), used = count * s.tiles();
    for (int64_t k = 0; k < count; ++k) {
      add_border(s, images + (n + k) * pixels * s.inputs, bordered);
      transform_image(s, bordered, k * s.tiles(), used, tiles);
      transform_gradient(s, saved.y + (n + k) * s.tiles() * kQuads * s.out(),
                         gradient + (n + k) * windows * s.outputs,
                         saved.place + (n + k) * windows * s.out(), factors, k * s.tiles(), used,
                         products);
    }
    for (int p = 0; p < kPlaces; ++p) {
      float* v = tiles + p * used * s.in();
      const float* z = products + p * used * s.out();
      multiply<true>(s.inputs, used, s.out(), {v, 1, s.in()}, z,
                     d_weights + p * s.inputs * s.out());
      multiply<false>(used, s.outputs, s.in(), {z, s.out(), 1}, weights + p * s.outputs * s.in(),
                      v);
    }
    for (int64_t k = 0; k < count; ++k) {
      transform_image_back(s, tiles, k * s.tiles(), used, back);
      drop_border(s, back, d_images + (n + k) * pixels * s.inputs);
    }
  }
}

inline void block_backward(Shape s, const float* images, const float* kernel, const float* scale,
                           const Saved& saved, const float* gradient, float* d_images,
                           float* d_kernel, float* d_scale, float* d_bias, const Helpers& helpers) {
  const int shares = shares_of(s.images, s.images * s.tiles() / 256);
  const int64_t cells = kPlaces * s.inputs * s.out();
  float* factors = scratch(Slot::kFactors, 3 * s.out());
  float* turned = scratch(Slot::kKernel, 9 * s.inputs * s.outputs);
  float* weights = scratch(Slot::kWeights, kPlaces * s.outputs * s.in());
  float* d_weights = scratch(Slot::kPartial, shares * cells);
  gradient_sums(s, gradient, saved, d_bias, d_scale);
  norm_factors(s, scale, saved, d_scale, d_bias, factors);
  transpose_kernel(s.inputs, s.outputs, kernel, turned);
  transform_kernel(s.outputs, s.inputs, turned, weights);
  helpers.run(shares, [&](int k) {
    convolve_back(s, share_of(s.images, k, shares), images, weights, saved, gradient, factors,
                  d_images, d_weights + k * cells);
  });
  for (int share = 1; share < shares; ++share)
    for (int64_t k = 0; k < cells; ++k) d_weights[k] += d_weights[share * cells + k];
  transform_kernel_back(s.inputs, s.outputs, d_weights, d_kernel);
}

}  // namespace jaxsparse
