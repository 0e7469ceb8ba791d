// Two kernels, one per axis; the arithmetic is that of prepare.hpp, which the CPU's tests run.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "prepare_gpu.hpp"

namespace msn {
namespace {

constexpr unsigned block_wide = 32, block_high = 8;

struct Target {
    void* input;
    Type type;
    int width, height, channels, read, fill;
    bool bgr, channels_last;
    const float *scale, *offset;
};

__global__ void across(const std::uint8_t* image, int width, int height, int have, int wide, int wanted, TapsView taps, std::uint8_t* lines) {
    const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    const int row = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y);
    if (column >= wide || row >= height) return;
    for (int part = 0; part < wanted; ++part)
        lines[(std::size_t(row) * std::size_t(wide) + std::size_t(column)) * std::size_t(wanted) + std::size_t(part)] =
            scaled_across(image, width, have, wanted, taps, row, column, part);
}

__global__ void down(const std::uint8_t* lines, int wide, int high, int left, int top, TapsView taps, Target to) {
    const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    const int row = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y);
    if (column >= to.width || row >= to.height) return;
    const std::size_t pixel = std::size_t(row) * std::size_t(to.width) + std::size_t(column);
    for (int part = 0; part < to.channels; ++part) {
        const int from = to.read == 1 ? 0 : to.bgr ? 2 - part : part;
        const std::uint8_t value = in_frame(lines, wide, high, left, top, to.fill, to.read, taps, row, column, from);
        const std::size_t at = to.channels_last ? pixel * std::size_t(to.channels) + std::size_t(part)
                                                : std::size_t(part) * std::size_t(to.height) * std::size_t(to.width) + pixel;
        const float number = number_of(value, to.scale[part], to.offset[part]);
        if (to.type == Type::uint8) static_cast<std::uint8_t*>(to.input)[at] = value;
        else if (to.type == Type::float16) static_cast<__half*>(to.input)[at] = __float2half_rn(number);
        else static_cast<float*>(to.input)[at] = number;
    }
}

dim3 blocks(int width, int height) {
    return dim3((unsigned(width) + block_wide - 1) / block_wide, (unsigned(height) + block_high - 1) / block_high);
}

// Appends the four parts of a Taps; returns where each begins.
std::vector<std::size_t> pack(std::vector<int>& all, const Taps& taps) {
    std::vector<std::size_t> starts;
    for (const std::vector<int>* part : {&taps.start, &taps.length, &taps.first, &taps.weights}) {
        starts.push_back(all.size());
        all.insert(all.end(), part->begin(), part->end());
    }
    return starts;
}

TapsView view(const int* base, const std::vector<std::size_t>& starts) {
    return {base + starts[0], base + starts[1], base + starts[2], base + starts[3]};
}

}  // namespace

void must(cudaError_t result, const char* what) {
    if (result != cudaSuccess) throw Error(3, std::string("the GPU cannot ") + what + ": " + cudaGetErrorString(result) + ".");
}

void* DeviceMemory::room(std::size_t bytes) {
    if (bytes > size_) {
        must(cudaFree(place_), "free memory");
        place_ = nullptr;
        size_ = 0;
        must(cudaMalloc(&place_, bytes), "give memory");
        size_ = bytes;
    }
    return place_;
}

void GpuPreparation::queue(const Picture& picture, const Placed& where, const Settings& settings, void* input, cudaStream_t stream) {
    const Prepare& to = settings.prepare;
    const dim3 block(block_wide, block_high), over_lines = blocks(where.wide, where.height);
    if (over_lines.y > 65535) throw Error(2, "an image of " + std::to_string(where.height) + " rows is too high for the GPU; prepare it on the CPU.");
    // The stream may still read what an earlier call has packed.
    must(cudaStreamSynchronize(stream), "wait");
    packed_.clear();
    const std::vector<std::size_t> first = pack(packed_, where.across), second = pack(packed_, where.down);
    scales_ = to.scale;
    scales_.insert(scales_.end(), to.offset.begin(), to.offset.end());
    void* image = image_.room(picture.pixels.size());
    void* lines = lines_.room(std::size_t(where.height) * std::size_t(where.wide) * std::size_t(to.read));
    int* taps = static_cast<int*>(taps_.room(packed_.size() * sizeof(int)));
    float* numbers = static_cast<float*>(numbers_.room(scales_.size() * sizeof(float)));
    must(cudaMemcpyAsync(image, picture.pixels.data(), picture.pixels.size(), cudaMemcpyHostToDevice, stream), "take the image");
    must(cudaMemcpyAsync(taps, packed_.data(), packed_.size() * sizeof(int), cudaMemcpyHostToDevice, stream), "take the weights");
    must(cudaMemcpyAsync(numbers, scales_.data(), scales_.size() * sizeof(float), cudaMemcpyHostToDevice, stream), "take mean and std");
    across<<<over_lines, block, 0, stream>>>(static_cast<const std::uint8_t*>(image), where.width, where.height, where.channels, where.wide,
                                             to.read, view(taps, first), static_cast<std::uint8_t*>(lines));
    const Target target{input, settings.type, to.width, to.height, to.channels, to.read, to.fill, to.bgr, to.channels_last, numbers,
                        numbers + to.channels};
    down<<<blocks(to.width, to.height), block, 0, stream>>>(static_cast<const std::uint8_t*>(lines), where.wide, where.high, where.left,
                                                            where.top, view(taps, second), target);
    must(cudaGetLastError(), "prepare the image");
}

}  // namespace msn
