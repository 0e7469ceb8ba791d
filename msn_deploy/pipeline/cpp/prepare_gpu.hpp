// The preparation of prepare.hpp on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include "prepare.hpp"

namespace msn {

// Memory on the GPU that grows as it is needed. Throws Error(3) where there is not enough.
class DeviceMemory {
public:
    DeviceMemory() = default;
    ~DeviceMemory() { cudaFree(place_); }
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;
    void* room(std::size_t bytes);  // what was in it is lost where it has to grow
    void* get() const { return place_; }

private:
    void* place_ = nullptr;
    std::size_t size_ = 0;
};

// Throws Error(3) unless a call of CUDA succeeded. what: for the message.
void must(cudaError_t result, const char* what);

// Queues the preparation of one image into `input`, (1, ...) on the GPU, and returns before it is done.
class GpuPreparation {
public:
    void queue(const Picture& picture, const Placed& where, const Settings& settings, void* input, cudaStream_t stream);

private:
    DeviceMemory image_, lines_, taps_, numbers_;
    std::vector<int> packed_;
    std::vector<float> scales_;
};

}  // namespace msn
