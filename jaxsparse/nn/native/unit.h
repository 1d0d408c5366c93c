// A layer of a residual block: convolution, batch norm and leaky ReLU as one operation.
//
//   out = leaky(z),  z = scale (y - mean(y)) / sqrt(var(y) + eps) + bias,  y = images * kernel
//   leaky(z) = z if z >= 0, else slope z; with slope 1 it is the identity.
//
// images [n, height, width, inputs], stride 1, kernel [3, 3, inputs, outputs] with padding 1 or
// [1, 1, inputs, outputs]. 1x1 kernels and few inputs use rows.h, the others Winograd's algorithm.

#pragma once

#include "convolve.h"
#include "rows.h"

namespace jaxsparse {

// Residuals for the backward pass.
struct UnitSaved {
  float* y;        // [n, height, width, out()]
  float* mean;     // [outputs]
  float* inverse;  // [outputs]: 1 / sqrt(var(y) + eps)
};

inline int unit_shares(Shape s) {
  return shares_of(s.images, s.images * s.tiles() / 48);
}

// z = (y - mean) gain + bias for each channel: [3, out()].
struct Affine {
  const float *mean, *gain, *bias;

  Affine(Shape s, const float* scale, const float* shift, const UnitSaved& saved, float* to)
      : mean(to), gain(to + s.out()), bias(to + 2 * s.out()) {
    std::memset(to, 0, 3 * s.out() * sizeof(float));
    for (int64_t o = 0; o < s.outputs; ++o) {
      to[o] = saved.mean[o];
      to[s.out() + o] = double(scale[o]) * saved.inverse[o];
      to[2 * s.out() + o] = shift[o];
    }
  }
};

// The derivative of leaky ReLU, which is also its factor: leaky(z) = z * this.
inline Vec leaky(Vec z, float slope) {
  return z >= 0 ? Vec{} + 1 : Vec{} + slope;
}

inline void activate(Shape s, Range range, const Affine& to_z, float slope, const float* y,
                     float* out) {
  const int64_t pixels = s.height * s.width;
  for (int64_t o = 0; o < s.outputs; o += kLanes) {
    const Vec mean = load(to_z.mean + o), gain = load(to_z.gain + o), bias = load(to_z.bias + o);
    for (int64_t p = range.first * pixels; p < range.last * pixels; ++p) {
      const Vec z = (load(y + p * s.out() + o) - mean) * gain + bias;
      store_some(out + p * s.outputs + o, z * leaky(z, slope), s.outputs - o);
    }
  }
}

inline void unit_forward(Shape s, int64_t size, const float* images, const float* kernel,
                         const float* scale, const float* bias, float eps, float slope, float* out,
                         const UnitSaved& saved, const Helpers& helpers) {
  const int shares = unit_shares(s);
  std::vector<double> statistics(s.images * 2 * s.out());
  if (by_rows(s, size)) {
    const RowShape r{s, size};
    const float* weights = row_weights(r, kernel);
    helpers.run(shares, [&](int k) {
      convolve_rows(r, share_of(s.images, k, shares), images, weights, saved.y, statistics.data());
    });
  } else {
    const float* weights = weights_of(s, kernel, helpers);
    helpers.run(shares, [&](int k) {
      convolve(s, s.by_row(), share_of(s.images, k, shares), images, weights, saved.y,
               statistics.data());
    });
  }
  finish_statistics(s, statistics.data(), eps, saved.mean, saved.inverse);
  const Affine to_z(s, scale, bias, saved, scratch(Slot::kFactors, 3 * s.out()));
  helpers.run(shares, [&](int k) {
    activate(s, share_of(s.images, k, shares), to_z, slope, saved.y, out);
  });
}

// The sums of dz and of dz (y - mean) over each image: [2, out()].
inline void unit_sums(Shape s, Range range, const Affine& to_z, float slope, const float* y,
                      const float* gradient, double* to) {
  const int64_t pixels = s.height * s.width;
  for (int64_t o = 0; o < s.outputs; o += kLanes) {
    const Vec mean = load(to_z.mean + o), gain = load(to_z.gain + o), bias = load(to_z.bias + o);
    for (int64_t n = range.first; n < range.last; ++n) {
      Vec sum = {}, product = {};
      for (int64_t p = n * pixels; p < (n + 1) * pixels; ++p) {
        const Vec apart = load(y + p * s.out() + o) - mean;
        const Vec g = load_some(gradient + p * s.outputs + o, s.outputs - o);
        const Vec dz = g * leaky(apart * gain + bias, slope);
        sum += dz, product += dz * apart;
      }
      double* own = to + n * 2 * s.out() + o;
      for (int k = 0; k < kLanes; ++k) own[k] = sum[k], own[s.out() + k] = product[k];
    }
  }
}

inline void finish_sums(Shape s, const double* sums, const float* inverse, float* d_bias,
                        float* d_scale) {
  for (int64_t o = 0; o < s.outputs; ++o) {
    double sum = 0, product = 0;
    for (int64_t n = 0; n < s.images; ++n)
      sum += sums[n * 2 * s.out() + o], product += sums[(n * 2 + 1) * s.out() + o];
    d_bias[o] = sum, d_scale[o] = product * inverse[o];
  }
}

// dy, by the gradient of batch norm.
struct UnitGradient {
  Shape s;
  Affine to_z;
  float slope;
  const float *y, *gradient, *factors;

  // dy of one pixel, for a vector of channels beginning with o.
  Vec at(int64_t pixel, int64_t o) const {
    const Vec value = load(y + pixel * s.out() + o);
    const Vec z = (value - load(to_z.mean + o)) * load(to_z.gain + o) + load(to_z.bias + o);
    const Vec dz = load_some(gradient + pixel * s.outputs + o, s.outputs - o) * leaky(z, slope);
    return load(factors + o) * dz - load(factors + s.out() + o) -
           load(factors + 2 * s.out() + o) * value;
  }

  // dy of a tile.
  void operator()(int64_t n, int64_t i, int64_t j, int64_t o, Vec* d) const {
    const int64_t first = (n * s.height + 2 * i) * s.width + 2 * j;
    const bool low = 2 * i + 1 < s.height, right = 2 * j + 1 < s.width;
    d[0] = at(first, o);
    if (right) d[1] = at(first + 1, o);
    if (low) d[2] = at(first + s.width, o);
    if (low && right) d[3] = at(first + s.width + 1, o);
  }
};

// d_images is null for few inputs, see `by_rows`.
inline void unit_backward(Shape s, int64_t size, const float* images, const float* kernel,
                          const float* scale, const float* bias, float slope,
                          const UnitSaved& saved, const float* gradient, float* d_images,
                          float* d_kernel, float* d_scale, float* d_bias, const Helpers& helpers) {
  const int shares = unit_shares(s);
  float* factors = scratch(Slot::kFactors, 6 * s.out());
  const Affine to_z(s, scale, bias, saved, factors + 3 * s.out());
  std::vector<double> sums(s.images * 2 * s.out());
  helpers.run(shares, [&](int k) {
    unit_sums(s, share_of(s.images, k, shares), to_z, slope, saved.y, gradient, sums.data());
  });
  finish_sums(s, sums.data(), saved.inverse, d_bias, d_scale);
  norm_factors(s, scale, saved.mean, saved.inverse, d_scale, d_bias, factors);
  const UnitGradient dy{s, to_z, slope, saved.y, gradient, factors};
  if (by_rows(s, size)) {
    rows_back({s, size}, shares, images, kernel, dy, d_images, d_kernel, helpers);
  } else {
    convolution_back(s, shares, images, kernel, dy, d_images, d_kernel, helpers);
  }
}

}  // namespace jaxsparse
