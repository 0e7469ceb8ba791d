#include "preflight.hpp"

#include <algorithm>
#include <fstream>

namespace msn {
namespace {

constexpr std::size_t most_bytes = std::size_t(1) << 24;

std::vector<int> numbers_of(const std::string& version) {
    std::vector<int> numbers(1);
    for (const char letter : version) {
        if (letter == '.') numbers.push_back(0);
        else if (letter >= '0' && letter <= '9' && numbers.back() < 1000000) numbers.back() = numbers.back() * 10 + (letter - '0');
        else break;
    }
    return numbers;
}

std::string text_of(const Json& facts, const std::string& key) {
    const Json* found = facts.find(key);
    return found == nullptr ? "" : found->text();
}

bool is_true(const Json& facts, const std::string& key) {
    const Json* found = facts.find(key);
    return found != nullptr && found->truth();
}

std::string again(const Settings& settings) {
    return "\nBuild it here: msn-deploy build-engine " + settings.onnx + ", or ./build.sh of the bundle.";
}

void check_version(const std::string& path, const Json& facts, const Here& here, const Settings& settings) {
    const std::string version = text_of(facts, "backend_version");
    std::vector<int> built = numbers_of(version), found = numbers_of(here.tensorrt);
    const std::size_t shared = std::min(built.size(), found.size());  // packages leave the build number out
    built.resize(shared);
    found.resize(shared);
    if (built == found) return;
    const bool next = built[0] == found[0] || (built[0] == 8 && found[0] == 10) || (built[0] == 10 && found[0] == 11);
    if (is_true(facts, "version_compatible") && found > built && next) return;
    throw Error(2, path + " was built by TensorRT " + version + ", and here is TensorRT " + here.tensorrt +
                       ": an engine loads only in the version that built it, or, if it is version-compatible, in later ones." + again(settings));
}

void check_device(const std::string& path, const Json& facts, const Here& here, const Settings& settings) {
    const std::string capability = text_of(facts, "compute_capability"), gpu = text_of(facts, "device");
    const bool any_ampere = is_true(facts, "hardware_compatible") && numbers_of(here.capability)[0] >= 8;
    if (!capability.empty() && capability != here.capability && !any_ampere)
        throw Error(2, path + " holds code for compute capability " + capability + ", and this GPU has " + here.capability + "." + again(settings));
    const Json* machine = facts.find("machine");
    const std::string arch = machine == nullptr ? "" : text_of(*machine, "arch");
    if (!arch.empty() && arch != here.arch)
        throw Error(2, path + " was built on " + arch + ", and this machine is " + here.arch + "." + again(settings));
    if (!gpu.empty() && gpu != here.gpu && !any_ampere)
        throw Error(2, path + " was tuned on another device: " + gpu + ", and this is " + here.gpu + "." + again(settings));
}

void check_plugins(const std::string& path, const Json& facts, const std::vector<std::string>& given) {
    const Json* needed = facts.find("plugins");
    for (const Json& each : needed == nullptr ? std::vector<Json>() : needed->items())
        if (std::none_of(given.begin(), given.end(), [&](const std::string& library) { return name_of(library) == each.text(); }))
            throw Error(2, path + " was built with operators of " + each.text() + ".\nGive what it needs to load: `--plugins " + each.text() + "`.");
    if (!given.empty() && (needed == nullptr || needed->items().empty()))
        throw Error(2, path + " was built without plugins.\nLeave `--plugins` out.");
}

}  // namespace

Plan preflight(const std::string& path, const Settings& settings, const Here& here, const std::vector<std::string>& plugins,
               bool with_sidecar) {
    const std::string ending = ".engine";
    if (path.size() <= ending.size() || path.compare(path.size() - ending.size(), ending.size(), ending) != 0)
        throw Error(2, path + " does not end in .engine.");
    const std::string sidecar = path.substr(0, path.size() - ending.size()) + ".plan.json";
    Plan plan;
    plan.path = path;
    plan.data = read_file(path);
    if (!with_sidecar) return plan;
    if (!std::ifstream(sidecar))
        throw Error(2, path + " has no sidecar " + name_of(sidecar) +
                           ": nothing says what it was built for.\nBuild it with msn-deploy, or add `--no-sidecar` for an engine of trtexec.");
    const Bytes text = read_file(sidecar, most_bytes);
    const Json side = Json::parse(std::string(text.begin(), text.end()), sidecar);
    if (side.at("kind").text() != "engine") throw Error(2, sidecar + " describes a file of kind " + side.at("kind").text() + ", not an engine.");
    if (side.at("bytes").number() != static_cast<double>(plan.data.size()) || side.at("sha256").text() != digest_of(plan.data))
        throw Error(2, path + " is damaged, or was exchanged for another: its SHA-256 is not the one in " + name_of(sidecar) +
                           ".\nCopy both files again, or build it again.");
    const Json& facts = side.at("facts");
    if (text_of(facts, "backend") != "tensorrt") throw Error(2, path + " is of " + text_of(facts, "backend") + "; this program loads those of TensorRT.");
    bool ours = false;
    for (const Json& parent : side.at("parents").items())
        ours = ours || (parent.at("role").text() == "onnx" && parent.at("sha256").text() == settings.onnx_digest);
    if (!ours)
        throw Error(2, path + " was built from another file than " + settings.onnx + ", which " + name_of(settings.path) + " is for." + again(settings));
    check_plugins(path, facts, plugins);
    check_version(path, facts, here, settings);
    check_device(path, facts, here, settings);
    plan.version_compatible = is_true(facts, "version_compatible");
    const Json* core = facts.find("dla_core");
    if (core != nullptr) plan.dla_core = static_cast<int>(core->whole());
    return plan;
}

}  // namespace msn
