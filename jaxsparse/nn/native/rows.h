// Convolution as a product of patches and the kernel, one row of pixels at a time.
//
// For images with few channels, as the patches are short, and for 1x1 kernels, as the patches are
// the pixels themselves.

#pragma once

#include "norm.h"
#include "patches.h"
#include "sharing.h"

namespace jaxsparse {

constexpr int kFewInputs = 4;  // with at most so many, the images' gradient is not computed here

inline bool by_rows(Shape s, int64_t size) {
  return size == 1 || s.inputs <= kFewInputs;
}

struct RowShape : PatchShape {
  int64_t size;  // of the kernel

  RowShape(Shape s, int64_t k) : PatchShape{s}, size(k) {}
  int64_t taps() const { return size * size * inputs; }
  // Pixels per product; their patches fit into the cache.
  int64_t strip() const { return size == 1 ? height * width : width; }
  int64_t strips() const { return height * width / strip(); }
};

// The patches of a strip of an image. The bordered image is made with the first strip.
inline Strided strip_patches(RowShape s, const float* image, int64_t strip, float* bordered,
                             float* rows) {
  if (s.size == 1) return {image, s.inputs, 1};
  if (strip == 0) {
    std::memset(bordered, 0, s.bordered() * sizeof(float));
    for (int64_t y = 0; y < s.height; ++y)
      std::memcpy(bordered + (y + 1) * s.line() + s.inputs, image + y * s.width * s.inputs,
                  s.width * s.inputs * sizeof(float));
  }
  for (int64_t x = 0; x < s.width; ++x) patch(s, bordered, strip, x, rows + x * s.wide());
  return {rows, s.wide(), 1};
}

// The kernel as [taps, out()].
inline const float* row_weights(RowShape s, const float* kernel) {
  float* weights = scratch(Slot::kWeights, s.taps() * s.out());
  std::memset(weights, 0, s.taps() * s.out() * sizeof(float));
  for (int64_t k = 0; k < s.taps(); ++k)
    std::memcpy(weights + k * s.out(), kernel + k * s.outputs, s.outputs * sizeof(float));
  return weights;
}

// y = images * kernel, [n, height, width, out()], and the statistics of each image.
inline void convolve_rows(RowShape s, Range range, const float* images, const float* weights,
                          float* y, double* statistics) {
  const int64_t pixels = s.height * s.width;
  float* bordered = scratch(Slot::kBordered, s.bordered());
  float* rows = scratch(Slot::kTiles, s.width * s.wide() + kLanes);
  for (int64_t n = range.first; n < range.last; ++n) {
    float* own = y + n * pixels * s.out();
    for (int64_t strip = 0; strip < s.strips(); ++strip) {
      const Strided a = strip_patches(s, images + n * pixels * s.inputs, strip, bordered, rows);
      multiply<false>(s.strip(), s.taps(), s.out(), a, weights, own + strip * s.strip() * s.out());
    }
    image_statistics(s, s.by_row(), own, statistics + n * 2 * s.out());
  }
}

// The gradients of some images, unless d_images is null, and their part of the gradient of the
// kernel, [taps, out()]. dy.at(pixel, o) is the gradient of y. `turned` is the kernel as [outputs,
// in()].
template <class Gradient>
inline void convolve_rows_back(RowShape s, Range range, const float* images, const float* turned,
                               const Gradient& dy, float* d_images, float* d_weights) {
  const int64_t pixels = s.height * s.width, strip = s.strip();
  float* bordered = scratch(Slot::kBordered, s.bordered());
  float* rows = scratch(Slot::kTiles, s.width * s.wide() + kLanes);
  float* d = scratch(Slot::kProducts, strip * s.out());
  float* back = scratch(Slot::kBack, strip * s.in());
  std::memset(d_weights, 0, s.taps() * s.out() * sizeof(float));
  for (int64_t n = range.first; n < range.last; ++n) {
    for (int64_t k = 0; k < s.strips(); ++k) {
      const int64_t first = n * pixels + k * strip;
      for (int64_t p = 0; p < strip; ++p)
        for (int64_t o = 0; o < s.out(); o += kLanes)
          store(d + p * s.out() + o, dy.at(first + p, o));
      const Strided a = strip_patches(s, images + n * pixels * s.inputs, k, bordered, rows);
      multiply<true>(s.taps(), strip, s.out(), {a.data, 1, a.row_step}, d, d_weights);
      if (!d_images) continue;
      multiply<false>(strip, s.outputs, s.in(), {d, s.out(), 1}, turned, back);
      for (int64_t p = 0; p < strip; ++p)
        copy(back + p * s.in(), s.inputs, d_images + (first + p) * s.inputs);
    }
  }
}

template <class Gradient>
inline void rows_back(RowShape s, int shares, const float* images, const float* kernel,
                      const Gradient& dy, float* d_images, float* d_kernel,
                      const Helpers& helpers) {
  const int64_t cells = s.taps() * s.out();
  float* d_weights = scratch(Slot::kPartial, shares * cells);
  float* turned = scratch(Slot::kWeights, s.outputs * s.in());
  if (d_images) {
    std::memset(turned, 0, s.outputs * s.in() * sizeof(float));
    for (int64_t c = 0; c < s.inputs; ++c)
      for (int64_t o = 0; o < s.outputs; ++o) turned[o * s.in() + c] = kernel[c * s.outputs + o];
  }
  helpers.run(shares, [&](int k) {
    convolve_rows_back(s, share_of(s.images, k, shares), images, turned, dy, d_images,
                       d_weights + k * cells);
  });
  for (int share = 1; share < shares; ++share)
    for (int64_t k = 0; k < cells; ++k) d_weights[k] += d_weights[share * cells + k];
  for (int64_t k = 0; k < s.taps(); ++k)
    copy(d_weights + k * s.out(), s.outputs, d_kernel + k * s.outputs);
}

}  // namespace jaxsparse
