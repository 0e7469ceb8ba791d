#include "picture.hpp"

#include <cstring>

namespace msn {
namespace {

constexpr long long most_pixels = 178956970;  // as msn-deploy and Pillow

// PGM and PPM of one byte per value, binary (P5, P6).
Picture read_pnm(const Bytes& file, const std::string& path) {
    std::size_t at = 2;
    const auto number = [&] {
        while (at < file.size() && (std::strchr(" \t\r\n", file[at]) != nullptr || file[at] == '#'))
            if (file[at++] == '#')
                while (at < file.size() && file[at] != '\n') ++at;
        long long value = 0;
        const std::size_t start = at;
        for (; at < file.size() && file[at] >= '0' && file[at] <= '9'; ++at)
            if ((value = value * 10 + (file[at] - '0')) > most_pixels) damaged(path, "a number in it is too large");
        if (at == start) damaged(path, "a number is missing");
        return value;
    };
    const long long width = number(), height = number(), white = number();
    check_size(width, height, path);
    if (white != 255) throw Error(2, path + " has values up to " + std::to_string(white) + "; here they go up to 255.");
    Picture made{static_cast<int>(width), static_cast<int>(height), file[1] == '6' ? 3 : 1, {}};
    const std::size_t size = std::size_t(width) * std::size_t(height) * std::size_t(made.channels);
    if (at >= file.size() || file.size() - at - 1 < size) damaged(path, "it ends too early");
    const auto start = file.begin() + static_cast<std::ptrdiff_t>(at) + 1;
    made.pixels.assign(start, start + static_cast<std::ptrdiff_t>(size));
    return made;
}

// BMP of 24 bits, or of 8 with a palette, not compressed.
Picture read_bmp(const Bytes& file, const std::string& path) {
    const auto number = [&](std::size_t at, int bytes) {
        if (at + static_cast<std::size_t>(bytes) > file.size()) damaged(path, "it ends too early");
        std::uint32_t value = 0;
        for (int step = 0; step < bytes; ++step) value |= std::uint32_t(file[at + static_cast<std::size_t>(step)]) << (8 * step);
        return value;
    };
    const std::size_t start = number(10, 4), header = number(14, 4);
    if (header < 40) throw Error(2, path + " is a BMP of an old kind; save it as PNG.");
    const long long width = static_cast<std::int32_t>(number(18, 4)), rows = static_cast<std::int32_t>(number(22, 4));
    const long long height = rows < 0 ? -rows : rows;
    const unsigned bits = number(28, 2), packed = number(30, 4);
    if (packed != 0 || (bits != 24 && bits != 8)) throw Error(2, path + " is a BMP of another kind than 24 bits or 8 with a palette.");
    check_size(width, height, path);
    const unsigned told = number(46, 4), colours = bits == 8 ? (told != 0 && told < 256 ? told : 256) : 0;
    const std::size_t palette = 14 + header, stride = (std::size_t(width) * bits + 31) / 32 * 4;
    if (start > file.size() || stride * std::size_t(height) > file.size() - start || palette + 4 * colours > file.size())
        damaged(path, "it ends too early");
    Picture made{static_cast<int>(width), static_cast<int>(height), 3, Bytes(std::size_t(width) * std::size_t(height) * 3)};
    std::uint8_t* out = made.pixels.data();
    for (long long row = 0; row < height; ++row) {
        const std::uint8_t* line = file.data() + start + stride * std::size_t(rows < 0 ? row : height - 1 - row);
        for (long long column = 0; column < width; ++column) {
            const std::uint8_t* pixel = bits == 24 ? line + 3 * column : file.data() + palette + 4 * std::size_t(line[column]);
            if (bits == 8 && line[column] >= colours) damaged(path, "a colour is not in its palette");
            for (int part = 2; part >= 0; --part) *out++ = pixel[part];
        }
    }
    return made;
}

bool begins(const Bytes& file, const char* with, std::size_t size) {
    return file.size() >= size && std::memcmp(file.data(), with, size) == 0;
}

}  // namespace

void damaged(const std::string& path, const std::string& why) { throw Error(2, path + " is damaged: " + why + "."); }

void check_size(long long width, long long height, const std::string& path) {
    if (width < 1 || height < 1) damaged(path, "it has no size");
    if (width > most_pixels || height > most_pixels || width * height > most_pixels)
        throw Error(2, path + " has " + std::to_string(width) + "x" + std::to_string(height) + " pixels; up to 179 million are read.");
}

Picture open_picture(const std::string& path) {
    const Bytes file = read_file(path, std::size_t(1) << 30);
    if (begins(file, "\x89PNG\r\n\x1a\n", 8)) return read_png(file, path);
    if (begins(file, "\xff\xd8\xff", 3)) return read_jpeg(file, path);
    if (begins(file, "P5", 2) || begins(file, "P6", 2)) return read_pnm(file, path);
    if (begins(file, "BM", 2)) return read_bmp(file, path);
    throw Error(2, path + " is not a PNG, JPEG, BMP, PGM or PPM file.");
}

Picture on_white(const Picture& colours, const Bytes& alpha) {
    Picture made = colours;
    for (std::size_t at = 0; at < alpha.size(); ++at)
        for (int part = 0; part < made.channels; ++part) {
            std::uint8_t& value = made.pixels[at * std::size_t(made.channels) + std::size_t(part)];
            value = static_cast<std::uint8_t>((value * alpha[at] + 255 * (255 - alpha[at]) + 127) / 255);
        }
    return made;
}

Picture upright(const Picture& picture, int orientation) {
    if (orientation < 2 || orientation > 8) return picture;
    const bool turned = orientation >= 5;
    const bool mirrored_down = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
    const bool mirrored_across = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
    Picture made{turned ? picture.height : picture.width, turned ? picture.width : picture.height, picture.channels,
                 Bytes(picture.pixels.size())};
    const std::size_t size = std::size_t(picture.channels);
    for (int row = 0; row < made.height; ++row)
        for (int column = 0; column < made.width; ++column) {
            const int down = mirrored_down ? made.height - 1 - row : row;
            const int across = mirrored_across ? made.width - 1 - column : column;
            const std::size_t from = turned ? std::size_t(across) * std::size_t(picture.width) + std::size_t(down)
                                            : std::size_t(down) * std::size_t(picture.width) + std::size_t(across);
            const std::size_t to = std::size_t(row) * std::size_t(made.width) + std::size_t(column);
            std::memcpy(made.pixels.data() + to * size, picture.pixels.data() + from * size, size);
        }
    return made;
}

int exif_orientation(const std::uint8_t* exif, std::size_t size) {
    if (size < 8 || exif[0] != exif[1] || (exif[0] != 'I' && exif[0] != 'M')) return 1;
    const bool little = exif[0] == 'I';
    const auto number = [&](std::size_t at, std::size_t bytes) {
        std::uint32_t value = 0;
        for (std::size_t step = 0; step < bytes && at + step < size; ++step)
            value |= std::uint32_t(exif[at + step]) << 8 * (little ? step : bytes - 1 - step);
        return value;
    };
    const std::size_t first = number(4, 4);
    if (number(2, 2) != 42 || first > size || size - first < 2) return 1;
    for (std::uint32_t entry = 0, entries = number(first, 2); entry < entries; ++entry) {
        const std::size_t at = first + 2 + 12 * std::size_t(entry);
        if (at + 12 > size) break;
        if (number(at, 2) == 0x0112 && number(at + 2, 2) == 3) return static_cast<int>(number(at + 8, 2));
    }
    return 1;
}

#ifndef MSN_WITH_PNG
Picture read_png(const Bytes&, const std::string& path) {
    throw Error(3, path + " is a PNG, and this program was built without libpng: sudo apt install libpng-dev, and build again.");
}
#endif
#ifndef MSN_WITH_JPEG
Picture read_jpeg(const Bytes&, const std::string& path) {
    throw Error(3, path + " is a JPEG, and this program was built without libjpeg: sudo apt install libjpeg-dev, and build again.");
}
#endif

}  // namespace msn
