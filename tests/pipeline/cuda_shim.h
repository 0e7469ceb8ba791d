// As much of CUDA as prepare.cu needs, on the CPU: memory is malloc's, a kernel runs one thread after the other.
// The test puts it in the place of CUDA's headers, and writes kernel<<<grid, block, 0, stream>>>(...) as a call of `over`.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __global__

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline dim3 blockIdx, blockDim, threadIdx;

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1 };
using cudaStream_t = void*;

inline cudaError_t cudaMalloc(void** place, std::size_t size) {
    *place = std::malloc(size);
    return *place != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* place) {
    std::free(place);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(to, from, size);
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "out of memory"; }

namespace msn {
std::uint16_t half_of_float(float value);
}
struct __half {
    std::uint16_t bits;
};
inline __half __float2half_rn(float value) { return {msn::half_of_float(value)}; }

template <typename Kernel>
auto over(dim3 grid, dim3 block, Kernel kernel) {
    return [=](auto... arguments) {
        blockDim = block;
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
                for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
                    for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) kernel(arguments...);
    };
}
