// SIMD vectors, products of matrices that fit into the cache, and memory for them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace jaxsparse {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kTileVectors = 4;  // of 32 registers
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kTileVectors = 2;  // of 16 registers
#else
constexpr int kLanes = 4;
constexpr int kTileVectors = 4;
#endif
constexpr int kTileRows = 6;
constexpr int kLine = 64;  // bytes of a cache line

// Only aligned like a float, as rows of a buffer may begin anywhere.
typedef float Vec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint16_t ShortVec __attribute__((vector_size(kLanes * 2)));
typedef uint8_t ByteVec __attribute__((vector_size(kLanes), aligned(1), may_alias));

inline Vec load(const float* p) {
  return *reinterpret_cast<const Vec*>(p);
}
inline void store(float* p, Vec x) {
  *reinterpret_cast<Vec*>(p) = x;
}
// Converted in two steps, through 16 bits: in one step, GCC 12 converts each number separately.
inline IntVec load_bytes(const uint8_t* p) {
  const ByteVec bytes = *reinterpret_cast<const ByteVec*>(p);
  return __builtin_convertvector(__builtin_convertvector(bytes, ShortVec), IntVec);
}
inline void store_bytes(uint8_t* p, IntVec x) {
  *reinterpret_cast<ByteVec*>(p) =
      __builtin_convertvector(__builtin_convertvector(x, ShortVec), ByteVec);
}

inline int64_t padded(int64_t channels) {
  return (channels + kLanes - 1) / kLanes * kLanes;
}

// A matrix whose entry (row, k) is at data[row * row_step + k * step].
struct Strided {
  const float* data;
  int64_t row_step, step;
};

// c[Rows, Vectors * kLanes] (+)= a[Rows, depth] b[depth, Vectors * kLanes]; c stays in registers.
template <int Rows, int Vectors, bool Add>
inline void multiply_tile(Strided a, const float* b, float* c, int64_t width, int64_t depth) {
  Vec sum[Rows][Vectors];
  // Without the pragmas, the sums are first written to the stack and then to c.
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) sum[r][v] = Add ? load(c + r * width + v * kLanes) : Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) right[v] = load(b + k * width + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const float left = a.data[r * a.row_step + k * a.step];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sum[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) store(c + r * width + v * kLanes, sum[r][v]);
}

template <int Vectors, bool Add>
inline void multiply_rows(int rows, Strided a, const float* b, float* c, int64_t width,
                          int64_t depth) {
  switch (rows) {
    case 1:
      return multiply_tile<1, Vectors, Add>(a, b, c, width, depth);
    case 2:
      return multiply_tile<2, Vectors, Add>(a, b, c, width, depth);
    case 3:
      return multiply_tile<3, Vectors, Add>(a, b, c, width, depth);
    case 4:
      return multiply_tile<4, Vectors, Add>(a, b, c, width, depth);
    case 5:
      return multiply_tile<5, Vectors, Add>(a, b, c, width, depth);
    default:
      return multiply_tile<kTileRows, Vectors, Add>(a, b, c, width, depth);
  }
}

template <bool Add>
inline void multiply_columns(int vectors, int rows, Strided a, const float* b, float* c,
                             int64_t width, int64_t depth) {
  static_assert(kTileVectors <= 4);
  switch (vectors) {
    case 1:
      return multiply_rows<1, Add>(rows, a, b, c, width, depth);
    case 2:
      return multiply_rows<2, Add>(rows, a, b, c, width, depth);
#if !defined(__AVX__) || defined(__AVX512F__)
    case 3:
      return multiply_rows<3, Add>(rows, a, b, c, width, depth);
    default:
      return multiply_rows<4, Add>(rows, a, b, c, width, depth);
#endif
  }
}

// c[rows, width] (+)= a[rows, depth] b[depth, width]; width is a multiple of kLanes.
template <bool Add>
inline void multiply(int64_t rows, int64_t depth, int64_t width, Strided a, const float* b,
                     float* c) {
  const int64_t groups = (rows + kTileRows - 1) / kTileRows;
  for (int64_t column = 0; column < width; column += kTileVectors * kLanes) {
    const int vectors = std::min<int64_t>(kTileVectors, (width - column) / kLanes);
    for (int64_t g = 0; g < groups; ++g) {  // of almost equal size, to avoid a small last group
      const int64_t first = rows * g / groups, last = rows * (g + 1) / groups;
      const Strided left = {a.data + first * a.row_step, a.row_step, a.step};
      multiply_columns<Add>(vectors, last - first, left, b + column, c + first * width + column,
                            width, depth);
    }
  }
}

// Memory that a thread keeps for its next call. Aligned to a cache line, as loading a vector that
// spans two lines takes twice as long.
struct Scratch {
  float* data = nullptr;
  int64_t size = 0;

  ~Scratch() { release(); }
  void release() {
    if (data) ::operator delete[](data, std::align_val_t(kLine));
  }
  float* at_least(int64_t count) {
    if (count > size) {
      release();
      data = nullptr;  // in case the next line throws
      data = static_cast<float*>(::operator new[](count * sizeof(float), std::align_val_t(kLine)));
      size = count;
    }
    return data;
  }
};

// The purpose of a buffer. A thread never needs two buffers for the same purpose at once.
enum class Slot {
  kKernel,
  kWeights,
  kFactors,
  kPartial,
  kBordered,
  kTiles,
  kProducts,
  kBack,
  kCount
};

inline float* scratch(Slot slot, int64_t count) {
  thread_local Scratch kept[static_cast<int>(Slot::kCount)];
  return kept[static_cast<int>(slot)].at_least(count);
}

inline Vec load_some(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  Vec x = {};
  std::memcpy(&x, p, count * sizeof(float));
  return x;
}

inline void store_some(float* p, Vec x, int64_t count) {
  if (count >= kLanes) return store(p, x);
  std::memcpy(p, &x, count * sizeof(float));
}

}  // namespace jaxsparse
