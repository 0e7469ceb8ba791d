// msn-cpu: the half of msn-infer that needs no GPU, by itself. `ctest` runs its `check`.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <new>

#include "check.hpp"
#include "compare.hpp"
#include "decode.hpp"
#include "picture.hpp"
#include "preflight.hpp"
#include "prepare.hpp"

namespace {

using namespace msn;

constexpr double alike = 1e-9;  // what exp and tanh of two libraries may differ by, and more

const char* const usage =
    "msn-cpu check MODEL.json CHECK.json         is all as it was when the bundle was packed?\n"
    "msn-cpu answer MODEL.json CHECK.json        the answers to the outputs that were recorded, a line each\n"
    "msn-cpu prepare MODEL.json IMAGE OUT        the network's input for an image, as bytes\n"
    "msn-cpu preflight MODEL.json ENGINE TENSORRT CAPABILITY GPU ARCH [PLUGIN...]   would the engine load there?\n";

Json answer_of(const Recorded& one, const Settings& settings) {
    const Picture picture = open_picture(one.image);
    return answer(one.outputs, placed(picture, settings.prepare, one.image), settings);
}

int check(const Settings& settings, const std::string& path) {
    int wrong = 0;
    const std::vector<Recorded> recorded = read_recorded(path);
    for (const Recorded& one : recorded) {
        const Picture picture = open_picture(one.image);
        const Placed where = placed(picture, settings.prepare, one.image);
        const bool same = digest_of(prepared(picture, where, settings).bytes) == one.input;
        const std::string other = difference(one.answer, answer(one.outputs, where, settings), alike);
        if (same && other.empty()) continue;
        ++wrong;
        std::cerr << one.image << ": " << (same ? "" : "another input; ") << other << "\n";
    }
    std::cout << recorded.size() - std::size_t(wrong) << " of " << recorded.size() << " images are prepared and read as msn-deploy does it.\n";
    return wrong == 0 && !recorded.empty() ? 0 : 1;
}

int run(int count, char** words) {
    const std::string verb = count > 1 ? words[1] : "";
    if (count < 4) {
        std::cerr << usage;
        return 2;
    }
    const Settings settings = read_settings(words[2]);
    if (verb == "check" && count == 4) return check(settings, words[3]);
    if (verb == "answer" && count == 4) {
        for (const Recorded& one : read_recorded(words[3])) std::cout << answer_of(one, settings).dump() << "\n";
        return 0;
    }
    if (verb == "prepare" && count == 5) {
        const Picture picture = open_picture(words[3]);
        const Array made = prepared(picture, placed(picture, settings.prepare, words[3]), settings);
        std::ofstream out(words[4], std::ios::binary);
        out.write(reinterpret_cast<const char*>(made.bytes.data()), static_cast<std::streamsize>(made.bytes.size()));
        if (!out.flush()) throw Error(2, std::string(words[4]) + " cannot be written.");
        return 0;
    }
    if (verb == "preflight" && count >= 8) {
        const Plan plan = preflight(words[3], settings, {words[4], words[5], words[6], words[7]}, {words + 8, words + count}, true);
        std::cout << plan.path << ": " << plan.data.size() << " bytes\n";
        return 0;
    }
    std::cerr << usage;
    return 2;
}

}  // namespace

int main(int count, char** words) {
    try {
        return run(count, words);
    } catch (const Error& error) {
        std::cerr << "msn-cpu: ERROR: " << error.what() << "\n";
        return error.code;
    } catch (const std::bad_alloc&) {
        std::cerr << "msn-cpu: ERROR: it does not fit into the memory of this machine.\n";
        return 2;
    }
}
