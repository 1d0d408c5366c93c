// 3x3 convolution by Winograd's F(2x2, 3x3), stride 1, padding 1, in pieces that fit the cache.
//
// Y = A^T [(G k G^T) o (B^T x B)] A for each 2x2 tile of the output. A piece of the batch is
// transformed to sixteen matrices [tiles, channels], multiplied and transformed back before the
// next piece is read. So only images and outputs are read from and written to main memory. Channels
// are contiguous and padded with zeros to whole vectors.
//
// Source: Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, Sec. 4.1.

#pragma once

#include "sharing.h"
#include "vectors.h"

namespace jaxsparse {

constexpr int kPlaces = 16;  // entries of a transformed tile
constexpr int kQuads = 4;    // outputs per tile

// The one-dimensional transforms; `Step` is the distance between the entries of x.
template <int Step>
inline void data_transform(Vec* x) {  // B^T
  const Vec a = x[0], b = x[Step], c = x[2 * Step], d = x[3 * Step];
  x[0] = a - c, x[Step] = b + c, x[2 * Step] = c - b, x[3 * Step] = b - d;
}

template <int Step>
inline void data_transform_transposed(Vec* x) {  // B
  const Vec a = x[0], b = x[Step], c = x[2 * Step], d = x[3 * Step];
  x[0] = a, x[Step] = b - c + d, x[2 * Step] = b + c - a, x[3 * Step] = -d;
}

template <int Step>
inline void output_transform(const Vec* m, Vec* y) {  // A^T
  const Vec a = m[0], b = m[Step], c = m[2 * Step], d = m[3 * Step];
  y[0] = a + b + c, y[Step] = b - c - d;
}

template <int Step>
inline void output_transform_transposed(Vec* y) {  // A
  const Vec a = y[0], b = y[Step];
  y[Step] = a + b, y[2 * Step] = a - b, y[3 * Step] = -b;
}

// The places of the outputs of an image's tiles, in pixels.
struct Layout {
  int64_t pixels;  // per image
  int64_t row, column, below, right;

  int64_t pixel(int64_t i, int64_t j, int q) const {
    return i * row + j * column + q / 2 * below + q % 2 * right;
  }
};

// The sizes of a convolution and of its intermediate arrays.
struct Shape {
  int64_t images, height, width, inputs, outputs;

  int64_t tile_rows() const { return (height + 1) / 2; }
  int64_t tile_columns() const { return (width + 1) / 2; }
  int64_t tiles() const { return tile_rows() * tile_columns(); }  // per image
  // Outputs tile by tile, and in the order of the image.
  Layout by_tile() const { return {kQuads * tiles(), kQuads * tile_columns(), kQuads, 2, 1}; }
  Layout by_row() const { return {height * width, 2 * width, 2, width, 1}; }
  int64_t in() const { return padded(inputs); }
  int64_t out() const { return padded(outputs); }
  int64_t bordered_width() const { return 2 * tile_columns() + 2; }
  int64_t bordered() const { return (2 * tile_rows() + 2) * bordered_width() * in(); }
  // The number of images in a piece: enough tiles for fast products, few enough to fit the cache.
  int64_t piece() const { return std::clamp<int64_t>(48 / tiles(), 1, images); }
};

template <int Step>
inline void kernel_transform(const Vec* k, Vec* u) {  // G
  const Vec ends = k[0] + k[2 * Step], middle = k[Step];
  u[0] = k[0], u[Step] = 0.5f * (ends + middle);
  u[2 * Step] = 0.5f * (ends - middle), u[3 * Step] = k[2 * Step];
}

template <int Step>
inline void kernel_transform_transposed(const Vec* u, Vec* k) {  // G^T
  const Vec sum = 0.5f * (u[Step] + u[2 * Step]);
  k[0] = u[0] + sum, k[Step] = 0.5f * (u[Step] - u[2 * Step]), k[2 * Step] = u[3 * Step] + sum;
}

// G k G^T, from nine matrices [rows, columns] to sixteen [rows, padded(columns)], for the rows in
// `own`.
inline void transform_kernel(Range own, int64_t rows, int64_t columns, const float* kernel,
                             float* to) {
  const int64_t wide = padded(columns);
  for (int64_t r = own.first; r < own.last; ++r) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      Vec k[9], half[12], u[16];
#pragma GCC unroll 16
      for (int p = 0; p < 9; ++p)
        k[p] = load_some(kernel + (p * rows + r) * columns + c, columns - c);
#pragma GCC unroll 16
      for (int p = 0; p < 3; ++p) kernel_transform<3>(k + p, half + p);
#pragma GCC unroll 16
      for (int p = 0; p < 4; ++p) kernel_transform<1>(half + 3 * p, u + 4 * p);
#pragma GCC unroll 16
      for (int p = 0; p < kPlaces; ++p) store(to + (p * rows + r) * wide + c, u[p]);
    }
  }
}

// G^T u G, from sixteen matrices [rows, padded(columns)] to nine [rows, columns], for the rows in
// `own`. u is the sum of the matrices of all shares.
inline void transform_kernel_back(Range own, int64_t rows, int64_t columns, int shares,
                                  const float* from, float* kernel) {
  const int64_t wide = padded(columns), cells = kPlaces * rows * wide;
  for (int64_t r = own.first; r < own.last; ++r) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      Vec u[16], half[12], k[9];
#pragma GCC unroll 16
      for (int p = 0; p < kPlaces; ++p) u[p] = load(from + (p * rows + r) * wide + c);
      for (int share = 1; share < shares; ++share)
#pragma GCC unroll 16
        for (int p = 0; p < kPlaces; ++p)
          u[p] += load(from + share * cells + (p * rows + r) * wide + c);
#pragma GCC unroll 16
      for (int p = 0; p < 4; ++p) kernel_transform_transposed<4>(u + p, half + p);
#pragma GCC unroll 16
      for (int p = 0; p < 3; ++p) kernel_transform_transposed<1>(half + 4 * p, k + 3 * p);
#pragma GCC unroll 16
      for (int p = 0; p < 9; ++p)
        store_some(kernel + (p * rows + r) * columns + c, k[p], columns - c);
    }
  }
}

// Nine matrices [rows, columns] to [columns, rows], for the rows of the result in `own`.
inline void transpose_kernel(Range own, int64_t rows, int64_t columns, const float* from,
                             float* to) {
  constexpr int64_t kBlock = 16;  // rows that stay in the cache during the loop over columns
  for (int64_t p = 0; p < 9; ++p, from += rows * columns, to += rows * columns)
    for (int64_t first = 0; first < rows; first += kBlock)
      for (int64_t c = own.first; c < own.last; ++c)
        for (int64_t r = first; r < std::min(first + kBlock, rows); ++r)
          to[c * rows + r] = from[r * columns + c];
}

inline void copy(const float* from, int64_t count, float* to) {
  for (int64_t k = 0; k < count; k += kLanes)
    store_some(to + k, load_some(from + k, count - k), count - k);
}

// Copies an image [height, width, inputs] to the middle of an array of zeros, with padded channels.
inline void add_border(Shape s, const float* image, float* to) {
  for (int64_t y = 0; y < s.height; ++y)
    for (int64_t x = 0; x < s.width; ++x)
      copy(image + (y * s.width + x) * s.inputs, s.inputs,
           to + ((y + 1) * s.bordered_width() + x + 1) * s.in());
}

inline void drop_border(Shape s, const float* from, float* image) {
  for (int64_t y = 0; y < s.height; ++y)
    for (int64_t x = 0; x < s.width; ++x)
      copy(from + ((y + 1) * s.bordered_width() + x + 1) * s.in(), s.inputs,
           image + (y * s.width + x) * s.inputs);
}

// B^T x B of an image's tiles, to the rows from `first` on of sixteen matrices [rows, in()].
inline void transform_image(Shape s, const float* bordered, int64_t first, int64_t rows,
                            float* to) {
  for (int64_t i = 0, t = first; i < s.tile_rows(); ++i) {
    for (int64_t j = 0; j < s.tile_columns(); ++j, ++t) {
      const float* corner = bordered + (2 * i * s.bordered_width() + 2 * j) * s.in();
      for (int64_t c = 0; c < s.in(); c += kLanes) {
        Vec x[16];
#pragma GCC unroll 16
        for (int p = 0; p < 16; ++p)
          x[p] = load(corner + (p / 4 * s.bordered_width() + p % 4) * s.in() + c);
#pragma GCC unroll 16
        for (int p = 0; p < 4; ++p) data_transform<4>(x + p);
#pragma GCC unroll 16
        for (int p = 0; p < 4; ++p) data_transform<1>(x + 4 * p);
#pragma GCC unroll 16
        for (int p = 0; p < 16; ++p) store(to + (p * rows + t) * s.in() + c, x[p]);
      }
    }
  }
}

// The gradient of an image from those of its tiles: B v B^T, summed where tiles overlap.
inline void transform_image_back(Shape s, const float* from, int64_t first, int64_t rows,
                                 float* bordered) {
  std::memset(bordered, 0, s.bordered() * sizeof(float));
  for (int64_t i = 0, t = first; i < s.tile_rows(); ++i) {
    for (int64_t j = 0; j < s.tile_columns(); ++j, ++t) {
      float* corner = bordered + (2 * i * s.bordered_width() + 2 * j) * s.in();
      for (int64_t c = 0; c < s.in(); c += kLanes) {
        Vec x[16];
#pragma GCC unroll 16
        for (int p = 0; p < 16; ++p) x[p] = load(from + (p * rows + t) * s.in() + c);
#pragma GCC unroll 16
        for (int p = 0; p < 4; ++p) data_transform_transposed<4>(x + p);
#pragma GCC unroll 16
        for (int p = 0; p < 4; ++p) data_transform_transposed<1>(x + 4 * p);
#pragma GCC unroll 16
        for (int p = 0; p < 16; ++p) {
          float* at = corner + (p / 4 * s.bordered_width() + p % 4) * s.in() + c;
          store(at, load(at) + x[p]);
        }
      }
    }
  }
}

}  // namespace jaxsparse
