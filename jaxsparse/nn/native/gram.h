// The block of `block.h` for images with few channels, as in the first layer.
//
// With P the patches of the images, [positions, taps], y = P k is linear in P:
// mean(y) = mean(P) k and var(y) = diag(k^T cov(P) k). So the norm is folded into the kernel before
// the product, and the rows of the product are pooled immediately. Neither y nor P is stored. The
// backward pass needs only the moments of P and the patches at the maxima.

#pragma once

#include "block.h"
#include "patches.h"

namespace jaxsparse {

struct GramShape : PatchShape {
  int64_t positions() const { return images * height * width; }
  int shares() const { return shares_of(images, positions() / 8192); }
};

// Residuals for the backward pass.
struct GramSaved {
  float* moments;  // [taps + 1, taps]: cov(P), then mean(P)
  float* level;    // [inputs]: subtracted from the images first, which changes no output
  uint8_t* place;  // [n, windows, out()]
  float* inverse;  // [outputs]
};

// The level of each float in a row of a bordered image.
inline void repeat_level(GramShape s, const float* level, float* to) {
  for (int64_t k = 0; k < s.line(); ++k) to[k] = level[k % s.inputs];
}

// An image with a border of zeros, minus its level.
inline void add_level_border(GramShape s, const float* image, const float* levels, float* to) {
  for (int64_t y = -1; y <= s.height; ++y, to += s.line()) {
    for (int64_t k = 0; k < s.line(); ++k) to[k] = -levels[k];
    if (y < 0 || y == s.height) continue;
    const float* row = image + y * s.width * s.inputs;
    for (int64_t k = 0; k < s.width * s.inputs; ++k) to[s.inputs + k] += row[k];
  }
}

// The patches of a row of windows, [windows, 4, wide()].
inline void window_patches(GramShape s, const float* bordered, int64_t row, float* to) {
  for (int64_t j = 0; j < s.width / 2; ++j)
    for (int64_t q = 0; q < kQuads; ++q, to += s.wide())
      patch(s, bordered, 2 * row + q / 2, 2 * j + q % 2, to);
}

// The mean of each channel of the images.
inline void find_level(GramShape s, const float* images, float* level) {
  std::vector<double> total(s.inputs, 0);
  for (int64_t p = 0; p < s.positions(); ++p)
    for (int64_t c = 0; c < s.inputs; ++c) total[c] += images[p * s.inputs + c];
  for (int64_t c = 0; c < s.inputs; ++c) level[c] = total[c] / s.positions();
}

// Adds P^T P and the sum of P over the patches of some images to [taps + 1, wide()]. Sums within an
// image are in single precision, sums over images in double precision.
inline void sum_moments(GramShape s, Range range, const float* images, const float* levels,
                        double* to) {
  const int64_t taps = s.taps(), wide = s.wide();
  float* bordered = scratch(Slot::kBordered, s.bordered());
  float* rows = scratch(Slot::kTiles, s.width * wide + kLanes);
  float* products = scratch(Slot::kProducts, (taps + 1) * wide);
  float* sums = products + taps * wide;
  for (int64_t n = range.first; n < range.last; ++n) {
    add_level_border(s, images + n * s.height * s.width * s.inputs, levels, bordered);
    std::memset(products, 0, (taps + 1) * wide * sizeof(float));
    for (int64_t y = 0; y < s.height; ++y) {
      for (int64_t x = 0; x < s.width; ++x) patch(s, bordered, y, x, rows + x * wide);
      multiply<true>(taps, s.width, wide, {rows, 1, wide}, rows, products);
      for (int64_t k = 0; k < wide; k += kLanes) {
        Vec sum = load(sums + k);
        for (int64_t x = 0; x < s.width; ++x) sum += load(rows + x * wide + k);
        store(sums + k, sum);
      }
    }
    for (int64_t k = 0; k < (taps + 1) * wide; ++k) to[k] += products[k];
  }
}

// Mean and covariance, from the sums of all shares.
inline void finish_moments(GramShape s, int shares, const double* parts, float* moments) {
  const int64_t taps = s.taps(), wide = s.wide();
  const double count = s.positions();
  std::vector<double> total(parts, parts + (taps + 1) * wide);
  for (int share = 1; share < shares; ++share)
    for (int64_t k = 0; k < (taps + 1) * wide; ++k)
      total[k] += parts[share * (taps + 1) * wide + k];
  const double* sum = total.data() + taps * wide;
  for (int64_t i = 0; i < taps; ++i)
    for (int64_t j = 0; j < taps; ++j)
      moments[i * taps + j] = (total[i * wide + j] - sum[i] * sum[j] / count) / count;
  for (int64_t k = 0; k < taps; ++k) moments[taps * taps + k] = sum[k] / count;
}

// cov(P) k: [taps, outputs].
inline std::vector<double> covariance_product(GramShape s, const float* covariance,
                                              const float* kernel) {
  std::vector<double> product(s.taps() * s.outputs, 0);
  for (int64_t i = 0; i < s.taps(); ++i)
    for (int64_t j = 0; j < s.taps(); ++j)
      for (int64_t o = 0; o < s.outputs; ++o)
        product[i * s.outputs + o] +=
            double(covariance[i * s.taps() + j]) * kernel[j * s.outputs + o];
  return product;
}

// The kernel with the norm folded in, [taps, out()], and the shift, [out()]. The shift is NaN if a
// weight is not finite: otherwise only some outputs may be NaN, and the pooling could pick another.
inline void fold_norm(GramShape s, const float* kernel, const float* scale, const float* bias,
                      float eps, const GramSaved& saved, float* weights, float* shift) {
  const auto spread = covariance_product(s, saved.moments, kernel);
  const float* mean = saved.moments + s.taps() * s.taps();
  std::memset(weights, 0, s.taps() * s.out() * sizeof(float));
  std::memset(shift, 0, s.out() * sizeof(float));
  for (int64_t o = 0; o < s.outputs; ++o) {
    double variance = 0, middle = 0, lost = 0;
    for (int64_t k = 0; k < s.taps(); ++k) {
      variance += spread[k * s.outputs + o] * kernel[k * s.outputs + o];
      middle += double(mean[k]) * kernel[k * s.outputs + o];
    }
    saved.inverse[o] = inverse_deviation(variance < 0 ? 0 : variance, eps);
    const float gain = scale[o] * saved.inverse[o];
    for (int64_t k = 0; k < s.taps(); ++k) {
      weights[k * s.out() + o] = gain * kernel[k * s.outputs + o];
      lost += 0 * weights[k * s.out() + o];
    }
    shift[o] = bias[o] - gain * middle + lost;
  }
}

// The largest of each window's four rows of `values`, after ReLU, and its place.
inline void pool_windows(GramShape s, int64_t windows, const float* values, const float* shift,
                         float* out, uint8_t* place) {
  for (int64_t w = 0; w < windows; ++w) {
    for (int64_t o = 0; o < s.out(); o += kLanes) {
      const float* at = values + w * kQuads * s.out() + o;
      Vec best = load(at);
      IntVec where = {};
#pragma GCC unroll 16
      for (int q = 1; q < kQuads; ++q) {
        const Vec other = load(at + q * s.out());
        const IntVec better = other > best;
        best = better ? other : best;
        where = better ? IntVec{} + q : where;
      }
      best += load(shift + o);
      where = best <= 0 ? IntVec{} + kOff : where;
      store_some(out + w * s.outputs + o, best <= 0 ? Vec{} : best, s.outputs - o);
      store_bytes(place + w * s.out() + o, where);
    }
  }
}

inline void pool_products(GramShape s, Range range, const float* images, const float* levels,
                          const float* weights, const float* shift, float* out, uint8_t* place) {
  const int64_t across = s.width / 2, down = s.height / 2;
  float* bordered = scratch(Slot::kBordered, s.bordered());
  float* rows = scratch(Slot::kTiles, across * kQuads * s.wide() + kLanes);
  float* values = scratch(Slot::kProducts, across * kQuads * s.out());
  for (int64_t n = range.first; n < range.last; ++n) {
    add_level_border(s, images + n * s.height * s.width * s.inputs, levels, bordered);
    for (int64_t i = 0; i < down; ++i) {
      const int64_t first = (n * down + i) * across;
      window_patches(s, bordered, i, rows);
      multiply<false>(across * kQuads, s.taps(), s.out(), {rows, s.wide(), 1}, weights, values);
      pool_windows(s, across, values, shift, out + first * s.outputs, place + first * s.out());
    }
  }
}

inline void gram_forward(GramShape s, const float* images, const float* kernel, const float* scale,
                         const float* bias, float eps, float* out, const GramSaved& saved,
                         const Helpers& helpers) {
  const int shares = s.shares();
  const int64_t cells = (s.taps() + 1) * s.wide();
  std::vector<double> parts(shares * cells, 0);
  std::vector<float> levels(s.line());
  float* weights = scratch(Slot::kWeights, s.taps() * s.out());
  float* shift = scratch(Slot::kFactors, s.out());
  find_level(s, images, saved.level);
  repeat_level(s, saved.level, levels.data());
  helpers.run(shares, [&](int k) {
    sum_moments(s, share_of(s.images, k, shares), images, levels.data(), parts.data() + k * cells);
  });
  finish_moments(s, shares, parts.data(), saved.moments);
  fold_norm(s, kernel, scale, bias, eps, saved, weights, shift);
  helpers.run(shares, [&](int k) {
    pool_products(s, share_of(s.images, k, shares), images, levels.data(), weights, shift, out,
                  saved.place);
  });
}

// Writes the gradient of each window to the place of its maximum: [windows, 4, out()].
inline void place_gradient(GramShape s, int64_t windows, const float* gradient,
                           const uint8_t* place, float* to, float* sums) {
  for (int64_t o = 0; o < s.out(); o += kLanes) {
    Vec sum = load(sums + o);
    for (int64_t w = 0; w < windows; ++w) {
      const Vec g = load_some(gradient + w * s.outputs + o, s.outputs - o);
      const IntVec where = load_bytes(place + w * s.out() + o);
#pragma GCC unroll 16
      for (int q = 0; q < kQuads; ++q)
        store(to + (w * kQuads + q) * s.out() + o, where == q ? g : Vec{});
      sum += where < kOff ? g : Vec{};
    }
    store(sums + o, sum);
  }
}

// Adds P^T dz of some images to [taps, out()], and the sum of dz to the [out()] after it.
inline void sum_products_back(GramShape s, Range range, const float* images, const float* levels,
                              const float* gradient, const uint8_t* place, double* to) {
  const int64_t across = s.width / 2, down = s.height / 2, cells = (s.taps() + 1) * s.out();
  float* bordered = scratch(Slot::kBordered, s.bordered());
  float* rows = scratch(Slot::kTiles, across * kQuads * s.wide() + kLanes);
  float* placed = scratch(Slot::kBack, across * kQuads * s.out());
  float* products = scratch(Slot::kProducts, cells);
  float* sums = products + s.taps() * s.out();
  for (int64_t n = range.first; n < range.last; ++n) {
    add_level_border(s, images + n * s.height * s.width * s.inputs, levels, bordered);
    std::memset(products, 0, cells * sizeof(float));
    for (int64_t i = 0; i < down; ++i) {
      const int64_t first = (n * down + i) * across;
      window_patches(s, bordered, i, rows);
      place_gradient(s, across, gradient + first * s.outputs, place + first * s.out(), placed,
                     sums);
      multiply<true>(s.taps(), across * kQuads, s.out(), {rows, 1, s.wide()}, placed, products);
    }
    for (int64_t k = 0; k < cells; ++k) to[k] += products[k];
  }
}

// The gradients of kernel, scale and bias. With dz the gradient at the maxima and S = P^T dz, the
// gradients of batch norm become
//
//   d_kernel = gain (S - mean(P)^T d_bias - cov(P) k inverse d_scale),
//   d_scale = inverse (diag(k^T S) - mean(P) k d_bias).
inline void gram_backward(GramShape s, const float* images, const float* kernel, const float* scale,
                          const GramSaved& saved, const float* gradient, float* d_kernel,
                          float* d_scale, float* d_bias, const Helpers& helpers) {
  const int shares = s.shares();
  const int64_t cells = (s.taps() + 1) * s.out();
  std::vector<double> total(shares * cells, 0);
  std::vector<float> levels(s.line());
  repeat_level(s, saved.level, levels.data());
  helpers.run(shares, [&](int k) {
    sum_products_back(s, share_of(s.images, k, shares), images, levels.data(), gradient,
                      saved.place, total.data() + k * cells);
  });
  for (int share = 1; share < shares; ++share)
    for (int64_t k = 0; k < cells; ++k) total[k] += total[share * cells + k];
  const double* sums = total.data() + s.taps() * s.out();
  const auto spread = covariance_product(s, saved.moments, kernel);
  const float* mean = saved.moments + s.taps() * s.taps();
  for (int64_t o = 0; o < s.outputs; ++o) {
    const double inverse = saved.inverse[o], gain = scale[o] * inverse;
    double along = 0;
    for (int64_t k = 0; k < s.taps(); ++k)
      along += kernel[k * s.outputs + o] * (total[k * s.out() + o] - mean[k] * sums[o]);
    d_bias[o] = sums[o];
    d_scale[o] = inverse * along;
    for (int64_t k = 0; k < s.taps(); ++k)
      d_kernel[k * s.outputs + o] = gain * (total[k * s.out() + o] - mean[k] * sums[o] -
                                            spread[k * s.outputs + o] * inverse * d_scale[o]);
  }
}

}  // namespace jaxsparse
