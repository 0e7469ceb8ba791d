#include "prepare.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace msn {
namespace {

constexpr long long most_pixels = 178956970;

double bilinear(double at) {
    at = std::fabs(at);
    return at < 1 ? 1 - at : 0;
}

double bicubic(double at) {  // Keys (1981) with a = -0.5
    constexpr double a = -0.5;
    at = std::fabs(at);
    if (at < 1) return ((a + 2) * at - (a + 3)) * at * at + 1;
    return at < 2 ? (((at - 5) * at + 8) * at - 4) * a : 0;
}

void add(Taps& taps, int start, const std::vector<int>& weights) {
    taps.start.push_back(start);
    taps.length.push_back(static_cast<int>(weights.size()));
    taps.first.push_back(static_cast<int>(taps.weights.size()));
    taps.weights.insert(taps.weights.end(), weights.begin(), weights.end());
}

Taps taps_for(int size, int wanted, const std::string& interpolation) {
    Taps taps;
    const double scale = static_cast<double>(size) / wanted;
    if (size == wanted || interpolation == "nearest") {
        double at = scale * 0.5;
        for (int made = 0; made < wanted; ++made, at += scale)
            add(taps, size == wanted ? made : std::min(static_cast<int>(at), size - 1), {1 << weight_bits});
        return taps;
    }
    const bool cubic = interpolation == "bicubic";
    const double spread = std::max(scale, 1.0), support = (cubic ? 2.0 : 1.0) * spread, step = 1.0 / spread;
    for (int made = 0; made < wanted; ++made) {
        const double centre = (made + 0.5) * scale;
        const int from = std::max(static_cast<int>(centre - support + 0.5), 0);
        const int to = std::min(static_cast<int>(centre + support + 0.5), size);
        std::vector<double> shares;
        double sum = 0;
        for (int at = 0; at < to - from; ++at) {
            const double where = (at + from - centre + 0.5) * step;
            shares.push_back(cubic ? bicubic(where) : bilinear(where));
            sum += shares.back();
        }
        std::vector<int> weights;
        for (double share : shares) {
            if (sum != 0) share /= sum;
            weights.push_back(static_cast<int>((share < 0 ? -0.5 : 0.5) + share * (1 << weight_bits)));
        }
        add(taps, from, weights);
    }
    return taps;
}

// To the nearest, halves to even, as Python rounds.
long long nearest(double value) { return static_cast<long long>(std::nearbyint(value)); }

long long half_down(long long value) { return value >= 0 ? value / 2 : -((-value + 1) / 2); }

}  // namespace

Placed placed(const Picture& picture, const Prepare& prepare, const std::string& path) {
    const int width = picture.width, height = picture.height;
    const double wide_scale = static_cast<double>(prepare.width) / width, high_scale = static_cast<double>(prepare.height) / height;
    const std::string size = std::to_string(width) + "x" + std::to_string(height);
    long long wide = prepare.width, high = prepare.height;
    if (prepare.fit == "pad") {
        wide = width;
        high = height;
        if (wide > prepare.width || high > prepare.height)
            throw Error(2, path + ": an image of " + size + " pixels can't be padded to " + std::to_string(prepare.width) + "x" +
                               std::to_string(prepare.height) + ".");
    } else if (prepare.fit == "letterbox") {
        const double scale = std::min(wide_scale, high_scale);
        wide = std::max(1LL, nearest(width * scale));
        high = std::max(1LL, nearest(height * scale));
    } else if (prepare.fit == "crop" && prepare.short_side != 0) {
        const long long shorter = std::min(width, height);
        wide = static_cast<long long>(prepare.short_side) * width / shorter;
        high = static_cast<long long>(prepare.short_side) * height / shorter;
    } else if (prepare.fit == "crop") {
        const double scale = std::max(wide_scale, high_scale);
        wide = std::max<long long>(prepare.width, nearest(width * scale));
        high = std::max<long long>(prepare.height, nearest(height * scale));
    }
    if (wide > most_pixels || high > most_pixels || wide * high > most_pixels || wide * height > most_pixels)
        throw Error(2, path + ": an image of " + size + " pixels would be scaled to " + std::to_string(wide) + "x" + std::to_string(high) +
                           ": it is too long.");
    long long left = half_down(prepare.width - wide), top = half_down(prepare.height - high);
    if (prepare.fit == "crop") {
        left = -nearest((wide - prepare.width) / 2.0);
        top = -nearest((high - prepare.height) / 2.0);
    } else if (prepare.corner) {
        left = top = 0;
    }
    Placed made{width, height, picture.channels, static_cast<int>(wide), static_cast<int>(high), static_cast<int>(left),
                static_cast<int>(top), static_cast<double>(wide) / width, static_cast<double>(high) / height, {}, {}};
    made.across = taps_for(width, made.wide, prepare.interpolation);
    made.down = taps_for(height, made.high, prepare.interpolation);
    return made;
}

Array prepared(const Picture& picture, const Placed& where, const Settings& settings) {
    const Prepare& to = settings.prepare;
    const TapsView across{where.across.start.data(), where.across.length.data(), where.across.first.data(), where.across.weights.data()};
    const TapsView down{where.down.start.data(), where.down.length.data(), where.down.first.data(), where.down.weights.data()};
    Bytes lines(std::size_t(where.height) * std::size_t(where.wide) * std::size_t(to.read));
    std::uint8_t* byte = lines.data();
    for (int row = 0; row < where.height; ++row)
        for (int column = 0; column < where.wide; ++column)
            for (int part = 0; part < to.read; ++part)
                *byte++ = scaled_across(picture.pixels.data(), where.width, where.channels, to.read, across, row, column, part);
    Array made;
    made.name = settings.input;
    made.type = settings.type;
    made.shape = to.channels_last ? std::vector<std::int64_t>{1, to.height, to.width, to.channels}
                                  : std::vector<std::int64_t>{1, to.channels, to.height, to.width};
    made.bytes.resize(static_cast<std::size_t>(made.count()) * size_of(made.type));
    for (int part = 0; part < to.channels; ++part) {
        const int from = to.read == 1 ? 0 : to.bgr ? 2 - part : part;
        const float scale = to.scale[std::size_t(part)], offset = to.offset[std::size_t(part)];
        for (int row = 0; row < to.height; ++row)
            for (int column = 0; column < to.width; ++column) {
                const std::uint8_t value =
                    in_frame(lines.data(), where.wide, where.high, where.left, where.top, to.fill, to.read, down, row, column, from);
                const std::size_t pixel = std::size_t(row) * std::size_t(to.width) + std::size_t(column);
                const std::size_t at = to.channels_last ? pixel * std::size_t(to.channels) + std::size_t(part)
                                                        : std::size_t(part) * std::size_t(to.height) * std::size_t(to.width) + pixel;
                if (made.type == Type::uint8) {
                    made.bytes[at] = value;
                    continue;
                }
                const float number = number_of(value, scale, offset);
                const std::uint16_t half = half_of_float(number);
                if (made.type == Type::float16)
                    std::memcpy(made.bytes.data() + 2 * at, &half, 2);
                else
                    std::memcpy(made.bytes.data() + 4 * at, &number, 4);
            }
    }
    return made;
}

}  // namespace msn
