// Does this engine run here? Answered from its sidecar, before TensorRT sees a byte of it, as msn-deploy does.
#pragma once

#include <string>
#include <vector>

#include "common.hpp"
#include "settings.hpp"

namespace msn {

// The machine: TensorRT's version (10.3.0), the GPU's compute capability (8.7) and name, the CPU (aarch64).
struct Here {
    std::string tensorrt, capability, gpu, arch;
};

struct Plan {
    std::string path;
    Bytes data;
    bool version_compatible = false;
    int dla_core = -1;  // -1: the GPU
};

// Returns the engine if it is whole, of the network of the settings, and made for this machine. Throws Error(2) or (3).
// plugins: libraries that are given to load it. with_sidecar: false for an engine of trtexec, which has none; TensorRT's
// own checks are then the only ones.
Plan preflight(const std::string& path, const Settings& settings, const Here& here, const std::vector<std::string>& plugins,
               bool with_sidecar);

}  // namespace msn
