// msn-infer: what an engine says of images, as the lines of JSON that `msn-deploy infer --json -` prints.
#include <iostream>
#include <new>
#include <string>
#include <vector>

#include "check.hpp"
#include "compare.hpp"
#include "decode.hpp"
#include "engine.hpp"

namespace {

using namespace msn;

constexpr double slack = 0.05;  // by which scores of an engine may differ from those of its ONNX file

const char* const usage =
    "msn-infer [OPTION...] MODEL.json ENGINE IMAGE...\n"
    "  --gpu-prepare      prepare images on the GPU\n"
    "  --plugins LIBRARY  with operators that the engine needs; repeatable\n"
    "  --no-sidecar       load an engine that has none, such as trtexec's\n"
    "msn-infer [OPTION...] --check CHECK.json MODEL.json ENGINE    does it agree with its ONNX file on the images recorded?\n";

struct Words {
    bool gpu = false, sidecar = true;
    std::string check, model, engine;
    std::vector<std::string> plugins, images;
};

Words read_words(int count, char** words) {
    Words made;
    std::vector<std::string> rest;
    for (int at = 1; at < count; ++at) {
        const std::string word = words[at];
        const bool takes_more = word == "--plugins" || word == "--check";
        if (takes_more && at + 1 >= count) throw Error(2, word + " needs a value.\n" + usage);
        if (word == "--gpu-prepare") made.gpu = true;
        else if (word == "--no-sidecar") made.sidecar = false;
        else if (word == "--plugins") made.plugins.push_back(words[++at]);
        else if (word == "--check") made.check = words[++at];
        else if (word.rfind("--", 0) == 0) throw Error(2, "there is no option " + word + ".\n" + usage);
        else rest.push_back(word);
    }
    if (rest.size() < 2 || (rest.size() == 2) == made.check.empty()) throw Error(2, usage);
    made.model = rest[0];
    made.engine = rest[1];
    made.images.assign(rest.begin() + 2, rest.end());
    return made;
}

Json told(const std::string& image, Engine& engine, const Settings& settings, bool gpu, double& took_ms) {
    const Picture picture = open_picture(image);
    const Placed where = placed(picture, settings.prepare, image);
    const Arrays outputs = gpu ? engine.run(picture, where, took_ms) : engine.run(prepared(picture, where, settings), took_ms);
    return answer(outputs, where, settings);
}

int infer(const Words& words, Engine& engine, const Settings& settings) {
    int failed = 0;
    for (const std::string& image : words.images) {
        Json line = Json::object();
        line.add("image", Json(image));
        double took_ms = 0;
        std::string error;
        try {
            const Json said = told(image, engine, settings, words.gpu, took_ms);
            for (const auto& [key, value] : said.members()) line.add(key, value);
        } catch (const Error& cause) {
            if (cause.code != 2) throw;  // of the network or the GPU, not of the image
            error = std::string(cause.what()).substr(0, std::string(cause.what()).find('\n'));
            ++failed;
        }
        line.add("latency_ms", Json(took_ms));
        line.add("error", Json(error));
        std::cout << line.dump() << std::endl;
    }
    return failed == 0 ? 0 : 2;
}

int check(const Words& words, Engine& engine, const Settings& settings) {
    std::size_t wrong = 0;
    const std::vector<Recorded> recorded = read_recorded(words.check);
    for (const Recorded& one : recorded) {
        double took_ms = 0;
        const Picture picture = open_picture(one.image);
        const Placed where = placed(picture, settings.prepare, one.image);
        std::string why = disagreement(one.answer, told(one.image, engine, settings, words.gpu, took_ms), slack, settings.boxes.show);
        if (digest_of(engine.prepared_on_gpu(picture, where).bytes) != one.input) why = "the GPU prepares another input; " + why;
        if (why.empty()) continue;
        ++wrong;
        std::cerr << one.image << ": " << why << "\n";
    }
    std::cout << recorded.size() - wrong << " of " << recorded.size() << " images: the engine agrees with " << settings.onnx << ".\n";
    return wrong == 0 && !recorded.empty() ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
    try {
        const Words given = read_words(count, words);
        const Settings settings = read_settings(given.model);
        Engine engine(preflight(given.engine, settings, what_is_here(), given.plugins, given.sidecar), settings, given.plugins);
        return given.check.empty() ? infer(given, engine, settings) : check(given, engine, settings);
    } catch (const Error& error) {
        std::cerr << "msn-infer: ERROR: " << error.what() << "\n";
        return error.code;
    } catch (const std::bad_alloc&) {
        std::cerr << "msn-infer: ERROR: it does not fit into the memory of this machine.\n";
        return 2;
    }
}
