#include "check.hpp"

#include <algorithm>

namespace msn {
namespace {

std::string inside(const std::string& folder, const std::string& name) {
    if (name.empty() || name[0] == '/' || name.find("..") != std::string::npos) throw Error(2, name + " is not a file of " + folder + ".");
    return folder + name;
}

}  // namespace

std::vector<Recorded> read_recorded(const std::string& path) {
    const Bytes text = read_file(path, std::size_t(1) << 30);
    const Json from = Json::parse(std::string(text.begin(), text.end()), path);
    const std::string folder = folder_of(path);
    const Bytes numbers = read_file(inside(folder, from.at("outputs").text()));
    std::vector<Recorded> made;
    for (const Json& each : from.at("images").items()) {
        Recorded one{inside(folder, each.at("image").text()), each.at("input").text(), {}, each.at("answer")};
        for (const Json& output : each.at("outputs").items()) {
            Array array;
            array.name = output.at("name").text();
            array.type = type_named(output.at("dtype").text());
            for (const Json& size : output.at("shape").items()) array.shape.push_back(size.whole());
            const std::int64_t at = output.at("at").whole(), count = array.count();
            const std::int64_t size = count * static_cast<std::int64_t>(size_of(array.type));
            const std::int64_t whole = static_cast<std::int64_t>(numbers.size());
            if (at < 0 || at > whole || size > whole - at) throw Error(2, path + " names outputs beyond the end of its file.");
            array.bytes.assign(numbers.begin() + at, numbers.begin() + at + size);
            one.outputs.push_back(array);
        }
        made.push_back(one);
    }
    return made;
}

}  // namespace msn
