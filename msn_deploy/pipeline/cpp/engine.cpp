#include "engine.hpp"

#include <NvInfer.h>
#include <NvInferPlugin.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/utsname.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iostream>
#include <map>

#include "prepare_gpu.hpp"

namespace msn {
namespace {

class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, char const* text) noexcept override {
        if (severity <= Severity::kERROR && last_.empty()) last_ = text;
        if (severity <= Severity::kWARNING) std::cerr << "TensorRT: " << text << "\n";
    }
    std::string said() const { return last_.empty() ? "it gave no reason" : last_; }

private:
    std::string last_;
};

Type type_of(nvinfer1::DataType type, const std::string& name) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT: return Type::float32;
        case nvinfer1::DataType::kHALF: return Type::float16;
        case nvinfer1::DataType::kINT8: return Type::int8;
        case nvinfer1::DataType::kINT32: return Type::int32;
        case nvinfer1::DataType::kBOOL: return Type::boolean;
        case nvinfer1::DataType::kUINT8: return Type::uint8;
#if NV_TENSORRT_MAJOR >= 10
        case nvinfer1::DataType::kINT64: return Type::int64;
#endif
        default: throw Error(2, "the engine has the tensor " + name + " of a type that is not read here.");
    }
}

std::vector<std::int64_t> sizes_of(const nvinfer1::Dims& shape) {
    std::vector<std::int64_t> made;
    for (int at = 0; at < shape.nbDims; ++at) made.push_back(static_cast<std::int64_t>(shape.d[at]));
    return made;
}

// An output whose size the data decide: TensorRT asks for its memory, and tells the shape, while it queues a run.
class Decided final : public nvinfer1::IOutputAllocator {
public:
    void* reallocateOutput(char const*, void*, std::uint64_t size, std::uint64_t) noexcept override {
        try {
            return memory_.room(std::max<std::size_t>(static_cast<std::size_t>(size), 1));
        } catch (const Error&) {
            return nullptr;
        }
    }
    void notifyShape(char const*, nvinfer1::Dims const& shape) noexcept override { shape_ = shape; }
    std::vector<std::int64_t> shape() const { return sizes_of(shape_); }
    void* get() const { return memory_.get(); }

private:
    DeviceMemory memory_;
    nvinfer1::Dims shape_{};
};

struct Output {
    Array array;
    DeviceMemory memory;
    std::unique_ptr<Decided> decided;
};

}  // namespace

Here what_is_here() {
    int count = 0, major = 0, minor = 0;
    must(cudaGetDeviceCount(&count), "be found");
    if (count < 1) throw Error(3, "no NVIDIA GPU answers here.");
    cudaDeviceProp properties{};
    must(cudaGetDeviceProperties(&properties, 0), "be asked");
    must(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "be asked");
    must(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "be asked");
    const int version = getInferLibVersion();  // 8601 is 8.6.1, 100300 is 10.3.0
    const int step = version < 10000 ? 1000 : 10000;
    const std::string tensorrt =
        std::to_string(version / step) + "." + std::to_string(version % step / 100) + "." + std::to_string(version % 100);
    utsname machine{};
    uname(&machine);
    return {tensorrt, std::to_string(major) + "." + std::to_string(minor), properties.name, machine.machine};
}

struct Engine::Parts {
    Settings settings;
    Logger logger;
    std::vector<void*> libraries;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    cudaStream_t stream = nullptr;
    std::vector<std::int64_t> shape;  // of the input: rows, then those of one image
    DeviceMemory input;
    GpuPreparation preparation;
    std::vector<std::unique_ptr<Output>> outputs;

    ~Parts() {
        context.reset();
        engine.reset();
        runtime.reset();
        if (stream != nullptr) cudaStreamDestroy(stream);
    }

    void need(bool done, const std::string& what) const {
        if (!done) throw Error(3, "TensorRT cannot " + what + ": " + logger.said() + ".");
    }

    void load(const Plan& plan, const std::vector<std::string>& plugins) {
        for (const std::string& library : plugins) {  // it registers its operators as it is loaded
            const std::string path = library.find('/') == std::string::npos ? "./" + library : library;
            libraries.push_back(dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL));
            if (libraries.back() == nullptr) {
                const char* why = dlerror();
                throw Error(2, library + " does not load: " + (why != nullptr ? why : "no reason is known") + ".");
            }
        }
#ifdef MSN_WITH_PLUGINS
        need(initLibNvInferPlugins(&logger, ""), "register its own plugins");
#endif
        runtime.reset(nvinfer1::createInferRuntime(logger));
        need(runtime != nullptr, "start");
        if (plan.version_compatible) runtime->setEngineHostCodeAllowed(true);  // such an engine brings its own runtime
        if (plan.dla_core >= 0) {
            if (plan.dla_core >= runtime->getNbDLACores())
                throw Error(3, plan.path + " was built for DLA core " + std::to_string(plan.dla_core) + ", which is not here.");
            runtime->setDLACore(plan.dla_core);
        }
        engine.reset(runtime->deserializeCudaEngine(plan.data.data(), plan.data.size()));
        if (engine == nullptr) throw Error(2, "TensorRT does not load " + plan.path + ": " + logger.said() + ".");
        context.reset(engine->createExecutionContext());
        need(context != nullptr, "set " + plan.path + " up");
    }

    void take_contract() {
        std::vector<std::string> made;
        for (int at = 0; at < engine->getNbIOTensors(); ++at) {
            const std::string name = engine->getIOTensorName(at);
            if (engine->getTensorLocation(name.c_str()) != nvinfer1::TensorLocation::kDEVICE)
                throw Error(2, "the engine has " + name + " in the memory of the CPU, which is not read here.");
            if (engine->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kOUTPUT) made.push_back(name);
            else if (name != settings.input) throw Error(2, "the engine takes " + name + "; here one input of images is fed.");
        }
        const char* const name = settings.input.c_str();
        if (type_of(engine->getTensorDataType(name), settings.input) != settings.type)
            throw Error(2, "the engine takes another type of numbers than " + name_of(settings.path) + " says.");
        const Prepare& to = settings.prepare;
        nvinfer1::Dims wanted = engine->getTensorShape(name);
        const std::int64_t sizes[2][3] = {{to.channels, to.height, to.width}, {to.height, to.width, to.channels}};
        bool fits = wanted.nbDims == 4;
        if (fits && wanted.d[0] == -1) wanted.d[0] = engine->getProfileShape(name, 0, nvinfer1::OptProfileSelector::kMIN).d[0];
        for (int at = 0; at < 3 && fits; ++at) fits = wanted.d[at + 1] == sizes[to.channels_last ? 1 : 0][at];
        if (!fits || wanted.d[0] < 1) throw Error(2, "the engine takes images of another size than " + name_of(settings.path) + " says.");
        shape = sizes_of(wanted);
        need(context->setInputShape(name, wanted), "take an image");
        need(context->setTensorAddress(name, input.room(static_cast<std::size_t>(elements_of(shape)) * size_of(settings.type))), "take an image");
        for (const std::string& each : made) {
            outputs.push_back(std::make_unique<Output>());
            Output& output = *outputs.back();
            output.array.name = each;
            output.array.type = type_of(engine->getTensorDataType(each.c_str()), each);
            output.array.shape = sizes_of(context->getTensorShape(each.c_str()));
            if (std::count(output.array.shape.begin(), output.array.shape.end(), -1) > 0) {
                output.decided = std::make_unique<Decided>();
                need(context->setOutputAllocator(each.c_str(), output.decided.get()), "give " + each);
                continue;
            }
            const std::size_t size = static_cast<std::size_t>(output.array.count()) * size_of(output.array.type);
            output.array.bytes.resize(size);
            need(context->setTensorAddress(each.c_str(), output.memory.room(std::max<std::size_t>(size, 1))), "give " + each);
        }
    }

    std::size_t row_bytes() const { return static_cast<std::size_t>(elements_of(shape) / shape[0]) * size_of(settings.type); }

    // Repeats the first row where a run takes more than one image.
    void fill_rows() {
        std::uint8_t* rows = static_cast<std::uint8_t*>(input.get());
        for (std::int64_t row = 1; row < shape[0]; ++row)
            must(cudaMemcpyAsync(rows + static_cast<std::size_t>(row) * row_bytes(), rows, row_bytes(), cudaMemcpyDeviceToDevice, stream), "copy an image");
    }

    Arrays run() {
        fill_rows();
        need(context->enqueueV3(stream), "run the engine");
        Arrays made;
        for (const auto& output : outputs) {
            Array array = output->array;
            if (output->decided != nullptr) {
                array.shape = output->decided->shape();
                array.bytes.resize(static_cast<std::size_t>(array.count()) * size_of(array.type));
            }
            made.push_back(std::move(array));
        }
        for (std::size_t at = 0; at < made.size(); ++at) {
            const Output& output = *outputs[at];
            const void* from = output.decided != nullptr ? output.decided->get() : output.memory.get();
            if (!made[at].bytes.empty())
                must(cudaMemcpyAsync(made[at].bytes.data(), from, made[at].bytes.size(), cudaMemcpyDeviceToHost, stream), "give the outputs");
        }
        must(cudaStreamSynchronize(stream), "run the engine");
        return made;
    }
};

Engine::Engine(const Plan& plan, const Settings& settings, const std::vector<std::string>& plugins) : parts_(std::make_unique<Parts>()) {
    parts_->settings = settings;
    must(cudaStreamCreateWithFlags(&parts_->stream, cudaStreamNonBlocking), "start");
    parts_->load(plan, plugins);
    parts_->take_contract();
    must(cudaMemsetAsync(parts_->input.get(), 0, parts_->row_bytes(), parts_->stream), "clear memory");
    parts_->run();
}

Engine::~Engine() = default;

Arrays Engine::run(const Array& input, double& took_ms) {
    if (input.bytes.size() != parts_->row_bytes()) throw Error(2, "the input is of another size than the engine takes.");
    const auto began = std::chrono::steady_clock::now();
    must(cudaMemcpyAsync(parts_->input.get(), input.bytes.data(), input.bytes.size(), cudaMemcpyHostToDevice, parts_->stream), "take an image");
    Arrays made = parts_->run();
    took_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
    return made;
}

Arrays Engine::run(const Picture& picture, const Placed& where, double& took_ms) {
    parts_->preparation.queue(picture, where, parts_->settings, parts_->input.get(), parts_->stream);
    must(cudaStreamSynchronize(parts_->stream), "prepare an image");
    const auto began = std::chrono::steady_clock::now();
    Arrays made = parts_->run();
    took_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
    return made;
}

Array Engine::prepared_on_gpu(const Picture& picture, const Placed& where) {
    Array made;
    made.name = parts_->settings.input;
    made.type = parts_->settings.type;
    made.shape = parts_->shape;
    made.shape[0] = 1;
    made.bytes.resize(parts_->row_bytes());
    parts_->preparation.queue(picture, where, parts_->settings, parts_->input.get(), parts_->stream);
    must(cudaMemcpyAsync(made.bytes.data(), parts_->input.get(), made.bytes.size(), cudaMemcpyDeviceToHost, parts_->stream), "give the input");
    must(cudaStreamSynchronize(parts_->stream), "prepare an image");
    return made;
}

}  // namespace msn
