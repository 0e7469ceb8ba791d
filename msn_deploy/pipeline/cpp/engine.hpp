// An engine in TensorRT, for one image at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common.hpp"
#include "picture.hpp"
#include "preflight.hpp"
#include "prepare.hpp"

namespace msn {

// Finds out what is here. Throws Error(3) without a GPU.
Here what_is_here();

class Engine {
public:
    // Loads the libraries with plugins, then the engine, and runs it once. Throws Error(2) for one that does not load,
    // or takes something else than the images of the settings, Error(3) where the GPU fails.
    Engine(const Plan& plan, const Settings& settings, const std::vector<std::string>& plugins);
    ~Engine();
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    // Runs it on an input of one image, as `prepared` makes it. took_ms: copies and inference, ms.
    Arrays run(const Array& input, double& took_ms);
    // Prepares the image on the GPU and runs it. took_ms: without the preparation.
    Arrays run(const Picture& picture, const Placed& where, double& took_ms);
    // The input that the GPU has prepared, to be compared with `prepared`.
    Array prepared_on_gpu(const Picture& picture, const Placed& where);

private:
    struct Parts;
    std::unique_ptr<Parts> parts_;
};

}  // namespace msn
