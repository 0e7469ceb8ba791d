// Image files as the pixels that `msn-deploy infer` sees.
#pragma once

#include <string>

#include "common.hpp"

namespace msn {

// Upright pixels, rows from the top, 1 (grey) or 3 (red, green, blue) bytes each.
struct Picture {
    int width = 0, height = 0, channels = 3;
    Bytes pixels;
};

// Reads PPM, PGM and BMP, and PNG and JPEG where they were found at the build. What is transparent lies on white.
// Throws Error(2): not such a file, damaged, more than 8 bits per channel, or more than 178 million pixels.
Picture open_picture(const std::string& path);

// The parts for the formats; each takes the whole file. `path` is for messages.
Picture read_png(const Bytes& file, const std::string& path);
Picture read_jpeg(const Bytes& file, const std::string& path);

// The orientation that EXIF says, 1 where it says none. exif: from its byte order on.
int exif_orientation(const std::uint8_t* exif, std::size_t size);

// Throws Error(2) unless a file of that size may be decoded.
void check_size(long long width, long long height, const std::string& path);
[[noreturn]] void damaged(const std::string& path, const std::string& why);
Picture on_white(const Picture& colours, const Bytes& alpha);
Picture upright(const Picture& picture, int orientation);  // EXIF's, 1 to 8

}  // namespace msn
