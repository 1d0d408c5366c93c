// The functions that XLA's CPU client calls. Python checks the shapes before the calls.

#include "block.h"
#include "gram.h"
#include "join.h"
#include "unit.h"
#include "xla/ffi/api/ffi.h"

// Lets a handler take the thread pool as a parameter.
template <>
struct xla::ffi::CtxBinding<xla::ffi::ThreadPool> {
  using Ctx = xla::ffi::ThreadPool;
};

namespace jaxsparse {
namespace {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Bytes = ffi::Buffer<ffi::U8>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;
using BytesOut = ffi::ResultBuffer<ffi::U8>;

Shape shape_of(const Floats& images, const Floats& kernel) {
  const auto in = images.dimensions(), k = kernel.dimensions();
  return {in[0], in[1], in[2], in[3], k[3]};
}

Helpers helpers(ffi::ThreadPool& threads) {
  return {threads.num_threads(),
          [&threads](Helpers::Task task) { threads.Schedule(std::move(task)); }};
}

ffi::Error block_forward_handler(ffi::ThreadPool threads, Floats images, Floats kernel,
                                 Floats scale, Floats bias, Floats eps, FloatsOut out, FloatsOut y,
                                 FloatsOut unit, BytesOut place, FloatsOut mean,
                                 FloatsOut inverse) {
  block_forward(shape_of(images, kernel), images.typed_data(), kernel.typed_data(),
                scale.typed_data(), bias.typed_data(), eps.typed_data()[0], out->typed_data(),
                {y->typed_data(), unit->typed_data(), place->typed_data(), mean->typed_data(),
                 inverse->typed_data()},
                helpers(threads));
  return ffi::Error::Success();
}

ffi::Error block_backward_handler(ffi::ThreadPool threads, Floats images, Floats kernel,
                                  Floats scale, Floats y, Floats unit, Bytes place, Floats mean,
                                  Floats inverse, Floats gradient, FloatsOut d_images,
                                  FloatsOut d_kernel, FloatsOut d_scale, FloatsOut d_bias) {
  block_backward(shape_of(images, kernel), images.typed_data(), kernel.typed_data(),
                 scale.typed_data(),
                 {y.typed_data(), unit.typed_data(), place.typed_data(), mean.typed_data(),
                  inverse.typed_data()},
                 gradient.typed_data(), d_images->typed_data(), d_kernel->typed_data(),
                 d_scale->typed_data(), d_bias->typed_data(), helpers(threads));
  return ffi::Error::Success();
}

ffi::Error gram_forward_handler(ffi::ThreadPool threads, Floats images, Floats kernel, Floats scale,
                                Floats bias, Floats eps, FloatsOut out, FloatsOut moments,
                                FloatsOut level, BytesOut place, FloatsOut inverse) {
  gram_forward(
      {{shape_of(images, kernel)}}, images.typed_data(), kernel.typed_data(), scale.typed_data(),
      bias.typed_data(), eps.typed_data()[0], out->typed_data(),
      {moments->typed_data(), level->typed_data(), place->typed_data(), inverse->typed_data()},
      helpers(threads));
  return ffi::Error::Success();
}

ffi::Error gram_backward_handler(ffi::ThreadPool threads, Floats images, Floats kernel,
                                 Floats scale, Floats moments, Floats level, Bytes place,
                                 Floats inverse, Floats gradient, FloatsOut d_kernel,
                                 FloatsOut d_scale, FloatsOut d_bias) {
  gram_backward(
      {{shape_of(images, kernel)}}, images.typed_data(), kernel.typed_data(), scale.typed_data(),
      {moments.typed_data(), level.typed_data(), place.typed_data(), inverse.typed_data()},
      gradient.typed_data(), d_kernel->typed_data(), d_scale->typed_data(), d_bias->typed_data(),
      helpers(threads));
  return ffi::Error::Success();
}

ffi::Error unit_forward_handler(ffi::ThreadPool threads, Floats images, Floats kernel, Floats scale,
                                Floats bias, Floats eps, Floats slope, FloatsOut out, FloatsOut y,
                                FloatsOut mean, FloatsOut inverse) {
  unit_forward(shape_of(images, kernel), kernel.dimensions()[0], images.typed_data(),
               kernel.typed_data(), scale.typed_data(), bias.typed_data(), eps.typed_data()[0],
               slope.typed_data()[0], out->typed_data(),
               {y->typed_data(), mean->typed_data(), inverse->typed_data()}, helpers(threads));
  return ffi::Error::Success();
}

ffi::Error unit_backward_handler(ffi::ThreadPool threads, Floats images, Floats kernel,
                                 Floats scale, Floats bias, Floats slope, Floats y, Floats mean,
                                 Floats inverse, Floats gradient, FloatsOut d_kernel,
                                 FloatsOut d_scale, FloatsOut d_bias, FloatsOut d_images) {
  // Empty if there are few inputs.
  float* by_images = d_images->element_count() ? d_images->typed_data() : nullptr;
  unit_backward(shape_of(images, kernel), kernel.dimensions()[0], images.typed_data(),
                kernel.typed_data(), scale.typed_data(), bias.typed_data(), slope.typed_data()[0],
                {y.typed_data(), mean.typed_data(), inverse.typed_data()}, gradient.typed_data(),
                by_images, d_kernel->typed_data(), d_scale->typed_data(), d_bias->typed_data(),
                helpers(threads));
  return ffi::Error::Success();
}

ffi::Error conv_forward_handler(ffi::ThreadPool threads, Floats images, Floats kernel,
                                FloatsOut y) {
  convolution(shape_of(images, kernel), images.typed_data(), kernel.typed_data(), y->typed_data(),
              helpers(threads));
  return ffi::Error::Success();
}

ffi::Error conv_backward_handler(ffi::ThreadPool threads, Floats images, Floats kernel,
                                 Floats gradient, FloatsOut d_images, FloatsOut d_kernel) {
  const Shape s = shape_of(images, kernel);
  convolution_back(s, convolution_shares(s), images.typed_data(), kernel.typed_data(),
                   TileGradient{s, gradient.typed_data()}, d_images->typed_data(),
                   d_kernel->typed_data(), helpers(threads));
  return ffi::Error::Success();
}

// The padding follows from the sizes of the input and the output.
JoinShape join_shape(ffi::Span<const int64_t> in, ffi::Span<const int64_t> out) {
  return {in[0], in[1], in[2], in[3], out[1] - in[1] / 2};
}

ffi::Error join_forward_handler(ffi::ThreadPool threads, Floats a, Floats b, Floats slope,
                                FloatsOut out, BytesOut place) {
  const JoinShape s = join_shape(a.dimensions(), out->dimensions());
  helpers(threads).run(s.shares(), [&](int k) {
    join(s, share_of(s.images, k, s.shares()), a.typed_data(), b.typed_data(),
         slope.typed_data()[0], out->typed_data(), place->typed_data());
  });
  return ffi::Error::Success();
}

ffi::Error join_backward_handler(ffi::ThreadPool threads, Floats slope, Floats out, Bytes place,
                                 Floats gradient, FloatsOut d) {
  const JoinShape s = join_shape(d->dimensions(), out.dimensions());
  helpers(threads).run(s.shares(), [&](int k) {
    join_back(s, share_of(s.images, k, s.shares()), out.typed_data(), place.typed_data(),
              gradient.typed_data(), slope.typed_data()[0], d->typed_data());
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxsparse

extern "C" const int JaxsparseLanes = jaxsparse::kLanes;
extern "C" const int JaxsparseFewInputs = jaxsparse::kFewInputs;

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxsparseBlockForward, jaxsparse::block_forward_handler);
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxsparseBlockBackward, jaxsparse::block_backward_handler);
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxsparseGramForward, jaxsparse::gram_forward_handler);
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxsparseGramBackward, jaxsparse::gram_backward_handler);
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxsparseUnitForward, jaxsparse::unit_forward_handler);
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxsparseUnitBackward, jaxsparse::unit_backward_handler);
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxsparseJoinForward, jaxsparse::join_forward_handler);
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxsparseJoinBackward, jaxsparse::join_backward_handler);
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxsparseConvForward, jaxsparse::conv_forward_handler);
XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxsparseConvBackward, jaxsparse::conv_backward_handler);
