// Classification and segmentation, and what all answers have in common.
#include "decode.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

namespace msn {
namespace {

constexpr std::size_t top = 5;
constexpr std::int64_t ignored = 255;

// Where the centre of pixel `at` lies on an axis that is scaled, from its outer edge.
double centre(std::int64_t at, double scale, double offset = 0) { return (static_cast<double>(at) + 0.5) * scale + offset; }

std::int64_t clipped(double at, std::int64_t size) {
    return static_cast<std::int64_t>(std::min(std::max(std::floor(at), 0.0), static_cast<double>(size - 1)));
}

// A map (high, wide) scaled along its rows or columns: by the centres of pixels, without smoothing.
std::vector<float> along(const std::vector<float>& map, std::int64_t high, std::int64_t wide, std::int64_t wanted, bool down) {
    const std::int64_t have = down ? high : wide, rows = down ? wanted : high, columns = down ? wide : wanted;
    std::vector<float> made(static_cast<std::size_t>(rows * columns));
    const double scale = static_cast<double>(have) / static_cast<double>(wanted);
    for (std::int64_t at = 0; at < wanted; ++at) {
        const double place = std::min(std::max(centre(at, scale) - 0.5, 0.0), static_cast<double>(have - 1));
        const std::int64_t before = static_cast<std::int64_t>(std::floor(place)), after = std::min(before + 1, have - 1);
        const float share = static_cast<float>(place - static_cast<double>(before));
        for (std::int64_t other = 0; other < (down ? wide : high); ++other) {
            const float low = map[static_cast<std::size_t>(down ? before * wide + other : other * wide + before)];
            const float high_value = map[static_cast<std::size_t>(down ? after * wide + other : other * wide + after)];
            const float step = share * (high_value - low);
            made[static_cast<std::size_t>(down ? at * wide + other : other * wanted + at)] = low + step;
        }
    }
    return made;
}

struct Map {
    std::int64_t high, wide;
    Bytes classes;
};

// Where in an array the numbers of a map lie: channel, row, column -> index.
struct Layout {
    std::int64_t channels, high, wide, of_channel, of_row, of_column;
};

Layout layout_of(const Array& array, const std::string& layout, const std::vector<std::int64_t>& counts) {
    const auto& shape = array.shape;
    const auto fits = [&](std::int64_t size) { return std::find(counts.begin(), counts.end(), size) != counts.end(); };
    if (shape.size() == 3 && layout.empty() && fits(1)) return {1, shape[1], shape[2], 0, shape[2], 1};
    if (shape.size() == 4 && layout != "nhwc" && fits(shape[1]))
        return {shape[1], shape[2], shape[3], shape[2] * shape[3], shape[3], 1};
    if (shape.size() == 4 && layout != "nchw" && fits(shape[3]))
        return {shape[3], shape[1], shape[2], 1, shape[2] * shape[3], shape[3]};
    throw Error(2, "the network gives " + array.sizes() + " numbers; its classes are of another count.");
}

Map labels_of(const Array& array, std::int64_t high, std::int64_t wide) {
    const Layout at = layout_of(array, "", {1});
    Map made{high, wide, Bytes(static_cast<std::size_t>(high * wide))};
    for (std::int64_t index = 0; index < at.high * at.wide; ++index) {
        const double label = array.at(index);
        if (label < 0 || label >= ignored) throw Error(2, "the network gives the class " + Json(label).dump() + "; they go from 0 to 254.");
    }
    const double down = static_cast<double>(at.high) / static_cast<double>(high), across = static_cast<double>(at.wide) / static_cast<double>(wide);
    for (std::int64_t row = 0; row < high; ++row)
        for (std::int64_t column = 0; column < wide; ++column)
            made.classes[static_cast<std::size_t>(row * wide + column)] = static_cast<std::uint8_t>(
                array.at(clipped(centre(row, down), at.high) * at.of_row + clipped(centre(column, across), at.wide) * at.of_column));
    return made;
}

Map likeliest(const Array& array, const Settings& settings, std::int64_t high, std::int64_t wide) {
    const std::int64_t known = static_cast<std::int64_t>(settings.classes.size());
    const bool softmax = settings.ending == "softmax" || settings.ending == "log-softmax";
    std::vector<std::int64_t> counts;
    if (known > 0) {
        counts = {known};
        if (!softmax && known > 1) counts.push_back(known - 1);
        const auto& shape = array.shape;
        const auto is_count = [&](std::size_t axis) {
            return shape.size() > axis && std::find(counts.begin(), counts.end(), shape[axis]) != counts.end();
        };
        if (!is_count(1) && !is_count(3))
            for (std::int64_t more = known; more <= ignored; ++more) counts.push_back(more);
    } else {
        for (std::int64_t count = 1; count <= ignored; ++count) counts.push_back(count);
    }
    const Layout at = layout_of(array, settings.layout, counts);
    const bool held = at.channels == 1 || at.channels == known - 1;
    if (held && settings.ending == "unknown") throw Error(2, "the settings do not say whether scores are logits. Pack the bundle again.");
    double least = settings.threshold;
    if (settings.ending == "logits") least = std::log(least / (1 - least));
    Map made{high, wide, Bytes(static_cast<std::size_t>(high * wide))};
    std::vector<float> best(static_cast<std::size_t>(high * wide));
    for (std::int64_t channel = 0; channel < at.channels; ++channel) {
        std::vector<float> scores(static_cast<std::size_t>(at.high * at.wide));
        for (std::int64_t row = 0; row < at.high; ++row)
            for (std::int64_t column = 0; column < at.wide; ++column)
                scores[static_cast<std::size_t>(row * at.wide + column)] =
                    static_cast<float>(array.at(channel * at.of_channel + row * at.of_row + column * at.of_column));
        if (at.high != high || at.wide != wide) {
            scores = along(scores, at.high, at.wide, high, true);
            scores = along(scores, high, at.wide, wide, false);
        }
        for (std::size_t pixel = 0; pixel < scores.size(); ++pixel)
            if (channel == 0 || scores[pixel] > best[pixel]) {
                best[pixel] = scores[pixel];
                made.classes[pixel] = static_cast<std::uint8_t>(channel);
            }
    }
    if (held)
        for (std::size_t pixel = 0; pixel < best.size(); ++pixel)
            made.classes[pixel] = best[pixel] < static_cast<float>(least) ? std::uint8_t(0) : static_cast<std::uint8_t>(made.classes[pixel] + 1);
    return made;
}

// COCO's compressed run lengths of where a mask has a class: column by column, five bits to a character.
std::string runs_of(const Map& map, std::uint8_t wanted) {
    std::vector<std::int64_t> runs;
    std::int64_t run = 0;
    bool inside = false;
    for (std::int64_t column = 0; column < map.wide; ++column)
        for (std::int64_t row = 0; row < map.high; ++row, ++run)
            if ((map.classes[static_cast<std::size_t>(row * map.wide + column)] == wanted) != inside) {
                runs.push_back(run);
                run = 0;
                inside = !inside;
            }
    runs.push_back(run);
    std::string text;
    for (std::size_t at = 0; at < runs.size(); ++at) {
        std::int64_t value = runs[at] - (at > 2 ? runs[at - 2] : 0);
        for (bool more = true; more;) {
            const std::int64_t five = value & 31;
            value >>= 5;
            more = value != ((five & 16) != 0 ? -1 : 0);
            text += static_cast<char>(48 + five + (more ? 32 : 0));
        }
    }
    return text;
}

double six_digits(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6f", value);
    return std::strtod(text, nullptr);
}

Json number(std::int64_t value) { return Json(static_cast<double>(value)); }

}  // namespace

void require_finite(const Array& array, const Settings& settings) {
    if (!array.is_float()) return;
    std::int64_t bad = 0;
    for (std::int64_t at = 0, count = array.count(); at < count; ++at) bad += std::isfinite(array.at(at)) ? 0 : 1;
    if (bad > 0)
        throw Error(1, settings.onnx + ": " + std::to_string(bad) + " of " + std::to_string(array.count()) + " numbers of " + array.name +
                           " are not finite (NaN or infinite): there is no answer.");
}

Json answer(const Arrays& outputs, const Placed& where, const Settings& settings) {
    for (const Array& array : outputs)
        if (array.bytes.size() < static_cast<std::size_t>(array.count()) * size_of(array.type))
            throw Error(2, "the output " + array.name + " is shorter than its shape says.");
    if (settings.task == "classification") return classes_of(outputs, settings);
    if (settings.task == "detection") return boxes_of(outputs, where, settings);
    return mask_of(outputs, where, settings);
}

Json classes_of(const Arrays& outputs, const Settings& settings) {
    const Array& array = array_named(outputs, settings.output);
    require_finite(array, settings);
    const std::int64_t rows = array.shape.empty() ? 0 : array.shape[0];
    const std::int64_t count = rows > 0 ? array.count() / rows : 0;
    if (count < 1 || array.shape.size() < 2 || array.shape[1] != count)
        throw Error(2, "the network gives " + array.sizes() + " numbers; a classifier gives one for each class.");
    std::vector<double> scores;
    for (std::int64_t at = 0; at < count; ++at) scores.push_back(array.at(at));
    const bool shares = settings.ending == "softmax" || settings.ending == "sigmoid";
    if (settings.ending == "log-softmax") {
        for (double& score : scores) score = std::exp(score);
    } else if (count == 1) {
        const double second = shares ? scores[0] : 0.5 * (1 + std::tanh(0.5 * scores[0]));
        scores = {1 - second, second};
    } else if (!shares) {
        const double largest = *std::max_element(scores.begin(), scores.end());
        double sum = 0;
        for (double& score : scores) sum += score = std::exp(score - largest);
        for (double& score : scores) score /= sum;
    }
    if (scores.size() < settings.classes.size())
        throw Error(2, "the network gives numbers for " + std::to_string(scores.size()) + " classes; its names are " +
                           std::to_string(settings.classes.size()) + ".");
    std::vector<std::size_t> order(scores.size());
    std::iota(order.begin(), order.end(), std::size_t(0));
    std::stable_sort(order.begin(), order.end(), [&](std::size_t one, std::size_t other) { return scores[one] > scores[other]; });
    Json list = Json::list();
    for (std::size_t at = 0; at < std::min(top, order.size()); ++at) {
        Json guess = Json::object();
        guess.add("label", Json(settings.label(static_cast<std::int64_t>(order[at]))));
        guess.add("score", Json(scores[order[at]]));
        list.add(guess);
    }
    Json made = list.items()[0];
    made.add("top", list);
    return made;
}

Json mask_of(const Arrays& outputs, const Placed& where, const Settings& settings) {
    const Array& array = array_named(outputs, settings.output);
    require_finite(array, settings);
    const std::int64_t high = settings.prepare.height, wide = settings.prepare.width;
    const bool labels = settings.ending == "argmax" || !array.is_float();
    const Map frame = labels ? labels_of(array, high, wide) : likeliest(array, settings, high, wide);
    Map mask{where.height, where.width, Bytes(std::size_t(where.height) * std::size_t(where.width))};
    std::vector<std::int64_t> counts(256);
    for (std::int64_t row = 0; row < mask.high; ++row) {
        const double down = centre(row, where.scale_y, where.top);
        for (std::int64_t column = 0; column < mask.wide; ++column) {
            const double across = centre(column, where.scale_x, where.left);
            const bool outside = down < 0 || down > static_cast<double>(high) || across < 0 || across > static_cast<double>(wide);
            const std::uint8_t label = outside ? std::uint8_t(ignored)
                                               : frame.classes[static_cast<std::size_t>(clipped(down, high) * wide + clipped(across, wide))];
            mask.classes[static_cast<std::size_t>(row * mask.wide + column)] = label;
            ++counts[label];
        }
    }
    std::vector<std::int64_t> order(ignored);
    std::iota(order.begin(), order.end(), std::int64_t(0));
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t one, std::int64_t other) { return counts[std::size_t(one)] > counts[std::size_t(other)]; });
    Json segments = Json::list();
    for (const std::int64_t at : order) {
        if (counts[std::size_t(at)] == 0) break;
        Json size = Json::list(), rle = Json::object(), segment = Json::object();
        size.add(number(mask.high));
        size.add(number(mask.wide));
        rle.add("size", size);
        rle.add("counts", Json(runs_of(mask, static_cast<std::uint8_t>(at))));
        segment.add("label", Json(settings.label(at)));
        segment.add("index", number(at));
        segment.add("share", Json(six_digits(static_cast<double>(counts[std::size_t(at)]) / static_cast<double>(mask.classes.size()))));
        segment.add("rle", rle);
        segments.add(segment);
    }
    Json made = Json::object();
    made.add("width", number(mask.wide));
    made.add("height", number(mask.high));
    made.add("segments", segments);
    return made;
}

}  // namespace msn
