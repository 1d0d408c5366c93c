// The convolution of a batch by Winograd's algorithm, one piece at a time, and its gradients.
//
// It combines the transforms of winograd.h with the statistics of norm.h.

#pragma once

#include "norm.h"

namespace jaxsparse {

// The number of shares to divide the images into. It decides the order of sums, so it depends only
// on the sizes. More shares would need too much memory for partial sums.
inline int shares_of(int64_t images, int64_t pieces_of_work) {
  return std::clamp<int64_t>(pieces_of_work, 1, std::min<int64_t>(images, 4));
}

// A range of images, divided into pieces of almost equal size.
struct Pieces {
  Range range;
  int64_t count;

  Pieces(Shape s, Range r)
      : range(r), count(std::max<int64_t>(1, (size() + s.piece() / 2) / s.piece())) {}
  int64_t size() const { return range.last - range.first; }
  int64_t largest() const { return (size() + count - 1) / count; }
  Range piece(int64_t k) const {
    return {range.first + size() * k / count, range.first + size() * (k + 1) / count};
  }
};

// Writes the outputs of each tile of an image to their places in y.
inline void transform_outputs(Shape s, Layout at, const float* from, int64_t first, int64_t rows,
                              float* y) {
  for (int64_t i = 0, t = first; i < s.tile_rows(); ++i) {
    for (int64_t j = 0; j < s.tile_columns(); ++j, ++t) {
      const bool low = 2 * i + 1 < s.height, right = 2 * j + 1 < s.width;
      for (int64_t o = 0; o < s.out(); o += kLanes) {
        Vec m[16], half[8], four[4];
#pragma GCC unroll 16
        for (int p = 0; p < 16; ++p) m[p] = load(from + (p * rows + t) * s.out() + o);
#pragma GCC unroll 16
        for (int p = 0; p < 4; ++p) output_transform<4>(m + p, half + p);
#pragma GCC unroll 16
        for (int p = 0; p < 2; ++p) output_transform<1>(half + 4 * p, four + 2 * p);
        store(y + at.pixel(i, j, 0) * s.out() + o, four[0]);
        if (right) store(y + at.pixel(i, j, 1) * s.out() + o, four[1]);
        if (low) store(y + at.pixel(i, j, 2) * s.out() + o, four[2]);
        if (low && right) store(y + at.pixel(i, j, 3) * s.out() + o, four[3]);
      }
    }
  }
}

// y = images * kernel, [n, at.pixels, out()], and the statistics of each image, unless null.
inline void convolve(Shape s, Layout at, Range range, const float* images, const float* weights,
                     float* y, double* statistics) {
  const Pieces pieces(s, range);
  const int64_t rows = pieces.largest() * s.tiles();
  float* bordered = scratch(Slot::kBordered, s.bordered());
  float* tiles = scratch(Slot::kTiles, kPlaces * rows * s.in());
  float* products = scratch(Slot::kProducts, kPlaces * rows * s.out());
  std::memset(bordered, 0, s.bordered() * sizeof(float));
  for (int64_t piece = 0; piece < pieces.count; ++piece) {
    const Range own = pieces.piece(piece);
    const int64_t used = (own.last - own.first) * s.tiles();
    for (int64_t n = own.first; n < own.last; ++n) {
      add_border(s, images + n * s.height * s.width * s.inputs, bordered);
      transform_image(s, bordered, (n - own.first) * s.tiles(), used, tiles);
    }
    for (int p = 0; p < kPlaces; ++p)
      multiply<false>(used, s.inputs, s.out(), {tiles + p * used * s.in(), s.in(), 1},
                      weights + p * s.inputs * s.out(), products + p * used * s.out());
    for (int64_t n = own.first; n < own.last; ++n) {
      float* image = y + n * at.pixels * s.out();
      transform_outputs(s, at, products, (n - own.first) * s.tiles(), used, image);
      if (statistics) image_statistics(s, at, image, statistics + n * 2 * s.out());
    }
  }
}

// A dy A^T of each tile of an image. gradient(n, i, j, o, d) sets dy of tile (i, j), but only the
// entries inside the image.
template <class Gradient>
inline void transform_gradient(Shape s, const Gradient& gradient, int64_t n, int64_t first,
                               int64_t rows, float* to) {
  for (int64_t i = 0, t = first; i < s.tile_rows(); ++i) {
    for (int64_t j = 0; j < s.tile_columns(); ++j, ++t) {
      for (int64_t o = 0; o < s.out(); o += kLanes) {
        Vec d[kQuads] = {}, half[8], x[16];
        gradient(n, i, j, o, d);
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
        for (int p = 0; p < 16; ++p) store(to + (p * rows + t) * s.out() + o, x[p]);
      }
    }
  }
}

// The gradients of some images, and their part of the gradient of the transformed kernel.
template <class Gradient>
inline void convolve_back(Shape s, Range range, const float* images, const float* weights,
                          const Gradient& gradient, float* d_images, float* d_weights) {
  const Pieces pieces(s, range);
  const int64_t rows = pieces.largest() * s.tiles(), pixels = s.height * s.width;
  float* bordered = scratch(Slot::kBordered, s.bordered());
  float* back = scratch(Slot::kBack, s.bordered());
  float* tiles = scratch(Slot::kTiles, kPlaces * rows * s.in());
  float* products = scratch(Slot::kProducts, kPlaces * rows * s.out());
  std::memset(bordered, 0, s.bordered() * sizeof(float));
  std::memset(d_weights, 0, kPlaces * s.inputs * s.out() * sizeof(float));
  for (int64_t piece = 0; piece < pieces.count; ++piece) {
    const Range own = pieces.piece(piece);
    const int64_t used = (own.last - own.first) * s.tiles();
    for (int64_t n = own.first; n < own.last; ++n) {
      const int64_t first = (n - own.first) * s.tiles();
      add_border(s, images + n * pixels * s.inputs, bordered);
      transform_image(s, bordered, first, used, tiles);
      transform_gradient(s, gradient, n, first, used, products);
    }
    for (int p = 0; p < kPlaces; ++p) {
      float* v = tiles + p * used * s.in();
      const float* z = products + p * used * s.out();
      multiply<true>(s.inputs, used, s.out(), {v, 1, s.in()}, z,
                     d_weights + p * s.inputs * s.out());
      multiply<false>(used, s.outputs, s.in(), {z, s.out(), 1}, weights + p * s.outputs * s.in(),
                      v);
    }
    for (int64_t n = own.first; n < own.last; ++n) {
      transform_image_back(s, tiles, (n - own.first) * s.tiles(), used, back);
      drop_border(s, back, d_images + n * pixels * s.inputs);
    }
  }
}

// Calls part(rows) for all rows of a kernel's matrices; large matrices are divided among threads.
template <class Part>
inline void for_rows(Shape s, int64_t rows, const Helpers& helpers, const Part& part) {
  const int shares = shares_of(rows, s.inputs * s.outputs / 4096);
  helpers.run(shares, [&](int k) { part(share_of(rows, k, shares)); });
}

// The transformed kernel, [16, inputs, out()].
inline const float* weights_of(Shape s, const float* kernel, const Helpers& helpers) {
  float* weights = scratch(Slot::kWeights, kPlaces * s.inputs * s.out());
  for_rows(s, s.inputs, helpers,
           [&](Range own) { transform_kernel(own, s.inputs, s.outputs, kernel, weights); });
  return weights;
}

// The transformed kernel for the gradient of the images, [16, outputs, in()].
inline const float* turned_weights_of(Shape s, const float* kernel, const Helpers& helpers) {
  float* turned = scratch(Slot::kKernel, 9 * s.inputs * s.outputs);
  float* weights = scratch(Slot::kWeights, kPlaces * s.outputs * s.in());
  for_rows(s, s.outputs, helpers, [&](Range own) {
    transpose_kernel(own, s.inputs, s.outputs, kernel, turned);
    transform_kernel(own, s.outputs, s.inputs, turned, weights);
  });
  return weights;
}

// The gradients of the images and of the kernel.
template <class Gradient>
inline void convolution_back(Shape s, int shares, const float* images, const float* kernel,
                             const Gradient& gradient, float* d_images, float* d_kernel,
                             const Helpers& helpers) {
  const int64_t cells = kPlaces * s.inputs * s.out();
  float* d_weights = scratch(Slot::kPartial, shares * cells);
  const float* weights = turned_weights_of(s, kernel, helpers);
  helpers.run(shares, [&](int k) {
    convolve_back(s, share_of(s.images, k, shares), images, weights, gradient, d_images,
                  d_weights + k * cells);
  });
  for_rows(s, s.inputs, helpers, [&](Range own) {
    transform_kernel_back(own, s.inputs, s.outputs, shares, d_weights, d_kernel);
  });
}

// The shares of a convolution and of its gradient.
inline int convolution_shares(Shape s) {
  return shares_of(s.images, s.images * s.tiles() / 256);
}

// y = images * kernel tile by tile, [n, tiles, 4, out()]; zero outside the images.
inline void convolution(Shape s, const float* images, const float* kernel, float* y,
                        const Helpers& helpers) {
  const int shares = convolution_shares(s);
  const float* weights = weights_of(s, kernel, helpers);
  const int64_t whole = s.by_tile().pixels * s.out();
  helpers.run(shares, [&](int k) {
    const Range own = share_of(s.images, k, shares);
    if (s.height % 2 || s.width % 2)
      std::memset(y + own.first * whole, 0, (own.last - own.first) * whole * sizeof(float));
    convolve(s, s.by_tile(), own, images, weights, y, nullptr);
  });
}

// dy of a tile, from dy tile by tile, [n, tiles, 4, outputs].
struct TileGradient {
  Shape s;
  const float* dy;

  void operator()(int64_t n, int64_t i, int64_t j, int64_t o, Vec* d) const {
    const float* tile = dy + (n * s.tiles() + i * s.tile_columns() + j) * kQuads * s.outputs;
    const bool low = 2 * i + 1 < s.height, right = 2 * j + 1 < s.width;
#pragma GCC unroll 16
    for (int q = 0; q < kQuads; ++q) {
      if ((q / 2 && !low) || (q % 2 && !right)) continue;
      d[q] = load_some(tile + q * s.outputs + o, s.outputs - o);
    }
  }
};

}  // namespace jaxsparse
