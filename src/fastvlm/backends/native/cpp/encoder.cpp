// C interface of the encoder's kernels, compiled once for each level: functions are called fastvlm_LEVEL_NAME.
//
// A plain C interface and no headers of torch's, so that any g++ or clang++ compiles it in seconds, and what it makes
// does not depend on the version of torch. Every tensor is contiguous and holds at least one element; `dtype` is a Dtype.

#include <algorithm>
#include <cstddef>

#include "depthwise.hpp"
#include "gelu.hpp"
#include "interface.hpp"
#include "threads.hpp"

using namespace fastvlm::FASTVLM_LEVEL;

namespace {

template <typename Number>
int depthwise_of(const void* input, void* output, const float* weight, const float* bias, const std::ptrdiff_t sizes[4],
                 int kernel, int threads) {
  const Image<Number> image{static_cast<const Number*>(input), static_cast<Number*>(output), weight, bias,
                            sizes[1], sizes[2], sizes[3]};
  if (kernel == 7) depthwise<7>(image, sizes[0], threads);
  else if (kernel == 3) depthwise<3>(image, sizes[0], threads);
  else return 1;
  return 0;
}

} // namespace

FASTVLM_INTERFACE_BEGIN

// 1 if several threads can be used.
int FASTVLM_NAME(has_threads)() { return has_threads() ? 1 : 0; }

// Exact GELU of `count` numbers, in place.
void FASTVLM_NAME(gelu)(void* data, std::ptrdiff_t count, int dtype, int threads) {
  if (dtype == kFloat32) gelu(static_cast<float*>(data), count, threads);
  else gelu(static_cast<Bfloat16*>(data), count, threads);
}

// (batch, height, width, channels) -> the same shape; `kernel` is 3 or 7, else 1 is returned and nothing done.
int FASTVLM_NAME(depthwise)(const void* input, void* output, const float* weight, const float* bias,
                            std::ptrdiff_t batch, std::ptrdiff_t height, std::ptrdiff_t width, std::ptrdiff_t channels,
                            int kernel, int dtype, int threads) {
  const std::ptrdiff_t sizes[4] = {batch, height, width, channels};
  const auto convolve = dtype == kFloat32 ? depthwise_of<float> : depthwise_of<Bfloat16>;
  return convolve(input, output, weight, bias, sizes, kernel, threads);
}

FASTVLM_INTERFACE_END
