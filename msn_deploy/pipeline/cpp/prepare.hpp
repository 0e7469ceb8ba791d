// From an image of any size to a network's input: the same whole numbers on the CPU and, in prepare.cu, on the GPU.
//
// An image is scaled along one axis, rounded to bytes, then along the other, with weights in steps of 2^-22, as Pillow
// does it: msn-deploy trains, calibrates and measures with Pillow.
#pragma once

#include <cstdint>
#include <vector>

#include "common.hpp"
#include "picture.hpp"
#include "settings.hpp"

#ifdef __CUDACC__
#define MSN_BOTH __host__ __device__
#else
#define MSN_BOTH
#endif

namespace msn {

// Which pixels become one, along one axis: weights[first[at]...] of length[at] pixels from start[at] on.
struct Taps {
    std::vector<int> start, length, first, weights;
};

// Where an image of one size goes in the frame, and how it gets there.
struct Placed {
    int width, height, channels;  // of the image
    int wide, high;  // what it is scaled to
    int left, top;  // of it, in the frame; negative where it is cropped
    double scale_x, scale_y;
    Taps across, down;
};

// Throws Error(2) for an image that is larger than the canvas of a pad, or too long. path: for messages.
Placed placed(const Picture& picture, const Prepare& prepare, const std::string& path);

// Returns the input for one image, (1, channels, height, width) or channels last, of type float32, float16 or uint8.
Array prepared(const Picture& picture, const Placed& where, const Settings& settings);

// The pointers of a Taps, wherever it lies.
struct TapsView {
    const int *start, *length, *first, *weights;
};

constexpr int weight_bits = 22;

MSN_BOTH inline std::uint8_t rounded(int sum) {
    const int value = (sum + (1 << (weight_bits - 1))) >> weight_bits;
    return static_cast<std::uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// Channel `part` of a pixel that has `have` channels, where `wanted` are wanted: the luminance is ITU-R 601's.
MSN_BOTH inline int part_of(const std::uint8_t* pixel, int have, int wanted, int part) {
    if (have == wanted) return pixel[part];
    if (have == 1) return pixel[0];
    return (pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 0x8000) >> 16;
}

// One byte of the image scaled across: (height, wide, wanted) of (height, width, have).
MSN_BOTH inline std::uint8_t scaled_across(const std::uint8_t* image, int width, int have, int wanted, TapsView taps, int row,
                                           int column, int part) {
    const std::uint8_t* pixel = image + (std::size_t(row) * std::size_t(width) + std::size_t(taps.start[column])) * std::size_t(have);
    const int* weights = taps.weights + taps.first[column];
    int sum = 0;
    for (int at = 0; at < taps.length[column]; ++at, pixel += have) sum += part_of(pixel, have, wanted, part) * weights[at];
    return rounded(sum);
}

// One byte of the frame: of what `scaled_across` made, scaled down, or of the canvas around it.
MSN_BOTH inline std::uint8_t in_frame(const std::uint8_t* lines, int wide, int high, int left, int top, int fill, int parts, TapsView taps,
                                      int row, int column, int part) {
    row -= top;
    column -= left;
    if (row < 0 || row >= high || column < 0 || column >= wide) return static_cast<std::uint8_t>(fill);
    const std::size_t stride = std::size_t(wide) * std::size_t(parts);
    const std::uint8_t* value = lines + std::size_t(taps.start[row]) * stride + std::size_t(column) * std::size_t(parts) + std::size_t(part);
    const int* weights = taps.weights + taps.first[row];
    int sum = 0;
    for (int at = 0; at < taps.length[row]; ++at, value += stride) sum += *value * weights[at];
    return rounded(sum);
}

// The number that a byte becomes: two roundings, as in numpy; a fused multiply-add would have one.
MSN_BOTH inline float number_of(std::uint8_t value, float scale, float offset) {
#ifdef __CUDA_ARCH__
    return __fadd_rn(__fmul_rn(static_cast<float>(value), scale), offset);
#else
    const float product = static_cast<float>(value) * scale;  // built with -ffp-contract=off
    return product + offset;
#endif
}

}  // namespace msn
