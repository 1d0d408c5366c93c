// Convolution, batch norm, ReLU and 2x2 max-pool as one operation, by Winograd's tiles, which are
// the windows of the pooling.
//
//   out = maxpool(relu(scale (y - mean(y)) / sqrt(var(y) + eps) + bias)),  y = images * kernel
//
// images [n, height, width, inputs], kernel [3, 3, inputs, outputs], stride 1, padding 1. Among
// equal entries of a window the first in row order receives the gradient.

#pragma once

#include <cmath>

#include "winograd.h"

namespace jaxsparse {

constexpr int kQuads = 4;    // outputs of a tile, which is also a window of the pooling
constexpr uint8_t kOff = 4;  // the place in a window of a maximum that ReLU has cut off

// What the way back needs of the way there.
struct Saved {
  float* y;        // [n, tiles, 4, out()]
  float* unit;     // [n, windows, out()]: the normalised maximum of each window,
  uint8_t* place;  // [n, windows, out()]: and where in the window it is
  float* mean;     // [outputs]
  float* inverse;  // [outputs]: 1 / sqrt(var(y) + eps)
};

// The four outputs of each tile of an image, to [tiles, 4, out()], zero outside the image.
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

// Adds an image's sum and sum of squares of (y - origin) to [out()] each. What lies outside the
// image is not counted.
inline void add_statistics(Shape s, const float* y, const float* origin, float* sum,
                    float* square) {
  for (int64_t o = 0; o < s.out(); o += kLanes) {
    const Vec start = load(origin + o);
    Vec total = {}, squares = {};
    for (int64_t i = 0, t = 0; i < s.tile_rows(); ++i) {
      for (int64_t j = 0; j < s.tile_columns(); ++j, ++t) {
        const bool low = 2 * i + 1 < s.height, right = 2 * j + 1 < s.width;
        const float* at = y + t * kQuads * s.out() + o;
#pragma GCC unroll 16
        for (int q = 0; q < kQuads; ++q) {
          if ((q / 2 && !low) || (q % 2 && !right)) continue;
          const Vec d = load(at + q * s.out()) - start;
          total += d, squares += d * d;
        }
      }
    }
    store(sum + o, total), store(square + o, squares);
  }
}

// y = images * kernel in tiles [n, tiles, 4, out()], and its mean and 1 / deviation by channel.
inline void convolve(Shape s, const float* images, const float* kernel, float eps, float* y,
              float* mean, float* inverse) {
  float* weights = scratch(0, kPlaces * s.in() * s.out());
  const int64_t piece = s.piece(), rows = piece * s.tiles();
  float* bordered = scratch(1, s.bordered());
  float* tiles = scratch(2, kPlaces * rows * s.in());
  float* products = scratch(3, kPlaces * rows * s.out());
  float* sums = scratch(4, 2 * s.out());
  std::vector<double> means(s.out(), 0), deviations(s.out(), 0);
  transform_kernel(s.inputs, s.outputs, kernel, weights);
  std::memset(bordered, 0, s.bordered() * sizeof(float));
  for (int64_t n = 0; n < s.images; n += piece) {
    const int64_t count = std::min(piece, s.images - n), used = count * s.tiles();
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
      add_statistics(s, own, own, sums, sums + s.out());
      // Of each image measured from a value of its own, and put together in double precision: no
      // cancellation, where the mean is large against the deviation.
      const double size = s.height * s.width, before = (n + k) * size, all = before + size;
      for (int64_t o = 0; o < s.out(); ++o) {
        const double shift = sums[o] / size, here = own[o] + shift, apart = here - means[o];
        deviations[o] += sums[s.out() + o] - shift * sums[o] + apart * apart * before * size / all;
        means[o] += apart * size / all;
      }
    }
  }
  const double total = s.images * s.height * s.width;
  for (int64_t o = 0; o < s.outputs; ++o) {
    mean[o] = means[o];
    inverse[o] = 1 / std::sqrt(std::max(deviations[o], 0.0) / total + eps);
  }
}

inline void block_forward(Shape s, const float* images, const float* kernel,
                          const float* scale, const float* bias, float eps, float* out,
                          const Saved& saved) {
  convolve(s, images, kernel, eps, saved.y, saved.mean, saved.inverse);
  const int64_t height = s.height / 2, width = s.width / 2;
  for (int64_t n = 0, w = 0; n < s.images; ++n) {
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
          const Vec gain = load_some(saved.inverse + o, left);
          const Vec normal = (best - middle) * gain;
          const Vec value = normal * slope + load_some(bias + o, left);
          where = value > 0 ? where : IntVec{} + kOff;
          store_some(out + w * s.outputs + o, value > 0 ? value : Vec{}, left);
          store(saved.unit + w * s.out() + o, normal);
          store_bytes(saved.place + w * s.out() + o, where);
        }
      }
    }
  }
}

// Sums of the gradient and of gradient * unit by channel, where ReLU lets it pass.
inline void gradient_sums(Shape s, const float* gradient, const float* unit, const uint8_t* place,
                   float* d_bias, float* d_scale) {
  const int64_t pooled = (s.height / 2) * (s.width / 2);
  std::vector<double> totals(2 * s.out(), 0);
  for (int64_t n = 0; n < s.images; ++n) {
    for (int64_t o = 0; o < s.outputs; o += kLanes) {
      Vec sum = {}, product = {};
      for (int64_t w = n * pooled; w < (n + 1) * pooled; ++w) {
        Vec g = load_some(gradient + w * s.outputs + o, s.outputs - o);
        g = load_bytes(place + w * s.out() + o) < kOff ? g : Vec{};
        sum += g, product += g * load(unit + w * s.out() + o);
      }
      for (int k = 0; k < kLanes; ++k)
        totals[o + k] += sum[k], totals[s.out() + o + k] += product[k];
    }
  }
  for (int64_t o = 0; o < s.outputs; ++o)
    d_bias[o] = totals[o], d_scale[o] = totals[s.out() + o];
}

// dy of each tile by the norm's rule, dy = gain (dz - mean(dz) - unit mean(dz unit)) with dz zero
// but where a maximum was taken, transformed to sixteen matrices: A dy A^T.
inline void transform_gradient(Shape s, const float* y, const float* gradient,
                        const uint8_t* place, const float* factors, int64_t first, int64_t rows,
                        float* to) {
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

inline void block_backward(Shape s, const float* images, const float* kernel,
                           const float* scale, const Saved& saved, const float* gradient,
                           float* d_images, float* d_kernel, float* d_scale, float* d_bias) {
  gradient_sums(s, gradient, saved.unit, saved.place,
                d_bias, d_scale);
  float* factors = scratch(4, 3 * s.out());
  std::memset(factors, 0, 3 * s.out() * sizeof(float));
  const float total = s.images * s.height * s.width;
  for (int64_t o = 0; o < s.outputs; ++o) {
    const float inv = saved.inverse[o], gain = scale[o] * inv;
    const float slope = gain * inv * d_scale[o] / total;
    factors[o] = gain;
    factors[s.out() + o] =
        gain * d_bias[o] / total - saved.mean[o] * slope;
    factors[2 * s.out() + o] = slope;
  }

  const int64_t piece = s.piece(), rows = piece * s.tiles();
  float* bordered = scratch(1, s.bordered());
  float* d_bordered = scratch(7, s.bordered());
  float* tiles = scratch(2, kPlaces * rows * s.in());
  float* products = scratch(3, kPlaces * rows * s.out());
  float* turned = scratch(0, 9 * s.inputs * s.outputs);
  float* weights = scratch(5, kPlaces * s.outputs * s.in());
  float* d_weights = scratch(6, kPlaces * s.inputs * s.out());
  transpose_kernel(s.inputs, s.outputs, kernel, turned);
  transform_kernel(s.outputs, s.inputs, turned, weights);
  std::memset(bordered, 0, s.bordered() * sizeof(float));
  std::memset(d_weights, 0, kPlaces * s.inputs * s.out() * sizeof(float));

  const int64_t pixels = s.height * s.width, pooled = (s.height / 2) * (s.width / 2);
  for (int64_t n = 0; n < s.images; n += piece) {
    const int64_t count = std::min(piece, s.images - n), used = count * s.tiles();
    for (int64_t k = 0; k < count; ++k) {
      add_border(s, images + (n + k) * pixels * s.inputs, bordered);
      transform_image(s, bordered, k * s.tiles(), used, tiles);
      transform_gradient(s, saved.y + (n + k) * s.tiles() * kQuads * s.out(),
                         gradient + (n + k) * pooled * s.outputs,
                         saved.place + (n + k) * pooled * s.out(), factors, k * s.tiles(),
                         used, products);
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
      transform_image_back(s, tiles, k * s.tiles(), used, d_bordered);
      drop_border(s, d_bordered, d_images + (n + k) * pixels * s.inputs);
    }
  }
  transform_kernel_back(s.inputs, s.outputs, d_weights, d_kernel);
}

}  // namespace jaxsparse
