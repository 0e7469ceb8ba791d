#include "settings.hpp"

#include <algorithm>

namespace msn {
namespace {

constexpr std::size_t most_bytes = std::size_t(1) << 24;
constexpr int most_side = 16384;
constexpr std::int64_t most_pixels = 1 << 24;

std::string one_of(const Json& from, const std::string& key, const std::vector<std::string>& known, const std::string& path) {
    const Json* found = from.find(key);
    const std::string value = found == nullptr ? "" : found->text();
    if (std::find(known.begin(), known.end(), value) == known.end())
        throw Error(2, path + " says " + key + " = \"" + value + "\", which this version does not know.");
    return value;
}

int within(const Json& from, const std::string& key, std::int64_t least, std::int64_t most, const std::string& path) {
    const std::int64_t value = from.at(key).whole();
    if (value < least || value > most) throw Error(2, path + " says " + key + " = " + std::to_string(value) + ".");
    return static_cast<int>(value);
}

std::vector<double> numbers(const Json& list, int wanted, const std::string& path) {
    std::vector<double> made;
    for (const Json& item : list.items()) made.push_back(item.number());
    if (made.size() != static_cast<std::size_t>(wanted)) throw Error(2, path + " has a mean or std of another size than channels.");
    return made;
}

Prepare prepare_of(const Json& from, const std::string& path) {
    Prepare made;
    made.height = within(from, "height_px", 1, most_side, path);
    made.width = within(from, "width_px", 1, most_side, path);
    if (std::int64_t(made.height) * made.width > most_pixels) throw Error(2, path + " says an image of too many pixels.");
    made.channels = within(from, "channels", 1, 3, path);
    const std::string colour = one_of(from, "colour", {"rgb", "bgr", "grey"}, path);
    made.read = colour == "grey" ? 1 : 3;
    made.bgr = colour == "bgr";
    if (made.channels == 2 || (made.channels == 1 && made.read == 3)) throw Error(2, path + " says an impossible number of channels.");
    made.fit = one_of(from, "fit", {"resize", "pad", "letterbox", "crop"}, path);
    made.short_side = within(from, "short_px", 0, 1 << 24, path);
    made.fill = within(from, "fill", 0, 255, path);
    made.corner = one_of(from, "align", {"centre", "corner"}, path) == "corner";
    made.interpolation = one_of(from, "interpolation", {"bilinear", "bicubic", "nearest"}, path);
    made.channels_last = one_of(from, "layout", {"NCHW", "NHWC"}, path) == "NHWC";
    const std::vector<double> mean = numbers(from.at("mean"), made.channels, path), std = numbers(from.at("std"), made.channels, path);
    for (std::size_t at = 0; at < mean.size(); ++at) {
        const float deviation = static_cast<float>(std[at]);
        if (!(deviation > 0)) throw Error(2, path + " says a std that is not above 0.");
        made.scale.push_back(1.0f / (255.0f * deviation));
        made.offset.push_back(-static_cast<float>(mean[at]) / deviation);
    }
    return made;
}

Boxes boxes_of(const Json& from, const std::string& path) {
    Boxes made;
    made.decode = one_of(from, "decode", {"yolov5", "yolov8", "fcos", "pair", "rows", "rows_with_image", "lists"}, path);
    made.of_all = from.at("of_all").truth();
    const Json& outputs = from.at("outputs");
    const auto name = [&](const char* role) { return outputs.find(role) == nullptr ? std::string() : outputs.at(role).text(); };
    made.output = name("output");
    made.boxes = name("boxes");
    made.scores = name("scores");
    made.classes = name("classes");
    made.count = name("count");
    made.score = from.at("score").number();
    made.show = from.at("show").number();
    made.most = static_cast<std::size_t>(within(from, "max", 1, 10000, path));
    made.suppresses = from.find("iou") != nullptr;
    if (made.suppresses) made.overlap = from.at("iou").number();
    made.form = one_of(from, "format", {"xyxy", "cxcywh", "xywh"}, path);
    made.units = one_of(from, "units", {"pixels", "share"}, path);
    made.background = one_of(from, "background", {"none", "first", "last"}, path);
    made.ending = one_of(from, "ending", {"logits", "softmax", "log-softmax", "sigmoid", "argmax", "unknown"}, path);
    made.best_alone = one_of(from, "per_box", {"best", "all"}, path) == "best";
    made.stride = from.at("stride").number();
    return made;
}

}  // namespace

Settings read_settings(const std::string& path) {
    const Bytes file = read_file(path, most_bytes);
    const Json from = Json::parse(std::string(file.begin(), file.end()), path);
    if (from.at("schema").whole() != 1) throw Error(2, path + " is of another version of msn-deploy: pack the bundle again.");
    Settings made;
    made.path = path;
    made.onnx = from.at("onnx").at("file").text();
    made.onnx_digest = from.at("onnx").at("sha256").text();
    made.input = from.at("input").at("name").text();
    made.type = type_named(from.at("input").at("dtype").text());
    if (made.type != Type::float32 && made.type != Type::float16 && made.type != Type::uint8)
        throw Error(2, path + " says an input of another type than float32, float16 and uint8.");
    made.prepare = prepare_of(from.at("prepare"), path);
    made.task = one_of(from, "task", {"classification", "detection", "segmentation"}, path);
    for (const Json& each : from.at("classes").items()) made.classes.push_back(each.text());
    const Json& reading = from.at("reading");
    if (made.task == "detection") {
        made.boxes = boxes_of(reading, path);
        return made;
    }
    made.output = reading.at("output").text();
    made.ending = one_of(reading, "ending", {"logits", "softmax", "log-softmax", "sigmoid", "argmax", "unknown"}, path);
    made.layout = reading.find("layout") == nullptr ? "" : one_of(reading, "layout", {"nchw", "nhwc"}, path);
    if (reading.find("threshold") != nullptr) made.threshold = reading.at("threshold").number();
    return made;
}

}  // namespace msn
